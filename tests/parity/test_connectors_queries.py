"""Connectors with learned queries against plain torch and transformers, through real name maps.

Tolerances: float32 attention in another order of sums (rtol 1e-4, atol 1e-5; gradients likewise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    IdeficsConfig,
    OPTConfig,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from medloupe.errors import CheckpointError
from medloupe.models.connectors.attention_pooling import (
    AttentionPoolingConfig,
    AttentionPoolingConnector,
)
from medloupe.models.connectors.perceiver import PerceiverConfig
from medloupe.models.connectors.q_former import QFormerConfig, blip2_names
from medloupe.models.connectors.queries import QueryConnector
from medloupe.types import ImageLayout

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
GRID = ImageLayout(depth=3, rows=2, columns=4)
Reference = Callable[[torch.Tensor], torch.Tensor]


def stir(module: nn.Module) -> None:
    """Norms that begin as ones and zeros would hide a swapped name."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)


def weighed(out: torch.Tensor) -> torch.Tensor:
    return (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()


def same(
    module: nn.Module, reference: Reference, theirs: Callable[[], dict[str, torch.Tensor | None]]
) -> None:
    """Equal outputs and equal gradients; `theirs` gives the reference's gradients by our names."""
    features = torch.randn(2, GRID.tokens, 8)
    first, second = features.clone().requires_grad_(), features.clone().requires_grad_()
    ours = module(first, GRID)
    weighed(ours).backward()
    own = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    wanted = reference(second)
    weighed(wanted).backward()
    torch.testing.assert_close(ours, wanted, **CLOSE)
    torch.testing.assert_close(first.grad, second.grad, **CLOSE)
    gradients = theirs()
    assert gradients.keys() == own.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, msg=lambda m, n=name: f"{n}: {m}", **CLOSE)


def places(position: str | None, module: QueryConnector, channels: int) -> torch.Tensor:
    """`[T, C]`: what is added to each token, written from Vaswani et al. 2017, section 3.5."""
    if position is None:
        return torch.zeros(GRID.tokens, channels)
    if position == "learned":
        return module.slices_SC[: GRID.depth].repeat_interleave(8, dim=0)
    rows = []
    for number in range(GRID.depth):
        angles = [number / 10000 ** (2 * i / channels) for i in range(channels // 2)]
        row = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows += [row] * (GRID.rows * GRID.columns)
    return torch.tensor(rows)


class TestAttentionPooling:
    @pytest.mark.parametrize("norm", [False, True])
    @pytest.mark.parametrize("position", [None, "learned", "sine"])
    def test_equals_softmax_over_all_slices(self, position: str | None, norm: bool) -> None:
        config = AttentionPoolingConfig(
            queries=5, heads=2, slice_position=position, norm=norm, max_slices=3, hidden=20
        )
        module = config.build(8, 12)
        stir(module)

        def reference(x: torch.Tensor) -> torch.Tensor:
            if norm:
                x = F.layer_norm(x, (8,), module.norm.weight, module.norm.bias)
            x = x + places(position, module, 8)
            weights = module.attention.in_proj_weight.chunk(3)
            biases = module.attention.in_proj_bias.chunk(3)
            given = (module.query.expand(2, -1, -1), x, x)
            q, k, v = (one @ w.T + b for one, w, b in zip(given, weights, biases, strict=True))
            heads = []
            for head in (slice(0, 4), slice(4, 8)):
                scores = q[..., head] @ k[..., head].transpose(1, 2) / math.sqrt(4)
                heads.append(torch.softmax(scores, dim=-1) @ v[..., head])
            out = module.attention.out_proj(torch.cat(heads, dim=-1))
            return module.layers[2](F.gelu(module.layers[0](out)))

        same(module, reference, lambda: {n: p.grad for n, p in module.named_parameters()})

    def test_slices_without_a_position_have_no_order(self) -> None:
        features = torch.randn(1, GRID.tokens, 8)
        turned = features.unflatten(1, (3, 8)).flip(1).flatten(1, 2)
        plain = AttentionPoolingConfig(queries=5, heads=2).build(8, 12)
        torch.testing.assert_close(plain(turned, GRID), plain(features, GRID), **CLOSE)
        sine = AttentionPoolingConfig(queries=5, heads=2, slice_position="sine").build(8, 12)
        assert not torch.allclose(sine(turned, GRID), sine(features, GRID), **CLOSE)

    def test_medm_vl_at_its_published_size(self) -> None:
        """SigLIP-base and Qwen2.5-3B; the tensors of MedM-VL's public `AttnPooling`."""
        published = {
            "query": (256, 768),
            "attn.in_proj_weight": (3 * 768, 768),
            "attn.in_proj_bias": (3 * 768,),
            "attn.out_proj.weight": (768, 768),
            "attn.out_proj.bias": (768,),
            "connector.0.weight": (2048, 768),
            "connector.0.bias": (2048,),
            "connector.2.weight": (2048, 2048),
            "connector.2.bias": (2048,),
        }
        with torch.device("meta"):
            module = AttentionPoolingConfig().build(768, 2048)
        assert isinstance(module, AttentionPoolingConnector)
        own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        renamed = {
            name.replace("attn.", "attention.").replace("connector.", "layers."): shape
            for name, shape in published.items()
        }
        assert renamed == own
        grid = ImageLayout(depth=32, rows=16, columns=16)
        features = torch.randn(1, grid.tokens, 768, device="meta")
        assert module(features, grid).shape == (1, 256, 2048)


def idefics_names(depth: int, qk_norm: bool) -> dict[str, str]:
    """Idefics' name of each tensor -> ours; its blocks are pairs of attention and feed-forward."""
    names = {
        "latents": "latents",
        "layer_norm.weight": "norm.weight",
        "layer_norm.bias": "norm.bias",
    }
    for i in range(depth):
        norms = {"0.context_layer_norm": "token_norm", "0.latents_layer_norm": "latent_norm",
                 "1.ln": "norm"}  # fmt: skip
        if qk_norm:
            norms |= {"0.q_layer_norm": "query_norm", "0.k_layer_norm": "key_norm"}
        for theirs, ours in norms.items():
            for leaf in ("weight", "bias"):
                names[f"blocks.{i}.{theirs}.{leaf}"] = f"layers.{i}.{ours}.{leaf}"
        linears = {"0.q_proj": "query", "0.k_proj": "key", "0.v_proj": "value",
                   "0.output_proj": "out", "1.fc": "up", "1.c_proj": "down"}  # fmt: skip
        for theirs, ours in linears.items():
            names[f"blocks.{i}.{theirs}.weight"] = f"layers.{i}.{ours}.weight"
    return names


def idefics(channels: int, depth: int, heads: int, size: int, queries: int, qk_norm: bool) -> Any:
    config = IdeficsConfig(
        perceiver_config={"qk_layer_norms_perceiver": qk_norm},
        vision_config={"embed_dim": channels},
    )
    return IdeficsPerceiverResampler(config, channels, depth, heads, size, queries)


class SquaredReLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(x, min=0) ** 2


ACTIVATIONS = {"relu": nn.ReLU(), "squared_relu": SquaredReLU(), "gelu": nn.GELU()}


class TestPerceiver:
    @pytest.mark.parametrize(
        ("activation", "position", "qk_norm"),
        [
            ("relu", None, False),
            ("relu", None, True),
            ("gelu", "sine", False),
            ("squared_relu", "learned", False),
        ],
    )
    def test_equals_the_resampler_of_idefics(
        self, activation: str, position: str | None, qk_norm: bool
    ) -> None:
        """Flamingo differs in the activation and in what it adds to the tokens of each slice."""
        theirs = idefics(8, 2, 3, 4, 5, qk_norm)
        for block in theirs.blocks:
            block[1].act = ACTIVATIONS[activation]
        stir(theirs)
        config = PerceiverConfig(
            queries=5, depth=2, heads=3, head_size=4, activation=activation,
            slice_position=position, max_slices=3, qk_norm=qk_norm,
        )  # fmt: skip
        module = config.build(8, 12)
        names = idefics_names(2, qk_norm)
        tensors = {names[name]: tensor for name, tensor in theirs.state_dict().items()}
        left = module.load_state_dict(tensors, strict=False)
        assert left.unexpected_keys == []
        extra = ["slices_SC"] if position == "learned" else []
        assert left.missing_keys == [*extra, "project.weight", "project.bias"]

        def gradients() -> dict[str, torch.Tensor | None]:
            own = {n: p.grad for n, p in module.named_parameters() if n in left.missing_keys}
            return own | {names[n]: p.grad for n, p in theirs.named_parameters()}

        def reference(x: torch.Tensor) -> torch.Tensor:
            return module.project(theirs(x + places(position, module, 8)))

        same(module, reference, gradients)

    def test_idefics_at_its_published_size(self) -> None:
        """Idefics-9b: 64 latents, 6 layers, 16 heads of 96 over 1280 channels, queries and keys normed."""
        with torch.device("meta"):
            theirs = idefics(1280, 6, 16, 96, 64, True).state_dict()
            own = PerceiverConfig(slice_position=None, activation="relu", qk_norm=True)
            ours = own.build(1280, 4096).state_dict()
        names = idefics_names(6, True)
        mapped = {names[name]: tensor.shape for name, tensor in theirs.items()}
        fresh = {"project.weight", "project.bias"}
        assert mapped == {n: t.shape for n, t in ours.items() if n not in fresh}


def tiny_blip2(**fields: int) -> Blip2ForConditionalGeneration:
    former = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16,
              "intermediate_size": 24, "cross_attention_frequency": 2} | fields  # fmt: skip
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            image_size=28, patch_size=14,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(**former).to_dict(),
        text_config=OPTConfig(
            vocab_size=30, hidden_size=12, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, word_embed_proj_dim=12,
        ).to_dict(),
        num_query_tokens=5,
        image_token_index=29,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config).eval()
    stir(model)
    return model


TINY = {"queries": 5, "width": 16, "depth": 3, "heads": 2, "inner": 24, "dropout": 0.1}
PREFIXES = ("query_tokens", "qformer.", "language_projection.")


def their_part(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.startswith(PREFIXES)}


class TestQFormer:
    def test_equals_blip2(self) -> None:
        theirs = tiny_blip2()
        module = QFormerConfig(**TINY, fresh=()).build(8, 12).eval()
        module.load_blip2(their_part(theirs), "tiny")

        def reference(x: torch.Tensor) -> torch.Tensor:
            queries = theirs.query_tokens.expand(len(x), -1, -1)
            former = theirs.qformer(query_embeds=queries, encoder_hidden_states=x)
            return theirs.language_projection(former.last_hidden_state)

        names = blip2_names(3, 2)

        def gradients() -> dict[str, torch.Tensor | None]:
            return {names[n]: p.grad for n, p in theirs.named_parameters() if n in names}

        same(module, reference, gradients)

    def test_weights_go_both_ways(self) -> None:
        theirs, again = tiny_blip2(), tiny_blip2()
        module = QFormerConfig(**TINY, fresh=()).build(8, 12)
        module.load_blip2(their_part(theirs), "tiny")
        back = module.to_blip2()
        assert back.keys() == their_part(theirs).keys()
        left = again.load_state_dict(back, strict=False)
        assert left.unexpected_keys == []
        for name, tensor in their_part(again).items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name

    @pytest.mark.parametrize("shard", ["1GB", "4KB"])
    def test_a_published_folder_is_read(self, tmp_path: Path, shard: str) -> None:
        """In one file or in shards, as transformers saves it; the rest of BLIP-2 is not read."""
        theirs = tiny_blip2()
        theirs.save_pretrained(tmp_path, max_shard_size=shard)
        assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "4KB")
        assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard == "1GB" else 8) or True
        module = QFormerConfig(**TINY, source=str(tmp_path)).build(8, 99)
        fresh = module.project.weight.clone()
        module.load_pretrained()
        assert torch.equal(module.project.weight, fresh)
        for name, tensor in their_part(theirs).items():
            if "projection" not in name:
                assert torch.equal(module.to_blip2()[name], tensor), name

    def test_blip2_at_its_published_size(self) -> None:
        """The query branch of Blip2QFormerModel's defaults, which are those of every BLIP-2."""
        config = Blip2QFormerConfig()
        with torch.device("meta"):
            theirs = Blip2QFormerModel(config).state_dict()
            ours = QFormerConfig().build(1408, 2560).state_dict()
        shapes = {f"qformer.{name}": tensor.shape for name, tensor in theirs.items()}
        shapes |= {
            "query_tokens": torch.Size([1, 32, 768]),
            "language_projection.weight": torch.Size([2560, 768]),
            "language_projection.bias": torch.Size([2560]),
        }
        names = blip2_names(12, 2)
        assert {names[name]: shape for name, shape in shapes.items()} == {
            name: tensor.shape for name, tensor in ours.items()
        }

    def test_another_encoder_starts_its_keys_and_values_fresh(self) -> None:
        theirs = their_part(tiny_blip2())
        with pytest.raises(
            CheckpointError, match=r"layers\.0\.cross\.key\.weight.*\[16, 8\].*\[16, 6\]"
        ):
            QFormerConfig(**TINY).build(6, 12).load_blip2(theirs, "tiny")
        fresh = ("project.*", "layers.*.cross.key.*", "layers.*.cross.value.*")
        module = QFormerConfig(**TINY, fresh=fresh).build(6, 12)
        before = module.layers[2].cross.value.weight.clone()
        module.load_blip2(theirs, "tiny")
        assert torch.equal(module.layers[2].cross.value.weight, before)
        wanted = theirs["qformer.encoder.layer.2.crossattention.attention.query.weight"]
        assert torch.equal(module.layers[2].cross.query.weight, wanted)

    def test_every_tensor_has_its_place(self) -> None:
        theirs = their_part(tiny_blip2())
        module = QFormerConfig(**TINY).build(8, 12)
        text = {"qformer.encoder.layer.0.output.dense.weight": torch.zeros(1)}
        module.load_blip2(theirs | text, "tiny")
        with pytest.raises(CheckpointError, match=r"'qformer\.odd' of 'tiny' fits nothing"):
            module.load_blip2(theirs | {"qformer.odd": torch.zeros(1)}, "tiny")
        del theirs["qformer.layernorm.bias"]
        with pytest.raises(
            CheckpointError, match=r"'tiny' lacks the Q-Former's tensor 'norm\.bias'"
        ):
            module.load_blip2(theirs, "tiny")
