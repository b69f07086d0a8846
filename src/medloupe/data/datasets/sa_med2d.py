"""SA-Med2D-20M (Ye et al., arXiv:2311.11969): slices and pictures from some hundred segmentation data
sets with a mask per structure. MedM-VL asks for boxes by name and for names by box (section 3.1).

Layout and names, from the publisher's card of the data set (huggingface.co/datasets/OpenGVLab/
SA-Med2D-20M); the archive unpacks to a folder SAMed2Dv1:

    SAMed2D_v1.json                     {"images/<image>.png": ["masks/<mask>.png", ...], ...}
    SAMed2D_v1_class_mapping_id.json    {"<data set>": {"liver": "0003", ...}, ...}
    images/ct_00--CAD_PE--001--x_0125.png            modality_submodality--data set--case--axis_slice
    masks/ct_00--CAD_PE--001--x_0125--0000_002.png   ... --class_instance

Pictures that were never volumes have "2d_none" for axis and slice; "00" is no known sub-modality.
Masks are binary. Where a mask falls into several parts, each is a box. Spacing is not published, so
boxes have no size in mm.

The paper counts 4.6 million images and 19.7 million masks, the exact numbers are not published, and
what can be downloaded is called 16M by the publisher: even the whole download is a partial copy of
what the paper describes, and is called so. Some source data sets hold the same patients (BraTS of
several years, KiTS and KiTS2021): cases are split within a source, so run the leak audit, or choose
sources that share nobody.

The index is read entry by entry; what is chosen of it is in memory (about 9 kB a box with its two
questions), so choose: `sources`, `modalities`, and `max_images`, which keeps a fixed pseudo-random
sample. Every chosen mask is opened once. Images stay where they are unless `images=copy`.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medloupe.data.adopt import Images
from medloupe.data.builders import describe_region, refer
from medloupe.data.builders.words import listed, spoken
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.masks import boxes_from_mask
from medloupe.data.source import one_of, read_json
from medloupe.data.streaming import stream_entries
from medloupe.errors import ConfigError, DataError, MedLoupeError, did_you_mean
from medloupe.imaging.read import read_image
from medloupe.types import Box, Conversation, ImageRef, MedicalImage, Record

NAME: Final = "sa_med2d"
INDEX: Final = "SAMed2D_v1.json"
CLASSES: Final = "SAMed2D_v1_class_mapping_id.json"
IMAGES: Final = 4_600_000
MASKS: Final = 19_700_000
LICENCE: Final = "the licence of each source data set"
CITATION: Final = (
    "Ye J, Cheng J, Chen J, Deng Z, Li T, Wang H, et al. SA-Med2D-20M dataset: segment anything in 2D "
    "medical imaging with 20 million masks. arXiv:2311.11969, 2023."
)
# First part of a name -> DICOM modality (PS3.3 C.7.3.1.1.1).
MODALITIES: Final[Mapping[str, str]] = {
    "ct": "CT",
    "mr": "MR",
    "pet": "PT",
    "ultrasound": "US",
    "x_ray": "DX",
    "endoscopy": "ES",
    "fundus_photography": "OP",
    "dermoscopy": "XC",
}
_NAME: Final = re.compile(
    r"(?P<modality>x_ray|fundus_photography|[a-z]+)(?:_(?P<sub>\w+?))?--(?P<source>.+?)--(?P<case>.+)"
    r"--(?P<place>[a-z]_\d+|2d_none)(?:--(?P<label>\d+)_(?P<instance>\d+))?\.png"
)

Task = Literal["rec", "reg"]
Names = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One entry of the index, its name taken apart."""

    uri: str
    modality: str
    sub: str
    source: str
    case: str
    place: str
    masks: tuple[str, ...]

    @property
    def stem(self) -> str:
        return Path(self.uri).stem


class SaMed2dConfig(PublishedConfig):
    """`tasks`: where a structure is ("rec", one question for each structure of an image) and what a
    box holds ("reg", one for each box; structures whose boxes are the same are named together).

    `sources` and `modalities` (keys of `MODALITIES`) choose images; empty means all. `max_images`
    keeps that many of them, chosen by a hash of the name and `seed`. Parts of a mask of fewer than
    `min_pixels` give no box.
    """

    images: Images = "reference"
    tasks: tuple[Task, ...] = ("rec", "reg")
    sources: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    max_images: int | None = Field(default=None, ge=1)
    min_pixels: int = Field(default=1, ge=1)

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a faulty name, an unknown class, a missing image or mask, or a mask
        of another size than its image; `ConfigError` where the choice leaves nothing."""
        if not self.tasks:
            raise ConfigError("no task is chosen", field="tasks")
        folder = source / "SAMed2Dv1" if (source / "SAMed2Dv1").is_dir() else source
        names = _class_names(folder / CLASSES)
        _known(self.sources, names, "sources")
        _known(self.modalities, MODALITIES, "modalities")
        pictures = self._chosen(folder / INDEX)
        records: list[Record] = []
        conversations: list[Conversation] = []
        for done, picture in enumerate(pictures, start=1):
            record = _record(picture, folder, names, self.min_pixels)
            records.append(record)
            conversations += _questions(record, self.tasks)
            progress("masks", done, len(pictures))
        return Reading(
            card=_card(self.tasks),
            images=folder,
            conversations=conversations,
            records=records,
            found={"images": len(records), "masks": sum(len(r.masks) for r in records)},
        )

    def _chosen(self, index: Path) -> list[_Picture]:
        """The entries that are asked for, in the order of their names."""
        wanted = self._wanted(index)
        if self.max_images is not None:
            wanted = iter(heapq.nsmallest(self.max_images, wanted, key=self._draw))
        found = sorted(wanted, key=lambda picture: picture.uri)
        if not found:
            raise ConfigError(
                "no image is of these sources and modalities",
                remedy="Choose others, or leave the fields empty for all",
                file=str(index),
            )
        return found

    def _wanted(self, index: Path) -> Iterator[_Picture]:
        for uri, masks in stream_entries(index):
            picture = _picture(uri, masks, index)
            if self.sources and picture.source not in self.sources:
                continue
            if self.modalities and picture.modality not in self.modalities:
                continue
            yield picture

    def _draw(self, picture: _Picture) -> bytes:
        return hashlib.sha256(f"{self.seed}:{picture.uri}".encode()).digest()


def _known(chosen: Collection[str], known: Collection[str], field: str) -> None:
    for name in chosen:
        if name not in known:
            raise ConfigError(f"unknown name {name!r}; {did_you_mean(name, known)}", field=field)


def _class_names(path: Path) -> Names:
    """Source -> class number -> name. The publisher maps names to four digits."""
    listed_ = read_json(path)
    if not isinstance(listed_, dict) or not all(isinstance(c, dict) for c in listed_.values()):
        raise DataError("holds no classes by data set", file=str(path))
    names: dict[str, dict[int, str]] = {}
    for source, classes in listed_.items():
        names[source] = {}
        for name, number in classes.items():
            if not str(number).isdigit():
                rule = f"{number!r} is no class number"
                raise DataError(rule, file=str(path), row=source, field=name)
            names[source][int(number)] = name
    return names


def _picture(uri: str, masks: Any, index: Path) -> _Picture:
    parts = _NAME.fullmatch(Path(uri).name)
    if parts is None or parts["label"] is not None:
        raise _unnamed(uri, index, "modality_submodality--data set--case--axis_slice.png")
    one_of({"modality": parts["modality"]}, "modality", MODALITIES, file=index, name=uri)
    if not isinstance(masks, list) or not masks or not all(isinstance(m, str) for m in masks):
        raise DataError("the image has no list of masks", file=str(index), row=uri)
    return _Picture(
        uri=uri,
        modality=parts["modality"],
        sub=parts["sub"] or "00",
        source=parts["source"],
        case=parts["case"],
        place=parts["place"],
        masks=tuple(sorted(masks)),
    )


def _unnamed(uri: str, index: Path, form: str) -> DataError:
    return DataError(
        "the name does not follow the publisher's convention",
        remedy=f"Expected {form}",
        file=str(index),
        row=uri,
    )


def _record(picture: _Picture, folder: Path, names: Names, min_pixels: int) -> Record:
    width, height = _read(folder / picture.uri, picture.uri).size
    boxes: list[Box] = []
    for uri in picture.masks:
        label = _label(picture, uri, names, folder / INDEX)
        inside = _inside(folder / uri, uri)
        if inside.shape != (height, width):
            rows, columns = inside.shape
            raise DataError(
                f"the mask is {columns} x {rows}, its image {width} x {height}",
                remedy="Fetch both again; leave the source out if it is published like this",
                file=str(folder / uri),
                row=picture.uri,
            )
        boxes += boxes_from_mask(inside.astype(np.uint8), {1: label}, min_voxels=min_pixels)
    return Record(
        id=f"{NAME}/{picture.stem}",
        patient_id=f"{picture.source}/{picture.case}",
        study_id=f"{picture.source}/{picture.case}",
        images=(ImageRef(uri=picture.uri, modality=MODALITIES[picture.modality]),),
        labels=tuple(dict.fromkeys(box.label for box in boxes)),
        boxes=tuple(dict.fromkeys(boxes)),
        masks=tuple(ImageRef(uri=uri) for uri in picture.masks),
        attributes=_attributes(picture),
        dataset=NAME,
        licence=LICENCE,
    )


def _attributes(picture: _Picture) -> dict[str, str]:
    axis, _, number = picture.place.partition("_")
    found = {"source": picture.source}
    if picture.sub != "00":
        found["sub_modality"] = picture.sub
    if number != "none":
        found |= {"axis": axis, "slice": str(int(number))}
    return found


def _label(picture: _Picture, uri: str, names: Names, index: Path) -> str:
    """The name of a mask's class."""
    parts = _NAME.fullmatch(Path(uri).name)
    if parts is None or parts["label"] is None:
        raise _unnamed(uri, index, f"{picture.stem}--class_instance.png")
    if not Path(uri).name.startswith(f"{picture.stem}--"):
        raise DataError(f"the mask {uri!r} is of another image", file=str(index), row=picture.uri)
    number = int(parts["label"])
    classes = names.get(picture.source, {})
    if number not in classes:
        raise DataError(
            f"the class {parts['label']} has no name in {picture.source!r}",
            remedy=f"{CLASSES} and {INDEX} are of different versions; fetch both again",
            file=str(index.with_name(CLASSES)),
            row=uri,
        )
    return classes[number]


def _inside(path: Path, uri: str) -> NDArray[np.bool_]:
    """Where a mask is set, `[H, W]`.

    Raises:
        DataError: missing, broken, or in colours (a binary mask saved as RGB is grey).
    """
    image = _read(path, uri)
    if image.units != "rgb":
        return np.asarray(image.array[0] > 0)
    if (image.array != image.array[..., :1]).any():
        raise DataError("a binary mask in colours", file=str(path), row=uri)
    return np.asarray(image.array[..., 0] > 0)


def _read(path: Path, row: str) -> MedicalImage:
    try:
        return read_image(path)
    except MedLoupeError as error:
        raise DataError.of(error.at(row=row).fault) from None


def _questions(record: Record, tasks: Sequence[Task]) -> Iterator[Conversation]:
    """An image whose masks are all empty has no questions."""
    if "rec" in tasks:
        for label in record.labels:
            yield refer(record, label, [box for box in record.boxes if box.label == label])
    if "reg" in tasks:
        same: dict[tuple[float, ...], list[Box]] = {}
        for box in record.boxes:
            same.setdefault((box.x1, box.y1, box.x2, box.y2), []).append(box)
        for boxes in same.values():
            yield describe_region(record, boxes[0], listed([spoken(b.label) for b in boxes], "en"))


def _card(tasks: tuple[Task, ...]) -> DatasetCard:
    return DatasetCard(
        name=NAME,
        version="SAMed2Dv1",
        description="Where structures and lesions are in 2D images of ten modalities. The paper's "
        "counts are rounded, and the publisher's download (16M) is smaller",
        licence=LICENCE,
        citation=CITATION,
        access="open: https://huggingface.co/datasets/OpenGVLab/SA-Med2D-20M",
        tasks=tasks,
        splits="by MedLoupe, by case of the source data set; sources may share patients",
        published={"images": IMAGES, "masks": MASKS},
    )
