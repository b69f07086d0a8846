"""synthesize: captions, reports and labels into instruction conversations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medloupe.cli import console
from medloupe.cli.data import Engine
from medloupe.errors import ConfigError

if TYPE_CHECKING:
    from medloupe.synthesis.config import SynthesisConfig
    from medloupe.synthesis.pipeline import Account, Estimate


def synthesize(
    config: Annotated[Path, typer.Argument(help="A YAML file of a synthesis.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.", show_default=False)],
    yes: Annotated[
        bool, typer.Option("--yes", help="Agree to the estimate without being asked.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change one field; may be repeated."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option("--engine", help="Teachers in this process, or on a Ray cluster.")
    ] = Engine.local,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Actors on the cluster.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster; default: RAY_ADDRESS, or one here."),
    ] = None,
) -> None:
    """Let language models write conversations about images from their captions, reports or labels.

    Shows what it will ask for, and at most cost, before anything is sent. A run that was stopped or killed
    goes on with the same command: no answer is paid for twice. Every row ends accepted, or rejected with
    all reasons (rejected.jsonl).

    [dim]medloupe synthesize captions.yaml --out data/conversations[/]
    [dim]medloupe synthesize captions.yaml --out data/conversations --set limits.cost=20 --yes[/]
    """
    console.quiet_libraries()
    from medloupe.synthesis.config import SynthesisConfig
    from medloupe.synthesis.pipeline import PAGE_FILE, read_outcomes
    from medloupe.synthesis.pipeline import synthesize as run
    from medloupe.synthesis.stats import domain_counts, domain_table

    if engine is not Engine.ray and (workers is not None or address is not None):
        raise ConfigError(
            "--workers and --address are of a Ray cluster", remedy="Pass --engine ray with them"
        )
    read = SynthesisConfig.from_yaml(config).with_overrides(set_ or ())
    console.writable("--out", out)

    def agree(estimate: Estimate) -> bool:
        _show_estimate(estimate)
        return _agreed(read, estimate, yes=yes)

    with console.Bars() as bars:
        account = run(
            read,
            out,
            agree=agree,
            progress=bars,
            engine=engine.value,
            workers=workers,
            address=address,
        )
    _show_account(account)
    written = (outcome.conversation for _, outcome in read_outcomes(out))
    console.out.print(domain_table(domain_counts(filter(None, written), by="teacher")))
    console.out.print(f"{escape(str(out))}: {account.accepted:,} conversations")
    console.out.print(f"page: {escape(str(out / PAGE_FILE))}")
    if account.unanswered:
        console.complain(
            f"stopped: {account.stopped}; {account.unanswered:,} rows are not answered yet. "
            "The same command goes on (with a higher limit where one was met)"
        )
        raise typer.Exit(console.USER_ERROR)


def _agreed(config: SynthesisConfig, estimate: Estimate, *, yes: bool) -> bool:
    """Nobody needs to be asked where nothing costs, where a budget is set, or with --yes.

    Raises:
        ConfigError: somebody needs to be asked and nobody is there.
    """
    free = all(t.cost == 0 for t in estimate.teachers if t.requests)
    if yes or free or config.limits.bounded:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(
            "this may cost money and nobody is here to agree to it",
            remedy="Pass --yes, or set limits.cost (or tokens, or requests) in the config",
        )
    return typer.confirm("Go on?", default=False)


def _show_estimate(estimate: Estimate) -> None:
    left = f"{estimate.rows:,} rows, {estimate.requests:,} to ask"
    parts = [f"{estimate.done:,} done before" if estimate.done else ""]
    parts.append(f"{estimate.withheld:,} withheld" if estimate.withheld else "")
    parts.append(f"{estimate.flagged:,} with names or dates" if estimate.flagged else "")
    console.out.print(", ".join([left, *filter(None, parts)]))
    if estimate.lost:
        console.out.print(
            f"[yellow]note:[/] {estimate.lost:,} requests were under way when the run was killed; their "
            "rows are asked once more, and may be paid for twice"
        )
    table = _table("teacher", "where", "requests", "prompt tokens", "answer tokens", "cost")
    for t in estimate.teachers:
        table.add_row(
            escape(t.teacher),
            "here" if t.local else "elsewhere",
            f"{t.requests:,}",
            f"~{t.prompt_tokens:,}",
            f"<= {t.completion_tokens:,}",
            _money(t.cost, "<= "),
        )
    console.out.print(table)


def _show_account(account: Account) -> None:
    table = _table(
        "teacher", "accepted", "rows", "requests", "prompt tokens", "answer tokens", "cost"
    )
    for t in account.teachers:
        table.add_row(
            escape(t.teacher),
            f"{t.accepted:,}",
            f"{t.rows:,}",
            f"{t.requests:,}",
            f"{t.prompt_tokens:,}",
            f"{t.completion_tokens:,}",
            _money(t.cost, ""),
        )
    console.out.print(table)
    console.out.print(f"rows: {account.accepted:,} accepted, {account.rejected:,} rejected")
    for name, number in sorted(account.filters.items(), key=lambda item: -item[1]):
        console.out.print(f"  {name:14} {number:,}", markup=False)
    if account.without_llava:
        console.out.print(
            f"[yellow]note:[/] {account.without_llava:,} rows show a frame of a file and are not in "
            "llava.json"
        )


def _money(cost: float | None, sign: str) -> str:
    return "no price given" if cost is None else f"{sign}{cost:,.4f}" if cost else "0"


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table
