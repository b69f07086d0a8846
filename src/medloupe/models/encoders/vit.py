"""A vision transformer in plain torch, over patches of pictures or of volumes.

Positions are one learned vector per patch; another grid than the one they were trained on is reached by
interpolating them (bicubic in a plane, trilinear in a volume; float32).
Source: Dosovitskiy et al. 2021: pre-norm blocks, GELU by the error function.
Shapes: N images, T tokens, C channels, P voxels of a patch, D x H x W a volume.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from medloupe.config import Config
from medloupe.errors import CheckpointError
from medloupe.models.encoders.base import Encoder
from medloupe.models.encoders.checkpoints import account, fill
from medloupe.types import Views


class ViTSize(Config):
    """Width, depth, heads and the MLP's hidden width; the defaults are ViT-B's."""

    width: int = Field(default=768, ge=1)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    hidden: int = Field(default=3072, ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> ViTSize:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        return self


class SelfAttention(nn.Module):
    """Full attention among the tokens of an image."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(self, tokens_NTC: torch.Tensor) -> torch.Tensor:
        split = self.qkv(tokens_NTC).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return cast(torch.Tensor, self.out(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a skip."""

    def __init__(self, size: ViTSize, bias: bool, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=eps)
        self.attention = SelfAttention(size.width, size.heads, bias)
        self.norm2 = nn.LayerNorm(size.width, eps=eps)
        self.mlp = nn.Sequential(
            nn.Linear(size.width, size.hidden), nn.GELU(), nn.Linear(size.hidden, size.width)
        )

    def forward(self, tokens_NTC: torch.Tensor) -> torch.Tensor:
        tokens_NTC = tokens_NTC + self.attention(self.norm1(tokens_NTC))
        return cast(torch.Tensor, tokens_NTC + self.mlp(self.norm2(tokens_NTC)))


class PlanePatches(nn.Conv2d):
    """`[N, 3, H, W]` to patches `[N, T, C]`, row-major; a rest at the right and bottom is cut."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__(3, width, patch, patch)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return super().forward(views).flatten(2).transpose(1, 2)


class VolumePatches(nn.Linear):
    """`[N, 1, D, H, W]` to patches `[N, T, C]` in D, H, W order, as are the voxels of each."""

    def __init__(self, patch: tuple[int, int, int], width: int) -> None:
        super().__init__(math.prod(patch), width)
        self.patch = patch

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        depth, rows, columns = self.patch
        cells = views.squeeze(1).unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
        cells = cells.unflatten(1, (-1, depth)).permute(0, 1, 3, 5, 2, 4, 6)
        return super().forward(cells.flatten(4).flatten(1, 3))


class VisionTransformer(nn.Module):
    """Patches to tokens `[N, T, C]`, a class token first where there is one.

    `grid` is the one that positions are learned on. `class_position` says whether the class token has
    a position of its own. `norm` is the final norm, built only where it is read.
    """

    def __init__(
        self,
        size: ViTSize,
        patches: nn.Module,
        grid: Sequence[int],
        *,
        class_token: bool = False,
        class_position: bool = False,
        bias: bool = True,
        eps: float = 1e-6,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.patches = patches
        positions = math.prod(grid) + int(class_position)
        self.positions = nn.Parameter(torch.empty(1, positions, size.width))
        self.class_token = nn.Parameter(torch.empty(1, 1, size.width)) if class_token else None
        self.class_position = class_position
        self.blocks = nn.ModuleList(Block(size, bias, eps) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=eps) if norm else None
        nn.init.trunc_normal_(self.positions, std=0.02)
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, views: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        """Tokens of `views`, whose patches stand on `grid`."""
        first, rest = self.positions.split([int(self.class_position), math.prod(self.grid)], dim=1)
        tokens_NTC = self.patches(views) + stretched(rest, self.grid, tuple(grid))
        if self.class_token is not None:
            # The sum over no rows is zero: a class token without a position stays as it is.
            token = (self.class_token + first.sum(1, keepdim=True)).expand(len(tokens_NTC), -1, -1)
            tokens_NTC = torch.cat([token, tokens_NTC], dim=1)
        for block in self.blocks:
            tokens_NTC = block(tokens_NTC)
        return tokens_NTC if self.norm is None else cast(torch.Tensor, self.norm(tokens_NTC))


class TrunkEncoder(Encoder):
    """An encoder that is such a transformer. `keep_class`: no token is dropped from what it gives."""

    trunk: VisionTransformer
    patch_grid: tuple[int, ...]
    keep_class: bool

    def forward(self, views: Views) -> torch.Tensor:
        assert isinstance(views, torch.Tensor)
        tokens: torch.Tensor = self.trunk(views.to(self.trunk.positions.dtype), self.patch_grid)
        return tokens if self.keep_class else tokens[:, 1:]


def stretched(
    positions_1TC: torch.Tensor, grid: tuple[int, ...], wanted: tuple[int, ...]
) -> torch.Tensor:
    """Positions learned on `grid`, interpolated to the grid that is wanted."""
    if grid == wanted:
        return positions_1TC
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    map_1CG = positions_1TC.float().transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(map_1CG, size=wanted, mode=mode, align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(positions_1TC.dtype)


@dataclass(frozen=True, kw_only=True)
class Names:
    """A published checkpoint's names for a `VisionTransformer`'s tensors, one to one.

    `parts` pairs ours with theirs; inside a block they follow `blocks.<number>.`, as ours do.
    """

    prefix: str
    parts: tuple[tuple[str, str], ...]

    def published(self, key: str) -> str:
        """Our name -> the checkpoint's."""
        return self.prefix + _renamed(key, self.parts)

    def own(self, key: str) -> str:
        """The checkpoint's name -> ours.

        Raises:
            CheckpointError: it is no name of this tower.
        """
        if not key.startswith(self.prefix):
            raise CheckpointError(f"{key} is no tensor of {self.prefix}*")
        swapped = tuple((theirs, ours) for ours, theirs in self.parts)
        return _renamed(key.removeprefix(self.prefix), swapped)


def _renamed(key: str, parts: tuple[tuple[str, str], ...]) -> str:
    head, rest = "", key
    if key.startswith("blocks."):
        _, number, rest = key.split(".", 2)
        head = f"blocks.{number}."
    for before, after in parts:
        if rest == before or rest.startswith(f"{before}."):
            return head + after + rest.removeprefix(before)
    raise CheckpointError(f"{key} has no equal on the other side")


def load_published(
    trunk: VisionTransformer,
    names: Names,
    source: str,
    published: Mapping[str, torch.Tensor],
    *,
    depth: int,
    unread: Collection[str],
    allowed: Collection[str],
) -> None:
    """Load a trunk that ends at the layer that is read from a checkpoint of `depth` layers.

    Raises:
        CheckpointError: a tensor is missing, has another shape or fits nothing.
    """
    wanted = {key: names.published(key) for key in trunk.state_dict()}
    above = [f"{names.prefix}blocks.{n}." for n in range(len(trunk.blocks), depth)]
    norm = [f"{names.prefix}norm."] if trunk.norm is None else []
    account(
        source,
        wanted.values(),
        published,
        unread=(*unread, *above, *norm),
        allowed=allowed,
    )
    fill(trunk, source, {own: published[theirs] for own, theirs in wanted.items()})
