"""What a text says of each finding: affirmed, denied or left open, and on which side of the body.

Rules in the manner of NegEx (Chapman et al., J Biomed Inform 34:301, 2001), for English and Chinese: a
cue denies what follows it, or stands before it, as far as a word that ends its reach. Phrases that only
look like a denial ("no change in the effusion", "cannot be excluded") deny nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from medloupe.synthesis.filters.findings import findings
from medloupe.synthesis.filters.sides import BOTH, Side, side_near, sides_in
from medloupe.synthesis.filters.texts import has_chinese, sentences
from medloupe.synthesis.types import Turn

Polarity = Literal["yes", "no", "open"]


@dataclass(frozen=True, kw_only=True)
class Assertion:
    """A finding as one sentence has it; `side` is None where none is given."""

    finding: str
    polarity: Polarity
    side: Side | None
    sentence: str


_WEAK: Final = (
    r"(?:new|acute|large|larger|significant|definite|other|further|additional|obvious|gross|overt|more"
    r"|increased|increasing|worsening|recurrent|residual|enlarged|tension|massive|major|displaced|active"
    r"|suspicious|discrete|sizeable|convincing)"
)
# Look like a denial and are none. Longest reach first: they blank the words they cover.
_NO_DENIAL_EN: Final = re.compile(
    r"\b(?:no|without|not)\s+(?:\w+\s+){0,2}?(?:change|changes|increase|decrease|growth"
    r"|difference|interval change)\b"
    r"|\bnot\s+(?:only|just|necessarily|clear|certain|sure)\b|\bno\s+(?:doubt|longer than)\b"
    r"|\bnot\s+(?:the\s+)?(?:cause|typical|specific)\b",
    re.IGNORECASE,
)
_OPEN_EN: Final = re.compile(
    r"\b(?:cannot|can't|can not|could not|not|difficult to"
    r"|hard to)\s+(?:be\s+)?(?:completely\s+|entirely\s+)?(?:excluded?|ruled? out)\b"
    r"|\b(?:possibl[ey]|probabl[ey]|may|might|could|suspicious|suspected|suspicion|questionable|question of"
    r"|likely|suggest(?:s|ing|ive|ed)?|concerning|concern|versus|vs\.?|differential|if"
    r"|whether|unclear|uncertain"
    r"|appears? to|consider|potential(?:ly)?|would)\b(?! you\b)",
    re.IGNORECASE,
)
# Nothing is said of the finding at all: a question to the reader, or general knowledge.
_NOTHING_EN: Final = re.compile(
    r"\b(?:evaluat(?:e|ion)|assess(?:ment)?|rule out|r/o|exclude|look(?:ing)? for"
    r"|screen(?:ing)? for|monitor for"
    r"|risk of|such as|e\.g\.|known to cause|can (?:cause|lead|indicate|be seen|occur"
    r"|represent|suggest|also)|history of|prior history"
    r"|check for|search(?:ing)? for|signs? that would)\b",
    re.IGNORECASE,
)
_BEFORE_EN: Final = re.compile(
    r"\b(?:no|without|absence of|absent|negative for|free (?:of|from)|lack of|lacks?|lacking"
    r"|denies|denied|neither|nor"
    r"|(?:no|without) (?:\w+ )?(?:evidence|signs?|indication|suggestion|features?) (?:of|for)"
    r"|never|none of the|rules? out|ruled out|excludes?|fails? to (?:show|demonstrate|reveal)"
    r"|(?:does|do|did|is|are|was|were|has|have|had|can|could|should)\s?(?:not|n't)(?: (?:any"
    r"|a|an|be|been|show|see|seen|demonstrate|reveal|contain|have|evidence of|appear|identify"
    r"|detect|present|visible|clearly))*"
    r"|cannot (?:see|identify|detect|find)|not (?:any|a|an|associated with)|non)(?=\b|-)",
    re.IGNORECASE,
)
_BEHIND_EN: Final = re.compile(
    r"\b(?:(?:is|are|was|were|be|been|being|has been|have been|appears?"
    r"|remains?)\s+(?:clearly\s+|completely\s+|now\s+|also\s+|entirely\s+)?"
    r"(?:absent|excluded|ruled out|not\s+(?:\w+ly\s+)?(?:seen|identified|present|visible"
    r"|visuali[sz]ed|evident|detected|noted|demonstrated"
    r"|appreciated|observed|apparent|found|shown|there|in the image|displaced)|resolved|gone"
    r"|cleared|no longer)"
    r"|(?:isn't|aren't|wasn't|weren't)\s+(?:\w+ly\s+)?(?:seen|identified|present|visible"
    r"|evident|detected|noted|observed|apparent|any|there)"
    r"|has (?:completely |fully |now )?(?:resolved|cleared|disappeared)|have (?:completely "
    r"|fully )?(?:resolved|cleared|disappeared)"
    r"|(?:cannot|can't|can not|could not) be (?:\w+ly )?(?:seen|identified|detected|observed|found)"
    r"|not (?:seen|identified|visible|present|evident|detected))\b|:\s*(?:none|no|absent"
    r"|negative|not present)\b",
    re.IGNORECASE,
)
_ENDS_EN: Final = re.compile(
    r"\b(?:but|however|although|though|except|apart from|aside from|other than|while|whereas"
    r"|yet|nevertheless"
    r"|because|due to|consistent with|compatible with|indicat(?:es|ing)|shows?"
    r"|demonstrat(?:es|ing)|reveals?|instead"
    r"|rather|which|there (?:is|are|was|were)|only|and (?:a|an|the|there|it|is|are|has|have"
    r"|shows?|also|appears?|with)|with (?:a|an|the|associated|adjacent|small|mild|large))\b"
    r"|,\s*(?:and\s+)?(?:a|an|the|there|small|tiny|large|mild|moderate|severe|with|left|right"
    r"|bilateral|stable|persistent"
    r"|increased|increasing|new|patchy|diffuse|it|this|these|so|only|just|showing|is|are)\b|:",
    re.IGNORECASE,
)
_NO_DENIAL_ZH: Final = re.compile(
    "(?:无|未见|没有|未)(?:明显|显著)?(?:变化|改变|增大|缩小|增多|减少|进展)|无回声|无名"
    "|不规则|不均匀|不均|不清|不等|不同|非钙化"
    "|不明原因|不对称|不典型|不完全|不仅|不只|无症状|未来|不大"
)
_OPEN_ZH: Final = re.compile(
    "不除外|不能(?:完全)?(?:排除|除外)|未除外|未能(?:排除|除外)|难以排除|可能|疑似|可疑|考虑"
    "|怀疑|倾向|或许|也许|待排|待查|如果|是否|提示"
)
_NOTHING_ZH: Final = re.compile(
    "评估|筛查|明确有无|了解有无|会导致|可导致|可引起|病史|既往|常见于|例如|比如"
)
_BEFORE_ZH: Final = re.compile(
    "未(?:能|曾)?(?:见|发现|示|显示|看到|检出|发生|出现|合并)(?:到)?(?:有)?(?:明显|明确"
    "|确切)?|(?<!有)无(?!论)(?:明显|明确)?|没有(?:明显|看到|发现|见到)?|不伴(?:有)?"
    "|除外|排除|否认|看不到|看不见|见不到|不存在|并无|未伴|缺乏|不支持|不是|并非|不显示|不见"
)
_BEHIND_ZH: Final = re.compile(
    "^[^，,、。；]{0,8}?(?:未见|阴性|消失|不明显|(?:已)?(?:完全)?吸收|不存在|缺如|未显示"
    "|未发现|看不到|没有|不可见|已消退|未出现|已缓解)"
)
_ENDS_ZH: Final = re.compile(
    "但|然而|而(?!且)|却|不过|仅|只有|除了|除.{1,12}外|，(?!\\s*(?:也|亦|或|及|以及|和|并未"
    "|且未|且无))|,|：|可见(?<!未可见)|见有|伴有?(?<!不伴)(?<!未伴)(?<!不伴有)"
)

_YES_NO_EN: Final = re.compile(
    r"^(?:is|are|was|were|does|do|did|has|have|can|could|will|would|should|any|isn't|aren't|doesn't)\b",
    re.IGNORECASE,
)
_YES_NO_ZH: Final = re.compile("吗|么[？?]|是否|有没有|有无|是不是|能否|可否|会不会|能不能")
_CHOICE: Final = re.compile(r"\bor\b|还是|或者", re.IGNORECASE)
_YES: Final = re.compile(
    r"^\W*(?:yes|yeah|correct|indeed|certainly|(?:是的|是|有的|有|对|存在|可以|能|可见)(?=[，,。！!\s]|$))",
    re.IGNORECASE,
)
_NO: Final = re.compile(
    r"^\W*(?:no\b(?=\s*(?:[,.;:!]|$|there|the|it))|not?\s(?:really|that)|none\b|(?:否|没有|无"
    r"|不是|不|未见|不能|不存在|没有的)(?=[，,。！!\s]|$))",
    re.IGNORECASE,
)
# Questions that take nothing for granted.
_ASKING: Final = re.compile(
    r"^(?:what about|how about|which (?:of|findings?)|how (?:would|can|could|do"
    r"|might) (?!you (?:describe|characteri[sz]e))|why (?:might|could|would)|what (?:would"
    r"|could|might|else))"
    r"|(?:呢[？?])$|怎么(?:鉴别|区分)",
    re.IGNORECASE,
)


def assertions(text: str) -> list[Assertion]:
    """What a text says, sentence by sentence."""
    return [found for sentence in sentences(text) for found in _of_sentence(sentence)]


def of_turn(turn: Turn) -> list[Assertion]:
    """What a turn says: its answer, and what its question takes for granted or the answer confirms."""
    said = assertions(turn.answer)
    asked = [item for item in assertions(turn.question) if item.polarity != "no"]
    named = {item.finding for item in said}
    denied = _NO.match(turn.answer) is not None
    if _YES_NO_EN.match(turn.question) or _YES_NO_ZH.search(turn.question):
        if _CHOICE.search(turn.question) and not (denied and len(asked) > 1):
            return [*said, *_placed(asked, named, turn.answer)] if len(asked) == 1 else said
        polarity: Polarity | None = "no" if denied else "yes" if _YES.match(turn.answer) else None
        if polarity is None:
            return said
        rest = [replace(item, polarity=polarity) for item in asked if item.finding not in named]
        return [*said, *(rest if polarity == "no" else _placed(rest, named, turn.answer))]
    if _ASKING.search(turn.question) or (len(asked) > 1 and _CHOICE.search(turn.question)):
        return said
    return [*said, *_placed(asked, named, turn.answer)]


def _placed(asked: list[Assertion], named: set[str], answer: str) -> Iterator[Assertion]:
    """What was asked of, on the side that an answer without a finding of its own gives."""
    sides = sides_in(answer)
    side: Side | None = None
    if not named and sides:
        side = sides[0][0] if len({s for s, _, _ in sides}) == 1 else BOTH
    for item in asked:
        if item.finding not in named:
            yield replace(item, side=side or item.side, polarity="yes" if side else item.polarity)


def _of_sentence(sentence: str) -> Iterator[Assertion]:
    found = findings(sentence)
    if not found:
        return
    judge = _polarity_zh if has_chinese(sentence) else _polarity_en
    places = [(start, end) for _, start, end in found]
    for name, start, end in found:
        polarity = judge(sentence, start, end)
        if polarity is not None:
            side = side_near(sentence, (start, end), places)
            yield Assertion(finding=name, polarity=polarity, side=side, sentence=sentence)


def _polarity_en(sentence: str, start: int, end: int) -> Polarity | None:
    text = _NO_DENIAL_EN.sub(_blank, sentence)
    if _NOTHING_EN.search(text[:start]):
        return None
    denied = _denied_before(text, start, _BEFORE_EN, _ENDS_EN)
    if denied is None and text[max(0, start - 4) : start].lower() == "non-":
        denied = ""
    if denied is not None:
        if re.match(rf"\s*(?:any\s+|evidence of\s+)?(?:\w+\s+)?{_WEAK}\b", denied, re.IGNORECASE):
            return None
        return "no"
    behind = _BEHIND_EN.search(text, end)
    if behind and not _ENDS_EN.search(text, end, behind.start()) and behind.start() - end <= 60:
        return "open" if _OPEN_EN.search(text, end, behind.end()) else "no"
    return "open" if _OPEN_EN.search(text) else "yes"


def _polarity_zh(sentence: str, start: int, end: int) -> Polarity | None:
    text = _NO_DENIAL_ZH.sub(_blank, sentence)
    clause_start = max(text.rfind(mark, 0, start) for mark in "，,：")
    clause = text[clause_start + 1 :]
    own = re.split("[，,：]", clause, maxsplit=1)[0]
    if _NOTHING_ZH.search(text[clause_start + 1 : start]):
        return None
    if _OPEN_ZH.search(own):
        return "open"
    denied = _denied_before(text, start, _BEFORE_ZH, _ENDS_ZH)
    if denied is not None:
        return None if re.match("(?:新发|急性|大量|其他|其它|进一步|新增|多发)", denied) else "no"
    return "no" if _BEHIND_ZH.match(text[end:]) else "yes"


def _denied_before(
    text: str, start: int, cue: re.Pattern[str], ends: re.Pattern[str]
) -> str | None:
    """The words between the last cue before `start` and `start`, if its reach comes so far."""
    last = None
    for match in cue.finditer(text, 0, start):
        last = match
    if last is None or ends.search(text, last.end(), start):
        return None
    between = text[last.end() : start]
    return between if len(between) <= 90 else None


def _blank(match: re.Match[str]) -> str:
    return "_" * len(match[0])
