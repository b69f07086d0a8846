"""Every number that the papers print, beside the recipe that uses it, with its place in the paper.

Written from the papers' text, not from the recipes. What a paper leaves open is not here.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from medloupe.data.datasets.starter import StarterConfig
from medloupe.data.datasets.vindr_cxr.litegpt import DIAGNOSIS, FINDINGS
from medloupe.imaging.windows import HU_WINDOWS
from medloupe.models.vlm import PARTS
from medloupe.recipes import RECIPES, recipe, run
from medloupe.recipes.config import RunConfig
from medloupe.recipes.plan.meta import build, set_trainable
from medloupe.recipes.published import ROWS
from medloupe.train.log import read_log
from medloupe.train.optimizer import schedule

Wanted = dict[str, tuple[Any, str]]

ALIGN = "train.stages.0"
INSTRUCT = "train.stages.1"

# Both of the paper's own runs are trained alike.
LLAMA3_MED_TRAINING: Wanted = {
    f"{ALIGN}.trainable": (["connector"], "section 2, (i)"),
    f"{ALIGN}.mixture.sources.0.name": ("llava_med_alignment", "appendix A.1"),
    f"{ALIGN}.batch": (256, "Table 8"),
    f"{ALIGN}.learning_rate": (1e-3, "Table 8"),
    f"{ALIGN}.epochs": (1, "Table 8"),
    f"{ALIGN}.weight_decay": (0, "Table 8"),
    f"{ALIGN}.warmup": (0.03, "Table 8"),
    f"{ALIGN}.min_learning_rate": (0, "section 3: cosine"),
    f"{INSTRUCT}.trainable": (["connector", "language_model"], "section 2, (ii)"),
    f"{INSTRUCT}.lora": (None, "section 2, (ii)"),
    f"{INSTRUCT}.mixture.sources.0.name": ("llava_med_instruct", "appendix A.1: 60K-IM"),
    f"{INSTRUCT}.batch": (128, "Table 9"),
    f"{INSTRUCT}.learning_rate": (2e-5, "Table 9"),
    f"{INSTRUCT}.epochs": (1, "Table 9"),
    f"{INSTRUCT}.weight_decay": (0, "Table 9"),
    f"{INSTRUCT}.warmup": (0.03, "Table 9"),
    f"{INSTRUCT}.min_learning_rate": (0, "section 3: cosine"),
    "processor.max_length": (2048, "Tables 8 and 9"),
}
LITEGPT_STAGE: Wanted = {
    "learning_rate": (1e-5, "section 4.4"),
    "min_learning_rate": (1.0, "section 4.4: the least rate is the initial one"),
    "weight_decay": (0.05, "section 4.4"),
    "steps": (20 * 549, "section 4.4"),
    "lora.rank": (64, "section 4.4"),
    "lora.targets": (["q_proj", "v_proj"], "section 4.4: W_q and W_v"),
    "trainable": (["connector", "language_model"], "section 3.1.1: the encoders are frozen"),
}
LITEGPT: Wanted = {
    "data.name": ("vindr_cxr", "section 4.1"),
    "data.conflicts": ("leave_out", "section 4.2"),
    "data.iou": (0.5, "section 4.2"),
    "data.wording": ("litegpt", "section 4.4"),
    "data.litegpt_tag": ("identify", "section 3.3"),
    "model.language.source": ("meta-llama/Llama-2-7b-chat-hf", "section 3.1.3"),
    "model.language.quantization": ("int8", "section 4.4"),
    "model.connector.depth": (2, "section 3.1.2"),
    "processor.boxes.form": ("angle", "section 4.2"),
    "processor.boxes.scale": (100, "section 4.2"),
    **{f"{ALIGN}.{field}": wanted for field, wanted in LITEGPT_STAGE.items()},
    **{f"{INSTRUCT}.{field}": wanted for field, wanted in LITEGPT_STAGE.items()},
    f"{ALIGN}.objective.tasks": (["findings"], "section 3.2"),
    f"{INSTRUCT}.objective.tasks": (["diagnosis"], "section 3.2"),
}
BIOMEDCLIP: Wanted = {"name": ("biomedclip", "3.1.1"), "image_size": (224, "section 4.4")}
PUBMEDCLIP: Wanted = {"name": ("clip", "3.1.1"), "image_size": (224, "section 4.4")}
MEDM_VL: Wanted = {
    "model.language.source": ("Qwen/Qwen2.5-3B-Instruct", "section 4.1"),
    "processor.max_length": (2048, "Table 1"),
    f"{ALIGN}.trainable": (["connector"], "section 3.2"),
    f"{ALIGN}.learning_rate": (1e-3, "Table 1"),
    f"{ALIGN}.epochs": (1, "Table 1"),
    f"{ALIGN}.precision": ("bf16", "section 4.1"),
    f"{INSTRUCT}.trainable": (list(PARTS), "section 3.2"),
    f"{INSTRUCT}.learning_rate": (2e-5, "Table 1"),
    f"{INSTRUCT}.precision": ("bf16", "section 4.1"),
}
CT_CHEST: Wanted = {
    **MEDM_VL,
    "data.name": ("ct_rate", "section 3.1"),
    "data.validation": (0, "section 3.1: the official split"),
    f"{ALIGN}.objective.tasks": (["report_generation"], "section 3.2"),
    f"{ALIGN}.batch": (16, "Table 1"),
    f"{INSTRUCT}.objective.tasks": ([], "section 3.2: the full data set"),
    f"{INSTRUCT}.batch": (8, "Table 1"),
    f"{INSTRUCT}.epochs": (1, "Table 1"),
}
SIGLIP: Wanted = {
    "name": ("siglip", "section 4.1"),
    "image_size": (256, "section 4.1"),
    "layer": (-1, "Table 4"),
}
SLICES: Wanted = {
    "model.encoder.name": ("slices", "equation 5"),
    **{f"model.encoder.encoder.{field}": wanted for field, wanted in SIGLIP.items()},
    "processor.transform.selection.count": (32, "section 4.1"),
}
ATTENTION: Wanted = {
    **CT_CHEST,
    **SLICES,
    "model.connector.name": ("attention_pooling", "equation 6"),
}

HIA: Wanted = {
    "data.name": ("chili_joint", "section 3"),
    "model.encoder.source": ("openai/clip-vit-large-patch14-336", "section 3"),
    "model.encoder.image_size": (336, "section 3"),
    "model.adapter.name": ("hia", "section 2.2"),
    "model.adapter.encoder.image_size": (672, "Table 3: the headline's 41.4"),
    "model.adapter.queries": (256, "section 3; Table 4a"),
    "model.adapter.layers": (2, "section 3; Table 4b"),
    "model.adapter.instruction_aware": (True, "equation 2"),
    "model.adapter.high_resolution": (True, "section 2.2"),
    "processor.max_length": (2048, "section 3"),
    f"{ALIGN}.trainable": (["adapter"], "section 2.2, last paragraph"),
    f"{ALIGN}.batch_size": (4, "section 3: a GPU"),
    f"{ALIGN}.epochs": (1, "section 3"),
    f"{ALIGN}.learning_rate": (2e-5, "section 3"),
    f"{ALIGN}.warmup": (0.03, "section 3"),
}

PAPERS: dict[str, Wanted] = {
    "hia": HIA,
    "llama3_med": {
        **LLAMA3_MED_TRAINING,
        "model.encoder.scales": ([378, 756, 1134], "section 2; appendix D.1"),
        "model.encoder.encoder.source": ("apple/DFN5B-CLIP-ViT-H-14-378", "appendix D.1"),
        "model.encoder.encoder.image_size": (378, "appendix D.1"),
        "model.language.source": ("meta-llama/Meta-Llama-3-8B-Instruct", "appendix D.1"),
        f"{INSTRUCT}.mixture.sources.1.name": ("llama3_med_ft_20k", "appendix A.1"),
    },
    "llava_med_mistral": {
        **LLAMA3_MED_TRAINING,
        "model.language.source": ("mistralai/Mistral-7B-Instruct-v0.2", "appendix D.1"),
    },
    "litegpt": {
        **LITEGPT,
        "model.encoder.axis": ("tokens", "equation 3"),
        **{f"model.encoder.encoders.0.{field}": wanted for field, wanted in BIOMEDCLIP.items()},
        **{f"model.encoder.encoders.1.{field}": wanted for field, wanted in PUBMEDCLIP.items()},
        "model.connector.group": (5, "equation 4"),
    },
    "litegpt_biomedclip": {
        **LITEGPT,
        **{f"model.encoder.{field}": wanted for field, wanted in BIOMEDCLIP.items()},
    },
    "litegpt_pubmedclip": {
        **LITEGPT,
        **{f"model.encoder.{field}": wanted for field, wanted in PUBMEDCLIP.items()},
    },
    "medm_vl_2d": {
        **MEDM_VL,
        **{f"model.encoder.{field}": wanted for field, wanted in SIGLIP.items()},
        "model.connector.name": ("mlp", "section 4.1"),
        "model.connector.depth": (2, "section 4.1"),
        "processor.transform.size": (256, "section 4.1"),
        f"{ALIGN}.mixture.sources.0.name": ("llava_pretrain", "section 3.2"),
        f"{ALIGN}.batch": (64, "Table 1"),
        f"{INSTRUCT}.batch": (16, "Table 1"),
        f"{INSTRUCT}.epochs": (3, "Table 1"),
    },
    "medm_vl_ct_chest": ATTENTION,
    "medm_vl_ct_chest_attn": ATTENTION,
    "medm_vl_ct_chest_avg": {
        **CT_CHEST,
        **SLICES,
        "model.connector.name": ("mean_slices", "equation 7"),
        "model.connector.place": ("before", "equation 7"),
    },
    "medm_vl_ct_chest_3d": {
        **CT_CHEST,
        "model.encoder.name": ("m3d_clip", "section 4.1"),
        "processor.transform.shape": ([32, 256, 256], "section 4.1"),
    },
}
# (encoder tokens of an image or a slice, tokens in the row, encoder channels)
TOKENS = {
    "hia": (576, 576, 1024),
    "llama3_med": (729, 729, 3840),  # S2: the token count of 378 pixels; three widths of 1280
    "llava_med_mistral": (576, 576, 1024),
    "litegpt": (245, 49, 768),  # 3.1.1 and 3.1.2: 196 + 49, M = P / 5
    "litegpt_biomedclip": (196, 49, 768),
    "litegpt_pubmedclip": (49, 49, 768),
    "medm_vl_2d": (256, 256, 768),
    "medm_vl_ct_chest": (256, 256, 768),
    "medm_vl_ct_chest_3d": (2048, 256, 768),
    "medm_vl_ct_chest_avg": (256, 256, 768),
    "medm_vl_ct_chest_attn": (256, 256, 768),
}
TINY = [name for name in RECIPES if name.endswith("_tiny") and name != "starter_tiny"]


def at(config: RunConfig, path: str) -> Any:
    """The plain value at a path; `batch` is a stage's global batch."""
    data: Any = config.to_dict()
    for step in path.split("."):
        if step == "batch":
            return data["batch_size"] * data["accumulate"]
        data = data[int(step)] if isinstance(data, list) else data[step]
    return data


@pytest.mark.parametrize("name", list(PAPERS))
def test_the_recipe_has_every_number_of_its_paper(name: str) -> None:
    config = recipe(name)
    wrong = {
        path: (at(config, path), wanted, place)
        for path, (wanted, place) in PAPERS[name].items()
        if at(config, path) != wanted
    }
    assert not wrong


def test_every_paper_recipe_is_checked_and_has_a_tiny_form() -> None:
    own = {"starter", "starter_tiny", "vqa_rad_starter"}
    real = {name for name in RECIPES if not name.endswith("_tiny")} - own
    assert real == set(PAPERS) == set(TOKENS)
    assert {f"{name}_tiny" for name in real} == set(TINY)


def test_litegpts_instructions_are_the_papers() -> None:
    """Section 4.4; its rate is constant, so its warm-up of 1000 steps changes nothing."""
    assert FINDINGS.startswith("Please describe the critical findings along with their localized")
    assert FINDINGS.endswith("state that the chest radiograph shows no findings.")
    assert DIAGNOSIS.endswith(
        "COPD, Lung Tumor, Pneumonia, Tuberculosis, Other Disease, or No Finding?"
    )
    stage = recipe("litegpt").train.stages[0]
    assert stage.steps is not None
    for step in (0, 1, 999, 1000, stage.steps - 1):
        factor = schedule(step, stage.steps, stage.warmup, stage.min_learning_rate)
        assert factor * stage.learning_rate == pytest.approx(1e-5, rel=1e-12)


def test_table_1_of_llama3_med_adds_up() -> None:
    """LLaVA-Med's images and the paper's own, over five domains."""
    llava_med = 8_060 + 17_358 + 16_539 + 17_030 + 2_552
    assert ROWS["llava_med_instruct"].count == llava_med
    assert ROWS["llama3_med_ft_20k"].count == 40 + 6_809 + 6_568 + 6_643 + 116


def test_chest_ct_is_seen_from_minus_1000_to_1000_hounsfield_units() -> None:
    centre, width = HU_WINDOWS["medm_vl"]
    # DICOM PS3.3 C.11.2.1.2.1: the first and the last value of a window
    assert centre - 0.5 - (width - 1) / 2 == -1000
    assert centre - 0.5 + (width - 1) / 2 == 1000
    for name in ("medm_vl_ct_chest_3d", "medm_vl_ct_chest_avg"):
        transform = recipe(name).to_dict()["processor"]["transform"]
        window = transform["window"] if "window" in transform else transform["transform"]["window"]
        assert window["mode"] == "medm_vl"


@pytest.mark.parametrize("name", list(TOKENS))
def test_the_real_size_has_the_papers_tokens(name: str) -> None:
    model = build(recipe(name).model)
    kind = "volume" if "volume" in model.encoder.kinds else "image"
    layout = model.layouts.volume if kind == "volume" else model.layouts.image
    assert layout is not None
    encoder = model.encoder.for_kind(kind)
    assert (encoder.layout.tokens, layout.tokens, encoder.channels) == TOKENS[name]
    assert all(p.device == torch.device("meta") for p in model.parameters())


def test_litegpts_lora_has_rank_64_on_queries_and_values() -> None:
    config = recipe("litegpt_pubmedclip")
    model = build(config.model)
    set_trainable(model, config.train.stages[0])
    trained = sum(p.numel() for p in model.language_model.parameters() if p.requires_grad)
    assert trained == 32 * 2 * 64 * (4096 + 4096)  # layers, q and v, rank, in and out
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_hia_stands_a_third_and_two_thirds_up_and_trains_alone() -> None:
    """Section 3 ("L/3 and 2L/3" of 40 layers) and the parameters of an adapter, by hand."""
    config = recipe("hia")
    model = build(config.model)
    set_trainable(model, config.train.stages[0])
    assert model.adapter is not None
    assert model.adapter.places == (13, 26)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("adapter.")}
    width, channels, queries = 5120, 2048, 256
    attention = 4 * width * width + 2 * 2 * width  # four projections, norms of queries and keys
    layer = queries * width + (width + 1) * width + (channels + 1) * width + 2 * attention
    encoder = sum(p.numel() for p in model.adapter.encoder.parameters())
    assert sum(p.numel() for p in model.adapter.parameters()) == encoder + 2 * layer
    assert encoder == 23_508_032  # ResNet-50 without its classifier


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Starter slices of four patients, prepared once for all recipes; in this process."""
    return _starter(tmp_path_factory.mktemp("planes"), slices_per_patient=4)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _starter(tmp_path_factory.mktemp("volumes"), volumes_per_patient=1)


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_recipe_trains(
    name: str, language: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two steps of each of its stages, on a language model of two layers (HiA needs four)."""
    if name == "hia_tiny":
        language = _deeper(language, tmp_path / "language")
    stages = recipe(name).train.stages
    config = recipe(name).with_overrides(
        [
            f"model.language.source={language}",
            "model.language.dtype=float32",
            *(f"train.stages.{number}.steps=2" for number in range(len(stages))),
            *(f"train.stages.{number}.batch_size=1" for number in range(len(stages))),
        ]
    )
    assert isinstance(config.data, StarterConfig)
    data = request.getfixturevalue("planes" if config.data.slices_per_patient else "volumes")
    folder = run.train(config, data, tmp_path / "run", progress=_silent)
    log = read_log(tmp_path / "run" / "train.jsonl")
    assert [row["stage"] for row in log if row["event"] == "step"] == [
        stage.name for stage in config.train.stages for _ in range(2)
    ]
    assert (folder / "model.safetensors").is_file()


def _deeper(language: Path, folder: Path) -> Path:
    shutil.copytree(language, folder)
    config = AutoConfig.from_pretrained(language, num_hidden_layers=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _starter(folder: Path, **images: int) -> Path:
    pytest.importorskip("nilearn", reason="needs the starter extra")
    counts = {"slices_per_patient": 0, "series_per_patient": 0, "volumes_per_patient": 0} | images
    config = StarterConfig(patients=4, conspicuity=1.0, languages=("en",), **counts)
    config.prepare(folder, workers=1)
    return folder


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total
