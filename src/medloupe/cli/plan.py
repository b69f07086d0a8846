"""`medloupe plan`: what a recipe needs, before anything is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medloupe.cli import console
from medloupe.errors import ConfigError

if TYPE_CHECKING:
    from medloupe.recipes.plan import Plan, StagePlan

GIB = 1 << 30


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file of a run.")],
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many GPUs share a step.")] = 1,
    memory: Annotated[float, typer.Option("--memory", min=1, help="GiB of one GPU.")] = 80,
    text_tokens: Annotated[
        int, typer.Option("--text-tokens", min=1, help="Tokens of text in a row.")
    ] = 256,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--rows", metavar="STAGE=N", help="Training rows of a stage; may be repeated."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change one field; may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Tokens, parameters, FLOPs, memory a GPU and steps of a recipe at its real size.

    The model is built without weights: nothing is downloaded, and it takes seconds.

    [dim]medloupe plan llama3_med --gpus 4 --memory 80[/]
    [dim]medloupe plan medm_vl_2d --gpus 2 --rows instruct=1000000[/]
    """
    console.quiet_libraries()
    counts = dict(_row_count(item) for item in rows or ())
    from medloupe.recipes import load_run
    from medloupe.recipes.plan import make_plan

    made = make_plan(
        load_run(recipe, set_ or ()),
        gpus=gpus,
        memory_gib=memory,
        text_tokens=text_tokens,
        rows=counts,
    )
    if json:
        typer.echo(made.to_json())
        return
    _tell(made)


def _row_count(text: str) -> tuple[str, int]:
    stage, _, number = text.partition("=")
    if not number.isdigit() or int(number) < 1:
        raise ConfigError(f"--rows {text!r} is not STAGE=N", remedy="Write --rows instruct=60000")
    return stage, int(number)


def _tell(made: Plan) -> None:
    image = f"{made.kind}: {made.encoder_tokens:,} encoder tokens, {made.image_tokens:,} in the row"
    console.out.print(f"[bold]{escape(made.recipe)}[/]  {image}")
    console.out.print(f"a row is one {made.kind} and {made.text_tokens:,} tokens of text")
    console.out.print(_parts(made))
    for stage in made.stages:
        console.out.print(_work(stage))
        console.out.print(_memory(made, stage))


def _parts(made: Plan) -> Table:
    table = _table("parameters", "part", "total", *(f"trained in {s.name}" for s in made.stages))
    for part, number in made.parameters.items():
        table.add_row(part, f"{number:,}", *(f"{s.trainable[part]:,}" for s in made.stages))
    trained = (f"{sum(s.trainable.values()):,}" for s in made.stages)
    table.add_row("[bold]all[/]", f"{sum(made.parameters.values()):,}", *trained)
    return table


def _work(stage: StagePlan) -> Table:
    table = _table(
        f"stage {stage.name}: work", "TFLOPs", "a row", f"a step of {stage.batch:,} rows"
    )
    forward = {f"forward, {part}": number for part, number in stage.forward_flops.items()}
    lines = {**forward, "backward": stage.backward_flops, "[bold]all[/]": stage.row_flops}
    lines["more if checkpointed"] = stage.recomputed_flops
    for what, number in lines.items():
        table.add_row(what, *(f"{n / 1e12:,.4g}" for n in (number, number * stage.batch)))
    table.caption = "\n".join(_steps(stage))
    return table


def _steps(stage: StagePlan) -> list[str]:
    if stage.steps_per_epoch is None:
        epoch = "steps an epoch: not known; give --rows"
    else:
        epoch = f"{stage.rows:,} rows, {stage.steps_per_epoch:,} steps an epoch"
    whole = "" if stage.steps is None else f"; {stage.steps:,} steps in all"
    return [escape(epoch + whole), escape(f"({stage.rows_source})")]


def _memory(made: Plan, stage: StagePlan) -> Table:
    table = _table(
        f"stage {stage.name}: GiB a GPU ({made.gpus} of {made.limit / GIB:g}), and rows that fit at once",
        *("engine", "weights", "grads", "Adam", "working", "sum", "rows", "rows ckpt"),
    )
    for one in stage.engines:
        parts = (one.weights, one.gradients, one.optimizer, one.working, one.states)
        fits = [
            f"{number:,}" if number else "[red]none[/]"
            for number in (one.rows, one.rows_checkpointed)
        ]
        table.add_row(one.engine, *(f"{part / GIB:,.1f}" for part in parts), *fits)
    table.caption = (
        f"a row keeps {stage.kept / GIB:.2f} GiB of activations for the backward, "
        f"{stage.checkpointed / GIB:.2f} with checkpointing (ckpt)"
    )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table
