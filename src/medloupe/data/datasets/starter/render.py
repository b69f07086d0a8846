"""The pixels of a slice, drawn at the picture's own size.

Anatomy comes from a grid of about 1 mm. What a larger picture adds is drawn for it: the edges
between tissues get steeper, the texture gets finer octaves, lesions are formulas sampled with
antialiasing.

A lesion below about 1 % of the width is drawn as fine dots of zero mean contrast (`DOT`), so that a
picture of 224 pixels, however it was made, cannot show it: its dots lie beyond what the pixels
resolve. From 2 % on lesions are solid; between, the two are mixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medloupe.data.datasets.starter.anatomy import FIELD_MM, resize

if TYPE_CHECKING:
    from medloupe.data.datasets.starter.anatomy import Anatomy
    from medloupe.data.datasets.starter.patients import Lesion, Slice


Picture = NDArray[np.float32]

TISSUE = (0.13, 0.42, 0.64)  # CSF, grey and white matter as drawn, in 0..1
OCTAVES_MM = (6.0, 3.0, 1.5, 0.75, 0.4)  # grain of the texture
GRAIN = 0.022  # standard deviation of each octave
NOISE = 0.014  # standard deviation of the scanner's noise in both channels
BRIGHTER, DARKER = 0.36, 0.40  # largest change by a lesion of conspicuity 1
OPACITY = 0.75  # how far a lesion hides the tissue below it
DOT = 0.0032  # distance between dots, as a fraction of the width: 3.6 px at 1134, 0.7 px at 224
DOTTED, SOLID = 0.010, 0.020  # widths between which lesions turn from dotted to solid


def render(
    case: Slice, size: int, conspicuity: float, *, lesions: bool = True
) -> NDArray[np.uint8]:
    """The picture `[size, size]`; `lesions=False` draws the same slice without them."""
    picture = _tissue(case, size)
    for lesion in case.lesions if lesions else ():
        plant(picture, lesion, conspicuity)
    return _scanned(picture, case, size)


def tissue_levels(anatomy: Anatomy) -> tuple[float, float, float]:
    """This patient's intensity of CSF, grey and white matter."""
    csf, grey, white = (base + shift for base, shift in zip(TISSUE, anatomy.tissue, strict=True))
    return csf, grey, white


def blend(anatomy: Anatomy, t1: Picture, grey: Picture, white: Picture) -> Picture:
    """Tissue without drawn edges: half the template's own T1, half the mixture of its tissues."""
    csf, grey_level, white_level = tissue_levels(anatomy)
    mixture = csf + grey * (grey_level - csf) + white * (white_level - csf)
    own = np.clip((t1 - 0.30) * 0.95, 0, 1) ** np.float32(anatomy.gamma)
    return np.asarray(0.5 * own + 0.5 * mixture, dtype=np.float32)


def _tissue(case: Slice, size: int) -> Picture:
    """The brain at `size`: the template, sharper edges between its tissues, and texture."""
    t1, grey, white, brain = (resize(field, size) for field in case.maps)
    texture = _texture(case, size)
    csf, grey_level, white_level = tissue_levels(case.anatomy)
    gain = np.float32(1.2 + 2.2 * min(size / 1134, 1.0))
    sharp_grey = _steeper(grey + 0.8 * texture, gain)
    sharp_white = np.minimum(_steeper(white + 0.8 * texture, gain), 1 - sharp_grey)
    edges = (sharp_grey - grey) * (grey_level - csf) + (sharp_white - white) * (white_level - csf)
    picture = blend(case.anatomy, t1, grey, white) + 0.7 * edges + 0.6 * texture
    return np.asarray(picture * _steeper(brain, 2 * gain), dtype=np.float32)


def _steeper(share: Picture, gain: np.float32) -> Picture:
    """A share in 0..1 whose edge is `gain` times as steep."""
    return np.asarray(np.clip((share - 0.5) * gain + 0.5, 0, 1), dtype=np.float32)


def _texture(case: Slice, size: int) -> Picture:
    """Grain from several mm down to the pixel; each octave is the same at every size it fits."""
    total = np.zeros((size, size), dtype=np.float32)
    for octave, grain in enumerate(OCTAVES_MM):
        count = round(FIELD_MM / grain)
        if count > 1.3 * size:
            break
        rng = np.random.default_rng((*case.noise_key, octave))
        total += resize(rng.standard_normal((count, count), dtype=np.float32), size)
    return total * np.float32(GRAIN)


def plant(picture: Picture, lesion: Lesion, conspicuity: float) -> None:
    """Draw a lesion into `picture` `[H, W]`, in place; contrast is relative to the tissue below."""
    size = picture.shape[0]
    x1, y1, x2, y2 = lesion.box(size)
    rows = slice(int(np.floor(y1)), int(np.ceil(y2)))
    columns = slice(int(np.floor(x1)), int(np.ceil(x2)))
    dotted = _dotted(lesion.width)
    cover, signed = _painted(lesion, size, rows, columns, dotted)
    patch = picture[rows, columns]
    local = float((patch * cover).sum() / cover.sum())
    up, down = min(BRIGHTER, max(0.98 - local, 0.0)), min(DARKER, max(local - 0.03, 0.0))
    both = min(up, down)  # dots keep their zero mean where both directions have the same room
    room = np.where(signed > 0, up + dotted * (both - up), down + dotted * (both - down))
    patch += OPACITY * (1 - dotted) * cover * (local - patch) + conspicuity * room * signed


def _dotted(width: float) -> float:
    """How far a lesion of this width (fraction of the picture) is drawn as dots: 1 wholly, 0 not."""
    return float(np.clip(np.log(SOLID / width) / np.log(SOLID / DOTTED), 0, 1))


def _painted(
    lesion: Lesion, size: int, rows: slice, columns: slice, dotted: float
) -> tuple[Picture, Picture]:
    """Coverage and contrast x coverage of these pixels, each the mean of a grid inside the pixel."""
    fine = int(np.clip(np.ceil(96 / (lesion.width * size)), 2, 16))
    x = _inside(columns, fine) / size - lesion.u
    y = _inside(rows, fine) / size - lesion.v
    b, a = np.meshgrid(y / lesion.width, x / lesion.width, indexing="ij")
    covered, contrast = lesion.shape.paint(a.astype(np.float32), b.astype(np.float32))
    if dotted:
        near = np.cos(2 * np.pi * x / DOT)[None] + np.cos(2 * np.pi * y / DOT)[:, None] > 0.75
        dots = covered * contrast * np.where(near, 1.0, -1 / 3)
        dots -= covered * (dots.sum() / covered.sum())
        contrast = (1 - dotted) * contrast + 1.6 * dotted * dots  # dots are small: make them strong
    return _pixel_means(covered, fine), _pixel_means(covered * contrast, fine)


def _inside(pixels: slice, fine: int) -> NDArray[np.float64]:
    """`fine` sample points in each pixel of a run."""
    points: NDArray[np.float64] = (
        pixels.start + (np.arange((pixels.stop - pixels.start) * fine) + 0.5) / fine
    )
    return points


def _pixel_means(field: NDArray[np.floating], fine: int) -> Picture:
    height, width = field.shape[0] // fine, field.shape[1] // fine
    blocks = field.reshape(height, fine, width, fine)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def _scanned(picture: Picture, case: Slice, size: int) -> NDArray[np.uint8]:
    """Coil shading, Rician noise, 8 bits."""
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    across, down, curve = case.anatomy.bias.astype(np.float32)
    shaded = picture * (1 + across * ramp + (down * ramp + curve * ramp**2)[:, None])
    rng = np.random.default_rng((*case.noise_key, len(OCTAVES_MM), size))
    noise = rng.standard_normal((2, size, size), dtype=np.float32) * np.float32(NOISE)
    return to_bytes(np.hypot(shaded + noise[0], noise[1]))


def to_bytes(picture: Picture) -> NDArray[np.uint8]:
    """0..1 -> 0..255."""
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
