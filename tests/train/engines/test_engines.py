"""Two and three real processes on the CPU (gloo) against one: losses, weights, stops and resumes.

`zero2` and `zero3` are the engine `deepspeed` with that `zero`; where it is not installed, they are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from medloupe.errors import CheckpointError, ConfigError, MissingExtraError
from medloupe.train.checkpoint import CheckpointFolder
from medloupe.train.engines import EngineConfig
from medloupe.train.log import read_log
from medloupe.train.stages import TrainConfig

FLEET = Path(__file__).with_name("fleet.py")
SCENES = ("whole", "cut", "stages", "bf16", "hia")
ZERO = ("zero2", "zero3") if find_spec("deepspeed") else ()
ENGINES = {None: 1, "ddp": 2, "fsdp2": 2} | dict.fromkeys(ZERO, 2)
SPOIL = 1  # the step in which the last process's loss is no number
needs_deepspeed = pytest.mark.skipif(not ZERO, reason="needs the deepspeed extra")
ZEROS = [pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3")]
STOP = 2  # the step in which the last process is asked; noticed in the next one


@dataclass(frozen=True)
class Fleet:
    """The folders of finished runs, by name."""

    folder: Path

    def losses(self, name: str) -> list[float]:
        return self._figures(name, "loss")

    def norms(self, name: str) -> list[float]:
        return self._figures(name, "grad_norm")

    def _figures(self, name: str, figure: str) -> list[float]:
        rows = read_log(self.folder / name / "train.jsonl")
        return [float(row[figure]) for row in rows if row["event"] == "step"]

    def said(self, name: str) -> dict[str, Any]:
        said: dict[str, Any] = json.loads((self.folder / name / "said.json").read_text())
        return said

    def ends(self, name: str) -> dict[str, torch.Tensor]:
        """What the last stage's end holds."""
        path = max((self.folder / name / "checkpoints").glob("*-end.pt"))
        parts = torch.load(path, weights_only=True)["parts"]
        return {f"{part}.{n}": tensor for part, w in parts.items() for n, tensor in w.items()}

    def checkpoints(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.folder / name / "checkpoints").iterdir())


def plan(folder: Path) -> list[dict[str, Any]]:
    """Every scene on every engine; then runs that are stopped, and gone on with on other engines."""

    def run(name: str, scene: str, engine: str | None, processes: int, **more: Any) -> Any:
        fields = {"scene": scene, "engine": engine, "processes": processes}
        return fields | {"out": str(folder / name)} | more

    runs = [
        run(f"{scene} {engine}", scene, engine, processes)
        for scene in SCENES
        for engine, processes in ENGINES.items()
    ]
    runs += [
        run(f"stopped {engine}", "whole", engine, processes, stop=STOP)
        for engine, processes in ENGINES.items()
    ]
    runs += [
        run(f"best {engine}", "best", engine, ENGINES[engine], spoil=SPOIL)
        for engine in (None, *ZERO)
    ]
    runs += [
        run(f"ground {engine}", "ground", engine, ENGINES[engine]) for engine in (None, *ZERO[1:])
    ]
    runs += [
        run(
            f"{before} then {after} {processes}",
            "whole",
            None if after == "one" else after,
            processes,
            after=str(folder / f"stopped {None if before == 'one' else before}"),
        )
        for before, after, processes in RESUMED + ZERO_RESUMED * bool(ZERO)
    ]
    return [
        *runs,
        run("dropout", "dropout", "ddp", 2),
        run("dropout stopped", "dropout", "ddp", 2, stop=STOP),
        run("dropout resumed", "dropout", "ddp", 2, after=str(folder / "dropout stopped")),
    ]


RESUMED = [
    ("one", "ddp", 2),
    ("one", "fsdp2", 2),
    ("ddp", "ddp", 3),
    ("ddp", "one", 1),
    ("fsdp2", "fsdp2", 2),
    ("fsdp2", "fsdp2", 3),
    ("fsdp2", "one", 1),
    ("fsdp2", "ddp", 2),
]
ZERO_RESUMED = [
    ("one", "zero2", 2),
    ("fsdp2", "zero3", 2),
    ("zero2", "zero2", 2),
    ("zero2", "zero3", 3),
    ("zero3", "zero3", 2),
    ("zero3", "fsdp2", 2),
]


@pytest.fixture(scope="module")
def fleet(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "plan.json").write_text(json.dumps(plan(folder)))
    support = str(Path(__file__).resolve().parents[2] / "support")
    with subprocess.Popen(
        [sys.executable, str(FLEET), str(lab.folder), str(folder / "plan.json")],
        env=os.environ | {"PYTHONPATH": support, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, said
    return Fleet(folder)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", *ZEROS])
def test_a_row_that_reaches_nothing_is_known_as_such(fleet: Fleet, engine: str) -> None:
    """One row a step in the first stage, and one of the nine is text; engines tie losses to what trains
    so that processes keep step, which is no reach."""
    one = fleet.said("stages None")["reaches"][:9]
    assert one.count(False) == 1
    assert fleet.said(f"stages {engine}")["reaches"][:9] == one


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", *ZEROS])
@pytest.mark.parametrize("scene", SCENES)
def test_losses_and_weights_are_those_of_one_process(fleet: Fleet, scene: str, engine: str) -> None:
    """Measured in fp32: losses differ by at most 2e-7 of themselves, in bf16 by 5e-5."""
    compare(fleet, scene, engine)


@needs_deepspeed
def test_zero_grounds(fleet: Fleet) -> None:
    compare(fleet, "ground", "zero3")


@pytest.mark.parametrize("engine", ZEROS)
def test_zero_refuses_a_step_and_goes_back_to_the_best(fleet: Fleet, engine: str) -> None:
    """The second of six steps changes neither weights nor the gradients of the next; the fourth is the
    best."""
    assert len(fleet.said(f"best {engine}")["reaches"]) == 5
    compare(fleet, "best", engine)
    rows = [read_log(fleet.folder / f"best {name}" / "train.jsonl") for name in (None, engine)]
    events = [[(row["event"], row.get("step")) for row in one] for one in rows]
    assert events[0] == events[1]
    assert ("refused", SPOIL + 1) in events[1]


def compare(fleet: Fleet, scene: str, engine: str) -> None:
    """Losses, norms and weights with those of one process."""
    tolerance = 1e-3 if scene == "bf16" else 2e-6
    one, many = f"{scene} None", f"{scene} {engine}"
    assert fleet.losses(many) == pytest.approx(fleet.losses(one), rel=tolerance)
    assert fleet.norms(many) == pytest.approx(fleet.norms(one), rel=50 * tolerance, nan_ok=True)
    wanted, found = fleet.ends(one), fleet.ends(many)
    assert found.keys() == wanted.keys()
    # AdamW's first steps have the size of the rate whatever the gradient's: where that is nothing but
    # rounding, weights may differ by some of it
    apart = [float((found[name] - t).abs().float().mean()) for name, t in wanted.items()]
    assert max(apart) < (2e-3 if scene == "bf16" else 2e-5)


def test_batches_cut_to_a_budget_give_the_same_losses(fleet: Fleet) -> None:
    assert fleet.losses("cut None") == pytest.approx(fleet.losses("whole None"), rel=2e-6)
    assert fleet.said("whole None")["parts"] == 10  # two batches in each of five steps
    # nine rows in each of three epochs and one of a fourth; the text joins an image each time
    assert fleet.said("cut None")["parts"] == 3 * 9 + 1 - 3
    assert fleet.said("cut ddp")["parts"] < fleet.said("cut None")["parts"]


@pytest.mark.parametrize("scene", SCENES)
def test_fsdp2_shards_every_parameter_that_trains(fleet: Fleet, scene: str) -> None:
    assert fleet.said(f"{scene} fsdp2")["sharded"]
    assert not fleet.said(f"{scene} ddp")["sharded"]


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("engine", ZEROS)
def test_zero_holds_half_of_what_adam_remembers(fleet: Fleet, scene: str, engine: str) -> None:
    """Of all weights that train; under ZeRO-3 no weight is whole between steps."""
    said = fleet.said(f"{scene} {engine}")
    assert 0.45 < said["share"] < 0.55
    assert said["sharded"] == (engine == "zero3")
    assert fleet.said(f"{scene} ddp")["share"] == 1.0


@pytest.mark.parametrize(
    ("before", "after", "processes"),
    [*RESUMED, *(pytest.param(*way, marks=needs_deepspeed) for way in ZERO_RESUMED)],
)
def test_a_stopped_run_goes_on_with_other_processes(
    fleet: Fleet, before: str, after: str, processes: int
) -> None:
    """All processes stop where one of them was asked, and the rest of the run is the same."""
    stopped = f"stopped {None if before == 'one' else before}"
    assert fleet.said(stopped)["stopped"]
    suffix = "dcp" if before == "fsdp2" else "pt"
    assert fleet.checkpoints(stopped)[-1] == f"00-only-{STOP + 1:07d}.{suffix}"
    resumed = f"{before} then {after} {processes}"
    assert not fleet.said(resumed)["stopped"]
    assert fleet.checkpoints(resumed) == ["00-only-end.pt"]
    whole = fleet.losses("whole None")
    assert fleet.losses(resumed) == pytest.approx(whole, rel=2e-6)
    assert len(whole) == 5


def test_as_many_processes_go_on_to_the_same_bits(fleet: Fleet) -> None:
    """Those that shard; and of a dropout that each process draws for itself."""
    pairs = {"fsdp2 then fsdp2 2": "whole fsdp2", "dropout resumed": "dropout"}
    pairs |= {f"{name} then {name} 2": f"whole {name}" for name in ZERO}
    for resumed, unbroken in pairs.items():
        assert fleet.losses(resumed) == fleet.losses(unbroken)
        found, wanted = fleet.ends(resumed), fleet.ends(unbroken)
        assert [name for name, t in wanted.items() if not torch.equal(found[name], t)] == []


@pytest.mark.parametrize("damaged", ["notes.pt", ".metadata", "__1_0.distcp"])
def test_a_damaged_folder_is_named(fleet: Fleet, tmp_path: Path, damaged: str) -> None:
    whole = CheckpointFolder(fleet.folder / "stopped fsdp2" / "checkpoints", keep=2)
    like = {name: torch.zeros(shape) for name, shape in shapes(whole).items()}
    assert whole.read(whole.found()[-1], like)["parameters"].keys() == like.keys()
    shutil.copytree(whole.found()[-1].path, tmp_path / "00-only-0000003.dcp")
    broken = CheckpointFolder(tmp_path, keep=2)
    path = tmp_path / "00-only-0000003.dcp" / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"damaged.*Delete it") as caught:
        broken.read(broken.found()[-1], like)
    assert "00-only-0000003.dcp" in str(caught.value.fault.file)


def shapes(folder: CheckpointFolder) -> dict[str, torch.Size]:
    """Of the parameters in the newest checkpoint."""
    known = FileSystemReader(folder.found()[-1].path).read_metadata().state_dict_metadata
    return {
        name.removeprefix("parameters/"): stored.size
        for name, stored in known.items()
        if name.startswith("parameters/") and isinstance(stored, TensorStorageMetadata)
    }


@pytest.mark.parametrize("name", ["ddp", "fsdp2", pytest.param("deepspeed", marks=needs_deepspeed)])
def test_processes_that_nobody_started(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=f"{name} needs several processes.*RANK.*torchrun"):
        EngineConfig.parse(name).open()


def test_processes_that_know_nothing_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were started.*train\.engine=ddp"):
        EngineConfig.parse("one").open()


def test_deepspeed_where_it_is_not_or_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"name": "only", "objective": "language", "trainable": ["connector"]}
    for more in ({"compile": True}, {"stages": [stage | {"optimizer": "adamw_8bit"}]}):
        with pytest.raises(ValueError, match=r"compiles no layers|8-bit states cannot be sharded"):
            TrainConfig.parse({"stages": [stage], "engine": "deepspeed"} | more)
    monkeypatch.setattr("medloupe.train.engines.deepspeed.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"medloupe\[deepspeed\]"):
        EngineConfig.parse("deepspeed").open()
