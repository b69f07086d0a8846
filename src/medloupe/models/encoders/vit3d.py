"""3D vision transformers: M3D-CLIP's published one, and a small one to train from scratch.

Both cut a volume `[1, D, H, W]` into patches and give one token each, in D, H, W order. M3D-CLIP's
published names, all below `vision_encoder.` (N is a block's number, from 0):

    patch_embedding.patch_embeddings.1.{weight,bias}   patches.{weight,bias}
    patch_embedding.position_embeddings                positions  (the class token has none)
    cls_token                                          class_token
    blocks.N.norm1.{weight,bias}                       blocks.N.norm1.{weight,bias}
    blocks.N.attn.qkv.weight                           blocks.N.attention.qkv.weight
    blocks.N.attn.out_proj.{weight,bias}               blocks.N.attention.out.{weight,bias}
    blocks.N.norm2.{weight,bias}                       blocks.N.norm2.{weight,bias}
    blocks.N.mlp.linear1.{weight,bias}                 blocks.N.mlp.0.{weight,bias}
    blocks.N.mlp.linear2.{weight,bias}                 blocks.N.mlp.2.{weight,bias}
    norm.{weight,bias}                                 norm.{weight,bias}

The rest, `language_encoder.*`, `mm_vision_proj.*`, `mm_language_proj.*` and `logit_scale`, is not read.
Source: Bai et al. 2024 (M3D); MedM-VL section 3.
"""

from __future__ import annotations

from typing import Literal

from medloupe.errors import ConfigError
from medloupe.imaging.composed import VolumeTransform
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.encoders.base import EncoderConfig
from medloupe.models.encoders.checkpoints import (
    checkpoint_file,
    depth_of,
    read_tensors,
    source_of,
)
from medloupe.models.encoders.tower import DType, in_dtype
from medloupe.models.encoders.vit import (
    Names,
    TrunkEncoder,
    VisionTransformer,
    ViTSize,
    VolumePatches,
    load_published,
)
from medloupe.types import ImageLayout

NAMES = Names(
    prefix="vision_encoder.",
    parts=(
        ("patches", "patch_embedding.patch_embeddings.1"),
        ("positions", "patch_embedding.position_embeddings"),
        ("class_token", "cls_token"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
        ("attention.qkv", "attn.qkv"),
        ("attention.out", "attn.out_proj"),
        ("mlp.0", "mlp.linear1"),
        ("mlp.2", "mlp.linear2"),
        ("norm", "norm"),
    ),
)
UNREAD = ("language_encoder.", "mm_vision_proj.", "mm_language_proj.", "logit_scale")
# The vision tower is also published alone, without the prefix.
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pretrained_ViT.bin")
M3D_SHAPE = (32, 256, 256)
M3D_EPS = 1e-5

Shape = tuple[int, int, int]


class VolumeEncoderConfig(EncoderConfig):
    """An encoder of one volume `[N, 1, D, H, W]` of `shape`, cut into patches of `patch` voxels.

    Of a plain transform it takes the window; how pictures are fitted has no meaning for a volume.
    """

    shape: Shape = M3D_SHAPE
    patch: Shape = (4, 16, 16)
    mean: float = 0.0
    std: float = 1.0

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        if not isinstance(transform, ImageTransform | VolumeTransform):
            raise ConfigError(
                f"the encoder {self.name!r} takes one volume, not what the transform "
                f"{transform.name!r} makes",
                field="processor.transform",
            )
        wanted = {"shape": self.shape, "mean": self.mean, "std": self.std}
        if isinstance(transform, ImageTransform):
            plain = ImageTransform()
            for field in ("size", "mean", "std"):
                if getattr(transform, field) != getattr(plain, field):
                    raise ConfigError(
                        f"processor.transform.{field} is for 2D images, and the encoder "
                        f"{self.name!r} takes volumes",
                        remedy="Leave it out, or use the transform volume",
                    )
            return VolumeTransform(window=transform.window, **wanted)
        for field in sorted(transform.model_fields_set & wanted.keys()):
            if getattr(transform, field) != wanted[field]:
                raise ConfigError(
                    f"processor.transform.{field} is {getattr(transform, field)}, but the encoder "
                    f"wants {wanted[field]}; leave the field out or set it to the same"
                )
        fields = {name: getattr(transform, name) for name in VolumeTransform.model_fields}
        return VolumeTransform(**(fields | wanted))

    def grid_of(self, shape: Shape) -> Shape:
        """How many patches a volume has along each axis.

        Raises:
            ConfigError: they do not fill it.
        """
        if any(
            length % part or length < part for length, part in zip(shape, self.patch, strict=True)
        ):
            raise ConfigError(
                f"a volume of {shape} is not filled by patches of {self.patch}", field="shape"
            )
        depth, rows, columns = (a // b for a, b in zip(shape, self.patch, strict=True))
        return depth, rows, columns


class M3DCLIPEncoderConfig(VolumeEncoderConfig):
    """M3D-CLIP's 3D ViT-B: 32 x 256 x 256 voxels become 8 x 16 x 16 = 2048 tokens of 768 channels.

    Values from 0 to 1. MedM-VL reads the last layer before the final norm, M3D-LaMed after it
    (`post_norm`). `native_shape` is what positions were learned at; another `shape` interpolates
    them. `dtype` is what the weights are kept in.
    """

    source: str | None = None
    native_shape: Shape = M3D_SHAPE
    size: ViTSize = ViTSize()
    layer: int = -1
    class_token: Literal["drop", "keep"] = "drop"
    post_norm: bool = False
    dtype: DType = "float32"
    allow_unused: tuple[str, ...] = ()

    def build(self) -> M3DCLIPEncoder:
        return M3DCLIPEncoder(self)


class ViT3DConfig(VolumeEncoderConfig):
    """A 3D ViT of any size, trained from scratch; every token is a patch, the final norm is read."""

    size: ViTSize = ViTSize(width=384, depth=6, heads=6, hidden=1536)

    def build(self) -> ViT3DEncoder:
        return ViT3DEncoder(self)


class M3DCLIPEncoder(TrunkEncoder):
    """The vision tower cut after the layer that is read."""

    kinds = frozenset({"volume"})

    def __init__(self, config: M3DCLIPEncoderConfig) -> None:
        super().__init__()
        self.config, self.channels = config, config.size.width
        self.patch_grid = config.grid_of(config.shape)
        self.keep_class = config.class_token == "keep"
        grid = volume_layout(self.patch_grid)
        self.layout = ImageLayout(rows=1, columns=grid.tokens + 1) if self.keep_class else grid
        used = depth_of(config.layer, config.size.depth)
        self.trunk = VisionTransformer(
            config.size.model_copy(update={"depth": used}),
            VolumePatches(config.patch, config.size.width),
            config.grid_of(config.native_shape),
            class_token=True,
            bias=False,
            eps=M3D_EPS,
            norm=config.post_norm,
        )
        in_dtype(self, config.dtype)

    def load_pretrained(self) -> None:
        """Load the tower from `source`; layers above the one that is read are left out."""
        source = source_of(self.config.source, self.config.name)
        published = read_tensors(checkpoint_file(source, WEIGHTS))
        if not any(key.startswith(NAMES.prefix) for key in published):
            published = {NAMES.prefix + key: tensor for key, tensor in published.items()}
        load_published(
            self.trunk,
            NAMES,
            source,
            published,
            depth=self.config.size.depth,
            unread=(*UNREAD, *_idle_parts(self.config.size.depth)),
            allowed=self.config.allow_unused,
        )


class ViT3DEncoder(TrunkEncoder):
    """A 3D ViT without a class token."""

    kinds = frozenset({"volume"})

    def __init__(self, config: ViT3DConfig) -> None:
        super().__init__()
        self.channels = config.size.width
        self.patch_grid = config.grid_of(config.shape)
        self.keep_class = True  # there is none: every token is a patch
        self.layout = volume_layout(self.patch_grid)
        self.trunk = VisionTransformer(
            config.size, VolumePatches(config.patch, config.size.width), self.patch_grid
        )

    def load_pretrained(self) -> None:
        """Nothing is published: training starts from random weights."""


def _idle_parts(depth: int) -> tuple[str, ...]:
    """What newer MONAI versions put beside each block and use only with cross-attention."""
    parts = ("norm_cross_attn", "cross_attn")
    return tuple(f"{NAMES.prefix}blocks.{n}.{part}." for n in range(depth) for part in parts)


def volume_layout(grid: Shape) -> ImageLayout:
    depth, rows, columns = grid
    return ImageLayout(depth=depth, rows=rows, columns=columns)
