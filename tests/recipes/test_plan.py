"""`medloupe plan` against published totals, FLOPs and memory written out by hand, and a real run.

T tokens, C channels of a tower, I its hidden width, D width of the language model, L its layers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from medloupe.errors import ConfigError
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.encoders.vit3d import M3DCLIPEncoderConfig
from medloupe.models.language import LanguageConfig, architecture_from
from medloupe.models.vlm import PARTS, VisionLanguageModel
from medloupe.recipes import recipe
from medloupe.recipes.config import ModelConfig
from medloupe.recipes.plan import make_plan
from medloupe.recipes.plan.memory import GIB, RESERVE, Memory, Sizes, memory, sizes
from medloupe.recipes.plan.meta import build, example, set_trainable
from medloupe.recipes.plan.plan import rows_of
from medloupe.recipes.plan.work import Work, _loss, count
from medloupe.recipes.published import (
    BIOMEDCLIP,
    CHINESE_LLAMA2_13B,
    CLIP_L_336,
    DFN5B,
    LANGUAGE,
    LLAMA_2_7B,
    LLAMA_3_8B,
    MISTRAL_7B,
    PUBMEDCLIP,
    QWEN_2_5_3B,
    SIGLIP_256,
    SMOLLM2_135M,
    VISION,
)
from medloupe.train import StageConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig
from medloupe.types import ImageInput

# Totals that the publishers, or transformers' and open_clip's own tables, give.
LANGUAGE_TOTALS = {
    LLAMA_3_8B: 8_030_261_248,
    LLAMA_2_7B: 6_738_415_616,
    MISTRAL_7B: 7_241_732_096,
    QWEN_2_5_3B: 3_085_938_688,
    SMOLLM2_135M: 134_515_008,
    CHINESE_LLAMA2_13B: 13_015_864_320,  # Llama 2 13B's, whose tokenizer and sizes it keeps
}
TOWER_TOTALS = {CLIP_L_336: 303_507_456, PUBMEDCLIP: 87_456_000}
MIB = 1 << 20

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
LLAMA = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TEXT = 24


def test_language_models_have_their_published_sizes() -> None:
    assert set(LANGUAGE_TOTALS) == set(LANGUAGE)
    for source, total in LANGUAGE_TOTALS.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(architecture_from(LANGUAGE[source]))
        assert model.num_parameters() == total, source


def test_vision_towers_have_their_published_sizes() -> None:
    for source, total in TOWER_TOTALS.items():
        size = VISION[source]["image_size"]
        config = CLIPEncoderConfig(architecture=VISION[source], image_size=size, layer=-1)
        with torch.device("meta"):
            assert _numbers(config.build()) == total, source


def test_dfn5b_has_open_clips_632_68_million_with_its_projection() -> None:
    """open_clip's table of models: ViT-H-14-378, vision 632.68 M; Llama3-Med needs neither its last
    layer nor its projection."""
    whole = CLIPEncoderConfig(architecture=VISION[DFN5B], image_size=378, layer=-1)
    read = CLIPEncoderConfig(architecture=VISION[DFN5B], image_size=378, layer=-2)
    with torch.device("meta"):
        total = _numbers(whole.build())
        last = total - _numbers(read.build())
    assert round((total + 1280 * 1024) / 1e4) == 63_268
    assert last == 4 * 1280 * 1281 + 2 * 1280 * 5120 + 5120 + 1280 + 4 * 1280


def test_the_other_encoders_by_hand() -> None:
    """ViT-B: 12 layers of 4 C (C + 1) + 2 C I + I + C and two norms."""
    layer = 4 * 768 * 769 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    patches = 3 * 16 * 16 * 768 + 768
    built = {name: build(recipe(name).model).encoder for name in _ONE_TOWER}
    # class token, 197 positions, final norm; timm's vit_base_patch16_224 without its head
    wanted = 12 * layer + patches + 768 + 197 * 768 + 2 * 768
    assert _numbers(built["litegpt_biomedclip"]) == wanted == 85_798_656
    # no class token, 256 positions; the pooling head is not built
    assert _numbers(built["medm_vl_2d"]) == 12 * layer + patches + 256 * 768 + 2 * 768
    assert isinstance(recipe("medm_vl_ct_chest_3d").model.encoder, M3DCLIPEncoderConfig)
    # queries, keys and values without bias; patches of 4 x 16 x 16; positions of 8 x 16 x 16 patches
    volume = 12 * (layer - 3 * 768) + 4 * 16 * 16 * 768 + 768 + 768 + 2048 * 768
    assert _numbers(built["medm_vl_ct_chest_3d"]) == volume
    assert BIOMEDCLIP in str(recipe("litegpt").to_dict())
    assert SIGLIP_256 in str(recipe("medm_vl_2d").to_dict())


_ONE_TOWER = ("litegpt_biomedclip", "medm_vl_2d", "medm_vl_ct_chest_3d")


def test_flops_of_a_frozen_and_of_a_trained_language_model(tmp_path: Path) -> None:
    """Every matrix product by hand. Nothing flows back into the frozen tower."""
    patches, width, layers, tokens = 16, 64, 2, 16 + TEXT
    seen = patches + 1
    tower = 2 * patches * 3 * 14 * 14 * 32
    # layer -2 of three: two layers run
    tower += 2 * (2 * seen * (4 * 32 * 32 + 2 * 32 * 96) + 4 * seen * seen * 32)
    first, second = 2 * patches * 32 * width, 2 * patches * width * width
    linear = 2 * tokens * (2 * width * width + 2 * width * 32 + 3 * width * 160) * layers
    attention = 4 * tokens * tokens * width * layers
    head = 2 * TEXT * width * 500

    frozen = _work(tmp_path, ("connector",))
    assert frozen.image_tokens == patches
    assert frozen.forward == {
        "encoder": tower,
        "connector": first + second,
        "language_model": linear + attention + head,
    }
    # through the frozen model only inputs have gradients; fused attention has five products
    through = linear + head + attention // 2 * 5
    assert frozen.backward == through + 2 * second + first
    # all layers have a gradient to pass on, so all would run again
    assert frozen.recomputed == linear + attention

    whole = _work(tmp_path, ("connector", "language_model"))
    assert whole.forward == frozen.forward
    assert whole.backward == through + linear + head + 2 * second + first

    unfrozen = _work(tmp_path, PARTS)
    # patches have no input to pass a gradient to, and the first layer of the connector now has one
    tower_back = 2 * patches * 3 * 14 * 14 * 32
    tower_back += 2 * (4 * seen * (4 * 32 * 32 + 2 * 32 * 96) + 10 * seen * seen * 32)
    assert unfrozen.backward == whole.backward + first + tower_back


def test_what_is_kept_is_what_a_real_run_keeps(tmp_path: Path) -> None:
    """The same model with numbers, in bfloat16 on the CPU, whose attention kernel is a fused one."""
    meta = _work(tmp_path, ("connector", "language_model"))
    model = VisionLanguageModel(build(_tiny_model(tmp_path)).config)
    set_trainable(model, _stage(("connector", "language_model")))
    model = model.bfloat16()
    owned = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in owned:
            kept.setdefault(place, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        views = torch.zeros(3, 56, 56, dtype=torch.bfloat16)
        (tokens,) = model.image_tokens(model.encode([ImageInput(views=views)]))
        _loss(model, tokens, (), TEXT).backward()
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    # what differs: rows that the CPU's kernel pads, and copies that meta kernels do not make
    assert meta.kept == pytest.approx(real, rel=0.05)
    assert meta.checkpointed < meta.kept


def test_memory_of_four_engines_by_hand() -> None:
    held = Sizes(
        trained=100 * MIB,
        total=300 * MIB,
        frozen=800 * MIB,
        frozen_half=400 * MIB,
        block=20 * MIB,
        outside=60 * MIB,
        quantized=False,
    )
    found = memory(held, _some_work(kept=GIB, checkpointed=GIB // 4), gpus=4, limit=8 * GIB)
    assert {one.engine: _in_mib(one) for one in found} == {
        "DDP": (1200, 400, 800, 200),
        "FSDP2": (300, 100, 200, 200),
        "ZeRO-2": (600, 50, 300, 200),
        "ZeRO-3": (150, 50, 300, 600),
    }
    ddp = found[0]
    assert ddp.states == 2600 * MIB
    # 8 GiB less the reserve of 2 and 2.54 for the states leave 3.46
    assert RESERVE == 2 * GIB
    assert (ddp.rows, ddp.rows_checkpointed) == (3, 13)
    small = memory(held, _some_work(kept=GIB, checkpointed=GIB), gpus=1, limit=4 * GIB)
    assert small[0].rows == 0
    quantized = held.model_copy(update={"quantized": True})
    offered = memory(quantized, _some_work(kept=GIB, checkpointed=GIB), gpus=4, limit=8 * GIB)
    assert [one.engine for one in offered] == ["DDP", "ZeRO-2"]


def test_weights_are_counted_in_the_types_they_are_kept_in(tmp_path: Path) -> None:
    config = _tiny_model(tmp_path)
    model = build(config)
    set_trainable(model, _stage(("connector",)))
    language, tower = _numbers(model.language_model), _numbers(model.encoder)
    held = sizes(model, "none")
    assert held.trained == _numbers(model.connector)
    assert (held.frozen, held.frozen_half) == (4 * (language + tower), 2 * (language + tower))
    assert held.block * 2 < held.total
    half = config.model_copy(update={"language": config.language.model_copy(update=_BF16)})
    model = build(half)
    set_trainable(model, _stage(("connector",)))
    assert sizes(model, "none").frozen == 2 * language + 4 * tower
    # all linear layers but the head take one byte, embeddings, head and norms keep two
    linear = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    assert sizes(model, "int8").frozen == linear + 2 * (language - linear) + 4 * tower
    assert sizes(model, "nf4").frozen == linear * 9 // 16 + 2 * (language - linear) + 4 * tower


_BF16 = {"dtype": "bfloat16"}


def test_a_plan_of_a_tiny_recipe(tmp_path: Path) -> None:
    shorter = recipe("litegpt_tiny").with_overrides([f"model.language.source={_folder(tmp_path)}"])
    made = make_plan(shorter, gpus=2, memory_gib=16, rows={"identify": 1_001}, text_tokens=50)
    assert (made.encoder_tokens, made.image_tokens, made.kind) == (245, 49, "image")
    first, second = made.stages
    assert (first.batch, first.rows, first.steps_per_epoch, first.steps) == (2, 1_001, 501, 140)
    assert second.steps_per_epoch is None
    assert "no published number" in second.rows_source
    assert first.trainable["encoder"] == 0
    assert first.trainable["language_model"] == 2 * 16 * (64 + 64 + 64 + 32)
    assert first.step_flops == 2 * first.row_flops
    assert type(made).parse(made.to_dict()) == made


def test_depthwise_convolutions_cost_twice_their_forward_backward(tmp_path: Path) -> None:
    """A trained EfficientNet-Lite0: only its stem (3 to 32 channels, half the size) passes no gradient on."""
    run = recipe("starter_tiny").with_overrides(
        [f"model.language.source={_folder(tmp_path)}", "model.connector={name: linear}"]
    )
    stage = make_plan(run).stages[0]
    stem = 2 * 32 * 32 * 32 * 3 * 9
    assert stage.forward_flops["language_model"] == 0
    encoder, connector = stage.forward_flops["encoder"], stage.forward_flops["connector"]
    assert stage.backward_flops == 2 * (encoder + connector) - stem


def test_steps_of_the_papers_stages() -> None:
    """By published counts; MedM-VL does not print its own, and nothing is made up for it."""

    def steps(name: str, stage: int) -> tuple[int | None, int]:
        config = recipe(name)
        chosen = config.train.stages[stage]
        batch = chosen.batch_size * chosen.accumulate
        count = rows_of(config, chosen, None).count
        return (None if count is None else -(-count // batch)), batch

    assert steps("llama3_med", 0) == (1954, 256)
    assert steps("llama3_med", 1) == (639, 128)
    assert steps("llava_med_mistral", 1) == (481, 128)
    assert steps("litegpt", 0) == (550, 8)  # 549 in the paper: its last batch is not full
    assert steps("medm_vl_2d", 0) == (8721, 64)
    assert steps("medm_vl_2d", 1) == (None, 16)
    assert steps("medm_vl_ct_chest", 0) == (2947, 16)
    assert steps("medm_vl_ct_chest", 1) == (None, 8)


def test_what_cannot_be_planned_says_why() -> None:
    unknown = recipe("starter_tiny").with_overrides(
        ["model.language.source=Qwen/Qwen2.5-3B-Instrut"]
    )
    with pytest.raises(ConfigError, match=r"not known offline; did you mean 'Qwen/Qwen2.5-3B-Inst"):
        make_plan(unknown)
    with pytest.raises(ConfigError, match="unknown stage 'instrct'; did you mean 'instruct'"):
        make_plan(recipe("starter_tiny"), rows={"instrct": 3})


def test_a_row_that_is_too_long_is_refused(tmp_path: Path) -> None:
    config = recipe("litegpt_tiny").with_overrides([f"model.language.source={_folder(tmp_path)}"])
    with pytest.raises(ConfigError, match="49 image tokens and 1000 of text make 1049"):
        make_plan(config, text_tokens=1000)


def test_the_page_has_the_plans_parameters() -> None:
    """docs/recipes.md prints the figures of real recipes; sizes are cheap to compute again."""
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name in (
        "llama3_med",
        "llava_med_mistral",
        "litegpt",
        "medm_vl_2d",
        "medm_vl_ct_chest_3d",
        "hia",
    ):
        model = build(recipe(name).model)
        for part in model.parts:
            number = _numbers(model.get_submodule(part))
            assert f"{number:,}" in page, f"{name}: {part} has {number:,}"


def _work(folder: Path, trainable: tuple[str, ...]) -> Work:
    model = build(_tiny_model(folder))
    set_trainable(model, _stage(trainable))
    image = example("image", ImageTransform(size=56), torch.bfloat16)
    return count(model.bfloat16(), image, TEXT)


def _stage(trainable: tuple[str, ...]) -> StageConfig:
    return StageConfig(name="any", objective=LanguageObjectiveConfig(), trainable=trainable)


def _tiny_model(folder: Path) -> ModelConfig:
    return ModelConfig(
        encoder=CLIPEncoderConfig(architecture=TOWER, image_size=56),
        connector=MLPConnectorConfig(depth=2),
        language=LanguageConfig(source=str(_folder(folder))),
    )


def _folder(folder: Path) -> Path:
    LlamaConfig(**LLAMA).save_pretrained(folder)
    return folder


def _some_work(*, kept: int, checkpointed: int) -> Work:
    return Work(
        encoder_tokens=1,
        image_tokens=1,
        tokens=2,
        forward={},
        backward=0,
        recomputed=0,
        kept=kept,
        checkpointed=checkpointed,
    )


def _in_mib(one: Memory) -> tuple[int, ...]:
    parts = (one.weights, one.gradients, one.optimizer, one.working)
    return tuple(part // MIB for part in parts)


def _numbers(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
