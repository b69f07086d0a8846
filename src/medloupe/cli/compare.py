"""`medloupe compare`, `rescore` and `card`: what can be said of stored evaluations, without the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medloupe.cli import console
from medloupe.errors import ConfigError

if TYPE_CHECKING:
    from medloupe.evaluate.paired import Comparison
    from medloupe.evaluate.report.pictures import ReadImage
    from medloupe.types import EvalLog

EVALUATION_FILE = "eval.jsonl"

Recover = Annotated[
    bool,
    typer.Option("--recover", help="Read what is there of a damaged log, and say what is not."),
]
Trust = Annotated[
    bool, typer.Option("--trust-code", help="Allow a log to name scorers outside MedLoupe.")
]


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of runs, or their eval.jsonl; the first is what the "
            "others are compared with."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write one HTML page.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The data set, for its images; default: RUN/data."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="Disagreements on the page, of each comparison.")
    ] = 40,
    allow_different_versions: Annotated[
        bool,
        typer.Option("--allow-different-versions", help="Compare the rows that are alike."),
    ] = False,
    recover: Recover = False,
    trust_code: Trust = False,
) -> None:
    """Compare runs over the questions that they share: paired differences, intervals, corrected p.

    [dim]medloupe compare runs/first runs/second --out compared.html[/]
    [dim]medloupe compare runs/mlp runs/perceiver runs/hia --data data/starter[/]
    """
    console.quiet_libraries()
    from medloupe.config import trusting_code
    from medloupe.evaluate.paired import compare_logs

    if len(runs) < 2:
        raise ConfigError("one run cannot be compared", remedy="Name two runs or more")
    if out is not None:
        console.writable("--out", out, file=True)
    files = [_log_file(run) for run in runs]
    with trusting_code(trust_code):
        opened = [_open(file, recover=recover) for file in files]
        logs = dict(zip(_names(files), opened, strict=True))
        (first, base), *others = logs.items()
        comparisons = [
            compare_logs(
                base,
                log,
                names=(first, name),
                allow_different_versions=allow_different_versions,
            )
            for name, log in others
        ]
    for comparison in comparisons:
        _print(comparison)
    if out is not None:
        from medloupe.evaluate.report.compare import write_comparison

        root = data or files[0].parent / "data"
        write_comparison(out, logs, comparisons, _reader(root), samples=samples)
        console.out.print(f"page: {escape(str(out))}")


def rescore(
    log: Annotated[Path, typer.Argument(help="A run's folder, or its eval.jsonl.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; default: nowhere.")
    ] = None,
    recover: Recover = False,
    trust_code: Trust = False,
) -> None:
    """Score the stored answers again, without the model and its images, and say what changed.

    The same answers give the same numbers on every machine. A log that was cut short or damaged is
    read with --recover: what is missing is counted and stays in the new log.

    [dim]medloupe rescore runs/first[/]
    [dim]medloupe rescore damaged.jsonl --recover --out mended.jsonl[/]
    """
    console.quiet_libraries()
    from medloupe.cli.tables import scores
    from medloupe.config import trusting_code
    from medloupe.evaluate.log import noted, write_log
    from medloupe.evaluate.runner import rescore as score_again

    file = _log_file(log)
    if out is not None:
        console.writable("--out", out, file=True)
    with trusting_code(trust_code):
        stored = _open(file, recover=recover, rescored=False)
        again = score_again(stored)
        console.out.print(scores(again))
    for kind, count in noted(again).items():
        console.out.print(f"[yellow]note:[/] {count:,} {escape(kind)}")
    if stored.metrics:
        same = sum(a == b for a, b in zip(stored.metrics, again.metrics, strict=False))
        most = max(len(stored.metrics), len(again.metrics))
        console.out.print(f"{same:,} of {most:,} metrics are equal to the stored ones")
    if out is not None:
        write_log(out, again)
        console.out.print(f"log: {escape(str(out))}")


def card(
    run: Annotated[Path, typer.Argument(help="A run's folder, or its eval.jsonl.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder to write; default: the run's folder."),
    ] = None,
    recover: Recover = False,
    trust_code: Trust = False,
) -> None:
    """Write MODEL_CARD.md and MODEL_CARD.html from a run's evaluation and manifests.

    Nothing is made up: what the files do not say is "not recorded".

    [dim]medloupe card runs/first[/]
    """
    console.quiet_libraries()
    from medloupe.config import trusting_code
    from medloupe.evaluate.card import write_card

    file = _log_file(run)
    folder = out or file.parent
    console.writable("--out", folder)
    with trusting_code(trust_code):
        for path in write_card(folder, _open(file, recover=recover), beside=file.parent):
            console.out.print(f"card: {escape(str(path))}")


def _log_file(run: Path) -> Path:
    return run / EVALUATION_FILE if run.is_dir() else run


def _names(files: list[Path]) -> list[str]:
    """Short names of logs that differ: the folder's, or as many folders as it takes."""
    parts = [
        file.absolute().parent.parts[1:] + (() if file.name == EVALUATION_FILE else (file.stem,))
        for file in files
    ]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("the same log is named twice", remedy="Name each run once")


def _open(file: Path, *, recover: bool, rescored: bool = True) -> EvalLog:
    """A log, or what is there of it; its faults are told."""
    from medloupe.evaluate.log import read_log, recover_log
    from medloupe.evaluate.runner import rescore as score_again

    if not recover:
        return read_log(file)
    found = recover_log(file)
    for rule, count in sorted(found.counted.items()):
        console.err.print(f"[yellow]note:[/] {escape(str(file))}: {count:,} {escape(rule)}")
    return score_again(found.log) if found.faults and rescored else found.log


def _reader(root: Path) -> ReadImage:
    """Images of a data set as a viewer shows them first: the file's window, a volume's middle slice."""
    from medloupe.imaging.read import read_ref
    from medloupe.imaging.windows import to_display

    return lambda ref: to_display(read_ref(ref, root))


def _print(comparison: Comparison) -> None:
    """Scorer after scorer, narrow enough for 80 columns; the page has p, q and notes beside it."""
    from medloupe.cli.tables import estimate_text
    from medloupe.evaluate.report.compare import name_of
    from medloupe.evaluate.report.numbers import p_text

    first, second = comparison.names
    table = Table(
        title=f"{len(comparison.pairs):,} questions in common\n"
        f"first: {escape(first)}\nsecond: {escape(second)}",
        title_justify="left",
        caption="p is Holm's, for all tests; below 'visible' differences would mostly be missed",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("questions", overflow="fold")
    for heading in ("n", "first", "second", "second - first", "p", "visible"):
        table.add_column(heading, justify="right", no_wrap=True)
    for scorer in dict.fromkeys(line.scorer for line in comparison.lines):
        table.add_section()
        table.add_row(f"[bold]{escape(scorer)}[/]")
        for line in (line for line in comparison.lines if line.scorer == scorer):
            table.add_row(
                escape(f"  {name_of(line)}"),
                f"{line.n:,}",
                _number(line.first),
                _number(line.second),
                estimate_text(line.difference, sign="+"),
                p_text(line.holm),
                _number(line.visible),
            )
    console.out.print(table)
    for reason, ids in comparison.left_out.items():
        console.out.print(f"[yellow]left out:[/] {len(ids):,} {escape(reason)}")
    for line in comparison.lines:
        if line.unscored:
            what = f"{line.unscored:,} of {name_of(line)}, {line.scorer}"
            console.out.print(f"[yellow]unscored:[/] {escape(what)}")
    for difference in comparison.versions:
        console.out.print(f"[yellow]versions differ:[/] {escape(difference)}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
