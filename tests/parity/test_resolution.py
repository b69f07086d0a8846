"""Multi-scale S2 and AnyRes against a few lines of plain torch around transformers' own tower, and the
three ways to fit a picture into a square against torch's own resize."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig
from transformers.image_processing_utils import select_best_resolution

from medloupe.errors import ConfigError
from medloupe.imaging.composed import SlicesTransform
from medloupe.imaging.tiles import LLAVA_NEXT_GRIDS, S2Grid, TiledTransform
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnector
from medloupe.models.encoders import EncoderConfig
from medloupe.models.resolution.scales import ScalesConfig, pool_tiles
from medloupe.models.resolution.units import UnitsConfig
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.recipes.published import DFN5B, VISION
from medloupe.types import ImageInput, ImageLayout, MedicalImage

# The same operations on the same weights in batches of another size: some units in the last place.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# A bias of the keys has no gradient but for rounding.
GRADIENTS = {"rtol": 1e-4, "atol": 1e-4}
SIDE, PATCH = 28, 7
TOWER = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=SIDE,
    patch_size=PATCH,
)
CLIP = {"name": "clip", "architecture": TOWER.to_diff_dict(), "layer": -2}
GRID = ImageLayout(rows=4, columns=4)


def built(config: EncoderConfig) -> Any:
    torch.manual_seed(1)
    encoder = config.build().eval()
    with torch.no_grad():  # at the usual starting scale a tiny tower hardly looks at its input
        for parameter in encoder.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return encoder


def reference_of(encoder: Any) -> CLIPVisionModel:
    """transformers' whole tower with the weights of ours, which has no layer above the one it reads."""
    model = CLIPVisionModel(TOWER).eval()
    found = model.load_state_dict(encoder.tower.state_dict(), strict=False)
    assert found.unexpected_keys == []
    assert all(".layers.2." in key or "post_layernorm" in key for key in found.missing_keys)
    return model


def seen_by(tower: CLIPVisionModel, tile_3HW: torch.Tensor) -> torch.Tensor:
    """`[G, G, C]`: layer -2 of one tile, its class token dropped."""
    states = tower(pixel_values=tile_3HW[None], output_hidden_states=True).hidden_states
    return states[-2][0, 1:].unflatten(0, (GRID.rows, GRID.columns))


def s2(tower: CLIPVisionModel, picture_3SS: torch.Tensor, scales: Sequence[int]) -> torch.Tensor:
    """`[T, K * C]` of one picture, step by step as section 2 of the notes says, one tile at a time."""
    channels = []
    for scale in scales:
        resized = F.interpolate(
            picture_3SS[None], size=(scale, scale), mode="bicubic", antialias=False
        )[0]
        times = scale // SIDE
        rows = []
        for row in range(times):
            tiles = [
                resized[:, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
                for column in range(times)
            ]
            rows.append(torch.cat([seen_by(tower, tile) for tile in tiles], dim=1))
        whole = torch.cat(rows, dim=0)  # G * times on each side
        blocks = whole.unflatten(0, (GRID.rows, times)).unflatten(2, (GRID.columns, times))
        channels.append(blocks.mean(dim=(1, 3)))
    return torch.cat(channels, dim=-1).flatten(0, 1)


SCALES = [SIDE, 2 * SIDE, 3 * SIDE]


class TestScales:
    @pytest.mark.parametrize("scales", [SCALES, [SIDE, 3 * SIDE], [SIDE]])
    def test_features_and_gradients_are_those_of_plain_torch(self, scales: list[int]) -> None:
        encoder = built(EncoderConfig.parse({"name": "scales", "encoder": CLIP, "scales": scales}))
        tower = reference_of(encoder.encoder)
        pictures = torch.randn(2, 3, scales[-1], scales[-1], requires_grad=True)
        again = pictures.detach().clone().requires_grad_()
        features = encoder(pictures)
        wanted = torch.stack([s2(tower, picture, scales) for picture in again])
        assert features.shape == (2, GRID.tokens, 32 * len(scales))
        assert encoder.layout == GRID
        assert encoder.channels == 32 * len(scales)
        torch.testing.assert_close(features, wanted, **CLOSE)
        weights = torch.randn_like(wanted)
        (features * weights).sum().backward()
        (wanted * weights).sum().backward()
        torch.testing.assert_close(pictures.grad, again.grad, **GRADIENTS)
        theirs = dict(tower.named_parameters())
        for name, parameter in encoder.encoder.tower.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, **GRADIENTS, msg=name)

    def test_all_tiles_are_one_batch_or_as_many_chunks_as_memory_wants(self) -> None:
        batches: list[int] = []

        def run(chunk: int | None) -> Any:
            config = {"name": "scales", "encoder": CLIP, "scales": SCALES, "chunk": chunk}
            encoder = built(EncoderConfig.parse(config))
            encoder.encoder.register_forward_pre_hook(
                lambda _, views: batches.append(len(views[0]))
            )
            pictures = torch.randn(2, 3, 84, 84, generator=torch.Generator().manual_seed(2))
            features = encoder(pictures)
            asked = list(batches)
            features.square().sum().backward()
            gradients = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
            batches.clear()
            with torch.no_grad():
                torch.testing.assert_close(encoder(pictures), features, **CLOSE)
            frozen = list(batches)
            batches.clear()
            return features.detach(), gradients, asked, frozen

        features, gradients, asked, frozen = run(None)
        assert asked == frozen == [28]  # two images of 1 + 4 + 9 tiles
        chunked, their_gradients, asked, frozen = run(10)
        assert asked == frozen == [10, 10, 8]
        torch.testing.assert_close(chunked, features, **CLOSE)
        for one, other in zip(their_gradients, gradients, strict=True):
            torch.testing.assert_close(one, other, **GRADIENTS)

    def test_chunks_hold_in_the_backward_pass_too(self) -> None:
        """What is kept for the backward pass does not grow with the tiles: chunks are encoded anew."""

        def kept(chunk: int | None) -> int:
            config = {"name": "scales", "encoder": CLIP, "scales": SCALES, "chunk": chunk}
            sizes: list[int] = []

            def note(tensor: torch.Tensor) -> torch.Tensor:
                sizes.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                built(EncoderConfig.parse(config))(torch.randn(2, 3, 84, 84))
            return sum(sizes)

        assert kept(4) < 0.2 * kept(None)

    def test_pooling_is_in_float32(self) -> None:
        """A mean of nine bfloat16 numbers, rounded once."""
        tiles = torch.randn(1, 9, GRID.tokens, 5, dtype=torch.bfloat16)
        pooled = pool_tiles(tiles, 3, GRID)
        exact = pool_tiles(tiles.double(), 3, GRID)
        assert pooled.dtype is torch.bfloat16
        assert torch.equal(pooled, exact.to(torch.float32).to(torch.bfloat16))

    def test_nothing_is_dropped_where_there_is_no_class_token(self) -> None:
        tower = SiglipVisionConfig(**{k: v for k, v in TOWER.to_dict().items() if k in _SIZES})
        config = {"name": "siglip", "architecture": tower.to_diff_dict()}
        encoder = built(
            EncoderConfig.parse({"name": "scales", "encoder": config, "scales": [28, 56]})
        )
        picture = torch.randn(1, 3, 56, 56)
        with torch.no_grad():
            features = encoder(picture)
            alone = encoder.encoder(F.interpolate(picture, size=(28, 28), mode="bicubic"))
        assert features.shape == (1, 16, 64)
        torch.testing.assert_close(features[..., :32], alone, **CLOSE)

    def test_the_published_size_on_the_meta_device(self) -> None:
        """378, 756 and 1134 pixels: 729 tokens of 3840 channels, and no tensor but the tower's."""
        config = ScalesConfig(
            encoder=EncoderConfig.parse({"name": "clip", "architecture": VISION[DFN5B]})
        )
        with torch.device("meta"):
            encoder = config.build()
            features = encoder(torch.empty(1, 3, 1134, 1134))
            tower = CLIPVisionModel(CLIPVisionConfig(**VISION[DFN5B]))
        assert features.shape == (1, 729, 3840)
        assert encoder.layout == ImageLayout(rows=27, columns=27)
        assert encoder.channels == 3840
        ours = {n.removeprefix("encoder.tower."): t.shape for n, t in encoder.state_dict().items()}
        theirs = {name: tensor.shape for name, tensor in tower.state_dict().items()}
        idle = {name for name in theirs if ".layers.31." in name}  # above layer -2
        assert ours == {name: shape for name, shape in theirs.items() if name not in idle}

    def test_the_view_is_one_square_at_the_largest_scale(self) -> None:
        config = EncoderConfig.parse({"name": "scales", "encoder": CLIP, "scales": SCALES})
        view = config.fitted(ImageTransform(fit="crop"))
        assert isinstance(view, ImageTransform)
        assert (view.size, view.fit, view.mean) == (84, "crop", config.encoder.mean)
        # what the model cuts is what `S2Grid` says of where pixels go
        tiles = S2Grid(scales=tuple(SCALES)).tiles(60, 90, view)
        assert len(tiles) == 14

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"scales": [56, 28]}, "do not grow"),
            ({"scales": [28, 70]}, "not multiples"),
            ({"scales": [14, 28]}, "smallest scale is 14"),
            ({"encoder": CLIP | {"class_token": "keep"}}, "no square grid"),
            ({"encoder": {"name": "slices", "encoder": CLIP}}, "has no size"),
        ],
    )
    def test_what_cannot_be_scaled(self, fields: dict[str, Any], text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            EncoderConfig.parse(
                {"name": "scales", "encoder": CLIP, "scales": [28, 56]} | fields
            ).build()


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def radiograph(width: int, height: int) -> MedicalImage:
    values = np.random.default_rng(width).integers(0, 256, (1, height, width)).astype(np.float32)
    return MedicalImage(array=values, units="stored", window=(128.0, 256.0))


def resized(plane_HW: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Torch's own bicubic with antialias, which is Pillow's, clipped as a display is."""
    large = F.interpolate(
        plane_HW[None, None], size=(rows, columns), mode="bicubic", antialias=True
    )[0, 0]
    return large.clamp(0, 255)


def letterboxed(plane_HW: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    height, width = plane_HW.shape
    scale = min(rows / height, columns / width)
    inner = resized(plane_HW, max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = (rows - inner.shape[0]) // 2, (columns - inner.shape[1]) // 2
    view = torch.zeros(rows, columns)
    view[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return view


class TestFits:
    """Weights are float64 here and fixed point there: the views differ by under a thousandth of 255."""

    @pytest.mark.parametrize(("width", "height"), [(40, 40), (60, 30), (26, 70), (8, 12)])
    def test_pad_crop_and_stretch(self, width: int, height: int) -> None:
        image = radiograph(width, height)
        plane = torch.from_numpy(image.array[0])
        short = min(width, height)
        top, left = (height - short) // 2, (width - short) // 2
        square = plane[top : top + short, left : left + short]
        wanted = {
            "pad": letterboxed(plane, 28, 28),
            "stretch": resized(plane, 28, 28),
            "crop": resized(square, 28, 28),
        }
        for fit, view in wanted.items():
            transform = ImageTransform.parse({"size": 28, "fit": fit} | PLAIN)
            ours = torch.from_numpy(transform.apply(image)[0]) * 255
            # a crop's filter reads on beyond the cut: two pixels of the larger grid
            reach = math.ceil(2 * max(1, 28 / short)) if width != height else 0
            rim = reach if fit == "crop" else 0
            inside = slice(rim, 28 - rim)
            apart = (ours - view)[inside, inside].abs()
            assert float(apart.max()) < 0.255, fit


class TestTiles:
    def test_features_and_gradients_of_several_aspect_ratios(self) -> None:
        """Overview first, then the tiles of LLaVA-NeXT's grid, row by row, each encoded alone."""
        config = EncoderConfig.parse({"name": "tiles", "encoder": CLIP})
        encoder = built(config)
        tower = reference_of(encoder.encoder)
        transform = config.fitted(ImageTransform())
        assert isinstance(transform, TiledTransform)
        assert transform.grids == LLAVA_NEXT_GRIDS
        total, wanted_total = torch.zeros(()), torch.zeros(())
        for width, height in [(60, 30), (30, 70), (50, 50), (140, 30)]:
            image = radiograph(width, height)
            plane = torch.from_numpy(image.array[0])
            pinpoints = [[SIDE * rows, SIDE * columns] for rows, columns in LLAVA_NEXT_GRIDS]
            rows, columns = select_best_resolution((height, width), pinpoints)
            mosaic = letterboxed(plane, rows, columns)
            pictures = [letterboxed(plane, SIDE, SIDE)]
            for top in range(0, rows, SIDE):
                for left in range(0, columns, SIDE):
                    pictures.append(mosaic[top : top + SIDE, left : left + SIDE])
            mean, std = (
                torch.tensor(v)[:, None, None] for v in (config.encoder.mean, config.encoder.std)
            )
            views = [(picture / 255 - mean) / std for picture in pictures]
            ours = torch.from_numpy(transform.apply(image))
            assert ours.shape == (len(views), 3, SIDE, SIDE)
            # as in `TestFits`: a thousandth, over a standard deviation of a quarter
            torch.testing.assert_close(ours, torch.stack(views), rtol=0, atol=4e-3)
            features = encoder(ours[None])
            wanted = torch.cat([seen_by(tower, view).flatten(0, 1) for view in ours])
            torch.testing.assert_close(features[0], wanted, **CLOSE)
            assert encoder.grid(ours[None]) == GRID.model_copy(update={"depth": len(views)})
            weights = torch.randn_like(wanted)
            total = total + (features[0] * weights).sum()
            wanted_total = wanted_total + (wanted * weights).sum()
        total.backward()
        wanted_total.backward()
        theirs = dict(tower.named_parameters())
        for name, parameter in encoder.encoder.tower.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[name].grad, **GRADIENTS, msg=name)

    @pytest.mark.parametrize(
        ("connector", "per_unit"),
        [
            ("mlp", 16),
            ({"name": "grouped", "group": 5, "pad": True}, 4),
            ({"name": "pooled", "window": [1, 2, 2]}, 4),
            ({"name": "attention_pooling", "queries": 6, "heads": 4}, None),
            ("mean_slices", None),
        ],
    )
    def test_the_processor_counts_what_the_model_makes(self, connector: Any, per_unit: Any) -> None:
        config = EncoderConfig.parse({"name": "tiles", "encoder": CLIP})
        model = composed(config, connector)
        transform = config.fitted(ImageTransform())
        sizes = [(60, 30), (28, 28), (50, 50), (140, 30), (60, 30)]
        images = [
            ImageInput(views=torch.from_numpy(transform.apply(radiograph(*size)))) for size in sizes
        ]
        with torch.no_grad():
            tokens = model.image_tokens(images)
        stated = [
            model.layouts.tokens("image", lambda size=size: transform.units(size)) for size in sizes
        ]
        assert [len(one) for one in tokens] == stated
        if per_unit is not None:
            assert stated == [per_unit * transform.units(size) for size in sizes]
            assert len(set(stated)) > 1
        with torch.no_grad():  # images of other shapes in the batch change nothing
            for one, image in zip(tokens, images, strict=True):
                torch.testing.assert_close(model.image_tokens([image])[0], one, **CLOSE)

    def test_a_connector_that_mixes_units_is_refused_early(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def odd(_: Any, grid: ImageLayout) -> ImageLayout:
            return ImageLayout(rows=1, columns=grid.tokens + 3)

        monkeypatch.setattr(MLPConnector, "layout", odd)
        with pytest.raises(ConfigError, match="two units of images become 35 tokens, one 19"):
            composed(EncoderConfig.parse({"name": "tiles", "encoder": CLIP}), "mlp")

    def test_chunks_change_no_feature(self) -> None:
        views = torch.randn(2, 5, 3, SIDE, SIDE)
        config = {"name": "tiles", "encoder": CLIP}
        with torch.no_grad():
            whole = built(EncoderConfig.parse(config))(views)
            parts = built(EncoderConfig.parse(config | {"chunk": 3}))(views)
        torch.testing.assert_close(parts, whole, **CLOSE)

    def test_what_is_no_unit(self) -> None:
        two = {"name": "joined", "encoders": [CLIP, CLIP]}
        for name in ("tiles", "slices"):
            config = EncoderConfig.parse({"name": name, "encoder": two})
            assert isinstance(config, UnitsConfig)
            with pytest.raises(ConfigError, match="each unit has one view"):
                config.fitted(ImageTransform())
            inner = {"name": "tiles", "encoder": CLIP}
            with pytest.raises(ConfigError, match="by a 2D encoder, not by 'tiles'"):
                EncoderConfig.parse({"name": name, "encoder": inner}).build()
            with pytest.raises(ConfigError, match="tokens of several units"):
                EncoderConfig.parse({"name": "trimmed", "encoder": inner | {"name": name}}).build()
        with pytest.raises(ConfigError, match="'tiles' cannot take what the transform 'slices'"):
            EncoderConfig.parse({"name": "tiles", "encoder": CLIP}).fitted(SlicesTransform())


def composed(encoder: EncoderConfig, connector: Any) -> VisionLanguageModel:
    torch.manual_seed(3)
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    language = AutoConfig.for_model("llama", **text)
    config = VLMConfig(
        encoder=encoder.to_dict(),
        connector=connector,
        language=language.to_dict(),
        image_token_id=40,
    )
    return VisionLanguageModel(config).eval()
