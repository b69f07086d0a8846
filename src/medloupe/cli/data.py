"""The verbs that look at prepared data and change its form: audit, stats, convert."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from medloupe.cli import console
from medloupe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from medloupe.data.audit import AuditReport
    from medloupe.data.stats import DataStats

_SHOWN = 20

Data = Annotated[Path, typer.Argument(help="A data set in the native form.", show_default=False)]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes; default: one a core.", show_default=False),
]


class Engine(StrEnum):
    """Where a conversion runs."""

    local = "local"
    ray = "ray"


class Images(StrEnum):
    """How closely an audit looks at images."""

    hash = "hash"
    pixels = "pixels"
    near = "near"


def audit(
    data: Data,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="A benchmark or another data set; may be repeated."),
    ] = None,
    images: Annotated[
        Images,
        typer.Option("--images", help="Compare file hashes, decoded pixels too, or looks too."),
    ] = Images.near,
    similarity: Annotated[
        float, typer.Option("--similarity", help="What makes two images near duplicates, 0 to 1.")
    ] = 0.94,
    shared_ids: Annotated[
        bool, typer.Option("--shared-ids", help="Patient ids of all data sets are of one system.")
    ] = False,
    within: Annotated[
        bool, typer.Option("--within", help="Also show copies inside one split (no leak).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write every finding to this JSONL file.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Find what stands on two sides of a split, or in a benchmark and in training data.

    Patients, identical files, identical pixels in another container, near duplicates (re-encoded,
    resized, brightened, slightly cropped, mirrored), long texts, what DICOM headers say. Exit code 2
    if there is a leak, or an image that cannot be read and hence not be compared.

    [dim]medloupe audit data/mine --against data/vqa_rad --out leaks.jsonl[/]
    """
    console.quiet_libraries()
    from medloupe.data.audit import AuditConfig, read_set
    from medloupe.data.audit import audit as look

    config = AuditConfig.parse(
        {
            "images": images.value,
            "similarity": similarity,
            "shared_ids": shared_ids,
            "within": within,
        }
    )
    if out is not None:
        console.writable("--out", out, file=True)
    sets = [read_set(data), *(read_set(other, benchmark=True) for other in against or ())]
    with console.Bars() as bars:
        report = look(sets, config, workers=workers, progress=bars)
    if out is not None:
        _write_findings(out, report)
    _show_findings(report)
    names = " and ".join(escape(str(path)) for path in (data, *(against or ())))
    if report.leaks:
        console.complain(f"{names}: {report.statement()} on two sides")
        raise typer.Exit(console.USER_ERROR)
    if report.unread:
        total = report.compared["images"]
        console.complain(
            f"{names}: no leak found among {total - report.unread:,} of {total:,} images; "
            f"{report.unread:,} could not be read"
        )
        raise typer.Exit(console.USER_ERROR)
    console.out.print(f"{names}: no leak found")


def _write_findings(path: Path, report: AuditReport) -> None:
    from medloupe.data.store import write_lines

    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, (finding.to_json() for finding in report.findings))


def _show_findings(report: AuditReport) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    looked = ", ".join(f"{number:,} {what}" for what, number in report.compared.items())
    console.out.print(f"compared: {looked}")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("kind", no_wrap=True)
    table.add_column("leaks", justify="right")
    table.add_column("for example", overflow="fold")
    for kind, number in report.count().items():
        example = next((str(f) for f in report.leaks if f.kind == kind), "")
        table.add_row(kind, f"{number:,}", escape(example))
    console.out.print(table)
    inside = [finding for finding in report.findings if not finding.leak]
    for finding in inside[:_SHOWN]:
        word = "contradiction" if finding.kind == "header" else "copy"
        console.out.print(f"{word}: {escape(str(finding))}")
    if len(inside) > _SHOWN:
        console.out.print(f"and {len(inside) - _SHOWN:,} more that are no leak")
    for note in report.notes[:_SHOWN]:
        console.out.print(f"[yellow]note:[/] {escape(note)}")


def stats(
    data: Data,
    html: Annotated[
        Path | None, typer.Option("--html", help="The page; default: DATA/stats.html.")
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers as JSON.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Decode the images, or leave them out.")
    ] = True,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="A folder with a tokenizer (a saved model): tokens too."),
    ] = None,
    workers: Workers = None,
) -> None:
    """Counts, lengths, images, labels and what a constant answer scores, as one HTML page.

    [dim]medloupe stats data/vqa_rad --html vqa_rad.html[/]
    """
    console.quiet_libraries()
    from medloupe.data.dataset import load_dataset
    from medloupe.data.stats import describe, write_stats_page
    from medloupe.data.store import write_lines

    for option, path in (("--html", html), ("--json", json_)):
        if path is not None:
            console.writable(option, path, file=True)
    dataset = load_dataset(data)
    page = html or data / "stats.html"
    console.writable("DATA", page, file=True)
    count = _token_counter(tokenizer) if tokenizer is not None else None
    with console.Bars() as bars:
        found = describe(dataset, images=images, tokens=count, workers=workers, progress=bars)
    write_stats_page(page, found)
    if json_ is not None:
        json_.parent.mkdir(parents=True, exist_ok=True)
        write_lines(json_, [found.to_json()])
    _show_stats(found)
    if any("teacher" in row.attributes for row in dataset.conversations):
        from medloupe.synthesis.stats import domain_counts, domain_table

        console.out.print(domain_table(domain_counts(dataset.conversations, by="teacher")))
    console.out.print(f"page: {escape(str(page))}")


def _show_stats(found: DataStats) -> None:
    for name, numbers in found.counts.items():
        parts = ", ".join(f"{split} {number:,}" for split, number in numbers.items())
        console.out.print(f"{name:14} {parts}")
    for overlap in found.overlaps:
        if overlap.patients or overlap.images:
            console.out.print(
                f"[yellow]note:[/] {overlap.one} and {overlap.other} share {overlap.patients:,} "
                f"patients and {overlap.images:,} images"
            )


def _token_counter(folder: Path) -> Callable[[str], int]:
    """Counts the tokens of a text, without special ones.

    Raises:
        ConfigError: no tokenizer there.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no tokenizer can be loaded: {str(error).splitlines()[0]}",
            file=str(folder),
            remedy="Name the folder of a saved model, such as RUN/model",
        ) from None
    return lambda text: len(found.encode(text, add_special_tokens=False))


def convert(
    data: Annotated[
        str, typer.Argument(help="A data set in the native form (with --unpack: its shards).")
    ],
    out: Annotated[str, typer.Argument(help="The folder to write, or an fsspec url (s3://...).")],
    shards: Annotated[
        bool, typer.Option("--shards/--unpack", help="Make shards, or the native form from them.")
    ] = True,
    shard_mb: Annotated[
        int, typer.Option("--shard-mb", min=1, help="About how large a shard gets, in MiB.")
    ] = 256,
    workers: Workers = None,
    engine: Annotated[
        Engine, typer.Option("--engine", help="This machine's cores, or a Ray cluster.")
    ] = Engine.local,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster; default: RAY_ADDRESS, or one here."),
    ] = None,
) -> None:
    """Make shards: for data larger than memory or disk, read a row at a time from anywhere.

    A conversion that was interrupted goes on with the same command; no shard is made twice.

    [dim]medloupe convert data/vqa_rad shards/vqa_rad --workers 8[/]
    [dim]medloupe convert data/ct_rate s3://bucket/ct_rate --engine ray --address auto[/]
    """
    console.quiet_libraries()
    from medloupe.data import convert as verbs

    if "://" not in out:
        console.writable("OUT", Path(out))
    with console.Bars() as bars:
        if not shards:
            back = verbs.unpack(data, Path(out), progress=bars)
            rows = f"{len(back.conversations):,} conversations and {len(back.records):,} records"
            console.out.print(f"{escape(out)}: {rows}")
            return
        made = verbs.convert(
            Path(data),
            out,
            shard_bytes=shard_mb << 20,
            workers=workers,
            engine=engine.value,
            address=address,
            progress=bars,
        )
    total = made.shards.shards
    console.out.print(
        f"{escape(out)}: {len(total):,} shards with {sum(s.conversations for s in total):,} "
        f"conversations, {sum(s.records for s in total):,} records, "
        f"{sum(s.images for s in total):,} images, {sum(s.bytes for s in total) / 2**20:,.1f} MiB"
    )
    console.out.print(f"{made.made:,} made now, {made.kept:,} were there")
