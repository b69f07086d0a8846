"""What is told about a run: a row for each file, in two forms.

The public row stands in the folder that is passed on, and holds nothing of the old values, not even a
file name. The private row stands beside the key and also says which source became which file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, Literal

from medloupe.config import Config

WITHHELD: Final = "(--burned-in copy passes it on)"  # ends the reason of what was refused for text
Status = Literal["written", "refused", "failed", "listed"]


class Change(Config):
    """What was done to an attribute, never what it said. `at` names the sequences it lies in; private
    attributes and those that the dictionary does not know have no keyword."""

    tag: str
    keyword: str
    action: str
    at: str = ""
    count: int = 1


class TextFinding(Config):
    """An identifier in a text file: `[start, end)` are letters of the whole text, or of the value at
    `at` (a row and a column, or a path of keys). `masked`: it was replaced."""

    kind: str
    rule: str
    start: int
    end: int
    at: str = ""
    masked: bool = False


class TextBox(Config):
    """Where text was read, in original pixels of a frame, and how many letters and digits it has.

    `personal`: it holds a name or number from the header, or what the rules for report text take for
    an identifier.
    """

    frame: int
    x1: float
    y1: float
    x2: float
    y2: float
    letters: int
    personal: bool = False


class FileRow(Config):
    """One source file. `file` is its new name below the output folder, None where none was written."""

    file: str | None = None
    status: Status
    kind: Literal["dicom", "text", "other"]
    reason: str = ""
    sop_class: str = ""
    modality: str = ""
    changes: tuple[Change, ...] = ()
    findings: tuple[TextFinding, ...] = ()
    text_boxes: tuple[TextBox, ...] = ()
    warnings: tuple[str, ...] = ()


class SourceRow(Config):
    """The private side of a row: the source below the input folder, and what tells whether it is still
    the same. `detail` is the full message of a failure, which may quote the file."""

    source: str
    size: int
    modified_ns: int
    detail: str = ""
    row: FileRow


class Summary(Config):
    """The counts of a run. `failed` and `refused` are (source, reason) for the person who runs it;
    `withheld` of the refused stay behind for text in their pixels."""

    statuses: dict[str, int]
    actions: dict[str, dict[str, int]]
    warnings: dict[str, int]
    findings: dict[str, int]
    failed: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    listed: tuple[str, ...] = ()
    withheld: int = 0


def summarise(rows: Iterable[SourceRow]) -> Summary:
    """Count files by status, attributes by what was done to them, and warnings."""
    statuses: Counter[str] = Counter()
    actions: dict[str, Counter[str]] = {}
    warnings: Counter[str] = Counter()
    findings: Counter[str] = Counter()
    named: dict[str, list[tuple[str, str]]] = {"failed": [], "refused": [], "listed": []}
    for item in rows:
        row = item.row
        statuses[row.status] += 1
        for change in row.changes:
            name = change.keyword or ("private" if int(change.tag[4], 16) % 2 else "unknown")
            actions.setdefault(change.action, Counter())[name] += change.count
        warnings.update(row.warnings)
        findings.update(found.kind for found in row.findings)
        if row.status in named:
            named[row.status].append((item.source, item.detail or row.reason))
    return Summary(
        statuses=dict(statuses),
        actions={action: dict(counts.most_common()) for action, counts in sorted(actions.items())},
        warnings=dict(warnings.most_common()),
        findings=dict(findings.most_common()),
        failed=tuple(named["failed"]),
        refused=tuple(named["refused"]),
        listed=tuple(source for source, _ in named["listed"]),
        withheld=sum(reason.endswith(WITHHELD) for _, reason in named["refused"]),
    )
