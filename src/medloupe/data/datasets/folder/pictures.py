"""What a table says about its images, held against the images: their hashes, and edges of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medloupe.data.dataset import Progress, image_path
from medloupe.data.datasets.folder.cases import box_of
from medloupe.data.datasets.folder.tables import Line
from medloupe.errors import DataError, ImageError
from medloupe.imaging.files import sha256_path
from medloupe.imaging.read import read_ref
from medloupe.types import Box, ImageRef

Placed = tuple[Line, tuple[ImageRef, ...]]
_SLACK = 0.5  # pixels: half a pixel is a matter of where its corner is counted from


def refuse_other_files(placed: Sequence[Placed], root: Path) -> None:
    """Compare images with the column of their SHA-256.

    Raises:
        DataError: an image is another one, or there are more or fewer hashes than images.
    """
    for line, images in placed:
        said = line.several("sha256")
        if said and len(said) != len(images):
            raise line.error(
                f"{len(said)} hashes of {len(images)} images", "sha256", "Give one for each image"
            )
        for image, wanted in zip(images, said, strict=False):
            found = sha256_path(image_path(root, image.uri))
            if found != wanted.lower():
                raise line.error(
                    f"the image {image.uri!r} is not the one that is meant: its sha256 is "
                    f"{found[:12]}..., not {wanted[:12]}...",
                    "sha256",
                    "Restore the image, or correct the cell",
                )


def refuse_boxes_outside(placed: Sequence[Placed], root: Path, progress: Progress) -> None:
    """Read every image that has a box, and compare.

    Raises:
        DataError: the image cannot be read, or a box lies outside it.
    """
    boxed = [(line, images[0], box) for line, images in placed if (box := box_of(line)) is not None]
    sizes: dict[ImageRef, tuple[int, int, int]] = {}
    for done, (line, image, box) in enumerate(boxed, start=1):
        if image not in sizes:
            sizes[image] = _size(line, image, root)
        _refuse_outside(line, box, sizes[image])
        progress("boxes", done, len(boxed))


def _size(line: Line, image: ImageRef, root: Path) -> tuple[int, int, int]:
    """Width, height, depth."""
    try:
        found = read_ref(image, root)
    except (ImageError, DataError) as error:
        role = "image" if line.has("image") else "volume"
        rule = f"the image {image.uri!r} cannot be read: {error.fault.rule}"
        raise line.error(rule, role, error.fault.remedy or "Restore the image") from None
    return (*found.size, 1 if found.units == "rgb" else found.array.shape[0])


def _refuse_outside(line: Line, box: Box, size: tuple[int, int, int]) -> None:
    corners = "x1" in line.columns
    edges = [
        ("x2" if corners else "width", "x", box.x1, box.x2, size[0]),
        ("y2" if corners else "height", "y", box.y1, box.y2, size[1]),
    ]
    if box.z1 is not None and box.z2 is not None:
        edges.append(("z2", "z", box.z1, box.z2, size[2]))
    for role, axis, low, high, length in edges:
        if low < -_SLACK or high > length + _SLACK:
            raise line.error(
                f"the box spans {axis} {low:g} to {high:g}, but its image only 0 to {length}",
                role,
                "Boxes are in pixels of the image as it is stored: correct the row, or the units",
            )
