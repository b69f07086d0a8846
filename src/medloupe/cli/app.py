"""The verbs. Each parses its options, calls one function of the rooms to the left, and prints."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from medloupe.cli import benchmarks, compare, console, plan, reproduce, weights
from medloupe.cli import data as data_verbs
from medloupe.cli.deidentify import deidentify
from medloupe.cli.evaluate import evaluate, evaluate_own
from medloupe.cli.predict import predict
from medloupe.cli.prepare import Root, Set, check, check_folder, prepare
from medloupe.cli.synthesize import synthesize
from medloupe.errors import ConfigError

if TYPE_CHECKING:
    from medloupe.data.dataset import Progress
    from medloupe.recipes.config import RunConfig
    from medloupe.train import Engine
    from medloupe.types import Conversation, Generation, ImageRef

app = typer.Typer(
    name="medloupe",
    help="Compose, train, evaluate and serve medical vision-language models. Research software, "
    "no medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(no_args_is_help=True, help="List the recipes, or show one as YAML.")
app.add_typer(recipes_app, name="recipe")
app.add_typer(benchmarks.benchmarks_app, name="benchmarks")

Model = Annotated[
    Path,
    typer.Option("--model", help="The folder of a run, or of a saved model.", show_default=False),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-code", help="Allow a saved model to name code outside MedLoupe."),
]
Frame = Annotated[
    list[int] | None,
    typer.Option("--frame", help="Frame, page or slice (from 0) of each --image; one is for all."),
]
Volume = Annotated[
    list[Path] | None,
    typer.Option("--volume", help="NIfTI, NRRD, NPY or a folder of DICOM slices; may be repeated."),
]
Modality = Annotated[
    str | None,
    typer.Option("--modality", help="Of files that do not say (NIfTI, NRRD, NPY); CT means HU."),
]


def main() -> None:
    """The entry point: exit code 0 ok, 2 a user's mistake, 75 a training that a signal ended with a
    checkpoint, 1 a bug."""
    with console.explained():
        app()


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from medloupe import __version__

        console.out.print(f"medloupe {__version__}")
        raise typer.Exit


for _verb in (
    prepare,
    check,
    data_verbs.audit,
    data_verbs.stats,
    data_verbs.convert,
    deidentify,
    synthesize,
):
    app.command()(_verb)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file of a run.")],
    out: Annotated[Path, typer.Option("--out", help="The run's folder.", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="A prepared data set; otherwise OUT/data is prepared."),
    ] = None,
    root: Root = None,
    set_: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
) -> None:
    """Train every stage of a recipe and save the model in OUT/model.

    The data are checked first: every row, every image. A killed run goes on with --resume. SIGTERM and
    Ctrl-C end the step under way, write a checkpoint and exit with code 75.

    [dim]medloupe train starter --out runs/first --set train.stages.instruct.steps=50[/]
    [dim]medloupe recipe show starter > my.yaml; medloupe train my.yaml --out runs/mine[/]
    [dim]medloupe train vqa_rad_starter --root downloads/vqa_rad --out runs/vqa_rad[/]
    [dim]PYTHONPATH=. medloupe train my.yaml --out runs/mine  # names my_lab.pool:MyPoolConfig[/]
    [dim]torchrun --nproc-per-node 2 -m medloupe.cli train starter --out runs/two --set train.engine=ddp[/]
    """
    console.quiet_libraries()
    from medloupe.recipes import load_run

    config = load_run(recipe, set_ or ())
    from medloupe.recipes.prepare import prepare as prepare_data
    from medloupe.recipes.sources import mixed_folders

    console.writable("--out", out)
    engine = config.train.open_engine()
    folder = data or out / "data"
    if engine.is_main:
        if data is None:
            with console.Bars() as bars:
                prepare_data(config.data, folder, root=root, progress=bars, tell=console.tell)
        for path in (folder, *map(Path, mixed_folders(config))):
            check_folder(path)
    engine.wait()
    _train(config, folder, out, resume=resume, engine=engine)
    if engine.is_main:
        console.out.print(f"model: {escape(str(out / 'model'))}")
    engine.close()


def _unwatched(what: str, done: int, total: int) -> None:
    """Progress of a process that is not the first."""


def _train(config: RunConfig, data: Path, out: Path, *, resume: bool, engine: Engine) -> None:
    """The stages; exit code 75 where a signal ended them."""
    from medloupe.recipes import run
    from medloupe.train.signals import EXIT_STOPPED, StoppedError

    stopped = ""
    watched: AbstractContextManager[Progress] = console.Bars()
    if not engine.is_main:
        watched = nullcontext(_unwatched)
    try:
        with watched as bars:
            run.train(
                config,
                data,
                out,
                resume=resume,
                progress=bars,
                tell=console.tell,
                workers=None,
                engine=engine,
            )
    except StoppedError as error:
        stopped = str(error)
    if stopped:  # not inside of `except`, where the error keeps what is to be closed alive
        if engine.is_main:
            console.err.print(stopped, markup=False)
        engine.close()
        raise typer.Exit(EXIT_STOPPED)


app.command()(evaluate)
app.command()(predict)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    model: Model,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", help="PNG, JPEG, TIFF, DICOM or NIfTI; may be repeated."),
    ] = None,
    frame: Frame = None,
    volume: Volume = None,
    modality: Modality = None,
    trust_code: Trust = False,
) -> None:
    """Answer one question about images and volumes, images first; flat boxes are in pixels of the last
    image, boxes with slices in voxels of the last volume.

    [dim]medloupe ask --model runs/first --image scan.dcm "Is there a bright lesion?"[/]
    [dim]medloupe ask --model runs/first --image cine.dcm --frame 3 "Which plane is this?"[/]
    [dim]medloupe ask --model runs/ct --volume chest.nii.gz --modality CT "Is there an effusion?"[/]
    """
    console.quiet_libraries()
    refs = _image_refs(image or [], frame or [], volume or [], modality)
    from medloupe.generate import ChatSession
    from medloupe.recipes import run

    predictor = run.load(run.model_folder(model), root=Path.cwd(), trust_code=trust_code)
    console.show_answer(ChatSession(predictor, name="ask").ask(question, refs))


@app.command()
def chat(
    model: Model,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Shown with the first question.")
    ] = None,
    frame: Frame = None,
    volume: Volume = None,
    modality: Modality = None,
    trust_code: Trust = False,
) -> None:
    """Talk to a model in the terminal, over several turns and images.

    Inside: /image PATH \\[FRAME] shows one more image with the next question, /volume PATH a volume,
    /new starts again, /quit (or Ctrl-D) ends.

    [dim]medloupe chat --model runs/first --image scan.dcm[/]
    """
    console.quiet_libraries()
    refs = _image_refs(image or [], frame or [], volume or [], modality)
    from medloupe.cli.chat import converse
    from medloupe.recipes import run

    predictor = run.load(run.model_folder(model), root=Path.cwd(), trust_code=trust_code)
    converse(predictor, refs, modality=modality)


def _image_refs(
    paths: list[Path], frames: list[int], volumes: list[Path], modality: str | None
) -> list[ImageRef]:
    """What a question shows, volumes last; `frames` is none, one for all images, or one for each."""
    from medloupe.types import ImageRef

    if len(frames) not in (0, 1, len(paths)):
        raise ConfigError(
            f"{len(frames)} frames for {len(paths)} images",
            remedy="Give --frame once, or once each",
        )
    one = frames[0] if len(frames) == 1 else None
    chosen = frames if len(frames) > 1 else [one] * len(paths)
    shown = [("image", path, frame) for path, frame in zip(paths, chosen, strict=True)]
    return [
        ImageRef.parse(
            {"uri": str(path.resolve()), "frame": frame, "kind": kind, "modality": modality}
        )
        for kind, path, frame in [*shown, *(("volume", path, None) for path in volumes)]
    ]


@recipes_app.command("list")
def recipe_list() -> None:
    """The recipes by name.

    [dim]medloupe recipe list[/]
    """
    console.quiet_libraries()
    from medloupe.recipes import RECIPES, recipe

    for name in RECIPES:
        console.out.print(f"[bold]{name:26}[/] {escape(recipe(name).description)}")


@recipes_app.command("show")
def recipe_show(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file of a run.")],
    set_: Set = None,
) -> None:
    """A recipe as YAML, every field resolved: edit it and train it.

    [dim]medloupe recipe show starter > my.yaml[/]
    [dim]medloupe recipe show starter --set train.stages.instruct.lora.rank=4[/]
    """
    console.quiet_libraries()
    from medloupe.recipes import load_run

    typer.echo(load_run(recipe, set_ or ()).to_yaml(), nl=False)


app.command("import")(weights.import_)
app.command("export")(weights.export)
app.command("plan")(plan.plan)
app.command()(compare.compare)
app.command()(compare.rescore)
app.command()(compare.card)
app.command("reproduce")(reproduce.reproduce)
app.command()(benchmarks.sidebyside)


@app.command()
def doctor() -> None:
    """What is installed, which extras are missing, and the pip line for each.

    [dim]medloupe doctor[/]
    """
    from medloupe.cli.doctor import examine, table

    found = examine()
    console.out.print(table(found))
    for advice in found.advice:
        console.out.print(f"[yellow]-[/] {escape(advice)}")
    if found.broken:
        raise typer.Exit(console.USER_ERROR)
    console.out.print("MedLoupe can run here.")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="The run's folder.")] = Path("runs/quickstart"),
    recipe: Annotated[str, typer.Option("--recipe", help="Which recipe to run.")] = "starter",
    root: Root = None,
    set_: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip what is finished.")] = False,
) -> None:
    """Prepare, check, train, evaluate, and ask one question: the whole way in one command.

    [dim]medloupe quickstart --out runs/quickstart[/]
    """
    begun = time.perf_counter()
    console.quiet_libraries()
    from medloupe.recipes import load_run, run
    from medloupe.recipes.prepare import prepare as prepare_data

    config = load_run(recipe, set_ or ())
    console.writable("--out", out)
    run.refuse_started(out, resume=resume)
    _heading(1, "prepare the data")
    with console.Bars() as bars:
        prepare_data(config.data, out / "data", root=root, progress=bars, tell=console.tell)
    _heading(2, "check every row and every image")
    check_folder(out / "data")
    _heading(3, f"train: {', then '.join(stage.name for stage in config.train.stages)}")
    if run.is_trained(config, out):
        console.out.print("  finished before")
    else:
        _train(config, out / "data", out, resume=resume, engine=config.train.open_engine())
    _heading(4, "evaluate on patients the model has not seen, with and without looking")
    if resume and run.is_evaluated(config, out):
        console.out.print("  finished before")
    else:
        evaluate_own(out, None, None, (), trust_code=True, resume=resume)
    _heading(5, "ask one question about one of their images")
    _ask_held_out(config, out)
    console.out.print()
    console.out.print(f"checkpoint  {escape(str(out / 'model'))}")
    console.out.print(f"report      {escape(str(out / 'report.html'))}")
    console.out.print(f"time        {_duration(time.perf_counter() - begun)}")


def _heading(number: int, text: str) -> None:
    console.out.print(f"[bold][{number}/5][/bold] {text}")


def _ask_held_out(config: RunConfig, out: Path) -> None:
    from medloupe.data.dataset import load_dataset
    from medloupe.recipes import run

    row = config.evaluate.benchmark.select(load_dataset(out / "data"))[0]
    predictor = run.load(out / "model", root=out / "data", trust_code=True)
    (answer,) = predictor([row])
    _tell(row, answer, out / "data")


def _tell(row: Conversation, answer: Generation, root: Path) -> None:
    truth = row.answer.text if row.answer else ""
    for image in row.images:
        console.out.print(f"  image     {root / image.uri}", markup=False)
    console.out.print(f"  question  {row.question}", markup=False)
    console.out.print(f"  answer    {answer.text}", markup=False)
    console.out.print(f"  truth     {truth}", markup=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
