"""Conversations -> answers, through the very processor that training used.

Every prompt and every image is read and checked before the first token is decoded, so a bad row costs
no finished answer. Weights are cast for the length of a call and put back unchanged: a model that is
being trained can be asked between two steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field
from torch import nn

from medloupe.config import Config
from medloupe.data.dataset import Progress
from medloupe.errors import ConfigError, MedLoupeError, PromptError
from medloupe.generate.decode import Branches, Spoken, decode_greedily
from medloupe.generate.plan import Group, group_rows, plan_batches
from medloupe.imaging.store import DecodedStore
from medloupe.models.attention import mask_plan
from medloupe.models.vlm import VisionLanguageModel, on_device
from medloupe.processing import ImageSource, Processor
from medloupe.types import Conversation, Generation, ImageRef, ModelInput

_IMAGES_AT_ONCE = 16


class GenerateConfig(Config):
    """Greedy decoding. `share_prefix` reads what the questions of an image share only once.

    `precision` is that of the language model's weights; log-probabilities are float32 in both. The
    answers are those of one prompt at a time, but for rounding: bf16 rounds where fp32 does not show.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=32, ge=1)
    share_prefix: bool = True
    precision: Literal["bf16", "fp32"] = "bf16"


_DEFAULTS = GenerateConfig()


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


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
        self, conversations: Sequence[Conversation], *, progress: Progress = _silent
    ) -> list[Generation]:
        """One `Generation` a conversation, in their order.

        `token_ids` and `log_probs` include the token that ends the answer; `seconds` is the row's
        share of the time its batch took.

        Raises:
            PromptError, ImageError: naming the conversation, before anything is decoded.
        """
        asked = [conversation.without_answer() for conversation in conversations]
        prompts = self._checked(asked, progress)
        plan = self._plan(prompts)
        tokens = _ImageTokens(self.model, self.images, plan, prompts)
        answers: dict[int, Generation] = {}
        dtype = torch.bfloat16 if self.config.precision == "bf16" else torch.float32
        with (
            torch.no_grad(),
            _evaluating(self.model),
            _weights_in(self.model.language_model, dtype),
        ):
            for number, batch in enumerate(plan):
                begun = time.perf_counter()
                tokens.load(number)
                spoken = self._answer(batch, prompts, tokens)
                tokens.release(number)
                seconds = (time.perf_counter() - begun) / len(spoken)
                for row, said in spoken.items():
                    answers[row] = self._generation(said, asked[row], seconds)
                progress("answer", len(answers), len(asked))
        return [answers[row] for row in range(len(asked))]

    def _checked(self, asked: Sequence[Conversation], progress: Progress) -> list[ModelInput]:
        """Every prompt, with its images read once."""
        prompts = []
        seen: set[ImageRef] = set()
        for number, conversation in enumerate(asked, start=1):
            try:
                for ref in set(conversation.images) - seen:
                    self.images.view(ref)
                prompt = self.processor.encode(conversation, self.images.size_of)
                self._refuse_too_long(prompt)
            except MedLoupeError as error:
                raise error.at(row=conversation.id) from error
            seen.update(conversation.images)
            prompts.append(prompt)
            progress("read prompts and images", number, len(asked))
        return prompts

    def _refuse_too_long(self, prompt: ModelInput) -> None:
        """Not every model says how many positions it has; the last new token is never read."""
        limit = getattr(self.model.language_model.config, "max_position_embeddings", None)
        needed = len(prompt.input_ids) + self.config.max_new_tokens - 1
        if limit is not None and needed > limit:
            raise PromptError(
                f"the prompt's {len(prompt.input_ids)} tokens and {self.config.max_new_tokens} new "
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
        self, batch: Sequence[Group], prompts: Sequence[ModelInput], tokens: _ImageTokens
    ) -> dict[int, Spoken]:
        rows = [row for group in batch for row in group.rows]
        embedded = {row: self._embedded(prompts[row], tokens) for row in rows}
        shared = [group for group in batch if group.prefix]
        branches = Branches(
            prefixes_LD=[embedded[group.rows[0]][: group.prefix] for group in shared],
            pieces_LD=[embedded[row][group.prefix :] for group in batch for row in group.rows],
            owners=[number for number, group in enumerate(shared) for _ in group.rows],
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

    def _generation(self, said: Spoken, asked: Conversation, seconds: float) -> Generation:
        text = self.processor.decode(said.token_ids)
        return Generation(
            text=text,
            token_ids=tuple(said.token_ids),
            log_probs=tuple(said.log_probs),
            boxes=self.processor.read_boxes(text, asked, self.images.size_of),
            finish_reason="stop" if said.ended else "length",
            seconds=seconds,
        )


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
        self._refs = [
            list(
                {ref: None for group in batch for row in group.rows for ref in prompts[row].images}
            )
            for batch in plan
        ]
        self._last = {ref: number for number, refs in enumerate(self._refs) for ref in refs}
        self._tokens: dict[ImageRef, torch.Tensor] = {}
        self._details: dict[ImageRef, torch.Tensor] = {}

    def load(self, batch: int) -> None:
        """Compute what this batch needs and no batch before it did."""
        missing = [ref for ref in self._refs[batch] if ref not in self._tokens]
        for start in range(0, len(missing), _IMAGES_AT_ONCE):
            part = missing[start : start + _IMAGES_AT_ONCE]
            inputs = [on_device(image, self.model.device) for image in self.images.inputs(part)]
            self._tokens |= dict(zip(part, self.model.image_tokens(inputs), strict=True))
            self._details |= dict(zip(part, self.model.details(inputs), strict=False))

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
                del self._tokens[ref]
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
