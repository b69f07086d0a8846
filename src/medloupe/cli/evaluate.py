"""evaluate: a benchmark asked of our models, of others, or of a file of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from medloupe.cli import console
from medloupe.errors import ConfigError

if TYPE_CHECKING:
    from medloupe.evaluate.resume import Shard
    from medloupe.recipes.config import EvaluateConfig
    from medloupe.types import EvalLog

EndpointModel = Annotated[
    str | None,
    typer.Option("--endpoint-model", help="The endpoint's name of its model.", show_default=False),
]
ModelSet = Annotated[
    list[str] | None,
    typer.Option(
        "--model-set",
        metavar="FIELD=VALUE",
        help="Change how a foreign model is asked (volumes=slices, concurrency=4); may be repeated.",
    ),
]
Permission = Annotated[
    str,
    typer.Option(
        "--permission",
        help="Why images may be sent to an endpoint elsewhere; names the data set if its agreement "
        "forbids it otherwise.",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Answer part I (from 1) of N; the process that ends last joins all parts.",
        show_default=False,
    ),
]


_IDLE: Final = {
    "a saved model": ("--endpoint-model", "--model-set", "--permission"),
    "a model of transformers": ("--endpoint-model", "--permission"),
    "an endpoint": ("--trust-code",),
    "a file of answers": ("--endpoint-model", "--model-set", "--permission", "--trust-code"),
}
"""What changes nothing, by whoever answers."""


def refuse_idle(who: str, given: Mapping[str, object]) -> None:
    """Refuse options (by name, with their values) that change nothing with `who`, see `who_answers`.

    Raises:
        ConfigError: the first of them that is given.
    """
    for name in _IDLE[who]:
        if given.get(name):
            raise ConfigError(f"{name} changes nothing with {who}", remedy="Leave it out")


def who_answers(model: str) -> str:
    """What kind of model this is, in words."""
    from medloupe.evaluate.predictors import HF, is_foreign

    if model.startswith(HF):
        return "a model of transformers"
    return "an endpoint" if is_foreign(model) else "a saved model"


def evaluate(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The folder of a run or of a saved model; hf:FOLDER (or a hub id) for a model of "
            "transformers.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="A prepared data set; default: RUN/data.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; default: the run's folder.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change one field; may be repeated."),
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="A named benchmark instead of the run's.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Instead: the url of an OpenAI-compatible endpoint."),
    ] = None,
    endpoint_model: EndpointModel = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Instead: JSON lines of id and answer."),
    ] = None,
    model_set: ModelSet = None,
    permission: Permission = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what a killed evaluation answered.")
    ] = False,
    shard: ShardOption = None,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Allow a saved model to name code outside MedLoupe."),
    ] = False,
) -> None:
    """Score a model beside its image-blind comparison: eval.jsonl and report.html.

    Fields that --set changes are those below `evaluate` of the run. Models that are not ours are asked the
    same: volumes are shown them as a montage of slices, and what they cannot answer counts as unscored.

    [dim]medloupe evaluate --model runs/first[/]
    [dim]medloupe evaluate --model runs/first --data data/other --out runs/first/other \
--set benchmark.tasks=\\[presence,side][/]
    [dim]medloupe evaluate --model runs/first --shard 1/2 &
    medloupe evaluate --model runs/first --shard 2/2[/]
    [dim]medloupe evaluate --model hf:llava-1.5-7b-hf --data data/slake --benchmark slake_en \
--out runs/llava[/]
    [dim]medloupe evaluate --endpoint http://127.0.0.1:8000/v1 --endpoint-model qwen2.5-vl \
--data data/slake --out runs/qwen[/]
    """
    console.quiet_libraries()
    given = [name for name in (model, endpoint, predictions) if name is not None]
    if len(given) != 1:
        raise ConfigError("name one of --model, --endpoint and --predictions")
    named = model or endpoint
    who = "a file of answers" if named is None else who_answers(named)
    if endpoint is not None and who != "an endpoint":
        raise ConfigError(
            f"--endpoint takes a url, and {endpoint!r} is none",
            remedy="Write http://HOST:PORT/v1, or pass a folder or hf:FOLDER to --model",
        )
    idle = {
        "--endpoint-model": endpoint_model,
        "--model-set": model_set,
        "--permission": permission,
        "--trust-code": trust_code,
    }
    refuse_idle(who, idle)
    from medloupe.evaluate.resume import Shard

    part = None if shard is None else Shard.parse(shard)
    if model is not None and who == "a saved model":
        evaluate_own(
            Path(model),
            data,
            out,
            set_ or (),
            benchmark=benchmark,
            trust_code=trust_code,
            resume=resume,
            shard=part,
        )
        return
    if data is None or out is None:
        raise ConfigError(
            "a model that is not a run's has no folder of its own; pass --data and --out"
        )
    _evaluate_foreign(
        named or "",
        data,
        out,
        set_ or (),
        benchmark=benchmark,
        predictions=predictions,
        endpoint_model=endpoint_model,
        model_set=model_set or (),
        permission=permission,
        trust_code=trust_code,
        resume=resume,
        shard=part,
    )


def evaluate_own(
    model: Path,
    data: Path | None,
    out: Path | None,
    changes: Sequence[str],
    *,
    benchmark: str | None = None,
    trust_code: bool,
    resume: bool = False,
    shard: Shard | None = None,
) -> None:
    """A saved model of ours, as its run evaluates."""
    from medloupe.recipes import run

    folder = run.model_folder(model)
    target = out or folder.parent
    console.writable("--out", target)
    rows = data or folder.parent / "data"
    own = run.load_run_of(folder, trust_code=trust_code).evaluate
    config = _asked(own, benchmark, changes, rows)
    with console.Bars() as bars:
        log = run.evaluate_part(
            folder,
            rows,
            target,
            config=config,
            trust_code=trust_code,
            progress=bars,
            resume=resume,
            shard=shard,
        )
    _show(log, target, shard)


def _evaluate_foreign(
    model: str,
    data: Path,
    out: Path,
    changes: Sequence[str],
    *,
    benchmark: str | None,
    predictions: Path | None,
    endpoint_model: str | None,
    model_set: Sequence[str],
    permission: str,
    trust_code: bool,
    resume: bool,
    shard: Shard | None,
) -> None:
    from medloupe.data.dataset import load_dataset
    from medloupe.evaluate.benchmark import Benchmark
    from medloupe.recipes import answering
    from medloupe.recipes.config import EvaluateConfig

    console.writable("--out", out)
    dataset = load_dataset(data)
    first = EvaluateConfig(benchmark=Benchmark(name=dataset.card.name))
    if predictions is not None:
        first = first.model_copy(update={"probes": ()})  # a file cannot be asked
    config = _asked(first, benchmark, changes, data)
    if predictions is not None:
        answerer = answering.open_recorded(predictions, data)
    else:
        foreign = answering.foreign_config(
            model,
            endpoint_model=endpoint_model,
            changes=model_set,
            max_new_tokens=config.benchmark.max_new_tokens,
            trust_code=trust_code,
        )
        answering.refuse_leaving(foreign, dataset.card, permission)
        answerer = answering.open_foreign(foreign, data)
    with console.Bars() as bars:
        log = answering.evaluate_answerer(
            answerer,
            dataset,
            out,
            config=config,
            seed=0,
            progress=bars,
            resume=resume,
            shard=shard,
        )
    _show(log, out, shard)


def _asked(
    config: EvaluateConfig, name: str | None, changes: Sequence[str], data: Path
) -> EvaluateConfig:
    """The evaluation with a named benchmark in the place of its own, and fields changed.

    Raises:
        ConfigError: `data` is another data set than the benchmark's.
    """
    if name is not None:
        from medloupe.data.dataset import read_card
        from medloupe.evaluate.benchmarks import named_benchmark

        named = named_benchmark(name)
        card, _ = read_card(data)  # what is wrong with it is said where its rows are read
        if card is not None:
            named.refuse_others(card, data)
        config = config.model_copy(update={"benchmark": named.benchmark})
    return config.with_overrides(changes)


def _show(log: EvalLog | None, target: Path, shard: Shard | None) -> None:
    if log is None:
        assert shard is not None
        console.out.print(
            f"part {shard.number} of {shard.of} is answered; the process that ends last scores all"
        )
        return
    from medloupe.cli.tables import scores
    from medloupe.evaluate.benchmarks.lock import deviation_of

    console.out.print(scores(log))
    for arm, number in sorted(log.manifest.get("not_answered", {}).items()):
        console.out.print(f"[yellow]note:[/] {number:,} rows without an answer ({escape(arm)})")
    for what, number in sorted(log.manifest.get("faults", {}).items()):
        console.out.print(f"[yellow]note:[/] {escape(what)}: {number:,}")
    if other := deviation_of(log):
        console.out.print(f"[yellow]note:[/] {escape(other)}")
    console.out.print(f"log: {escape(str(target / 'eval.jsonl'))}")
    console.out.print(f"report: {escape(str(target / 'report.html'))}")
