"""Data sets into the native form, and the check of what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.markup import escape

from medloupe.cli import console

if TYPE_CHECKING:
    from medloupe.data.datasets.base import DatasetConfig

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change one field; may be repeated."),
]
Root = Annotated[
    Path | None, typer.Option("--root", help="Where your copy of the data set's source lies.")
]
Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Read every row and image afterwards.")
]


def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            help="starter, vqa_rad, ..., folder, llava, native, or your own module:Class."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.", show_default=False)],
    root: Root = None,
    set_: Set = None,
    check_: Check = True,
) -> None:
    """Turn a data set into the native form: JSON lines, images, a card. Then check it.

    [dim]medloupe prepare starter --out data/starter --set patients=50 --set size=448[/]
    [dim]medloupe prepare vqa_rad --root downloads/vqa_rad --out data/vqa_rad[/]
    [dim]medloupe prepare folder --root my_images_and_csv --out data/mine[/]
    """
    console.quiet_libraries()
    from medloupe.data.datasets.base import DatasetConfig

    config = DatasetConfig.parse({"name": dataset}).with_overrides(set_ or ())
    write_and_check(config, out, root, check_=check_)


def write_and_check(config: DatasetConfig, out: Path, root: Path | None, *, check_: bool) -> None:
    """Write a data set, say what came of it, and read it again if asked."""
    from medloupe.recipes.prepare import prepare as prepare_data
    from medloupe.types import Split

    console.writable("--out", out)
    with console.Bars() as bars:
        made = prepare_data(config, out, root=root, progress=bars, tell=console.tell)
    counts = ", ".join(f"{number:,} {what}" for what, number in sorted(made.card.counts.items()))
    splits = ", ".join(f"{len(made.split(name)):,} {name}" for name in get_args(Split))
    console.out.print(f"{escape(str(out))}: {counts}")
    console.out.print(f"conversations by split: {splits}")
    untrained = "" if made.split("train") else "no row trains: split train is empty"
    for note in (*made.card.notes, untrained, made.card.partial, made.card.leak):
        if note:
            console.out.print(f"[yellow]note:[/] {escape(note)}")
    if check_:
        check_folder(out)


def check(folder: Annotated[Path, typer.Argument(help="A data set in the native form.")]) -> None:
    """Read every row and every image and report each fault; exit code 2 if there is one.

    [dim]medloupe check data/starter[/]
    """
    console.quiet_libraries()
    check_folder(folder)


def check_folder(folder: Path) -> None:
    from medloupe.data.check import check_dataset

    with console.Bars() as bars:
        report = check_dataset(folder, progress=bars)
    for fault in report.faults:
        console.err.print("[red]fault[/]", end=" ")
        console.err.print(str(fault), markup=False)
    for note in report.notes:
        console.out.print(f"[yellow]note:[/] {escape(note)}")
    summary = f"{report.rows:,} rows and {report.images:,} images read"
    if report.faults:
        console.complain(f"{escape(str(folder))}: {summary}, {len(report.faults):,} faults")
        raise typer.Exit(console.USER_ERROR)
    console.out.print(f"{escape(str(folder))}: {summary}, no faults")
