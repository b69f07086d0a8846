"""Conversations -> answers, through the very processor that training used.

Every prompt and every image is read and checked before the first token is decoded, so a bad row costs
no finished answer: it is told of, or raised. Weights are cast for the length of a call and put back
unchanged: a model that is being trained can be asked between two steps.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field
from torch import nn

from medloupe.config import Config
from medloupe.data.dataset import Progress, silent
from medloupe.errors import ConfigError, MedLoupeError, PromptError
from medloupe.generate.decode import Branches, Spoken, decode_greedily
from medloupe.generate.plan import Group, group_rows, plan_batches
from medloupe.generate.telling import all_told
from medloupe.imaging.store import DecodedStore
from medloupe.models.attention import mask_plan
from medloupe.models.vlm import VisionLanguageModel, on_device
from medloupe.processing import ImageSource, Processor
from medloupe.types import Box, Conversation, Generation, Hear, ImageInput, ImageRef, ModelInput

_IMAGES_AT_ONCE = 16


class GenerateConfig(Config):
    """Greedy decoding. `share_prefix` reads what the questions of an image share only once.

    `precision` is that of the language model's weights; log-probabilities are float32 in both. The
    answers are those of one prompt at a time, but for rounding: bf16 rounds where fp32 does not show.

    `option_probs` gives the probabilities of a conversation's options: that of each option's text and the
    token that ends it, as a continuation of the prompt, scaled to sum to 1.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=32, ge=1)
    share_prefix: bool = True
    precision: Literal["bf16", "fp32"] = "bf16"
    option_probs: bool = True


_DEFAULTS = GenerateConfig()


class Predictor:
    """Answers conversations that end with a question; an answer that one brings is not shown."""

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        images: ImageSource,
        config: GenerateConfig = _DEFAULTS,
    ) -> None:
        self.model, self.processor = model, processor
        self.images, self.config = images, config
        self._continuations: dict[tuple[str, int], tuple[int, ...]] = {}

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        root: Path,
        trust_code: bool = False,
        config: GenerateConfig = _DEFAULTS,
        store: DecodedStore | None = None,
    ) -> Self:
        """From a saved model's folder; relative image uris are below `root`, and what is decoded is
        kept in `store`, if there is one.

        Raises:
            CheckpointError: the folder is missing or incomplete.
            ConfigError: it names code outside the package and `trust_code` is false.
        """
        processor = Processor.load(folder)
        model = VisionLanguageModel.load(folder, trust_code=trust_code)
        images = ImageSource(root, processor.config.transform, store=store)
        return cls(model, processor, images, config)

    def __call__(
        self, conversations: Sequence[Conversation], *, progress: Progress = silent
    ) -> list[Generation]:
        """One `Generation` a conversation, in their order.

        `token_ids` and `log_probs` include the token that ends the answer; `seconds` is the row's
        share of the time its batch took. The score of a box is the geometric mean of the probabilities
        of the tokens that spell its numbers and brackets.

        Raises:
            PromptError, ImageError: naming the conversation, before anything is decoded.
        """
        return all_told(
            lambda hear: self.answer_each(conversations, hear, progress=progress),
            len(conversations),
        )

    def answer_each(
        self,
        conversations: Sequence[Conversation],
        hear: Hear,
        *,
        progress: Progress = silent,
        done: Container[int] = (),
    ) -> None:
        """Tell what becomes of each conversation: an error of those that cannot be asked first, then the
        answers, as their batches finish.

        Batches are planned over all conversations, but not decoded again where all of their rows are
        `done`: who goes on after a kill gets the very batches, and so the bits, of a run without one.
        """
        rows = self._checked(conversations, hear, progress)
        prompts = [row.prompt for row in rows]
        plan = self._plan(prompts)
        tokens = _ImageTokens(self.model, self.images, plan, prompts)
        told = len(conversations) - len(rows)
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        with (
            torch.no_grad(),
            _evaluating(self.model),
            _weights_in(self.model.language_model, dtype),
        ):
            for number, batch in enumerate(plan):
                members = [row for group in batch for row in group.rows]
                if not all(rows[row].number in done for row in members):
                    begun = time.perf_counter()
                    errors = tokens.load(number)
                    readable = [group for group in batch if group.rows[0] not in errors]
                    spoken = self._answer(readable, rows, tokens) if readable else {}
                    seconds = (time.perf_counter() - begun) / len(members)
                    for row in members:
                        asked = rows[row]
                        answer = errors.get(row) or self._generation(spoken[row], asked, seconds)
                        hear(asked.number, answer)
                tokens.release(number)
                told += len(members)
                progress("answer", told, len(conversations))

    def _checked(
        self, conversations: Sequence[Conversation], hear: Hear, progress: Progress
    ) -> list[_Row]:
        """Those that can be asked, with their images read once; the others are told of."""
        rows = []
        seen: set[ImageRef] = set()
        for number, conversation in enumerate(conversations):
            asked = conversation.without_answer()
            try:
                for ref in dict.fromkeys(asked.images):
                    if ref not in seen:
                        self.images.view(ref)
                        seen.add(ref)
                prompt = self.processor.encode(asked, self.images.size_of)
                options = self._options(asked)
                self._refuse_too_long(prompt, options)
            except MedLoupeError as error:
                hear(number, error.at(row=conversation.id))
            else:
                rows.append(_Row(number=number, asked=asked, prompt=prompt, options=options))
            progress("read prompts and images", number + 1, len(conversations))
        return rows

    def _options(self, asked: Conversation) -> tuple[tuple[int, ...], ...]:
        """The tokens of each option. What stands in the turns before does not change them."""
        if not self.config.option_probs:
            return ()
        turns = len(asked.messages)
        for option in asked.options:
            if (option, turns) not in self._continuations:
                tokens = self.processor.continuation(asked, option, self.images.size_of)
                self._continuations[option, turns] = tuple(tokens)
        return tuple(self._continuations[option, turns] for option in asked.options)

    def _refuse_too_long(self, prompt: ModelInput, options: Sequence[Sequence[int]]) -> None:
        """Not every model says how many positions it has; the last new token is never read."""
        limit = getattr(self.model.language_model.config, "max_position_embeddings", None)
        new = max(self.config.max_new_tokens, *map(len, options), 1)
        if limit is not None and len(prompt.input_ids) + new - 1 > limit:
            raise PromptError(
                f"the prompt's {len(prompt.input_ids)} tokens and {new} new "
                f"ones are more than the language model's {limit} positions",
                remedy="Lower max_new_tokens, or shorten the conversation",
            )

    def _plan(self, prompts: Sequence[ModelInput]) -> list[tuple[Group, ...]]:
        share = (
            self.config.share_prefix
            and not self.model.question_dependent
            and _sees_past_padding(self.model)
        )
        groups = group_rows(prompts, self.processor.image_token_id, share=share)
        return plan_batches(groups, prompts, size=self.config.batch_size)

    def _answer(
        self, batch: Sequence[Group], asked: Sequence[_Row], tokens: _ImageTokens
    ) -> dict[int, Spoken]:
        rows = [row for group in batch for row in group.rows]
        prompts = {row: asked[row].prompt for row in rows}
        embedded = {row: self._embedded(prompts[row], tokens) for row in rows}
        shared = [group for group in batch if group.prefix]
        branches = Branches(
            prefixes_LD=[embedded[group.rows[0]][: group.prefix] for group in shared],
            pieces_LD=[embedded[row][group.prefix :] for group in batch for row in group.rows],
            owners=[number for number, group in enumerate(shared) for _ in group.rows],
            options=[asked[row].options for row in rows],
        )
        read = [(group.rows[0], group.prefix) for group in shared] or [
            (row, len(prompts[row].input_ids)) for row in rows
        ]
        spoken = decode_greedily(
            self.model.language_model,
            branches,
            end_token_ids=self.processor.end_token_ids,
            max_new_tokens=self.config.max_new_tokens,
            images=self._acting([(prompts[row], length) for row, length in read], tokens),
        )
        return dict(zip(rows, spoken, strict=True))

    def _acting(
        self, read: Sequence[tuple[ModelInput, int]], tokens: _ImageTokens
    ) -> AbstractContextManager[None]:
        """The adapter on prompts that are read up to a length each, padded on the left."""
        longest = max(length for _, length in read)
        spans = [
            span.moved(row=row, by=longest - length)
            for row, (prompt, length) in enumerate(read)
            for span in self.model.spans(
                prompt.input_ids[None], tokens.of(prompt.images), prompt.anchors
            )
        ]
        details = [one for prompt, _ in read for one in tokens.details_of(prompt.images)]
        return self.model.acting(spans, details)

    def _embedded(self, prompt: ModelInput, tokens: _ImageTokens) -> torch.Tensor:
        """`[L, D]`, image tokens in place."""
        input_ids_1L = prompt.input_ids[None].to(self.model.device)
        return self.model.embed(input_ids_1L, tokens.of(prompt.images))[0]

    def _generation(self, said: Spoken, row: _Row, seconds: float) -> Generation:
        text = self.processor.decode(said.token_ids)
        found = self.processor.find_boxes(text, row.asked, self.images.size_of)
        return Generation(
            text=text,
            token_ids=tuple(said.token_ids),
            log_probs=tuple(said.log_probs),
            boxes=tuple(self._scored(box, place, said) for box, place in found),
            finish_reason="stop" if said.ended else "length",
            seconds=seconds,
            option_probs=_shares(said.option_log_probs),
        )

    def _scored(self, box: Box, place: tuple[int, int], said: Spoken) -> Box:
        """The box with the geometric mean of the probabilities of the tokens from `place[0]` to
        `place[1]` of the text, so that a box of six numbers, or of longer ones, is not less likely."""

        def characters(count: int) -> int:
            return len(self.processor.decode(said.token_ids[:count]))

        counts = range(len(said.token_ids) + 1)
        first = bisect_right(counts, place[0], key=characters) - 1
        last = bisect_left(counts, place[1], key=characters)
        spelt = said.log_probs[max(first, 0) : last]
        if not spelt or not all(map(math.isfinite, spelt)):
            return box
        score = math.exp(math.fsum(spelt) / len(spelt))
        return box.model_copy(update={"score": score})


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A conversation that can be asked: its number among all, and what is read of it."""

    number: int
    asked: Conversation
    prompt: ModelInput
    options: tuple[tuple[int, ...], ...]


def _shares(log_probs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities that sum to 1."""
    if not log_probs:
        return ()
    highest = max(log_probs)
    weights = [math.exp(value - highest) for value in log_probs]
    return tuple(weight / math.fsum(weights) for weight in weights)


class _ImageTokens:
    """The tokens of each image, and what an adapter reads of it: computed once, kept until the last
    batch that needs them."""

    def __init__(
        self,
        model: VisionLanguageModel,
        images: ImageSource,
        plan: Sequence[Sequence[Group]],
        prompts: Sequence[ModelInput],
    ) -> None:
        self.model, self.images = model, images
        self._plan, self._prompts = plan, prompts
        self._refs = [
            list(
                {ref: None for group in batch for row in group.rows for ref in prompts[row].images}
            )
            for batch in plan
        ]
        self._last = {ref: number for number, refs in enumerate(self._refs) for ref in refs}
        self._tokens: dict[ImageRef, torch.Tensor] = {}
        self._details: dict[ImageRef, torch.Tensor] = {}

    def load(self, batch: int) -> dict[int, MedLoupeError]:
        """Compute what this batch needs and no batch before it did; the rows whose images can no longer
        be read."""
        missing = [ref for ref in self._refs[batch] if ref not in self._tokens]
        failed: dict[ImageRef, MedLoupeError] = {}
        for start in range(0, len(missing), _IMAGES_AT_ONCE):
            inputs: dict[ImageRef, ImageInput] = {}
            for ref in missing[start : start + _IMAGES_AT_ONCE]:
                try:
                    (image,) = self.images.inputs([ref])
                    inputs[ref] = on_device(image, self.model.device)
                except MedLoupeError as error:
                    failed[ref] = error
            if inputs:
                images = list(inputs.values())
                self._tokens |= dict(zip(inputs, self.model.image_tokens(images), strict=True))
                self._details |= dict(zip(inputs, self.model.details(images), strict=False))
        return {
            row: failed[ref].at(row=self._prompts[row].ids[0])
            for group in self._plan[batch]
            for row in group.rows
            for ref in self._prompts[row].images
            if ref in failed
        }

    def of(self, refs: Sequence[ImageRef]) -> list[torch.Tensor]:
        """`tokens_UD` of images of the loaded batch."""
        return [self._tokens[ref] for ref in refs]

    def details_of(self, refs: Sequence[ImageRef]) -> list[torch.Tensor]:
        """`features_TC` of images of the loaded batch; nothing where no adapter reads any."""
        return [self._details[ref] for ref in refs if ref in self._details]

    def release(self, batch: int) -> None:
        """Let go of what no batch after this one needs."""
        for ref in self._refs[batch]:
            if self._last[ref] == batch:
                self._tokens.pop(ref, None)  # absent where it could not be read, or was not needed
                self._details.pop(ref, None)


def _sees_past_padding(model: VisionLanguageModel) -> bool:
    """Whether padding between prefix and branch is harmless: it is not inside a sliding window (which
    counts places, not positions) or a recurrent state. Padding before a row harms neither.
    """
    try:
        return mask_plan(model.language_model).sees_everything
    except ConfigError:
        return False


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and batch statistics fixed inside; each module's own mode again after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _weights_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The parameters (not the buffers: rotary frequencies stay exact) in `dtype`, inside.

    Autocast would cast every frozen weight again at every token.
    """
    # Quantised weights are integers: they stay as they are.
    floats = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    kept = [(parameter, parameter.data) for parameter in floats]
    try:
        for parameter, data in kept:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
