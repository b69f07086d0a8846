"""Images as a probe shows them: mirrored or blank, of every kind, through every transform and store."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from medloupe.errors import ImageError
from medloupe.imaging.composed import (
    ByKindTransform,
    DetailedTransform,
    SeveralTransform,
    SlicesTransform,
    VolumeTransform,
)
from medloupe.imaging.read import read_ref, sha256_file
from medloupe.imaging.slices import SliceSelection
from medloupe.imaging.store import DecodedStore
from medloupe.imaging.tiles import TiledTransform
from medloupe.imaging.transforms import ImageTransform, Window
from medloupe.imaging.views import Arrays, ViewTransform
from medloupe.imaging.windows import HU_WINDOWS, INVERTED, PADDING, to_display
from medloupe.types import Edit, ImageRef

EDITS: tuple[Edit | None, ...] = (None, "mirrored", "blank")
PLANE = ImageTransform(size=16, fit="stretch")
SLICES = SlicesTransform(transform=PLANE, selection=SliceSelection(count=3))
VOLUME = VolumeTransform(shape=(4, 8, 8))
TRANSFORMS: dict[str, ViewTransform] = {
    "image": PLANE,
    "three windows": ImageTransform(
        size=16, fit="stretch", window=Window(mode="rgb", channels=("full", "file", "litegpt"))
    ),
    "tiles": TiledTransform(transform=PLANE),
    "slices": SLICES,
    "volume": VOLUME,
    "several": SeveralTransform(transforms=(SLICES, SLICES)),
    "by_kind": ByKindTransform(image=PLANE, volume=VOLUME),
    "detailed": DetailedTransform(base=PLANE, detail=ImageTransform(size=32, fit="stretch")),
}


def dicom(name: str, **fields: object) -> ImageRef:
    path = get_testdata_file(name, download=False)
    assert path is not None
    return ImageRef.parse({"uri": path, **fields})


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageRef]:
    folder = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(3)

    def png(name: str, pixels: np.ndarray) -> ImageRef:
        Image.fromarray(pixels).save(folder / f"{name}.png")
        return ImageRef(uri=str(folder / f"{name}.png"))

    def array(name: str, values: np.ndarray, **fields: object) -> ImageRef:
        np.save(folder / f"{name}.npy", values)
        return ImageRef.parse({"uri": str(folder / f"{name}.npy"), **fields})

    voxels = rng.normal(size=(9, 8, 7)).astype(np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1] = np.nan, np.inf
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), folder / "v.nii.gz")
    return {
        "grey": png("grey", rng.integers(0, 256, (20, 30), dtype=np.uint8)),
        "rgb": png("rgb", rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)),
        "16 bit": png("deep", rng.integers(0, 2**16, (20, 30), dtype=np.uint16)),
        "constant": png("constant", np.full((20, 30), 7, dtype=np.uint8)),
        "one pixel": png("one", np.full((1, 1), 7, dtype=np.uint8)),
        "nothing measured": array("nan", np.full((1, 8, 8), np.nan, dtype=np.float32)),
        "largest": array("largest", np.full((1, 8, 8), np.finfo(np.float32).max)),
        "CT": dicom("CT_small.dcm"),
        "MR": dicom("MR_small.dcm"),
        "colour DICOM": dicom("SC_rgb_rle.dcm"),
        "NIfTI": ImageRef(uri=str(folder / "v.nii.gz"), kind="volume", modality="MR"),
        "NPY volume": array("volume", rng.normal(size=(5, 8, 8)).astype(np.float32), kind="volume"),
        "DICOM volume": dicom("rtdose.dcm", kind="volume"),
    }


VOLUMES = ("NIfTI", "NPY volume", "DICOM volume")
KINDS = (
    *("grey", "rgb", "16 bit", "constant", "one pixel", "nothing measured", "largest", "CT", "MR"),
    *("colour DICOM", *VOLUMES),
)


def edited(ref: ImageRef, edit: Edit | None) -> ImageRef:
    return ref.model_copy(update={"edit": edit})


def leaves(arrays: Arrays) -> list[np.ndarray]:
    if isinstance(arrays, tuple):
        return [leaf for part in arrays for leaf in leaves(part)]
    return [arrays]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_image_differs_in_nothing_but_its_pixels(
    kind: str, refs: dict[str, ImageRef]
) -> None:
    plain = read_ref(refs[kind], Path())
    blank = read_ref(edited(refs[kind], "blank"), Path())
    mirrored = read_ref(edited(refs[kind], "mirrored"), Path())
    for image in (blank, mirrored):
        assert (image.array.shape, image.array.dtype) == (plain.array.shape, plain.array.dtype)
        assert (image.units, image.window, image.attributes) == (
            plain.units,
            plain.window,
            plain.attributes,
        )
    assert blank.source == edited(refs[kind], "blank")
    assert len(np.unique(blank.array)) == 1
    columns = plain.array[:, ::-1] if plain.units == "rgb" else plain.array[..., ::-1]
    assert np.array_equal(mirrored.array, columns, equal_nan=plain.units != "rgb")


def test_blank_is_a_value_that_the_image_has(refs: dict[str, ImageRef]) -> None:
    """The lower median: of 1, 2, 3, 4 it is 2. What is no measurement does not count."""
    blank = read_ref(edited(refs["CT"], "blank"), Path()).array
    values = np.sort(read_ref(refs["CT"], Path()).array, axis=None)
    assert blank.flat[0] == values[(values.size - 1) // 2]
    assert np.isfinite(read_ref(edited(refs["NIfTI"], "blank"), Path()).array).all()
    assert (read_ref(edited(refs["nothing measured"], "blank"), Path()).array == 0).all()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in TRANSFORMS if name != "volume" or kind in VOLUMES],
)
def test_every_transform_makes_one_grey_of_a_blank_image(
    kind: str, name: str, refs: dict[str, ImageRef]
) -> None:
    ref = edited(refs[kind], "blank")
    transform = TRANSFORMS[name]
    image = read_ref(ref, Path())
    for leaf in leaves(transform.display(image)):
        assert np.isfinite(leaf).all()
        assert np.ptp(leaf, axis=(-2, -1)).max() < 1e-3
    assert all(np.isfinite(leaf).all() for leaf in leaves(transform.apply(image)))
    assert (np.ptp(transform.shown(image), axis=(0, 1)) == 0).all()


@pytest.mark.parametrize("mode", ["file", "full", "litegpt", *HU_WINDOWS])
@pytest.mark.parametrize("inverted", ["true", "false"])
def test_every_window_shows_a_blank_ct(mode: str, inverted: str, refs: dict[str, ImageRef]) -> None:
    image = read_ref(edited(refs["CT"], "blank"), Path())
    image.attributes.update({INVERTED: inverted, PADDING: "-3000 -2000"})
    assert np.ptp(to_display(image, Window.parse({"mode": mode}))) == 0


@pytest.mark.parametrize("kind", ["grey", "rgb", "16 bit", "CT", "NIfTI", "NPY volume"])
@pytest.mark.parametrize("hashed", [False, True])
def test_a_store_never_takes_one_for_another(
    kind: str, hashed: bool, refs: dict[str, ImageRef], tmp_path: Path
) -> None:
    store = DecodedStore(tmp_path / "store")
    ref = refs[kind]
    if hashed:
        ref = ref.model_copy(update={"sha256": sha256_file(Path(ref.uri))})
    for _ in range(2):  # once made, once found
        for edit in EDITS:
            one = edited(ref, edit)
            expected = read_ref(one, Path())
            assert np.array_equal(
                store.image(one, Path()).array, expected.array, equal_nan=kind != "rgb"
            )
            for found, wanted in (
                zip(
                    store.view(one, Path(), SLICES).leaves,
                    leaves(SLICES.display(expected)),
                    strict=True,
                )
                if kind != "rgb"
                else ()
            ):
                assert np.array_equal(found, wanted, equal_nan=True)


def test_a_sagittal_image_is_not_mirrored(tmp_path: Path) -> None:
    header = dcmread(dicom("CT_small.dcm").uri)
    header.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    header.save_as(tmp_path / "s.dcm")
    ref = ImageRef(uri="s.dcm", edit="mirrored")
    with pytest.raises(ImageError, match="do not run between left and right"):
        read_ref(ref, tmp_path)
    assert read_ref(edited(ref, "blank"), tmp_path).size == (128, 128)
