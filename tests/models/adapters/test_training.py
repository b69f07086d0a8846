"""Training: the adapter and its encoder alone, each question with its own image, over breaks and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from medloupe.data.dataset import load_dataset
from medloupe.errors import ConfigError, TrainingError
from medloupe.imaging.composed import DetailedTransform
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.adapters.files import load_adapter, save_adapter
from medloupe.models.vlm import VisionLanguageModel
from medloupe.models.warm import StartConfig, warm_start
from medloupe.processing import ImageSource
from medloupe.recipes import load_run, run
from medloupe.recipes.prepare import prepare
from medloupe.train import StageConfig, TrainConfig, Trainer
from medloupe.train.log import read_log
from medloupe.train.objectives.base import StageContext


def silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def data(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Eight images with three questions each, and a row of text."""
    return tiny.dataset(tmp_path_factory.mktemp("data"))


def stage(**fields: Any) -> StageConfig:
    base: dict[str, Any] = {
        "name": "adapt",
        "objective": {"name": "language"},
        "trainable": ("adapter",),
        "learning_rate": 3e-3,
        "batch_size": 3,
        "precision": "fp32",
        "steps": 6,
    }
    return StageConfig.parse(base | fields)


def trainer(lab: Any, data: Any, out: Path, *stages: StageConfig, **options: Any) -> Trainer:
    progress = options.pop("progress", silent)
    config = TrainConfig(stages=stages, **options)

    def context(stage: StageConfig) -> StageContext:
        return StageContext(
            model=lab.model,
            processor=lab.processor,
            dataset=data,
            images=ImageSource(data.root, lab.images.transform),
            frozen_encoder="encoder" not in stage.trainable,
            precision=stage.precision,
            progress=progress,
        )

    return Trainer(lab.model, config, out, context, progress=progress)


def bits(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_log(out / "train.jsonl") if row["event"] == "step"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_adapter_and_its_encoder_train_and_nothing_else(
    kit, make_lab, data, tmp_path: Path, precision: str
) -> None:
    lab = make_lab(kit.hia(), trained=False)
    before = bits(lab.model)
    trainer(lab, data, tmp_path, stage(precision=precision)).fit()
    moved = {n for n, t in lab.model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {f"adapter.{name}" for name, _ in lab.model.adapter.named_parameters()}
    (row,) = [row for row in read_log(tmp_path / "train.jsonl") if row["event"] == "stage"]
    count = sum(p.numel() for p in lab.model.adapter.parameters())
    assert row["trainable"] == {"adapter": count}
    assert row["frozen"] == ["encoder", "connector", "language_model"]
    assert row["rows"] == 25  # not packed: 3 questions of 8 images, and a text
    ends = torch.load(tmp_path / "checkpoints/00-adapt-end.pt", weights_only=True)
    assert set(ends["parts"]) == {"adapter"}


@pytest.mark.parametrize("aware", [True, False])
def test_it_learns_what_only_images_tell(kit, make_lab, data, tmp_path: Path, aware: bool) -> None:
    """A frozen base of random weights comes to name the bright side of images that it was shown."""
    lab = make_lab(kit.hia(instruction_aware=aware), trained=False)
    lab = type(lab)(
        model=lab.model,
        processor=lab.processor,
        images=ImageSource(data.root, lab.images.transform),
    )
    rows = [row for row in data.split("train") if row.task == "side"]
    with torch.no_grad():
        before = float(lab.loss(*rows))
    objective = {"name": "language", "tasks": ["side"]}
    trainer(
        lab, data, tmp_path, stage(objective=objective, batch_size=8, steps=120, learning_rate=5e-3)
    ).fit()
    with torch.no_grad():
        after = float(lab.loss(*rows))
        swapped = [
            row.model_copy(update={"messages": (row.messages[0], other.messages[1])})
            for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
        ]
        assert float(lab.loss(*swapped)) > after + 4
    assert after < 0.9 * before  # a frozen head of random weights hardly says anything else


def test_without_the_question_rows_are_packed_and_it_is_said_where_not(
    kit, make_lab, data, tmp_path: Path
) -> None:
    for aware, rows in ((True, 25), (False, 9)):
        said: list[str] = []
        lab = make_lab(kit.hia(instruction_aware=aware), trained=False)
        out = tmp_path / str(aware)
        made = trainer(
            lab, data, out, stage(steps=1), progress=lambda what, *_, said=said: said.append(what)
        )
        made.fit()
        (row,) = [row for row in read_log(out / "train.jsonl") if row["event"] == "stage"]
        assert row["rows"] == rows
        assert said.count("not packed: images see their question") == int(aware)


def test_packed_and_unpacked_questions_teach_the_same_without_the_question(
    kit, make_lab, data, tmp_path: Path
) -> None:
    found = []
    for pack in (True, False):
        lab = make_lab(kit.hia(instruction_aware=False))
        lab.model.requires_grad_(False)
        lab.model.adapter.requires_grad_(True)
        whole = trainer(lab, data, tmp_path, stage())
        objective = stage(objective={"name": "language", "pack": pack}).objective.build(
            whole.context(stage())
        )
        loss = sum(
            objective.loss(objective.micro([row])) for row in range(len(objective.lengths) - 1)
        )
        loss.backward()
        found.append({n: p.grad for n, p in lab.model.adapter.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch_of_text_alone_teaches_nothing(kit, make_lab, data, tmp_path: Path) -> None:
    """Among others it is passed over; a stage of nothing else is no success."""
    lab = make_lab(kit.hia())
    before = bits(lab.model)
    text = data.split("train")[-1].model_copy(update={"task": "text"})
    only = type(data)(root=data.root, card=data.card, conversations=(text,), records=())
    with pytest.raises(TrainingError, match=r"no row reaches what the stage trains \(adapter\)"):
        trainer(lab, only, tmp_path / "text", stage(batch_size=1, steps=2)).fit()
    assert len(losses(tmp_path / "text")) == 2
    assert all(torch.equal(t, before[n]) for n, t in lab.model.state_dict().items())
    trainer(lab, data, tmp_path / "all", stage(batch_size=1, steps=25)).fit()
    assert len(losses(tmp_path / "all")) == 25


def test_a_broken_run_resumes_to_the_same_bits(kit, make_lab, data, tmp_path: Path) -> None:
    """Base, then adapter alone, then adapter and low-rank adapters at once."""
    lora = {"rank": 2, "merge": False}
    stages = (
        stage(name="align", trainable=("connector",), steps=3),
        stage(steps=5),
        stage(name="both", trainable=("adapter", "language_model"), lora=lora, steps=3),
    )

    class KilledError(Exception):
        """As if the process ended."""

    whole = make_lab(kit.hia(), trained=False)
    trainer(whole, data, tmp_path / "whole", *stages, save_every=2).fit()

    def kills(name: str, at: int) -> Any:
        def kill(what: str, done: int, total: int) -> None:
            if (what.split(" (")[0], done) == (f"train {name}", at):
                raise KilledError

        return kill

    for kill in (kills("adapt", 3), kills("both", 3)):
        lab = make_lab(kit.hia(), trained=False)
        made = trainer(lab, data, tmp_path / "broken", *stages, save_every=2, progress=kill)
        with pytest.raises(KilledError):
            made.fit(resume=True)
    lab = make_lab(kit.hia(), trained=False)
    trainer(lab, data, tmp_path / "broken", *stages, save_every=2).fit(resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    wanted = whole.model.state_dict()
    assert lab.model.state_dict().keys() == wanted.keys()
    assert [n for n, t in lab.model.state_dict().items() if not torch.equal(t, wanted[n])] == []


def test_a_stage_for_a_part_that_is_not_there(make_lab, data, tmp_path: Path) -> None:
    made = trainer(make_lab(None), data, tmp_path, stage())
    with pytest.raises(ConfigError, match="trains 'adapter', and the model has none") as caught:
        made.fit()
    assert caught.value.fault.field == "train.stages.adapt.trainable"


def test_a_base_from_a_finished_run_and_a_fresh_adapter(
    kit, make_lab, mixed, data, tmp_path: Path
) -> None:
    bare = make_lab(None)
    both = ("encoder", "connector")
    trainer(bare, data, tmp_path, stage(trainable=both, steps=2, learning_rate=1e-2)).fit()
    bare.model.save_pretrained(tmp_path / "model")
    lab = make_lab(kit.hia(), trained=False)
    report = warm_start(lab.model, StartConfig(folder=str(tmp_path)))
    assert {name.partition(".")[0] for name in report.kept} == {"adapter"}
    assert torch.equal(lab.logits(*mixed), bare.logits(*mixed))
    # and the other way round: an adapted run is a base too, or a start for its adapter
    trainer(lab, data, tmp_path / "adapted", stage(steps=2)).fit()
    lab.model.save_pretrained(tmp_path / "adapted/model")
    start = {"folder": str(tmp_path / "adapted")}
    again = make_lab(None)
    unread = warm_start(again.model, StartConfig.parse(start)).unread
    assert {name.partition(".")[0] for name in unread} == {"adapter"}
    taken = make_lab(kit.hia(), trained=False)
    everything = start | {"parts": list(lab.model.parts)}
    assert warm_start(taken.model, StartConfig.parse(everything)).kept == ()
    assert torch.equal(taken.logits(*mixed), lab.logits(*mixed))


ADAPTER = [
    "model.adapter.name=hia",
    "model.adapter.encoder.name=efficientnet_lite0",
    "model.adapter.encoder.image_size=96",
    "model.adapter.queries=4",
    "model.adapter.heads=4",
]


class TestRunConfig:
    def test_the_detail_view_follows_the_adapter(self, tmp_path: Path) -> None:
        base = load_run("starter_tiny").processor.transform
        config = load_run("starter_tiny", ADAPTER)
        view = config.processor.transform
        assert isinstance(view, DetailedTransform)
        assert view.base == base
        assert isinstance(view.detail, ImageTransform)
        assert isinstance(base, ImageTransform)
        assert (view.detail.size, view.detail.fit) == (96, base.fit)
        path = tmp_path / "run.yaml"
        path.write_text(config.to_yaml())
        assert load_run(str(path)) == config
        larger = config.with_overrides(["model.adapter.encoder.image_size=128"])
        assert larger.processor.transform.detail.size == 128
        other = config.with_overrides(["model.encoder.image_size=32", "seed=4"])
        assert (other.processor.transform.base.size, other.seed) == (32, 4)
        assert config.with_overrides(["model.adapter=null"]).processor.transform == base
        same = config.with_overrides(["model.adapter.high_resolution=false"])
        assert same.processor.transform.detail.size == 64

    def test_what_disagrees_is_said(self) -> None:
        config = load_run("starter_tiny", ADAPTER)
        with pytest.raises(ConfigError, match="size is 80, but the encoder wants 96"):
            config.with_overrides(["processor.transform.detail.size=80"])
        with pytest.raises(ConfigError, match="geometry and the window of the base's view"):
            config.with_overrides(["processor.transform.detail.fit=crop"])
        with pytest.raises(ConfigError, match=r"takes one 2D view, not what.*'detailed'"):
            type(config).parse(
                config.to_dict() | {"model": load_run("starter_tiny").model.to_dict()}
            )
        with pytest.raises(ConfigError, match="trains 'adapter', and the model has none"):
            load_run(
                "starter_tiny",
                ["train.stages.instruct.trainable=[adapter]", "train.stages.instruct.lora=null"],
            )
        with pytest.raises(ConfigError, match="unknown adapter 'hai'; did you mean 'hia'"):
            load_run("starter_tiny", ["model.adapter.name=hai"])


@pytest.fixture(scope="module")
def deeper(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny language model with four layers."""
    folder = tmp_path_factory.mktemp("deeper")
    shape = AutoModelForCausalLM.from_pretrained(language).config
    shape.num_hidden_layers = 4
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(language).save_pretrained(folder)
    return folder


def test_from_config_to_answers(deeper: Path, tmp_path: Path) -> None:
    """A base is trained, then an adapter on it; it is saved, loaded, evaluated, and moved alone."""
    changes = [f"model.language.source={deeper}", "data.patients=12", "data.slices_per_patient=2"]
    base = load_run("starter_tiny", changes)
    prepare(base.data, tmp_path / "data", root=None, progress=silent)
    run.train(base, tmp_path / "data", tmp_path / "base", progress=silent)
    adapted = base.with_overrides([*ADAPTER, f"model.start.folder={tmp_path / 'base'}", "name=hia"])
    (tune,) = [s for s in adapted.train.stages if s.name == "instruct"]
    tune = tune.model_copy(update={"trainable": ("adapter",), "lora": None, "steps": 3})
    adapted = type(adapted).parse(
        adapted.to_dict() | {"train": adapted.train.to_dict() | {"stages": [tune.to_dict()]}}
    )
    model, _, _ = run.build(adapted, tmp_path / "data")
    assert model.adapter is not None
    published = model.adapter.encoder.state_dict()
    assert torch.equal(published["stem.0.weight"], model.encoder.state_dict()["stem.0.weight"])
    run.train(adapted, tmp_path / "data", tmp_path / "run", progress=silent)
    log = run.evaluate(tmp_path / "run/model", tmp_path / "data", tmp_path / "run", progress=silent)
    assert all(row.prediction is not None for row in log.rows)
    predict = run.load(tmp_path / "run/model", root=tmp_path / "data")
    before = run.load(tmp_path / "base/model", root=tmp_path / "data")
    mine, theirs = predict.model.state_dict(), before.model.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    asked = load_dataset(tmp_path / "data").split("test")[:4]
    answers = predict(asked)
    save_adapter(predict.model, tmp_path / "alone")
    config = load_adapter(before.model, tmp_path / "alone")
    fitted = config.fitted(before.processor.config.transform)
    assert fitted == predict.processor.config.transform
    before.images = ImageSource(tmp_path / "data", fitted)
    again = before(asked)
    assert [one.token_ids for one in again] == [one.token_ids for one in answers]
