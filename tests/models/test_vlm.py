"""The composed model: complete on disk, the same with and without a cache, on either side's padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

from medloupe.errors import CheckpointError, ConfigError, PromptError
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.language import LanguageConfig
from medloupe.models.vlm import (
    IMAGE_TOKEN,
    VisionLanguageModel,
    VLMConfig,
    encoder_hash,
    plain_images,
    with_tensors,
)
from medloupe.types import ImageInput

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "gpt2"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
IMAGE_TOKENS = [98] * 4

MY_CONNECTOR = """
import torch
from medloupe.models.connectors import Connector, ConnectorConfig


class PoolConfig(ConnectorConfig):
    factor: float = 1.0

    def build(self, channels, width):
        return Pool(self, channels, width)


class Pool(Connector):
    def __init__(self, config, channels, width):
        super().__init__()
        self.factor = config.factor
        self.project = torch.nn.Linear(channels, width)

    def layout(self, grid):
        return grid

    def forward(self, features_NTC, grid):
        return self.factor * self.project(features_NTC)
"""


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


class TestOnDisk:
    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_saved_folder_is_complete_and_bit_equal(
        self, make_model, pixels, tmp_path: Path, family: str, tied: bool
    ) -> None:
        model = make_model(family, tied=tied)
        inputs = {"input_ids": ids([1, 5, *IMAGE_TOKENS, 6, 7]), "pixel_values": pixels[:1]}
        wanted = logits(model, **inputs)
        model.save_pretrained(tmp_path)
        state = model.state_dict()
        for again in (
            VisionLanguageModel.load(tmp_path),
            VisionLanguageModel.from_pretrained(tmp_path),
            AutoModelForCausalLM.from_pretrained(tmp_path),
        ):
            assert isinstance(again, VisionLanguageModel)
            assert again.state_dict().keys() == state.keys()
            for name, tensor in again.state_dict().items():
                assert torch.equal(tensor, state[name]), name
            assert torch.equal(logits(again.eval(), **inputs), wanted)

    def test_nothing_is_read_from_where_the_parts_came_from(
        self, language_folder: Path, tmp_path: Path
    ) -> None:
        tower = tmp_path / "tower"
        sizes = {"hidden_size": 32, "intermediate_size": 48, "image_size": 28, "patch_size": 14}
        vision = CLIPVisionConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)
        published = CLIPVisionModel(vision)
        published.save_pretrained(tower)
        model, tokenizer = VisionLanguageModel.compose(
            EncoderConfig.parse({"name": "clip", "source": str(tower)}),
            ConnectorConfig.parse("mlp"),
            LanguageConfig(source=str(language_folder)),
        )
        assert tokenizer.convert_ids_to_tokens(model.config.image_token_id) == IMAGE_TOKEN
        key = "encoder.layers.0.mlp.fc1.weight"
        assert torch.equal(model.encoder.tower.state_dict()[key], published.state_dict()[key])
        folder = tmp_path / "saved"
        model.save_pretrained(folder)
        for gone in (tower, language_folder):
            gone.rename(gone.with_name(gone.name + "-moved"))
        again = VisionLanguageModel.load(folder)
        for name, tensor in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name

    @pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
    def test_tied_tables_are_one_tensor_and_stay_one(
        self, make_model, tmp_path: Path, family: str
    ) -> None:
        model = make_model(family, tied=True)
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        model.save_pretrained(tmp_path)
        again = VisionLanguageModel.load(tmp_path)
        assert again.get_input_embeddings().weight is again.get_output_embeddings().weight

    def test_untied_tables_stay_two(self, make_model, tmp_path: Path) -> None:
        make_model("llama").save_pretrained(tmp_path)
        again = VisionLanguageModel.load(tmp_path)
        tables = again.get_input_embeddings().weight, again.get_output_embeddings().weight
        assert not torch.equal(*tables)

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            VisionLanguageModel.load(tmp_path)

    def test_a_folder_without_weights(self, make_model, tmp_path: Path) -> None:
        make_model().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(CheckpointError) as caught:
            VisionLanguageModel.load(tmp_path)
        assert caught.value.fault.file == str(tmp_path)

    def test_a_config_without_parts(self) -> None:
        with pytest.raises(CheckpointError, match="lacks the encoder"):
            VisionLanguageModel(VLMConfig())

    def test_the_hash_follows_every_tensor_of_the_encoder(self, make_model) -> None:
        model = make_model()
        before = encoder_hash(model.encoder)
        assert encoder_hash(make_model().encoder) == before
        with torch.no_grad():
            next(iter(model.encoder.parameters())).view(-1)[0] += 1e-3
        assert encoder_hash(model.encoder) != before
        with torch.no_grad():
            model.connector.layers[0].weight += 1
        assert encoder_hash(make_model().encoder) == before


class TestTrust:
    def test_a_connector_of_the_users_own_is_loaded_only_when_trusted(
        self, make_model, pixels, tmp_path: Path, monkeypatch
    ) -> None:
        (tmp_path / "my_lab_pool.py").write_text(MY_CONNECTOR)
        monkeypatch.syspath_prepend(tmp_path)
        named = {"name": "my_lab_pool:PoolConfig", "factor": 0.5}
        model = make_model(connector=named)
        folder = tmp_path / "saved"
        model.save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["connector"] == named
        with pytest.raises(ConfigError, match=r"names code outside MedLoupe.*--trust-code"):
            VisionLanguageModel.load(folder)
        again = VisionLanguageModel.load(folder, trust_code=True)
        inputs = {"input_ids": ids([1, *IMAGE_TOKENS, 7]), "pixel_values": pixels[:1]}
        assert torch.equal(logits(again.eval(), **inputs), logits(model, **inputs))

    def test_distrust_ends_with_the_call(self, make_model, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "my_lab_other.py").write_text(MY_CONNECTOR)
        monkeypatch.syspath_prepend(tmp_path)
        model = make_model(connector={"name": "my_lab_other:PoolConfig"})
        model.save_pretrained(tmp_path / "saved")
        with pytest.raises(ConfigError):
            VisionLanguageModel.load(tmp_path / "saved")
        assert ConnectorConfig.parse("my_lab_other:PoolConfig").name == "my_lab_other:PoolConfig"


class TestForward:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_padding_on_either_side_changes_nothing(self, make_model, pixels, family: str) -> None:
        model = make_model(family)
        row = [1, 5, *IMAGE_TOKENS, 6, 7]
        alone = logits(model, input_ids=ids(row), pixel_values=pixels[:1])[0]
        other = [1, *IMAGE_TOKENS, 8, 9, 10, 11, 12]
        for padded, seen in (([*row, 0, 0], slice(0, 8)), ([0, 0, *row], slice(2, 10))):
            batch = ids(padded, other)
            mask = torch.ones_like(batch)
            mask[0] = 0
            mask[0, seen] = 1
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            together = logits(
                model,
                input_ids=batch,
                pixel_values=pixels,
                attention_mask=mask,
                position_ids=positions,
            )
            torch.testing.assert_close(together[0, seen], alone, **CLOSE)

    @pytest.mark.parametrize("given", [0, 2])
    def test_placeholders_must_match_the_image_tokens(self, make_model, pixels, given: int) -> None:
        model = make_model()
        with pytest.raises(PromptError, match=f"4 image placeholders.*{4 * given} image tokens"):
            model(
                input_ids=ids([1, *IMAGE_TOKENS, 7]), pixel_values=pixels[:given] if given else None
            )

    def test_a_row_short_of_one_placeholder_is_refused(self, make_model, pixels) -> None:
        with pytest.raises(PromptError, match="3 image placeholders"):
            make_model()(input_ids=ids([1, *IMAGE_TOKENS[:3], 7]), pixel_values=pixels[:1])

    def test_features_stand_in_for_pixels(self, make_model, pixels) -> None:
        model = make_model()
        row = ids([1, *IMAGE_TOKENS, 7])
        with torch.no_grad():
            encoded = model.encode(plain_images(pixels[:1]))
        ours = logits(model, input_ids=row, images=encoded)
        assert torch.equal(ours, logits(model, input_ids=row, pixel_values=pixels[:1]))

    def test_image_tokens_stand_where_the_text_says(self, make_model, pixels) -> None:
        model = make_model()
        row = ids([1, *IMAGE_TOKENS, 5, *IMAGE_TOKENS, 7], [1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
        with torch.no_grad():
            tokens = model.image_tokens(plain_images(pixels))
            embedded = model.embed(row, tokens)
        text = model.get_input_embeddings().weight
        assert torch.equal(embedded[0, 1:5], tokens[0])
        assert torch.equal(embedded[0, 6:10], tokens[1])
        assert torch.equal(embedded[0, [0, 5, 10]], text[torch.tensor([1, 5, 7])])
        assert torch.equal(embedded[1], text[row[1]])

    def test_gemma_scales_words_and_not_image_tokens(self, make_model, pixels) -> None:
        """Gemma multiplies inside its embedding; the connector's output goes in as it is."""
        model = make_model("gemma")
        with torch.no_grad():
            tokens = model.image_tokens(plain_images(pixels[:1]))
            embedded = model.embed(ids([5, *IMAGE_TOKENS]), tokens)
        table = model.get_input_embeddings().weight
        torch.testing.assert_close(embedded[0, 0], table[5] * 32**0.5)
        assert torch.equal(embedded[0, 1:], tokens[0])

    def test_an_image_token_beyond_the_vocabulary_needs_no_row(self, make_model, pixels) -> None:
        model = make_model()
        row = ids([1, *IMAGE_TOKENS, 7])
        wanted = logits(model, input_ids=row, pixel_values=pixels[:1])
        assert wanted.shape[-1] == 98
        model.config.image_token_id = 5000
        moved = row.masked_fill(row == 98, 5000)
        assert torch.equal(logits(model, input_ids=moved, pixel_values=pixels[:1]), wanted)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_label_loss_is_the_loss_of_forward(self, make_model, pixels, family: str) -> None:
        model = make_model(family)
        row = ids([1, *IMAGE_TOKENS, 7, 8, 2], [1, *IMAGE_TOKENS, 9, 2, 0])
        labels = ids([-100] * 6 + [8, 2], [-100] * 6 + [2, -100])
        segments = torch.zeros_like(row)
        segments[1, 7] = -1
        positions = torch.arange(8).expand(2, -1)
        whole = model(
            input_ids=row,
            pixel_values=pixels,
            labels=labels,
            segments=segments,
            position_ids=positions,
        )
        total, count = model.label_loss(
            row, labels, positions, segments, model.image_tokens(plain_images(pixels))
        )
        assert count == 3
        torch.testing.assert_close(total / count, whole.loss, **CLOSE)
        # the mean over three labels by hand, from the logits before each
        chances = whole.logits.log_softmax(-1)
        by_hand = chances[0, 5, 8] + chances[0, 6, 2] + chances[1, 5, 2]
        torch.testing.assert_close(total, -by_hand, **CLOSE)

    def test_logits_are_made_for_label_tokens_alone(self, make_model, pixels) -> None:
        """Not for columns in which another row has a label."""
        model = make_model()
        row = ids([1, *IMAGE_TOKENS, 7, 8, 2], [1, *IMAGE_TOKENS, 7, 8, 2])
        labels = ids([-100] * 6 + [8, 2], [-100, -100, 5, *[-100] * 5])
        seen: list[torch.Size] = []
        model.get_output_embeddings().register_forward_hook(
            lambda *args: seen.append(args[2].shape)
        )
        _, count = model.label_loss(
            row,
            labels,
            torch.arange(8).expand(2, -1),
            torch.zeros_like(row),
            model.image_tokens(plain_images(pixels)),
        )
        assert count == 3
        assert seen == [(3, 98)]

    def test_half_precision_language_model_with_a_float_encoder(self, make_model, pixels) -> None:
        model = make_model()
        model.language_model.to(torch.bfloat16)
        said = logits(model, input_ids=ids([1, *IMAGE_TOKENS, 7]), pixel_values=pixels[:1])
        assert said.dtype is torch.bfloat16
        assert bool(said.isfinite().all())


class TestGeneration:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_with_a_cache_and_without(self, make_model, pixels, family: str) -> None:
        model = make_model(family)
        row = ids([0, 0, 1, *IMAGE_TOKENS, 7], [1, 5, 6, *IMAGE_TOKENS, 8])
        inputs = {
            "input_ids": row,
            "pixel_values": pixels,
            "attention_mask": (row != 0).long(),
            "max_new_tokens": 10,
            "min_new_tokens": 10,
            "do_sample": False,
        }
        with_cache = model.generate(**inputs, use_cache=True)
        assert with_cache.tolist() == model.generate(**inputs, use_cache=False).tolist()
        assert with_cache.shape == (2, 18)

    def test_generation_from_cached_features(self, make_model, pixels) -> None:
        """transformers drops pixels after the first step by itself; features are ours to drop."""
        model = make_model()
        row = ids([1, *IMAGE_TOKENS, 7])
        with torch.no_grad():
            encoded = model.encode(plain_images(pixels[:1]))
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "max_new_tokens": 6}
        from_pixels = model.generate(**inputs, pixel_values=pixels[:1], do_sample=False)
        from_features = model.generate(**inputs, images=encoded, do_sample=False)
        assert from_features.tolist() == from_pixels.tolist()

    def test_greedy_decoding_is_the_argmax_of_forward(self, make_model, pixels) -> None:
        model = make_model("gpt2")
        row = ids([1, *IMAGE_TOKENS, 7])
        said = model.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            pixel_values=pixels[:1],
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
        )
        for _ in range(6):
            last = logits(model, input_ids=row, pixel_values=pixels[:1])[:, -1]
            row = torch.cat([row, last.argmax(-1, keepdim=True)], 1)
        assert said.tolist() == row.tolist()


def test_auto_config_knows_the_model_type(make_model, tmp_path: Path) -> None:
    model = make_model()
    model.config.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, VLMConfig)
    assert (config.encoder, config.connector) == (model.config.encoder, model.config.connector)
    assert config.image_token_id == 98
    text = config.get_text_config()
    assert (text.model_type, text.num_hidden_layers, text.vocab_size) == ("llama", 2, 98)
    assert text.to_diff_dict() == model.language_model.config.to_diff_dict()


def test_every_tensor_of_an_image_is_put_elsewhere() -> None:
    views = (torch.zeros(2), (torch.ones(1), torch.full((1,), 2.0)))
    image = ImageInput(views=views, detail=torch.full((1,), 3.0))
    found = with_tensors(image, lambda tensor: tensor + 10)
    assert isinstance(found.views, tuple)
    assert [t.tolist() for t in (found.views[0], *found.views[1])] == [[10, 10], [11], [12]]
    assert found.detail.tolist() == [13]
    assert found.features is None
    kept = with_tensors(ImageInput(features=torch.zeros(1)), lambda tensor: tensor + 10)
    assert kept.features.tolist() == [10]
    assert kept.views is None
