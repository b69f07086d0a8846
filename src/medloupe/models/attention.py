"""Who sees whom in rows that hold one prefix and several branches, and rows of several documents.

A token sees the tokens before it in its own branch and in the prefix (segment 0) of its own document,
never another branch or document. A document begins where position 0 stands in segment 0, so segments
and positions say everything. Sliding windows are counted in positions, since places lie apart that
follow each other. Dense masks are additive and float: a boolean 4D mask is silently wrong under eager
attention. Whether a language model obeys such masks, and in which form, is found out by trying: packed
rows against separate ones, loss and gradients, on a narrow copy of it.
Shapes: B rows, L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from medloupe.errors import ConfigError
from medloupe.models.language import architecture_from, plain_architecture
from medloupe.models.narrow import VOCABULARY, WINDOW, narrow_copy, undisturbed

# The name of an attention that takes block masks, and everything that sdpa takes.
BLOCKS = "medloupe_blocks"
Mask = torch.Tensor | BlockMask
Rule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(row, head, query, key) -> whether the query looks at the key; indices broadcast."""

# How far apart packed and separate rows may be. Over forty layers families that obey the mask come to
# 1e-6 and 3e-3, the nearest that does not (MPT) to 5e-3 and 0.14.
_LOSS, _GRADIENT = 1e-4, 1e-2


def documents(segments_BL: torch.Tensor, positions_BL: torch.Tensor) -> torch.Tensor:
    """`[B, L]`: the number of each token's document in its row, from 1."""
    return ((segments_BL == 0) & (positions_BL == 0)).cumsum(1)


def branch_rule(
    segments_BL: torch.Tensor, positions_BL: torch.Tensor, window: int | None = None
) -> Rule:
    """Which tokens see which; `window` is the number of positions that a token sees, its own included.

    `segments_BL` is 0 on the prefix, k >= 1 on branch k and -1 on padding. A padding token looks at
    itself, so that no softmax is over nothing.
    """
    documents_BL = documents(segments_BL, positions_BL)

    def sees(
        row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        del head
        own, other = segments_BL[row, query], segments_BL[row, key]
        near = (own == other) | (other == 0)
        near = near & (documents_BL[row, query] == documents_BL[row, key])
        if window is not None:
            near = near & (positions_BL[row, query] - positions_BL[row, key] < window)
        return ((query >= key) & near & (own >= 0) & (other >= 0)) | (query == key)

    return sees


def branch_mask(
    segments_BL: torch.Tensor,
    positions_BL: torch.Tensor,
    dtype: torch.dtype,
    window: int | None = None,
) -> torch.Tensor:
    """`[B, 1, L, L]`: 0 where `branch_rule` lets a token look, the most negative number elsewhere."""
    rows, length = segments_BL.shape
    place = torch.arange(length, device=segments_BL.device)
    row = torch.arange(rows, device=segments_BL.device)[:, None, None]
    sees = branch_rule(segments_BL, positions_BL, window)
    visible = sees(row, row, place[None, :, None], place[None, None, :])
    # bfloat16's lowest is finite in float32 too, so autocast does not turn it into -inf.
    lowest = torch.finfo(torch.float16 if dtype == torch.float16 else torch.bfloat16).min
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments_BL.device)
    return mask.masked_fill_(~visible, lowest)[:, None]


def block_mask(
    segments_BL: torch.Tensor, positions_BL: torch.Tensor, window: int | None = None
) -> BlockMask:
    """The same for FlexAttention, which passes over blocks in which nobody sees anybody."""
    rows, length = segments_BL.shape
    return create_block_mask(
        branch_rule(segments_BL, positions_BL, window),
        B=rows,
        H=None,
        Q_LEN=length,
        KV_LEN=length,
        device=segments_BL.device,
    )


@dataclass(frozen=True, kw_only=True)
class MaskPlan:
    """How a language model is told who sees whom: the window of each type of layer (None: no window).

    Under the single name None, one mask goes to all layers; else each type gets its own, by name.
    """

    windows: Mapping[str | None, int | None]

    @property
    def sees_everything(self) -> bool:
        """Whether no layer has a window."""
        return not any(self.windows.values())

    def masks(
        self,
        segments_BL: torch.Tensor,
        positions_BL: torch.Tensor,
        dtype: torch.dtype,
        *,
        blocks: bool = False,
    ) -> Mask | dict[str | None, Mask]:
        """What the language model takes as `attention_mask`; `blocks` for FlexAttention."""

        def made(window: int | None) -> Mask:
            if blocks:
                return block_mask(segments_BL, positions_BL, window)
            return branch_mask(segments_BL, positions_BL, dtype, window)

        masks = {window: made(window) for window in set(self.windows.values())}
        if None in self.windows:
            return masks[self.windows[None]]
        return {kind: masks[window] for kind, window in self.windows.items()}


def mask_plan(language_model: PreTrainedModel) -> MaskPlan:
    """How this language model can be told, tried once in a process for each config.

    Raises:
        ConfigError: it cannot, naming what came of trying.
    """
    config = language_model.config.get_text_config()
    attention = language_model.config._attn_implementation
    fields = json.dumps(plain_architecture(config), sort_keys=True, default=str)
    found = _tried(fields, attention)
    if isinstance(found, MaskPlan):
        return found
    raise ConfigError(
        f"questions cannot be packed for {config.model_type!r}: {found}",
        remedy="Give each question a row of its own (train.stages.NAME.objective.pack=false)",
    )


@cache
@undisturbed()
def _tried(fields: str, attention: str) -> MaskPlan | str:
    """The first plan under which a narrow copy learns the same from packed rows, or why there is none."""
    architecture = architecture_from(json.loads(fields))
    try:
        model = narrow_copy(architecture, attention)
        separate = _learned(model, _separate(model))
    except Exception as error:  # whatever a family raises, it cannot be tried
        return f"a narrow copy of it fails ({type(error).__name__}: {error})"
    faults = []
    for plan, narrow in zip(_plans(architecture), _plans(model.config), strict=True):
        try:
            fault = _fault(_learned(model, _packed(model, narrow)), separate)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if fault is None:
            return plan
        faults.append(fault)
    return faults[0]


def _plans(config: PretrainedConfig) -> list[MaskPlan]:
    """What may be right for a config, the likeliest first."""
    fields = config.to_dict()
    kinds, window = fields.get("layer_types"), fields.get("sliding_window")
    one = MaskPlan(windows={None: None})
    if window is None:
        return [one]
    windows = {kind: window if "sliding" in kind else None for kind in kinds or ()}
    by_kind = [MaskPlan(windows=windows)] if kinds else []
    return [*by_kind, MaskPlan(windows={None: window}), one]


# A prefix and branches that are each longer than a window, or shorter, in tokens.
_PREFIX, _BRANCHES = WINDOW + 5, (WINDOW - 3, WINDOW + 3, WINDOW - 4)


def _tokens() -> tuple[torch.Tensor, list[torch.Tensor]]:
    maker = torch.Generator().manual_seed(1)
    prefix, *branches = (
        torch.randint(VOCABULARY, (length,), generator=maker) for length in (_PREFIX, *_BRANCHES)
    )
    return prefix, branches


def _separate(model: PreTrainedModel) -> torch.Tensor:
    """The loss of each branch behind a prefix of its own, under the family's own mask."""
    prefix, branches = _tokens()
    losses = []
    for branch in branches:
        ids = torch.cat([prefix, branch])[None]
        logits = model(
            inputs_embeds=model.get_input_embeddings()(ids),
            attention_mask=torch.ones_like(ids),
            position_ids=torch.arange(ids.shape[1])[None],
            use_cache=False,
        ).logits[0, _PREFIX:-1]
        losses.append(F.cross_entropy(logits, branch[1:], reduction="sum"))
    return torch.stack(losses).sum()


def _packed(model: PreTrainedModel, plan: MaskPlan) -> torch.Tensor:
    """The same with one prefix for all."""
    prefix, branches = _tokens()
    ids = torch.cat([prefix, *branches])
    pieces = [torch.full_like(branch, number) for number, branch in enumerate(branches, start=1)]
    segments = torch.cat([torch.zeros_like(prefix), *pieces])
    places = [torch.arange(_PREFIX, _PREFIX + len(branch)) for branch in branches]
    positions = torch.cat([torch.arange(_PREFIX), *places])
    logits = model(
        inputs_embeds=model.get_input_embeddings()(ids[None]),
        attention_mask=plan.masks(segments[None], positions[None], torch.float32),
        position_ids=positions[None],
        use_cache=False,
    ).logits[0]
    follows = segments[1:] == segments[:-1]
    follows[: _PREFIX - 1] = False
    return F.cross_entropy(logits[:-1][follows], ids[1:][follows], reduction="sum")


def _learned(model: PreTrainedModel, loss: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the gradient of each parameter that it reaches."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    gradients = {n: g for n, g in zip(named, found, strict=True) if g is not None}
    return float(loss.detach()), gradients


def _fault(
    packed: tuple[float, dict[str, torch.Tensor]], separate: tuple[float, dict[str, torch.Tensor]]
) -> str | None:
    """Where packed rows teach something else than separate ones."""
    (loss, ours), (wanted, theirs) = packed, separate
    if not abs(loss - wanted) <= _LOSS * abs(wanted):
        return f"on a narrow copy packed rows have the loss {loss:.6g}, separate ones {wanted:.6g}"
    if ours.keys() != theirs.keys():
        return "on a narrow copy packed rows reach other parameters than separate ones"
    whole = float(torch.stack([gradient.norm() for gradient in theirs.values()]).norm())
    for name, gradient in theirs.items():
        # some gradients are zero but for rounding (a key's bias): measured by the whole
        scale = max(float(gradient.norm()), 1e-3 * whole)
        apart = float((ours[name] - gradient).norm()) / scale
        if not apart <= _GRADIENT:
            return f"on a narrow copy packed rows give {name} another gradient, {apart:.2g} apart"
    return None


def _attend_to_blocks(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """FlexAttention under a block mask, sdpa under anything else: evaluation in between stays as it is."""
    if isinstance(attention_mask, BlockMask):
        # under autocast rotary positions leave query and key in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
        return flex_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(BLOCKS, _attend_to_blocks)
AttentionMaskInterface.register(BLOCKS, sdpa_mask)
