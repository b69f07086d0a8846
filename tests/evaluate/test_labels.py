"""Sets of labels: how an answer is read, and the four averages by hand and by scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import classification_report

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import MODEL, find_metric, pool_of, score_rows, summarise
from medloupe.evaluate.pools import Place
from medloupe.evaluate.scorers.base import Scorer
from medloupe.evaluate.scorers.labels import AVERAGES, LabelScorer, affirmed
from medloupe.evaluate.statistics import Clustered, Estimate, resampled_scores
from medloupe.types import Answer, EvalRow

CHEST = ("Cardiomegaly", "Pleural effusion", "ILD", "Nodule/Mass", "Edema")
GLOBAL = ("COPD", "Pneumonia", "No finding")
LUNGS = ("胸腔积液", "气胸", "心影增大")


def row(truth: str, prediction: str, options: tuple[str, ...] = CHEST, **fields: object) -> EvalRow:
    return EvalRow.parse(
        {
            "id": "r1",
            "patient_id": "p1",
            "task": "identify",
            "template": "",
            "answer_type": "open",
            "images": (),
            "question": "?",
            "truth": truth,
            "prediction": prediction,
            "options": options,
            **fields,
        }
    )


def scorer(name: str, **fields: object) -> LabelScorer:
    found = Scorer.parse({"name": name, **fields})
    assert isinstance(found, LabelScorer)
    return found


def score(name: str, rows: list[EvalRow], **fields: object) -> float:
    return float(scorer(name, **fields).collect(rows).score(np.ones((1, len(rows)), np.int64))[0])


@pytest.mark.parametrize(
    ("text", "labels", "strict", "litegpt"),
    [
        ("Cardiomegaly, Pleural effusion", CHEST, "Cardiomegaly|Pleural effusion", None),
        ("There is a mild edema.", CHEST, "Edema", "ILD|Edema"),
        ("No finding", CHEST, "", None),
        ("", CHEST, "", None),
        ("No finding", GLOBAL, "No finding", None),
        ("No finding, Pneumonia", GLOBAL, "No finding|Pneumonia", None),
        ("No edema. Cardiomegaly", CHEST, "Cardiomegaly", "Cardiomegaly|Edema"),
        ("no edema, ILD or pleural effusion", CHEST, "", "Edema|ILD|Pleural effusion"),
        ("No edema, but cardiomegaly", CHEST, "Cardiomegaly", "Cardiomegaly|Edema"),
        ("Cardiomegaly without edema", CHEST, "Cardiomegaly", "Cardiomegaly|Edema"),
        ("Edema is not clearly seen; ILD", CHEST, "ILD", "Edema|ILD"),
        ("Edema: no\nILD: yes", CHEST, "ILD", "Edema|ILD"),
        ("no change in the pleural effusion", CHEST, "Pleural effusion", None),
        ("edema cannot be excluded", CHEST, "Edema", None),
        ("No edema on the left. Edema on the right.", CHEST, "Edema", None),
        ("<p>Nodule/Mass</p> {<1><2><3><4>}", CHEST, "Nodule/Mass", None),
        # Tags go, and what is in them with them.
        ("<Edema>", CHEST, "Edema", ""),
        ("未见胸腔积液、气胸，心影增大", LUNGS, "心影增大", "胸腔积液|气胸|心影增大"),
        ("心影增大，无气胸", LUNGS, "心影增大", "气胸|心影增大"),
        ("胸腔积液较前无明显变化", LUNGS, "胸腔积液", None),
    ],
)
def test_how_an_answer_is_read(
    text: str, labels: tuple[str, ...], strict: str, litegpt: str | None
) -> None:
    wanted = {name for name in strict.split("|") if name}
    assert affirmed(text, labels) == wanted
    loosely = wanted if litegpt is None else {name for name in litegpt.split("|") if name}
    assert scorer("label_f1_macro.litegpt").named(text, labels) == loosely


BY_HAND = [
    row("A", "A", ("A", "B", "C")),
    row("A, B", "B and C", ("A", "B", "C")),
    row("No finding", "none", ("A", "B", "C")),
]


@pytest.mark.parametrize(
    ("average", "precision", "recall", "f1"),
    [
        # True positives 1, 1, 0; said 1, 1, 1; true 2, 1, 0.
        ("micro", 2 / 3, 2 / 3, 2 / 3),
        ("macro", 2 / 3, 1 / 2, 5 / 9),
        ("weighted", 1.0, 2 / 3, 7 / 9),
        # The row without labels counts as 0, as in scikit-learn.
        ("samples", 1 / 2, 1 / 2, 1 / 2),
    ],
)
def test_the_averages_by_hand(average: str, precision: float, recall: float, f1: float) -> None:
    for figure, value in (("precision", precision), ("recall", recall), ("f1", f1)):
        name = f"label_{figure}_{average}"
        assert score(f"{name}.strict", BY_HAND) == pytest.approx(value, abs=1e-12)


def test_a_row_shows_the_f1_of_its_sets_and_what_is_wrong() -> None:
    judged = [scorer("label_f1_macro.strict").judge(one) for one in BY_HAND]
    assert judged == [(1.0, ""), (0.5, "not in the truth: C; missed: A"), (1.0, "")]


def test_what_cannot_be_scored_says_why() -> None:
    found = scorer("label_f1_micro.strict")
    value, reason = found.judge(row("Cardiomegaly", "Cardiomegaly", ()))
    assert (value, reason.split(":")[0]) == (None, "no labels to look for")
    value, reason = found.judge(row("Scoliosis", "Scoliosis"))
    assert value is None
    assert "'Scoliosis' names none of the 5 labels" in reason
    named = scorer("label_f1_micro.strict", labels=("Scoliosis",))
    assert named.judge(row("Scoliosis", "scoliosis", ())) == (1.0, "")


def test_the_report_is_that_of_scikit_learn() -> None:
    rows = [
        row("Cardiomegaly", "Cardiomegaly, Edema"),
        row("Cardiomegaly, ILD", "mild cardiomegaly"),
        row("No finding", "No finding"),
        row("ILD", "ILD, Cardiomegaly"),
        row("left out", "ILD"),
    ]
    true = [[1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [0] * 5, [0, 0, 1, 0, 0]]
    said = [[1, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0] * 5, [1, 0, 1, 0, 0]]
    wanted = classification_report(
        true, said, target_names=CHEST, zero_division=0, output_dict=True
    )
    lines = scorer("label_f1_macro.strict").report(rows)
    assert [line.label for line in lines] == list(wanted)
    for line in lines:
        theirs = wanted[line.label]
        ours = (line.precision, line.recall, line.f1, line.support)
        assert ours == pytest.approx(tuple(theirs.values()), abs=1e-12)


def test_finding_or_none_is_a_label_of_its_own() -> None:
    rows = [row("No finding", "No finding", GLOBAL), row("COPD", "No finding", GLOBAL)]
    lines = scorer("label_f1_macro.strict", negative="No finding").report(rows)
    by_label = {line.label: line for line in lines}
    assert by_label["Finding"] == ("Finding", 0.0, 0.0, 0.0, 1)
    assert by_label["No finding"].precision == 0.5


def test_rows_with_other_options_are_joined() -> None:
    rows = [row("A", "A", ("A", "B")), row("C", "B, C", ("B", "C"))]
    lines = scorer("label_precision_macro.strict").report(rows)
    assert [(line.label, line.precision) for line in lines[:3]] == [("A", 1), ("B", 0), ("C", 1)]


def test_findings_become_metrics_with_intervals() -> None:
    benchmark = Benchmark(name="chest", resamples=100).with_overrides(
        ["scorers.open=[label_f1_macro.strict, label_f1_micro.strict]"]
    )
    rows = [
        row(
            "Cardiomegaly" if n % 2 else "ILD",
            "Cardiomegaly" if n % 3 else "ILD",
            id=f"r{n}",
            patient_id=f"p{n}",
            others={"majority": Answer(text="ILD")},
        )
        for n in range(30)
    ]
    metrics = summarise(rows, score_rows(rows, benchmark), benchmark, seed=1)
    name = "label_f1_macro.strict"
    found = find_metric(
        metrics, name=name, answer_type="open", group="identify", stratum="finding = ILD"
    )
    # 15 rows are ILD, 10 are called so: rows 0, 6, 12, ... are both.
    assert found is not None
    assert found.estimate == pytest.approx(2 * 5 / (10 + 15))
    assert found.low is not None
    assert found.low < found.estimate < (found.high or math.nan)
    assert "zero_division=0" in found.note
    against = find_metric(metrics, name=name, arm="difference", answer_type="open")
    assert against is not None
    assert against.estimate == pytest.approx(score(name, rows) - 2 / 3 / 5)


@pytest.mark.parametrize("average", AVERAGES)
def test_of_no_row_drawn_there_is_no_score(average: str) -> None:
    """One patient is not drawn in (59 / 60)^60, 36 %, of the resamples: there is nothing to compare."""
    found = scorer(f"label_f1_{average}.strict")
    rows = [row("Edema, ILD", "ILD and edema", ("Edema", "ILD"), id=f"r{n}") for n in range(60)]
    places: list[Place] = [(one.id, MODEL) for one in rows]
    pool = pool_of(
        found,
        {place: found.judge(one)[0] for place, one in zip(places, rows, strict=True)},
        dict(zip(places, rows, strict=True)),
        resamples=500,
        seed=3,
    )
    with np.errstate(all="raise"):
        tested = pool.contrasted(places[:1], places[1:], [f"p{n:02d}" for n in range(60)])
    assert tested.difference == Estimate(0, 0, 0)
    assert tested.p == 1


def test_a_resample_without_rows_is_nan_and_changes_no_other() -> None:
    """Two patients, the second without a row: one of four draws is of nothing."""
    collected = scorer("label_f1_samples.strict").collect(BY_HAND)
    asked: list[np.ndarray] = []

    def score(weights_RN: np.ndarray) -> np.ndarray:
        asked.append(weights_RN)
        return collected.score(weights_RN)

    rows = Clustered(np.zeros(len(BY_HAND), dtype=np.intp), 2)
    found = resampled_scores(score, rows, resamples=400, seed=1)
    assert np.isnan(found).mean() == pytest.approx(1 / 4, abs=0.1)
    assert found[~np.isnan(found)] == pytest.approx(1 / 2)
    assert all(weights_RN.any(axis=1).all() for weights_RN in asked)
