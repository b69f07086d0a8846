"""A model behind chat completions, in the place of ours: the real protocol over a real socket."""

from __future__ import annotations

import base64
import io
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import Server, serving
from PIL import Image

from medloupe.data.dataset import Dataset
from medloupe.errors import ConfigError, ImageError, MedLoupeError, MissingExtraError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.predictors.endpoint import (
    EndpointConfig,
    EndpointError,
    EndpointPredictor,
    first_token_shares,
)
from medloupe.evaluate.resume import Answers
from medloupe.evaluate.runner import run_benchmark
from medloupe.imaging.read import read_ref
from medloupe.imaging.windows import Window, settled, to_display
from medloupe.types import Box, Conversation, Generation, ImageRef, Message, Text

pytest.importorskip("httpx", reason='needs httpx: pip install "medloupe[synthesis]"')


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 60), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = np.random.default_rng(1).normal(0, 300, (7, 20, 24)).astype(np.float32)
    np.save(tmp_path / "v.npy", volume)
    return tmp_path


def predictor(server: Server, root: Path, **fields: Any) -> EndpointPredictor:
    given = {"url": server.url, "model": "other", "backoff": 0, **fields}
    return EndpointPredictor(EndpointConfig.parse(given), root)


def ask(name: str, *parts: Any, **fields: Any) -> Conversation:
    content = tuple(Text(text=part) if isinstance(part, str) else part for part in parts)
    return Conversation(id=name, messages=(Message(role="user", content=content),), **fields)


A = ImageRef(uri="a.png")
V = ImageRef(uri="v.npy", kind="volume", modality="CT")


def silent(what: str, done: int, total: int) -> None:
    pass


def heard_of(predict: EndpointPredictor, rows: list[Conversation]) -> dict[int, Any]:
    heard: dict[int, Generation | MedLoupeError] = {}
    predict.answer_each(rows, heard.__setitem__, progress=silent)
    return heard


def picture(part: dict[str, Any]) -> np.ndarray:
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_what_is_sent_is_the_protocol_with_our_pixels(server: Server, root: Path) -> None:
    row = ask("a", A, "Is there a mass?")
    told = Message(role="assistant", content=(Text(text="yes"),))
    answered = row.model_copy(update={"messages": (*row.messages, told)})
    predictor(server, root, system="Be brief.", extra={"seed": 3})([answered], progress=silent)
    (body,) = server.bodies
    assert {k: v for k, v in body.items() if k != "messages"} == {
        "model": "other",
        "temperature": 0.0,
        "max_tokens": 64,
        "logprobs": True,
        "top_logprobs": 20,
        "seed": 3,
    }
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    image, text = user["content"]
    assert text == {"type": "text", "text": "Is there a mass?"}
    assert np.array_equal(picture(image), to_display(read_ref(A, root)))


def test_a_window_is_applied_before_anything_is_sent(server: Server, root: Path) -> None:
    slice_ = V.model_copy(update={"kind": "image", "frame": 2})
    window = {"mode": "custom", "centre": 40, "width": 400}
    predictor(server, root, window=window)([ask("a", slice_, "Plane?")], progress=silent)
    sent = picture(server.bodies[0]["messages"][0]["content"][0])
    hu = np.load(root / "v.npy")[2]
    # PS3.3 C.11.2.1.2.1, by hand
    shown = np.clip(((hu - 39.5) / 399 + 0.5) * 255, 0, 255)
    assert np.abs(sent - shown).max() <= 0.51


def test_text_alone_is_a_plain_string_and_large_pictures_shrink(server: Server, root: Path) -> None:
    predict = predictor(server, root, longest=30)
    predict([ask("t", "What is a mass?")], progress=silent)
    predict([ask("a", A, "Mass?")], progress=silent)
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "What is a mass?"}]
    assert picture(server.bodies[1]["messages"][0]["content"][0]).shape == (15, 30)


def test_boxes_are_shares_of_the_picture(server: Server, root: Path) -> None:
    server.reply = lambda _: ("a mass {<50><0><100><50>}", [])
    box = Box(label="mass", x1=15, y1=15, x2=30, y2=30)
    (said,) = predictor(server, root, longest=20)([ask("a", A, "Is ", box, "?")], progress=silent)
    assert server.bodies[0]["messages"][0]["content"][1]["text"] == "Is {<25><50><50><100>}?"
    (found,) = said.boxes
    assert (found.x1, found.y1, found.x2, found.y2) == (30, 0, 60, 15)
    assert found.label == "a mass"


def test_a_volume_is_a_montage_or_its_slices_and_says_so(server: Server, root: Path) -> None:
    row = ask("v", V, "Effusion?")
    predictor(server, root, slices=5)([row], progress=silent)
    predictor(server, root, slices=3, volumes="slices")([row], progress=silent)
    montage, slices = (body["messages"][0]["content"] for body in server.bodies)
    volume = read_ref(V, root)
    window = settled(volume, Window())
    assert montage[0]["text"].startswith("5 of the 7 slices of a volume")
    whole = picture(montage[1])
    assert whole.shape == (2 * 20, 3 * 24)
    assert np.array_equal(whole[:20, :24], to_display(volume, window, index=0))
    assert np.array_equal(whole[20:, 24:48], to_display(volume, window, index=6))
    assert not whole[20:, 48:].any()
    assert [part["type"] for part in slices] == ["text", *["image_url"] * 3, "text"]
    assert np.array_equal(picture(slices[2]), to_display(volume, window, index=3))
    heard = heard_of(predictor(server, root, volumes="refuse"), [row, ask("a", A, "Mass?")])
    assert isinstance(heard[0], ImageError)
    assert isinstance(heard[1], Generation)


def token(text: str, log_prob: float, **others: float) -> dict[str, Any]:
    top = [{"token": name, "logprob": value} for name, value in others.items()]
    return {"token": text, "logprob": log_prob, "top_logprobs": top}


def test_confidence_and_option_probabilities_come_from_logprobs(server: Server, root: Path) -> None:
    first = token("Yes", -0.5, Yes=-0.5, no=-1.5, yes=-2.5, maybe=-3.0)
    server.reply = lambda _: ("Yes.", [first, token(".", -0.25)])
    row = ask("a", A, "Mass?", options=("yes", "no"))
    (said,) = predictor(server, root)([row], progress=silent)
    assert said.confidence == pytest.approx(math.exp(-0.75))
    yes, no = math.exp(-0.5) + math.exp(-2.5), math.exp(-1.5)
    assert said.option_probs == pytest.approx((yes / (yes + no), no / (yes + no)))


def test_first_tokens_that_tell_no_options_apart_give_nothing() -> None:
    assert first_token_shares(("left lung", "left kidney"), {" left": -0.1}) == ()
    assert first_token_shares(("yes", "no"), {"The": -0.1, "": -1.0}) == ()
    assert first_token_shares((), {"yes": -0.1}) == ()
    assert first_token_shares(("yes", "no"), {"y": 0.0}) == (1.0, 0.0)


def test_an_endpoint_that_knows_no_logprobs_is_asked_without(server: Server, root: Path) -> None:
    server.behave = lambda *_: "no_logprobs"
    predict = predictor(server, root, concurrency=1, attempts=1)
    said = predict([ask(f"{n}", A, f"Mass {n}?") for n in range(3)], progress=silent)
    assert [one.text for one in said] == ["yes"] * 3
    assert all(one.confidence is None and one.option_probs == () for one in said)
    assert len(server.bodies) == 4  # found out once


@pytest.mark.parametrize("how", ["429", "500", "cut", "html", "error_body", "empty"])
def test_what_may_pass_is_tried_again(server: Server, root: Path, how: str) -> None:
    server.behave = lambda number, _: how if number < 3 else "ok"
    (said,) = predictor(server, root)([ask("a", A, "Mass?")], progress=silent)
    assert said.text == "yes"
    assert len(server.bodies) == 3


def test_rows_that_fail_are_told_and_the_others_answered(server: Server, root: Path) -> None:
    ways = {"bad": "400", "filter": "filtered", "no": "refused", "slow": "hang", "busy": "429"}
    server.behave = lambda _, body: ways.get(str(body["messages"][0]["content"]), "ok")
    rows = [ask(name, name) for name in (*ways, "good")] + [ask("gone", ImageRef(uri="b.png"))]
    predict = predictor(server, root, attempts=2, timeout=0.3, concurrency=3)
    heard = heard_of(predict, rows)
    told = {
        rows[n].id: str(answer) for n, answer in heard.items() if isinstance(answer, MedLoupeError)
    }
    assert set(told) == {*ways, "gone"}
    assert "HTTP 400" in told["bad"]
    assert "content filter" in told["filter"]
    assert "I cannot look at this" in told["no"]
    assert "2 attempts: nothing came within 0.3 s" in told["slow"]
    assert "2 attempts: HTTP 429" in told["busy"]
    assert "no such image" in told["gone"]
    assert all(f"row '{name}'" in text for name, text in told.items())
    tries = [str(body["messages"][0]["content"]) for body in server.bodies]
    assert tries.count("bad") == tries.count("filter") == 1
    assert tries.count("busy") == 2
    assert server.most_open <= 3


def test_a_refused_key_ends_it_and_is_never_shown(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-secret")
    server.behave = lambda *_: "401"
    predict = predictor(server, root, key_env="OTHER_KEY")
    with pytest.raises(EndpointError, match=r"HTTP 401.*\[key\]") as caught:
        heard_of(predict, [ask(f"{n}", "Mass?") for n in range(40)])
    assert "secret" not in str(caught.value)
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert len(server.bodies) < 40
    monkeypatch.delenv("OTHER_KEY")
    with pytest.raises(ConfigError, match="OTHER_KEY is not set"):
        predictor(server, root, key_env="OTHER_KEY")


def test_an_endpoint_that_is_gone_ends_it_after_a_few_rows(server: Server, root: Path) -> None:
    server.behave = lambda *_: "500"
    heard: dict[int, Any] = {}
    predict = predictor(server, root, attempts=2, concurrency=1, give_up_after=3)
    rows = [ask(f"{n}", f"Mass {n}?") for n in range(40)]
    with pytest.raises(EndpointError, match="3 rows in a row"):
        predict.answer_each(rows, heard.__setitem__, progress=silent)
    assert len(heard) == 2
    assert len(server.bodies) <= 2 * 6


def test_answers_that_came_are_told_though_one_row_ends_it(server: Server, root: Path) -> None:
    together = threading.Barrier(8)

    def refuse_one(number: int, body: dict[str, Any]) -> str:
        together.wait(10)  # all are open before any is answered
        return "401" if body["messages"][0]["content"] == "Mass 3?" else "ok"

    server.behave = refuse_one
    heard: dict[int, Any] = {}
    rows = [ask(f"{n}", f"Mass {n}?") for n in range(8)]
    with pytest.raises(EndpointError, match="HTTP 401"):
        predictor(server, root, concurrency=8).answer_each(rows, heard.__setitem__, progress=silent)
    assert sorted(heard) == [0, 1, 2, 4, 5, 6, 7]
    assert all(isinstance(answer, Generation) for answer in heard.values())


def test_an_interruption_keeps_what_is_open(server: Server, root: Path) -> None:
    together = threading.Barrier(4)
    interrupted = threading.Event()

    def slow(number: int, body: dict[str, Any]) -> str:
        if body["messages"][0]["content"] != "Mass 0?":
            together.wait(10)
            interrupted.wait(10)
        return "ok"

    def interrupt(what: str, done: int, total: int) -> None:
        together.wait(10)
        interrupted.set()
        raise KeyboardInterrupt

    server.behave = slow
    heard: dict[int, Any] = {}
    rows = [ask(f"{n}", f"Mass {n}?") for n in range(4)]
    with pytest.raises(KeyboardInterrupt):
        predictor(server, root, concurrency=4).answer_each(
            rows, heard.__setitem__, progress=interrupt
        )
    assert sorted(heard) == [0, 1, 2, 3]


def test_who_cannot_hear_is_told_once(server: Server, root: Path) -> None:
    told: list[int] = []

    def deaf(number: int, answer: Any) -> None:
        told.append(number)
        raise OSError("the disk is full")

    rows = [ask(f"{n}", f"Mass {n}?") for n in range(4)]
    with pytest.raises(OSError, match="full"):
        predictor(server, root, concurrency=4).answer_each(rows, deaf, progress=silent)
    assert len(told) == 1


def test_a_benchmark_is_asked_of_it_and_goes_on_after_it_was_gone(
    server: Server, squares: Dataset, tmp_path: Path
) -> None:
    benchmark = Benchmark(name="squares", tasks=("presence",), resamples=100)
    config = {"attempts": 1, "concurrency": 1, "give_up_after": 1}
    server.behave = lambda number, _: "ok" if number <= 10 else "500"
    path = tmp_path / "answers.jsonl"

    def evaluate() -> Any:
        predict = predictor(server, squares.root, **config)
        with Answers(path, model=predict.config.identity(), root=squares.root) as answers:
            return run_benchmark(
                benchmark,
                squares,
                predict,
                manifest={},
                seed=5,
                look=predict.images,
                answers=answers,
            )

    with pytest.raises(EndpointError, match="--resume"):
        evaluate()
    server.behave = lambda *_: "ok"
    log = evaluate()
    assert [row.prediction for row in log.rows] == ["yes"] * len(log.rows)
    asked = 2 * len(log.rows)  # with and without the right image
    assert len(server.bodies) == asked + 1  # the one that failed
    assert {metric.arm for metric in log.metrics} >= {"model", "swapped", "difference"}


def test_the_identity_leaves_out_what_the_model_cannot_see() -> None:
    one = EndpointConfig(url="http://a/v1", model="m")
    assert one.identity() == EndpointConfig(url="http://b/v1/", model="m", concurrency=2).identity()
    assert one.identity() != EndpointConfig(url="http://a/v1", model="m", slices=2).identity()
    assert EndpointConfig(url="http://a/v1/chat/completions", model="m").url == "http://a/v1"
    for bad in ({"url": "http://u:p@a/v1"}, {"url": "a"}, {"key_env": "sk-12 3"}):
        with pytest.raises(ConfigError) as caught:
            EndpointConfig.parse({"url": "http://a", "model": "m", **bad})
        assert "12 3" not in str(caught.value)


def test_without_httpx_the_pip_line_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        EndpointPredictor(EndpointConfig(url="http://a/v1", model="m"), root)
