"""LiteGPT (Le-Duc et al. 2024)."""

from __future__ import annotations

from typing import Final

from medloupe.evaluate.benchmarks.base import PROSE
from medloupe.reproduce.grids.litegpt import BOTH, LARGER, SMALLER
from medloupe.reproduce.papers import litegpt_reports as reports
from medloupe.reproduce.papers.base import (
    Column,
    CommandAnswer,
    GridAnswer,
    NoAnswer,
    PageAnswer,
    Paper,
    PaperTable,
    ScoredAnswer,
    lines,
    row_of,
    rows_of,
)
from medloupe.reproduce.papers.litegpt_runs import GRID
from medloupe.types import AnswerType

VINDR: Final = (
    "VinDr-CXR 1.0.0: https://physionet.org/content/vindr-cxr/1.0.0/, a PhysioNet account with CITI "
    "training and a signed data use agreement"
)
WEIGHTS: Final = (
    "weights of Llama-2-7b-chat-hf (a licence to accept at huggingface.co/meta-llama), of BiomedCLIP and "
    "PubMedCLIP, and MiniGPT-v2's third stage, a file that its authors share by link"
)
MODELS: Final = {
    "BiomedCLIP - Llama 2": LARGER,
    "PubMedCLIP - Llama 2": SMALLER,
    "BiomedCLIP + PubMedCLIP - Llama 2": BOTH,
}
RECIPES: Final = {
    "litegpt": "BiomedCLIP + PubMedCLIP",
    "litegpt_biomedclip": "BiomedCLIP",
    "litegpt_pubmedclip": "PubMedCLIP",
}
TEXT: Final = (
    *("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-LSUM"),
    *("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "CIDEr"),
)
_SOURCE: Final = "--root VINDR_CXR"
_REPORT: Final = ("Precision", "Recall", "F1-score", "Support")
_NO_PRETRAINING: Final = "MiniGPT-v2, the paper's fourth row, has no small stand-in."


def _full(*benchmarks: str, names: tuple[str, ...] = tuple(RECIPES)) -> tuple[str, ...]:
    found = list(rows_of(benchmarks))
    for name in names:
        found += row_of(name, _SOURCE, name, benchmarks)
    return tuple(found)


_PAGE: Final = (
    *_full("vindr_cxr_findings", names=("litegpt",)),
    "medloupe sidebyside runs/litegpt --rows data/vindr_cxr_findings --out page.html",
)


def _text(name: str, task: str, answer_type: AnswerType, table: str, benchmark: str) -> PaperTable:
    """Tables 4 and 5."""
    return PaperTable(
        name=name,
        shows=f"the text of the {task} task beside the truth's, boxes left out",
        columns=TEXT,
        lines=lines(table, ours=MODELS),
        unit="%, CIDEr as it is",
        tiny=ScoredAnswer(
            grid=GRID,
            columns=tuple(
                Column(title=title, scorer=scorer, answer_type=answer_type, of=title)
                for title, scorer in zip(TEXT, PROSE, strict=True)
            ),
        ),
        full=_full(benchmark),
        needs=(VINDR, WEIGHTS),
        differs=f"CIDEr, 0 to 10 in the paper, is a tenth of itself, x 100. {_NO_PRETRAINING}",
    )


def _report(name: str, row: str, table: str, *, local: bool) -> PaperTable:
    """Tables 8 to 13: one model, a line for each label."""
    model = next(model for model, ours in MODELS.items() if ours == row)
    recipe = next(key for key, about in RECIPES.items() if f"{about} - Llama 2" == model)
    kind: AnswerType = "open" if local else "closed"
    return PaperTable(
        name=name,
        shows=f"{'22 local' if local else '6 global'} labels one by one, {model}",
        columns=_REPORT,
        lines=lines(table),
        unit="share; support is a count",
        tiny=ScoredAnswer(
            grid=GRID,
            parts=row,
            columns=tuple(
                Column(
                    title=figure,
                    scorer=f"label_{figure}_macro.{'litegpt' if local else 'strict'}",
                    answer_type=kind,
                    of=title,
                )
                for figure, title in zip(("precision", "recall", "f1"), _REPORT, strict=False)
            ),
        ),
        full=_full("vindr_cxr_findings" if local else "vindr_cxr_diagnosis", names=(recipe,)),
        needs=(VINDR, WEIGHTS),
        differs="Kinds of drawn lesion for findings."
        if local
        else "Four diagnoses of which one is right for six of which several may be.",
    )


LITEGPT: Final = Paper(
    name="litegpt",
    title="LiteGPT: large vision-language model for joint chest X-ray localization and classification",
    tables=(
        PaperTable(
            name="1",
            shows="finding or no finding",
            columns=(
                *("Precision Finding", "Precision No Finding", "Recall Finding"),
                *("Recall No Finding", "F1 Finding", "F1 No Finding"),
            ),
            lines=lines(
                """
                MiniGPT-v2 | 73 | 83 | 59 | 90 | 66 | 86
                BiomedCLIP - Llama 2 | 88 | 82 | 54 | 97 | 67 | 89
                PubMedCLIP - Llama 2 | 73 | 80 | 49 | 92 | 59 | 85
                BiomedCLIP + PubMedCLIP - Llama 2 | 84 | 83 | 59 | 95 | 70 | 89
                """,
                ours=MODELS,
            ),
            unit="%",
            tiny=ScoredAnswer(
                grid=GRID,
                columns=tuple(
                    Column(
                        title=f"{figure} {shown}",
                        scorer=f"label_{figure}_macro.strict",
                        answer_type="closed",
                        stratum=f"finding = {label}",
                        of=f"{title} {shown}",
                    )
                    for figure, title in (
                        ("precision", "Precision"),
                        ("recall", "Recall"),
                        ("f1", "F1"),
                    )
                    for shown, label in (("Finding", "Finding"), ("No Finding", "normal"))
                ),
            ),
            full=_full("vindr_cxr_diagnosis"),
            needs=(VINDR, WEIGHTS),
            differs=f'The diagnosis "normal" stands for "No finding". {_NO_PRETRAINING}',
        ),
        PaperTable(
            name="2",
            shows="F1 of all labels, beside three published systems",
            columns=("F1-score",),
            lines=lines(
                """
                DeViDe | 41.28
                KAD | 40.22
                DWARF | 47.05
                MiniGPT-v2 | 53
                BiomedCLIP - Llama 2 | 59
                PubMedCLIP - Llama 2 | 55
                BiomedCLIP + PubMedCLIP - Llama 2 | 60
                """,
                ours=MODELS,
            ),
            unit="%",
            tiny=ScoredAnswer(
                grid=GRID,
                columns=(
                    Column(
                        title="micro-F1, findings",
                        scorer="label_f1_micro.litegpt",
                        answer_type="open",
                        of="F1-score",
                    ),
                    Column(
                        title="micro-F1, diagnoses",
                        scorer="label_f1_micro.strict",
                        answer_type="closed",
                        of="F1-score",
                    ),
                ),
            ),
            full=_full("vindr_cxr_findings", "vindr_cxr_diagnosis"),
            needs=(VINDR, WEIGHTS),
            differs="The paper does not say which average its F1 is: 60, 59 and 55 fit micro-F1 over the 28 "
            "pooled labels of Tables 8 to 13. Here findings and diagnoses stand apart.",
        ),
        PaperTable(
            name="3",
            shows="boxes: accuracy at three thresholds of IoU",
            columns=("Accuracy@0.3", "Accuracy@0.4", "Accuracy@0.5"),
            lines=lines(
                """
                MiniGPT-v2 | 5.9 | 5.01 | 3.38
                BiomedCLIP - Llama 2 | 10.72 | 9.01 | 6.75
                PubMedCLIP - Llama 2 | 6.23 | 4.38 | 2.86
                BiomedCLIP + PubMedCLIP - Llama 2 | 12.54 | 10.5 | 8.12
                """,
                ours=MODELS,
            ),
            unit="%",
            tiny=ScoredAnswer(
                grid=GRID,
                columns=tuple(
                    Column(
                        title=f"accuracy@{iou}, {flavour}",
                        scorer=f"localisation_{iou}.{flavour}",
                        answer_type="open",
                        of=f"Accuracy@{iou}",
                    )
                    for flavour in ("litegpt_paper", "litegpt", "strict")
                    for iou in ("0.3", "0.4", "0.5")
                ),
            ),
            full=_full("vindr_cxr_findings"),
            needs=(VINDR, WEIGHTS),
            differs="The grid `encoders` asks the same of boxes alone: medloupe reproduce encoders.",
        ),
        _text(
            "4",
            "localisation",
            "open",
            """
            MiniGPT-v2 | 42.85 | 35.37 | 42.28 | 42.27 | 21.84 | 20.6 | 19.4 | 18.17 | 61.54 | 0.29
            BiomedCLIP - Llama 2|49.51|38.77|48.5|48.46|32.76|30.56|28.62|26.71|68.73|0.46
            PubMedCLIP - Llama 2 | 22.3 | 14.31 | 21.58 | 21.6 | 14.16 | 12.95 | 11.95 | 10.98 | 34 | 0.1
            BiomedCLIP + PubMedCLIP - Llama 2|50.1|40.58|48.75|48.74|28.96|27.02|25.37|23.74|61.92|0.56
            """,
            "vindr_cxr_findings",
        ),
        _text(
            "5",
            "classification",
            "closed",
            """
            MiniGPT-v2 | 94.48 | 93.35 | 94.47 | 94.47 | 94.22 | 92.32 | 91.15 | 90.05 | 93.91 | 7.26
            BiomedCLIP - Llama 2|95.18|94.14|95.18|95.18|94.43|92.69|91.61|90.59|94.8|7.57
            PubMedCLIP - Llama 2|93.31|91.80|93.31|93.31|88.59|86.33|84.82|83.34|92.58|7.06
            BiomedCLIP + PubMedCLIP - Llama 2|95.12|94.08|95.12|95.12|94.45|92.70|91.60|90.56|94.74|7.52
            """,
            "vindr_cxr_diagnosis",
        ),
        PaperTable(
            name="6",
            shows="the task's word in the prompt",
            columns=("Accuracy@0.3", "Accuracy@0.4", "Accuracy@0.5"),
            lines=lines(
                """
                [grounding] | 11.98 | 10.31 | 8.04
                [identify] | 12.54 | 10.5 | 8.12
                """,
                ours={"[grounding]": "[grounding]", "[identify]": "[identify]"},
            ),
            unit="%",
            tiny=GridAnswer(grid="identifiers"),
            full=(
                *_full("vindr_cxr_findings", names=("litegpt",)),
                *rows_of(("vindr_cxr_grounding",)),
                *row_of(
                    "litegpt",
                    _SOURCE,
                    "litegpt_grounding",
                    ("vindr_cxr_grounding",),
                    ("data.litegpt_tag=grounding",),
                ),
            ),
            needs=(VINDR, WEIGHTS),
            differs="Mean IoU of one box a question, for accuracy at three thresholds.",
        ),
        PaperTable(
            name="7",
            shows="two radiographs, findings with boxes, answer and truth",
            tiny=PageAnswer(grid=GRID, rows=(BOTH, LARGER, SMALLER), tasks=("findings",)),
            full=_PAGE,
            needs=(VINDR, WEIGHTS),
        ),
        *(
            _report(number, row, table, local=int(number) < 11)
            for number, row, table in (
                ("8", BOTH, reports.REPORT_8),
                ("9", LARGER, reports.REPORT_9),
                ("10", SMALLER, reports.REPORT_10),
                ("11", BOTH, reports.REPORT_11),
                ("12", LARGER, reports.REPORT_12),
                ("13", SMALLER, reports.REPORT_13),
            )
        ),
        PaperTable(
            name="fig1",
            shows="the architecture",
            tiny=CommandAnswer(lines=("medloupe plan litegpt",)),
            full=("medloupe plan litegpt",),
        ),
        PaperTable(
            name="fig2",
            shows="how often each of the 28 labels occurs",
            tiny=NoAnswer(why="it counts VinDr-CXR; counting needs no GPU, but the data"),
            full=(
                "medloupe prepare vindr_cxr --root VINDR_CXR --out data/vindr_cxr",
                "medloupe stats data/vindr_cxr",
            ),
            needs=(VINDR,),
        ),
        PaperTable(
            name="fig3",
            shows="the boxes of Table 7, drawn",
            tiny=PageAnswer(grid=GRID, rows=(BOTH, LARGER, SMALLER), tasks=("findings",)),
            full=_PAGE,
            needs=(VINDR, WEIGHTS),
        ),
    ),
)
