"""Identifiers in report text, by rules: where they stand and of what kind, never what they say.

No model and no dictionary of names. A person's name is found where something marks it: a title, a
signature line, a field such as `Name:`, credentials behind it, or because the caller knows it
(`known_names`, usually from the DICOM header). A bare "Smith was seen again" is not found, and neither
are places, employers, spelled-out dates ("the second of May") and typing errors. Where a rule can be
too eager or too shy it is too eager with what is masked cheaply (dates, long numbers) and shy with
words. Years and clock times alone stay: neither is an identifier under HIPAA Safe Harbor
(45 CFR 164.514(b)(2)), and ages count only above 89.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

from medloupe.imaging.deidentify.known import KnownWords
from medloupe.types import Language

Kind = Literal["name", "date", "age", "phone", "email", "url", "id", "uid"]
OLDEST_AGE: Final = 89


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`text[start:end]` looks like an identifier of this kind; `rule` says by what it was found."""

    kind: Kind
    start: int
    end: int
    rule: str


@dataclass(frozen=True)
class _Rule:
    """A pattern whose group `x`, or whole match, is the identifier where `holds` agrees."""

    kind: Kind
    name: str
    pattern: re.Pattern[str]
    holds: Callable[[re.Match[str]], bool] = lambda _: True

    def find(self, text: str) -> Iterator[Finding]:
        for match in self.pattern.finditer(text):
            if self.holds(match):
                start, end = match.span("x" if "x" in self.pattern.groupindex else 0)
                yield Finding(kind=self.kind, start=start, end=end, rule=self.name)


def find_identifiers(
    text: str,
    *,
    language: Language | None = None,
    known_names: Iterable[str] = (),
    known_ids: Iterable[str] = (),
) -> tuple[Finding, ...]:
    """Every identifier that the rules see, in order, none overlapping another.

    `language` leaves out the rules that only fit the other one; None takes all. `known_names` are
    people as a header or table gives them (`Smith^John`, `王小明`): each of their words counts.
    `known_ids` (`MRN0012`, `St Mary Hospital`) count as a whole.
    """
    return finder(language=language, known_names=known_names, known_ids=known_ids)(text)


def finder(
    *,
    language: Language | None = None,
    known_names: Iterable[str] = (),
    known_ids: Iterable[str] = (),
) -> Callable[[str], tuple[Finding, ...]]:
    """`find_identifiers` for many texts, with what is known prepared once."""
    rules = [
        *_COMMON,
        *(_ENGLISH if language != "zh" else ()),
        *(_CHINESE if language != "en" else ()),
    ]
    known = KnownWords(known_names, known_ids)

    def find(text: str) -> tuple[Finding, ...]:
        found = [finding for rule in rules for finding in rule.find(text)]
        for kind, start, end in known.find(text):
            found.append(Finding(kind=kind, start=start, end=end, rule="known"))
        found = list(_without_overlaps(found))
        return _without_overlaps([*found, *_initials(text, found)])

    return find


def _initials(text: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """The initials right beside a name that was found: `Smith, H.`, `Smith HJ.`, `H. Smith`."""
    for name in found:
        if name.kind == "name" and text[name.start : name.end].isascii():
            behind = _INITIALS_BEHIND.match(text, name.end)
            before = _INITIALS_BEFORE.search(text, max(0, name.start - _BEFORE), name.start)
            if behind:
                yield dataclasses.replace(name, start=name.start, end=behind.end())
            if before:
                yield dataclasses.replace(name, start=before.start(), end=name.end)


def mask(
    text: str,
    findings: Sequence[Finding],
    replacement: Callable[[Finding, str], str] = lambda finding, _: f"[{finding.kind.upper()}]",
) -> str:
    """The text with every finding replaced: by default by its kind, `[DATE]`."""
    parts, at = [], 0
    for finding in findings:
        parts += [text[at : finding.start], replacement(finding, text[finding.start : finding.end])]
        at = finding.end
    return "".join([*parts, text[at:]])


def _without_overlaps(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings that overlap become one, of the kind of the longest: no letter of any is left out."""
    kept: list[tuple[Finding, int]] = []  # and the length of the one that gave kind and rule
    for finding in sorted(found, key=lambda item: (item.start, -item.end)):
        length = finding.end - finding.start
        if not kept or finding.start >= kept[-1][0].end:
            kept.append((finding, length))
            continue
        last, longest = kept.pop()
        end = max(last.end, finding.end)
        giving = finding if length > longest else last
        merged = dataclasses.replace(giving, start=last.start, end=end)
        kept.append((merged, max(length, longest)))
    return tuple(finding for finding, _ in kept)


def _possible_date(match: re.Match[str]) -> bool:
    """Whether year, month and day (in either order of day and month) can be a date."""
    group = match.groupdict()
    year = int(group.get("y") or 2000)
    one, other = int(group["a"]), int(group["b"])
    return any(_is_date(year, month, day) for month, day in ((one, other), (other, one)))


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year if year > 99 else 2000 + year, month, day)
    except ValueError:
        return False
    return True


def _old(match: re.Match[str]) -> bool:
    return OLDEST_AGE < int(match["n"]) <= 125


def _has_digit(match: re.Match[str]) -> bool:
    return any(letter.isdigit() for letter in match["x"])


# Behind a name: with a dot or after a comma any, else none that is a word (`Smith A nodule`). Before
# it: always with a dot, and not the end of `hepatitis C. Smith was seen`.
_INITIALS_BEHIND: Final = re.compile(
    r",? ?(?:[A-Z]\. ?-?){1,3}(?<! )|, ?[A-Z](?![\w'’.-])| [B-HJ-Z](?![\w'’.-])"
)
_INITIALS_BEFORE: Final = re.compile(
    r"(?<![\w.])(?<!segment )(?<!hepatitis )(?<!type )(?<!grade )(?<!stage )(?<!vitamin )(?<!group )"
    r"(?:[A-Z]\. ?-?){1,3}$"
)
_BEFORE: Final = 20  # letters before a name that initials and the word before them can take

# No digit, and no decimal point or dash that belongs to a number, may stand right beside a number.
_L: Final = r"(?<![\d.\-/])(?<!\d,)"
_R: Final = r"(?![\d]|[.\-/]\d)"
_CLOCK: Final = r"(?:[T ,]+(?:at )?\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?(?: ?[AaPp]\.?[Mm]\b)?)?"
_MONTH: Final = (
    r"(?:(?i:january|february|april|june|july|august|september|october|november|december)"
    r"|(?:March|MARCH|May|MAY|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
    r"|JAN|FEB|MAR|APR|JUN|JUL|AUG|SEPT?|OCT|NOV|DEC)\b\.?)"
)
_YEAR: Final = r"(?:19|20)\d{2}"
_DAY: Final = r"(?:0?[1-9]|[12]\d|3[01])"
# What makes the number behind "May" or "March" a measure and no day.
_NO_UNIT: Final = r"(?!\s*(?:mm|cm|ml|mg|kg|%|percent|x|HU|MM|CM)\b|\s*%|[.,]?\d)"
# An initial may end with a dot, a longer word may not: there the sentence ends.
_NAME_WORD: Final = r"(?:[A-ZÀ-ÖØ-Þ]\.|[A-ZÀ-ÖØ-Þ][\w'’]*(?:-[A-ZÀ-ÖØ-Þ][\w'’]*)*)"
_PARTICLE: Final = r"(?:(?:van|von|de|del|della|der|den|di|da|la|le|bin|al|ten|ter|zu) )"
_NAME: Final = rf"(?:{_PARTICLE}*{_NAME_WORD}(?:[ ]{_PARTICLE}*{_NAME_WORD}){{0,3}})"
_LISTED_NAME: Final = rf"(?:{_NAME_WORD}(?:[ ]{_NAME_WORD})?,[ ]?{_NAME}|{_NAME})"
_ROLES: Final = (
    r"(?:(?:electronically |digitally )?(?:signed|dictated|reported|read|approved|verified|reviewed|"
    r"finali[sz]ed|authenticated|transcribed|interpreted|prepared|requested|referred|performed)(?: out)?"
    r"(?: and [a-z]+)?(?: electronically)? by|"
    r"(?:referring|attending|ordering|requesting|responsible|consulting|primary care|family) "
    r"(?:physician|doctor|clinician|provider|radiologist|consultant)|"
    r"radiologist|physician|attending|resident|fellow|technologist|radiographer|sonographer|consultant|"
    r"signature|signed|transcriptionist|patient(?:'s)?(?: name)?|pt(?: name)?|name|surname|first name|"
    r"last name|next of kin|mother|father|cc)"
)
_ID_WORDS: Final = (
    r"(?:mrn?|m\.r\.n\.?|medical record|patient id(?:entifier)?|patient|pt\.? id|hospital|accession|acc|"
    r"case|chart|account|acct|visit|encounter|order|episode|specimen|study id|exam|nhs|chi|ssn|"
    r"social security|insurance|policy|member|passport|licen[cs]e|device serial|serial)"
)
_ZH_ID_WORDS: Final = (
    "(?:住院号|门诊号|病历号|病案号|就诊号|检查号|影像号|放射号|登记号|申请单号|标本号|条码号|超声号|病理号|"
    "身份证(?:号码?)?|医保(?:卡)?号|社保号|卡号|床号|编号|流水号|护照号|(?<![A-Za-z])ID(?:号|(?=[:：])))"
)
_ZH_NUMERAL: Final = "[〇零○一二三四五六七八九十]"
# The hundred or so surnames that most people in China bear; a longer list finds more words by mistake.
_SURNAMES: Final = (
    "(?:欧阳|上官|司马|诸葛|司徒|东方|"
    "[王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟"
    "汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文])"
)
_ZH_TITLES: Final = "(?:医生|医师|主任|副主任|教授|大夫|护士长?|技师|先生|女士|小姐|院士|院长)"
_ZH_FIELDS: Final = (
    "(?:患者姓名|病人姓名|姓名|患者|病人|(?:报告|审核|诊断|检查|申请|送检|主治|主管|经治|书写|审阅|记录|操作|会诊|"
    "签发|复核)?(?:医生|医师|技师|者)|报告人|审核人|签名|签字|联系人|家属)"
)


def _rule(
    kind: Kind, name: str, pattern: str, holds: Callable[[re.Match[str]], bool] | None = None
) -> _Rule:
    return _Rule(kind, name, re.compile(pattern), *([holds] if holds else []))


_COMMON: Final = (
    _rule(
        "email",
        "address",
        r"(?<![A-Za-z0-9.+%_-])[A-Za-z0-9.+%_-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}",
    ),
    _rule("url", "scheme", r"(?:https?|ftp)://[^\s<>\"'，。；）]+|\bwww\.[^\s<>\"'，。；）]+"),
    _rule("uid", "dotted", r"(?<![\d.])[0-2](?:\.(?:0|[1-9]\d*)){5,}(?![\d]|\.\d)"),
    _rule(
        "date",
        "year-month-day",
        rf"{_L}(?P<y>{_YEAR})(?P<s>[-/.])(?P<a>\d{{1,2}})(?P=s)(?P<b>\d{{1,2}}){_R}{_CLOCK}",
        _possible_date,
    ),
    _rule(
        "date",
        "day-month-year",
        rf"{_L}(?P<a>\d{{1,2}})(?P<s>[-/.])(?P<b>\d{{1,2}})(?P=s)(?P<y>{_YEAR}){_R}{_CLOCK}",
        _possible_date,
    ),
    _rule(
        "date",
        "short year",
        rf"{_L}(?P<a>\d{{1,2}})(?P<s>[-/])(?P<b>\d{{1,2}})(?P=s)(?P<y>\d{{2}}){_R}{_CLOCK}",
        _possible_date,
    ),
    _rule(
        "date",
        "digits",
        rf"(?<![\d.\w])(?P<y>{_YEAR})(?P<a>0[1-9]|1[0-2])(?P<b>0[1-9]|[12]\d|3[01])(?![\d.\w])",
        _possible_date,
    ),
    _rule(
        "id", "resident identity", r"(?<!\d)[1-9]\d{5}(?:18|19|20)\d{2}[01]\d[0-3]\d{4}[\dXx](?!\w)"
    ),
    _rule("id", "social security", rf"{_L}\d{{3}}-\d{{2}}-\d{{4}}{_R}"),
    _rule(
        "phone",
        "international",
        rf"(?<![\d\w])\+\d{{1,3}}[ .-]?\(?\d{{1,4}}\)?(?:[ .-]?\d{{2,5}}){{2,4}}{_R}",
    ),
    _rule(
        "phone",
        "three-three-four",
        rf"{_L}(?:1[ .-])?(?:\(\d{{3}}\)\s?|\d{{3}}[ .-])\d{{3}}[ .-]\d{{4}}{_R}",
    ),
    _rule("phone", "mobile", r"(?<![\d\w])1[3-9]\d(?:[ -]?\d{4}){2}(?![\d])"),
    _rule("phone", "area code", rf"{_L}\(?0\d{{2,4}}\)?[ -]\d{{6,8}}{_R}"),
    _rule("id", "long number", r"(?<![\d.,\w])\d{7,}(?![\d,\w]|\.\d)"),
)
_ENGLISH: Final = (
    _rule(
        "date",
        "day month",
        rf"\b{_DAY}(?:st|nd|rd|th)?(?:[ -]|[ ]of[ ]){_MONTH}[ ,.-]*(?:{_YEAR}\b{_CLOCK})?",
    ),
    _rule(
        "date",
        "month day",
        rf"\b{_MONTH}[ .]*{_DAY}(?:st|nd|rd|th)?\b{_NO_UNIT}(?:,?[ ]+{_YEAR}\b{_CLOCK})?",
    ),
    _rule("date", "month year", rf"\b{_MONTH}[ ,]+{_YEAR}\b"),
    _rule("date", "month/year", rf"{_L}(?:0?[1-9]|1[0-2])/{_YEAR}{_R}"),
    _rule(
        "age",
        "above 89",
        r"(?P<x>(?<![\d.])(?P<n>\d{2,3}))[ -]?(?:years?|yrs?\.?|y\.?)[ -]?(?:old|/?o\b|\.o\b|of age)",
        _old,
    ),
    _rule("age", "above 89", r"(?P<x>(?<![\d./])(?P<n>\d{2,3}))(?:[ -]?(?:y/?o|yrs?|F|M))\b", _old),
    _rule("age", "above 89", r"(?i:\baged?)[ :]+(?P<x>(?P<n>\d{2,3}))(?!\d|\.\d)", _old),
    _rule(
        "phone",
        "field",
        r"(?i:\b(?:tel(?:ephone)?|phone|fax|pager|beeper|mobile|cell|ext(?:ension)?)\b\.?)"
        r"(?:[ ]?(?i:no|number|#))?[ :.#]*(?P<x>[+(]?\d[\d ().-]{2,18}\d)",
    ),
    _rule(
        "id",
        "field",
        rf"(?i:\b{_ID_WORDS}(?:[ ]?(?:no|nr|num|number|id|code))?\b\.?)[ ]?(?:[:#=][ :#]*|[ ])"
        r"(?P<x>[A-Za-z]{0,5}[-/]?\d[A-Za-z0-9]*(?:[-/][A-Za-z0-9]+)*)(?<=[\w]{4})(?![\w]|\.\d)",
        _has_digit,
    ),
    _rule(
        "name",
        "title",
        rf"\b(?:(?i:doctor|professor)|Drs?|DR|Prof|PROF|Mr|MR|Mrs|MRS|Ms|MS|Miss|Mx|Mme|Herr|Frau|Sir|Nurse|Sister)"
        rf"\b\.?[ ]+(?:(?:Dr|Prof|med)\.?[ ]+)*(?P<x>{_NAME})",
    ),
    _rule(
        "name",
        "credentials",
        rf"\b(?P<x>{_NAME_WORD}(?:[ ]{_PARTICLE}*{_NAME_WORD}){{0,3}}),?[ ]+"
        r"(?:M\.?D|D\.?O|MBBS|MBChB|FRCR|FRCPC|FACR|Ph\.?D|RN|NP|PA-C|RT\(R\))\b",
    ),
    _rule("name", "field", rf"(?im:\b{_ROLES})[ ]?[:=][ \t]*(?P<x>{_LISTED_NAME})"),
    _rule(
        "name",
        "signature",
        r"(?i:\b(?:signed|dictated|reported|read|approved|verified|reviewed|finali[sz]ed|authenticated|"
        r"transcribed|interpreted|discussed|reviewed)(?: electronically)? (?:by|with|to) )"
        rf"(?!Dr\b|Dr\.|DR\b)(?P<x>{_NAME_WORD}(?:[ ]{_PARTICLE}*{_NAME_WORD}){{1,3}})",
    ),
)
_CHINESE: Final = (
    _rule(
        "date",
        "年月日",
        r"(?<!\d)(?:(?:19|20)?\d{2}[ ]?年[ ]?)?\d{1,2}[ ]?月[ ]?\d{1,2}[ ]?[日号]"
        r"(?:[ ]?\d{1,2}[:：时]\d{1,2}分?)?",
    ),
    _rule("date", "年月", r"(?<!\d)(?:19|20)\d{2}[ ]?年[ ]?\d{1,2}[ ]?月(?!\d)"),
    _rule(
        "date",
        "年月日",
        rf"{_ZH_NUMERAL}{{4}}年{_ZH_NUMERAL}{{1,3}}月(?:{_ZH_NUMERAL}{{1,3}}[日号])?",
    ),
    _rule("age", "above 89", r"(?P<x>(?<![\d.])(?P<n>\d{2,3}))[ ]?(?:周?岁|歲)", _old),
    _rule(
        "phone",
        "电话",
        r"(?:电话|手机|传真|联系方式|分机)[号码]{0,2}[ ]?[:：]?[ ]?(?P<x>[+(]?\d[\d ()-]{2,18}\d)",
    ),
    _rule("id", "编号", rf"{_ZH_ID_WORDS}[ ]?[:：#]?[ ]?(?P<x>[A-Za-z]{{0,5}}-?\d[A-Za-z0-9-]*)"),
    _rule(
        "name",
        "姓名",
        rf"{_ZH_FIELDS}[ ]?[:：][ ]?(?P<x>[\u3400-\u9fff·]{{2,4}})(?![\u3400-\u9fff])",
    ),
    _rule(
        "name",
        "称谓",
        rf"(?<![由关对等大小位至于])(?P<x>{_SURNAMES}[\u3400-\u9fff]{{0,2}}?){_ZH_TITLES}",
    ),
)
