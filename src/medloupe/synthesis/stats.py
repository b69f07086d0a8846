"""Images and turns by domain, in the form of Table 1 of Llama3-Med (chest X-ray, CT, MRI, histology, gross
pathology).

The domain is what the row states, else what its modality says; what is neither of the five is counted by
its own name, and nothing is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medloupe.config import Config
from medloupe.synthesis.journal import Notes
from medloupe.types import Conversation

DOMAINS: Final = ("Chest X-Ray", "CT", "MRI", "Histology", "Pathology")
OTHER: Final = "not stated"
_ALIASES: Final = {
    "Chest X-Ray": "chest xray, chest x ray, chest radiograph, cxr, 胸片, 胸部x线",
    "CT": "ct, ct scan, computed tomography, cta, hrct",
    "MRI": "mri, mr, magnetic resonance, magnetic resonance imaging, 磁共振",
    "Histology": "histology, histopathology, microscopy, micrograph, 病理切片, 组织学",
    "Pathology": "pathology, gross, gross pathology, gross specimen, 大体标本",
}
_KNOWN: Final = {alias: name for name, text in _ALIASES.items() for alias in text.split(", ")}
_XRAY: Final = frozenset(
    {"xray", "x ray", "cr", "dx", "dr", "radiograph", "radiography", "x线", "x光"}
)
_CHEST: Final = frozenset({"chest", "lung", "thorax", "胸部", "胸", "肺"})


class DomainCount(Config):
    """One cell pair of the table: distinct images and turns of one domain, under one teacher or set."""

    source: str
    domain: str
    images: int
    turns: int


def domain_counts(rows: Iterable[Conversation], *, by: str = "dataset") -> tuple[DomainCount, ...]:
    """Images and turns by domain, for each value of `by`: "dataset", or an attribute such as "teacher".

    Domains stand in the paper's order, then others by their number of turns. Memory does not grow with the
    rows: which images were seen lies on disk.
    """
    turns: Counter[tuple[str, str]] = Counter()
    images: Counter[tuple[str, str]] = Counter()
    notes = Notes()
    try:
        for row in rows:
            source = row.dataset if by == "dataset" else row.attributes.get(by, "")
            key = (source or OTHER, domain_of(row))
            turns[key] += sum(message.role == "assistant" for message in row.messages)
            for ref in row.images:
                images[key] += notes.add("\n".join(key), f"{ref.uri}#{ref.frame or 0}")
    finally:
        notes.close()
    order = _ordered(turns)
    return tuple(
        DomainCount(source=source, domain=domain, images=images[source, domain], turns=number)
        for source in sorted({source for source, _ in turns})
        for domain in order
        if (number := turns[source, domain]) or images[source, domain]
    )


def domain_of(row: Conversation) -> str:
    """The domain a conversation belongs to."""
    modality = row.attributes.get("modality") or next((r.modality or "" for r in row.images), "")
    for stated in (row.attributes.get("domain", ""), modality):
        plain = _plain(stated)
        if plain in _KNOWN:
            return _KNOWN[plain]
        if plain in _XRAY:
            chest = _plain(row.attributes.get("anatomy", "")) in _CHEST
            return "Chest X-Ray" if chest else "X-ray"
        if stated:
            return stated
    return OTHER


def domain_table(counts: Sequence[DomainCount]) -> Table:
    """The table for the terminal: domains across, images and turns of each source below each other."""
    domains = list(dict.fromkeys(count.domain for count in counts))
    domains.sort(key=lambda name: DOMAINS.index(name) if name in DOMAINS else len(DOMAINS))
    table = Table(title="images and turns by domain", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for domain in (*domains, "all"):
        table.add_column(domain, justify="right")
    cells = {(count.source, count.domain): count for count in counts}
    for source in dict.fromkeys(count.source for count in counts):
        own = [cells.get((source, domain)) for domain in domains]
        table.add_row(f"[bold]{escape(source)}[/]")
        table.add_row("  images", *_numbers([cell.images if cell else 0 for cell in own]))
        table.add_row("  turns", *_numbers([cell.turns if cell else 0 for cell in own]))
    return table


def _numbers(values: Sequence[int]) -> list[str]:
    return [f"{value:,}" for value in (*values, sum(values))]


def _ordered(turns: Counter[tuple[str, str]]) -> list[str]:
    totals: Counter[str] = Counter()
    for (_, domain), number in turns.items():
        totals[domain] += number
    others = sorted(totals.keys() - set(DOMAINS), key=lambda name: (-totals[name], name))
    return [*(name for name in DOMAINS if name in totals), *others]


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())
