"""Drafts that affirm what the source denies, or deny what it affirms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from medloupe.synthesis.filters.assertions import Assertion, assertions, of_turn
from medloupe.synthesis.filters.sides import BOTH, Side
from medloupe.synthesis.filters.texts import excerpt, source_text
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow, Turn

# Sentences that deny without naming: what a normal study does not have.
_CLEAR_LUNGS: Final = re.compile(
    r"\blungs? (?:fields? )?(?:is|are|appear|remain)s? (?:grossly )?(?:clear|normal)\b"
    r"|\bclear lungs?\b|双肺(?:野)?清晰|两肺(?:野)?清晰",
    re.IGNORECASE,
)
_NORMAL_HEART: Final = re.compile(
    r"\b(?:heart|cardiac silhouette|cardiac size"
    r"|cardiomediastinal silhouette)(?: size)? (?:is|are|appears?|remains?)?\s*"
    r"(?:within normal|normal|not enlarged|unremarkable)|\bnormal (?:heart|cardiac) (?:size"
    r"|silhouette)|心(?:影|脏)(?:大小)?(?:不大|正常|未见(?:明显)?(?:异常|增大))",
    re.IGNORECASE,
)
_CENTRAL: Final = re.compile(
    r"\bmidline (?:structures )?(?:is|are|remains?) (?:central|in place|not shifted|preserved)"
    r"|中线(?:结构)?居中",
    re.IGNORECASE,
)
_IN_CLEAR_LUNGS: Final = ("consolidation", "opacity", "ground glass", "pneumonia", "nodule", "mass")
_NO_FINDING: Final = re.compile(r"^(?:no findings?|normal|无异常|未见异常|正常)$", re.IGNORECASE)
_EARLIER: Final = re.compile(
    r"\b(?:earlier|prior|previous(?:ly)?|first|before|initial(?:ly)?)\b|之前|此前|先前|前次|早前|上次|较早",
    re.IGNORECASE,
)
_LATER: Final = re.compile(
    r"\b(?:current|later|second|now|follow-up|new(?:er|ly)?|today|recent)\b|现在|目前|本次"
    r"|此次|后一|较晚|新出现",
    re.IGNORECASE,
)

# What has become of a finding is seen in the later study, whichever the sentence names.
_CHANGED: Final = re.compile(
    r"\b(?:gone|resolved|cleared|disappeared|no longer|new|appeared|developed)\b|消失|吸收"
    r"|不再|新(?:出现|发)",
    re.IGNORECASE,
)


class Negation(Filter):
    """Contradicts the source on whether a finding is there."""

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        earlier, later = _stated(row)
        for turn in draft.turns:
            for said in of_turn(turn):
                if said.polarity == "open":
                    continue
                stated = _of_time(row, turn, said, earlier, later)
                if _contradicted(said, stated) or _denied_all(row, said):
                    verb = "affirms" if said.polarity == "yes" else "denies"
                    where = f" ({said.side})" if said.side else ""
                    shown = excerpt(said.sentence, 0, 80)
                    return f"{verb} {said.finding}{where} against the source: {shown!r}"
        return None


def _stated(row: SourceRow) -> tuple[list[Assertion], list[Assertion]]:
    """What the source says of an earlier study (a pair's only), and everything else."""
    if row.kind != "pair":
        return [], _all(source_text(row))
    current = {name: text for name, text in row.sections.items() if name != "prior"}
    rest = row.model_copy(update={"sections": current})
    return _all(row.sections.get("prior", "")), _all(source_text(rest))


def _all(text: str) -> list[Assertion]:
    found = assertions(text)
    if _NORMAL_HEART.search(text):
        found.append(Assertion(finding="cardiomegaly", polarity="no", side=None, sentence=text))
    if _CENTRAL.search(text):
        found.append(Assertion(finding="midline shift", polarity="no", side=None, sentence=text))
    if _CLEAR_LUNGS.search(text):
        found += [
            Assertion(finding=name, polarity="no", side=None, sentence=text)
            for name in _IN_CLEAR_LUNGS
        ]
    return found


def _of_time(
    row: SourceRow,
    turn: Turn,
    said: Assertion,
    earlier: list[Assertion],
    later: list[Assertion],
) -> list[Assertion]:
    """What the source says at the time that the sentence speaks of; both where it does not say."""
    if row.kind != "pair":
        return later
    if _CHANGED.search(said.sentence):
        return later
    for text in (said.sentence, turn.question):
        if bool(_EARLIER.search(text)) != bool(_LATER.search(text)):
            return earlier if _EARLIER.search(text) else later
    return [*earlier, *later]


def _contradicted(said: Assertion, stated: Sequence[Assertion]) -> bool:
    """Whether the source has the opposite of it, on a side that it speaks of, and nothing for it."""
    same = [item for item in stated if item.finding == said.finding]
    if any(
        item.polarity in (said.polarity, "open") and _supports(item.side, said) for item in same
    ):
        return False
    return any(_opposes(item, said) for item in same)


def _supports(stated: Side | None, said: Assertion) -> bool:
    if said.polarity == "yes":
        return (
            said.side is None
            or stated is None
            or BOTH in (stated, said.side)
            or stated == said.side
        )
    # A denial for one side does not carry a denial for the whole.
    return stated in (None, BOTH) or stated == said.side


def _opposes(item: Assertion, said: Assertion) -> bool:
    if item.polarity == "open" or item.polarity == said.polarity:
        return False
    if item.side is None or said.side is None:
        return True
    return BOTH in (item.side, said.side) or item.side == said.side


def _denied_all(row: SourceRow, said: Assertion) -> bool:
    """A finding where the labels say that there is none; devices and the like may be there."""
    nothing = row.kind == "labels" and any(
        _NO_FINDING.match(label.replace("_", " ").strip()) for label in row.labels
    )
    return nothing and said.polarity == "yes" and said.finding not in ("device", "enhancement")
