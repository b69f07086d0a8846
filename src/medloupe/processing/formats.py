"""Prompts by name: the text, and so the tokens, that published checkpoints were trained with.

A format is a chat template and what a template cannot say: where the images of a turn stand, what is
written round them, and whether the text behind an image is tokenised as a text of its own. LLaVA's and
MiniGPT's code cut a prompt at its images and tokenise each piece, so a SentencePiece tokenizer puts its
leading space behind every image; a model that was trained so expects it. In a template, `eos_token` is
the tokenizer's: TinyLLaVA writes Vicuna's words before every language model, with that model's own end.
Sources: LLaVA, `llava/conversation.py` (conv_vicuna_v1, conv_mistral_instruct, conv_llava_llama_2,
conv_chatml_direct, conv_llava_plain); TinyLLaVA Factory and MedM-VL, `dataset/template`; LLaVA-NeXT
(qwen_1_5); MiniGPT-4, `minigpt_base.py` and the section on instructions of MiniGPT-v2's paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from medloupe.errors import ConfigError, did_you_mean
from medloupe.types import ImageRef

TEMPLATE: Final = "template"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A stretch of one kind: text (learned or not), or one image. `said` is the number of its characters
    up to the end of what a user says."""

    text: str = ""
    learned: bool = False
    image: ImageRef | None = None
    said: int | None = None


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """See the module's docstring.

    `template` is a chat template, None the tokenizer's own. `images` of a turn stand as they are
    given, `in_place` (as given, the text between them stripped), at the `front`, or `only` they are
    shown and the question is dropped. `join` stands between an image and its neighbours, `wrap` on
    its two sides. `separate`: the text behind an image is tokenised as a text of its own. `ends`:
    an answer ends with an end token; otherwise what the template writes behind it is learned.
    """

    template: str | None = None
    images: Literal["as_given", "in_place", "front", "only"] = "as_given"
    join: str = ""
    wrap: tuple[str, str] = ("", "")
    separate: bool = False
    ends: bool = True

    def turn(self, parts: Sequence[Run]) -> list[Run]:
        """The parts of one user turn as this format writes them."""
        if self.images == "as_given":
            return list(parts)
        images = [part for part in parts if part.image is not None]
        text = "".join(part.text for part in parts)
        written = {
            "in_place": _stripped(parts),
            "front": _stripped([*images, Run(text=text)]),
            "only": images,
        }[self.images]
        runs: list[Run] = []
        for part in written:
            runs += [Run(text=self.join)] if runs else []
            wrapped = [Run(text=self.wrap[0]), part, Run(text=self.wrap[1])]
            runs += wrapped if part.image is not None else [part]
        return runs


def prompt_format(name: str) -> PromptFormat:
    """The format of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"unknown prompt format {name!r}; {did_you_mean(name, FORMATS)}",
            field="processor.prompt",
        )
    return FORMATS[name]


def _stripped(parts: Sequence[Run]) -> list[Run]:
    """The parts with each stretch of text joined and stripped, empty ones left out."""
    result: list[Run] = []
    for part in parts:
        if part.image is None and result and result[-1].image is None:
            result[-1] = Run(text=result[-1].text + part.text)
        else:
            result.append(part)
    stripped = [part if part.image else Run(text=part.text.strip()) for part in result]
    return [part for part in stripped if part.image or part.text]


def _with_system(default: str, before: str, each: str, asks: str = "") -> str:
    """A template over `system` (the conversation's, or `default`) and the turns `m` after it."""
    return (
        "{% if messages[0].role == 'system' %}"
        "{% set system = messages[0].content %}{% set turns = messages[1:] %}{% else %}"
        f"{{% set system = {default!r} %}}{{% set turns = messages %}}{{% endif %}}"
        f"{before}{{% for m in turns %}}{each}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{asks}{{% endif %}}"
    )


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAVA_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language."
)
_VICUNA = _with_system(
    _VICUNA_SYSTEM,
    "{{ system + ' ' }}",
    "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}",
    "ASSISTANT:",
)
_INSTRUCTION = (
    "{% if m.role == 'user' %}BEGIN{{ '[INST] ' }}{% if loop.first and system %}"
    "{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}{{ m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + SPACE + eos_token }}{% endif %}"
)
_LATER_BOS = "{% if not loop.first %}{{ bos_token }}{% endif %}"


def _instruction(system: str, *, begin: str, space: str) -> str:
    """Llama-2's form: `begin` before each turn, `space` between an answer and its end token. The first
    BOS is the tokenizer's."""
    each = _INSTRUCTION.replace("BEGIN", begin).replace("SPACE", repr(space))
    return _with_system(system, "", each)


def _chatml(system: str, newline: str) -> str:
    return _with_system(
        system,
        f"{{{{ '<|im_start|>system\\n' + system + '<|im_end|>{newline}' }}}}",
        f"{{{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>{newline}' }}}}",
        "{{ '<|im_start|>assistant\\n' }}",
    )


FORMATS: Final[dict[str, PromptFormat]] = {
    # the language model's own chat template
    TEMPLATE: PromptFormat(),
    # LLaVA-1.5, Qilin-Med-VL, TinyLLaVA
    "vicuna_v1": PromptFormat(template=_VICUNA, images="front", join="\n", separate=True),
    # MedM-VL: the same words, images where the text says
    "vicuna_v1_interleaved": PromptFormat(
        template=_VICUNA, images="in_place", join="\n", separate=True
    ),
    # LLaVA-Med v1.5, LLaVA-1.6 with Mistral
    "mistral_instruct": PromptFormat(
        template=_instruction("", begin="", space=" "), images="front", join="\n", separate=True
    ),
    # LLaVA on Llama-2-Chat
    "llava_llama_2": PromptFormat(
        template=_instruction(_LLAVA_SYSTEM, begin=_LATER_BOS, space=" "),
        images="front",
        join="\n",
        separate=True,
    ),
    # LLaVA-1.6-34B
    "chatml_direct": PromptFormat(
        template=_chatml("Answer the questions.", ""), images="front", join="\n", separate=True
    ),
    # LLaVA-NeXT on Qwen
    "qwen_1_5": PromptFormat(
        template=_chatml("You are a helpful assistant.", "\\n"),
        images="front",
        join="\n",
        separate=True,
    ),
    # MiniGPT-v2, LiteGPT
    "minigpt_v2": PromptFormat(
        template=_instruction("", begin=_LATER_BOS, space=""),
        images="front",
        join=" ",
        wrap=("<Img>", "</Img>"),
        separate=True,
    ),
    # LLaVA's and TinyLLaVA's first stage: the question is dropped, a line break ends the caption
    "plain": PromptFormat(
        template="{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ '\\n' }}{% endif %}{% endfor %}",
        images="only",
        separate=True,
        ends=False,
    ),
    # MedM-VL's first stage: nothing ends the caption
    "plain_unended": PromptFormat(
        template="{% for m in messages %}{{ m.content }}{% endfor %}",
        images="only",
        separate=True,
        ends=False,
    ),
}
