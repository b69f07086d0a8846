"""Evaluations that are killed, shared among processes, and asked twice by mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from medloupe.data.dataset import Dataset, load_dataset
from medloupe.errors import ConfigError, ImageError, MedLoupeError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.resume import Answers, Shard, ask_all
from medloupe.evaluate.runner import run_benchmark, run_shard
from medloupe.types import Box, Conversation, EvalLog, Generation, ImageRef, Message, Text

BENCHMARK = Benchmark(name="squares", resamples=100)

# A process that notes what it is asked, and may end itself as the system would.
PROCESS = """
import hashlib, os, signal, sys
from pathlib import Path
from medloupe.data.dataset import load_dataset
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.log import write_log
from medloupe.evaluate.resume import Answers, Shard
from medloupe.evaluate.runner import run_benchmark, run_shard
from medloupe.types import Generation

root, out, noted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
dies, part = int(sys.argv[4]), sys.argv[5]

class Told:
    asked = 0
    def answer_each(self, conversations, hear, *, progress, done):
        for number, row in enumerate(conversations):
            if number in done:
                continue
            self.asked += 1
            if self.asked == dies:
                os.kill(os.getpid(), signal.SIGKILL)
            digest = hashlib.sha256(f"{row.images} {row.question}".encode()).digest()
            with open(noted, "a") as stream:
                stream.write(f"{row.id} {row.images[0].uri}\\n")
            hear(number, Generation(text=("yes", "no", "left", "right")[digest[0] % 4],
                                    log_probs=(-digest[1] / 255,), option_probs=(0.25, 0.75)))

benchmark = Benchmark(name="squares", resamples=100)
dataset = load_dataset(root)
kept = {"manifest": {"by": "test"}, "seed": 5}
if part:
    shard = Shard.parse(part)
    answers = Answers(shard.file(out / "answers.jsonl"), model="m", root=root)
    log = run_shard(benchmark, dataset, Told(), shard=shard, answers=answers,
                    others=shard.files(out / "answers.jsonl"), **kept)
else:
    log = run_benchmark(benchmark, dataset, Told(),
                        answers=Answers(out / "answers.jsonl", model="m", root=root), **kept)
if log is not None:
    write_log(out / "eval.jsonl", log)
"""


def start(root: Path, out: Path, *, dies: int = 0, part: str = "") -> subprocess.Popen[bytes]:
    out.mkdir(exist_ok=True)
    noted = out / f"asked{part.replace('/', '-')}.txt"
    words = [sys.executable, "-c", PROCESS, root, out, noted, str(dies), part]
    return subprocess.Popen(
        [str(word) for word in words], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def asked_in(out: Path) -> Counter[str]:
    return Counter(
        line for file in out.glob("asked*.txt") for line in file.read_text().splitlines()
    )


def body(path: Path) -> list[str]:
    """A log without its header, which has times."""
    return path.read_text().splitlines()[1:]


def test_a_killed_evaluation_goes_on_without_asking_twice(squares: Dataset, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    processes = [start(squares.root, whole), start(squares.root, killed, dies=40)]
    assert [process.wait(300) for process in processes] == [0, -signal.SIGKILL]
    assert not (killed / "eval.jsonl").exists()
    assert len((killed / "answers.jsonl").read_bytes().splitlines()) == 39
    with (killed / "answers.jsonl").open("ab") as stream:
        stream.write(b'{"key": "0123", "id": "cut", "ans')  # what a full disk leaves
    assert start(squares.root, killed).wait(300) == 0
    kept = Answers(killed / "answers.jsonl")
    assert kept.torn == 1
    assert len(kept._said) == sum(asked_in(whole).values())  # the next answer got its own line
    assert body(killed / "eval.jsonl") == body(whole / "eval.jsonl")
    assert asked_in(killed) == asked_in(whole)
    assert max(asked_in(whole).values()) == 1


def test_two_processes_share_an_evaluation_and_the_last_one_scores(
    squares: Dataset, tmp_path: Path
) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    processes = [
        start(squares.root, whole),
        start(squares.root, shared, part="1/2"),
        start(squares.root, shared, part="2/2"),
    ]
    assert [process.wait(300) for process in processes] == [0, 0, 0]
    assert body(shared / "eval.jsonl") == body(whole / "eval.jsonl")
    assert asked_in(shared) == asked_in(whole)
    parts = [set((shared / f"asked{part}.txt").read_text().split()) for part in ("1-2", "2-2")]
    images = [{word for word in part if word.endswith(".png")} for part in parts]
    assert images[0]
    assert images[1]
    assert not images[0] & images[1]  # so each image is read by one process only


class Told:
    """Answers all but what it is told to fail."""

    def __init__(self, fails: Sequence[str] = ()) -> None:
        self.fails, self.asked = fails, 0

    def answer_each(self, conversations, hear, *, done=frozenset(), **_) -> None:  # type: ignore[no-untyped-def]
        for number, row in enumerate(conversations):
            if number not in done:
                self.asked += 1
                bad = ImageError("cannot be read", row=row.id)
                hear(number, bad if row.id in self.fails else Generation(text="yes"))


def run(squares: Dataset, predict: Told, answers: Answers | None = None) -> EvalLog:
    return run_benchmark(BENCHMARK, squares, predict, manifest={}, seed=5, answers=answers)


def test_rows_that_fail_are_unscored_and_counted(squares: Dataset) -> None:
    rows = BENCHMARK.select(squares)
    failing = [row.id for row in rows if row.task == "presence"][:3]
    log = run(squares, Told(failing))
    assert {row.id for row in log.rows} == {row.id for row in rows}
    bad = [row for row in log.rows if row.id in failing]
    assert all("cannot be read" in row.error and row.prediction == "" for row in bad)
    assert all("cannot be read" in row.others["swapped"].error for row in bad)
    scores = [score for score in log.scores if score.id in failing and score.arm == "model"]
    assert scores
    assert all(score.value is None and "cannot be read" in score.reason for score in scores)
    (found,) = [
        m
        for m in log.metrics
        if (m.name, m.arm, m.group) == ("closed_accuracy.strict", "model", "presence")
    ]
    assert found.unscored == 3
    assert found.n == sum(row.task == "presence" for row in rows) - 3
    assert log.manifest["not_answered"] == {"model": 3, "swapped": 3}
    # the most frequent training answer is no worse for it
    assert not bad[0].others["majority"].error


def test_what_failed_is_asked_again_and_what_was_answered_is_not(
    squares: Dataset, tmp_path: Path
) -> None:
    failing = BENCHMARK.select(squares)[0].id
    path = tmp_path / "answers.jsonl"
    first, second = Told([failing]), Told()
    with Answers(path, model="m", root=squares.root) as answers:
        run(squares, first, answers)
    with Answers(path, model="m", root=squares.root) as answers:
        log = run(squares, second, answers)
    assert second.asked == 2  # as it is, and under the probe
    assert first.asked > 2
    assert not any(row.error for row in log.rows)
    third = Told()
    with Answers(path, model="another", root=squares.root) as answers:
        run(squares, third, answers)
    assert third.asked == first.asked


def question(name: str, text: str = "Side?", **image: object) -> Conversation:
    ref = ImageRef.parse({"uri": "a.png", **image})
    return Conversation(id=name, messages=(Message(role="user", content=(ref, Text(text=text))),))


def test_a_key_is_of_all_that_decides_an_answer(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    answers = Answers(model="m", root=tmp_path)
    key = answers.key(question("a"))
    told = Message(role="assistant", content=(Text(text="left"),))
    row = question("a")
    answered = row.model_copy(update={"messages": (*row.messages, told)})
    assert answers.key(answered) == key  # what is right is not shown
    others = [question("b"), question("a", "Plane?"), question("a", edit="mirrored")]
    keys = {key, *map(answers.key, others), Answers(model="n", root=tmp_path).key(row)}
    assert len(keys) == 5
    (tmp_path / "a.png").write_bytes(b"another")
    assert Answers(model="m", root=tmp_path).key(row) not in keys
    (tmp_path / "a.png").unlink()
    assert Answers(model="m", root=tmp_path).key(row) not in keys
    hashed = question("a", sha256="0" * 64)
    assert answers.key(hashed) == Answers(model="m", root=Path("elsewhere")).key(hashed)


def test_an_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    said = Generation(
        text="左 “left”\u2028\n",
        token_ids=(1, 2),
        log_probs=(-0.1234567890123456, float("-inf")),
        boxes=(Box(label="a", x1=0.1, y1=0, x2=1, y2=1, score=0.3),),
        finish_reason="length",
        seconds=0.25,
        option_probs=(0.1, 0.9),
    )
    path = tmp_path / "answers.jsonl"
    with Answers(path) as answers:
        answers.add("k", "a", said)
        answers.add("k", "a", Generation(text="later"))  # the first one counts
        answers.add("nan", "b", Generation(text="x", log_probs=(float("nan"),)))
    again = Answers(path)
    assert again._said["k"] == said
    assert again.torn == 0
    assert str(again._said["nan"].log_probs) == "(nan,)"  # type: ignore[union-attr]
    path.write_bytes(
        b'{"key": "k"}\n[]\n{"key": "k", "answer": {"text": 3}}\n\xff\n' + path.read_bytes()
    )
    assert Answers(path).torn == 4
    assert Answers(path)._said["k"] == said


def test_probabilities_that_are_none_are_left_out(squares: Dataset) -> None:
    class NaN(Told):
        def answer_each(self, conversations, hear, **_) -> None:  # type: ignore[no-untyped-def]
            bad = float("nan")
            for number in range(len(conversations)):
                hear(number, Generation(text="", log_probs=(bad,), option_probs=(bad, bad)))

    log = run(squares, NaN())
    assert all(row.confidence is None and row.option_probs == () for row in log.rows)
    assert json.loads(log.to_json())["rows"][0]["prediction"] == ""


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3"])
def test_a_part_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no part of a whole"):
        Shard.parse(text)


def test_parts_are_the_whole_and_keep_images_together() -> None:
    rows = [question(f"{n}", uri=f"{n % 5}.png") for n in range(23)]
    parts = [Shard(number=n, of=3).part(rows) for n in (1, 2, 3)]
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
    images = [{row.images for row in part} for part in parts]
    assert sum(map(len, images)) == len(set.union(*images)) == 5


def test_windows_ask_everything_once_and_in_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medloupe.evaluate.resume.WINDOW", 4)
    rows = [question(f"{n}", uri=f"{n % 3}.png") for n in range(10)]
    calls: list[list[str]] = []
    steps: list[tuple[int, int]] = []

    class Noting(Told):
        def answer_each(self, conversations, hear, *, progress, done=frozenset()) -> None:  # type: ignore[no-untyped-def]
            calls.append([row.images[0].uri for row in conversations])
            super().answer_each(conversations, hear, progress=progress, done=done)
            progress("answer", len(conversations), len(conversations))

    answers = Answers()
    ask_all(Noting(), [*rows, *rows], answers, progress=lambda _, d, t: steps.append((d, t)))
    assert [uri for call in calls for uri in call] == ["0.png"] * 4 + ["1.png"] * 3 + ["2.png"] * 3
    assert steps == [(4, 10), (8, 10), (10, 10)]
    assert all(isinstance(answers.of(row), Generation) for row in rows)


def test_an_unfinished_part_gives_no_log(squares: Dataset, tmp_path: Path) -> None:
    shard = Shard(number=1, of=2)
    files = shard.files(tmp_path / "answers.jsonl")
    with Answers(files[0], root=squares.root) as answers:
        log = run_shard(
            BENCHMARK,
            load_dataset(squares.root),
            Told(),
            shard=shard,
            answers=answers,
            others=files,
            manifest={},
            seed=5,
        )
    assert log is None
    assert files[0].name == "answers.1-of-2.jsonl"
    assert files[0].exists()


def test_a_predictor_that_only_raises_still_raises(squares: Dataset) -> None:
    def raises(conversations, *, progress):  # type: ignore[no-untyped-def]
        raise MedLoupeError("no")

    with pytest.raises(MedLoupeError, match="no"):
        run_benchmark(BENCHMARK, squares, raises, manifest={}, seed=5)
