"""MedMNIST v2 (Yang et al., Sci Data 10:41, 2023): 12 sets of small images and 6 of small volumes.

Each set is one file `<flag>.npz` (28 pixels) or `<flag>_<size>.npz` (MedMNIST+: 64, 128, 224) with six
arrays, `{train,val,test}_{images,labels}`: images `[N, S, S]`, `[N, S, S, 3]` or `[N, S, S, S]` of
uint8, labels `[N, L]`, L = 1 unless several labels may apply. Names, labels, tasks, licences and counts
are those of `medmnist/info.py` 3.0.2 in the publisher's repository, kinds of image those of the paper's
Table 2. Version 2.2.4 took blank images out of five sets; older files have the counts of the paper.

Images are read from the file one at a time (the largest sets do not fit into memory), 2D ones become PNG
files and volumes NPY files in the published order of axes, which nobody documents. Volumes from CT are
8-bit greys and not HU, so their refs name no modality. Nothing tells patients apart.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from medloupe.data.builders import classify, label_all
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.errors import ConfigError, DataError, did_you_mean
from medloupe.types import Conversation, ImageRef, Language, Record, Split

CITATION = (
    "Yang J, Shi R, Wei D, et al. MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D "
    "biomedical image classification. Sci Data 2023;10:41. Please cite the source data set as well."
)
SPLITS: Final[Mapping[Split, str]] = {"train": "train", "validation": "val", "test": "test"}
_BROKEN: Final = (
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
Size = Literal[28, 64, 128, 224]
Counts = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the sets. `counts` are images of train, validation and test, `older` those of files before
    2.2.4; `edge_mm` is how long the side of a volume is, where the publisher says it."""

    kind: str
    labels: tuple[str, ...]
    counts: Counts
    older: Counts | None = None
    channels: Literal[1, 3] = 1
    volume: bool = False
    multi_label: bool = False
    licence: str = "CC-BY-4.0"
    question: str | None = None
    edge_mm: float | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        return (28, 64) if self.volume else (28, 64, 128, 224)


_ORGANS: Final = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)

MEMBERS: Final[Mapping[str, Member]] = {
    "pathmnist": Member(
        kind="Colon Pathology",
        labels=(
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        counts=(89996, 10004, 7180),
        channels=3,
    ),
    "chestmnist": Member(
        kind="Chest X-Ray",
        labels=(
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
        counts=(78468, 11219, 22433),
        multi_label=True,
    ),
    "dermamnist": Member(
        kind="Dermatoscope",
        labels=(
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        counts=(7007, 1003, 2005),
        channels=3,
        licence="CC-BY-NC-4.0",
    ),
    "octmnist": Member(
        kind="Retinal OCT",
        labels=("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        counts=(97477, 10832, 1000),
    ),
    "pneumoniamnist": Member(
        kind="Chest X-Ray", labels=("normal", "pneumonia"), counts=(4708, 524, 624)
    ),
    "retinamnist": Member(
        kind="Fundus Camera",
        labels=("0", "1", "2", "3", "4"),
        counts=(1080, 120, 400),
        channels=3,
        question="Which grade of diabetic retinopathy does this fundus image show, from 0 to 4?",
    ),
    "breastmnist": Member(
        kind="Breast Ultrasound", labels=("malignant", "normal, benign"), counts=(546, 78, 156)
    ),
    "bloodmnist": Member(
        kind="Blood Cell Microscope",
        labels=(
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        counts=(11959, 1712, 3421),
        channels=3,
    ),
    "tissuemnist": Member(
        kind="Kidney Cortex Microscope",
        labels=(
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        counts=(165466, 23640, 47280),
    ),
    "organamnist": Member(
        kind="Abdominal CT", labels=_ORGANS, counts=(34561, 6491, 17778), older=(34581, 6491, 17778)
    ),
    "organcmnist": Member(
        kind="Abdominal CT", labels=_ORGANS, counts=(12975, 2392, 8216), older=(13000, 2392, 8268)
    ),
    "organsmnist": Member(
        kind="Abdominal CT", labels=_ORGANS, counts=(13932, 2452, 8827), older=(13940, 2452, 8829)
    ),
    "organmnist3d": Member(
        kind="Abdominal CT",
        labels=(
            "liver",
            "kidney-right",
            "kidney-left",
            "femur-right",
            "femur-left",
            "bladder",
            "heart",
            "lung-right",
            "lung-left",
            "spleen",
            "pancreas",
        ),
        counts=(971, 161, 610),
        older=(972, 161, 610),
        volume=True,
    ),
    "nodulemnist3d": Member(
        kind="Chest CT",
        labels=("benign", "malignant"),
        counts=(1158, 165, 310),
        volume=True,
        edge_mm=28.0,
    ),
    "adrenalmnist3d": Member(
        kind="Shape from Abdominal CT",
        labels=("normal", "hyperplasia"),
        counts=(1188, 98, 298),
        volume=True,
        edge_mm=64.0,
    ),
    "fracturemnist3d": Member(
        kind="Chest CT",
        labels=("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
        counts=(1027, 103, 240),
        volume=True,
        edge_mm=64.0,
    ),
    "vesselmnist3d": Member(
        kind="Shape from Brain MRA",
        labels=("vessel", "aneurysm"),
        counts=(1335, 191, 382),
        older=(1335, 192, 382),
        volume=True,
    ),
    "synapsemnist3d": Member(
        kind="Electron Microscope",
        labels=("inhibitory synapse", "excitatory synapse"),
        counts=(1230, 177, 352),
        volume=True,
        edge_mm=1024e-6,
    ),
}


class MedMnistConfig(PublishedConfig):
    """`subsets` by their flag ("pneumoniamnist"); without any, all that lie in the folder.

    At 28 pixels different patients can give equal images: where one is in two splits, `allow_leak`
    has to say that this is accepted.
    """

    subsets: tuple[str, ...] = ()
    size: Size = 28
    language: Language = "en"

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `ConfigError` on an unknown set, `DataError` on a file that is not as published."""
        flags = self.subsets or _flags_in(source, self.size)
        found: dict[str, int] = {}
        published: dict[str, int] = {}
        records: list[Record] = []
        conversations: list[Conversation] = []
        for flag in flags:
            member = _member(flag, self.size)
            here: list[int] = []
            for split, count in zip(SPLITS, member.counts, strict=True):
                pairs = _samples(source, flag, member, self.size, split)
                made = [
                    self._sample(out, flag, split, index, image, labels)
                    for index, (image, labels) in enumerate(
                        _counted(pairs, f"{flag} {split} images", count, progress)
                    )
                ]
                here.append(len(made))
                records += [record for record, _ in made]
                conversations += [conversation for _, conversation in made]
            for split, count, number in zip(SPLITS, counts_for(member, here), here, strict=True):
                published[f"{flag} {split} images"] = count
                found[f"{flag} {split} images"] = number
        return Reading(
            card=_card(flags, self.size, published, self.language),
            images=out,
            conversations=conversations,
            records=records,
            found=found,
        )

    def _sample(
        self,
        out: Path,
        flag: str,
        split: Split,
        index: int,
        image: NDArray[np.uint8],
        labels: tuple[int, ...],
    ) -> tuple[Record, Conversation]:
        member = MEMBERS[flag]
        name = f"{flag}/{split}/{index:06d}"
        uri = f"images/{name}." + ("npy" if member.volume else "png")
        _write(out / uri, image, member)
        record = Record(
            id=f"medmnist/{name}",
            images=(ImageRef(uri=uri, kind="volume" if member.volume else "image"),),
            labels=tuple(member.labels[number] for number in labels),
            attributes={"subset": flag, "kind": member.kind, "size": str(self.size)},
            split=split,
            dataset="medmnist",
            licence=member.licence,
        )
        return record, _conversation(record, member, self.language)


def counts_for(member: Member, here: Sequence[int]) -> Counts:
    """The published counts that a file has to be held against: those of older files where it has
    exactly these."""
    return member.older if member.older and tuple(here) == member.older else member.counts


def _member(flag: str, size: int) -> Member:
    if flag not in MEMBERS:
        near = did_you_mean(flag, MEMBERS)
        raise ConfigError(f"no set of MedMNIST is called {flag!r}; {near}", field="subsets")
    member = MEMBERS[flag]
    if size not in member.sizes:
        sizes = ", ".join(map(str, member.sizes))
        raise ConfigError(f"{flag} is not published with {size} pixels", field="size", remedy=sizes)
    return member


def _path(source: Path, flag: str, size: int) -> Path:
    return source / (f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz")


def _flags_in(source: Path, size: int) -> tuple[str, ...]:
    flags = tuple(flag for flag in MEMBERS if _path(source, flag, size).is_file())
    if not flags:
        raise DataError(
            f"no set of MedMNIST with {size} pixels is here",
            remedy=f"Expected files such as {_path(source, 'pneumoniamnist', size).name}",
            file=str(source),
        )
    return flags


def _counted(
    samples: Iterator[tuple[NDArray[np.uint8], tuple[int, ...]]],
    what: str,
    total: int,
    progress: Progress,
) -> Iterator[tuple[NDArray[np.uint8], tuple[int, ...]]]:
    for done, sample in enumerate(samples, start=1):
        yield sample
        progress(what, done, max(total, done))


def _samples(
    source: Path, flag: str, member: Member, size: int, split: Split
) -> Iterator[tuple[NDArray[np.uint8], tuple[int, ...]]]:
    """Images of one part with the numbers of the labels that apply.

    Raises:
        DataError: a missing or broken file or array, another shape or type than published, or a
            label that the set does not have.
    """
    path = _path(source, flag, size)
    part = SPLITS[split]
    with _member_file(path, f"{part}_labels") as stream:
        numbers = npy.read_array(stream, allow_pickle=False)
    columns = len(member.labels) if member.multi_label else 1
    _require_shape(path, f"{part}_labels", numbers.shape[1:], (columns,))
    top = 1 if member.multi_label else len(member.labels) - 1
    edges = (size,) * (3 if member.volume else 2) + ((3,) if member.channels == 3 else ())
    with _member_file(path, f"{part}_images") as stream:
        images = _images(stream, path, f"{part}_images", (len(numbers), *edges))
        for index, (image, row) in enumerate(zip(images, numbers.tolist(), strict=True)):
            if not all(value in range(top + 1) for value in row):
                raise DataError(
                    f"label {row} is not one of 0 to {top}",
                    file=str(path),
                    row=f"{part} {index}",
                    field=f"{part}_labels",
                )
            on = [i for i, value in enumerate(row) if value] if member.multi_label else row
            yield image, tuple(int(number) for number in on)


def _images(
    stream: IO[bytes], path: Path, name: str, shape: tuple[int, ...]
) -> Iterator[NDArray[np.uint8]]:
    """The images of an array, each read when it is asked for."""
    version = npy.read_magic(stream)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    found, columns_first, dtype = header(stream)
    if dtype != np.uint8 or columns_first:
        rule = f"the array is {dtype}{' in Fortran order' if columns_first else ''}, not uint8"
        raise DataError(rule, file=str(path), field=name)
    _require_shape(path, name, found, shape)
    for _ in range(shape[0]):
        yield np.frombuffer(stream.read(math.prod(shape[1:])), np.uint8).reshape(shape[1:])
    if stream.read(1):  # only at the end does zipfile compare the checksum
        raise ValueError("the array is longer than its header says")


@contextmanager
def _member_file(path: Path, name: str) -> Iterator[IO[bytes]]:
    """One array of an NPZ file as a stream; whatever is wrong with the file becomes a `DataError`."""
    if not path.is_file():
        raise DataError("no such file", remedy="Fetch it from the publisher", file=str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                raise DataError(
                    f"the file has no array {name!r}", remedy="Fetch it again", file=str(path)
                )
            with archive.open(f"{name}.npy") as stream:
                yield stream
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"the array cannot be read: {error}",
            remedy="Fetch the file again",
            file=str(path),
            field=name,
        ) from None


def _require_shape(path: Path, name: str, found: Sequence[int], shape: Sequence[int]) -> None:
    if tuple(found) != tuple(shape):
        raise DataError(
            f"the array has the shape {tuple(found)}, the published one {tuple(shape)}",
            remedy="Use an unchanged copy; check 'size'",
            file=str(path),
            field=name,
        )


def _write(path: Path, image: NDArray[np.uint8], member: Member) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not member.volume:
        Image.fromarray(image).save(path)
        return
    buffer = BytesIO()
    npy.write_array(buffer, image, allow_pickle=False)
    path.write_bytes(buffer.getvalue())
    if member.edge_mm is not None:
        step = member.edge_mm / image.shape[0]
        path.with_suffix(".json").write_text(f'{{"spacing": [{step!r}, {step!r}, {step!r}]}}\n')


def _conversation(record: Record, member: Member, language: Language) -> Conversation:
    if member.multi_label:
        return label_all(record, record.labels, member.labels, language=language)
    question = member.question if language == "en" else None
    return classify(record, record.labels[0], member.labels, question=question, language=language)


def _card(
    flags: Sequence[str], size: int, published: Mapping[str, int], language: Language
) -> DatasetCard:
    tasks: dict[str, Any] = dict.fromkeys(
        "labels" if MEMBERS[flag].multi_label else "classification" for flag in flags
    )
    licences = dict.fromkeys(MEMBERS[flag].licence for flag in flags)
    return DatasetCard(
        name="medmnist",
        version=f"2-{size}",
        description=f"Small images in classes: {', '.join(flags)}",
        licence=", ".join(licences),
        citation=CITATION,
        access="open: https://doi.org/10.5281/zenodo.10519652",
        tasks=tuple(tasks),
        splits="by the publisher",
        languages=(language,),
        published=dict(published),
    )
