"""What a name stands for: a data set's config, a `Benchmark` on it, and where both come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import Field

from medloupe.config import Config
from medloupe.data.dataset import DatasetCard
from medloupe.data.datasets.base import DatasetConfig
from medloupe.errors import ConfigError
from medloupe.evaluate.benchmark import Benchmark, Stratum
from medloupe.evaluate.scorers.base import Scorer
from medloupe.types import AnswerType, Split

CREDENTIALED: Final = (
    "a PhysioNet account with CITI training and a signed data use agreement; {url}. The agreement "
    "forbids sending the data to services that keep them"
)
Scorers: TypeAlias = Mapping[AnswerType, Sequence[str | Mapping[str, Any]]]
"""Of each answer type, by name or as a config; the first one headlines."""

CHOICE: Final = ("closed_accuracy.strict", "closed_accuracy.llava_med", "exact_match")
BOXES: Final = ("box_iou", "box_hit_0.5")
STRICT_AND_LLAVA_MED: Final[Mapping[AnswerType, tuple[str, ...]]] = {
    "closed": CHOICE,
    "open": ("open_recall.strict", "open_recall.llava_med", "token_f1", "exact_match"),
    "box": BOXES,
}
"""`llava_med` is what LLaVA-Med and Llama3-Med print."""
REPORT: Final = (
    "bleu_4.sacrebleu",
    "bleu_1.sacrebleu",
    "bleu_1.nltk",
    "meteor.exact_stem",
    "rouge_l.rouge_score",
    "cider.coco",
)
"""Reports and captions; MedM-VL prints BLEU-1."""
REC: Final = ("rec_iou", "rec_accuracy_0.5", *BOXES)
REG: Final = ("bleu_1.nltk", "bleu_1.sacrebleu", "token_f1", "exact_match")
"""What a box holds, in few words."""
VQA_MEDM_VL: Final[Mapping[AnswerType, tuple[str, ...]]] = {
    "closed": (*CHOICE, "bleu_1.nltk"),
    "open": (*STRICT_AND_LLAVA_MED["open"], "bleu_1.nltk"),
}
"""MedM-VL prints the mean BLEU-1 of every answer, closed ones too."""
CHINESE_TEXT: Final = ("bleu_4.sacrebleu", "bleu_4.coco", "bleu_4.nltk", "meteor.exact_stem")
"""HiA prints BLEU-4 and METEOR; Chinese is counted by characters."""
CLASSES: Final[Mapping[AnswerType, tuple[str, ...]]] = {
    "closed": (
        *CHOICE,
        "label_f1_macro.strict",
        "auroc.macro",
        "auprc.macro",
        "brier.multi_class",
        "ece.options",
        "aurc.options",
    ),
    "open": ("label_f1_macro.strict", "label_f1_micro.strict", "exact_match"),
}
"""One label of several, or (an open answer) any number of them."""
AVERAGES: Final = ("micro", "macro", "weighted", "samples")
PROSE: Final = (
    "rouge_1.rouge_score",
    "rouge_2.rouge_score",
    "rouge_l.rouge_score",
    "rouge_lsum.rouge_score",
    *(f"bleu_{order}.coco" for order in (1, 2, 3, 4)),
    "meteor.exact_stem",
    "cider.coco",
)
"""The columns of LiteGPT's Tables 4 and 5."""
LOCALISATION: Final = tuple(
    f"localisation_{iou}.{flavour}"
    for flavour in ("strict", "litegpt", "litegpt_paper")
    for iou in ("0.5", "0.4", "0.3")
)


def labelled(labels: Sequence[str], negative: str) -> tuple[dict[str, Any], ...]:
    """LiteGPT's classification reports (Tables 8 to 13), strict micro-F1 first; `negative` adds "Finding"
    beside it (Table 1)."""
    return (
        *_label_scorers(("micro", "macro"), "strict", labels, negative),
        *_label_scorers(AVERAGES, "litegpt", labels, negative),
    )


def strictly_labelled(negative: str) -> tuple[dict[str, Any], ...]:
    """The options of each row as labels, strict; beside `grounded` in one benchmark, where a scorer has
    one config."""
    return _label_scorers(("micro", "macro"), "strict", (), negative)


def _label_scorers(
    averages: Sequence[str], flavour: str, labels: Sequence[str], negative: str
) -> tuple[dict[str, Any], ...]:
    figures = ("f1", "precision", "recall")
    return tuple(
        {"name": f"label_{figure}_{average}.{flavour}", "labels": labels, "negative": negative}
        for figure in figures
        for average in averages
    )


def grounded(labels: Sequence[str]) -> tuple[str | dict[str, Any], ...]:
    """Findings by name, each with its box (LiteGPT's Tables 3, 4, 6 and 8 to 10)."""
    ranked = ("map_0.5.coco", "froc.iou_0.5")
    reports = _label_scorers(AVERAGES, "litegpt", labels, "")
    return (*LOCALISATION, *BOXES, *ranked, *reports, *PROSE)


class NamedBenchmark(Config):
    """A frozen benchmark. `release` is raised with every change of `data` or `benchmark`.

    `source` is the place in the paper, `get` how to come by the data. `published` are the questions of the
    whole published part, None where nobody prints them; it is shown, and nothing is held against it. `note`
    says what a reader of the score must know.
    """

    release: int = Field(default=1, ge=1)
    title: str = Field(min_length=1)
    data: DatasetConfig
    benchmark: Benchmark
    source: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    get: str = Field(min_length=1)
    published: int | None = Field(default=None, ge=1)
    note: str = ""

    @property
    def name(self) -> str:
        return self.benchmark.name

    def refuse_others(self, card: DatasetCard, data: Path) -> None:
        """Refuse another data set's rows: a score of them would bear this benchmark's name.

        Raises:
            ConfigError: the data set in `data` is not the one that was frozen.
        """
        if card.name != self.data.name:
            raise ConfigError(
                f"the benchmark {self.name!r} asks rows of the data set {self.data.name!r}, "
                f"this is {card.name!r}",
                file=str(data),
                field="benchmark",
                remedy=f"Make its rows with 'medloupe benchmarks prepare {self.name}' and name them with "
                "--data; without --benchmark any data set can be asked",
            )

    def spec(self) -> str:
        """16 hex digits over data config, rows' choice, prompt, decoding, scorers and strata."""
        text = f"{self.release}:{self.data.fingerprint()}:{self.benchmark.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def scored(
    name: str,
    scorers: Scorers,
    *,
    split: Split = "test",
    tasks: Sequence[str] = (),
    instruction: str = "",
    max_new_tokens: int = 64,
    strata: Sequence[Stratum] = (),
    limit: int | None = None,
) -> Benchmark:
    """A `Benchmark` from scorers' names."""
    return Benchmark(
        name=name,
        split=split,
        tasks=tuple(tasks),
        instruction=instruction,
        max_new_tokens=max_new_tokens,
        limit=limit,
        scorers={
            kind: tuple(Scorer.parse(one) for one in chosen) for kind, chosen in scorers.items()
        },
        strata=tuple(strata),
    )


def by(*attributes: str) -> tuple[Stratum, ...]:
    """Strata by the value of each attribute."""
    return tuple(Stratum(attribute=attribute) for attribute in attributes)
