"""Numbers in running text: digits or words, English or Chinese, with the unit behind them.

What is read: "3 cm", "2.5 x 3 cm" (the unit counts for both), "twenty-five", "65-year-old", "5th rib",
"三厘米", "两个结节", "grade II", and tokens of letters and digits such as "T2" and "L4". Dates and years are
not read; the filter `dates` looks at them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# unit -> (dimension, factor to the dimension's own unit)
_UNITS: Final = {
    "mm": ("length", 1.0), "millimeter": ("length", 1.0), "millimetre": ("length", 1.0),
    "毫米": ("length", 1.0), "cm": ("length", 10.0), "centimeter": ("length", 10.0),
    "centimetre": ("length", 10.0), "厘米": ("length", 10.0), "公分": ("length", 10.0),
    "μm": ("length", 1e-3), "µm": ("length", 1e-3), "um": ("length", 1e-3),
    "micron": ("length", 1e-3), "micrometer": ("length", 1e-3), "micrometre": ("length", 1e-3),
    "微米": ("length", 1e-3), "m": ("length", 1e3), "meter": ("length", 1e3), "inch": ("length", 25.4),
    "ml": ("volume", 1.0), "cc": ("volume", 1.0), "毫升": ("volume", 1.0), "milliliter": ("volume", 1.0),
    "millilitre": ("volume", 1.0), "l": ("volume", 1e3), "liter": ("volume", 1e3),
    "litre": ("volume", 1e3), "升": ("volume", 1e3),
    "%": ("share", 1.0), "％": ("share", 1.0), "percent": ("share", 1.0), "per cent": ("share", 1.0),
    "day": ("time", 1.0), "天": ("time", 1.0), "week": ("time", 7.0), "周": ("time", 7.0),
    "month": ("months", 1.0), "个月": ("months", 1.0), "year": ("months", 12.0),
    "yr": ("months", 12.0), "年": ("months", 12.0), "岁": ("months", 12.0), "hour": ("hours", 1.0),
    "小时": ("hours", 1.0), "minute": ("hours", 1 / 60), "分钟": ("hours", 1 / 60),
    "hu": ("hounsfield", 1.0), "hounsfield": ("hounsfield", 1.0),
    "mg": ("mass", 1.0), "g": ("mass", 1e3), "kg": ("mass", 1e6), "gy": ("dose", 1.0),
}  # fmt: skip
_LONGEST_FIRST: Final = sorted(_UNITS, key=len, reverse=True)
_UNIT: Final = (
    rf"(?:{'|'.join(re.escape(u) for u in _LONGEST_FIRST if u.isascii() and u != '%')})s?(?![A-Za-z])"
    rf"|{'|'.join(u for u in _LONGEST_FIRST if not u.isascii())}|%"
)

_SMALL_TEXT: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
_TENS_TEXT: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS_TEXT: Final = "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_SMALL: Final = {word: value for value, word in enumerate(_SMALL_TEXT.split())}
_TENS: Final = {word: 10 * value for value, word in enumerate(_TENS_TEXT.split(), start=2)}
_ORDINALS: Final = {word: value for value, word in enumerate(_ORDINALS_TEXT.split(), start=3)}
_ROMAN: Final = {
    "I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10,
    "XI": 11, "XII": 12, "Ⅰ": 1, "Ⅱ": 2, "Ⅲ": 3, "Ⅳ": 4, "Ⅴ": 5, "Ⅵ": 6,
}  # fmt: skip
_ZH_DIGITS: Final = {c: v for v, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_ZH_CLASSIFIERS: Final = (
    "个|枚|处|支|条|块|只|张|次|层|根|节|颗|粒|度|级|期|型|倍|段|组|种|肋|腰椎|胸椎|颈椎"
)

_WORDS: Final = (
    rf"(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(list(_SMALL)[1:10])}))?|{'|'.join(_SMALL)})"
)
_DIGITS: Final = r"\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?"
_NUMBER: Final = re.compile(
    rf"""
    (?<![A-Za-z0-9.])(?<![A-Za-z]-)(?:
      (?P<ordinal>\d+(?:st|nd|rd|th)\b | \b(?:{"|".join(_ORDINALS)})\b)
      | (?P<digits>{_DIGITS})(?=[ -]?(?:{_UNIT})|[^A-WZa-wz]|\Z)
      | \b(?P<words>{_WORDS})\b
      | \b(?:stage|grade|type|class|level|segment|zone|group|category|期|级|型)\ ?(?P<roman>[IVX]+|[Ⅰ-Ⅵ])\b
      | (?P<roman_zh>[IVX]+|[Ⅰ-Ⅵ])(?=[期级型度])
      | (?P<chinese>[〇零一二两三四五六七八九十百]+)(?={_UNIT}|{_ZH_CLASSIFIERS}
        |[到至][〇零一二两三四五六七八九十百])
    )
    (?:[ -]?(?P<unit>{_UNIT}))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Letters that a pattern without case takes for i, s and k, and that lower case leaves as they are.
_PLAIN: Final = str.maketrans("İıſK", "IisK")
# "x200" is a number, like "200x".
_TIMES: Final = re.compile(r"(?<![A-Za-z0-9])[x×](?=\d)", re.IGNORECASE)
# A number that shares the unit of the next: "2 x 3 cm", "5-7 mm", "3 to 4 weeks", "三到四厘米".
_SHARES: Final = re.compile(r"\s*(?:x|×|by|to|or|and|-|–|~|至|到|、|乘)\s*$", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r"(?<![A-Za-z0-9])([A-Za-z]{1,6})[- ]?(\d{1,4})(?=[A-Za-z]*(?![A-Za-z0-9]))"
)
_TOKEN_GLUED: Final = re.compile(
    r"(?<![A-Za-z0-9])([A-Za-z]{1,6})-?(\d{1,4})(?=[A-Za-z]*(?![A-Za-z0-9]))"
)
_TOKEN_RANGE: Final = re.compile(
    r"(?<![A-Za-z0-9])([A-Za-z])(\d{1,2})\s?[-–/]\s?(\d{1,2})(?!\d|\.\d)"
)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number with what stands behind it. `dimension` is "" without a unit; `value` is then bare,
    `base` is in the dimension's own unit."""

    value: float
    base: float
    dimension: str
    start: int
    end: int
    spelled: bool = False
    ordinal: bool = False


def quantities(text: str) -> list[Quantity]:
    """Every number in order."""
    text = _TIMES.sub(" ", text.translate(_PLAIN))
    found: list[Quantity] = []
    units: list[str] = []
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is None:
            continue
        unit = (match["unit"] or "").lower()
        found.append(
            Quantity(
                value=value,
                base=value,
                dimension="",
                start=match.start(),
                end=match.end(),
                spelled=match["digits"] is None,
                ordinal=match["ordinal"] is not None,
            )
        )
        units.append(unit)
    for at in range(len(found) - 2, -1, -1):
        between = text[found[at].end : found[at + 1].start]
        if not units[at] and units[at + 1] and _SHARES.fullmatch(between):
            units[at] = units[at + 1]
    return [_with_unit(quantity, unit) for quantity, unit in zip(found, units, strict=True)]


def tokens(text: str, *, apart: bool = False) -> Iterator[tuple[str, int, int]]:
    """Names of letters and digits, as ("t2", start, end); "L4-5" gives "l4" and "l5".

    `apart` also reads letters and digits with a space between ("T 2").
    """
    for match in (_TOKEN if apart else _TOKEN_GLUED).finditer(text):
        if match[1].lower() != "x":
            yield (match[1] + match[2].lstrip("0")).lower(), *match.span()
    for match in _TOKEN_RANGE.finditer(text):
        yield (match[1] + match[3]).lower(), *match.span()


def _with_unit(quantity: Quantity, unit: str) -> Quantity:
    if not unit:
        return quantity
    dimension, factor = _UNITS[unit if unit in _UNITS else unit.removesuffix("s")]
    return Quantity(
        value=quantity.value,
        base=quantity.value * factor,
        dimension=dimension,
        start=quantity.start,
        end=quantity.end,
        spelled=quantity.spelled,
        ordinal=quantity.ordinal,
    )


def _value(match: re.Match[str]) -> float | None:
    if match["digits"]:
        return float(match["digits"].replace(",", ""))
    if match["ordinal"]:
        word = match["ordinal"].lower()
        return float(_ORDINALS.get(word) or re.sub(r"\D", "", word))
    if match["words"]:
        return float(sum({**_SMALL, **_TENS}[w] for w in re.split("[- ]", match["words"].lower())))
    roman = match["roman"] or match["roman_zh"]
    if roman:
        value = _ROMAN.get(roman)
        return None if value is None else float(value)
    return _chinese(match["chinese"])


def _chinese(text: str) -> float:
    """ "十二" is 12, "二十五" 25, "一百零三" 103; a row of digits ("一二三") is read as digits."""
    if not set(text) & {"十", "百"}:
        return float("".join(str(_ZH_DIGITS[c]) for c in text))
    total, digit = 0, 0
    for character in text:
        if character in "十百":
            total += (digit or 1) * (10 if character == "十" else 100)
            digit = 0
        else:
            digit = _ZH_DIGITS[character]
    return float(total + digit)
