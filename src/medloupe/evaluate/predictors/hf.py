"""Any image-text-to-text model of transformers, through its own processor and chat template.

Its processor gets 8-bit pictures that went through our windows; what it does to them is the model's own
business. Prompts are padded on the left and decoded greedily in batches of similar length. A row that the
model's processor refuses (a model of one image is shown two) is asked alone and then is an error of that
row.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
from PIL import Image
from pydantic import Field
from transformers import AutoModelForImageTextToText, AutoProcessor

from medloupe.data.dataset import Progress
from medloupe.errors import CheckpointError, MedLoupeError, PromptError
from medloupe.evaluate.predictors.shown import Pixels, Showing, ShownConfig, Turn
from medloupe.generate.telling import all_told
from medloupe.imaging.files import sha256_file
from medloupe.types import Conversation, Generation, Hear


class HFConfig(ShownConfig):
    """`source` is a folder or a hub id, `revision` one of the hub's. `chat_template` is Jinja for models
    that bring none. `option_probs` reads each option and the end token behind the prompt, whole prompts
    once more for each.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    device: str = "auto"
    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=8, ge=1)
    option_probs: bool = True
    chat_template: str | None = None
    trust_code: bool = False

    def identity(self) -> str:
        """The same for models that answer alike: a folder is known by its content."""
        decisive = self.to_dict() | {"batch_size": None, "device": None}
        folder = Path(self.source)
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            decisive["source"] = [sha256_file(path) for path in files]
        return "hf " + json.dumps(decisive, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row as the model's processor takes it."""

    number: int
    asked: Conversation
    prompt: str
    pictures: tuple[Image.Image, ...]


class HFPredictor:
    """Asks a model of transformers; `images` is what it is shown.

    Raises:
        CheckpointError: transformers cannot load it as an image-text-to-text model.
    """

    def __init__(self, config: HFConfig, root: Path) -> None:
        self.config, self.images = config, Showing(root, config)
        kept: dict[str, Any] = {
            "revision": config.revision,
            "trust_remote_code": config.trust_code,
        }
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        try:
            self.processor: Any = AutoProcessor.from_pretrained(config.source, **kept)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                config.source, dtype=dtype[config.precision], **kept
            )
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(
                f"not an image-text-to-text model that transformers can load: {error}",
                file=config.source,
                remedy="Name a folder with config, weights, tokenizer and processor, or a hub id",
            ) from error
        self.model = model.to(_device(config.device)).eval()
        self.tokenizer: Any = self.processor.tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def __call__(
        self, conversations: Sequence[Conversation], *, progress: Progress
    ) -> list[Generation]:
        """One `Generation` a conversation, in their order.

        Raises:
            ImageError, PromptError: of the first row that cannot be asked.
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
        progress: Progress,
        done: Container[int] = (),
    ) -> None:
        """Tell what becomes of each conversation, batch by batch; batches of which all is `done` are
        left out."""
        told = 0
        for numbers in self._batches(conversations):
            if not all(number in done for number in numbers):
                rows = []
                for number in numbers:
                    row = self._ready(number, conversations[number])
                    if isinstance(row, _Row):
                        rows.append(row)
                    else:
                        hear(number, row)
                for row, answer in self._answered(rows):
                    hear(row.number, answer)
            told += len(numbers)
            progress("answer", told, len(conversations))

    def _batches(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Numbers of similar length; those without images apart, since processors mix them badly."""
        size = self.config.batch_size
        batches = []
        for shows in (False, True):
            numbers = [n for n, one in enumerate(conversations) if bool(one.images) is shows]
            numbers.sort(key=lambda n: _length(conversations[n]))
            batches += [numbers[start : start + size] for start in range(0, len(numbers), size)]
        return batches

    def _ready(self, number: int, conversation: Conversation) -> _Row | MedLoupeError:
        try:
            turns = self.images.turns(conversation)
            prompt = self._rendered(turns)
        except MedLoupeError as error:
            return error.at(row=conversation.id)
        pictures = tuple(
            _picture(p) for turn in turns for p in turn.parts if not isinstance(p, str)
        )
        asked = conversation.without_answer()
        return _Row(number=number, asked=asked, prompt=prompt, pictures=pictures)

    def _rendered(self, turns: Sequence[Turn]) -> str:
        """The prompt's text, by the model's chat template.

        Raises:
            PromptError: it has none, or refuses the conversation.
        """
        messages = [{"role": turn.role, "content": _content(turn)} for turn in turns]
        kept = {"chat_template": self.config.chat_template} if self.config.chat_template else {}
        try:
            return str(
                self.processor.apply_chat_template(messages, add_generation_prompt=True, **kept)
            )
        except (ValueError, TypeError, jinja2.TemplateError) as error:
            raise PromptError(
                f"the model's chat template refuses the conversation: {error}",
                remedy="Set chat_template",
            ) from error

    def _answered(self, rows: Sequence[_Row]) -> list[tuple[_Row, Generation | MedLoupeError]]:
        """The rows with their answers; rows that spoil a batch are found by asking each alone."""
        if not rows:
            return []
        begun = time.perf_counter()
        try:
            said = self._generate(rows)
        except (ValueError, RuntimeError) as error:
            if len(rows) > 1:
                return [pair for row in rows for pair in self._answered([row])]
            refused = PromptError(
                f"the model does not take this row: {error}", row=rows[0].asked.id
            )
            return [(rows[0], refused)]
        seconds = (time.perf_counter() - begun) / len(rows)
        return [
            (row, self._generation(row, *answer, seconds))
            for row, answer in zip(rows, said, strict=True)
        ]

    @torch.no_grad()
    def _generate(
        self, rows: Sequence[_Row]
    ) -> list[tuple[list[int], list[float], tuple[float, ...]]]:
        """Token ids, log-probabilities and option probabilities of each row."""
        inputs = self._inputs([row.prompt for row in rows], rows)
        made = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.config.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        steps = len(made.logits)
        new_BL = made.sequences[:, -steps:]
        log_probs_BL = torch.stack(
            [
                step_BV.float().log_softmax(-1).gather(1, new_BL[:, place, None])[:, 0]
                for place, step_BV in enumerate(made.logits)
            ],
            dim=1,
        )
        shares = [self._option_probs(row) for row in rows]
        found = []
        for tokens, log_probs, share in zip(
            new_BL.tolist(), log_probs_BL.tolist(), shares, strict=True
        ):
            count = _until_end(tokens, self._ends)
            found.append((tokens[:count], log_probs[:count], share))
        return found

    def _option_probs(self, row: _Row) -> tuple[float, ...]:
        """Of each option's text and the end token as a continuation of the prompt; () where the model's
        tokenizer joins an option with the prompt."""
        options = row.asked.options
        if not self.config.option_probs or not options:
            return ()
        prompt = self._inputs([row.prompt], [row])["input_ids"][0]
        texts = [row.prompt + option + str(self.tokenizer.eos_token) for option in options]
        # on the right: positions count from the first token, whatever the model makes of a mask
        inputs = self._inputs(texts, [row] * len(options), side="right")
        logits_BLV = self.model(**inputs).logits
        totals = []
        for ids_L, mask_L, logits_LV in zip(
            inputs["input_ids"], inputs["attention_mask"].bool(), logits_BLV, strict=True
        ):
            whole = ids_L[mask_L]
            if not torch.equal(whole[: len(prompt)], prompt):
                return ()
            following = whole[len(prompt) :]
            log_probs = logits_LV[len(prompt) - 1 : len(whole) - 1].float().log_softmax(-1)
            totals.append(float(log_probs.gather(1, following[:, None]).sum()))
        highest = max(totals)
        weights = [math.exp(total - highest) for total in totals]
        return tuple(weight / math.fsum(weights) for weight in weights)

    def _inputs(
        self, texts: Sequence[str], rows: Sequence[_Row], *, side: Literal["left", "right"] = "left"
    ) -> Mapping[str, Any]:
        """A padded batch. The template has written the tokens that begin a text, if any do."""
        pictures = [list(row.pictures) for row in rows]
        given: dict[str, Any] = {"images": pictures} if any(pictures) else {}
        begins = self.tokenizer.bos_token
        self.tokenizer.padding_side = side
        inputs: Any = self.processor(
            text=list(texts),
            **given,
            padding=True,
            return_tensors="pt",
            add_special_tokens=begins is None or not texts[0].startswith(begins),
        )
        moved: Mapping[str, Any] = inputs.to(self.model.device, self.model.dtype)
        return moved

    @property
    def _ends(self) -> frozenset[int]:
        given = self.model.generation_config.eos_token_id
        ends = given if isinstance(given, list) else [given]
        return frozenset(end for end in (*ends, self.tokenizer.eos_token_id) if end is not None)

    def _generation(
        self,
        row: _Row,
        tokens: list[int],
        log_probs: list[float],
        shares: tuple[float, ...],
        seconds: float,
    ) -> Generation:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        ended = bool(tokens) and tokens[-1] in self._ends
        return Generation(
            text=text,
            token_ids=tuple(tokens),
            log_probs=tuple(log_probs),
            boxes=self.images.boxes(text, row.asked),
            finish_reason="stop" if ended else "length",
            seconds=seconds,
            option_probs=shares,
        )


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _length(conversation: Conversation) -> int:
    """About how long a prompt is: what batches are sorted by."""
    return sum(len(message.text) for message in conversation.messages)


def _content(turn: Turn) -> list[dict[str, str]]:
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in turn.parts
    ]


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB")


def _until_end(tokens: Sequence[int], ends: frozenset[int]) -> int:
    """How many tokens an answer has, the one that ends it included; what follows is padding."""
    return next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
