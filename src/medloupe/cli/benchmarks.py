"""`medloupe benchmarks`: the named benchmarks; `medloupe sidebyside`: several models on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medloupe.cli import console
from medloupe.cli.evaluate import Permission
from medloupe.cli.prepare import Check, Root, write_and_check

benchmarks_app = typer.Typer(
    no_args_is_help=True, help="The named benchmarks; evaluations in other toolkits' forms."
)


@benchmarks_app.command("list")
def benchmarks_list() -> None:
    """The named benchmarks: what they ask, and where that comes from.

    [dim]medloupe benchmarks list[/]
    """
    console.quiet_libraries()
    from medloupe.evaluate.benchmarks import BENCHMARKS
    from medloupe.evaluate.benchmarks.lock import read_pins

    pins = read_pins()
    table = Table(box=SIMPLE_HEAD)
    for heading in ("name", "what it asks", "version", "source"):
        table.add_column(heading, no_wrap=heading == "name")
    for name, named in BENCHMARKS.items():
        version = pins[name].version or "-"
        table.add_row(name, escape(named.title), version, escape(named.source))
    console.out.print(table)


@benchmarks_app.command("show")
def benchmarks_show(
    name: Annotated[str, typer.Argument(help="A benchmark's name.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="A prepared copy: its rows and version.")
    ] = None,
) -> None:
    """A benchmark as YAML, how to get its data, and its version; of --data, whether it is the pinned one.

    [dim]medloupe benchmarks show vindr_cxr_findings[/]
    [dim]medloupe benchmarks show vqa_rad --data data/vqa_rad[/]
    """
    console.quiet_libraries()
    from medloupe.data.dataset import load_dataset
    from medloupe.evaluate.benchmarks import named_benchmark
    from medloupe.evaluate.benchmarks.lock import deviation, pin, read_pins

    named = named_benchmark(name)
    typer.echo(named.to_yaml(), nl=False)
    pinned = read_pins()[name]
    if pinned.version:
        console.out.print(
            f"pinned: version {pinned.version}, {pinned.count:,} rows ({escape(pinned.copy_of)})"
        )
    if data is None:
        return
    found = pin(named, load_dataset(data))
    console.out.print(f"here: version {found.version}, {found.count:,} rows")
    note = deviation(named, found.version, found.count)
    if note:
        console.out.print(f"[yellow]note:[/] {escape(note)}")


@benchmarks_app.command("prepare")
def benchmarks_prepare(
    name: Annotated[str, typer.Argument(help="A benchmark's name.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.", show_default=False)],
    root: Root = None,
    check: Check = True,
) -> None:
    """Turn a benchmark's data set into the native form, with the settings that the benchmark froze.

    [dim]medloupe benchmarks prepare vqa_rad_official --root VQA_RAD --out data/vqa_rad_official[/]
    """
    console.quiet_libraries()
    from medloupe.evaluate.benchmarks import named_benchmark

    write_and_check(named_benchmark(name).data, out, root, check_=check)


@benchmarks_app.command("export")
def benchmarks_export(
    log: Annotated[Path, typer.Argument(help="The eval.jsonl of an evaluation.")],
    to: Annotated[str, typer.Option("--to", help="lmms-eval or vlmevalkit.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.", show_default=False)],
    model: Annotated[
        str,
        typer.Option("--model", help="The model's name in the files; default: the log's folder."),
    ] = "",
) -> None:
    """Write an evaluation in another toolkit's file form: answers, truths and scores.

    [dim]medloupe benchmarks export runs/first/eval.jsonl --to lmms-eval --out exported[/]
    """
    console.quiet_libraries()
    from medloupe.evaluate.export import export_log
    from medloupe.evaluate.log import read_log

    console.writable("--out", out)
    name = model or log.resolve().parent.name
    for path in export_log(read_log(log), to, out, model=name):
        console.out.print(f"written: {path}", markup=False)


def sidebyside(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders of runs or saved models, hf:FOLDER, or MODEL@URL of an endpoint.",
            show_default=False,
        ),
    ],
    rows: Annotated[Path, typer.Option("--rows", help="A prepared data set.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("page.html"),
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option("--split", help="The rows' split.")
    ] = "test",
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Only this kind; may be repeated.")
    ] = None,
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="This row; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows in all.")] = 12,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Of each answer.")
    ] = 128,
    permission: Permission = "",
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Allow a saved model to name code outside MedLoupe."),
    ] = False,
) -> None:
    """Ask several models the same and set their answers side by side, boxes drawn, in one HTML file.

    Rows are chosen by a hash, spread over kinds of question and patients; --id names them instead.

    [dim]medloupe sidebyside runs/first runs/second --rows data/starter --out page.html[/]
    [dim]medloupe sidebyside runs/first hf:llava-1.5-7b-hf qwen2.5-vl@http://127.0.0.1:8000/v1 \
--rows data/vqa_rad --task pres[/]
    """
    console.quiet_libraries()
    from medloupe.data.dataset import load_dataset
    from medloupe.html.page import write_page
    from medloupe.recipes.answering import refuse_leaving
    from medloupe.reproduce import sidebyside as page

    console.writable("--out", out.parent)
    dataset = load_dataset(rows)
    chosen = page.choose_rows(dataset, split=split, tasks=task or (), limit=limit, ids=id_ or ())
    specs = page.model_specs(models, max_new_tokens=max_new_tokens, trust_code=trust_code)
    for spec in specs.values():
        if (config := spec.foreign()) is not None:
            refuse_leaving(config, dataset.card, permission)
    with console.Bars() as bars:
        text = page.ask_and_render(specs, dataset, chosen, progress=bars)
    write_page(out, text)
    console.out.print(f"page: {escape(str(out))}")
