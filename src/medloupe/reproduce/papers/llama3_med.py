"""Llama3-Med (Chen et al. 2024)."""

from __future__ import annotations

from typing import Final

from medloupe.reproduce.papers.base import (
    CommandAnswer,
    GridAnswer,
    Line,
    NoAnswer,
    PageAnswer,
    Paper,
    PaperTable,
    SettingsAnswer,
    batch_of,
    lines,
    row_of,
    rows_of,
)

PMC: Final = (
    "LLaVA-Med's captions, conversations and figures of PubMed Central: "
    "https://github.com/microsoft/LLaVA-Med; figures come from the articles, and many are gone"
)
FT_20K: Final = (
    "llama3_med_ft_20k: the release v0.1 of https://github.com/standardmodelbio/Llama3-Med, or make "
    "your own: medloupe synthesize"
)
WEIGHTS: Final = (
    "weights of Meta-Llama-3-8B-Instruct (a licence to accept at huggingface.co/meta-llama) and of "
    "apple/DFN5B-CLIP-ViT-H-14-378"
)
VQA: Final = (
    "VQA-RAD (https://osf.io/89kps/), SLAKE (https://www.med-vqa.com/slake) and PathVQA "
    "(https://github.com/UCSD-AI4H/PathVQA), all open"
)
_SIX: Final = tuple(
    f"{name} {kind}" for name in ("VQA-RAD", "SLAKE", "PathVQA") for kind in ("open", "closed")
)
SETS: Final = ("vqa_rad_official", "slake_en", "path_vqa")


def _row(recipe: str) -> tuple[str, ...]:
    return row_of(recipe, "--data DATA", recipe, SETS)


_PAGE: Final = PageAnswer(
    grid="scales", rows=("one scale", "three scales"), tasks=("plane", "presence", "side", "rec")
)
_ASK: Final = (
    *rows_of(SETS),
    *_row("llama3_med"),
    "medloupe sidebyside runs/llama3_med hf:LLAVA_MED MODEL@URL --rows DATA --out page.html",
)
_OTHERS: Final = (
    "GPT-4V, LLaVA and LLaVA-Med: an endpoint with your key, folders of the hub's weights"
)
_MADE: Final = (_OTHERS, PMC, FT_20K, WEIGHTS)


def _hyperparameters(name: str, which: str, stage: str, *, batch: int, rate: float) -> PaperTable:
    """Tables 8 and 9: what is printed, and the recipe's field of the same meaning."""
    at = f"train.stages.{stage}"
    printed = (
        ("Global Batch Size", float(batch), batch_of(stage)),
        ("Learning Rate", rate, f"{at}.learning_rate"),
        ("Epochs", 1.0, f"{at}.epochs"),
        ("Max Length", 2048.0, "processor.max_length"),
        ("Weight Decay", 0.0, f"{at}.weight_decay"),
        ("Warmup Ratio", 0.03, f"{at}.warmup"),
    )
    return PaperTable(
        name=name,
        shows=f"hyperparameters of the {which} stage",
        columns=("value",),
        lines=tuple(Line(label=what, cells=(value,)) for what, value, _ in printed),
        tiny=SettingsAnswer(
            fields=tuple((what, value, "llama3_med", field) for what, value, field in printed)
        ),
        full=("medloupe recipe show llama3_med",),
    )


LLAMA3_MED: Final = Paper(
    name="llama3_med",
    title="Advancing high resolution vision-language models in biomedicine",
    tables=(
        PaperTable(
            name="1",
            shows="images and questions of LLaVA-Med's and Llama3-Med's instruction data, by domain",
            columns=("Chest X-Ray", "CT", "MRI", "Histology", "Pathology"),
            lines=lines(
                """
                LLaVA-Med images | 8060 | 17358 | 16539 | 17030 | 2552
                LLaVA-Med questions | 22839 | 50583 | 47867 | 49504 | 7323
                Llama3-Med images | 40 | 6809 | 6568 | 6643 | 116
                Llama3-Med questions | 212 | 41630 | 40824 | 42084 | 714
                """
            ),
            unit="counts",
            tiny=NoAnswer(why="it counts files that are not here; counting them needs no GPU"),
            full=(
                "medloupe prepare llava_med_instruct --root LLAVA_MED --out data/llava_med",
                "medloupe stats data/llava_med",
            ),
            needs=(PMC, FT_20K),
        ),
        PaperTable(
            name="2",
            shows="images and questions of VQA-RAD, SLAKE and PathVQA, by split",
            columns=(
                *("VQA-RAD train", "test", "SLAKE train", "val", "test "),
                *("PathVQA train", "val ", "test  "),
            ),
            lines=lines(
                """
                images | 313 | 203 | 450 | 96 | 96 | 2599 | 858 | 858
                questions | 1797 | 451 | 4919 | 1053 | 1061 | 19755 | 6279 | 6761
                open | 770 | 179 | 2976 | 631 | 645 | 9949 | 3144 | 3370
                closed | 1027 | 272 | 1943 | 422 | 416 | 9806 | 3135 | 3391
                """
            ),
            unit="counts",
            tiny=CommandAnswer(lines=rows_of(SETS)),
            full=rows_of(SETS),
            needs=(VQA,),
            differs="Every loader holds its copy against these counts and names what is missing.",
        ),
        PaperTable(
            name="3",
            shows="zero-shot and fine-tuned scores on the three sets: open recall, closed accuracy",
            columns=(*_SIX, "Average"),
            lines=lines(
                """
                1 epoch: LLaVA-Med 7B (CLIP) | 28.61 | 56.25 | 70.58 | 54.57 | 11.17 | 59.19 | 46.73
                9 epochs: LLaVA 7B | 50.00 | 65.07 | 78.18 | 63.22 | 7.74 | 63.20 | 54.57
                9 epochs: LLaVA-Med 7B (CLIP) | 66.26 | 80.88 | 82.30 | 84.86 | 37.59 | 91.54 | 73.90
                9 epochs: LLaVA-Med 7B (BioMed CLIP) | 64.75 | 83.09 | 87.11 | 86.78 | 39.60 | 91.09 | 75.40
                9 epochs: LLaVA-Med 13B (CLIP) | 64.58 | 77.94 | 84.97 | 85.58 | 38.82 | 92.39 | 74.05
                zero-shot: LLaVA 7B | 20.74 | 59.19 | 26.82 | 50.24 | 8.74 | 45.65 | 35.23
                zero-shot: LLaVA-Med 7B (CLIP) | 28.23 | 61.40 | 39.17 | 52.16 | 12.30 | 54.05 | 41.22
                zero-shot: LLaVA-Med 7B (BioMed CLIP) | 37.84 | 60.66 | 39.73 | 54.33 | 11.65 | 49.07 | 42.21
                zero-shot: LLaVA-Med 13B (CLIP) | 31.66 | 61.40 | 37.71 | 49.76 | 11.34 | 49.63 | 40.25
                zero-shot: LLaVA-Med 7B (w/ Mistral) | 32.03 | 62.87 | 41.63 | 56.97 | 11.80 | 55.47 | 43.46
                zero-shot: Llama3-Med 8B | 31.20 | 62.87 | 44.34 | 61.06 | 12.88 | 64.97 | 46.22
                """,
                ours={
                    "zero-shot: LLaVA-Med 7B (w/ Mistral)": "one scale",
                    "zero-shot: Llama3-Med 8B": "three scales",
                },
            ),
            unit="%",
            tiny=GridAnswer(grid="scales"),
            full=(
                *rows_of(SETS),
                *_row("llama3_med"),
                *_row("llava_med_mistral"),
            ),
            needs=(PMC, FT_20K, WEIGHTS, VQA),
            differs="One scale or three with one language model: of what tells Llama3-Med from LLaVA-Med "
            "with Mistral, the part that a CPU can train. Printed rows of discriminative methods, which "
            "choose among the training answers, are left out.",
        ),
        PaperTable(
            name="4",
            shows="a chest radiograph, two questions, answered by LLaVA, LLaVA-Med, GPT-4V and Llama3-Med",
            tiny=_PAGE,
            full=_ASK,
            needs=(
                *_MADE,
                "the figure of https://www.ncbi.nlm.nih.gov/pmc/articles/PMC7398722/",
            ),
        ),
        PaperTable(
            name="5",
            shows="a CT of VQA-RAD, one question, answered by GPT-4V and Llama3-Med",
            tiny=_PAGE,
            full=_ASK,
            needs=(*_MADE, VQA),
        ),
        PaperTable(
            name="6",
            shows="the prompts for the teachers, LLaVA-Med's and the paper's own",
            tiny=NoAnswer(
                why="it prints wording; that of ours stands in medloupe.synthesis.prompts, told apart in "
                "docs/synthesis.md"
            ),
        ),
        PaperTable(
            name="7",
            shows="one caption with its mentions, and the conversation that a teacher made of it",
            tiny=CommandAnswer(
                lines=(
                    "medloupe prepare covid_chestxray --root COPY --out data/covid",
                    "medloupe synthesize covid.yaml --out runs/covid --yes",
                )
            ),
            full=("medloupe synthesize pmc.yaml --out runs/pmc",),
            differs="docs/synthesis.md has both files; runs/covid/samples.html shows sources beside what was "
            "made of them.",
            needs=("a teacher: an endpoint with your key, or the small embedded model",),
        ),
        _hyperparameters("8", "first", "align", batch=256, rate=1e-3),
        _hyperparameters("9", "second", "instruct", batch=128, rate=2e-5),
        PaperTable(
            name="10",
            shows="a slide of PathVQA, one question, answered by GPT-4V and Llama3-Med",
            tiny=_PAGE,
            full=_ASK,
            needs=(*_MADE, VQA),
        ),
        PaperTable(
            name="fig1",
            shows="one image at three scales, joined along channels",
            tiny=CommandAnswer(lines=("medloupe plan llama3_med",)),
            full=("medloupe plan llama3_med",),
        ),
        PaperTable(
            name="fig2",
            shows="what trains in the second stage",
            tiny=CommandAnswer(lines=("medloupe plan llama3_med",)),
            full=("medloupe plan llama3_med",),
        ),
    ),
)
