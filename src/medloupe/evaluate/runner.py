"""Ask a model every row of a benchmark, with and without looking, and keep all that was said.

What is asked is planned first: every row as it is, and as each probe changes it. All of it is asked in
one pass, so that the questions of an image, whichever arm they are of, share its prefill, and so that a
pass can go on where it stopped or be shared among processes. A row that cannot be answered stays, with
the reason, and counts as unscored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medloupe.config import Config
from medloupe.data.dataset import Dataset, DatasetCard, Progress, silent
from medloupe.errors import ImageError
from medloupe.evaluate.benchmark import Benchmark, digest_rows
from medloupe.evaluate.majority import MAJORITY, MajorityAnswers
from medloupe.evaluate.metrics import MODEL, score_rows, summarise
from medloupe.evaluate.probes import Look, Probe
from medloupe.evaluate.probes.base import limited
from medloupe.evaluate.probes.swapped import Swapped
from medloupe.evaluate.resume import Answers, Predictor, Said, Shard, TellingPredictor, ask_all
from medloupe.evaluate.scorers.detection import HEIGHT, WIDTH
from medloupe.types import (
    Answer,
    Arm,
    Box,
    Conversation,
    EvalLog,
    EvalRow,
    Generation,
    ImageRef,
    Message,
)

__all__ = [
    "Predictor",
    "TellingPredictor",
    "dataset_note",
    "probabilities",
    "rescore",
    "run_benchmark",
    "run_shard",
]


def run_benchmark(
    benchmark: Benchmark,
    dataset: Dataset,
    predict: Predictor | TellingPredictor,
    *,
    manifest: Mapping[str, Any],
    seed: int,
    probes: Sequence[Probe] = (Swapped(),),
    look: Look | None = None,
    progress: Progress | None = None,
    answers: Answers | None = None,
) -> EvalLog:
    """Predict, ask the probes, score and summarise.

    `manifest` (JSON values: config, code revision, packages, ...) is kept beside what the log needs
    to be scored again. Each of the `probes` asks rows where it applies once more, and those that
    change images `look` at them; the most frequent training answer is compared in any case. A predictor
    should decode at most `benchmark.max_new_tokens`, greedily. What `answers` holds is not asked again.

    Raises:
        DataError: no rows, an unknown task, a row without an answer, a repeated id.
    """
    log = run_shard(
        benchmark,
        dataset,
        predict,
        shard=None,
        answers=Answers() if answers is None else answers,
        manifest=manifest,
        seed=seed,
        probes=probes,
        look=look,
        progress=progress,
    )
    assert log is not None  # the whole was asked
    return log


def run_shard(
    benchmark: Benchmark,
    dataset: Dataset,
    predict: Predictor | TellingPredictor,
    *,
    shard: Shard | None,
    answers: Answers,
    others: Iterable[Path] = (),
    manifest: Mapping[str, Any],
    seed: int,
    probes: Sequence[Probe] = (Swapped(),),
    look: Look | None = None,
    progress: Progress | None = None,
) -> EvalLog | None:
    """`run_benchmark`, or one part of it. The log, if with this part everything is answered, else None.

    The files of the `others` are read when this one ends, so whichever process ends last scores all.
    """
    plan = _Plan.make(benchmark, dataset, probes, seed=seed, look=look)
    asked = plan.asked if shard is None else shard.part(plan.asked)
    ask_all(predict, asked, answers, progress=progress or silent)
    answers.join(others)
    return plan.log(answers, manifest) if plan.is_answered(answers) else None


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Row number `index` as an arm asks it: with the answer that is right, and as the model sees it."""

    arm: Arm
    index: int
    row: Conversation
    shown: Conversation


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Everything that is asked, the rows themselves first."""

    benchmark: Benchmark
    dataset: Dataset
    seed: int
    rows: tuple[Conversation, ...]
    all: tuple[_Asked, ...]
    look: Look

    @classmethod
    def make(
        cls,
        benchmark: Benchmark,
        dataset: Dataset,
        probes: Sequence[Probe],
        *,
        seed: int,
        look: Look | None,
    ) -> _Plan:
        rows = benchmark.select(dataset)
        look = look or _Blindfold()
        arms: list[tuple[Arm, list[tuple[int, Conversation]]]] = [(MODEL, list(enumerate(rows)))]
        for probe in probes:
            changed = probe.ask(rows, seed=seed, look=look)
            arms.append((probe.name, limited(changed, probe.limit)))
        asked = tuple(
            _Asked(arm=arm, index=index, row=row, shown=benchmark.ask(row))
            for arm, numbered in arms
            for index, row in numbered
        )
        return cls(benchmark=benchmark, dataset=dataset, seed=seed, rows=rows, all=asked, look=look)

    @property
    def asked(self) -> list[Conversation]:
        return [one.shown for one in self.all]

    def is_answered(self, answers: Answers) -> bool:
        """Whether each was asked, with or without success."""
        return all(answers.of(one.shown) is not None for one in self.all)

    def log(self, answers: Answers, manifest: Mapping[str, Any]) -> EvalLog:
        """The scored log."""
        said: dict[tuple[Arm, int], Said] = {}
        for one in self.all:
            found = answers.of(one.shown)
            assert found is not None, f"{one.arm} of {one.row.id} was not asked"
            said[one.arm, one.index] = found
        others = _majority(self.dataset, self.rows)
        for one in self.all:
            if one.arm != MODEL:
                answer = _answer(self.rows[one.index], one.row, said[one.arm, one.index])
                others[one.index][one.arm] = answer
        rows = tuple(
            _row(row, said[MODEL, index], others[index], self.look)
            for index, row in enumerate(self.rows)
        )
        own = [found for (arm, _), found in said.items() if arm == MODEL]
        failed = Counter(arm for (arm, _), found in said.items() if isinstance(found, str))
        kept = {
            **manifest,
            "benchmark": self.benchmark.to_dict(),
            "dataset": self.dataset.card.to_dict(),
            "rows_digest": digest_rows(self.rows),
            "evaluation_seed": self.seed,
            "seconds": round(sum(g.seconds for g in own if isinstance(g, Generation)), 3),
            "not_answered": dict(failed),
        }
        log = EvalLog(
            benchmark=self.benchmark.name,
            version=self.benchmark.version(kept["rows_digest"]),
            manifest=kept,
            rows=rows,
        )
        return rescore(log, self.benchmark)


def rescore(log: EvalLog, benchmark: Benchmark | None = None) -> EvalLog:
    """The same answers scored again, by `benchmark`'s scorers or by those the log was made with.

    Only `scorers`, `strata` and `resamples` of a new benchmark take effect; rows stay as asked.

    Raises:
        ConfigError: the manifest lacks the benchmark, the data set or the seed; or a kind of answer
            has no scorer.
    """
    kept = _Kept.parse({name: log.manifest.get(name) for name in _Kept.model_fields})
    asked = kept.benchmark
    if benchmark is not None:
        scoring = {name: getattr(benchmark, name) for name in ("scorers", "strata", "resamples")}
        asked = asked.model_copy(update=scoring)
    scores = score_rows(log.rows, asked)
    metrics = summarise(
        log.rows, scores, asked, seed=kept.evaluation_seed, note=dataset_note(kept.dataset)
    )
    return log.model_copy(
        update={
            "version": asked.version(kept.rows_digest),
            "manifest": {**log.manifest, "benchmark": asked.to_dict()},
            "scores": scores,
            "metrics": metrics,
        }
    )


def dataset_note(card: DatasetCard) -> str:
    """What every score made from this copy of a data set must carry."""
    partial = f"partial copy: {card.partial}" if card.partial else ""
    leak = f"leak: {card.leak}" if card.leak else ""
    return "; ".join(part for part in (partial, leak) if part)


class _Kept(Config):
    """The part of a manifest from which a log is scored again."""

    benchmark: Benchmark
    dataset: DatasetCard
    rows_digest: str
    evaluation_seed: int


def _majority(dataset: Dataset, rows: Sequence[Conversation]) -> list[dict[Arm, Answer]]:
    """Per row, the most frequent training answer, where training has such questions."""
    constant = MajorityAnswers(dataset.split("train"))
    return [
        {} if (text := constant.answer(row)) is None else {MAJORITY: Answer(text=text)}
        for row in rows
    ]


class _Blindfold:
    """Where nobody can look at images: probes that must know more than a reference do not apply."""

    def size_of(self, ref: ImageRef) -> tuple[int, ...]:
        raise ImageError("nobody looks at images here", file=ref.uri)

    def mirrors(self, ref: ImageRef) -> bool:
        del ref
        return False


def _answer(row: Conversation, asked: Conversation, said: Said) -> Answer:
    """What was said under a probe, with the question and the truth where they are not the row's."""
    assert asked.answer is not None
    assert row.answer is not None
    changes: dict[str, Any] = {}
    if asked.question != row.question:
        changes["question"] = asked.question
    if asked.answer != row.answer:
        changes["truth"] = asked.answer.text.strip()
        changes["truth_boxes"] = _boxes((asked.answer,))
    if isinstance(said, str):
        return Answer(text="", error=said, **changes)
    return Answer(
        text=said.text,
        boxes=said.boxes,
        finish_reason=said.finish_reason,
        **probabilities(said),
        **changes,
    )


def _row(row: Conversation, said: Said, others: dict[Arm, Answer], look: Look) -> EvalRow:
    assert row.answer is not None  # Benchmark.select refuses such rows
    answered: dict[str, Any] = {"prediction": "", "error": said}
    if isinstance(said, Generation):
        answered = {
            "prediction": said.text,
            "predicted_boxes": said.boxes,
            "finish_reason": said.finish_reason,
            **probabilities(said),
        }
    return EvalRow(
        id=row.id,
        patient_id=row.patient_id,
        task=row.task,
        template=row.template,
        answer_type=row.answer_type,
        images=row.images,
        question=row.question,
        question_boxes=_boxes(row.without_answer().messages),
        truth=row.answer.text.strip(),
        truth_boxes=_boxes((row.answer,)),
        options=row.options,
        language=row.language,
        others=others,
        attributes={**_size(row, look), **row.attributes},
        **answered,
    )


def _size(row: Conversation, look: Look) -> dict[str, str]:
    """The pixels of the one image that boxes lie in, for scorers that count them; nothing of a volume, or
    where the image cannot be read: then those scorers say so."""
    if row.answer_type != "box" and not _boxes((row.messages[-1],)):
        return {}
    if len(row.images) != 1 or row.images[0].kind == "volume":
        return {}
    try:
        width, height = look.size_of(row.images[0])
    except ImageError:
        return {}
    return {WIDTH: str(width), HEIGHT: str(height)}


def probabilities(said: Generation) -> dict[str, Any]:
    """Confidence and those of the options; none where a number is NaN (overflow in half precision)."""
    sure = said.confidence
    finite = all(map(math.isfinite, said.option_probs))
    return {
        "confidence": sure if sure is not None and math.isfinite(sure) else None,
        "option_probs": said.option_probs if finite else (),
    }


def _boxes(messages: Sequence[Message]) -> tuple[Box, ...]:
    return tuple(part for message in messages for part in message.content if isinstance(part, Box))
