"""BiomedCLIP's vision tower, read from its published open_clip checkpoint without open_clip or timm.

A ViT-B/16 with a class token; LiteGPT reads its patches after the final norm. The published names, all
below `visual.trunk.`, in the order of the forward pass (N is a block's number, from 0):

    patch_embed.proj.{weight,bias}        patches.{weight,bias}
    cls_token                             class_token
    pos_embed                             positions  (the class token's first)
    blocks.N.norm1.{weight,bias}          blocks.N.norm1.{weight,bias}
    blocks.N.attn.qkv.{weight,bias}       blocks.N.attention.qkv.{weight,bias}
    blocks.N.attn.proj.{weight,bias}      blocks.N.attention.out.{weight,bias}
    blocks.N.norm2.{weight,bias}          blocks.N.norm2.{weight,bias}
    blocks.N.mlp.fc1.{weight,bias}        blocks.N.mlp.0.{weight,bias}
    blocks.N.mlp.fc2.{weight,bias}        blocks.N.mlp.2.{weight,bias}
    norm.{weight,bias}                    norm.{weight,bias}

The rest of the file, `visual.head.*`, `text.*` and `logit_scale`, is not read.
Source: Zhang et al. 2023 (BiomedCLIP); Dosovitskiy et al. 2021 (ViT-B/16).
"""

from __future__ import annotations

from typing import Literal, Self

from medloupe.errors import CheckpointError
from medloupe.models.encoders.base import PlaneEncoderConfig
from medloupe.models.encoders.checkpoints import (
    checkpoint_file,
    depth_of,
    read_json,
    read_tensors,
    source_of,
)
from medloupe.models.encoders.hf_vision import CLIP_MEAN, CLIP_STD, patch_layout
from medloupe.models.encoders.tower import DType, in_dtype
from medloupe.models.encoders.vit import (
    Names,
    PlanePatches,
    TrunkEncoder,
    VisionTransformer,
    ViTSize,
    load_published,
)

NAMES = Names(
    prefix="visual.trunk.",
    parts=(
        ("patches", "patch_embed.proj"),
        ("class_token", "cls_token"),
        ("positions", "pos_embed"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
        ("attention.qkv", "attn.qkv"),
        ("attention.out", "attn.proj"),
        ("mlp.0", "mlp.fc1"),
        ("mlp.2", "mlp.fc2"),
        ("norm", "norm"),
    ),
)
UNREAD = ("visual.head.", "text.", "logit_scale")
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PATCH = 16
TIMM_NAME = "vit_base_patch16_224"


class BiomedCLIPEncoderConfig(PlaneEncoderConfig):
    """BiomedCLIP ViT-B/16: 196 tokens of 768 channels at 224 pixels.

    `source` is a folder or a hub id with `open_clip_config.json` and the weights. `native_size` is the
    image size that positions were learned at (0: what the source says, else 224); any other
    `image_size` interpolates them as transformers' ViT does. `dtype` is what the weights are kept in.
    """

    source: str | None = None
    image_size: int = 0
    native_size: int = 0
    size: ViTSize = ViTSize()
    layer: int = -1
    class_token: Literal["drop", "keep"] = "drop"
    post_norm: bool = True
    dtype: DType = "float32"
    allow_unused: tuple[str, ...] = ()
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def resolved(self) -> Self:
        native = self.native_size or (224 if self.source is None else _native_size(self.source))
        return self.model_copy(
            update={"native_size": native, "image_size": self.image_size or native}
        )

    def build(self) -> BiomedCLIPEncoder:
        return BiomedCLIPEncoder(self.resolved())


class BiomedCLIPEncoder(TrunkEncoder):
    """The trunk cut after the layer that is read."""

    def __init__(self, config: BiomedCLIPEncoderConfig) -> None:
        super().__init__()
        self.config, self.channels = config, config.size.width
        self.keep_class = config.class_token == "keep"
        self.layout = patch_layout(config.image_size, PATCH, int(self.keep_class))
        native, side = config.native_size // PATCH, config.image_size // PATCH
        self.patch_grid = (side, side)
        used = depth_of(config.layer, config.size.depth)
        self.trunk = VisionTransformer(
            config.size.model_copy(update={"depth": used}),
            PlanePatches(PATCH, config.size.width),
            (native, native),
            class_token=True,
            class_position=True,
            norm=config.post_norm,
        )
        in_dtype(self, config.dtype)

    def load_pretrained(self) -> None:
        """Load the trunk from `source`; layers above the one that is read are left out."""
        source = source_of(self.config.source, self.config.name)
        published = read_tensors(checkpoint_file(source, WEIGHTS))
        load_published(
            self.trunk,
            NAMES,
            source,
            published,
            depth=self.config.size.depth,
            unread=UNREAD,
            allowed=self.config.allow_unused,
        )


def _native_size(source: str) -> int:
    """The image size that the checkpoint's own config states.

    Raises:
        CheckpointError: the checkpoint is not BiomedCLIP's architecture.
    """
    path = checkpoint_file(source, ("open_clip_config.json",))
    vision = read_json(path).get("model_cfg", {}).get("vision_cfg", {})
    if vision.get("timm_model_name") != TIMM_NAME:
        raise CheckpointError(
            f"the vision tower is {vision.get('timm_model_name')!r}, and biomedclip reads {TIMM_NAME!r}",
            file=str(path),
        )
    return int(vision.get("image_size", 224))
