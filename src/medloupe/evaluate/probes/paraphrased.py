"""The question in other words that mean the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from medloupe.evaluate.probes.base import Asked, Expect, Look, Probe
from medloupe.evaluate.probes.wording import reword
from medloupe.types import Conversation, Language

# A thing, without another clause and without a verb at its end ("a mass seen").
_VERBS: Final = ("seen", "present", "visible", "shown", "noted", "identified", "found", "here")
_ONE: Final = rf"(?P<x>[^,;:?!.()]+{''.join(f'(?<! {verb})' for verb in _VERBS)})"
_RULES: Final[Mapping[Language, Sequence[tuple[str, str]]]] = {
    "en": (
        (rf"is there (?P<a>an?|any) {_ONE}\?", "Do you see {a} {x}?"),
        (rf"are there any {_ONE}\?", "Do you see any {x}?"),
        (rf"can (?P<a>an?|any) {_ONE} be seen\?", "Is it possible to see {a} {x}?"),
        (
            rf"does (?P<s>the|this) image show (?P<a>an?|any) {_ONE}\?",
            "Can {a} {x} be seen in {s} image?",
        ),
        (rf"which side is the {_ONE} on\?", "On which side is the {x}?"),
        (rf"how many {_ONE} are there\?", "What is the number of {x}?"),
        (rf"how has the {_ONE} changed\?", "In what way has the {x} changed?"),
        (
            r"(?P<v>describe|write|list|name|give|compare|locate|find|report|explain|summarize)"
            rf" {_ONE}\.",
            "Please {v} {x}.",
        ),
    ),
    "zh": (
        (r"(?P<p>[^，。；：]*)是否存在(?P<x>[^，。；：不没无未]+)？", "{p}有没有{x}？"),
        (r"(?P<p>[^，。；：]*)是否有(?P<x>[^，。；：不没无未]+)？", "{p}是否存在{x}？"),
        (r"有几个(?P<x>[^，。；：]{1,6})？", "{x}有多少个？"),
        (r"(?P<x>[^，。；：]+)在哪一侧？", "{x}位于哪一侧？"),
        (r"(?P<x>[^，。；：]+)在哪里？", "{x}位于何处？"),
        (r"(?P<x>[^，。；：]+)有何变化？", "{x}发生了什么变化？"),
        (r"(?P<v>写|列出|比较|描述|给出|说出)(?P<x>[^，。；]+)。", "请{v}{x}。"),
    ),
}
_COMPILED: Final = {
    language: [(re.compile(form, re.IGNORECASE), said) for form, said in rules]
    for language, rules in _RULES.items()
}
# What may stand before any question; the sentence itself stays to the letter.
_FRAMES: Final[Mapping[Language, tuple[str, ...]]] = {
    "en": ("Please answer this question: ", "Here is a question about what is shown: "),
    "zh": ("请回答这个问题：", "下面是关于所示内容的问题："),
}
_ENDS: Final[Mapping[Language, tuple[str, ...]]] = {"en": ("?",), "zh": ("？", "?")}


class Paraphrased(Probe):
    """Every question with another wording of the same meaning: a rule's, or a few words before it."""

    about: ClassVar[str] = "asked the same in other words"
    expect: ClassVar[Expect] = "same"

    def ask(self, rows: Sequence[Conversation], *, seed: int, look: Look) -> Asked:
        del look
        return [paraphrase(row, seed) for row in rows]


def paraphrase(row: Conversation, seed: int) -> Conversation | None:
    """The row in other words, which a hash of its id chooses; None where no rule fits."""
    digest = hashlib.sha256(f"{seed}:paraphrased:{row.id}".encode()).digest()

    def other(sentence: str) -> str | None:
        choices = wordings(sentence, row.language)
        return choices[int.from_bytes(digest[:8], "big") % len(choices)] if choices else None

    return reword(row, other)


def wordings(sentence: str, language: Language) -> list[str]:
    """The other wordings of a sentence: those of its form's rule, else with words before it."""
    for form, said in _COMPILED[language]:
        if found := form.fullmatch(sentence):
            return [said.format(**_lowered(found))]
    if not sentence.endswith(_ENDS[language]):
        return []
    return [frame + sentence for frame in _FRAMES[language]]


def _lowered(found: re.Match[str]) -> dict[str, str]:
    """The groups; all but the thing itself come from the rule and are written small."""
    return {name: text if name == "x" else text.lower() for name, text in found.groupdict().items()}
