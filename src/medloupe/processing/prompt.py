"""A conversation -> runs of text and images, each known to be learned or not.

The language model's own chat template is rendered once over placeholders, one a message. What lies
between the placeholders is the template's structure; what replaces them is ours. So labels are known
while the text is built and never searched for, control tokens can only come from the template, and
the prompt of training and of generation is one piece of code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from medloupe.errors import PromptError
from medloupe.types import Box, Conversation, ImageRef, Message, Text

# For tokenizers that bring no template: Vicuna's words, one message a line.
DEFAULT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}\n"
    "{% elif m.role == 'user' %}USER: {{ m.content }}\n"
    "{% else %}ASSISTANT:\n{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:\n{% endif %}"
)
_MARK = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A stretch of one kind: text (learned or not), or one image."""

    text: str = ""
    learned: bool = False
    image: ImageRef | None = None


class PromptRenderer:
    """Renders conversations with one tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None) -> None:
        self.tokenizer, self.system = tokenizer, system
        self._template = tokenizer.chat_template or DEFAULT_TEMPLATE
        self._rendered: dict[tuple[tuple[str, ...], bool], str] = {}
        self._control = re.compile("|".join(re.escape(t) for t in tokenizer.all_special_tokens))
        self._refuse_unstable_template()

    def runs(self, conversation: Conversation, box_text: dict[int, str]) -> list[Run]:
        """The runs of a whole conversation, or, where the last message is a question, of the prompt.

        `box_text` gives the text of each `Box` part by its number in reading order.

        Raises:
            PromptError: no messages, a wrong order of roles, an answer without text, or a control
                token of the language model inside the text.
        """
        self._check(conversation)
        messages = self._with_system(conversation.messages)
        asks = messages[-1].role != "assistant"
        rendered = self._render([m.role for m in messages], asks)
        contents = _contents(messages, box_text)
        runs: list[Run] = []
        pieces = _MARK.split(rendered)
        for place, piece in enumerate(pieces):
            if place % 2 == 0:
                runs.append(Run(text=piece))
                continue
            number = int(piece)
            learned = messages[number].role == "assistant"
            runs += [
                part if isinstance(part, Run) else Run(text=part, learned=learned)
                for part in contents[number]
            ]
        return _merged(runs)

    @property
    def after_answer(self) -> str:
        """What the template writes behind the last answer."""
        return self._render(["user", "assistant"], False).rpartition("\ue001")[2]

    def _check(self, conversation: Conversation) -> None:
        messages = conversation.messages
        if not messages or all(message.role == "system" for message in messages):
            raise PromptError("the conversation has no question", row=conversation.id)
        roles = [message.role for message in messages if message.role != "system"]
        if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
            raise PromptError(
                f"roles must alternate from user: {roles}", row=conversation.id, field="messages"
            )
        for message in messages:
            found = self._control.search(message.text)
            if found:
                raise PromptError(
                    f"the text holds {found.group()!r}, a control token of the language model",
                    row=conversation.id,
                    field="messages",
                    remedy="Take it out of the text",
                )
            if message.role == "assistant" and not message.content:
                raise PromptError("an answer is empty", row=conversation.id, field="messages")

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.system is None or messages[0].role == "system":
            return list(messages)
        return [Message(role="system", content=(Text(text=self.system),)), *messages]

    def _render(self, roles: Sequence[str], asks: bool) -> str:
        """The template over placeholders; it depends on the roles alone, so each is rendered once."""
        key = tuple(roles), asks
        if key not in self._rendered:
            self._rendered[key] = self._apply(roles, asks)
        return self._rendered[key]

    def _apply(self, roles: Sequence[str], asks: bool) -> str:
        messages = [
            {"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)
        ]
        rendered = self.tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=asks
        )
        assert isinstance(rendered, str)
        return rendered

    def _refuse_unstable_template(self) -> None:
        """Training and generation must begin alike, and every message must be shown once, in order."""
        roles = ["system", "user", "assistant", "user", "assistant"]
        if self.system is None:
            roles = roles[1:]
        for turns in range(len(roles) - 1, 0, -2):
            prompt, whole = (
                self._render(roles[:turns], True),
                self._render(roles[: turns + 1], False),
            )
            order = [int(number) for number in _MARK.findall(whole)]
            if not whole.startswith(prompt) or order != list(range(turns + 1)):
                raise PromptError(
                    "the chat template renders a question differently with and without its answer",
                    remedy="Give the tokenizer a template in which the prompt is a prefix",
                )


def _contents(messages: Sequence[Message], box_text: dict[int, str]) -> list[list[str | Run]]:
    """The parts of each message; boxes are numbered over the whole conversation."""
    contents: list[list[str | Run]] = []
    boxes = 0
    for message in messages:
        parts: list[str | Run] = []
        for part in message.content:
            if isinstance(part, Text):
                parts.append(part.text)
            elif isinstance(part, Box):
                parts.append(box_text[boxes])
                boxes += 1
            else:
                parts.append(Run(image=part))
        contents.append(parts)
    return contents


def _merged(runs: Sequence[Run]) -> list[Run]:
    """Join neighbours of one kind, so that each is tokenised as one piece of text."""
    merged: list[Run] = []
    for run in runs:
        last = merged[-1] if merged else None
        if run.image is None and not run.text:
            continue
        if last and last.image is None and run.image is None and last.learned == run.learned:
            merged[-1] = Run(text=last.text + run.text, learned=run.learned)
        else:
            merged.append(run)
    return merged
