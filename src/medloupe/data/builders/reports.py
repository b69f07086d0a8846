"""Longer texts about an image: reports and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medloupe.data.builders.base import turn
from medloupe.data.builders.prompts import word
from medloupe.data.builders.questions import key_of
from medloupe.data.builders.words import joined, spoken
from medloupe.errors import DataError
from medloupe.types import Conversation, Language, Record

# LLaVA-Med (Li et al. 2023, section 3.1) asks briefly for captions below 30 words. For Chinese,
# which is written without spaces, 60 characters are ours: as long in print as 30 English words.
BRIEF_BELOW: Mapping[Language, int] = {"en": 30, "zh": 60}
_SECTIONS: Mapping[Language, Mapping[str, str]] = {
    "en": {},
    "zh": {
        "findings": "影像所见",
        "impression": "影像诊断",
        "indication": "检查指征",
        "comparison": "对比检查",
        "technique": "检查方法",
        "history": "病史",
    },
}
_HEADED: Mapping[Language, str] = {"en": "{name}: {text}", "zh": "{name}：{text}"}


def report(
    record: Record,
    *,
    sections: Sequence[str] = ("findings", "impression"),
    task: str = "report",
    language: Language = "en",
    seed: int = 0,
) -> Conversation:
    """The named sections of the record's report, each under its name where there are several.

    Raises:
        DataError: a section is empty or missing.
    """
    empty = [name for name in sections if not record.report.get(name, "").strip()]
    if empty or not sections:
        here = ", ".join(name for name, text in record.report.items() if text.strip())
        raise DataError(
            f"the report has no {' and no '.join(empty)}" if empty else "no section was named",
            remedy=f"Ask for sections that it has ({here or 'none'}), or leave the record out",
            row=record.id,
            field="report",
        )
    names = [_SECTIONS[language].get(name, spoken(name)) for name in sections]
    texts = [record.report[name].strip() for name in sections]
    wording = word(
        "report", record.id, task, language=language, seed=seed, sections=joined(names, language)
    )
    return turn(
        record,
        task=task,
        key=key_of(language),
        question=wording.text,
        answer=texts[0] if len(texts) == 1 else _under_names(names, texts, language),
        template=f"{task}/{'+'.join(sections)}/{language}",
        language=language,
        attributes={"wording": str(wording.number)},
    )


def caption(
    record: Record,
    text: str,
    *,
    task: str = "caption",
    seed: int = 0,
    language: Language = "en",
) -> Conversation:
    """A caption; the instruction asks for a brief or a detailed one, by the caption's length.

    Raises:
        DataError: the caption is empty.
    """
    text = text.strip()
    if not text:
        raise DataError(
            "the caption is empty",
            remedy="Give it text, or leave the record out",
            row=record.id,
            field="report.caption",
        )
    form = "brief" if is_brief(text, language) else "detailed"
    wording = word(f"caption.{form}", record.id, task, language=language, seed=seed)
    return turn(
        record,
        task=task,
        key=key_of(language),
        question=wording.text,
        answer=text,
        template=f"{task}/{form}/{language}",
        language=language,
        attributes={"wording": str(wording.number)},
    )


def is_brief(text: str, language: Language) -> bool:
    """Whether a caption is asked for briefly: fewer than 30 words, or 60 Chinese characters."""
    length = len(text.split()) if language == "en" else len("".join(text.split()))
    return length < BRIEF_BELOW[language]


def _under_names(names: Sequence[str], texts: Sequence[str], language: Language) -> str:
    headed = _HEADED[language]
    return "\n".join(
        headed.format(name=name[:1].upper() + name[1:], text=text)
        for name, text in zip(names, texts, strict=True)
    )
