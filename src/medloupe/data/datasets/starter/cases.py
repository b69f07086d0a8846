"""Truth as records state it: what the questions are made from, and what anybody can read again.

A `Record` holds every lesion as a box whose label is its kind. `attributes` say, in the order of
the boxes, on which side each lies and how large (the box's words) and how wide it is
(`lesion_widths`, percent of the image's width), and further `plane`, `diagnosis`, the widest and
the narrowest lesion (`lesion_width_percent`, `smallest_lesion_percent`) and the `affine` (4 x 4
JSON: column, row, slice -> RAS+ mm).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medloupe.data.datasets.starter.lesions import KINDS
from medloupe.types import Box, ImageRef, Record, Split

DATASET = "starter"
LICENCE = "ICBM 2009 template licence (McConnell Brain Imaging Centre, MNI, McGill University)"
DIAGNOSES = ("normal", "neoplastic", "vascular", "inflammatory")
CUT = 5.0  # percent of the image's width between small and large
CLEAR = 1.1  # how far from the cut, and from the next size, a lesion must be to be asked about
NEOPLASTIC = frozenset({"ring", "spiculated", "target"})
VASCULAR = frozenset({"wedge", "streak", "crescent"})


def diagnose(kinds: Iterable[str]) -> str:
    """The diagnosis that follows from the kinds of lesions in one image (rule in the package)."""
    found = set(kinds)
    if not found:
        return "normal"
    if found & NEOPLASTIC:
        return "neoplastic"
    return "vascular" if found & VASCULAR else "inflammatory"


@dataclass(frozen=True)
class Finding:
    """One lesion: `width` in percent of the image's width, `side` "" where it has none."""

    kind: str
    box: Box
    width: float
    side: str

    @property
    def size(self) -> str:
        """ "small" or "large"; "" near the cut, where it is neither."""
        if CUT / CLEAR < self.width < CUT * CLEAR:
            return ""
        return "small" if self.width < CUT else "large"

    @property
    def words(self) -> tuple[str, ...]:
        """What the record's box says beyond the kind."""
        return tuple(word for word in (self.side, self.size) if word)


@dataclass(frozen=True)
class Case:
    """A record as questions need it."""

    record: Record

    @property
    def plane(self) -> str:
        return self.record.attributes["plane"]

    @property
    def diagnosis(self) -> str:
        return self.record.attributes["diagnosis"]

    @property
    def series(self) -> str:
        """The name of the series that it belongs to, "" for none."""
        return self.record.attributes.get("series", "")

    @property
    def image(self) -> ImageRef:
        return self.record.images[0]

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Every lesion, in the order of the record's boxes (widest first)."""
        attributes = self.record.attributes
        if not self.record.boxes:
            return ()
        widths = attributes["lesion_widths"].split(",")
        return tuple(
            Finding(
                box.label,
                box.model_copy(update={"words": ()}),
                float(width),
                next((word for word in box.words if word in ("left", "right")), ""),
            )
            for box, width in zip(self.record.boxes, widths, strict=True)
        )

    @cached_property
    def kinds(self) -> frozenset[str]:
        return frozenset(finding.kind for finding in self.findings)

    def only(self, kind: str) -> Finding | None:
        """The lesion of this kind if there is exactly one."""
        found = [finding for finding in self.findings if finding.kind == kind]
        return found[0] if len(found) == 1 else None

    @cached_property
    def unique(self) -> tuple[Finding, ...]:
        """The lesions that their kind alone names."""
        return tuple(finding for finding in self.findings if self.only(finding.kind) is not None)


def make_record(
    name: str,
    *,
    patient: str,
    split: Split,
    image: ImageRef,
    plane: str,
    findings: Sequence[Finding],
    affine: NDArray[np.float64],
    study: dict[str, str] | None = None,
    prior: str | None = None,
    days: float | None = None,
) -> Record:
    """The record of one image; lesions are put in order, widest first."""
    ordered = sorted(findings, key=lambda finding: -finding.width)
    kinds = [finding.kind for finding in ordered]
    diagnosis = diagnose(kinds)
    attributes = {
        "plane": plane,
        "diagnosis": diagnosis,
        "lesions": str(len(ordered)),
        "affine": json.dumps([[round(float(x), 6) for x in row] for row in affine]),
    } | (study or {})
    if ordered:
        attributes |= {
            "lesion_widths": ",".join(f"{finding.width:.3f}" for finding in ordered),
            "lesion_width_percent": f"{ordered[0].width:.3f}",
            "smallest_lesion_percent": f"{ordered[-1].width:.3f}",
        }
    present = tuple(kind for kind in KINDS if kind in kinds)
    return Record(
        id=name,
        patient_id=patient,
        study_id=f"{name}-study",
        date_offset_days=days,
        images=(image,),
        labels=(plane, *present, diagnosis),
        boxes=tuple(finding.box.model_copy(update={"words": finding.words}) for finding in ordered),
        prior=prior,
        attributes=attributes,
        split=split,
        dataset=DATASET,
        licence=LICENCE,
    )
