"""Conversation -> ModelInput. One value holds everything between a file and the model's input, is saved
with the checkpoint and is used unchanged in training, evaluation and serving.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from pydantic import field_validator
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from medloupe.config import Config, read_yaml
from medloupe.errors import CheckpointError, MedLoupeError, PromptError
from medloupe.imaging.transforms import ImageTransform
from medloupe.imaging.views import ViewTransform
from medloupe.processing.boxes import BoxEncoding, Placement, Views
from medloupe.processing.formats import TEMPLATE, Run, prompt_format
from medloupe.processing.prompt import PromptRenderer, control_tokens
from medloupe.types import (
    Box,
    Conversation,
    ImageLayouts,
    ImageRef,
    Message,
    ModelInput,
    Text,
)

IGNORE = -100
FILE = "medloupe_processor.json"
SizeOf = Callable[[ImageRef], tuple[int, ...]]
"""(width, height) of an image, (width, height, depth) of a volume, in original pixels."""


class ProcessorConfig(Config):
    """How files become tokens: the image transform, the box encoding, the prompt and the limit.

    `prompt` is the language model's own chat template, or a format of `processing.formats` by name.
    `system` is the system message of conversations that have none (None: the template's own).
    `max_length` is in tokens, image tokens included; a longer row is an error, never cut.
    """

    transform: ViewTransform = ImageTransform()
    boxes: BoxEncoding = BoxEncoding()
    prompt: str = TEMPLATE
    system: str | None = None
    max_length: int = 2048

    @field_validator("prompt")
    @classmethod
    def _known(cls, name: str) -> str:
        prompt_format(name)
        return name


class SavedProcessor(Config):
    """What is written beside a checkpoint."""

    config: ProcessorConfig
    layouts: ImageLayouts
    image_token_id: int


class Processor:
    """Tokenises conversations for one model. Stateless but for the tokenizer."""

    def __init__(
        self,
        config: ProcessorConfig,
        tokenizer: PreTrainedTokenizerBase,
        layouts: ImageLayouts,
        image_token_id: int,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.layouts, self.image_token_id = layouts, image_token_id
        self.form = prompt_format(config.prompt)
        self.renderer = PromptRenderer(tokenizer, system=config.system, form=self.form)

    @cached_property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the one the template writes, and the tokenizer's EOS."""
        written = self._ids(self.renderer.after_answer, first=False)
        control = set(control_tokens(self.tokenizer).values())
        ends = [i for i in written if i in control][:1]
        if self.tokenizer.eos_token_id is not None:
            ends.append(int(self.tokenizer.eos_token_id))
        if not ends:
            raise PromptError("the tokenizer has no end-of-sequence token", remedy="Set eos_token")
        return tuple(dict.fromkeys(ends))

    def encode(self, conversation: Conversation, size_of: SizeOf) -> ModelInput:
        """One conversation as one row; with an answer it carries labels, without it ends in the
        generation prompt. `size_of` is asked only for images with boxes, and for those whose number
        of tokens depends on it.

        Raises:
            PromptError: see `PromptRenderer.runs`; also a row longer than `max_length`.
        """
        try:
            return self._encode(conversation, size_of)
        except MedLoupeError as error:
            raise error.at(row=conversation.id) from error

    def _encode(self, conversation: Conversation, size_of: SizeOf) -> ModelInput:
        runs = self.renderer.runs(conversation, self._box_text(conversation, size_of))
        ids: list[int] = self._leading(runs)
        labels: list[int] = [IGNORE] * len(ids)
        anchors = _Anchors()
        for place, run in enumerate(runs):
            apart = self.form.separate and place > 0 and runs[place - 1].image is not None
            first = place == 0 or apart
            piece = self._piece(run, size_of, first=first)
            ends = self._ends(runs, place)
            if run.image is not None:
                anchors.see_image(len(ids) + len(piece) - 1)
            elif run.learned:
                anchors.end_prompt(len(ids) - 1)
            elif run.said is not None and conversation.images:
                said = self._ids(run.text[: run.said], first=first)
                anchors.see_text(len(ids) + _last_shared(said, piece))
            ids += piece + ends
            labels += piece + ends if run.learned else [IGNORE] * len(piece)
            if place and runs[place - 1].learned:
                closing = self._closing(piece)
                labels[len(ids) - len(piece) : len(ids) - len(piece) + closing] = piece[:closing]
        anchors.end_prompt(len(ids) - 1)
        if len(ids) > self.config.max_length:
            raise PromptError(
                f"{len(ids)} tokens, the limit is {self.config.max_length}",
                row=conversation.id,
                remedy="Raise processor.max_length, or shorten the row",
            )
        return ModelInput(
            ids=(conversation.id,),
            input_ids=torch.tensor(ids),
            labels=torch.tensor(labels),
            position_ids=torch.arange(len(ids)),
            segments=torch.zeros(len(ids), dtype=torch.long),
            images=conversation.images,
            anchors=torch.tensor(anchors.found, dtype=torch.long).view(-1, 2),
        )

    def placements(self, conversation: Conversation, size_of: SizeOf) -> tuple[Placement, ...]:
        """Where each image's original pixels, or voxels, lie in the model's view."""
        return tuple(
            self.config.transform.placement(size_of(image)) for image in conversation.images
        )

    def read_boxes(self, text: str, conversation: Conversation, size_of: SizeOf) -> tuple[Box, ...]:
        """The boxes of an answer, in original pixels of the image that `BoxEncoding.read` takes."""
        return tuple(box for box, _ in self.find_boxes(text, conversation, size_of))

    def find_boxes(
        self, text: str, conversation: Conversation, size_of: SizeOf
    ) -> list[tuple[Box, tuple[int, int]]]:
        """The boxes of `read_boxes`, each with the place of its numbers in the text."""
        if not conversation.images:
            return []
        return self.config.boxes.find(text, self.placements(conversation, size_of))

    def continuation(self, conversation: Conversation, answer: str, size_of: SizeOf) -> list[int]:
        """The tokens that training would have taught for `answer`, up to the one that ends it: what
        may follow the prompt of a conversation without an answer.

        Raises:
            PromptError: as `encode`, and where the answer's first token would not follow the prompt.
        """
        said = Message(role="assistant", content=(Text(text=answer),))
        asked = conversation.without_answer()
        prompt = self.encode(asked, size_of).input_ids.tolist()
        whole = self.encode(asked.model_copy(update={"messages": (*asked.messages, said)}), size_of)
        learned = (whole.labels[len(prompt) :] != IGNORE).tolist()
        if whole.input_ids[: len(prompt)].tolist() != prompt or not learned or not learned[0]:
            raise PromptError(
                f"the option {answer!r} is tokenised together with the prompt before it",
                row=conversation.id,
                field="options",
            )
        end = learned.index(False) if False in learned else len(learned)
        following: list[int] = whole.input_ids[len(prompt) : len(prompt) + end].tolist()
        return following

    def answer_text(self, conversation: Conversation, size_of: SizeOf) -> str:
        """The answer as the model is taught to write it, boxes spelt out; empty without an answer."""
        runs = self.renderer.runs(conversation, self._box_text(conversation, size_of))
        return next((run.text.strip() for run in reversed(runs) if run.learned), "")

    def decode(self, token_ids: list[int]) -> str:
        """The text of generated tokens, without control tokens and outer white space."""
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip()

    def save(self, folder: Path) -> None:
        """Write the tokenizer and this value into a checkpoint folder."""
        self.tokenizer.save_pretrained(folder)
        saved = SavedProcessor(
            config=self.config, layouts=self.layouts, image_token_id=self.image_token_id
        )
        (folder / FILE).write_text(saved.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Processor:
        """Read what `save` wrote.

        Raises:
            CheckpointError: the folder holds no processor.
        """
        path = folder / FILE
        if not path.is_file():
            raise CheckpointError(f"not a saved model: no {FILE}", file=str(folder))
        saved = SavedProcessor.parse(read_yaml(path), file=str(path))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(saved.config, tokenizer, saved.layouts, saved.image_token_id)

    def _box_text(self, conversation: Conversation, size_of: SizeOf) -> dict[int, str]:
        boxes = [part for part in conversation.parts() if isinstance(part, Box)]
        if not boxes:
            return {}
        views = Views(placements=self.placements(conversation, size_of))
        return {i: self.config.boxes.write(box, views.of(box)) for i, box in enumerate(boxes)}

    def _piece(self, run: Run, size_of: SizeOf, *, first: bool) -> list[int]:
        image = run.image
        if image is None:
            return self._ids(run.text, first=first)
        tokens = self.layouts.tokens(
            image.kind, lambda: self.config.transform.units(size_of(image))
        )
        if tokens is None:
            is_volume = image.kind == "volume"
            raise PromptError(
                f"{image.uri!r} is a{' volume' if is_volume else 'n image'}; this model's encoder "
                f"reads {'2D images' if is_volume else 'volumes'}",
                remedy="Choose a slice with frame, or a model with a volume encoder"
                if is_volume
                else "Use a model with an encoder of 2D images",
            )
        return [self.image_token_id] * tokens

    def _ids(self, text: str, *, first: bool) -> list[int]:
        """Token ids of a piece, as they are in the middle of a text unless it is the `first`.

        SentencePiece tokenizers put a space before a text; an anchor in front keeps it away.
        """
        if first or not self._adds_space:
            return self._plain_ids(text)
        anchor = self._plain_ids("\n")
        ids = self._plain_ids("\n" + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._plain_ids(text)

    def _plain_ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=False)]

    @cached_property
    def _adds_space(self) -> bool:
        ids = self._plain_ids("a")
        return bool(ids) and self.tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")

    def _leading(self, runs: list[Run]) -> list[int]:
        """One BOS: the tokenizer's own, unless the template has written it already."""
        bos = self.tokenizer.bos_token_id
        special = self.tokenizer.encode("", add_special_tokens=True)
        if bos is None or not special or special[0] != bos:
            return []
        begins = runs[0].text.startswith(str(self.tokenizer.bos_token))
        return [] if begins else [int(bos)]

    def _ends(self, runs: list[Run], place: int) -> list[int]:
        """An end token after an answer whose template writes none."""
        if not runs[place].learned or not self.form.ends:
            return []
        after = runs[place + 1].text if place + 1 < len(runs) else ""
        return [] if self._closing(self._ids(after, first=False)) else [self.end_token_ids[0]]

    def _closing(self, piece: list[int]) -> int:
        """How many tokens after an answer close it: up to an end token, over white space only."""
        for place, token in enumerate(piece):
            if token in self.end_token_ids:
                return place + 1
            # some decoders drop a leading space, so a space token alone may decode to nothing
            if str(self.tokenizer.decode([token])).strip():
                return 0
        return 0


@dataclass
class _Anchors:
    """Where the question of each image's own turn is read, found from the beginning of a row on."""

    found: list[tuple[int, int]] = field(default_factory=list)
    waiting: int = 0
    said: int | None = None
    last_image: int = 0

    def see_image(self, last: int) -> None:
        """An image, whose last token is number `last`."""
        self.waiting += 1
        self.last_image = last

    def see_text(self, last: int) -> None:
        """What the user says in this turn, whose last token is number `last`."""
        self.said = last

    def end_prompt(self, last: int) -> None:
        """The turn's last prompt token is number `last`. A user who says nothing ends with an image."""
        user = self.last_image if self.said is None else self.said
        self.found += [(last, user)] * self.waiting
        self.waiting, self.said = 0, None


def _last_shared(start: list[int], whole: list[int]) -> int:
    """The token of `whole` that holds the end of a text, whose tokens alone are `start`: the last of
    these, or the first in which they differ, since that one reaches over the end."""
    shared = 0
    while shared < min(len(start), len(whole)) and start[shared] == whole[shared]:
        shared += 1
    return min(shared, len(start) - 1, len(whole) - 1)
