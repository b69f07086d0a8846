"""HiA (Ding et al., MICCAI 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from medloupe.reproduce.grids.hia import BASE, HIA, TUNED, WITHOUT_HR, WITHOUT_IA
from medloupe.reproduce.papers.base import (
    CommandAnswer,
    GridAnswer,
    NoAnswer,
    PageAnswer,
    Paper,
    PaperTable,
    lines,
    row_of,
    rows_of,
    with_settings,
)

CHILI: Final = (
    "Chili-Joint: 14K Chinese image-text pairs of one hospital, not public. Ask the authors (Ding et al.), "
    "or give your own data in its form: medloupe prepare chili_joint --root FOLDER"
)
QILIN: Final = (
    "Qilin-Med-VL 13B: https://github.com/williamliujl/Qilin-Med-VL; medloupe import makes "
    "models/qilin_med_vl of it"
)
TASKS: Final = ("Description", "Disease", "Location", "Comparative")
EIGHT: Final = tuple(f"{task} {score}" for task in TASKS for score in ("B4", "M"))
_PREPARE: Final = rows_of(("chili_joint",))
SIDES: Final = (448, 560, 672, 784, 896)


def base_at(side: int) -> tuple[str, ...]:
    """What makes the published recipe its base, fine-tuned, that reads `side` pixels itself."""
    return (
        "model.adapter=null",
        f"model.encoder.image_size={side}",
        "train.stages.tune.trainable=[connector, language_model]",
        "processor.max_length=8192",
    )


def _row(run: str, *changes: str) -> tuple[str, ...]:
    """The published recipe with fields changed."""
    return row_of("hia", "--root CHILI_JOINT", run, ("chili_joint",), changes)


def _rows(run: str, field: str, values: Sequence[int]) -> tuple[str, ...]:
    """One of each value of a field."""
    return tuple(line for value in values for line in _row(f"{run}_{value}", f"{field}={value}"))


HIA_PAPER: Final = Paper(
    name="hia",
    title="HiA: towards Chinese multimodal LLMs for comparative high-resolution joint diagnosis",
    tables=(
        PaperTable(
            name="1",
            shows="four bases, each alone and with HiA, on Chili-Joint",
            columns=(*EIGHT, "AVG"),
            lines=lines(
                """
                MiniGPT-4 | 38.5 | 28.7 | 36.7 | 23.6 | 29.2 | 18.8 | 32.6 | 20.9 | 28.6
                MiniGPT-4 + HiA | 41.2 | 30.4 | 44.5 | 31.3 | 36.7 | 23.8 | 39.5 | 26.0 | 34.2
                LLaVA-1.5 | 39.6 | 29.9 | 37.5 | 24.2 | 30.1 | 18.9 | 33.8 | 21.3 | 29.4
                LLaVA-1.5 + HiA | 43.1 | 31.1 | 44.7 | 34.9 | 37.5 | 24.2 | 41.3 | 28.8 | 35.7
                LLaVA-Med | 48.4 | 34.3 | 42.7 | 30.7 | 35.2 | 23.8 | 36.9 | 28.5 | 35.1
                LLaVA-Med + HiA | 53.2 | 37.2 | 47.8 | 36.3 | 40.8 | 29.0 | 39.2 | 32.4 | 39.5
                Qilin-Med-VL | 51.4 | 38.5 | 44.6 | 33.2 | 38.7 | 26.8 | 37.8 | 30.7 | 37.7
                Qilin-Med-VL + HiA | 54.8 | 40.6 | 49.5 | 38.6 | 43.9 | 28.0 | 42.5 | 33.5 | 41.4
                """,
                ours={"Qilin-Med-VL": TUNED, "Qilin-Med-VL + HiA": HIA},
            ),
            unit="BLEU-4 and METEOR, x 100",
            tiny=GridAnswer(grid="hia"),
            full=(*_PREPARE, *_row("base", *base_at(336)), *_row("hia")),
            needs=(CHILI, QILIN),
            differs="Two bases instead of four, and a row that the paper lacks: LoRA of as many parameters.",
        ),
        PaperTable(
            name="2",
            shows="HiA without the question (IA), and without the larger view (HR)",
            columns=TASKS,
            lines=lines(
                """
                Full | 54.8 | 49.5 | 43.9 | 42.5
                w/o IA | 53.1 | 45.6 | 38.9 | 38.8
                w/o HR | 51.6 | 44.8 | 42.3 | 41.6
                """,
                ours={"Full": HIA, "w/o IA": WITHOUT_IA, "w/o HR": WITHOUT_HR},
            ),
            unit="BLEU-4, x 100",
            tiny=GridAnswer(grid="hia_parts"),
            full=(
                *_PREPARE,
                *_row("hia"),
                *_row("without_ia", "model.adapter.instruction_aware=false"),
                *_row("without_hr", "model.adapter.high_resolution=false"),
            ),
            needs=(CHILI, QILIN),
        ),
        PaperTable(
            name="3",
            shows="memory, FLOPs and average score at five sizes of the larger view, baseline / HiA",
            columns=("GB base", "GB HiA", "TFLOPs base", "TFLOPs HiA", "AVG base", "AVG HiA"),
            lines=lines(
                """
                448 | 30.8 | 29.6 | 46.8 | 15.8 | 37.7 | 39.6
                560 | 31.3 | 29.9 | 85.5 | 16.2 | 38.0 | 40.8
                672 | - | 30.1 | 105 | 16.5 | - | 41.4
                784 | - | 30.3 | 162 | 16.7 | - | 41.5
                896 | - | 30.4 | 208 | 16.8 | - | 41.5
                """
            ),
            unit="GB, TFLOPs, mean of eight scores",
            tiny=GridAnswer(grid="hia_resolution"),
            full=(
                *(
                    line
                    for side in SIDES
                    for line in (
                        with_settings("medloupe plan hia", base_at(side)),
                        f"medloupe plan hia --set model.adapter.encoder.image_size={side}",
                    )
                ),
                *_PREPARE,
                *_row("base_448", *base_at(448)),
                *_row("base_560", *base_at(560)),
                *_rows("side", "model.adapter.encoder.image_size", SIDES),
            ),
            needs=(CHILI, QILIN),
            differs="96, 144 and 192 pixels for 448, 560 and 672. FLOPs of the real 13B model are counted "
            "without weights by the plan commands, on any CPU.",
        ),
        PaperTable(
            name="4a",
            shows="how many learnable queries",
            columns=TASKS,
            lines=lines(
                """
                M = 128 | 52.6 | 46.9 | 41.3 | 40.4
                M = 256 | 54.8 | 49.5 | 43.9 | 42.5
                M = 512 | 54.6 | 49.5 | 44.0 | 42.0
                """,
                ours={"M = 128": "M = 16", "M = 256": HIA, "M = 512": "M = 64"},
            ),
            unit="BLEU-4, x 100",
            tiny=GridAnswer(grid="hia_queries"),
            full=(*_PREPARE, *_rows("queries", "model.adapter.queries", (128, 256, 512))),
            needs=(CHILI, QILIN),
            differs="16, 32 and 64 queries for 128, 256 and 512.",
        ),
        PaperTable(
            name="4b",
            shows="after how many layers",
            columns=TASKS,
            lines=lines(
                """
                n = 1 | 52.1 | 45.8 | 41.2 | 39.9
                n = 2 | 54.8 | 49.5 | 43.9 | 42.5
                n = 3 | 54.2 | 49.0 | 43.4 | 41.8
                """,
                ours={"n = 1": "n = 1", "n = 2": HIA, "n = 3": "n = 3"},
            ),
            unit="BLEU-4, x 100",
            tiny=GridAnswer(grid="hia_layers"),
            full=(*_PREPARE, *_rows("layers", "model.adapter.layers", (1, 2, 3))),
            needs=(CHILI, QILIN),
        ),
        PaperTable(
            name="fig1",
            shows="a small lesion, and two examinations compared, answered by Qilin-Med-VL and by HiA",
            tiny=PageAnswer(grid="hia_parts", rows=(BASE, HIA), tasks=("diagnosis", "change")),
            full=(
                *_PREPARE,
                *_row("hia"),
                "medloupe sidebyside models/qilin_med_vl runs/hia --rows data/chili_joint "
                "--out page.html",
            ),
            needs=(CHILI, QILIN),
        ),
        PaperTable(
            name="fig2",
            shows="the architecture",
            tiny=CommandAnswer(lines=("medloupe plan hia",)),
            full=("medloupe plan hia",),
        ),
        PaperTable(
            name="fig3",
            shows="proportions of the four tasks, and an example of each",
            tiny=NoAnswer(
                why="it describes Chili-Joint; the figure prints no proportions as numbers"
            ),
            full=(*_PREPARE, "medloupe stats data/chili_joint"),
            needs=(CHILI,),
        ),
    ),
)
