"""Groups by what rows say of themselves, and their difference to the rest."""

from __future__ import annotations

import numpy as np
import pytest
from made_logs import BENCHMARK, made_log, made_row

from medloupe.evaluate.metrics import MODEL, clusters_of, pools_of
from medloupe.evaluate.pools import Means
from medloupe.evaluate.significance import benjamini_hochberg, holm
from medloupe.evaluate.statistics import Estimate
from medloupe.evaluate.subgroups import (
    MOST_VALUES,
    NOT_RECORDED,
    OTHERS,
    Subgroup,
    groups_of,
    subgroups,
    unrecorded,
)
from medloupe.types import Box, EvalLog, EvalRow, ImageRef


def about(**attributes: str) -> EvalRow:
    return made_row(1, "yes", attributes=attributes)


def value(row: EvalRow, dimension: str, dataset: str = "") -> str:
    """The group of a row; another row that says nothing keeps the dimension."""
    silent = made_row(2, "yes", images=())
    (found,) = (
        name for name, ids in groups_of([row, silent], dataset)[dimension].items() if row.id in ids
    )
    return found


@pytest.mark.parametrize(
    ("said", "band"),
    [
        ("17", "under 18"),
        ("18", "18 to 39"),
        ("39.9", "18 to 39"),
        ("045Y", "40 to 59"),
        ("60 years", "60 to 79"),
        ("80", "80 and over"),
        ("018M", "under 18"),
        ("300W", "under 18"),
        ("45 y/o", "40 to 59"),
        ("adult", "not readable"),
        ("-5", "not readable"),
    ],
)
def test_ages(said: str, band: str) -> None:
    assert value(about(age=said), "age") == band


@pytest.mark.parametrize(
    ("attributes", "dimension", "dataset", "expected"),
    [
        ({"PatientSex": "m"}, "sex", "", "male"),
        ({"gender": "Male"}, "sex", "", "male"),
        ({"sex": "O"}, "sex", "", "O"),
        ({"sex": "  "}, "sex", "", NOT_RECORDED),
        ({"organ": "CHEST"}, "anatomy", "", "CHEST"),
        ({"location": "Abdomen"}, "anatomy", "slake", "Abdomen"),
        ({"institution": "A"}, "site", "", "A"),
        ({"lesion_size_mm": "12 x 9"}, "lesion size", "", "10 to 30 mm"),
        ({"lesion_width_percent": "3.9"}, "lesion size", "", "under 4 % of the width"),
        ({"lesion_width": "large"}, "lesion size", "", "not readable"),
    ],
)
def test_what_rows_say(
    attributes: dict[str, str], dimension: str, dataset: str, expected: str
) -> None:
    row, other = about(**attributes), made_row(3, "yes", attributes={"sex": "W"})
    found = groups_of([row, other, made_row(5, "yes")], dataset)[dimension]
    assert next(name for name, ids in found.items() if row.id in ids) == expected


def test_a_location_is_no_anatomy_elsewhere() -> None:
    assert "anatomy" not in groups_of([about(location="Hospital A"), made_row(2, "yes")])


def test_sizes_of_true_boxes() -> None:
    def sized(side: float, *mm: float) -> EvalRow:
        box = Box(label="", x1=0, y1=0, x2=side, y2=side, size_mm=mm)
        return made_row(1, "", answer_type="box", truth_boxes=(box,))

    assert value(sized(200, 9, 9.9), "lesion size") == "under 10 mm"
    assert value(sized(200, 9, 30), "lesion size") == "30 mm and over"
    assert value(sized(31), "lesion size") == "under 32² pixels"
    assert value(sized(96), "lesion size") == "96² pixels and over"


def test_modalities_of_all_images_together() -> None:
    pair = made_row(
        1, "", images=[ImageRef(uri=u, modality=m) for u, m in (("a", "PT"), ("b", "CT"))]
    )
    assert value(pair, "modality") == "CT + PT"


def test_dimensions_that_divide_nothing_are_left_out() -> None:
    alike = [made_row(n, "yes", attributes={"sex": "F"}) for n in (0, 2)]
    assert groups_of(alike) == {}
    assert unrecorded(alike) == ["anatomy", "age", "site", "lesion size"]


def test_rare_values_stand_together() -> None:
    rows = [made_row(n, "yes", attributes={"site": f"s{min(n % 20, n)}"}) for n in range(0, 80, 2)]
    rows += [made_row(200, "yes", attributes={"site": "s0"}), made_row(202, "yes")]
    found = groups_of(rows)["site"]
    assert len(found) == 10 + 1  # none is too rare here
    rows += [made_row(n, "yes", attributes={"site": f"t{n}"}) for n in range(300, 310)]
    found = groups_of(rows)["site"]
    assert next(iter(found)) == "s0"
    assert list(found)[-2:] == [OTHERS, NOT_RECORDED]
    assert len(found) == MOST_VALUES + 2
    assert len(found[OTHERS]) == 8
    assert sum(map(len, found.values())) == len(rows)


def one(log: EvalLog, value: str) -> Subgroup:
    (found,) = (group for group in subgroups(log) if group.value == value)
    return found


def log_of(wrong: set[int], number: int = 60) -> EvalLog:
    """Women in the first half; every fifth row says nothing of sex."""
    return made_log(
        made_row(
            n,
            "no" if n in wrong else "yes",
            images=(),
            attributes={} if n % 5 == 0 else {"sex": "F" if n < number // 2 else "M"},
        )
        for n in range(number)
    )


def test_a_group_against_the_rest() -> None:
    log = log_of(set(range(1, 30, 2)))  # of 24 women 12 wrong, of 24 men none, of the silent 3
    assert [(g.value, g.n) for g in subgroups(log)] == [
        ("female", 24),
        ("male", 24),
        (NOT_RECORDED, 12),
    ]
    women, men = one(log, "female"), one(log, "male")
    assert women.score.estimate == 0.5
    assert women.difference.estimate == pytest.approx(12 / 24 - 33 / 36)
    assert men.difference.estimate == pytest.approx(1 - 21 / 36)
    assert women.p is not None
    assert women.p < 0.01
    found = subgroups(log)
    assert [g.holm for g in found] == holm([g.p for g in found])
    assert [g.q for g in found] == benjamini_hochberg([g.p for g in found])
    assert men.p is not None
    assert (men.holm, women.holm) == pytest.approx((3 * men.p, 2 * women.p))
    assert women.difference.high is not None
    assert women.difference.high < 0
    assert women.patients == 24


def test_unscored_rows_of_a_group_are_counted() -> None:
    log = log_of(set())
    rows = [
        row.model_copy(update={"error": "no image"}) if row.id == "r0001" else row
        for row in log.rows
    ]
    found = one(made_log(rows), "female")
    assert (found.n, found.unscored, found.score.estimate) == (23, 1, 1.0)


def test_groups_of_few_patients_are_shown_and_not_tested() -> None:
    rows = [made_row(n, "yes", images=(), attributes={"sex": "F"}) for n in range(9)]
    rows += [made_row(n, "no", images=(), attributes={"sex": "M"}) for n in range(9, 40)]
    found = one(made_log(rows), "female")
    assert (found.n, found.p, found.holm) == (9, None, None)
    assert found.difference.estimate == 1.0
    assert "fewer than 10 patients" in found.note


def test_a_patient_on_both_sides_is_drawn_with_both() -> None:
    """Each patient has a CT and an MR, right together or wrong together: the difference is 0 for sure."""
    rows = [
        made_row(
            2 * n + k,
            "yes" if n < 15 else "no",
            patient_id=f"p{n}",
            images=(ImageRef(uri=f"{n}{k}", modality=("CT", "MR")[k]),),
        )
        for n in range(30)
        for k in range(2)
    ]
    found = one(made_log(rows), "CT")
    assert found.difference == Estimate(0.0, 0.0, 0.0)
    assert (found.p, found.visible) == (1.0, None)
    assert found.score.low is not None
    assert found.score.low < 0.4


def test_the_interval_is_that_of_patients_drawn_by_hand() -> None:
    log = log_of({1, 3, 4, 8, 33})
    pools, numbers = pools_of(log.rows, log.scores, BENCHMARK, 5), clusters_of(log.rows)
    inside = [(row.id, MODEL) for row in log.rows[:20]]
    outside = [(row.id, MODEL) for row in log.rows[20:]]
    members = np.array([numbers[row.id] for row in log.rows])
    found = pools["closed_accuracy.strict"].contrasted(inside, outside, members)
    values = np.array([0.0 if n in {1, 3, 4, 8, 33} else 1.0 for n in range(60)])
    drawn = np.random.default_rng(5).integers(0, 60, size=(200, 60))
    gaps = [values[d[d < 20]].mean() - values[d[d >= 20]].mean() for d in drawn]
    expected = np.quantile(gaps, [0.025, 0.975])
    assert (found.difference.low, found.difference.high) == pytest.approx(
        tuple(expected), abs=1e-12
    )
    assert found.visible == pytest.approx(2.801585 * np.std(gaps, ddof=1), rel=1e-9)


def test_where_nothing_differs_one_test_in_twenty_is_significant() -> None:
    rng = np.random.default_rng(4)
    finds = 0
    for _ in range(250):
        patients = rng.random(40) < 0.5
        values = {
            (f"{n}", MODEL): float(rng.random() < (0.8 if patients[n // 3] else 0.4))
            for n in range(120)
        }
        pool = Means(values=values, resamples=50, seed=1)
        places = list(values)
        tested = pool.contrasted(places[:45], places[45:], np.arange(120) // 3)
        assert tested.p is not None
        finds += tested.p < 0.05
    assert finds / 250 == pytest.approx(0.05, abs=0.035)
