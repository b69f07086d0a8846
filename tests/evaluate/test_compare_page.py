"""The page of two runs: whole, self-contained, and with what was left out."""

from __future__ import annotations

import re

import numpy as np
from made_logs import BENCHMARK, answers, made_log, made_row
from numpy.typing import NDArray

from medloupe.errors import ImageError
from medloupe.evaluate.paired import compare_logs
from medloupe.evaluate.report.compare import render_comparison
from medloupe.types import Box, EvalLog, ImageRef


def shown(ref: ImageRef) -> NDArray[np.uint8]:
    """Every third image cannot be read."""
    if int(ref.uri.removesuffix(".png")) % 3 == 0:
        raise ImageError("no such file", file=ref.uri)
    return np.full((16, 16), 90, dtype=np.uint8)


def runs() -> dict[str, EvalLog]:
    first = made_log(answers(40, lambda n: n < 10), seeds={"run": 1}, model="<i>one</i>")
    second = made_log(answers(39, lambda n: n >= 5), seeds={"run": 2}, model="two")
    return {"one": first, "two": second}


def test_the_page_of_two_runs() -> None:
    logs = runs()
    found = compare_logs(*logs.values(), names=("one", "two"))
    page = render_comparison(logs, [found], shown, samples=12)
    assert "<i>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "39 questions in common. Of 2 tests two is better in 2" in page
    assert "Left out: 1 row, only in one (r0039)" in page
    assert "6 of 29, the largest differences first" in page
    assert "5 of 5, the largest differences first" in page
    assert page.count('<article class="card">') == 11
    assert "This image could not be read" in page
    assert page.count("<image ") + page.count("could not be read") == 11
    assert "two differs from one in 2 places" in page
    assert "<td>seeds.run</td><td>1</td><td>2</td>" in page
    assert page.count('<tr class="found">') == 4  # two scorers; CT and MR under the first


def test_where_lower_is_better_the_page_says_so() -> None:
    benchmark = BENCHMARK.with_overrides(["scorers.closed=[closed_accuracy.strict, brier.binary]"])
    logs = {
        name: made_log(answers(60, lambda _: True, option_probs=probs), benchmark, model=name)
        for name, probs in (("one", (0.6, 0.4)), ("two", (0.9, 0.1)))
    }
    page = render_comparison(logs, [compare_logs(*logs.values(), names=("one", "two"))], shown)
    assert "<th>difference, 95 % interval</th>" in page
    assert "two differs from one in 1 place<" in page
    assert page.count("lower is better") == 1
    (line,) = (line for line in page.split("<tr") if "<td>lower is better</td>" in line)
    assert "<td>brier.binary</td>" in line
    assert line.startswith(' class="found"')


def test_equal_runs_have_nothing_to_show() -> None:
    log = runs()["one"]
    found = compare_logs(log, log, names=("one", "again"))
    page = render_comparison({"one": log, "again": log}, [found], shown)
    assert "again is better in 0 and one in 0" in page
    assert "<article" not in page
    assert "again differs from one in 0 places" in page


def test_boxes_stand_for_answers_without_words() -> None:
    box = Box(label="", x1=0, y1=0, x2=8, y2=8)
    truths = {"answer_type": "box", "truth": "", "options": (), "truth_boxes": (box, box)}
    logs = {
        name: made_log([made_row(n, "", **truths, predicted_boxes=boxes) for n in range(1, 3)])
        for name, boxes in (("one", (box,)), ("two", (box, box)), ("none", ()))
    }
    compared = [compare_logs(logs["one"], logs[name], names=("one", name)) for name in logs][1:]
    page = render_comparison(logs, compared, shown)
    assert page.count("<dd>2 boxes</dd>") == 4  # the truth of two questions in two comparisons
    assert page.count("<dd>1 box (0.50)</dd>") == 4
    assert page.count("<dd>2 boxes (1.00)</dd>") == 2
    assert page.count("<dd>(nothing) (0.00)</dd>") == 2
