"""PyRadiomics test cases (van Griethuysen et al., Cancer Res 77:e104, 2017): five tumours with masks.

Two lung CTs, two brain MRs and a breast MR in `volumes/` (NIfTI, masks `*_lesion.nii.gz`, listed in
`index.json`) and 58 of their slices as 8-bit PNG in `slices/` (`slices.json`). Lung volumes were halved
in plane and clipped to -1024..1500 HU; their slices have the full size.

- Boxes of a volume come from its mask, in voxels of the array that MedLoupe reads; boxes of a slice
  are the published ones, in its own pixels, with mm from the volume's spacing. Slices were cut from
  the stored array: those of the brain have the forehead at the lower edge.
- No slice is asked on which side its tumour is: five patients cannot balance it, and brain slices are
  mirrored against the usual view.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medloupe.data.balance import even_out
from medloupe.data.builders import classify, presence, refer
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.fields import listed_boxes, number
from medloupe.data.segmentation import read_segmentation
from medloupe.data.source import read_json_list, require
from medloupe.errors import DataError
from medloupe.types import Box, Conversation, ImageRef, Record

NAME = "pyradiomics"
LICENCE = "BSD-3-Clause"
TUMOUR = "tumour"
REGIONS = ("brain", "breast", "lung")
MODALITIES = {"CT": "CT", "MR": "MRI"}
PUBLISHED = {"cases": 5}
CARD = DatasetCard(
    name=NAME,
    version="3.0.1",
    description="Two lung CTs, two brain MRs and a breast MR with tumour masks, and slices with "
    "tumour boxes. Five cases: for tests, not for statistics. Not for clinical use",
    licence=LICENCE,
    citation="van Griethuysen JJM et al. Computational Radiomics System to Decode the Radiographic "
    "Phenotype. Cancer Res 2017;77:e104-e107.",
    access="https://github.com/AIM-Harvard/pyradiomics",
    tasks=("rec", "presence", "modality", "region"),
    splits="by patient; with five of them a split may be empty",
    published=PUBLISHED,
)


class PyradiomicsConfig(PublishedConfig):
    """Five tumours: 3D boxes from masks, boxes on slices, whether a slice shows a tumour."""

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        records = read_records(source)
        volumes = [record for record in records if record.masks]
        slices = [record for record in records if not record.masks]
        return Reading(
            card=CARD,
            images=source,
            conversations=[
                *(refer(record, TUMOUR, record.boxes) for record in records if record.boxes),
                *even_out(presence(record, "a tumour", bool(record.boxes)) for record in slices),
                *even_out(_modality(record) for record in slices),
                *(_region(record) for record in volumes),
            ],
            records=records,
            found={"cases": len(volumes)},
        )


def read_records(source: Path) -> list[Record]:
    """The volumes, then the slices.

    Raises:
        DataError: a file is missing, or a row is faulty.
    """
    path, slices = source / "index.json", source / "slices.json"
    rows = {
        str(require(row, "id", file=path, name=f"number {i}")): row
        for i, row in enumerate(read_json_list(path))
    }
    records = [_volume(name, row, source, path) for name, row in rows.items()]
    return records + [_slice(row, rows, slices) for row in read_json_list(slices)]


def _volume(name: str, row: Mapping[str, Any], source: Path, path: Path) -> Record:
    ref = ImageRef(
        uri=f"volumes/{name}.nii.gz",
        kind="volume",
        modality=str(require(row, "modality", file=path, name=name)),
    )
    mask = ImageRef(uri=f"volumes/{name}_lesion.nii.gz", kind="volume", modality="SEG")
    found = read_segmentation(source / ref.uri, source / mask.uri, {1: TUMOUR})
    return _record(name, name, ref, row).model_copy(update={"masks": (mask,), "boxes": found.boxes})


def _slice(row: Mapping[str, Any], volumes: Mapping[str, Mapping[str, Any]], path: Path) -> Record:
    uri = str(require(row, "image", file=path, name="a slice"))
    name = str(require(row, "volume", file=path, name=uri))
    if name not in volumes:
        raise DataError(f"no volume {name!r} in index.json", file=str(path), row=uri)
    volume = volumes[name]
    ref = ImageRef(uri=uri, modality=str(volume["modality"]), series=name)
    record = _record(Path(uri).stem, name, ref, volume)
    spacing = _in_plane(volume, path, uri)
    boxes = tuple(_sized(box, spacing) for _, box in listed_boxes(row, file=path, name=uri))
    attributes = record.attributes | {"slice": str(require(row, "z", file=path, name=uri))}
    return record.model_copy(update={"boxes": boxes, "attributes": attributes})


def _record(name: str, patient: str, ref: ImageRef, volume: Mapping[str, Any]) -> Record:
    return Record(
        id=name,
        patient_id=patient,
        study_id=patient,
        images=(ref,),
        labels=(TUMOUR,),
        attributes={"region": patient.rstrip("0123456789"), "modality": str(volume["modality"])},
        dataset=NAME,
        licence=LICENCE,
    )


def _in_plane(volume: Mapping[str, Any], path: Path, row: str) -> float:
    """The side of a pixel of a slice in mm: slices have the size before the volume was halved."""
    spacing = require(volume, "spacing_xyz", file=path, name=row)
    halved = number(volume, "downsample_inplane", file=path, name=row)
    if not isinstance(spacing, list) or not halved:
        raise DataError("no spacing of the slice is stated", file=str(path), row=row)
    return float(spacing[0]) / halved


def _sized(box: Box, spacing: float) -> Box:
    size = ((box.x2 - box.x1) * spacing, (box.y2 - box.y1) * spacing)
    return box.model_copy(update={"size_mm": size})


def _modality(record: Record) -> Conversation:
    return classify(
        record,
        MODALITIES[record.attributes["modality"]],
        tuple(MODALITIES.values()),
        task="modality",
        question="Is this slice from a CT or an MRI?",
    )


def _region(record: Record) -> Conversation:
    question = "Which part of the body does this volume show?"
    return classify(record, record.attributes["region"], REGIONS, task="region", question=question)
