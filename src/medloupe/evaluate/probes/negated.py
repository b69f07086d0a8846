"""The negated question, whose right answer is the other one.

English lets "no" agree with a negative question ("Is there no fracture?" "No."), so the question becomes
"Is it true that there is no fracture?", where yes and no have one meaning. The same holds in Chinese for
questions of 是否 answered 是 or 否. Only forms whose negation is certain are changed: one clause about
whether something is there, or whether it has one of a few properties.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Final

from medloupe.data.builders.words import YES_NO_PAIRS, plain
from medloupe.evaluate.probes.base import Asked, Expect, Look, Probe
from medloupe.evaluate.probes.wording import answer_in_words, answered, reword
from medloupe.types import Conversation, Language

# A thing, named without what would make its negation mean something else: other clauses, other
# negations, quantities ("no several nodules"), determiners ("no the liver"), pronouns.
_UNSAFE: Final = re.compile(
    r"\b(?:no|not|none|never|without|absen\w+|lack\w*|negative|free|normal|un\w+ed"
    r"|and|or (?:an?|the)|but|also|if|only|more|most|less|few|fewer|least|than|still|yet|already|just|exactly"
    r"|(?:some|any|every|no)(?:thing|one|body|where)|all|every|each|both|either|neither|several|many"
    r"|multiple|numerous|various|much|lots?|couple|enough|single|sole|one|two|three|four|five|six"
    r"|same|other|another|else|which|who|what|why|where|how|the (?:same|only)|except\w*|besides)\b"
    r"|n't\b|[0-9,;:.()?!/]",
    re.IGNORECASE,
)
_DETERMINED: Final = re.compile(
    r"(?:the|this|that|these|those|his|her|its|their|my|your|some|to|it|he|she|they)\b",
    re.IGNORECASE,
)
_PICTURE: Final = (
    r"(?P<subject>(?:the|this) (?:[a-z-]+ )?(?:image|picture|scan|film|radiograph|x-?ray|ct|mri|mr"
    r"|ultrasound|slice|section|slide|study|examination|patient|volume))"
)
_PROPERTY: Final = (
    r"(?P<property>normal|abnormal|enlarged|dilated|visible|present|intact|fractured|thickened|calcified"
    r"|displaced|deviated|widened|symmetric|symmetrical|collapsed|clear)"
)
_SHOWS: Final = {
    "show": "shows",
    "have": "has",
    "contain": "contains",
    "demonstrate": "demonstrates",
    "reveal": "reveals",
    "display": "displays",
}
_THING: Final = r"(?:an? |any )?(?P<thing>.+)"
_THERE_IS: Final = re.compile(rf"is there {_THING}\?", re.IGNORECASE)
_THERE_ARE: Final = re.compile(r"are there (?:any )?(?P<thing>.+)\?", re.IGNORECASE)
_SEEN: Final = re.compile(
    r"can any (?P<thing>.+?) be (?P<verb>seen|identified|found)(?P<place>| (?:in|on) .+)\?",
    re.IGNORECASE,
)
_DOES: Final = re.compile(
    rf"does {_PICTURE} (?P<verb>{'|'.join(_SHOWS)}) {_THING}\?", re.IGNORECASE
)
_IS: Final = re.compile(
    rf"is (?P<subject>the (?:[a-z-]+ ){{0,3}}[a-z-]+) {_PROPERTY}\?", re.IGNORECASE
)
# A longer form hides the shorter one inside it. 是否存在 and its like ask for one thing.
_CHINESE: Final = (
    ("是否存在", "是否不存在"),
    ("是否可见", "是否未见"),
    ("是否显示", "是否未显示"),
    ("是否含有", "是否不含"),
    ("是否有", "是否没有"),
    ("有没有", "是否没有"),
)
_UNSAFE_ZH: Final = re.compile(
    r"[不没无未非单和与及且并或还仅只都各每多几两二三四五0-9，；、。：（）]|正常|其他|其它"
)


class Negated(Probe):
    """Yes-no questions with their sense turned round, and the other answer."""

    about: ClassVar[str] = "asked the negated question"
    expect: ClassVar[Expect] = "same"

    def ask(self, rows: Sequence[Conversation], *, seed: int, look: Look) -> Asked:
        del seed, look
        return [negate(row) for row in rows]


def negate(row: Conversation) -> Conversation | None:
    """The row with its question negated; None where that is not certain."""
    said = answer_in_words(row)
    other = None if said is None or row.answer_type != "closed" else other_answer(said, row)
    asked = reword(row, lambda sentence: negated(sentence, row.language))
    return None if other is None or asked is None else answered(asked, other)


def negated(question: str, language: Language) -> str | None:
    """ "Is there a mass?" -> "Is it true that there is no mass?"; None for every other form."""
    if language == "zh":
        return _negated_zh(question)
    clause = _clause(question)
    return None if clause is None else f"Is it true that {clause}?"


def other_answer(said: str, row: Conversation) -> str | None:
    """No for yes and yes for no, in the row's spelling; None where the pair does not fit 是否 or "is"."""
    pairs = [("yes", "no"), *(YES_NO_PAIRS["zh"] if row.language == "zh" else ())]
    # 有 and 没有 repeat the verb: after a negated question they no longer mean yes and no
    pair = next((pair for pair in pairs if "有" not in pair[0] and plain(said) in pair), None)
    choices = {plain(option): option for option in row.options}
    if pair is None or (choices and set(choices) != set(pair)):
        return None
    other = pair[1 - pair.index(plain(said))]
    if choices:
        return choices[other]
    return other.capitalize() if said[0].isupper() else other


def _clause(question: str) -> str | None:
    """The negated statement, without its end."""
    if found := _THERE_IS.fullmatch(question):
        return _of_thing(found, "there is no {thing}")
    if found := _THERE_ARE.fullmatch(question):
        return _of_thing(found, "there are no {thing}")
    if found := _SEEN.fullmatch(question):
        return _of_thing(found, "no {thing} can be {verb}{place}")
    if found := _DOES.fullmatch(question):
        verb = _SHOWS[found["verb"].lower()]
        return _of_thing(found, f"{{subject}} {verb} no {{thing}}")
    if found := _IS.fullmatch(question):
        whole = found["subject"]
        return None if _UNSAFE.search(whole) else f"{whole} is not {found['property']}"
    return None


def _of_thing(found: re.Match[str], form: str) -> str | None:
    groups = found.groupdict()
    words = f"{groups['thing']}{groups.get('place') or ''}"
    if _UNSAFE.search(words) or _DETERMINED.match(groups["thing"]):
        return None
    return form.format(**groups)


def _negated_zh(question: str) -> str | None:
    asks = [(ask, denies) for ask, denies in _CHINESE if question.count(ask) == 1]
    if not asks or not question.endswith("？"):
        return None
    ask, denies = asks[0]
    before, _, thing = question[:-1].partition(ask)
    if not thing or _UNSAFE_ZH.search(before + thing) or "是" in before + thing:
        return None
    return f"{before}{denies}{thing}？"
