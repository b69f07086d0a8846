"""A conversation -> runs of text and images, each known to be learned or not.

The language model's own chat template is rendered once over placeholders, one a message. What lies
between the placeholders is the template's structure; what replaces them is ours. So labels are known
while the text is built and never searched for, control tokens can only come from the template, and
the prompt of training and of generation is one piece of code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import jinja2
from transformers import PreTrainedTokenizerBase

from medloupe.errors import PromptError
from medloupe.processing.formats import FORMATS, TEMPLATE, PromptFormat, Run
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


class PromptRenderer:
    """Renders conversations with one tokenizer's chat template, or in another format."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        form: PromptFormat = FORMATS[TEMPLATE],
    ) -> None:
        self.tokenizer, self.system, self.form = tokenizer, system, form
        self._template = form.template or tokenizer.chat_template or DEFAULT_TEMPLATE
        self._rendered: dict[tuple[tuple[str, ...], bool], str] = {}
        self._control = _any_of(control_tokens(tokenizer))
        self._refuse_unstable_template()

    def runs(self, conversation: Conversation, box_text: dict[int, str]) -> list[Run]:
        """The runs of a whole conversation, or, where the last message is a question, of the prompt.

        `box_text` gives the text of each `Box` part by its number in reading order.

        Raises:
            PromptError: no messages, roles out of order or refused by the template, an answer that is
                empty or holds an image, a control token of the language model inside the text.
        """
        messages = self._with_system(conversation.messages)
        self._check(messages, conversation.id)
        roles = [m.role for m in messages]
        rendered = self._render(roles, False) if roles[-1] == "assistant" else self._prompt(roles)
        contents = _contents(messages, box_text, self.form)
        runs: list[Run] = []
        pieces = _MARK.split(rendered)
        for place, piece in enumerate(pieces):
            if place % 2 == 0:
                behind_answer = place > 0 and roles[int(pieces[place - 1])] == "assistant"
                runs.append(Run(text=piece, learned=behind_answer and not self.form.ends))
                continue
            number = int(piece)
            if roles[number] != "assistant":
                runs += contents[number]
                continue
            space = self._space(roles[:number], runs[-1].text)
            runs[-1] = Run(text=runs[-1].text.removesuffix(space))
            answer = "".join(part.text for part in contents[number]).strip()
            if not answer:
                raise PromptError("an answer is empty", row=conversation.id, field="messages")
            runs.append(Run(text=space + answer, learned=True))
        return _merged(runs)

    @property
    def after_answer(self) -> str:
        """What the template writes behind the last answer."""
        return self._render(["user", "assistant"], False).rpartition("\ue001")[2]

    def _check(self, messages: Sequence[Message], row: str) -> None:
        if all(message.role == "system" for message in messages):
            raise PromptError("the conversation has no question", row=row)
        roles = [message.role for message in messages if message.role != "system"]
        if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
            raise PromptError(f"roles must alternate from user: {roles}", row=row, field="messages")
        if self.form.images == "only" and len(roles) > 2:
            raise PromptError(
                "this prompt format shows one caption, the conversation has more turns",
                row=row,
                field="messages",
                remedy="Use another processor.prompt, or one question and answer a row",
            )
        shown = any(isinstance(part, ImageRef) for message in messages for part in message.content)
        if self.form.images == "only" and roles[-1] == "user" and not shown:
            raise PromptError(
                "this prompt format drops the question, and there is no image to show",
                row=row,
                field="messages",
                remedy="Use another processor.prompt, or a row with an image",
            )
        for message in messages:
            found = self._control.search(message.text)
            if found:
                raise PromptError(
                    f"the text holds {found.group()!r}, a control token of the language model",
                    row=row,
                    field="messages",
                    remedy="Take it out of the text",
                )
            if message.role == "assistant" and any(
                isinstance(part, ImageRef) for part in message.content
            ):
                raise PromptError(
                    "an answer holds an image, which a language model cannot write",
                    row=row,
                    field="messages",
                    remedy="Move the image into the question",
                )

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self.system is None or not messages or messages[0].role == "system":
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
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=asks
            )
        except jinja2.TemplateError as error:
            raise PromptError(
                f"the chat template refuses the roles {list(roles)}: {error}", field="messages"
            ) from error
        assert isinstance(rendered, str)
        if [int(number) for number in _MARK.findall(rendered)] != list(range(len(roles))):
            raise PromptError(
                f"the chat template does not show each of {list(roles)} once and in order",
                field="messages",
                remedy="Leave system messages out, or give the tokenizer another template",
            )
        return rendered

    def _head(self, roles: Sequence[str]) -> str:
        """What the template writes between its generation prompt and the answer."""
        prompt, whole = self._render(roles, True), self._render([*roles, "assistant"], False)
        if not whole.startswith(prompt):
            raise PromptError(
                "the chat template renders a question differently with and without its answer",
                remedy="Give the tokenizer a template in which the prompt is a prefix",
            )
        return whole[len(prompt) :].partition("\ue000")[0]

    def _prompt(self, roles: Sequence[str]) -> str:
        """The generation prompt. Words that the template puts before every answer (an empty thought)
        belong to it, as they stand before the answer in training too."""
        head = self._head(roles)
        return self._render(roles, True) + (head if head.strip() else "")

    def _space(self, roles: Sequence[str], before: str) -> str:
        """White space that the template writes after the prompt: the answer begins with it."""
        head = self._head(roles)
        return head if head.isspace() and before.endswith(head) else ""

    def _refuse_unstable_template(self) -> None:
        """Training and generation must begin alike: found out before any row is read."""
        start = [] if self.system is None else ["system"]
        self._head([*start, "user"])
        self._head([*start, "user", "assistant", "user"])


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every token, by its text, that a template may write and a text may not.

    Many tokenizers (Llama 3) name only a few of them as BOS, EOS and the like.
    """
    added = tokenizer.added_tokens_decoder.items()
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {token.content: number for number, token in added if token.special} | dict(named)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches each of the words; without any, nothing."""
    return re.compile("|".join(re.escape(word) for word in words) or r"(?!)")


def _contents(
    messages: Sequence[Message], box_text: dict[int, str], form: PromptFormat
) -> list[list[Run]]:
    """The parts of each message; boxes are numbered over the whole conversation."""
    contents: list[list[Run]] = []
    boxes = 0
    for message in messages:
        parts: list[Run] = []
        for part in message.content:
            if isinstance(part, Text):
                parts.append(Run(text=part.text))
            elif isinstance(part, Box):
                parts.append(Run(text=box_text[boxes]))
                boxes += 1
            else:
                parts.append(Run(image=part))
        contents.append(_marked(form, parts) if message.role == "user" else parts)
    return contents


def _marked(form: PromptFormat, parts: Sequence[Run]) -> list[Run]:
    """A user's turn with a mark at the end of the text that the user, not the format, has written."""
    runs = form.turn(parts)
    speaks = form.images != "only" and any(part.text.strip() for part in parts)
    places = [place for place, run in enumerate(runs) if run.text.strip()] if speaks else []
    for place in places[-1:]:
        runs[place] = replace(runs[place], said=len(runs[place].text.rstrip()))
    return runs


def _merged(runs: Sequence[Run]) -> list[Run]:
    """Join neighbours of one kind, so that each is tokenised as one piece of text."""
    merged: list[Run] = []
    for run in runs:
        last = merged[-1] if merged else None
        if run.image is None and not run.text:
            continue
        if last and last.image is None and run.image is None and last.learned == run.learned:
            said = last.said if run.said is None else len(last.text) + run.said
            merged[-1] = Run(text=last.text + run.text, learned=run.learned, said=said)
        else:
            merged.append(run)
    return merged
