"""Drafts that take the image for one of another kind: a CT for an MRI, a slide for a photograph."""

from __future__ import annotations

import re
from typing import Final

from medloupe.synthesis.filters.texts import excerpt, sentences, source_text
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

_KINDS: Final = {
    "X-ray":
        r"\bx[- ]?rays?\b|\bradiograph(?:s|y|ic)?\b|\bplain films?\b|\bchest films?\b|\bCXR\b"
        r"|\bmammogra(?:m|ms|phy|phic)\b|\bfluorosco\w+|X\s?线|X\s?光|胸片|平片|[DC]R片|钼靶|透视",
    "CT":
        r"\b(?:HR|CB)?CT\b|\bCTA\b|\bcomputed tomogra\w+|\bCAT scans?\b|\bHounsfield\b|计算机断层"
        r"|断层扫描",
    "MRI":
        r"\bf?MRI?\b|\bMRIs\b|\bMRA\b|\bmagnetic resonance\b|\bT[12]WI\b|\bT[12][- ]?weighted\b"
        r"|\bFLAIR\b|\bDWI\b|\bsignal intensit(?:y|ies)\b|磁共振|核磁|T[12]\s?加权|[高低]信号",
    "ultrasound":
        r"\bultraso\w+|\bsonogra\w+|\bechocardiogra\w+|\b(?:hyper|hypo|an)?echo(?:ic"
        r"|genic(?:ity)?)\b|超声|彩超|B超|[低高无]回声",
    "nuclear":
        r"\bPET\b|\bpositron emission\b|\bSPECT\b|\bscintigra\w+|\bbone scan\b|\bFDG\b|正电子"
        r"|骨扫描|核素",
    "microscopy":
        r"\bhisto(?:log|path)\w+|\bmicroscop\w+|\bmicrograph\w*|\bphotomicrograph\w*|\bH&E\b"
        r"|\bha?ematoxylin\b|\bstain(?:s|ed|ing)?\b|\bimmunohisto\w+|\bcytolog\w+|\b(?:blood"
        r"|cell) smears?\b|\btissue sections?\b|病理切片|组织切片|组织学|镜下|显微|HE染色|苏木"
        r"|免疫组化|血涂片|涂片",
    "endoscopy":
        r"\bendoscop\w+|\bcolonoscop\w+|\bgastroscop\w+|\bbronchoscop\w+|\bcystoscop\w+|内镜|胃镜"
        r"|肠镜|支气管镜",
    "fundus": r"\bfundus\b|\bfundoscop\w+|\bretinal photograph\w*|眼底",
    "OCT": r"\boptical coherence\b|\bOCT\b|光学相干",
    "angiography": r"\bangiogra(?:m|ms|phy|phic)\b|\bDSA\b|血管造影",
    "photograph":
        r"\b(?:gross|clinical|macroscopic|intraoperative)\s(?:\w+\s)?(?:photographs?|photos?"
        r"|images?|specimens?|patholog\w+|views?|appearance)\b|\bdermoscop\w+|\bdermatoscop\w+"
        r"|大体(?:标本|照片)|皮肤镜|临床照片",
}  # fmt: skip
_NAMES: Final = tuple(_KINDS)
_PATTERN: Final = re.compile(
    "|".join(f"(?P<m{number}>{_KINDS[name]})" for number, name in enumerate(_NAMES)),
    re.IGNORECASE | re.ASCII,  # Chinese letters are no part of the word "CT"
)
# What a kind may be called too: an angiogram is made with X-rays, CT or MRI, a PET is read over a CT.
_ALSO: Final = {
    "angiography": frozenset({"X-ray", "CT", "MRI"}),
    "nuclear": frozenset({"CT"}),
    "OCT": frozenset({"fundus"}),
    "fundus": frozenset({"photograph", "angiography"}),
    "microscopy": frozenset(),
    "endoscopy": frozenset({"photograph"}),
}
# Spoken of, but not as what this image is.
_ELSEWHERE: Final = re.compile(
    r"\b(?:may|might|could|would|should|unlike|rather than|instead of|as opposed to"
    r"|compared (?:to|with)|in contrast to"
    r"|not (?:an?|by|from|on|visible)|isn't|no|neither|nor|cannot|further|additional(?:ly)?"
    r"|subsequent|other|recommend\w*|follow-?up|confirm\w*|if"
    r"|than|different from|differ|distinguish\w*|later|before|prior to|after|than on|such as|difference)\b"
    r"|不是|并非|而非|不同于|相比|区别|区分|进一步|建议|如果|可以通过|可通过|需要|需|还可"
    r"|其他|例如|确认|优于|不如|与.{1,8}不同",
    re.IGNORECASE,
)
_NO: Final = re.compile(r"^\W*(?:no\b|不|否|没有)", re.IGNORECASE)


class Modality(Filter):
    """Contradicts the source on how the image was made; sources that do not say are not judged."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        given = {name for name, _, _ in modalities(source_text(row))}
        for name in tuple(given):
            given |= _ALSO.get(name, frozenset())
        if not given:
            return None
        for turn in draft.turns:
            denied = _NO.match(turn.answer) is not None
            for text in (*([] if denied or _asks(turn.question) else [turn.question]), turn.answer):
                for sentence in sentences(text):
                    for name, start, end in modalities(sentence):
                        if not _fits(name, given) and not _ELSEWHERE.search(sentence):
                            source = ", ".join(sorted(given))
                            shown = excerpt(sentence, start, end)
                            return f"says {name} where the source says {source}: {shown!r}"
        return None


def modalities(text: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) of every imaging method that is named or implied."""
    text = text.replace("_", " ")
    return [
        (_NAMES[int(str(match.lastgroup)[1:])], *match.span()) for match in _PATTERN.finditer(text)
    ]


def _fits(name: str, given: set[str]) -> bool:
    return name in given or bool(
        _ALSO.get(name, frozenset()) & given & {"X-ray", "CT", "MRI"} and name == "angiography"
    )


def _asks(question: str) -> bool:
    """A question that leaves the kind open, or names several to choose from."""
    named = {name for name, _, _ in modalities(question)}
    return (
        len(named) > 1
        or re.search(r"^(?:is|was|could|does|would)\b|吗|是否|还是", question, re.IGNORECASE)
        is not None
    )
