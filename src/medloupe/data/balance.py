"""Closed questions thinned until no answer is more frequent than another.

A question that is answered "no" nine times out of ten teaches a model to say "no" without looking.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from medloupe.types import Conversation


def even_out(rows: Iterable[Conversation]) -> list[Conversation]:
    """As many rows as possible such that each option of a template is the answer equally often.

    Rows of one template and language share their options. Which rows stay depends on a hash of
    their ids; their order is kept. A template with an option that is never the answer loses all.
    """
    rows = list(rows)
    groups: defaultdict[tuple[str, str], defaultdict[str, list[str]]]
    groups = defaultdict(lambda: defaultdict(list))
    options: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        assert row.answer is not None, "rows to be evened out have an answer"
        group: tuple[str, str] = (row.template, row.language)
        groups[group][row.answer.text].append(row.id)
        options[group].update(row.options)
    kept: set[str] = set()
    for key, answers in groups.items():
        times = min(len(answers[option]) for option in sorted(options[key] | set(answers)))
        for ids in answers.values():
            kept.update(sorted(ids, key=_draw)[:times])
    return [row for row in rows if row.id in kept]


def _draw(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
