"""MedM-VL (Shi et al. 2025)."""

from __future__ import annotations

from typing import Final

from medloupe.reproduce.papers.base import (
    CommandAnswer,
    GridAnswer,
    Paper,
    PaperTable,
    SettingsAnswer,
    batch_of,
    lines,
    row_of,
    rows_of,
)

SIX: Final = ("MedMNIST", "MedPix", "MIMIC-CXR", "PathVQA", "SAMed", "SLAKE")
DATA_2D: Final = (
    "MIMIC-CXR (https://physionet.org/content/mimic-cxr-jpg/: PhysioNet account, CITI training, signed "
    "agreement); open: MedMNIST v2 (https://doi.org/10.5281/zenodo.10519652), MPx-Single "
    "(https://huggingface.co/datasets/chaoyi-wu/RadFM_data_csv and MedPix), PathVQA, SLAKE, SA-Med2D-20M "
    "(https://huggingface.co/datasets/OpenGVLab/SA-Med2D-20M), LLaVA-Med 60K, LLaVA-Pretrain 558K"
)
CT_RATE: Final = (
    "CT-RATE: https://huggingface.co/datasets/ibrahimhamamci/CT-RATE, terms to agree to; 50K volumes, "
    "about 12 TB, of which a part can be taken"
)
WEIGHTS: Final = (
    "weights of Qwen2.5-3B-Instruct and google/siglip-base-patch16-256-multilingual, both open; for 3D also "
    "GoodBaiBai88/M3D-CLIP"
)
OTHERS: Final = "Med-Flamingo, LLaVA-Med, RadFM and CT-CHAT, each from its own repository"
SETS: Final = (
    *("medmnist_2d", "mpx_single", "mimic_cxr", "path_vqa", "sa_med2d_rec", "sa_med2d_reg"),
    "slake_en",
)
KINDS: Final = ("ct_rate_long", "ct_rate_short", "ct_rate_choice", "ct_rate_report")
_SOURCE: Final = "--data DATA"
_SIX_SHARE: Final = "share; which metric each set's is, see the seven benchmarks"
_FIGURE: Final = "The figure prints no numbers."
_2D, _3D = "medm_vl_2d", "medm_vl_ct_chest"


def _row(run: str, *changes: str) -> tuple[str, ...]:
    """The published 2D recipe with fields changed."""
    return row_of("medm_vl_2d", _SOURCE, run, SETS, changes)


def _volumes(run: str, *changes: str, variant: str = "avg") -> tuple[str, ...]:
    """A published 3D recipe, by default the one that takes means over slices, with fields changed."""
    return row_of(f"medm_vl_ct_chest_{variant}", "--root CT_RATE", run, KINDS, changes)


MEDM_VL: Final = Paper(
    name="medm_vl",
    title="MedM-VL: what makes a good medical LVLM?",
    tables=(
        PaperTable(
            name="1",
            shows="settings of both stages, 2D / 3D",
            columns=("Pre-training", "Instruction Tuning"),
            lines=lines(
                """
                Sequence length | 2048 | 2048
                Epoch | 1 | 3/1
                Batch size | 64/16 | 16/8
                Learning rate | 1e-3 | 2e-5
                """
            ),
            tiny=SettingsAnswer(
                fields=(
                    ("Sequence length", 2048.0, _2D, "processor.max_length"),
                    ("Epoch, pre-training, 2D", 1.0, _2D, "train.stages.align.epochs"),
                    ("Epoch, tuning, 2D", 3.0, _2D, "train.stages.instruct.epochs"),
                    ("Epoch, tuning, 3D", 1.0, _3D, "train.stages.instruct.epochs"),
                    ("Batch size, pre-training, 2D", 64.0, _2D, batch_of("align")),
                    ("Batch size, tuning, 2D", 16.0, _2D, batch_of("instruct")),
                    ("Batch size, pre-training, 3D", 16.0, _3D, batch_of("align")),
                    ("Batch size, tuning, 3D", 8.0, _3D, batch_of("instruct")),
                    ("Learning rate, pre-training", 1e-3, _2D, "train.stages.align.learning_rate"),
                    ("Learning rate, tuning", 2e-5, _2D, "train.stages.instruct.learning_rate"),
                )
            ),
            full=("medloupe recipe show medm_vl_2d", "medloupe recipe show medm_vl_ct_chest"),
        ),
        PaperTable(
            name="2",
            shows="MedM-VL-2D beside three published models, on six sets",
            columns=SIX,
            lines=lines(
                """
                Med-Flamingo | 0.089 | 0.081 | 0.233 | 0.334 | - | 0.215
                LLaVA-Med | 0.668 | 0.151 | 0.204 | 0.378 | 0.458 | 0.337
                RadFM | 0.189 | - | 0.068 | 0.248 | - | 0.817
                MedM-VL-2D | 0.808 | 0.126 | 0.199 | 0.634 | 0.693 | 0.841
                """,
                ours={"MedM-VL-2D": "two stages"},
            ),
            unit=_SIX_SHARE,
            tiny=GridAnswer(grid="stages"),
            full=(*rows_of(SETS), *_row("medm_vl_2d")),
            needs=(DATA_2D, WEIGHTS, OTHERS),
            differs="Other people's weights cannot be made small. Here the recipe's own composition stands "
            "alone, beside the most frequent training answer. How ten scores of the authors' scripts became "
            "six columns is not said; all are reported.",
        ),
        PaperTable(
            name="3",
            shows="3D encoder, mean over slices, attention pooling, on CT-RATE",
            columns=("Long", "Short", "Choice", "RG"),
            lines=lines(
                """
                CT-CHAT | 0.482 | 0.274 | 0.838 | 0.395
                MedM-VL-CT-Chest (3D) | 0.619 | 0.658 | 0.924 | 0.419
                MedM-VL-CT-Chest (2D+Avg) | 0.622 | 0.664 | 0.920 | 0.441
                MedM-VL-CT-Chest (2D+Attn) | 0.623 | 0.667 | 0.924 | 0.439
                """,
                ours={
                    "MedM-VL-CT-Chest (3D)": "3D encoder",
                    "MedM-VL-CT-Chest (2D+Avg)": "2D, mean",
                    "MedM-VL-CT-Chest (2D+Attn)": "2D, attention",
                },
            ),
            unit="share: BLEU-1 per sample, of choices the letter",
            tiny=GridAnswer(grid="volumes"),
            full=(
                *rows_of(KINDS),
                *(
                    line
                    for variant in ("3d", "avg", "attn")
                    for line in _volumes(variant, variant=variant)
                ),
            ),
            needs=(CT_RATE, WEIGHTS),
            differs="Closed questions about drawn lesions in volumes for the four kinds.",
        ),
        PaperTable(
            name="4",
            shows="SigLIP's last layer or the one before",
            columns=SIX,
            lines=lines(
                """
                SigLIP (-2) | 0.800 | 0.148 | 0.182 | 0.628 | 0.686 | 0.835
                SigLIP (-1) | 0.808 | 0.126 | 0.199 | 0.634 | 0.693 | 0.841
                """,
                ours={"SigLIP (-2)": "layer -2", "SigLIP (-1)": "layer -1"},
            ),
            unit=_SIX_SHARE,
            tiny=GridAnswer(grid="layers"),
            full=(*rows_of(SETS), *_row("medm_vl_2d"), *_row("layer_2", "model.encoder.layer=-2")),
            needs=(DATA_2D, WEIGHTS),
        ),
        PaperTable(
            name="5",
            shows="one stage or two",
            columns=SIX,
            lines=lines(
                """
                One-stage Training | 0.712 | 0.140 | 0.131 | 0.604 | 0.657 | 0.817
                Two-stage Training | 0.808 | 0.126 | 0.199 | 0.634 | 0.693 | 0.841
                """,
                ours={"One-stage Training": "one stage", "Two-stage Training": "two stages"},
            ),
            unit=_SIX_SHARE,
            tiny=GridAnswer(grid="stages"),
            full=(
                *rows_of(SETS),
                *_row("medm_vl_2d"),
                "medloupe recipe show medm_vl_2d > one_stage.yaml  # delete the stage align",
                *row_of("one_stage.yaml", _SOURCE, "one_stage", SETS),
            ),
            needs=(DATA_2D, WEIGHTS),
        ),
        PaperTable(
            name="fig1",
            shows="the 2D architecture",
            tiny=CommandAnswer(lines=("medloupe plan medm_vl_2d",)),
            full=("medloupe plan medm_vl_2d",),
        ),
        PaperTable(
            name="fig2",
            shows="the 3D architecture, and two ways to fewer tokens",
            tiny=CommandAnswer(
                lines=tuple(
                    f"medloupe plan medm_vl_ct_chest_{variant}" for variant in ("3d", "avg", "attn")
                )
            ),
            full=("medloupe plan medm_vl_ct_chest",),
        ),
        PaperTable(
            name="fig3a",
            shows="the encoder frozen or trained",
            tiny=GridAnswer(grid="encoder_training"),
            full=(
                *rows_of(SETS),
                *_row("medm_vl_2d"),
                *_row("frozen", "train.stages.instruct.trainable=[connector,language_model]"),
            ),
            needs=(DATA_2D, CT_RATE, WEIGHTS),
            differs=f"The 2D half. {_FIGURE}",
        ),
        PaperTable(
            name="fig3b",
            shows="the language model frozen, by LoRA at two rates, or all of it",
            tiny=GridAnswer(grid="language_training"),
            full=(
                *rows_of(SETS),
                *_row("medm_vl_2d"),
                *_row("lm_frozen", "train.stages.instruct.trainable=[encoder,connector]"),
                *_row("lora", "train.stages.instruct.lora.rank=16"),
                *_row(
                    "lora_fast",
                    "train.stages.instruct.lora.rank=16",
                    "train.stages.instruct.learning_rate=2e-4",
                ),
            ),
            needs=(DATA_2D, WEIGHTS),
            differs=f"The paper names no LoRA rank. {_FIGURE}",
        ),
        PaperTable(
            name="fig3c",
            shows="3D from scratch, for longer, or from a 2D model",
            tiny=GridAnswer(grid="volume_start"),
            full=(
                *rows_of((*SETS, *KINDS)),
                *_row("medm_vl_2d"),
                *_volumes("from_scratch"),
                *_volumes("for_longer", "train.stages.instruct.epochs=2"),
                *_volumes(
                    "from_2d",
                    "model.start={folder: runs/medm_vl_2d/model, parts: [connector, language_model], "
                    "rename: {connector: connector.connector}}",
                ),
            ),
            needs=(DATA_2D, CT_RATE, WEIGHTS),
            differs=_FIGURE,
        ),
    ),
)
