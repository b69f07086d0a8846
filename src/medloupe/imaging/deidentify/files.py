"""One file read and made anonymous in memory; the result is handed over under a temporary name.

Nothing here raises for what is in a file: a worker process answers with a row for every one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medloupe.errors import ImageError, MedLoupeError
from medloupe.imaging.deidentify import burned
from medloupe.imaging.deidentify.dataset import (
    FREE_TEXT_VRS,
    Known,
    deidentify_dataset,
    known_of,
    vr_of,
)
from medloupe.imaging.deidentify.documents import Find, Renamed, clean_document
from medloupe.imaging.deidentify.key import PseudonymKey
from medloupe.imaging.deidentify.ocr import find_text
from medloupe.imaging.deidentify.profile import DeidentifyConfig
from medloupe.imaging.deidentify.report import WITHHELD, FileRow, TextBox
from medloupe.imaging.dicom.parse import (
    BROKEN,
    PIXEL_ELEMENTS,
    broken,
    frame_count,
    give_transfer_syntax,
    text,
)

_SHORTEST_LEFTOVER: Final = 6
_NATIVE: Final = (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A DICOM file at `path`; its new content goes to `part`."""

    path: Path
    part: Path
    key: PseudonymKey
    config: DeidentifyConfig


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of a file: its row, the name it should get (None: nothing was written), a message
    that may quote the file, and what the header says of people."""

    row: FileRow
    name: str | None = None
    detail: str = ""
    known: Known | None = None


class _RefusedError(Exception):
    """This object is not passed on."""


def clean_dicom(job: Job) -> Made:
    """De-identify one DICOM file into `job.part`."""
    with _silent_library():
        return _clean_dicom(job)


def _clean_dicom(job: Job) -> Made:
    row, known = FileRow(status="written", kind="dicom"), None
    try:
        dataset = _read(job.path)
        row = row.model_copy(update=_kind(dataset))
        if why := burned.refusal(dataset):
            raise _RefusedError(why)
        known = known_of(dataset)
        found = burned.warnings(dataset)
        if why := burned.burned_in(dataset):
            _withhold(job, why, found)
        if job.config.ocr:
            boxes = _look(job, known, found)
            row = row.model_copy(update={"text_boxes": boxes})
            if any(box.personal for box in boxes):
                _withhold(job, "a name, number or date was read in the pixels", found)
        changes = deidentify_dataset(dataset, job.key, job.config)
        found += [f"free text is kept: {name}" for name in dict.fromkeys(_free_text(dataset))]
        content = _encode(dataset)
        if _leftover(content, known):
            raise _RefusedError(
                "a name or number of the patient still stands in it after the profile"
            )
    except _RefusedError as refused:
        row = row.model_copy(update={"status": "refused", "reason": str(refused)})
        return Made(row=row, known=known)
    except MedLoupeError as error:
        row = row.model_copy(update={"status": "failed", "reason": "cannot be read as DICOM"})
        said = f"{error.fault.field}: " if error.fault.field else ""
        return Made(row=row, detail=said + error.fault.rule, known=known)
    except BROKEN as error:
        row = row.model_copy(update={"status": "failed", "reason": "cannot be read as DICOM"})
        return Made(row=row, detail=broken(error, str(job.path)).fault.rule, known=known)
    job.part.parent.mkdir(parents=True, exist_ok=True)
    job.part.write_bytes(content)
    row = row.model_copy(update={"changes": changes, "warnings": tuple(found)})
    return Made(row=row, name=f"{dataset.file_meta.MediaStorageSOPInstanceUID}.dcm", known=known)


def clean_text(
    path: Path,
    part: Path,
    find: Find,
    key: PseudonymKey,
    *,
    masking: bool,
    patients: frozenset[str],
    renamed: Renamed,
) -> tuple[FileRow, str]:
    """Copy or mask one report file into `part`; its row and a message that may quote the file."""
    try:
        content, found = clean_document(
            path.read_bytes(),
            str(path),
            find,
            key,
            masking=masking,
            patients=patients,
            renamed=renamed,
        )
    except MedLoupeError as error:
        reason = "cannot be read as what its name says"
        return FileRow(status="failed", kind="text", reason=reason), error.fault.rule
    except OSError as error:
        return FileRow(status="failed", kind="text", reason="cannot be read"), str(error.strerror)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    notes = ("copied with its identifiers",) if found and not masking else ()
    return FileRow(status="written", kind="text", findings=found, warnings=notes), ""


def known_at(path: Path) -> Known | None:
    """What the header of a file that was done before says of people; None where it cannot be read."""
    with _silent_library():
        try:
            return known_of(pydicom.dcmread(path, force=True, stop_before_pixels=True))
        except BROKEN:
            return None


@contextlib.contextmanager
def _silent_library() -> Iterator[None]:
    """pydicom's warnings quote values, and a console may be logged."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read(path: Path) -> Dataset:
    """Raises:
    ImageError: no SOP class or instance, or an image that ends before its pixels.
    Any of `BROKEN`.
    """
    dataset = pydicom.dcmread(io.BytesIO(path.read_bytes()), force=True)
    for name in ("SOPClassUID", "SOPInstanceUID"):
        if not (dataset.get(name) or dataset.file_meta.get(f"MediaStorage{name}")):
            raise ImageError("no DICOM object: the UID is missing", file=str(path), field=name)
    image = "Rows" in dataset or "Image Storage" in _class_of(dataset).name
    if image and not any(element in dataset for element in PIXEL_ELEMENTS):
        raise ImageError("the image ends before its pixels", file=str(path))
    _refuse_short(dataset, str(path))
    return dataset


def _refuse_short(dataset: Dataset, name: str) -> None:
    """Refuse native pixels that are fewer than the header says (PS3.5 8.1.1); nothing is decoded.

    Of compressed pixels (PS3.5 A.4) nothing is known without decoding: they pass.

    Raises:
        ImageError: naming both lengths, or the element without which there is none.
    """
    give_transfer_syntax(dataset)
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    element = next((keyword for keyword in PIXEL_ELEMENTS if keyword in dataset), None)
    if element is None or syntax not in _NATIVE:
        return
    for keyword in ("Rows", "Columns", "BitsAllocated"):
        if dataset.get(keyword) is None:
            raise ImageError("the image has pixels, but not this element", file=name, field=keyword)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if "422" in str(dataset.get("PhotometricInterpretation")):
        samples = 2  # chroma for every other pixel (PS3.3 C.7.6.3.1.2)
    pixels = int(dataset.Rows) * int(dataset.Columns) * frame_count(dataset)
    needed = (pixels * samples * int(dataset.BitsAllocated) + 7) // 8
    found = len(dataset[element].value or b"")
    if found < needed:
        raise ImageError(
            f"the pixels are cut off: {found:,} of {needed:,} bytes", file=name, field=element
        )


def _kind(dataset: Dataset) -> dict[str, str]:
    """Class and modality for the report, as the standard names them: own words could be anything."""
    uid = _class_of(dataset)
    modality = text(dataset, "Modality") or ""
    known = uid.name != str(uid)
    return {
        "sop_class": uid.name if known else "private",
        "modality": modality if re.fullmatch("[A-Z0-9]{2,16}", modality) else "",
    }


def _class_of(dataset: Dataset) -> UID:
    return UID(dataset.get("SOPClassUID") or dataset.file_meta.MediaStorageSOPClassUID)


def _withhold(job: Job, why: str, found: list[str]) -> None:
    if job.config.burned_in == "withhold":
        raise _RefusedError(f"{why} {WITHHELD}")
    found.append(why)


def _look(job: Job, known: Known, found: list[str]) -> tuple[TextBox, ...]:
    """Text in the pixels; what could not be decoded is said in `found`."""
    try:
        boxes = find_text(job.path.read_bytes(), str(job.path), known)
    except MedLoupeError:
        found.append("the pixels could not be decoded, so no text was looked for")
        return ()
    if boxes:
        found.append("text was read in the pixels")
    return boxes


def _free_text(dataset: Dataset) -> Iterator[str]:
    """Keywords of free text that the profile keeps, at any level: a person has to read it."""
    for tag in list(dataset.keys()):
        vr = vr_of(dataset, tag)
        if vr == "SQ":
            for item in dataset[tag].value:
                yield from _free_text(item)
        elif vr in FREE_TEXT_VRS and not dataset[tag].is_empty:
            yield dataset[tag].keyword


def _encode(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _leftover(content: bytes, known: Known) -> bool:
    """Whether a whole name or a longer number is still in the new file, wherever it stands: in a code
    string, in a comment inside a JPEG stream."""
    names = [script for name in known.names for script in name.split("=")]
    said = [name for name in names if "^" in name.strip("^") or not name.isascii()]
    said += [number for number in known.ids if any(map(str.isdigit, number))]
    forms = {
        form.strip("^ ").encode(encoding, "ignore")
        for form in said
        for encoding in ("utf-8", "latin-1", "gb18030")
    }
    choices = b"|".join(re.escape(form) for form in forms if len(form) >= _SHORTEST_LEFTOVER)
    return bool(
        choices and re.search(rb"(?<![0-9A-Za-z.])(?:" + choices + rb")(?![0-9A-Za-z.])", content)
    )
