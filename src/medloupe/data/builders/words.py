"""Lists, options and short answers in words, per language."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from medloupe.errors import DataError, did_you_mean
from medloupe.types import Language

YES_NO: Mapping[Language, tuple[str, str]] = {"en": ("yes", "no"), "zh": ("是", "否")}
# The pairs in which published yes/no questions are answered; the first that holds an answer counts.
YES_NO_PAIRS: Mapping[Language, tuple[tuple[str, str], ...]] = {
    "en": (YES_NO["en"],),
    "zh": (YES_NO["zh"], ("有", "没有"), ("有", "无"), ("是", "不是"), ("对", "不对")),
}
NO_FINDING: Mapping[Language, str] = {"en": "No finding", "zh": "未见异常"}
NONE_OF_THESE: Mapping[Language, str] = {"en": "None of these", "zh": "以上均无"}
_COMMA: Mapping[Language, tuple[str, str]] = {"en": (", ", "; "), "zh": ("、", "；")}
_OPTIONS: Mapping[Language, str] = {
    "en": "{question}\nOptions: {options}.",
    "zh": "{question}\n选项：{options}。",
}
# A label that says that something is absent.
_NEGATION = re.compile(r"(no|not|without|absence of|negative for)\b|无|没有|未见", re.IGNORECASE)
_ARTICLE = re.compile(r"^(the|an|a) ", re.IGNORECASE)
_AND: Mapping[Language, str] = {"en": " and ", "zh": "和"}


def listed(items: Sequence[str], language: Language) -> str:
    """ "a, b, c"; with semicolons where an item holds a comma itself."""
    comma, semicolon = _COMMA[language]
    return (semicolon if any(comma.strip() in item for item in items) else comma).join(items)


def joined(items: Sequence[str], language: Language) -> str:
    """ "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return _AND[language].join((listed(items[:-1], language), items[-1]))


def spoken(label: str) -> str:
    """A label as it is said in a sentence: underscores become spaces, white space is one space."""
    return " ".join(label.replace("_", " ").split())


def in_sentence(label: str, language: Language) -> str:
    """A label in the middle of a sentence: "aortic enlargement", but "ILD" and "Lung Tumor".

    A leading article goes, and the first letter becomes small where all others are.
    """
    name = spoken(label)
    if language != "en":
        return name
    name = _ARTICLE.sub("", name)
    return name[0].lower() + name[1:] if name[1:2].islower() and name[1:].islower() else name


def require_name(label: str, *, row: str) -> None:
    """Refuse what can be neither asked for nor located.

    Raises:
        DataError: an empty label, or one that says no itself ("No finding": yes or no to it can be
            read both ways).
    """
    name = spoken(label)
    if name and not _NEGATION.match(name):
        return
    raise DataError(
        f"the label {label!r} is a negation" if name else "the label is empty",
        remedy="Ask for the finding itself, or offer the label as a class (classify, label_all)",
        row=row,
        field="labels",
    )


def with_options(question: str, options: Sequence[str], language: Language) -> str:
    """The question with its options below it, unless it names them already or asks yes or no."""
    if not options or is_yes_no(options, language) or _names_all(question, options):
        return question
    return _OPTIONS[language].format(question=question, options=listed(options, language))


def is_yes_no(options: Sequence[str], language: Language) -> bool:
    """Whether the options are yes and no, in one of the language's spellings."""
    found = {plain(option) for option in options}
    return any(found == set(pair) for pair in YES_NO_PAIRS[language])


def plain(text: str) -> str:
    """What two spellings of one answer share: case, outer white space and a final stop are left out."""
    return " ".join(text.split()).rstrip(".。").casefold()


def require_option(answer: str, options: Sequence[str], *, row: str, field: str) -> str:
    """The option that `answer` means, as the options spell it.

    Raises:
        DataError: fewer than two options, two that are the same, or none that is the answer.
    """
    spelling = {plain(option): option for option in options}
    if len(spelling) < max(2, len(options)):
        rule = f"the options are too few or repeat: {', '.join(options) or 'none'}"
        raise DataError(rule, remedy="Give at least two, each once", row=row, field="options")
    if plain(answer) not in spelling:
        raise DataError(
            f"the answer {answer!r} is none of the options; {did_you_mean(answer, options)}",
            remedy="Correct the answer, or add it to the options",
            row=row,
            field=field,
        )
    return spelling[plain(answer)]


def _names_all(question: str, options: Sequence[str]) -> bool:
    """Whether every option stands in the question as a whole word (in Chinese: stands in it)."""
    return all(
        re.search(rf"(?<![0-9A-Za-z]){re.escape(option.strip())}(?![0-9A-Za-z])", question, re.I)
        for option in options
    )
