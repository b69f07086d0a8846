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
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit code 2 also where a file was refused or withheld."),
    ] = False,
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
    command goes on where it was interrupted. Exit code 2 if a file could not be processed, with
    --strict also if one was refused.

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
    for option, path, file in (
        ("OUT", out, False),
        ("OUT", out.with_name(f"{out.name}.sources.jsonl"), True),
        ("--key", key or out.with_name(f"{out.name}.key"), True),
    ):
        console.writable(option, path, file=file)
    with console.Bars() as bars:
        found = clean(source, out, config, key=key, workers=workers, progress=bars)
    _show(found, out)
    if found.failed:
        console.complain(f"{len(found.failed):,} files could not be processed and are not in {out}")
        raise typer.Exit(console.USER_ERROR)
    if strict and found.refused:
        console.complain(
            f"{len(found.refused):,} files were refused and are not in {out} (--strict)"
        )
        raise typer.Exit(console.USER_ERROR)


def _counts(found: Summary) -> str:
    """`3 written, 2 refused (1 withheld for text in the pixels), 1 listed and not copied`."""
    said = {
        "written": "written",
        "refused": "refused",
        "failed": "failed",
        "listed": "listed and not copied",
    }
    if found.withheld:
        said["refused"] += f" ({found.withheld:,} withheld for text in the pixels)"
    return ", ".join(f"{found.statuses.get(status, 0):,} {words}" for status, words in said.items())


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
    console.out.print(f"{escape(str(out))}: {_counts(found)}; report in deidentification.jsonl")
    console.out.print(
        f"keep or destroy, never pass on: {escape(str(out))}.sources.jsonl and the key"
    )
