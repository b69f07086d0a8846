"""Ask a model every row of a benchmark, with and without looking, and keep all that was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from medloupe.config import Config
from medloupe.data.dataset import Dataset, DatasetCard, Progress
from medloupe.evaluate.benchmark import Benchmark, digest_rows
from medloupe.evaluate.blind import MajorityAnswers, swap_images
from medloupe.evaluate.metrics import score_rows, summarise
from medloupe.types import Box, Conversation, EvalLog, EvalRow, Generation, Message


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
    blind: bool = True,
    progress: Progress | None = None,
) -> EvalLog:
    """Predict, compare with not looking, score and summarise.

    `manifest` (JSON values: config, code revision, packages, ...) is kept beside what the log needs
    to be scored again. `blind=False` saves the second pass; the most frequent training answer is
    compared either way. A predictor should decode at most `benchmark.max_new_tokens`, greedily.

    Raises:
        DataError: no rows, an unknown task, a row without an answer, a repeated id.
    """
    report = progress or _silent
    selected = benchmark.select(dataset)
    asked = [benchmark.ask(row) for row in selected]
    said = _predict(predict, asked, report)
    unseen = swap_images(asked, seed=seed) if blind else [None] * len(asked)
    unseen_said = _predict_some(predict, unseen, report)
    majority = MajorityAnswers(dataset.split("train"))
    rows = tuple(
        _row(row, own, other, majority.answer(row))
        for row, own, other in zip(selected, said, unseen_said, strict=True)
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


def _predict_some(
    predict: Predictor, asked: Sequence[Conversation | None], progress: Progress
) -> list[Generation | None]:
    """Predictions for the conversations that are there, None in the other places."""
    present = [row for row in asked if row is not None]
    said = iter(_predict(predict, present, progress) if present else [])
    return [None if row is None else next(said) for row in asked]


def _row(
    row: Conversation, said: Generation, blind: Generation | None, majority: str | None
) -> EvalRow:
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
        prediction=said.text,
        predicted_boxes=said.boxes,
        blind_prediction=None if blind is None else blind.text,
        blind_boxes=() if blind is None else blind.boxes,
        majority_prediction=majority,
        finish_reason=said.finish_reason,
        attributes=row.attributes,
    )


def _boxes(messages: Sequence[Message]) -> tuple[Box, ...]:
    return tuple(part for message in messages for part in message.content if isinstance(part, Box))
