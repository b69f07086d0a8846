"""A page to read what a run made: rows with their source, accepted and refused, and why.

One pass, bounded memory: of accepted rows, and of those that each filter refused, the ones with the
smallest hash of their id are kept, so that a page of the same run shows the same rows. Everything a
teacher or a source wrote is text, never markup. The page speaks English or Chinese; the rows stay in
their own language and are marked as such.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medloupe.html.markup import Html, tag
from medloupe.html.page import asset, document, write_page
from medloupe.synthesis.parse import read_turns
from medloupe.synthesis.types import Outcome, SourceRow, SynthesisError
from medloupe.types import Language

Rows = Iterable[tuple[SourceRow, Outcome]]

_WORDS: Final[Mapping[Language, Mapping[str, str]]] = {
    "en": {
        "eyebrow": "MedLoupe synthesis report",
        "rows": "rows",
        "accepted": "accepted",
        "rejected": "rejected",
        "filters": "What the filters refused",
        "filter_lead": "A row that several filters refuse counts under each of them.",
        "filter": "filter",
        "only": "only this one",
        "share": "of all rows",
        "who": "Who wrote what",
        "teacher": "teacher",
        "model": "model",
        "samples": "Rows beside their source",
        "samples_lead": "Drawn by a hash of the row's name, not by hand: {accepted} accepted,"
        " {rejected} rejected.",
        "all": "all",
        "source": "Source",
        "draft": "Draft",
        "raw": "As the teacher wrote it",
        "no_draft": "There is no answer.",
        "unread": "No turns could be read from the answer.",
        "mentions": "sentence about the figure",
        "labels": "labels",
        "boxes": "boxes",
        "any_reason": "any reason",
        "reason": "refused by",
        "warning": "Conversations were written from texts by language models, not from images by readers. "
        "Read them before you train on them.",
        "footer": "MedLoupe is research software. It is no medical device.",
    },
    "zh": {
        "eyebrow": "MedLoupe 合成报告",
        "rows": "行数",
        "accepted": "接受",
        "rejected": "拒绝",
        "filters": "各过滤器拒绝的行",
        "filter_lead": "同一行被几个过滤器拒绝时，在每个过滤器下各计一次。",
        "filter": "过滤器",
        "only": "仅被它拒绝",
        "share": "占全部行",
        "who": "各教师模型的结果",
        "teacher": "教师",
        "model": "模型",
        "samples": "对照来源阅读",
        "samples_lead": "按行名的哈希值抽取，并非人工挑选：接受 {accepted} 行，拒绝 {rejected} 行。",
        "all": "全部",
        "source": "来源",
        "draft": "对话",
        "raw": "教师模型的原文",
        "no_draft": "没有回答。",
        "unread": "无法从回答中读出问答。",
        "mentions": "文中相关句子",
        "labels": "标签",
        "boxes": "框",
        "any_reason": "任何原因",
        "reason": "拒绝者",
        "warning": "对话由语言模型根据文字写成，并非由阅片者根据图像写成。用于训练之前请先阅读。",
        "footer": "MedLoupe 是研究软件，不是医疗器械。",
    },
}


def write_sample_page(
    path: Path,
    rows: Rows,
    *,
    title: str,
    language: Language = "en",
    accepted: int = 40,
    rejected: int = 60,
) -> None:
    """Write the page of a run, whole or not at all.

    `rows` are read once. At most `accepted` and about `rejected` rows are shown, the latter spread over
    the filters.
    """
    seen = _Seen(accepted, rejected)
    for row, outcome in rows:
        seen.add(row, outcome)
    write_page(path, _render(seen, title, language))


@dataclass
class _Kept:
    """The `most` rows with the smallest hashes."""

    most: int
    heap: list[tuple[int, str, SourceRow, Outcome]] = field(default_factory=list)

    def add(self, rank: int, row: SourceRow, outcome: Outcome) -> None:
        item = (-rank, row.id, row, outcome)
        if len(self.heap) < self.most:
            heapq.heappush(self.heap, item)
        elif self.most and item[:2] > self.heap[0][:2]:
            heapq.heapreplace(self.heap, item)

    def rows(self) -> list[tuple[SourceRow, Outcome]]:
        ordered = sorted(self.heap, key=lambda item: (-item[0], item[1]))
        return [(row, outcome) for _, _, row, outcome in ordered]


class _Seen:
    """What one pass over a run gives: counts, and the rows to show."""

    def __init__(self, accepted: int, rejected: int) -> None:
        self.total = self.taken = 0
        self.accepted = _Kept(accepted)
        self.refused: dict[str, _Kept] = {}
        self.most_rejected = rejected
        self.filters: Counter[str] = Counter()
        self.alone: Counter[str] = Counter()
        self.teachers: dict[tuple[str, str], Counter[bool]] = defaultdict(Counter)

    def add(self, row: SourceRow, outcome: Outcome) -> None:
        self.total += 1
        taken = outcome.conversation is not None
        if outcome.provenance is not None:
            self.teachers[outcome.provenance.teacher, outcome.provenance.model][taken] += 1
        rank = int.from_bytes(hashlib.blake2b(row.id.encode(), digest_size=8).digest())
        if taken:
            self.taken += 1
            self.accepted.add(rank, row, outcome)
            return
        reasons = list(dict.fromkeys(rejection.filter for rejection in outcome.rejections))
        self.filters.update(reasons)
        if len(reasons) == 1:
            self.alone[reasons[0]] += 1
        kept = self.refused.setdefault(reasons[0], _Kept(self.most_rejected))
        kept.add(rank, row, outcome)

    def shown(self) -> tuple[list[tuple[SourceRow, Outcome]], list[tuple[SourceRow, Outcome]]]:
        """Accepted rows, and rejected ones in turn from every filter."""
        queues = [kept.rows() for _, kept in sorted(self.refused.items())]
        spread = [
            queue[place]
            for place in range(max(map(len, queues), default=0))
            for queue in queues
            if place < len(queue)
        ]
        return self.accepted.rows(), spread[: self.most_rejected]


def _render(seen: _Seen, title: str, language: Language) -> str:
    words = _WORDS[language]
    accepted, rejected = seen.shown()
    body = tag(
        "main",
        _header(seen, title, words),
        tag("aside", tag("p", words["warning"]), class_="warnings"),
        _teachers(seen, words),
        _filters(seen, words),
        _samples(accepted, rejected, words),
        tag("footer", words["footer"]),
        lang=_lang(language),
    )
    script = tag("script", asset(__package__, "page.js"))
    return document(title, body, script, style=asset(__package__, "page.css"))


def _lang(language: Language) -> str:
    return {"en": "en", "zh": "zh-Hans"}[language]


def _header(seen: _Seen, title: str, words: Mapping[str, str]) -> Html:
    facts = [
        (words["rows"], f"{seen.total:,}"),
        (words["accepted"], _share(seen.taken, seen.total)),
        (words["rejected"], _share(seen.total - seen.taken, seen.total)),
    ]
    return tag(
        "header",
        tag("p", words["eyebrow"], class_="eyebrow"),
        tag("h1", title),
        tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts), class_="facts"),
    )


def _share(number: int, of: int) -> str:
    return f"{number:,} ({number / of:.0%})" if of else "0"


def _teachers(seen: _Seen, words: Mapping[str, str]) -> Html:
    rows = [
        (teacher, model, f"{numbers.total():,}", _share(numbers[True], numbers.total()))
        for (teacher, model), numbers in sorted(seen.teachers.items())
    ]
    head = (words["teacher"], words["model"], words["rows"], words["accepted"])
    return _table("who", words["who"], "", head, rows)


def _filters(seen: _Seen, words: Mapping[str, str]) -> Html:
    rows = [
        (name, f"{number:,}", f"{seen.alone[name]:,}", f"{number / seen.total:.0%}")
        for name, number in sorted(seen.filters.items(), key=lambda item: (-item[1], item[0]))
    ]
    head = (words["filter"], words["rejected"], words["only"], words["share"])
    return _table("filters", words["filters"], words["filter_lead"], head, rows)


def _table(
    name: str, title: str, lead: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> Html:
    if not rows:
        return Html()
    lines = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    table = tag(
        "table",
        tag("thead", tag("tr", *(tag("th", cell) for cell in head))),
        tag("tbody", *lines),
        class_="numbers",
    )
    leads = [tag("p", lead, class_="lead")] if lead else []
    return tag("section", tag("h2", title), *leads, tag("div", table, class_="scroll"), id=name)


def _samples(
    accepted: list[tuple[SourceRow, Outcome]],
    rejected: list[tuple[SourceRow, Outcome]],
    words: Mapping[str, str],
) -> Html:
    rows = [*rejected, *accepted]
    reasons = sorted({r.filter for _, outcome in rejected for r in outcome.rejections})
    lead = words["samples_lead"].format(accepted=len(accepted), rejected=len(rejected))
    states = (("", words["all"]), ("accepted", words["accepted"]), ("rejected", words["rejected"]))
    radios = [
        tag(
            "label",
            tag("input", type="radio", name="state", value=value, checked=not value),
            tag("span", text),
        )
        for value, text in states
    ]
    chosen = tag(
        "select",
        tag("option", words["any_reason"], value=""),
        *(tag("option", name, value=name) for name in reasons),
        id="reason",
        aria_label=words["reason"],
    )
    form = tag("form", tag("div", *radios, class_="radios"), chosen, id="choose")
    cards = [_card(row, outcome, words) for row, outcome in rows]
    return tag(
        "section",
        tag("h2", words["samples"]),
        tag("p", lead, class_="lead"),
        form,
        tag("div", *cards, class_="cards", id="cards"),
        id="samples",
    )


def _card(row: SourceRow, outcome: Outcome, words: Mapping[str, str]) -> Html:
    state = "rejected" if outcome.rejections else "accepted"
    made = outcome.provenance
    head = [tag("span", words[state], class_=f"pill {'no' if outcome.rejections else 'yes'}")]
    head += [tag("span", row.id, class_="name")]
    if made is not None:
        head.append(tag("span", f"{made.teacher} · {made.model}", class_="teacher"))
    against = [
        tag("li", tag("b", rejection.filter), " ", rejection.reason)
        for rejection in outcome.rejections
    ]
    reasons = [tag("ul", *against, class_="against")] if against else []
    source = tag("div", tag("h3", words["source"]), *_source(row, words), lang=_lang(row.language))
    draft = tag("div", tag("h3", words["draft"]), *_draft(outcome, words), lang=_lang(row.language))
    return tag(
        "article",
        tag("p", *head, class_="head"),
        *reasons,
        tag("div", source, draft, class_="beside"),
        class_="card",
        data_state=state,
        data_reasons=" ".join(rejection.filter for rejection in outcome.rejections),
    )


def _source(row: SourceRow, words: Mapping[str, str]) -> Iterator[Html]:
    known = [row.modality, row.anatomy, row.domain, row.dataset, row.licence]
    yield tag("p", " · ".join(filter(None, known)), class_="lead")
    if row.text and not any(name != "prior" for name in row.sections):
        yield tag("p", row.text)
    parts = [*row.sections.items(), *((words["mentions"], text) for text in row.mentions)]
    if row.labels:
        parts.append((words["labels"], ", ".join(row.labels)))
    if row.boxes:
        parts.append((words["boxes"], ", ".join(box.label for box in row.boxes)))
    if parts:
        yield tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in parts))


def _draft(outcome: Outcome, words: Mapping[str, str]) -> Iterator[Html]:
    draft = outcome.draft
    if draft is None:
        yield tag("p", words["no_draft"], class_="lead")
        return
    if not draft.turns:
        yield tag("p", words["unread"], class_="lead")
    for turn in draft.turns:
        yield tag("p", turn.question, class_="question")
        yield tag("p", turn.answer)
    note = _note(draft.raw)
    if note:
        yield tag("p", note, class_="lead")
    yield tag("details", tag("summary", words["raw"]), tag("pre", draft.raw))


def _note(raw: str) -> str:
    """What the parser left out of an answer."""
    try:
        return read_turns(raw).note
    except SynthesisError:
        return ""
