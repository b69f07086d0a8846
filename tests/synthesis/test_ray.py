"""Two actors of a local cluster give the files that one process gives."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medloupe.cluster import stays_here
from medloupe.errors import ConfigError, MissingExtraError
from medloupe.synthesis.config import SynthesisConfig
from medloupe.synthesis.pipeline import Account, Engine, synthesize
from medloupe.synthesis.teachers import Answer, Failure

FILES = ("conversations.jsonl", "llava.json", "rejected.jsonl", "outcomes.jsonl", "dataset.json")


@pytest.fixture
def made(teacher_server: Any, write_rows: Callable[..., Path]) -> SynthesisConfig:
    """Twenty rows, of which some are refused; two teachers."""
    url = teacher_server.url
    reply = teacher_server.reply
    teacher_server.reply = lambda asked: "nothing" if "a thin wall" in asked else reply(asked)
    return SynthesisConfig.parse(
        {
            "source": {"path": str(write_rows(20))},
            "limits": {"backoff": 0},
            "teachers": [
                {"name": "openai", "base_url": f"{url}/v1", "model": "a", "weight": 3},
                {"name": "anthropic", "base_url": url, "model": "b", "key_env": ""},
            ],
        }
    )


def run(made: SynthesisConfig, out: Path, engine: Engine) -> Account:
    return synthesize(
        made,
        out,
        agree=lambda _: True,
        progress=lambda *_: None,
        engine=engine,
        workers=2,
        address=None,
    )


def test_without_ray_the_extra_is_named(
    made: SynthesisConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"medloupe\[ray\]"):
        run(made, tmp_path / "out", "ray")


def test_a_cluster_gives_the_same_files_and_goes_on_with_what_one_process_began(
    teacher_server: Any, made: SynthesisConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason='needs the ray extra: pip install "medloupe[ray]"')
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    local, out = tmp_path / "local", tmp_path / "ray"
    account = run(made, local, "local")
    assert 0 < account.accepted < 20
    part = made.with_overrides(["limits.requests=7"])
    assert run(part, out, "local").unanswered == 13
    teacher_server.behave = lambda number, _: "500" if number % 5 == 0 else "ok"
    before = len(teacher_server.bodies)
    done = run(made, out, "ray")
    assert not ray.is_initialized(), "a cluster that was started here is ended here"
    assert (done.accepted, done.filters) == (account.accepted, account.filters)
    for name in FILES:
        assert (out / name).read_bytes() == (local / name).read_bytes(), name
    with sqlite3.connect(out / "journal.db") as db:
        sent = db.execute("SELECT COUNT(*) FROM requests").fetchone()[0]
        answers = db.execute("SELECT COUNT(*), COUNT(DISTINCT id) FROM answers").fetchone()
    assert answers == (20, 20)
    assert sent == len(teacher_server.bodies) - before + 7


def test_a_key_that_a_worker_lacks_is_named_before_anything_is_sent(
    teacher_server: Any, made: SynthesisConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason='needs the ray extra: pip install "medloupe[ray]"')
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    keyed = made.with_overrides(["teachers.0.key_env=NO_SUCH_KEY"])
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        run(keyed, tmp_path / "out", "ray")
    assert not teacher_server.bodies
    assert not ray.is_initialized()


def test_more_workers_than_a_running_cluster_has(
    teacher_server: Any, made: SynthesisConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason='needs the ray extra: pip install "medloupe[ray]"')
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with pytest.raises(ConfigError, match="2 workers were asked for, and the cluster has 1"):
            run(made, tmp_path / "out", "ray")
        assert ray.is_initialized(), "a cluster that was there stays"
    finally:
        ray.shutdown()


def test_a_worker_that_dies_costs_another_attempt() -> None:
    from medloupe.synthesis.ray import _Cluster

    class RayActorError(Exception):
        pass

    asked: list[int] = []

    def actor(number: int) -> Any:
        async def remote(*_: object) -> Answer:
            asked.append(number)
            if len(asked) == 1:
                raise RayActorError("gone")
            await asyncio.sleep(0)
            return Answer(text="t", model="m", prompt_tokens=1, completion_tokens=1)

        return SimpleNamespace(ask=SimpleNamespace(remote=remote))

    ray = SimpleNamespace(exceptions=SimpleNamespace(RayActorError=RayActorError))
    cluster = _Cluster(ray, [actor(0), actor(1)], ours=False)

    async def run() -> list[Answer | Failure]:
        first = await cluster.ask("t", [], None)
        return [first, *await asyncio.gather(*(cluster.ask("t", [], None) for _ in range(4)))]

    first, *others = asyncio.run(run())
    assert isinstance(first, Failure)
    assert (first.scope, first.paid) == ("retry", True)
    assert all(isinstance(said, Answer) for said in others)
    assert sorted(asked[1:]) == [0, 0, 1, 1], "the one with the fewest questions is asked"


def test_answers_cross_processes_unchanged() -> None:
    answer = Answer(text="é", model="m", prompt_tokens=1, completion_tokens=2, finish="length")
    failure = Failure(scope="retry", reason="r", wait=1.5, paid=True)
    assert Answer.model_validate(json.loads(answer.to_json())) == answer
    assert Failure.model_validate(json.loads(failure.to_json())) == failure


@pytest.mark.parametrize(
    ("address", "variable", "here"),
    [
        (None, None, True),
        ("auto", "ray://8.8.8.8:10001", True),
        ("local", None, True),
        ("127.0.0.1:6379", None, True),
        ("ray://10.0.0.7:10001", None, True),
        ("[::1]:6379", None, True),
        ("ray://8.8.8.8:10001", None, False),
        ("8.8.8.8:6379", None, False),
        (None, "8.8.8.8:6379", False),
        ("anyscale://cluster.invalid", None, False),
    ],
)
def test_a_cluster_elsewhere_is_known_by_its_address(
    address: str | None, variable: str | None, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert stays_here(address) is here


def test_a_dead_worker_does_not_keep_the_others_from_ending() -> None:
    from medloupe.synthesis.ray import _Cluster

    def actor(*, dead: bool) -> Any:
        async def remote() -> None:
            if dead:
                raise RuntimeError("gone")

        return SimpleNamespace(close=SimpleNamespace(remote=remote))

    actors = [actor(dead=True), actor(dead=False)]
    killed: list[Any] = []
    ended: list[bool] = []
    ray = SimpleNamespace(kill=killed.append, shutdown=lambda: ended.append(True))
    cluster = _Cluster(ray, actors, ours=True)
    cluster.join()
    asyncio.run(cluster.leave())
    assert killed == actors
    assert ended == [True]
