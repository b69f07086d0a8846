"""A folder of DICOM files as series, and one series as a volume in the patient's order.

Files are grouped by Series Instance UID (PS3.3 C.7.3.1) and sorted by where they lie; their names
never matter. Headers are read first, so a folder is refused before any pixels are decoded.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from medloupe.errors import ImageError, MedLoupeError, did_you_mean
from medloupe.imaging.dicom import SIGNATURE_BYTES, looks_like_dicom
from medloupe.imaging.dicom.arrange import Arrangement, Finding, Plane, SeriesPolicy, arrange
from medloupe.imaging.dicom.image import equal_pixels, frame_image, planes_of, stack
from medloupe.imaging.dicom.parse import BROKEN, broken, frame_count, parse, text
from medloupe.imaging.files import folder_files
from medloupe.imaging.hounsfield import check_hounsfield
from medloupe.imaging.limits import choose_frame
from medloupe.types import ImageRef, MedicalImage

_BROKEN_FILE: Final = "broken"
_NAMED: Final = 4


@dataclass(frozen=True, kw_only=True)
class SeriesSummary:
    """What a folder holds of one series: `files` with pixels, `frames` in all of them."""

    uid: str
    study: str | None
    modality: str | None
    description: str | None
    size: tuple[int, int]
    frames: int
    files: tuple[Path, ...]

    def __str__(self) -> str:
        size = f"{self.size[0]} x {self.size[1]}"
        said = f"{self.modality or '?'} {self.description or ''}".strip()
        return f"{self.uid} ({said}, {len(self.files)} files, {self.frames} images of {size})"


@dataclass(frozen=True, kw_only=True)
class SeriesScan:
    """All series below a folder; `others` are no DICOM images, each with what it is instead."""

    series: tuple[SeriesSummary, ...]
    others: tuple[tuple[Path, str], ...]


@dataclass(frozen=True, kw_only=True)
class SeriesReport:
    """How a volume came about.

    `files` are the planes in the order of the slices, `positions` theirs along the normal in mm,
    `findings` everything that was noted, `skipped` the files that hold no image of the series.
    """

    series: str
    files: tuple[str, ...]
    positions: tuple[float, ...]
    step: float
    findings: tuple[Finding, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def of(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind (a field of `SeriesPolicy`, or "tilt")."""
        return tuple(finding for finding in self.findings if finding.kind == kind)


def find_series(folder: Path) -> tuple[SeriesSummary, ...]:
    """The series below a folder, by headers only. See `scan_series` for the other files.

    Raises:
        ImageError: there is no such folder.
    """
    return scan_series(folder).series


def scan_series(folder: Path | Sequence[Path]) -> SeriesScan:
    """Every series below a folder (or among files), and what the other files are.

    Raises:
        ImageError: there is no such folder.
    """
    scan = _scan(folder)
    summaries = [_summary(uid, headers) for uid, headers in scan.series.items()]
    return SeriesScan(series=tuple(summaries), others=tuple(scan.others))


def read_series(
    paths: Path | Sequence[Path],
    *,
    series: str | None = None,
    repeat: int | None = None,
    policy: SeriesPolicy | None = None,
    check_units: bool = True,
) -> tuple[MedicalImage, SeriesReport]:
    """One series as a volume `[D, H, W]`, and how it came about.

    Slices run along the normal of their plane (axial: from the feet to the head). The volume has an
    affine only if they form a regular grid.

    Args:
        paths: a folder (searched to any depth) or files.
        series: its Series Instance UID, where there are several.
        repeat: which image, where every place holds several (echoes, time points, b values).
        policy: what is an error and what only noted.
        check_units: refuse a CT that was rescaled twice or never (`check_hounsfield`).

    Raises:
        ImageError: no or several series, missing or duplicate slices and whatever else the policy
            calls an error, broken files, or CT values that are not HU (`check_hounsfield`).
    """
    planes, uid, skipped = _planes(paths, series, policy or SeriesPolicy())
    name = _name(paths)
    reader = _Read()
    found = _arranged(planes, name, policy, repeat, reader)
    header = found.planes[0].header
    source = ImageRef(
        uri=name,
        kind="volume",
        modality=text(header, "Modality"),
        study=text(header, "StudyInstanceUID"),
        series=uid,
        frame=repeat,
    )
    image = stack(found.planes, reader, found, name, source)
    if check_units:
        check_hounsfield(image, name)
    return image, _report(uid, found, skipped)


def read_slice(path: Path, *, frame: int | None, series: str | None = None) -> MedicalImage:
    """Slice number `frame` of the series in a folder, counted along the normal.

    Raises:
        ImageError: as `read_series`, or there is no such slice.
    """
    planes, uid, _ = _planes(path, series, SeriesPolicy())
    reader = _Read()
    found = _arranged(planes, str(path), None, None, reader)
    index = choose_frame(str(path), frame, len(found.planes), what="slices")
    plane = found.planes[index]
    source = ImageRef(
        uri=str(path), modality=text(plane.header, "Modality"), series=uid, frame=frame
    )
    return dataclasses.replace(reader(plane), source=source)


def _arranged(
    planes: list[Plane], name: str, policy: SeriesPolicy | None, repeat: int | None, reader: _Read
) -> Arrangement:
    try:
        return arrange(
            planes, name, policy or SeriesPolicy(), repeat, lambda a, b: equal_pixels(reader, a, b)
        )
    except MedLoupeError:
        raise
    except BROKEN as error:  # functional groups that are none, numbers that are texts
        raise broken(error, name) from error


@dataclass(frozen=True)
class _Scan:
    """Headers by series, in the order of the paths; `broken` with their series where it is known."""

    series: dict[str, list[tuple[Path, Dataset]]]
    others: list[tuple[Path, str]]
    broken: list[tuple[Path, str, str | None]]


def _scan(paths: Path | Sequence[Path]) -> _Scan:
    found = _Scan({}, [], [])
    for path in _files(paths):
        header, why, uid = _header(path)
        if header is not None and uid is not None:
            found.series.setdefault(uid, []).append((path, header))
        elif why.startswith(_BROKEN_FILE):
            found.broken.append((path, why, uid))
        if why:
            found.others.append((path, why))
    return found


def _files(paths: Path | Sequence[Path]) -> list[Path]:
    """The files meant, sorted by path; hidden ones (.DS_Store) are left out."""
    if not isinstance(paths, Path):
        return list(paths)
    if not paths.exists():
        raise ImageError("no such folder", remedy="Check the path", file=str(paths))
    return folder_files(paths) if paths.is_dir() else [paths]


def _header(path: Path) -> tuple[Dataset | None, str, str | None]:
    """The data set without its pixels, or why there is none, and the series as far as known."""
    uid = None
    try:
        with path.open("rb") as stream:
            if not looks_like_dicom(stream.read(SIGNATURE_BYTES)):
                return None, "not DICOM", None
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        uid = text(header, "SeriesInstanceUID")
        if header.get("Rows") is None or header.get("Columns") is None:
            return None, _without_image(header), uid
        if min(int(header.Rows), int(header.Columns), frame_count(header)) < 1:
            return None, f"{_BROKEN_FILE}: an image without pixels", uid
    except BROKEN as error:
        return None, f"{_BROKEN_FILE}: {error or type(error).__name__}", uid
    return header, "" if uid else "DICOM without Series Instance UID", uid


def _without_image(header: Dataset) -> str:
    """What a DICOM file without Rows is: broken if its SOP class is an image."""
    if not header:
        return "not DICOM"
    kind = UID(text(header, "SOPClassUID") or "").name
    if kind.endswith("Image Storage"):
        return (
            f"{_BROKEN_FILE}: a {kind.removesuffix(' Storage')} without Rows and Columns, cut off"
        )
    return f"DICOM without image ({text(header, 'Modality') or kind or 'no SOP class'})"


def _summary(uid: str, headers: Sequence[tuple[Path, Dataset]]) -> SeriesSummary:
    header = headers[0][1]
    return SeriesSummary(
        uid=uid,
        study=text(header, "StudyInstanceUID"),
        modality=text(header, "Modality"),
        description=text(header, "SeriesDescription"),
        size=(int(header.Columns), int(header.Rows)),
        frames=sum(frame_count(dataset) for _, dataset in headers),
        files=tuple(path for path, _ in headers),
    )


def _planes(
    paths: Path | Sequence[Path], series: str | None, policy: SeriesPolicy
) -> tuple[list[Plane], str, tuple[tuple[str, str], ...]]:
    """The planes of the series meant, its UID, and the files that are no images."""
    scan = _scan(paths)
    uid = _choose(scan, series, _name(paths))
    lost = [(path, why) for path, why, of in scan.broken if of in (uid, None)]
    if lost and policy.unreadable == "error":
        path, why = lost[0]
        more = f" ({len(lost) - 1} more)" if len(lost) > 1 else ""
        raise ImageError(
            f"a file of the series is {why}{more}",
            remedy="Fetch it again, or move it away; in Python, read_series with "
            'policy=SeriesPolicy(unreadable="note") leaves it out',
            file=str(path),
        )
    planes: list[Plane] = []
    for path, header in scan.series[uid]:
        try:
            planes += planes_of(header, str(path))
        except BROKEN as error:
            raise broken(error, str(path)) from error
    return planes, uid, tuple((str(path), why) for path, why in scan.others)


def _choose(scan: _Scan, series: str | None, name: str) -> str:
    if not scan.series:
        raise ImageError(
            f"no DICOM image here ({len(scan.others)} other files)",
            remedy="Name a folder of DICOM files, or a single image file",
            file=name,
        )
    if series is None and len(scan.series) == 1:
        return next(iter(scan.series))
    if series in scan.series:
        return series
    found = [str(_summary(uid, headers)) for uid, headers in scan.series.items()]
    listed = "; ".join(found[:_NAMED]) + (" ..." if len(found) > _NAMED else "")
    if series is not None:
        raise ImageError(
            f"no series {series!r} here; {did_you_mean(series, scan.series)}",
            file=name,
            field="series",
        )
    raise ImageError(
        f"the folder holds {len(found)} series: {listed}",
        remedy="Choose one by its UID: in a table, the column series; in Python, series= of "
        "read_image, read_series and ImageRef",
        file=name,
        field="series",
    )


class _Read:
    """Reads planes; the last file stays parsed, since the frames of one file follow each other."""

    def __init__(self) -> None:
        self._parsed = lru_cache(maxsize=1)(_parsed)

    def __call__(self, plane: Plane) -> MedicalImage:
        try:
            return frame_image(self._parsed(plane.file), plane.frame, plane.file)
        except MedLoupeError as error:
            raise error.at(file=plane.file) from error
        except BROKEN as error:
            raise broken(error, plane.file) from error


def _parsed(file: str) -> Dataset:
    try:
        return parse(Path(file).read_bytes(), file)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}", file=file) from None


def _report(uid: str, found: Arrangement, skipped: tuple[tuple[str, str], ...]) -> SeriesReport:
    return SeriesReport(
        series=uid,
        files=tuple(str(plane) for plane in found.planes),
        positions=found.positions,
        step=found.grid.step,
        findings=found.findings,
        skipped=skipped,
    )


def _name(paths: Path | Sequence[Path]) -> str:
    if isinstance(paths, Path):
        return str(paths)
    return os.path.commonpath([path.parent for path in paths]) if paths else "no files"
