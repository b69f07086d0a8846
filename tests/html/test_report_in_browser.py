"""The report in a real browser: on a phone, under its controls, and on paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from medloupe.data.dataset import DatasetCard
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.report import render_report
from medloupe.evaluate.runner import rescore
from medloupe.types import Box, EvalLog, EvalRow, ImageRef

Drive = Callable[..., Any]
TRUTH = Box(label="nodule", x1=4, y1=4, x2=20, y2=20)
LONG = "An-answer-without-any-place-to-break-it-" * 6


def row(number: int) -> EvalRow:
    """Every second answer is wrong; the last row got none."""
    boxed = number % 3 == 0
    said = TRUTH.model_copy(update={"x1": 5.0, "score": 0.5 + number / 100})
    return EvalRow.parse(
        {
            "id": f"r{number}",
            "patient_id": f"p{number}",
            "task": "a kind of question with a rather long name" if boxed else "presence",
            "template": "",
            "answer_type": "box" if boxed else "closed",
            "images": (ImageRef(uri="a.png"), ImageRef(uri="b.png"))[: 1 + number % 2],
            "question": "Where is the nodule?" if boxed else f"Is there a mass {number}?",
            "truth": "" if boxed else "yes",
            "truth_boxes": (TRUTH,) if boxed else (),
            "prediction": LONG if number == 4 else "yes" if number % 2 else "no",
            "predicted_boxes": (said,) if boxed else (),
            "options": () if boxed else ("yes", "no"),
            "option_probs": () if boxed else (0.5 + number / 100, 0.5 - number / 100),
            "confidence": 0.5 + number / 100,
            "error": "no answer within 60 s" if number == 23 else "",
            "others": {
                "blank": {"text": "no"},
                "negated": {
                    "text": "yes",
                    "question": "Is it true that there is no mass?",
                    "truth": "no",
                },
            },
            "attributes": {"plane": "axial" if number % 4 else "coronal"},
        }
    )


@pytest.fixture(scope="module")
def page() -> str:
    manifest = {
        "benchmark": Benchmark(name="few", resamples=100).to_dict(),
        "dataset": DatasetCard(name="few").to_dict(),
        "rows_digest": "0",
        "evaluation_seed": 0,
        "checkpoint": "a/very/long/path/" * 8,
    }
    rows = tuple(row(number) for number in range(24))
    log = rescore(EvalLog(benchmark="few", version="v", manifest=manifest, rows=rows))
    grey = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    curve = [{"step": n, "loss": 1 / (n + 1)} for n in range(20)]
    return render_report(log, lambda _: grey, curve)


def test_nothing_is_wider_than_a_phone(page: str, drive: Drive) -> None:
    """Everything folded is opened, and a large card is one of the cards."""
    found = drive(
        page,
        """document.querySelectorAll("details").forEach((part) => { part.open = true; });
        document.querySelectorAll("[data-do=larger]")[1].click();
        const wide = Array.from(document.querySelectorAll("body *"))
          .filter((part) => !part.closest(".scroll, svg") && part.getBoundingClientRect().right > 390.5)
          .map((part) => part.outerHTML.slice(0, 200));
        return [innerWidth, document.documentElement.scrollWidth, wide];""",
    )
    assert found == [390, 390, []]


CASES: list[tuple[dict[str, str], list[int]]] = [
    ({}, list(range(24))),
    ({"group": "plane = coronal"}, list(range(0, 24, 4))),
    ({"task": "presence"}, [n for n in range(24) if n % 3]),
    ({"state": "error"}, [23]),
    ({"state": "wrong"}, [n for n in range(0, 24, 2) if n % 3]),
    ({"sought": "MASS r17"}, [17]),
    ({"sought": "60 s"}, [23]),
    (
        {"sought": "mass p1", "group": "plane = axial", "task": "presence"},
        [1, 10, 11, 13, 14, 17, 19],
    ),
    ({"sought": "nothing has this"}, []),
]


def test_filters_show_what_was_asked_for(page: str, drive: Drive) -> None:
    found = drive(
        page,
        f"""const cases = {json.dumps([fields for fields, _ in CASES])};"""
        """const form = document.getElementById("filters");
        const id = (card) => Array.from(card.querySelectorAll("dt"))
          .find((name) => name.textContent === "id").nextSibling.textContent;
        return cases.map((fields) => {
          form.reset();
          for (const [name, value] of Object.entries(fields)) {
            if (name === "state") form.elements.state.value = value;
            else document.getElementById(name).value = value;
          }
          form.dispatchEvent(new Event("input", { bubbles: true }));
          const shown = document.querySelectorAll(".card:not([hidden])");
          const counted = document.querySelector(".count[data-state='']").textContent;
          return [Array.from(shown, id), !document.getElementById("none").hidden,
            document.getElementById("found").textContent, Number(counted)];
        });""",
    )
    for (fields, wanted), (ids, none, said, counted) in zip(CASES, found, strict=True):
        assert sorted(ids) == sorted(f"r{n}" for n in wanted), fields
        assert none == (not wanted)
        assert said == ("" if len(wanted) == 24 else f"{len(wanted)} of 24 shown")
        assert counted == (24 if "state" in fields else len(wanted)), "outcomes count what is left"


def test_a_window_is_one_line_on_the_values_of_one_card(page: str, drive: Drive) -> None:
    found = drive(
        page,
        """const cards = document.querySelectorAll(".card");
        const fields = cards[2].querySelectorAll(".window input");
        const read = () => Array.from(document.querySelectorAll("#window-2 feFuncG"),
          (line) => [line.getAttribute("slope"), line.getAttribute("intercept")].map(Number));
        cards[2].querySelector(".window").open = true;
        fields[0].focus();
        const focused = document.activeElement === fields[0];
        fields[0].value = 25; fields[1].value = 50;
        fields[1].dispatchEvent(new Event("input", { bubbles: true }));
        const moved = read();
        cards[2].querySelector("[data-do=reset]").click();
        const uses = Array.from(cards, (card) =>
          Array.from(card.querySelectorAll("use")).every((use) => use.getAttribute("filter")));
        return [focused, moved, read(), uses.map(Number).reduce((a, b) => a + b), uses[2],
          document.querySelectorAll(".pictures rect[filter]").length];""",
    )
    # black at 25 - 50 / 2 = 0 %, white at 50 %: twice the value; then as it was
    assert found == [True, [[2, 0]], [[1, 0]], 1, True, 0]


def test_on_paper_there_are_the_tables_and_the_manifest_and_no_controls(
    page: str, printed: Callable[[str], str]
) -> None:
    text = printed(page)
    for said in ("Asked otherwise", "shown a blank image", "Does it know when it is right?",
                 "A probe asks only rows", "evaluation_seed", "no answer within 60 s"):  # fmt: skip
        assert said in text, said
    for control in ("find words", "window and size", "every kind of question", "as it was"):
        assert control not in text, control
