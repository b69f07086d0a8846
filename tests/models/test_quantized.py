"""Quantised language models: the papers' numbers, the same bits after loading, adapters on top."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from medloupe.errors import ConfigError, MissingExtraError
from medloupe.generate import GenerateConfig, Predictor
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.language import LanguageConfig, load_language
from medloupe.models.low_rank import LowRankConfig, attach, is_adapter, merge, save_adapters
from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.log import read_log
from medloupe.train.stages import TrainConfig

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra 'quantized' is not installed")
KINDS = ["nf4", "int8"]
# Dettmers et al. 2023, appendix E.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


WIDE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture
def language_folder(tiny: ModuleType, tmp_path: Path) -> Path:
    """A Llama of the lab's vocabulary, as wide as nf4 wants it."""
    words = tiny.tokenizer("bytes", "chatml")
    words.save_pretrained(tmp_path / "language")
    torch.manual_seed(4)
    settings = AutoConfig.for_model("llama", vocab_size=len(words), **WIDE)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "language")
    return tmp_path / "language"


@pytest.fixture
def compose(language_folder: Path, tmp_path: Path) -> Any:
    """`compose("nf4")`: a model with a tiny tower of the lab's image size and the Llama, quantised."""
    tower = tmp_path / "tower"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "image_size": 64, "patch_size": 16}
    torch.manual_seed(5)
    CLIPVisionModel(
        CLIPVisionConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)
    ).save_pretrained(tower)

    def make(kind: str, **fields: Any) -> VisionLanguageModel:
        torch.manual_seed(6)
        model, _ = VisionLanguageModel.compose(
            EncoderConfig.parse({"name": "clip", "source": str(tower)}),
            ConnectorConfig.parse("mlp"),
            LanguageConfig(source=str(language_folder), quantization=kind, **fields),
        )
        return model.eval()

    return make


def said(model: VisionLanguageModel) -> torch.Tensor:
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([[1, 5, *[model.config.image_token_id] * 16, 6, 7]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits.float()


def learned(model: VisionLanguageModel) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter += 0.1 * torch.randn_like(parameter)


def equal_bits(one: VisionLanguageModel, other: VisionLanguageModel) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


def test_nf4_is_the_nearest_of_sixteen_levels_in_blocks_of_64(language_folder: Path) -> None:
    source = str(language_folder)
    plain, _ = load_language(LanguageConfig(source=source))
    model, _ = load_language(LanguageConfig(source=source, quantization="nf4"))
    name = "model.layers.1.mlp.up_proj"
    weight = plain.get_submodule(name).weight.detach()
    packed = model.get_submodule(name).weight
    ours = bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state)
    blocks = weight.reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4)
    nearest = ((blocks / scales)[..., None] - levels).abs().argmin(-1)
    torch.testing.assert_close(ours, (levels[nearest] * scales).reshape(weight.shape))
    assert packed.data.numel() * 2 == weight.numel()


def test_int8_is_rounding_by_rows(language_folder: Path) -> None:
    source = str(language_folder)
    plain, _ = load_language(LanguageConfig(source=source))
    model, _ = load_language(LanguageConfig(source=source, quantization="int8"))
    name = "model.layers.0.self_attn.q_proj"
    weight = plain.get_submodule(name).weight.detach()
    scales = weight.abs().amax(1, keepdim=True) / 127
    off = model.get_submodule(name).weight.data - (weight / scales)
    # it rounds the weights to float16 first: half a step, and a little
    assert float(off.abs().max()) < 0.6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_language_models_linear_layers_and_the_same_bits_after_loading(
    compose: Any, tmp_path: Path, kind: str, dtype: str
) -> None:
    model = compose(kind, dtype=dtype)
    quantised = {
        n for n, m in model.named_modules() if type(m).__module__.startswith("bitsandbytes")
    }
    assert len(quantised) == 14
    assert all(n.startswith("language_model.model.layers.") for n in quantised)
    plain = compose("none", dtype=dtype)
    plain.connector.load_state_dict(model.connector.state_dict())
    far = (said(model) - said(plain)).norm() / said(plain).norm()
    assert 0 < float(far) < {"nf4": 0.3, "int8": 0.03}[kind]
    wanted = said(model)
    for _ in range(2):  # also once more after it was loaded
        model.save_pretrained(tmp_path / "saved")
        model = VisionLanguageModel.load(tmp_path / "saved")
        assert torch.equal(said(model), wanted)
    assert equal_bits(model, compose(kind, dtype=dtype))
    found = {n for n, m in model.named_modules() if type(m).__module__.startswith("bitsandbytes")}
    assert found == quantised


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_quantised_weights(compose: Any, tmp_path: Path, kind: str) -> None:
    model = compose(kind)
    attach(model, "language_model", LowRankConfig(rank=2, kind="dora"))
    learned(model)
    wanted = said(model)
    model.save_pretrained(tmp_path / "saved")
    again = VisionLanguageModel.load(tmp_path / "saved")
    assert equal_bits(again, model)
    assert torch.equal(said(again), wanted)
    with pytest.raises(ConfigError, match=r"cannot be merged into quantised weights.*Keep them"):
        merge(model, "language_model")


def test_adapters_learned_on_quantised_weights_fit_the_plain_model(
    compose: Any, language_folder: Path, tmp_path: Path
) -> None:
    model = compose("nf4")
    attach(model, "language_model", LowRankConfig(rank=2))
    learned(model)
    save_adapters(model, "language_model", tmp_path / "alone")
    plain = AutoModelForCausalLM.from_pretrained(language_folder)
    read = peft.PeftModel.from_pretrained(plain, tmp_path / "alone").base_model.model.state_dict()
    for name, tensor in model.language_model.state_dict().items():
        if is_adapter(name):
            assert torch.equal(read[name], tensor), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_adapters_alone_and_evaluating_changes_nothing(
    tiny: ModuleType, lab: Any, compose: Any, tmp_path: Path, kind: str, precision: str
) -> None:
    """The lab's rows, with and without a look between."""
    stage = tiny.language_stage(
        trainable=("connector", "language_model"),
        steps=4,
        precision=precision,
        lora={"rank": 2, "merge": False},
    )

    def look(_: int, model: VisionLanguageModel) -> dict[str, float]:
        with torch.no_grad():
            model(input_ids=torch.arange(1, 9)[None])
        return {}

    trained = {}
    for name, hook in (("blind", None), ("looking", look)):
        run = TrainConfig(stages=(stage,), evaluate_every=1 if hook else None)
        trainer = lab.trainer(tmp_path / name, run, model=compose(kind), hook=hook)
        trainer.fit()
        trained[name] = trainer.model
    losses = [
        [row["loss"] for row in read_log(tmp_path / name / "train.jsonl") if row["event"] == "step"]
        for name in trained
    ]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert equal_bits(trained["blind"], trained["looking"])
    before = {
        n.replace(".weight", ".base_layer.weight"): t for n, t in compose(kind).state_dict().items()
    }
    for name, tensor in trained["blind"].state_dict().items():
        if ".base_layer.weight" in name and name in before:
            assert torch.equal(tensor, before[name]), name
    trained["blind"].save_pretrained(tmp_path / "saved")
    assert equal_bits(VisionLanguageModel.load(tmp_path / "saved"), trained["blind"])


def test_whole_weights_do_not_train(
    tiny: ModuleType, lab: Any, compose: Any, tmp_path: Path
) -> None:
    run = TrainConfig(stages=(tiny.language_stage(trainable=("language_model",), steps=1),))
    with pytest.raises(ConfigError, match="quantised weights cannot train"):
        lab.trainer(tmp_path, run, model=compose("nf4")).fit()


def test_a_saved_model_says_what_is_missing(compose: Any, tmp_path: Path, monkeypatch: Any) -> None:
    compose("nf4").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert "quantization_config" not in saved["language"]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"medloupe\[quantized\]"):
        VisionLanguageModel.load(tmp_path)


def test_rows_that_share_a_block_are_refused(lab: Any, tiny: ModuleType, tmp_path: Path) -> None:
    lab.model().language_model.save_pretrained(tmp_path)
    tiny.tokenizer("bytes", "chatml").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"multiple of 64 weights, .*q_proj has 32.*to int8"):
        load_language(LanguageConfig(source=str(tmp_path), quantization="nf4"))
    load_language(LanguageConfig(source=str(tmp_path), quantization="int8"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_leave_the_weights_as_they_are(
    lab: Any, compose: Any, kind: str, precision: Any
) -> None:
    """The predictor casts a model for the length of a call; integers are no numbers to cast."""
    model, twin = compose(kind), compose(kind)
    context = lab.context(model)
    config = GenerateConfig(max_new_tokens=3, precision=precision)
    predict = Predictor(model, context.processor, context.images, config)
    answers = predict(lab.dataset.conversations[:2])
    assert all(1 <= len(answer.token_ids) <= 3 for answer in answers)
    assert equal_bits(model, twin)
