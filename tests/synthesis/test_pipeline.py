"""Rows in, one outcome a row out, however the teacher behaves and however often the run is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.check import check_dataset
from medloupe.data.dataset import load_dataset
from medloupe.data.llava import import_llava, llava_row
from medloupe.data.store import write_lines
from medloupe.errors import ConfigError, DataError
from medloupe.synthesis.config import SynthesisConfig
from medloupe.synthesis.journal import Journal, Use
from medloupe.synthesis.pipeline import Account, Estimate, read_outcomes, synthesize
from medloupe.synthesis.prompts.sets import FilePrompts, prompt_set
from medloupe.synthesis.teachers import Answer
from medloupe.synthesis.types import SynthesisError

KEY = "sk-very-secret-0123456789"
QUICK = {"backoff": 0.0}


def config(server: Any, rows: Path, **fields: Any) -> SynthesisConfig:
    teacher = {"name": "openai", "base_url": f"{server.url}/v1", "model": "m", "timeout": 20}
    stated: dict[str, Any] = {
        "source": {"path": str(rows)},
        "teachers": [teacher | fields.pop("teacher", {})],
        "limits": QUICK | fields.pop("limits", {}),
    }
    return SynthesisConfig.parse(stated | fields)


def run(made: SynthesisConfig, out: Path, **how: Any) -> Account:
    stated = {"agree": lambda _: True, "progress": lambda *_: None}
    return synthesize(made, out, **(stated | how))


def estimated(made: SynthesisConfig, out: Path) -> Estimate:
    """What is left, without sending anything."""
    found: list[Estimate] = []

    def refuse(estimate: Estimate) -> bool:
        found.append(estimate)
        return False

    with pytest.raises(SynthesisError, match="not agreed"):
        run(made, out, agree=refuse)
    return found[0]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def query(out: Path, sql: str) -> list[Any]:
    with sqlite3.connect(out / "journal.db") as db:
        return db.execute(sql).fetchall()


def outcomes(out: Path, rows: int) -> dict[str, bool]:
    """Whether each row was accepted; each stands in exactly one of the two files."""
    accepted = [row["id"] for row in read(out / "conversations.jsonl")]
    rejected = [row["id"] for row in read(out / "rejected.jsonl")]
    assert sorted(accepted + rejected) == [f"row-{k:04d}" for k in range(rows)]
    assert [row.id for row, _ in read_outcomes(out)] == [f"row-{k:04d}" for k in range(rows)]
    return dict.fromkeys(accepted, True) | dict.fromkeys(rejected, False)


def test_captions_become_a_data_set(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows, out = write_rows(12), tmp_path / "out"
    for k in range(12):
        (tmp_path / f"{k:04d}.png").write_bytes(b"")
    account = run(config(teacher_server, rows), out)
    assert all(outcomes(out, 12).values()), (out / "rejected.jsonl").read_text()
    assert (account.rows, account.accepted, account.unanswered) == (12, 12, 0)
    dataset = load_dataset(out)
    assert dataset.card.licence == ""
    assert dataset.card.counts == {
        "conversations": 12,
        "records": 0,
        "images": 12,
        "patients": 12,
    }
    first = dataset.conversations[0]
    assert first.images[0].uri == str(tmp_path / "0000.png")
    assert [message.role for message in first.messages] == ["user", "assistant"] * 2
    assert first.licence == "CC-BY-4.0"
    assert (first.patient_id, first.split, first.language) == ("p0", "train", "en")
    stated = first.attributes
    assert stated["teacher"] == "m"
    assert stated["model"] == "m-0613"
    assert stated["source"] == "row-0000"
    assert stated["temperature"] == "0.7"
    assert stated["modality"] == "histology"
    assert {"prompt_hash", "few_shot", "date"} <= stated.keys()
    back = import_llava(out / "llava.json", Path("/"))
    assert [llava_row(row) for row in back] == json.loads((out / "llava.json").read_text())
    assert [row.messages[1:] for row in back] == [c.messages[1:] for c in dataset.conversations]
    assert SynthesisConfig.from_yaml(out / "synthesis.yaml") == config(teacher_server, rows)
    assert not [
        f for f in check_dataset(out).faults if "PNG" not in str(f) and ".png" not in str(f)
    ]


def test_rejected_rows_keep_every_reason(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    said = {"question": "What does the caption say?", "answer": "It mentions 17 cysts."}
    replies = {
        0: json.dumps({"turns": [said]}),
        1: "no turns at all",
        2: json.dumps({"turns": [said | {"answer": "An <image3d> is here."}] * 2}),
    }

    def reply(asked: str) -> str:
        number = next((k for k in replies if f"Specimen {k:04d} " in asked), None)
        return default(asked) if number is None else replies[number]

    default, teacher_server.reply = teacher_server.reply, reply
    out = tmp_path / "out"
    account = run(config(teacher_server, write_rows(5)), out)
    assert account.accepted == 2
    found = {row["id"]: row for row in read(out / "rejected.jsonl")}
    reasons = [{r["filter"] for r in found[f"row-{k:04d}"]["rejections"]} for k in range(3)]
    assert {"turns", "mentions", "numbers"} <= reasons[0]
    assert reasons[1] == {"parse"}
    assert "form" in reasons[2]
    assert found["row-0001"]["answer"] == "no turns at all"
    assert account.filters["mentions"] == 2
    assert account.filters == dict(sorted(Counter(f for r in reasons for f in r).items()))


def test_the_mix_is_drawn_by_hash(write_rows: Callable[..., Path]) -> None:
    mix = {
        "source": {"path": "unused"},
        "teachers": [
            {"name": "anthropic", "label": "opus", "weight": 25},
            {"name": "openai", "label": "llama", "weight": 75},
        ],
    }
    made = SynthesisConfig.parse(mix)
    drawn = [made.teacher_of(f"row-{k:04d}").called for k in range(4000)]
    assert Counter(drawn) == {"opus": 1001, "llama": 2999}, "fixed for good: rows are paid by it"
    scaled = [t | {"weight": t["weight"] / 100} for t in mix["teachers"]]  # type: ignore[index]
    again = SynthesisConfig.parse(mix | {"teachers": scaled})
    assert [again.teacher_of(f"row-{k:04d}").called for k in range(4000)] == drawn
    other = SynthesisConfig.parse(mix | {"seed": 1})
    assert [other.teacher_of(f"row-{k:04d}").called for k in range(4000)] != drawn


def test_each_row_is_written_by_its_own_teacher(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    teachers = [
        {"name": "anthropic", "label": "opus", "weight": 25, "key_env": ""},
        {"name": "openai", "label": "llama", "weight": 75, "stream": True},
    ]
    urls = (teacher_server.url, f"{teacher_server.url}/v1")
    stated = [t | {"base_url": url} for t, url in zip(teachers, urls, strict=True)]
    made = config(teacher_server, write_rows(40), teachers=stated)
    account = run(made, tmp_path / "out")
    rows = load_dataset(tmp_path / "out").conversations
    assert len(rows) == 40
    for row in rows:
        assert row.attributes["teacher"] == made.teacher_of(row.id).called
    assert {t.teacher: t.rows for t in account.teachers} == Counter(
        row.attributes["teacher"] for row in rows
    )
    assert list(account.teachers[0].models) == ["claude-3-opus-20240229-x"]


def test_every_way_to_fail_ends_in_one_outcome(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    ways = ["500", "429", "short_body", "cut_json", "html", "empty", "error_body", "ok", "refusal"]
    ways += ["400", "length", "ok", "ok"]
    drawn = random.Random(3)
    teacher_server.behave = lambda *_: drawn.choice(ways)
    out = tmp_path / "out"
    account = run(config(teacher_server, write_rows(60), limits={"retries": 2}), out)
    accepted = outcomes(out, 60)
    assert account.accepted == sum(accepted.values())
    assert 0 < account.accepted < 60
    reasons = [r["reason"] for row in read(out / "rejected.jsonl") for r in row["rejections"]]
    for begin in ("refused: I cannot", "the answer was cut at", "HTTP 400", "no answer in 3"):
        assert any(reason.startswith(begin) for reason in reasons), begin
    (teacher,) = account.teachers
    assert teacher.requests == len(teacher_server.bodies)
    states = dict(query(out, "SELECT state, COUNT(*) FROM requests GROUP BY state"))
    assert states["answered"] == len(query(out, "SELECT row FROM answers"))
    assert states.keys() == {"answered", "failed"}


@pytest.mark.parametrize("how", ["half_stream", "error_stream", "short_body", "cut_json"])
def test_a_stream_that_breaks_is_asked_again(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path, how: str
) -> None:
    teacher_server.behave = lambda number, _: how if number % 3 == 1 else "ok"
    account = run(config(teacher_server, write_rows(6), teacher={"stream": True}), tmp_path / "o")
    assert account.accepted == 6
    assert len(teacher_server.bodies) > 6


def test_a_timeout_is_asked_again(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    teacher_server.behave = lambda number, _: "hang" if number == 1 else "ok"
    made = config(teacher_server, write_rows(3), teacher={"timeout": 0.5})
    assert run(made, tmp_path / "out").accepted == 3
    (most,) = query(tmp_path / "out", "SELECT completion_tokens FROM requests WHERE state='failed'")
    assert most == (1024,), "it may have been paid for: counted at its most"


def test_no_more_requests_at_once_than_allowed(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    three = threading.Barrier(3)  # opens when three requests are there

    def behave(number: int, body: dict[str, Any]) -> str:
        three.wait(10)
        return "ok"

    teacher_server.behave = behave
    run(config(teacher_server, write_rows(30), teacher={"concurrency": 3}), tmp_path / "out")
    assert teacher_server.most_open == 3


@pytest.mark.parametrize(
    ("how", "match"),
    [("401", "cannot be used"), ("quota", "cannot be used"), ("later", "asks to wait 3,600 s")],
)
def test_what_stops_a_sitting_and_the_next_one_goes_on(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path, how: str, match: str
) -> None:
    teacher_server.behave = lambda number, _: "ok" if number <= 4 else how
    made = config(teacher_server, write_rows(12), teacher={"concurrency": 1})
    with pytest.raises(SynthesisError, match=match):
        run(made, tmp_path / "out")
    assert len(teacher_server.bodies) == 5, "nothing is sent after it"
    teacher_server.behave = lambda *_: "ok"
    assert run(made, tmp_path / "out").accepted == 12
    assert len(teacher_server.bodies) == 5 + 8
    assert set(teacher_server.answers.values()) == {1}


def test_an_endpoint_that_is_down_gives_no_row_up(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    teacher_server.behave = lambda *_: "500"
    limits = {"retries": 1, "give_up_after": 4}
    made = config(teacher_server, write_rows(30), limits=limits)
    with pytest.raises(SynthesisError, match="4 rows in a row got no answer"):
        run(made, tmp_path / "out")
    teacher_server.behave = lambda *_: "ok"
    assert run(made, tmp_path / "out").accepted == 30


def two_teachers(server: Any, rows: Path, **limits: Any) -> SynthesisConfig:
    """Models "a" and "b", of equal weight, one request at a time each."""
    teacher = {"name": "openai", "base_url": f"{server.url}/v1", "concurrency": 1}
    teachers = [teacher | {"model": model} for model in "ab"]
    return config(server, rows, teachers=teachers, limits={"retries": 0} | limits)


def test_rows_of_a_silent_teacher_are_asked_again_in_the_next_sitting(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    teacher_server.behave = lambda _, body: "500" if body["model"] == "b" else "ok"
    made, out = two_teachers(teacher_server, write_rows(12)), tmp_path / "out"
    with pytest.raises(
        SynthesisError, match="teacher 'b' answered no row: no answer in 1 attempts"
    ):
        run(made, out)
    assert not query(out, "SELECT * FROM failures")
    teacher_server.behave = lambda *_: "ok"
    assert run(made, out).accepted == 12


def test_one_teachers_answers_do_not_hide_that_another_is_down(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    teacher_server.behave = lambda _, body: "500" if body["model"] == "b" else "ok"
    made = two_teachers(teacher_server, write_rows(60), give_up_after=3)
    with pytest.raises(SynthesisError, match="3 rows in a row got no answer from teacher 'b'"):
        run(made, tmp_path / "out")
    assert not query(tmp_path / "out", "SELECT * FROM failures")


def test_the_last_rows_of_a_teacher_that_answered_are_given_up(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    teacher_server.behave = lambda number, _: "500" if number > 3 else "ok"
    limits, one = {"retries": 0}, {"concurrency": 1}
    made = config(teacher_server, write_rows(5), limits=limits, teacher=one)
    assert run(made, tmp_path / "out").rejected == 2
    assert run(made, tmp_path / "out").rejected == 2
    assert len(teacher_server.bodies) == 5, "they are not asked again"


def test_rows_that_are_refused_one_by_one_do_not_end_the_sitting(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    teacher_server.behave = lambda number, _: "400" if number <= 6 else "ok"
    limits, one = {"give_up_after": 4}, {"concurrency": 1}
    made = config(teacher_server, write_rows(9), limits=limits, teacher=one)
    account = run(made, tmp_path / "out")
    assert (account.accepted, account.rejected) == (3, 6)


def test_rows_that_were_given_up_can_be_asked_again(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    teacher_server.behave = lambda number, _: "400" if number == 2 else "ok"
    made, out = config(teacher_server, write_rows(4), teacher={"concurrency": 1}), tmp_path / "out"
    assert run(made, out).accepted == 3
    (row,) = read(out / "rejected.jsonl")
    assert "HTTP 400" in row["rejections"][0]["reason"]
    assert run(made, out).accepted == 3
    assert len(teacher_server.bodies) == 4, "a second sitting asks nothing"
    again = made.with_overrides(["limits.retry_failed=true"])
    assert run(again, out).accepted == 4


@pytest.mark.parametrize(
    ("limit", "price"),
    [({"requests": 5}, None), ({"tokens": 25_000}, None), ({"cost": 0.05}, {"prompt": 10})],
)
def test_a_budget_is_met_and_not_passed_and_the_run_goes_on(
    teacher_server: Any,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    limit: dict[str, float],
    price: dict[str, float] | None,
) -> None:
    teacher = {"concurrency": 4, "price": {"completion": 10} | price if price else None}
    rows, out = write_rows(40), tmp_path / "out"
    account = run(config(teacher_server, rows, limits=limit, teacher=teacher), out)
    (name,) = limit
    assert f"limits.{name}" in account.stopped
    (used,) = account.teachers
    spent = {
        "requests": used.requests,
        "tokens": used.prompt_tokens + used.completion_tokens,
        "cost": used.cost,
    }
    assert 0 < (spent[name] or 0) <= limit[name]
    assert 0 < account.accepted < 40
    assert account.unanswered == 40 - account.accepted
    assert "not answered yet" in load_dataset(out).card.partial
    first = len(teacher_server.bodies)
    run(config(teacher_server, rows, limits=limit, teacher=teacher), out)
    assert len(teacher_server.bodies) <= first + 1, "a budget is a total over all sittings"
    account = run(config(teacher_server, rows, teacher=teacher), out)
    assert (account.accepted, account.unanswered, account.stopped) == (40, 0, "")
    assert len(teacher_server.bodies) == 40 > first
    assert load_dataset(out).card.partial == ""
    if price:
        (cost,) = query(out, "SELECT SUM(cost) FROM requests")[0]
        (prompt, said) = query(
            out, "SELECT SUM(prompt_tokens), SUM(completion_tokens) FROM requests"
        )[0]
        assert cost == pytest.approx((prompt + said) * 10 / 1e6)


def test_the_estimate_comes_first_and_is_not_passed(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    made = config(teacher_server, write_rows(9), teacher={"price": {"prompt": 3, "completion": 15}})
    estimate = estimated(made, tmp_path / "out")
    assert not teacher_server.bodies
    assert (estimate.rows, estimate.requests, estimate.done) == (9, 9, 0)
    (least,) = estimate.teachers
    account = run(made, tmp_path / "out")
    (used,) = account.teachers
    assert least.prompt_tokens >= used.prompt_tokens > 0
    assert least.completion_tokens == 9 * 1024
    assert least.cost is not None
    assert used.cost is not None
    assert least.cost >= used.cost > 0


def test_a_changed_config_is_refused_and_the_field_named(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows, out = write_rows(3), tmp_path / "out"
    run(config(teacher_server, rows), out)
    with pytest.raises(ConfigError, match=r"field 'teachers\.0\.temperature'.*0\.7.*0\.1"):
        run(config(teacher_server, rows, teacher={"temperature": 0.1}), out)
    with pytest.raises(ConfigError, match="prompt"):
        run(config(teacher_server, rows, prompts="caption_llava_med"), out)
    freely = {"concurrency": 2, "timeout": 5, "price": {"prompt": 0, "completion": 0}}
    run(config(teacher_server, rows, teacher=freely, filters=["turns"]), out)
    assert len(teacher_server.bodies) == 3
    with rows.open("a") as stream:
        stream.write('{"id": "row-0003", "text": "More."}\n')
    with pytest.raises(DataError, match="not those that this folder was begun with"):
        run(config(teacher_server, rows), out)


def test_new_filters_judge_what_was_paid_for_anew(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows, out = write_rows(6), tmp_path / "out"
    assert run(config(teacher_server, rows), out).accepted == 6
    strict = [{"name": "turns", "fewest": 3}]
    with pytest.raises(SynthesisError, match="none of 6 rows was accepted"):
        run(config(teacher_server, rows, filters=strict), out)
    assert not (out / "dataset.json").exists(), "no card without conversations"
    assert run(config(teacher_server, rows), out).accepted == 6
    assert len(teacher_server.bodies) == 6


def test_only_what_was_accepted_counts_as_said_before(teacher_server: Any, tmp_path: Path) -> None:
    said = [
        {
            "question": "What is seen in the picture?",
            "answer": "There are 3 smooth bands side by side.",
        },
        {
            "question": "How do the borders look?",
            "answer": "They fade slowly towards the pale edge.",
        },
    ]
    teacher_server.reply = lambda _: json.dumps({"turns": said})
    texts = ["A smooth band.", "There are 3 smooth bands.", "Again 3 smooth bands."]
    rows = tmp_path / "rows.jsonl"
    lines = [{"id": f"row-{k:04d}", "text": text} for k, text in enumerate(texts)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = config(teacher_server, rows, filters=["numbers", "duplicates"])
    run(made, tmp_path / "out")
    (accepted,) = read(tmp_path / "out" / "conversations.jsonl")
    assert accepted["id"] == "row-0001", "not a copy of row-0000, which was refused"
    first, last = read(tmp_path / "out" / "rejected.jsonl")
    assert [r["filter"] for r in first["rejections"]] == ["numbers"]
    assert [r["filter"] for r in last["rejections"]] == ["duplicates"]


def test_rows_that_cannot_be_asked(teacher_server: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"id": "a", "text": " "}, {"id": "b", "text": "A smooth band."}]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    account = run(config(teacher_server, rows), tmp_path / "out")
    assert (account.accepted, account.rejected) == (1, 1)
    (rejected,) = read(tmp_path / "out" / "rejected.jsonl")
    assert rejected["rejections"][0]["filter"] == "source"
    rows.write_text(rows.read_text() + json.dumps(lines[1]) + "\n")
    with pytest.raises(DataError, match=r"row 'b'.*twice"):
        run(config(teacher_server, rows), tmp_path / "other")
    rows.write_text('{"id": "a", "text": 3}\n')
    with pytest.raises(DataError, match="field 'text'"):
        run(config(teacher_server, rows), tmp_path / "third")


def test_the_guard_stands_before_a_teacher_elsewhere(teacher_server: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    texts = ["A smooth band.", "Seen by Dr. Miller on 3 May 2019."]
    lines = [{"id": f"row-{k:04d}", "text": text} for k, text in enumerate(texts)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"path": str(rows), "access": "PhysioNet Credentialed Health Data License"}
    away = {"local": False}
    with pytest.raises(SynthesisError):
        run(config(teacher_server, rows, source=source, teacher=away), tmp_path / "out")
    assert not teacher_server.bodies
    assert not (tmp_path / "out").exists()
    stated = {
        "source": source,
        "teacher": away,
        "permission": "Our agreement lets 'rows' go to this service.",
    }
    account = run(config(teacher_server, rows, **stated), tmp_path / "out")
    assert len(teacher_server.bodies) == 1
    assert "Miller" not in json.dumps(teacher_server.bodies)
    assert account.filters["guard"] == 1
    here = config(teacher_server, rows, source=source)
    assert run(here, tmp_path / "here").rows == 2
    assert len(teacher_server.bodies) == 3, "a local teacher may see both"


def test_no_key_in_any_file(
    teacher_server: Any,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    teacher_server.reply = lambda _: f"the key is {KEY}"
    behaviours = ["ok", "500", "ok", "401"]
    teacher_server.behave = lambda number, _: behaviours[min(number, 4) - 1]
    made = config(teacher_server, write_rows(9), teacher={"key_env": "MY_KEY", "concurrency": 1})
    with pytest.raises(SynthesisError) as error:
        run(made, tmp_path / "out")
    assert KEY in teacher_server.headers[0]["authorization"]
    assert KEY not in str(error.value)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"journal.db", "rejected.jsonl", "account.json"} <= {path.name for path in files}
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


CHILD = """
import json, pathlib, sys
from medloupe.synthesis.config import SynthesisConfig
from medloupe.synthesis.pipeline import synthesize
made = SynthesisConfig.from_yaml(pathlib.Path(sys.argv[1]))
print("begun", flush=True)
synthesize(made, pathlib.Path(sys.argv[2]), agree=lambda e: True, progress=lambda *_: None)
"""


def test_ten_kills_lose_nothing_and_pay_for_nothing_twice(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    """The child is killed when a drawn number of requests has come: in the middle of others."""
    drawn = random.Random(7)
    total, at_once = 80, 4
    ways = ["ok"] * 7 + ["500", "429", "short_body", "refusal", "cut_json"]
    kill_at = 0
    child: subprocess.Popen[bytes] | None = None

    def behave(number: int, body: dict[str, Any]) -> str:
        if number >= kill_at and child is not None:
            child.kill()
        return drawn.choice(ways)

    teacher_server.behave = behave
    out, path = tmp_path / "out", tmp_path / "config.yaml"
    made = config(teacher_server, write_rows(total), teacher={"concurrency": at_once})
    path.write_text(made.to_yaml())
    kills = 0
    while kills < 10:
        kill_at = len(teacher_server.bodies) + drawn.randint(1, 5)
        command = [sys.executable, "-c", CHILD, str(path), str(out)]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
        assert child.wait(120) == -signal.SIGKILL, "the run ended before its tenth kill"
        kills += 1
    child = None
    account = run(made, out)
    accepted = outcomes(out, total)
    assert account.accepted == sum(accepted.values())
    assert account.unanswered == 0
    journalled = query(out, "SELECT id, COUNT(*) FROM answers GROUP BY id")
    assert all(number == 1 for _, number in journalled)
    states = dict(query(out, "SELECT state, COUNT(*) FROM requests GROUP BY state"))
    assert states["answered"] == len(journalled)
    assert "open" not in states
    # An answer was sent twice only where a kill came between its sending and the journal.
    repeated = sum(number - 1 for number in teacher_server.answers.values())
    assert repeated <= states["lost"] <= kills * at_once
    per_row = Counter(name for (name,) in query(out, "SELECT id FROM requests WHERE state='lost'"))
    assert sum(per_row.values()) == states["lost"]
    again = run(made, out)
    assert again == account, "a finished run is judged again to the same end, and asks nothing"


def test_a_kill_while_judging_leaves_the_same_files(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    made, out = config(teacher_server, write_rows(8)), tmp_path / "out"

    class KillError(BaseException):
        pass

    def progress(what: str, done: int, total: int) -> None:
        if what == "judge" and done == 5:
            raise KillError

    with pytest.raises(KillError):
        run(made, out, progress=progress)
    assert not (out / "conversations.jsonl").exists()
    assert not list(out.glob(".*.tmp"))
    (out / ".llava.json.1.tmp").write_text("left by a kill")
    run(made, out)
    assert not list(out.glob(".*.tmp"))
    files = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".jsonl", ".json")}
    run(made, tmp_path / "whole")
    assert len(teacher_server.bodies) == 16
    for name, data in files.items():
        assert (tmp_path / "whole" / name).read_bytes() == data, name


def test_memory_does_not_grow_with_the_rows(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    """Survey and judging of ten times as many answered rows peak at the same height."""
    answer = Answer(text=teacher_server.reply("x"), model="m", prompt_tokens=1, completion_tokens=1)

    def peak(number: int) -> int:
        rows = write_rows(number, f"{number}.jsonl")
        made = config(teacher_server, rows, filters=["turns", "duplicates"])
        out = tmp_path / f"out{number}"
        estimated(made, out)
        with Journal(out) as journal:
            for place, row in enumerate(made.source.rows()):
                text = teacher_server.reply(row.id)
                said = answer.model_copy(update={"text": text})
                journal.answered(journal.begin(place, row.id, "m", Use()), said, Use())
        tracemalloc.start()
        assert run(made, out).accepted == number
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    peak(5)
    assert peak(600) < 1.2 * peak(60) + 100_000
    assert not teacher_server.bodies


def test_a_data_set_of_another_making_is_not_written_over(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "dataset.json").write_text('{"name": "theirs"}')
    (theirs / "records.jsonl").write_text("")
    before = sorted(theirs.iterdir())
    with pytest.raises(ConfigError, match="a data set that synthesize has not written"):
        run(config(teacher_server, write_rows(2)), theirs)
    assert sorted(theirs.iterdir()) == before
    assert not teacher_server.bodies


@pytest.mark.parametrize("out", [".", "source", "source/rows.jsonl"])
def test_the_source_is_not_written_over(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path, out: str
) -> None:
    (tmp_path / "source").mkdir()
    rows = write_rows(2, "source/rows.jsonl")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="the source lies in the folder"):
        run(config(teacher_server, rows), tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_limit_of_cost_needs_prices(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows, limits = write_rows(2), {"cost": 1.0}
    away = config(teacher_server, rows, limits=limits, teacher={"local": False})
    with pytest.raises(ConfigError, match="needs the price of teacher 'm'") as error:
        run(away, tmp_path / "out")
    assert error.value.fault.field == "teachers.0.price"
    assert not teacher_server.bodies
    assert run(config(teacher_server, rows, limits=limits), tmp_path / "out").accepted == 2


def test_auto_says_which_set_was_used_for_a_row(
    teacher_server: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    run(config(teacher_server, write_rows(1)), tmp_path / "out")
    used = prompt_set("caption")
    assert isinstance(used, FilePrompts)
    dataset = load_dataset(tmp_path / "out")
    stated = dataset.conversations[0].attributes
    assert (stated["prompt_hash"], stated["few_shot"]) == (used.hash, "caption_en")
    (body,) = teacher_server.bodies
    assert body["response_format"]["json_schema"]["schema"] == used.schema()
    assert dataset.card.notes[1] == f"prompt set auto, hash {prompt_set('auto').hash}"


def test_nothing_counts_as_local_on_a_cluster_elsewhere(
    teacher_server: Any,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    source = {"path": str(write_rows(2)), "access": "not public"}
    made = config(teacher_server, tmp_path, source=source, teacher={"local": True})
    cluster = {"engine": "ray", "address": "ray://8.8.8.8:10001"}
    with pytest.raises(SynthesisError, match="may not be sent to 'm', which is not on"):
        run(made, tmp_path / "out", **cluster)
    held = tmp_path / "held.jsonl"
    held.write_text('{"id": "a", "text": "Seen by Dr. Miller."}\n')
    found: list[Estimate] = []
    with pytest.raises(SynthesisError, match="none of 1 rows was accepted"):
        run(config(teacher_server, held), tmp_path / "held", agree=found.append, **cluster)
    (rejected,) = read(tmp_path / "held" / "rejected.jsonl")
    assert rejected["rejections"][0]["filter"] == "guard"
    assert not teacher_server.bodies


@pytest.mark.parametrize("name", ["account.json", "synthesis.yaml", "dataset.json"])
def test_small_files_are_written_whole_or_not_at_all(
    teacher_server: Any,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    made, out = config(teacher_server, write_rows(2)), tmp_path / "out"
    run(made, out)
    before = (out / name).read_bytes()

    def cut(path: Path, lines: list[str]) -> None:
        write_lines(path, [line[:5] for line in lines])
        if name in path.name:
            raise OSError("no space left")

    monkeypatch.setattr("medloupe.synthesis.judging.write_lines", cut)
    with pytest.raises(OSError, match="no space left"):
        run(made, out)
    assert not list(out.glob(".*.tmp"))
    if name != "dataset.json":  # the card goes first and comes last
        assert (out / name).read_bytes() == before
    monkeypatch.undo()
    run(made, out)
    assert (out / name).read_bytes() == before
