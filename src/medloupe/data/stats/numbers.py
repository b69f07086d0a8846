"""The numbers: counts, lengths, images, labels, answers, and what splits share.

Words are runs of letters and digits; a Chinese character is a word of its own.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medloupe.config import Config
from medloupe.data.audit.text import normalised, words_of
from medloupe.data.dataset import Dataset, DatasetCard, Progress
from medloupe.data.rows import all_rows, images_of
from medloupe.data.stats.images import ImageFacts, image_facts
from medloupe.types import Conversation, Record

CountTokens = Callable[[str], int]
NO_SPLIT = "no split"
_SPLITS = ("train", "validation", "test", NO_SPLIT)
_BINS = 24
_FREE = "(no template)"


class Spread(Config):
    """How numbers spread: `edges` and `counts` are a histogram with one edge more than counts."""

    n: int
    lowest: float
    p5: float
    median: float
    p95: float
    highest: float
    mean: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one number. Whole numbers get bins that end between them."""
        array = np.asarray(values, dtype=np.float64)
        edges = _edges(array)
        counts, _ = np.histogram(array, edges)
        p5, median, p95 = (round(float(v), 3) for v in np.percentile(array, (5, 50, 95)))
        return cls(
            n=len(array),
            lowest=float(array.min()),
            p5=p5,
            median=median,
            p95=p95,
            highest=float(array.max()),
            mean=round(float(array.mean()), 3),
            edges=tuple(float(edge) for edge in edges),
            counts=tuple(int(number) for number in counts),
        )


class AnswerBalance(Config):
    """One kind of question: how far the best constant answer gets.

    `constant` is the most frequent answer of the training split (of all rows where there is none),
    `share` the part of the held-out rows it answers (of all rows where none are held out).
    """

    task: str
    template: str
    answer_type: str
    n: int
    answers: int
    constant: str
    share: float
    scored: int
    top: tuple[tuple[str, int], ...]


class Overlap(Config):
    """What two splits have in common; questions after normalisation, with and without the answer."""

    one: str
    other: str
    patients: int
    images: int
    questions: int
    question_answers: int
    distinct_questions: int


class DataStats(Config):
    """Everything `medloupe stats` tells. Tables of counts are name -> split -> number; `rows` is the
    fingerprint of the data set."""

    card: DatasetCard
    rows: str
    counts: dict[str, dict[str, int]]
    tasks: dict[str, dict[str, int]]
    answer_types: dict[str, dict[str, int]]
    languages: dict[str, dict[str, int]]
    modalities: dict[str, dict[str, int]]
    labels: dict[str, dict[str, int]]
    boxes: dict[str, dict[str, int]]
    attributes: dict[str, dict[str, dict[str, int]]]
    turns: dict[str, dict[str, int]]
    images_per_row: dict[str, dict[str, int]]
    lengths: dict[str, Spread]
    tokens: dict[str, Spread] = Field(default_factory=dict)
    answers: tuple[AnswerBalance, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    images: ImageFacts | None = None


def describe(
    dataset: Dataset,
    *,
    images: bool = True,
    tokens: CountTokens | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DataStats:
    """All numbers of a data set. `tokens` counts the tokens of a text; `images=False` opens no file.

    Raises:
        ImageError: a worker process died; an image that cannot be read is counted as unreadable.
    """
    rows = dataset.conversations
    refs = {
        ref: row.split or NO_SPLIT
        for row in all_rows(rows, dataset.records)
        for _, ref in images_of(row)
    }
    return DataStats(
        card=dataset.card,
        rows=dataset.fingerprint(),
        counts=_counts(dataset),
        tasks=_table((row.task or "(no task)", _split(row)) for row in rows),
        answer_types=_table((row.answer_type, _split(row)) for row in rows),
        languages=_table((row.language, _split(row)) for row in rows),
        modalities=_table((ref.modality or "not stated", split) for ref, split in refs.items()),
        labels=_table((label, _split(r)) for r in dataset.records for label in r.labels),
        boxes=_table((box.label, _split(r)) for r in dataset.records for box in r.boxes),
        attributes=_attributes(dataset.records or rows),
        turns=_table((str(_turns(row)), _split(row)) for row in rows),
        images_per_row=_table((str(len(row.images)), _split(row)) for row in rows),
        lengths=_lengths(dataset),
        tokens=_token_lengths(rows, tokens) if tokens is not None else {},
        answers=_balance(rows),
        overlaps=_overlaps(rows),
        images=image_facts(dataset, workers=workers, progress=progress) if images else None,
    )


def _split(row: Conversation | Record) -> str:
    return row.split or NO_SPLIT


def _table(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """name -> split -> number, the most frequent name first."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, split in pairs:
        found[name][split] += 1
    ordered = sorted(found.items(), key=lambda item: (-item[1].total(), item[0]))
    return {name: {s: numbers[s] for s in _SPLITS if numbers[s]} for name, numbers in ordered}


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    distinct: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in all_rows(dataset.conversations, dataset.records):
        split = _split(row)
        kind = "records" if isinstance(row, Record) else "conversations"
        distinct[kind].add((row.id, split))
        distinct["images"] |= {(ref.uri, split) for ref in row.images}
        if row.patient_id is not None:
            distinct["patients"].add((row.patient_id, split))
        if row.study_id is not None:
            distinct["studies"].add((row.study_id, split))
    names = ("conversations", "records", "images", "patients", "studies")
    return {
        name: {s: n for s in _SPLITS if (n := sum(split == s for _, split in distinct[name]))}
        for name in names
        if distinct[name]
    }


def _attributes(rows: Sequence[Conversation | Record]) -> dict[str, dict[str, dict[str, int]]]:
    """Attributes with few values (sex, view, site, ...); numbers and names of things are left out."""
    values: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        for name, value in row.attributes.items():
            values[name].append((value, _split(row)))
    return {
        name: _table(pairs)
        for name, pairs in sorted(values.items())
        if 1 < len({value for value, _ in pairs}) <= 12
    }


def _turns(row: Conversation) -> int:
    return sum(message.role == "assistant" for message in row.messages)


def _lengths(dataset: Dataset) -> dict[str, Spread]:
    """Words and characters of questions, answers and report sections."""
    texts: dict[str, list[str]] = defaultdict(list)
    for row in dataset.conversations:
        for message in row.messages:
            if message.role != "system" and message.text.strip():
                texts["questions" if message.role == "user" else "answers"].append(message.text)
    for record in dataset.records:
        for section, text in record.report.items():
            texts[f"report: {section}"].append(text)
    found = {}
    for name, said in texts.items():
        found[f"{name}, words"] = Spread.of([len(words_of(text)) for text in said])
        found[f"{name}, characters"] = Spread.of([len(text) for text in said])
    return found


def _token_lengths(rows: Sequence[Conversation], count: CountTokens) -> dict[str, Spread]:
    """Tokens of all text of a row, and of its answers; without the template and the images."""
    known: dict[str, int] = {}

    def of(text: str) -> int:
        if text not in known:
            known[text] = count(text)
        return known[text]

    every = [sum(of(m.text) for m in row.messages) for row in rows]
    answers = [sum(of(m.text) for m in row.messages if m.role == "assistant") for row in rows]
    return {"all text of a row": Spread.of(every), "its answers": Spread.of(answers)}


def _balance(rows: Sequence[Conversation]) -> tuple[AnswerBalance, ...]:
    groups: dict[tuple[str, str, str], list[Conversation]] = defaultdict(list)
    for row in rows:
        if row.answer is not None and row.answer.text.strip() and row.answer_type != "box":
            key = (row.task or "(no task)", row.template or _FREE, row.answer_type)
            groups[key].append(row)
    return tuple(_balance_of(key, groups[key]) for key in sorted(groups))


def _balance_of(key: tuple[str, str, str], rows: Sequence[Conversation]) -> AnswerBalance:
    texts = [(row.answer.text.strip(), _split(row)) for row in rows if row.answer is not None]
    said = [(normalised(text), split) for text, split in texts]
    spelled = {normalised(text): text for text, _ in reversed(texts)}  # as first written
    everything = Counter(answer for answer, _ in said)
    training = Counter(answer for answer, split in said if split == "train") or everything
    held = [answer for answer, split in said if split in ("validation", "test")]
    scored = held or [answer for answer, _ in said]
    constant = min(training, key=lambda answer: (-training[answer], answer))
    task, template, answer_type = key
    return AnswerBalance(
        task=task,
        template=template,
        answer_type=answer_type,
        n=len(rows),
        answers=len(everything),
        constant=spelled[constant],
        share=round(sum(answer == constant for answer in scored) / len(scored), 4),
        scored=len(scored),
        top=tuple(
            (spelled[answer], number)
            for answer, number in sorted(everything.items(), key=lambda item: (-item[1], item[0]))[
                :5
            ]
        ),
    )


def _overlaps(rows: Sequence[Conversation]) -> tuple[Overlap, ...]:
    held: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        sets = held.setdefault(_split(row), defaultdict(set))
        question = normalised(row.question)
        answer = normalised(row.answer.text) if row.answer is not None else ""
        sets["questions"].add(question)
        sets["question_answers"].add(f"{question}\n{answer}")
        sets["images"] |= {ref.sha256 or ref.uri for ref in row.images}
        if row.patient_id is not None:
            sets["patients"].add(row.patient_id)
    names = [split for split in _SPLITS if split in held]
    return tuple(_overlap(one, other, held) for one, other in combinations(names, 2))


def _overlap(one: str, other: str, held: Mapping[str, Mapping[str, set[str]]]) -> Overlap:
    shared = {
        name: len(held[one].get(name, set()) & held[other].get(name, set()))
        for name in ("patients", "images", "questions", "question_answers")
    }
    distinct = len(held[other].get("questions", set()))
    return Overlap(one=one, other=other, distinct_questions=distinct, **shared)


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most `_BINS` bins; the last one takes the few that lie far out."""
    low, high = float(values.min()), float(values.max())
    if np.array_equal(values, np.round(values)):
        step = max(1, math.ceil((high - low + 1) / _BINS))
        return np.arange(low, high + step + 1, step) - 0.5
    return np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
