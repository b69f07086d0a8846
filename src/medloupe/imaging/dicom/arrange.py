"""Planes of one series brought into one order, and everything that speaks against it.

Neither file names nor Instance Number decide: a plane's place is its Image Position (Patient)
along the normal of its Image Orientation (Patient) (PS3.3 C.7.6.2.1.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from pydicom.dataset import Dataset

from medloupe.config import Config
from medloupe.errors import ImageError
from medloupe.imaging.dicom.geometry import (
    Affine,
    Grid,
    along_normal,
    fit_grid,
    orientations,
    same_places,
)
from medloupe.imaging.dicom.parse import anywhere, text
from medloupe.imaging.limits import choose_volume

Verdict = Literal["error", "note"]

# What tells images of one place apart, the most telling first (PS3.3 C.7.6.16.2.2, C.8.3.1, C.8.13).
_CONTRASTS: Final = (
    "StackID",
    "TemporalPositionIndex",
    "TemporalPositionIdentifier",
    "EffectiveEchoTime",
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "NominalPercentageOfCardiacPhase",
    "NominalCardiacTriggerDelayTime",
    "TriggerTime",
    "ImageType",
    "FrameType",
    "ConvolutionKernel",
    "KVP",
    "AcquisitionNumber",
)
# Whose the slices are; the patient is looked at first, being the worse of the two.
_WHOSE: Final = (("PatientID", "patients"), ("StudyInstanceUID", "studies"))
_TIMES: Final = ("FrameAcquisitionDateTime", "AcquisitionTime", "ContentTime")
_NAMED: Final = 4  # files that a message names before it counts the others


class SeriesPolicy(Config):
    """What is an error, and what is noted in the `SeriesReport` and worked round.

    A noted gap or uneven step leaves the volume without affine: it is no regular grid. Noted
    duplicates (same place, same pixels), localizers, other orientations, sizes and frames of
    reference, planes without position and unreadable files are left out; of several orientations
    or sizes the most frequent stays. `patients` (files of one series that state different Patient
    IDs or Study Instance UIDs) all stay where noted: whoever notes them knows the ids are wrong.
    """

    patients: Verdict = "error"
    gaps: Verdict = "error"
    uneven: Verdict = "note"
    duplicates: Verdict = "note"
    localizers: Verdict = "note"
    orientations: Verdict = "error"
    sizes: Verdict = "error"
    references: Verdict = "error"
    positions: Verdict = "error"
    unreadable: Verdict = "error"


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One frame of one file, without its pixels; `header` is the data set it comes from."""

    file: str
    frame: int
    frames: int
    size: tuple[int, int]
    affine: Affine | None
    localizer: bool
    header: Dataset

    def __str__(self) -> str:
        return self.file if self.frames == 1 else f"{self.file} frame {self.frame}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a series that is worth knowing: which field of the policy it falls under."""

    kind: str
    message: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Planes from the lowest to the highest place (mm along the normal), and their grid."""

    planes: tuple[Plane, ...]
    positions: tuple[float, ...]
    grid: Grid
    findings: tuple[Finding, ...]


Same = Callable[[Plane, Plane], bool]
"""Whether two planes hold the same pixels."""


def _reference(plane: Plane) -> str:
    return str(plane.header.get("FrameOfReferenceUID"))


def _size(plane: Plane) -> str:
    return f"{plane.size[0]} x {plane.size[1]}"


_KINDS: Final[tuple[tuple[str, str, Callable[[Plane], str]], ...]] = (
    ("references", "frames of reference", _reference),
    ("sizes", "image sizes", _size),
)


class _Judge:
    """Collects findings; raises those that the policy calls errors."""

    def __init__(self, name: str, policy: SeriesPolicy) -> None:
        self.name = name
        self.policy = policy
        self.findings: list[Finding] = []

    def __call__(self, kind: str, message: str, planes: Iterable[Plane], remedy: str) -> None:
        files = tuple(str(plane).removeprefix(f"{self.name}/") for plane in planes)
        if self.policy.to_dict().get(kind) == "error":
            remedy = (
                f"{remedy}, or name single files of it in the table; in Python, read_series with "
                f'policy=SeriesPolicy({kind}="note") reads it all the same'
            )
            raise ImageError(f"{message}: {_some(files)}", remedy=remedy, file=self.name)
        self.findings.append(Finding(kind=kind, message=message, files=files))


def arrange(
    planes: Sequence[Plane], name: str, policy: SeriesPolicy, repeat: int | None, same: Same
) -> Arrangement:
    """Sort planes; see `read_series`.

    Raises:
        ImageError: what the policy calls an error, several images at each place and none chosen, or
            nothing left. Files are named.
    """
    judge = _Judge(name, policy)
    _judge_patients(planes, judge)
    kept = _without_localizers(planes, judge)
    kept = _with_positions(kept, judge)
    kept = _of_one_kind(kept, judge)
    kept = _sorted(kept, judge, repeat, same)
    affines = [_affine(plane) for plane in kept]
    grid = fit_grid(affines)
    positions = tuple(along_normal(affines).tolist())
    _judge_grid(kept, grid, positions, judge)
    return Arrangement(
        planes=tuple(kept), positions=positions, grid=grid, findings=tuple(judge.findings)
    )


def _judge_patients(planes: Sequence[Plane], judge: _Judge) -> None:
    """One series is of one patient and one study (PS3.3 A.1.2). What a file leaves out differs from
    nothing; the values are not quoted, since messages are logged."""
    for keyword, what in _WHOSE:
        first: dict[str, Plane] = {}
        for plane in planes:
            if value := (text(plane.header, keyword) or "").strip():
                first.setdefault(value, plane)
        if len(first) > 1:
            judge(
                "patients",
                f"the slices of one series are of {len(first)} {what} ({keyword} differs)",
                first.values(),
                "Two series were mixed under one Series Instance UID: keep them in two folders",
            )


def _without_localizers(planes: Sequence[Plane], judge: _Judge) -> list[Plane]:
    localizers = [plane for plane in planes if plane.localizer]
    if not localizers or len(localizers) == len(planes):
        return list(planes)
    judge("localizers", "localizers among the slices", localizers, "Move them away")
    return [plane for plane in planes if not plane.localizer]


def _with_positions(planes: Sequence[Plane], judge: _Judge) -> list[Plane]:
    missing = [plane for plane in planes if plane.affine is None]
    kept = [plane for plane in planes if plane.affine is not None]
    if missing and kept:
        judge(
            "positions",
            f"{len(missing)} of {len(planes)} images say neither where they lie nor how large a "
            "pixel is",
            missing,
            "They cannot be put in order; leave them out",
        )
    elif missing:
        raise ImageError(
            f"none of the {len(missing)} images says where it lies (Image Position and Orientation "
            f"(Patient), Pixel Spacing): {_some(missing, judge.name)}",
            remedy="They cannot be put in order and names do not count; read single images",
            file=judge.name,
            field="ImagePositionPatient",
        )
    return kept


def _of_one_kind(planes: list[Plane], judge: _Judge) -> list[Plane]:
    """Planes of one frame of reference, size and orientation, the most frequent of each."""
    for kind, what, key in _KINDS:
        counts = Counter(key(plane) for plane in planes)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            said = ", ".join(f"{value} in {n}" for value, n in counts.most_common())
            others = [plane for plane in planes if key(plane) != usual]
            judge(kind, f"{len(counts)} {what} in one series ({said})", others, "Split the series")
            planes = [plane for plane in planes if key(plane) == usual]
    groups = orientations([_affine(plane) for plane in planes])
    if len(groups) > 1:
        said = ", ".join(str(len(members)) for members in groups)
        others = [planes[i] for members in groups[1:] for i in members]
        message = f"{len(groups)} orientations or pixel spacings in one series ({said} images)"
        judge("orientations", message, others, "Split the series")
    return [planes[i] for i in sorted(groups[0])]


def _sorted(planes: list[Plane], judge: _Judge, repeat: int | None, same: Same) -> list[Plane]:
    """One plane for each place, in order."""
    positions = along_normal([_affine(plane) for plane in planes])
    places = [[planes[i] for i in members] for members in same_places(positions)]
    contrast = _contrast(places)
    if contrast not in _CONTRASTS and any(len(place) > 1 for place in places):
        places = _without_copies(places, judge, same)
        contrast = _contrast(places)
    most = max(len(place) for place in places)
    if most == 1:
        if repeat:
            raise ImageError(
                f"there is no repeat {repeat}: every place holds one image",
                file=judge.name,
                field="frame",
            )
        return [place[0] for place in places]
    return _one_repeat(places, contrast, judge.name, repeat)


def _one_repeat(
    places: list[list[Plane]], contrast: str | None, name: str, repeat: int | None
) -> list[Plane]:
    """The `repeat`-th image of each place, by what tells them apart."""
    most = max(len(place) for place in places)
    crowded = next(place for place in places if len(place) == most)
    if contrast is None:
        raise ImageError(
            f"{sum(len(place) > 1 for place in places)} of {len(places)} places hold several "
            f"different images, and no element tells them apart: {_some(crowded, name)}",
            remedy="Take one image of each place out of the folder",
            file=name,
        )
    if (lacking := [place for place in places if len(place) < most]) != []:
        raise ImageError(
            f"the places hold up to {most} images (which differ in {contrast}), but {len(lacking)} "
            f"of {len(places)} hold fewer: {_some([p[0] for p in lacking], name)}",
            remedy=f"Complete the series, or keep the images of one {contrast}",
            file=name,
        )
    ordered = [sorted(place, key=lambda plane: _mark(plane, contrast)) for place in places]
    if repeat is None or not 0 <= repeat < most:
        values = ", ".join(str(anywhere(p.header, p.frame, contrast)) for p in ordered[0])
        chosen = "none is chosen" if repeat is None else f"there is no repeat {repeat}"
        raise ImageError(
            f"each of the {len(places)} places holds {most} images, which differ in {contrast} "
            f"({values}), and {chosen}: {_some(ordered[0], name)}",
            remedy=choose_volume(most) + ", in this order",
            file=name,
            field="frame",
        )
    return [place[repeat] for place in ordered]


def _contrast(places: Sequence[Sequence[Plane]]) -> str | None:
    """The element whose value differs between all images of a place, for every place."""
    crowded = [place for place in places if len(place) > 1]
    if not crowded:
        return None
    for keyword in (*_CONTRASTS, *_TIMES):
        if all(_distinct(place, keyword) for place in crowded):
            return keyword
    return None


def _distinct(place: Sequence[Plane], keyword: str) -> bool:
    values = {anywhere(plane.header, plane.frame, keyword) for plane in place}
    return None not in values and len(values) == len(place)


def _mark(plane: Plane, keyword: str) -> tuple[int, float, str]:
    """A value that sorts: numbers by size, before texts."""
    value = str(anywhere(plane.header, plane.frame, keyword))
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def _without_copies(places: list[list[Plane]], judge: _Judge, same: Same) -> list[list[Plane]]:
    """The places without images that repeat another pixel for pixel."""
    copies: list[Plane] = []
    kept: list[list[Plane]] = []
    for place in places:
        different: list[Plane] = []
        for plane in place:
            if any(same(plane, other) for other in different):
                copies.append(plane)
            else:
                different.append(plane)
        kept.append(different)
    if copies:
        message = f"{len(copies)} images repeat another, place and pixels"
        judge("duplicates", message, copies, "Delete the copies")
    return kept


def _judge_grid(
    planes: Sequence[Plane], grid: Grid, positions: Sequence[float], judge: _Judge
) -> None:
    if grid.gaps:
        steps = np.diff(positions)
        said = ", ".join(f"{steps[i]:.2f}" for i in grid.gaps[:_NAMED])
        judge(
            "gaps",
            f"slices are missing: the usual step is {grid.step:.2f} mm, but {len(grid.gaps)} are "
            f"longer ({said} mm), after these",
            [planes[i] for i in grid.gaps],
            "Complete the series",
        )
    elif grid.affine is None:
        judge(
            "uneven",
            f"the slices are unevenly spaced: up to {grid.off:.2f} mm from a regular grid with a "
            f"step of {grid.step:.2f} mm",
            (),
            "Resample from the positions of the slices",
        )
    if grid.tilt and grid.affine is not None:
        message = f"the slices are stacked {grid.tilt:.1f} degrees off their normal (gantry tilt)"
        judge("tilt", f"{message}; the affine is sheared", (), "")


def _affine(plane: Plane) -> Affine:
    assert plane.affine is not None, f"{plane} has no position"
    return plane.affine


def _some(names: Iterable[object], folder: str = "") -> str:
    """The first few names, and how many more there are; without the folder that they share."""
    listed = [str(name).removeprefix(f"{folder}/") for name in names]
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
