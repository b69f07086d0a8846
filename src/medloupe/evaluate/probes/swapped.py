"""The same model shown another patient's images of the same kind: it cannot know by looking."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from medloupe.evaluate.benchmark import cluster_of
from medloupe.evaluate.probes.base import Asked, Expect, Look, Probe, with_images
from medloupe.types import Conversation, ImageRef

Images = tuple[ImageRef, ...]


class Swapped(Probe):
    """Another patient's images of the same kinds and modalities, for every row by default."""

    limit: int | None = None
    about: ClassVar[str] = "shown another patient's image"
    expect: ClassVar[Expect] = "worse"

    def ask(self, rows: Sequence[Conversation], *, seed: int, look: Look) -> Asked:
        del look
        return swap_images(rows, seed=seed)


def swap_images(rows: Sequence[Conversation], *, seed: int) -> list[Conversation | None]:
    """Every row with its images replaced by those of another patient among `rows`.

    All images of a row are replaced together, by a set of as many images of the same kinds and
    modalities, and rows that share images go on sharing them. None where a row has no image or no
    other patient has such a set. Independent of the order of `rows`.
    """
    donor_of: dict[str, Images] = {}
    for owners in _sets_by_kind(rows).values():
        donor_of.update(_derange(owners, seed))
    return [
        with_images(row, donor) if (donor := donor_of.get(_key(row.images))) else None
        for row in rows
    ]


def _key(images: Images) -> str:
    # several series may lie in one folder, which is then the uri of each
    return "\n".join(f"{image.uri}#{image.frame}#{image.series}" for image in images)


def _sets_by_kind(rows: Sequence[Conversation]) -> dict[str, dict[str, tuple[str, Images]]]:
    """Per kind, each set of images once: its key -> (patient, images)."""
    kinds: dict[str, dict[str, tuple[str, Images]]] = {}
    for row in rows:
        if not row.images:
            continue
        kind = " ".join(f"{image.kind}/{image.modality}" for image in row.images)
        uris = [image.uri for image in row.images]
        patient = cluster_of(row.id, row.patient_id, uris)
        kinds.setdefault(kind, {})[_key(row.images)] = (patient, row.images)
    return kinds


def _derange(owners: dict[str, tuple[str, Images]], seed: int) -> dict[str, Images]:
    """A donor of another patient for every set, each set given once where that is possible.

    With the sets of a patient standing together, a shift by the largest patient's number of sets
    never meets the same patient, unless that patient owns more than half of all sets; only then are
    donors drawn freely.
    """
    rng = random.Random(seed)
    patients: dict[str, list[str]] = {}
    for key in sorted(owners):
        patients.setdefault(owners[key][0], []).append(key)
    if len(patients) < 2:
        return {}
    order = sorted(patients)
    rng.shuffle(order)
    keys = [key for patient in order for key in patients[patient]]
    shift = max(len(own) for own in patients.values())
    donors = {}
    for place, key in enumerate(keys):
        donor = keys[(place + shift) % len(keys)]
        if owners[donor][0] == owners[key][0]:
            donor = rng.choice([other for other in keys if owners[other][0] != owners[key][0]])
        donors[key] = owners[donor][1]
    return donors
