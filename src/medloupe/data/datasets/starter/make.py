"""One patient at a time: draw, write the files, return the records. Runs in worker processes.

A patient's files depend on the config and the patient's number alone, so the number of workers
changes nothing.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from medloupe.data.datasets.starter.anatomy import Template, load_template
from medloupe.data.datasets.starter.cases import Finding, make_record
from medloupe.data.datasets.starter.patients import Slice, draw_slice
from medloupe.data.datasets.starter.questions import VOLUME_CHANGE
from medloupe.data.datasets.starter.render import render
from medloupe.data.datasets.starter.series import draw_series, plan
from medloupe.data.datasets.starter.volume_series import draw_volume_series, plan_volumes
from medloupe.data.datasets.starter.volumes import Solid, Volume, draw_volume
from medloupe.errors import DataError
from medloupe.imaging.workers import worker_pool
from medloupe.types import Box, ImageRef, Record, Split

if TYPE_CHECKING:
    from medloupe.data.dataset import Progress
    from medloupe.data.datasets.starter import StarterConfig

BLOCK: tuple[Split, ...] = ("train",) * 7 + ("validation",) + ("test",) * 2


@dataclass(frozen=True)
class Patient:
    """A patient's number, split, and place among the patients of the split."""

    number: int
    split: Split
    rank: int

    @property
    def name(self) -> str:
        return f"p{self.number:05d}"


def draw_patients(seed: int, count: int) -> list[Patient]:
    """In every ten patients seven train, one validates and two test, whatever `count` is."""
    patients: list[Patient] = []
    for number in range(count):
        block, place = divmod(number, len(BLOCK))
        order = np.random.default_rng((seed, 6, block)).permutation(len(BLOCK))
        split = BLOCK[int(order[place])]
        rank = sum(patient.split == split for patient in patients)
        patients.append(Patient(number, split, rank))
    return patients


def make_all(config: StarterConfig, out: Path, workers: int, progress: Progress) -> list[Record]:
    """Every file and every record, in the order of the patients."""
    patients = draw_patients(config.seed, config.patients)
    records: list[Record] = []
    for done, made in enumerate(_made(config, out, patients, workers), start=1):
        records += made
        progress("patients", done, len(patients))
    return records


def _made(
    config: StarterConfig, out: Path, patients: list[Patient], workers: int
) -> Iterator[list[Record]]:
    template = load_template()
    if workers == 1:
        for patient in patients:
            yield make_patient(template, config, out, patient)
        return
    with tempfile.TemporaryDirectory() as folder:
        template.save(Path(folder))
        with worker_pool(workers, _open_template, Path(folder)) as pool:
            yield from pool.map(partial(_make_patient, config, out), patients, chunksize=2)


_shared: list[Template] = []  # the template of this worker process


def _open_template(folder: Path) -> None:
    _shared.append(Template.open(folder))


def _make_patient(config: StarterConfig, out: Path, patient: Patient) -> list[Record]:
    return make_patient(_shared[0], config, out, patient)


def make_patient(
    template: Template, config: StarterConfig, out: Path, patient: Patient
) -> list[Record]:
    """The slices, series and volumes of one patient.

    Raises:
        DataError: a file cannot be written.
    """
    try:
        return [
            *_slices(template, config, out, patient),
            *_series(template, config, out, patient),
            *_volumes(template, config, out, patient),
            *_volume_series(template, config, out, patient),
        ]
    except OSError as error:
        raise DataError(
            f"cannot be written: {error.strerror}",
            remedy="Free space or choose another folder, then prepare again",
            file=str(error.filename or out),
        ) from error


def _slices(
    template: Template, config: StarterConfig, out: Path, patient: Patient
) -> Iterator[Record]:
    for number in range(config.slices_per_patient):
        case = draw_slice(
            template, config.seed, patient.number, number, config.lesion_width, config.most
        )
        yield _slice_record(case, config, out, patient, f"{patient.name}-s{number}")


def _series(
    template: Template, config: StarterConfig, out: Path, patient: Patient
) -> Iterator[Record]:
    for number in range(config.series_per_patient):
        course = plan(patient.rank * config.series_per_patient + number)
        cases = draw_series(
            template,
            config.seed,
            patient.number,
            number,
            course,
            config.lesion_width,
            config.most,
        )
        series = f"{patient.name}-c{number}"
        visits = _visits(series, (config.seed, patient.number, 7, number))
        for case, (name, prior, day) in zip(cases, visits, strict=False):
            yield _slice_record(case, config, out, patient, name, series, prior, day)


def _visits(series: str, key: tuple[int, ...]) -> Iterator[tuple[str, str | None, float]]:
    """Name, name of the one before, and day of each examination of a series, without end."""
    rng = np.random.default_rng(key)
    prior, day = None, 0.0
    for time in itertools.count():
        name = f"{series}t{time}"
        yield name, prior, day
        prior, day = name, day + float(rng.integers(60, 400))


def _slice_record(
    case: Slice, config: StarterConfig, out: Path, patient: Patient, name: str,
    series: str = "", prior: str | None = None, day: float | None = None,
) -> Record:  # fmt: skip
    """Draw and write one slice."""
    picture = io.BytesIO()
    pixels = render(case, config.size, config.conspicuity)
    Image.fromarray(pixels).save(picture, format="PNG", compress_level=3)
    findings = []
    for lesion in case.lesions:
        x1, y1, x2, y2 = (round(edge, 3) for edge in lesion.box(config.size))
        box = Box(label=lesion.kind, x1=x1, y1=y1, x2=x2, y2=y2)
        findings.append(Finding(lesion.kind, box, 100 * lesion.width, lesion.side))
    return make_record(
        name,
        patient=patient.name,
        split=patient.split,
        image=_written(out, f"images/{name}.png", picture.getvalue(), "image"),
        plane=case.plane,
        findings=findings,
        affine=case.affine(config.size),
        study={"series": series} if series else None,
        prior=prior,
        days=day,
    )


def _volumes(
    template: Template, config: StarterConfig, out: Path, patient: Patient
) -> Iterator[Record]:
    for number in range(config.volumes_per_patient):
        volume = draw_volume(
            template,
            config.seed,
            patient.number,
            number,
            config.volume_size,
            config.conspicuity,
        )
        yield _volume_record(volume, out, patient, f"{patient.name}-v{number}")


def _volume_series(
    template: Template, config: StarterConfig, out: Path, patient: Patient
) -> Iterator[Record]:
    """As many as there are series of slices, where a task asks about them."""
    if VOLUME_CHANGE not in config.tasks:
        return
    for number in range(config.series_per_patient):
        volumes = draw_volume_series(
            template,
            config.seed,
            patient.number,
            number,
            plan_volumes(patient.rank * config.series_per_patient + number),
            config.volume_size,
            config.conspicuity,
        )
        series = f"{patient.name}-w{number}"
        visits = _visits(series, (config.seed, patient.number, 9, number))
        for volume, (name, prior, day) in zip(volumes, visits, strict=False):
            yield _volume_record(volume, out, patient, name, series, prior, day)


def _volume_record(
    volume: Volume, out: Path, patient: Patient, name: str,
    series: str = "", prior: str | None = None, day: float | None = None,
) -> Record:  # fmt: skip
    """Write one volume."""
    return make_record(
        name,
        patient=patient.name,
        split=patient.split,
        image=_written(out, f"volumes/{name}.nii", volume.to_nifti(), "volume"),
        plane="volume",
        findings=[_solid_finding(solid, volume.voxels.shape[0]) for solid in volume.lesions],
        affine=volume.affine,
        study={"series": series} if series else None,
        prior=prior,
        days=day,
    )


def _solid_finding(solid: Solid, size: int) -> Finding:
    (x1, y1, z1), (x2, y2, z2) = (np.round(corner, 3).tolist() for corner in solid.box(size))
    box = Box(label=solid.kind, x1=x1, y1=y1, z1=z1, x2=x2, y2=y2, z2=z2)
    return Finding(solid.kind, box, 100 * solid.width, solid.side)


def _written(out: Path, uri: str, data: bytes, kind: str) -> ImageRef:
    path = out / uri
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return ImageRef(
        uri=uri,
        sha256=hashlib.sha256(data).hexdigest(),
        kind="volume" if kind == "volume" else "image",
        modality="MR",
    )
