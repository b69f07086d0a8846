"""Drafts that state a finding, or its absence, of which the source says nothing.

A caption or a report is all that a teacher knows of the image. What it adds ("with mild edema") is made
up, and so is what it denies unasked ("no pneumothorax"), unless the source says in general that all is
normal. A finding may be named more generally than in the source (a carcinoma is a lesion), not more
narrowly (an opacity is not yet a pneumonia). What the draft leaves open is not judged.
"""

from __future__ import annotations

import re
from typing import Final

from medloupe.synthesis.filters.assertions import Assertion, of_turn
from medloupe.synthesis.filters.findings import findings
from medloupe.synthesis.filters.texts import excerpt, source_text
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

# What a source that names one of the second allows to be called by the first.
_WIDER: Final[dict[str, frozenset[str]]] = {
    "lesion": frozenset({
        "abscess", "aneurysm", "calcification", "cavity", "consolidation", "cyst", "fracture",
        "granuloma", "ground glass", "hemangioma", "hemorrhage", "hyperintensity", "hypointensity",
        "infarct", "inflammation", "lymphadenopathy", "mass", "metastasis", "necrosis", "nodule",
        "opacity", "pneumonia", "polyp", "tumor", "ulcer",
    }),
    "mass": frozenset({
        "abscess", "cyst", "granuloma", "hemangioma", "lesion", "lymphadenopathy", "metastasis",
        "nodule", "polyp", "tumor",
    }),
    "nodule": frozenset({"granuloma", "metastasis"}),
    "tumor": frozenset({"hemangioma", "metastasis"}),
    "opacity": frozenset({
        "atelectasis", "consolidation", "edema", "effusion", "ground glass", "mass", "nodule",
        "pneumonia",
    }),
    "inflammation": frozenset({"abscess", "granuloma", "pneumonia", "ulcer"}),
    "effusion": frozenset({"ascites", "joint effusion", "pericardial effusion"}),
    "dilatation": frozenset({"aneurysm", "bronchiectasis", "hydronephrosis"}),
    "displacement": frozenset({"dislocation", "hernia", "midline shift"}),
    "dislocation": frozenset({"displacement"}),
    "hyperintensity": frozenset({"edema", "enhancement"}),
    "fibrosis": frozenset({"bronchiectasis"}),
    "obstruction": frozenset({"stenosis", "thrombus"}),
    "stenosis": frozenset({"obstruction"}),
}  # fmt: skip
# Words for findings that are on no list of their own.
_OTHER_WORDS: Final[dict[str, re.Pattern[str]]] = {
    "pneumonia": re.compile(r"\b(?:COVID|SARS|MERS|pneumonitis|pneumocystis)|新冠", re.IGNORECASE),
    "tumor": re.compile(
        r"\w+(?:oma|omas|omata|blastoma|sarcoma)\b|leuk(?:a)?emia|瘤", re.IGNORECASE
    ),
    "lesion": re.compile(r"\w+oma(?:s|ta)?\b|abnormalit|defect|瘤|异常|阴影", re.IGNORECASE),
    "mass": re.compile(r"\w+oma(?:s|ta)?\b|瘤|肿物", re.IGNORECASE),
    "inflammation": re.compile(
        r"\w+itis\b|infect|lymphocyt|plasma cell|neutrophil|炎|感染|淋巴细胞|浆细胞|中性粒",
        re.IGNORECASE,
    ),
    "opacity": re.compile(r"infiltrat|\bshadow|white[- ]?out|阴影|浸润|密度增高", re.IGNORECASE),
    "hemorrhage": re.compile(r"\bh(?:a)?emo(?:thorax|peritoneum)|\bblood\b|血", re.IGNORECASE),
    "enhancement": re.compile(r"\bcontrast|增强", re.IGNORECASE),
}
_NORMAL: Final = re.compile(
    r"\b(?:normal|unremarkable|clear|no (?:\w+ ){0,2}(?:abnormalit(?:y|ies)|findings?|disease|changes?))\b"
    r"|正常|清晰|未见(?:明显|明确)?异常|无(?:明显)?异常",
    re.IGNORECASE,
)


class Unsupported(Filter):
    """States a finding, or its absence, of which the source says nothing."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        source = source_text(row)
        named = {name for name, _, _ in findings(source)}
        for turn in draft.turns:
            for said in of_turn(turn):
                if said.polarity == "open" or _supported(said, source, named):
                    continue
                verb = "states" if said.polarity == "yes" else "denies"
                shown = excerpt(said.sentence, 0, 80)
                return f"{verb} {said.finding}, of which the source says nothing: {shown!r}"
        return None


def _supported(said: Assertion, source: str, named: set[str]) -> bool:
    words = _OTHER_WORDS.get(said.finding)
    if said.finding in named or named & _WIDER.get(said.finding, frozenset()):
        return True
    if words is not None and words.search(source):
        return True
    return said.polarity == "no" and _NORMAL.search(source) is not None
