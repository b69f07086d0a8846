"""How well one does without looking: the comparison that stands beside every result.

Two image-blind answerers: the same model shown another patient's images of the same kind, and the
most frequent training answer to each question template.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from medloupe.evaluate.benchmark import cluster_of
from medloupe.types import Conversation, ImageRef, Message

Images = tuple[ImageRef, ...]


def swap_images(rows: Sequence[Conversation], *, seed: int) -> list[Conversation | None]:
    """Every row with its images replaced by those of another patient among `rows`.

    All images of a row are replaced together, by a set of as many images of the same kinds and
    modalities, and rows that share images go on sharing them. None where a row has no image or no
    other patient has such a set. Independent of the order of `rows`.
    """
    donor_of: dict[str, Images] = {}
    for owners in _sets_by_kind(rows).values():
        donor_of.update(_derange(owners, seed))
    return [_with_images(row, donor_of.get(_key(row.images))) for row in rows]


class MajorityAnswers:
    """The most frequent training answer of each question template.

    A template that training never saw takes that of its task; ties go to the first in the alphabet.
    """

    def __init__(self, rows: Iterable[Conversation]) -> None:
        templates: dict[tuple[str, ...], Counter[str]] = {}
        for row in rows:
            if row.answer is not None and row.answer.text.strip():
                for key in _template_keys(row):
                    templates.setdefault(key, Counter())[row.answer.text.strip()] += 1
        self._answers = {
            key: min(counts, key=lambda text: (-counts[text], text))
            for key, counts in templates.items()
        }

    def answer(self, row: Conversation) -> str | None:
        """The constant answer to a row's template, None where training has no such question."""
        found = (self._answers.get(key) for key in _template_keys(row))
        return next((text for text in found if text is not None), None)


def _template_keys(row: Conversation) -> tuple[tuple[str, ...], ...]:
    return (row.task, row.answer_type, row.template), (row.task, row.answer_type)


def _key(images: Images) -> str:
    return "\n".join(f"{image.uri}#{image.frame}" for image in images)


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


def _with_images(row: Conversation, images: Images | None) -> Conversation | None:
    if not row.images or images is None:
        return None
    left = iter(images)
    return row.model_copy(
        update={"messages": tuple(_message_with(message, left) for message in row.messages)}
    )


def _message_with(message: Message, left: Iterable[ImageRef]) -> Message:
    new = iter(left)
    content = tuple(next(new) if isinstance(part, ImageRef) else part for part in message.content)
    return message.model_copy(update={"content": content})
