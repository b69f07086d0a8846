"""The verb that makes a folder of DICOM files and reports ready to be passed on."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from medloupe.cli import console

if TYPE_CHECKING:
    from medloupe.imaging.deidentify.report import Summary

_SHOWN = 20
_NAMED = 6


class Dates(StrEnum):
    """What becomes of dates."""

    remove = "remove"
    shift = "shift"


class Texts(StrEnum):
    """What becomes of report files."""

    list = "list"
    copy = "copy"
    mask = "mask"


class BurnedIn(StrEnum):
    """What becomes of images with text in their pixels."""

    withhold = "withhold"
    copy = "copy"


def deidentify(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A DICOM file, or a folder of files.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, not inside IN.")],
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", help="The secret of the pseudonyms; default: OUT.key, made if absent."
        ),
    ] = None,
    dates: Annotated[
        Dates, typer.Option("--dates", help="Remove dates, or shift them per patient.")
    ] = Dates.remove,
    characteristics: Annotated[
        bool,
        typer.Option("--keep-characteristics", help="Keep sex, age (at most 90), size, weight."),
    ] = False,
    text: Annotated[
        Texts,
        typer.Option("--text", help="Reports (.txt .csv .tsv .json .jsonl): list, copy or mask."),
    ] = Texts.list,
    burned_in: Annotated[
        BurnedIn,
        typer.Option("--burned-in", help="Images that have, or are made of, text in the pixels."),
    ] = BurnedIn.withhold,
    ocr: Annotated[bool, typer.Option("--ocr", help="Read the pixels too (extra: ocr).")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Processes; default: one a core.", show_default=False
        ),
    ] = None,
) -> None:
    """Remove who the patients are, by DICOM PS3.15 Annex E; the originals stay as they are.

    OUT gets the files under new names and deidentification.jsonl: what was removed, and what a person
    must still look at. Beside OUT lie OUT.key and OUT.sources.jsonl: never pass these on. The same
    command goes on where it was interrupted. Exit code 2 if a file could not be processed.

    [dim]medloupe deidentify export/ safe/ --dates shift --keep-characteristics --text mask[/]
    """
    console.quiet_libraries()
    from medloupe.imaging.deidentify import DeidentifyConfig
    from medloupe.imaging.deidentify import deidentify as clean

    config = DeidentifyConfig.parse(
        {
            "dates": dates.value,
            "characteristics": characteristics,
            "text": text.value,
            "burned_in": burned_in.value,
            "ocr": ocr,
        }
    )
    with console.Bars() as bars:
        found = clean(source, out, config, key=key, workers=workers, progress=bars)
    _show(found, out)
    if found.failed:
        console.complain(f"{len(found.failed):,} files could not be processed and are not in {out}")
        raise typer.Exit(console.USER_ERROR)


def _show(found: Summary, out: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("attributes", no_wrap=True)
    table.add_column("times", justify="right")
    table.add_column("most often", overflow="fold")
    for action, counts in found.actions.items():
        table.add_row(action, f"{sum(counts.values()):,}", ", ".join(list(counts)[:_NAMED]))
    console.out.print(table)
    for kind, number in found.findings.items():
        console.out.print(f"found in reports: {number:,} {kind}")
    for warning, number in found.warnings.items():
        console.out.print(f"[yellow]look at[/] {number:,} files: {escape(warning)}")
    for what, files in (("refused", found.refused), ("failed", found.failed)):
        for name, reason in files[:_SHOWN]:
            console.err.print(f"[red]{what}[/]", end=" ")
            console.err.print(f"{name}: {reason}", markup=False)
        if len(files) > _SHOWN:
            console.err.print(f"and {len(files) - _SHOWN:,} more {what}")
    for name in found.listed[:_SHOWN]:
        console.err.print(f"not copied {name}", markup=False)
    if len(found.listed) > _SHOWN:
        console.err.print(f"and {len(found.listed) - _SHOWN:,} more not copied")
    statuses = ", ".join(f"{number:,} {status}" for status, number in found.statuses.items())
    console.out.print(f"{escape(str(out))}: {statuses}; report in deidentification.jsonl")
    console.out.print(
        f"keep or destroy, never pass on: {escape(str(out))}.sources.jsonl and the key"
    )
