"""Prior and current studies exchanged: what had grown has shrunk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from medloupe.evaluate.probes.base import Asked, Expect, Look, Probe, map_parts, with_images
from medloupe.evaluate.probes.wording import answer_in_words, answered
from medloupe.types import Box, Conversation, Language, Part

_PAIRS: Final[Mapping[Language, Sequence[tuple[str, str]]]] = {
    "en": (
        *(("grown", "shrunk"), ("larger", "smaller"), ("bigger", "smaller")),
        *(("increased", "decreased"), ("increasing", "decreasing"), ("increase", "decrease")),
        *(("worse", "better"), ("worsened", "improved"), ("worsening", "improving")),
        *(("progressed", "regressed"), ("progression", "regression")),
        *(
            ("new", "gone"),
            ("new", "resolved"),
            ("new", "disappeared"),
            ("appeared", "disappeared"),
        ),
        ("first", "second"),
    ),
    "zh": (
        *(("增大", "缩小"), ("变大", "变小"), ("增多", "减少"), ("增加", "减少"), ("进展", "消退")),
        *(("加重", "减轻"), ("恶化", "好转"), ("加重", "好转"), ("恶化", "改善")),
        *(("新发", "消失"), ("新增", "消失"), ("新出现", "消失"), ("出现", "消失")),
        ("第一张", "第二张"),
    ),
}
_SAME: Final[Mapping[Language, frozenset[str]]] = {
    "en": frozenset({"unchanged", "stable", "no change", "same", "the same"}),
    "zh": frozenset({"不变", "无变化", "没有变化", "稳定", "相同", "未见变化"}),
}
# A question about what happened between two studies, or about their order.
_COMPARES: Final = re.compile(
    r"\b(?:chang\w*|compar\w*|earlier|later|prior|previous\w*|follow-?up|progress\w*|evol\w*|interval"
    r"|examinations?|since|course)\b|变化|比较|对比|前一次|后一次|上次|复查|更晚|较晚|检查",
    re.IGNORECASE,
)
_LISTED: Final = re.compile(r"(?P<name>[^:,;.]+: )(?P<change>[a-z ]+)", re.IGNORECASE)
_LISTED_ZH: Final = re.compile(
    r"(?P<name>[^，。；：无未没不非]{1,12}?)(?P<change>新发|增大|不变|缩小|消失)"
)


class Exchanged(Probe):
    """The two images of a comparison in each other's place, with the answer that is then right.

    Only rows that compare two images and whose answer, or each part of it ("ring on the left: grown"),
    is one word of a table. Headings stay where they are: the later image is shown as the first examination.
    """

    about: ClassVar[str] = "shown the earlier and the later image in each other's place"
    expect: ClassVar[Expect] = "same"

    def ask(self, rows: Sequence[Conversation], *, seed: int, look: Look) -> Asked:
        del seed, look
        return [exchange(row) for row in rows]


def exchange(row: Conversation) -> Conversation | None:
    """The row with its two images exchanged; None where that is not known to turn the answer round."""
    said = answer_in_words(row)
    kinds = [(image.kind, image.modality) for image in row.images]
    if (
        said is None
        or len(kinds) != 2
        or kinds[0] != kinds[1]
        or not _COMPARES.search(row.question)
    ):
        return None
    change = turned(said, row.language, row.options)
    if change is None:
        return None
    earlier, later = row.images
    swapped = map_parts(with_images(row, (later, earlier)), _other_image)
    return answered(swapped, change)


def turned(answer: str, language: Language, options: Sequence[str] = ()) -> str | None:
    """What is right of the exchanged images where `answer` was; of `options` where there are any.

    None where the table does not say, or says what is no option.
    """
    bare = answer.rstrip(".。")
    choices = _turned_word(bare, language)
    if options:
        spelt = {option.casefold().rstrip(".。"): option for option in options}
        return next((spelt[word] for word in choices if word in spelt), None)
    if choices:
        return _as_written(choices[0], bare) + answer[len(bare) :]
    course = _turned_course(bare, language)
    return None if course is None else course + answer[len(bare) :]


def _turned_word(word: str, language: Language) -> list[str]:
    known = word.casefold()
    if known in _SAME[language]:
        return [known]
    found = [after for before, after in _PAIRS[language] if before == known]
    return found + [before for before, after in _PAIRS[language] if after == known]


def _turned_course(answer: str, language: Language) -> str | None:
    """A list of findings, each with what became of it."""
    comma, form = ("，", _LISTED_ZH) if language == "zh" else (", ", _LISTED)
    parts = []
    for part in answer.split(comma):
        found = form.fullmatch(part)
        choices = _turned_word(found["change"], language) if found else []
        if found is None or not choices:
            return None
        parts.append(found["name"] + choices[0])
    return comma.join(parts)


def _as_written(word: str, like: str) -> str:
    return word.capitalize() if like[:1].isupper() else word


def _other_image(part: Part) -> Part:
    return part.model_copy(update={"image": 1 - part.image}) if isinstance(part, Box) else part
