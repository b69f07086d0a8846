"""predict: answers to many questions, without truths to compare them with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from medloupe.cli import console
from medloupe.cli.data import Engine
from medloupe.cli.evaluate import (
    EndpointModel,
    Permission,
    ShardOption,
    refuse_idle,
    who_answers,
)
from medloupe.errors import ConfigError


def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="The folder of a run or of a saved model; hf:FOLDER for a model of transformers; the url "
            "of an OpenAI-compatible endpoint.",
            show_default=False,
        ),
    ],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A folder of images, a DICOM tree, one image, or JSON lines of questions.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The JSON lines to write.", show_default=False)],
    question: Annotated[
        list[str] | None,
        typer.Option("--question", help="Asked about every image; may be repeated."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="A choice whose probability is wanted; may be repeated."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")
    ] = 128,
    slices: Annotated[
        bool, typer.Option("--slices", help="Ask about every slice, not about volumes.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change how the model is asked (batch_size=8); may be repeated.",
        ),
    ] = None,
    endpoint_model: EndpointModel = None,
    permission: Permission = "",
    shard: ShardOption = None,
    engine: Annotated[
        Engine, typer.Option("--engine", help="In this process, or on a Ray cluster.")
    ] = Engine.local,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Models on the cluster.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster; default: RAY_ADDRESS, or one here."),
    ] = None,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Allow a saved model to name code outside MedLoupe."),
    ] = False,
) -> None:
    """Answer questions about images: text, boxes in pixels and mm, probabilities, one JSON line a row.

    A line of questions is a conversation in the native form, or {"id", "image", "question"} with "images",
    "volume", "frame", "modality" and "options" where wanted. The same command goes on where a run was
    killed. What cannot be answered is a line with an error.

    [dim]medloupe predict runs/first scans/ answers.jsonl --question "Is there a lesion?" \
--option yes --option no[/]
    [dim]medloupe predict runs/first questions.jsonl answers.jsonl --shard 1/4[/]
    [dim]medloupe predict runs/first dicom/ answers.jsonl --question "Describe the image." \
--engine ray --workers 4[/]
    """
    console.quiet_libraries()
    from medloupe.cluster import cluster_address, stays_here

    if engine is not Engine.ray and (workers is not None or address is not None):
        raise ConfigError(
            "--workers and --address are of a Ray cluster", remedy="Pass --engine ray with them"
        )
    leaves = engine is Engine.ray and not stays_here(address)
    who = who_answers(model)
    idle = {"--endpoint-model": endpoint_model, "--trust-code": trust_code}
    refuse_idle(who, idle if leaves else idle | {"--permission": permission})
    from medloupe.evaluate.resume import Shard
    from medloupe.recipes import predict as predicting
    from medloupe.recipes.answering import refuse_leaving, refuse_sending
    from medloupe.recipes.asked import has_questions, read_input

    if slices and has_questions(source):
        raise ConfigError(
            "--slices changes nothing with lines that name their images", remedy="Leave it out"
        )
    part = None if shard is None else Shard.parse(shard)
    console.writable("OUT", out, file=True)
    spec = predicting.ModelSpec(
        model=str(Path(model).resolve()) if who == "a saved model" else model,
        endpoint_model=endpoint_model,
        changes=tuple(set_ or ()),
        max_new_tokens=max_new_tokens,
        trust_code=trust_code,
    )
    if leaves:
        refuse_sending(f"the Ray cluster at {cluster_address(address)}", None, permission)
    if (foreign := spec.foreign()) is not None:
        refuse_leaving(foreign, None, permission)
    given = read_input(
        source,
        question or (),
        options=option or (),
        volumes=not slices and spec.reads_volumes(),
    )
    with console.Bars() as bars:
        account = predicting.predict(
            spec,
            given,
            out,
            shard=part,
            engine=engine.value,
            workers=workers,
            address=address,
            progress=bars,
        )
    if account.skipped:
        console.out.print(f"[yellow]note:[/] {account.skipped:,} files are no images")
    failed = f", {account.failed:,} of them with an error" if account.failed else ""
    console.out.print(f"rows: {account.rows:,}{failed}")
    if account.whole:
        console.out.print(f"answers: {escape(str(out))}")
    else:
        console.out.print("other parts are not answered yet; the process that ends last joins them")
