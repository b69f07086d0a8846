"""Ask a model every row of a benchmark, with and without looking, and keep all that was said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from medloupe.config import Config
from medloupe.data.dataset import Dataset, DatasetCard, Progress
from medloupe.evaluate.benchmark import Benchmark, digest_rows
from medloupe.evaluate.majority import MAJORITY, MajorityAnswers
from medloupe.evaluate.metrics import score_rows, summarise
from medloupe.evaluate.probes import Look, Probe
from medloupe.evaluate.probes.base import limited
from medloupe.evaluate.probes.swapped import Swapped
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


class Predictor(Protocol):
    """Answers conversations that end with a question: one `Generation` each, in their order."""

    def __call__(
        self, conversations: Sequence[Conversation], *, progress: Progress
    ) -> list[Generation]: ...


def run_benchmark(
    benchmark: Benchmark,
    dataset: Dataset,
    predict: Predictor,
    *,
    manifest: Mapping[str, Any],
    seed: int,
    probes: Sequence[Probe] = (Swapped(),),
    look: Look | None = None,
    progress: Progress | None = None,
) -> EvalLog:
    """Predict, ask the probes, score and summarise.

    `manifest` (JSON values: config, code revision, packages, ...) is kept beside what the log needs
    to be scored again. Each of the `probes` is another pass over rows where it applies, and those that
    change images `look` at them; the most frequent training answer is compared in any case. A predictor
    should decode at most `benchmark.max_new_tokens`, greedily.

    Raises:
        DataError: no rows, an unknown task, a row without an answer, a repeated id.
    """
    report = progress or _silent
    selected = benchmark.select(dataset)
    said = _predict(predict, [benchmark.ask(row) for row in selected], report)
    others = _majority(dataset, selected)
    for probe in probes:
        for index, answer in _probed(probe, benchmark, selected, predict, seed, look, report):
            others[index][probe.name] = answer
    rows = tuple(
        _row(row, own, other) for row, own, other in zip(selected, said, others, strict=True)
    )
    kept = {
        **manifest,
        "benchmark": benchmark.to_dict(),
        "dataset": dataset.card.to_dict(),
        "rows_digest": digest_rows(selected),
        "evaluation_seed": seed,
        "seconds": round(sum(generation.seconds for generation in said), 3),
    }
    log = EvalLog(
        benchmark=benchmark.name,
        version=benchmark.version(kept["rows_digest"]),
        manifest=kept,
        rows=rows,
    )
    return rescore(log, benchmark)


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


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _predict(
    predict: Predictor, asked: Sequence[Conversation], progress: Progress
) -> list[Generation]:
    said = predict(asked, progress=progress)
    assert len(said) == len(asked), f"{len(said)} generations for {len(asked)} conversations"
    return said


def _majority(dataset: Dataset, rows: Sequence[Conversation]) -> list[dict[Arm, Answer]]:
    """Per row, the most frequent training answer, where training has such questions."""
    constant = MajorityAnswers(dataset.split("train"))
    return [
        {} if (text := constant.answer(row)) is None else {MAJORITY: Answer(text=text)}
        for row in rows
    ]


def _probed(
    probe: Probe,
    benchmark: Benchmark,
    rows: Sequence[Conversation],
    predict: Predictor,
    seed: int,
    look: Look | None,
    progress: Progress,
) -> Iterator[tuple[int, Answer]]:
    """The answers under a probe, each with the number of its row."""
    changed = limited(probe.ask(rows, seed=seed, look=look or _Blindfold()), probe.limit)
    if not changed:
        return
    said = _predict(predict, [benchmark.ask(row) for _, row in changed], progress)
    for (index, row), generation in zip(changed, said, strict=True):
        yield index, _answer(rows[index], row, generation)


class _Blindfold:
    """Where nobody can look at images: probes that must know more than a reference do not apply."""

    def size_of(self, ref: ImageRef) -> tuple[int, ...]:
        raise KeyError(ref.uri)

    def mirrors(self, ref: ImageRef) -> bool:
        del ref
        return False


def _answer(row: Conversation, asked: Conversation, said: Generation) -> Answer:
    """What was said under a probe, with the question and the truth where they are not the row's."""
    assert asked.answer is not None
    assert row.answer is not None
    changes: dict[str, Any] = {}
    if asked.question != row.question:
        changes["question"] = asked.question
    if asked.answer != row.answer:
        changes["truth"] = asked.answer.text.strip()
        changes["truth_boxes"] = _boxes((asked.answer,))
    return Answer(
        text=said.text,
        boxes=said.boxes,
        finish_reason=said.finish_reason,
        confidence=said.confidence,
        option_probs=said.option_probs,
        **changes,
    )


def _row(row: Conversation, said: Generation, others: dict[Arm, Answer]) -> EvalRow:
    assert row.answer is not None  # Benchmark.select refuses such rows
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
        prediction=said.text,
        predicted_boxes=said.boxes,
        confidence=said.confidence,
        option_probs=said.option_probs,
        finish_reason=said.finish_reason,
        others=others,
        attributes=row.attributes,
    )


def _boxes(messages: Sequence[Message]) -> tuple[Box, ...]:
    return tuple(part for message in messages for part in message.content if isinstance(part, Box))
