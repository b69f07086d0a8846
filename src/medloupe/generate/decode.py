"""Greedy decoding over a key-value cache.

A prefix is read once and its cache repeated over its branches. Padding stands on the left of a prefix
and on the left of a branch, so between the two as well: the mask hides it and `position_ids` count real
tokens only. A row that has ended leaves the batch, and its cache with it. The options of a row are
read, before its answer begins, behind a copy of its cache, padded on the right.
Shapes: B rows, G prefixes, L tokens of this step, S tokens so far, D width, V vocabulary, N options.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

_OPTION_TOKENS: Final = 512  # padded tokens of options that are read at once: each gives V logits


@dataclass(frozen=True, kw_only=True)
class Branches:
    """The embedded prompts of one batch: `pieces_LD`, each behind prefix number `owners[i]`.

    Without prefixes each piece is a whole prompt. `options` are the token ids of what else each piece
    might be followed by, its end token included.
    """

    prefixes_LD: Sequence[torch.Tensor]
    pieces_LD: Sequence[torch.Tensor]
    owners: Sequence[int]
    options: Sequence[Sequence[Sequence[int]]] = ()


@dataclass(kw_only=True)
class Spoken:
    """The tokens of one answer as it grows, the one that ends it included; and the log-probability of
    each option as a whole."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    option_log_probs: list[float] = field(default_factory=list)
    ended: bool = False


def decode_greedily(
    language_model: PreTrainedModel,
    branches: Branches,
    *,
    end_token_ids: Sequence[int],
    max_new_tokens: int,
    images: AbstractContextManager[None] | None = None,
) -> list[Spoken]:
    """The most probable token at each step, until an end token or `max_new_tokens`.

    Log-probabilities are of a float32 log-softmax. `images` is entered while they are read: with the
    prefixes, where there are some, else with the pieces, both padded on the left.
    """
    reader = _Reader(language_model, len(branches.prefixes_LD) or len(branches.pieces_LD))
    if branches.prefixes_LD:
        with images or nullcontext():
            reader.read(*_left_padded(branches.prefixes_LD))
        reader.select(torch.tensor(branches.owners))
        images = None
    with images or nullcontext():
        logits_BV = reader.read(*_left_padded(branches.pieces_LD))
    answers = [Spoken() for _ in branches.pieces_LD]
    for row, log_prob in _option_log_probs(reader, logits_BV, branches.options):
        answers[row].option_log_probs.append(log_prob)
    active = list(range(len(answers)))
    embeddings = language_model.get_input_embeddings()
    while True:
        tokens_B = logits_BV.argmax(-1)
        chosen_B = logits_BV.log_softmax(-1).gather(1, tokens_B[:, None]).squeeze(1)
        for row, token, log_prob in zip(active, tokens_B.tolist(), chosen_B.tolist(), strict=True):
            answers[row].token_ids.append(token)
            answers[row].log_probs.append(log_prob)
            answers[row].ended = token in end_token_ids
        going = [place for place, row in enumerate(active) if not answers[row].ended]
        if not going or len(answers[active[going[0]]].token_ids) >= max_new_tokens:
            return answers
        if len(going) < len(active):
            reader.select(torch.tensor(going))
            tokens_B = tokens_B[going]
            active = [active[place] for place in going]
        logits_BV = reader.read(embeddings(tokens_B[:, None]), torch.ones_like(tokens_B[:, None]))


class _Reader:
    """The language model with what it has read so far: cache, mask, and real tokens per row."""

    def __init__(self, language_model: PreTrainedModel, rows: int) -> None:
        self.language_model = language_model
        self.cache = DynamicCache(config=language_model.config)
        self.mask_BS = torch.zeros(rows, 0, dtype=torch.long, device=language_model.device)

    def read(self, embeddings_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Read on, and predict the token after the last: `logits_BV` in float32."""
        return self._read(embeddings_BLD, mask_BL, keep=1)[:, -1].float()

    def read_all(self, embeddings_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """As `read`, but predict the token after each: `logits_BLV`."""
        return self._read(embeddings_BLD, mask_BL, keep=0).float()

    def _read(
        self, embeddings_BLD: torch.Tensor, mask_BL: torch.Tensor, *, keep: int
    ) -> torch.Tensor:
        before_B1 = self.mask_BS.sum(1, keepdim=True)
        positions_BL = (before_B1 + mask_BL.cumsum(1) - 1).clamp(min=0)
        self.mask_BS = torch.cat([self.mask_BS, mask_BL], dim=1)
        output = self.language_model(
            inputs_embeds=embeddings_BLD,
            attention_mask=self.mask_BS,
            position_ids=positions_BL,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits
        return logits

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be named more than once.

        `reorder_cache` takes any index, and unlike `batch_select_indices` every kind of cache layer
        (linear attention too) has it.
        """
        rows = rows.to(self.mask_BS.device)
        self.cache.reorder_cache(cast(torch.LongTensor, rows))
        self.mask_BS = self.mask_BS[rows]

    def branched(self, rows: torch.Tensor) -> _Reader:
        """Another reader of these rows, which leaves this one as it is."""
        twin = copy.copy(self)
        twin.cache = copy.copy(self.cache)
        twin.cache.layers = [_twin(layer) for layer in self.cache.layers]
        twin.select(rows)
        return twin


def _twin(layer: Any) -> Any:
    """A cache layer with the same tensors; layers of recurrent models hold theirs in containers, which
    `reorder_cache` fills anew."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, list | dict):
            setattr(twin, name, copy.copy(value))
    return twin


def _option_log_probs(
    reader: _Reader, logits_BV: torch.Tensor, options: Sequence[Sequence[Sequence[int]]]
) -> list[tuple[int, float]]:
    """(row, log-probability) of every option, in order. The first token of an option is predicted by
    what has been read, the others are read all at once."""
    asked = [(row, list(tokens)) for row, several in enumerate(options) for tokens in several]
    if not asked:
        return []
    first_BV = logits_BV.log_softmax(-1)
    totals = [float(first_BV[row, tokens[0]]) for row, tokens in asked]
    longer = [number for number, (_, tokens) in enumerate(asked) if len(tokens) > 1]
    longer.sort(key=lambda number: len(asked[number][1]))
    while longer:
        # of similar length; the longest decides how many fit
        count = max(1, _OPTION_TOKENS // (len(asked[longer[-1]][1]) - 1))
        part, longer = longer[-count:], longer[:-count]
        rests = _following(reader, [asked[number] for number in part])
        for number, rest in zip(part, rests, strict=True):
            totals[number] += rest
    return [(row, total) for (row, _), total in zip(asked, totals, strict=True)]


def _following(reader: _Reader, asked: Sequence[tuple[int, list[int]]]) -> list[float]:
    """The log-probability of all tokens but the first, behind their rows."""
    device = reader.mask_BS.device
    twin = reader.branched(torch.tensor([row for row, _ in asked]))
    tokens_N = [torch.tensor(tokens, device=device) for _, tokens in asked]
    read_NL = pad_sequence([tokens[:-1] for tokens in tokens_N], batch_first=True)
    wanted_NL = pad_sequence([tokens[1:] for tokens in tokens_N], batch_first=True)
    mask_NL = pad_sequence([torch.ones_like(tokens[1:]) for tokens in tokens_N], batch_first=True)
    embeddings = reader.language_model.get_input_embeddings()
    log_probs_NLV = twin.read_all(embeddings(read_NL), mask_NL).log_softmax(-1)
    log_probs_NL = log_probs_NLV.gather(2, wanted_NL[..., None]).squeeze(2)
    return [
        math.fsum(row[mask.bool()].tolist())
        for row, mask in zip(log_probs_NL, mask_NL, strict=True)
    ]


def _left_padded(pieces_LD: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """`embeddings_BLD` with zeros on the left, and the mask `[B, L]` of real tokens."""
    masks = [torch.ones(len(piece), dtype=torch.long, device=piece.device) for piece in pieces_LD]
    return (
        pad_sequence(list(pieces_LD), batch_first=True, padding_side="left"),
        pad_sequence(masks, batch_first=True, padding_side="left"),
    )
