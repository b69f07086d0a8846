"""The model card says what the files say, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_logs import BENCHMARK, made_log, made_row

from medloupe.cli.tables import scores
from medloupe.evaluate.card import (
    UNKNOWN,
    as_html,
    as_markdown,
    card_sections,
    training_stages,
    write_card,
)
from medloupe.evaluate.metrics import stronger_blind
from medloupe.types import Answer, EvalLog, EvalRow, Metric

MANIFEST: dict[str, Any] = {
    "model": "mine | <b>",
    "date": "2026-01-02T03:04:05+00:00",
    "code_revision": "abc123",
    "config": {
        "description": "a small one",
        "model": {
            "encoder": {"name": "efficientnet_lite0"},
            "connector": {"name": "mlp"},
            "adapter": None,
            "language": {"source": "starter"},
        },
        "train": {
            "stages": [
                {
                    "name": "align",
                    "objective": {"name": "language"},
                    "trainable": ["connector"],
                    "lora": None,
                    "learning_rate": 0.001,
                    "steps": 20,
                },
                {
                    "name": "instruct",
                    "objective": {"name": "language"},
                    "trainable": ["language_model"],
                    "lora": {"rank": 16},
                    "learning_rate": 0.0002,
                    "steps": 30,
                },
            ]
        },
    },
    "trained": {
        "date": "2026-01-01T00:00:00+00:00",
        "data": {
            "name": "planted",
            "version": "3",
            "licence": "CC0-1.0",
            "counts": {"conversations": 1200, "patients": 40},
            "partial": "",
            "leak": "",
            "notes": ["sides are the viewer's"],
        },
        "audit": {"leak": "", "warnings": ["2 near-duplicates"]},
        "code_revision": "def456",
    },
}


def rows() -> list[EvalRow]:
    """40 patients, women right more often; half of them also asked with another's image."""
    return [
        made_row(
            n,
            "yes" if n < 30 else "no",
            attributes={"sex": "F" if n < 20 else "M"},
            others={
                "majority": Answer(text="yes" if n % 2 else "no"),
                **({"swapped": Answer(text="no")} if n % 2 else {}),
            },
        )
        for n in range(40)
    ]


@pytest.fixture
def log() -> EvalLog:
    return made_log(rows(), **MANIFEST)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a training log, the last line of which was cut."""
    begun = {"event": "stage", "stage": "align", "steps": 20, "rows": 960,
             "trainable": {"connector": 406656}, "frozen": ["encoder", "language_model"]}  # fmt: skip
    lines = [begun | {"rows": 1}, begun, {"event": "step", "stage": "align", "loss": 1.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st'
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "eval.jsonl").touch()
    return tmp_path


def section(markdown: str, name: str) -> str:
    return markdown.split(f"\n## {name}\n")[1].split("\n## ")[0]


def cells(part: str, first: str) -> list[str]:
    """The row of a table that begins so."""
    (row,) = (line for line in part.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("| ").split(" | ")]


def test_the_card_of_a_run(log: EvalLog, run: Path) -> None:
    markdown, page = write_card(run, log, beside=run)
    assert [markdown.name, page.name] == ["MODEL_CARD.md", "MODEL_CARD.html"]
    text = markdown.read_text(encoding="utf-8")
    assert text.startswith("# Model card: mine \\| \\<b\\>\n")
    assert "- [every answer and score](eval.jsonl)" in text
    assert "report.html" not in text  # there is none
    assert "It is no medical device." in section(text, "Intended use")
    assert "- **modalities evaluated**: CT, MR" in text
    assert "- **encoder**: efficientnet\\_lite0" in section(text, "Model")
    assert "- **adapter**: none" in section(text, "Model")
    data = section(text, "Training data")
    assert "- **licence**: CC0-1.0" in data
    assert "- **counts of this copy**: 1,200 conversations, 40 patients" in data
    assert "- **leak audit**: no leak found" in data
    assert "- **audit warnings**: 2 near-duplicates" in data
    assert f"- **citation**: {UNKNOWN}" in data
    assert "<b>" not in page.read_text(encoding="utf-8")


def test_stages_say_what_was_frozen_where_the_training_log_does(log: EvalLog, run: Path) -> None:
    (align,) = training_stages(run)
    assert align["rows"] == 960  # begun twice, the last counts
    part = section(as_markdown("t", card_sections(log, training_stages(run))), "Training")
    assert cells(part, "align")[2:] == [
        "connector (406,656)",
        "encoder, language\\_model",
        "none",
        "20",
        "960",
        "0.001",
    ]
    instruct = cells(part, "instruct")
    assert instruct[2:5] == ["language\\_model", UNKNOWN, "lora of rank 16"]


def test_numbers_are_those_of_the_log(log: EvalLog) -> None:
    text = as_markdown("t", card_sections(log))
    own, blind, gap = (
        next(m for m in log.metrics if m.group == "presence" and m.arm == arm)
        for arm in ("model", "majority", "difference")
    )
    row = cells(section(text, "Evaluation"), "presence")
    assert row[1:6] == [
        "closed\\_accuracy.strict", "40", "40", "0",
        f"{own.estimate:.3f} \\[{own.low:.3f}, {own.high:.3f}\\]",
    ]  # fmt: skip
    assert row[6].startswith(f"{blind.estimate:.3f} ")
    assert row[6].endswith("(the most frequent training answer)")
    assert row[7].startswith(f"{gap.estimate:+.3f} ")
    assert row[8] == "yes"
    assert "| all closed |" not in section(text, "Evaluation")  # one task would be told twice
    probe = next(m for m in log.metrics if m.arm == "minus swapped" and not m.group)
    row = cells(section(text, "Probes"), "the model shown another patient's image")
    assert row[3] == "20"
    assert row[5].startswith(f"{probe.estimate:+.3f} ")
    assert row[6] == "above 0"
    women = cells(section(text, "Subgroups"), "sex = female")
    assert women[2:6] == ["20", "20", "0", "1.000 \\[0.832, 1.000\\]"]
    assert women[6].startswith("+0.500 ")
    assert "Scored by closed\\_accuracy.strict (closed). The difference is" in text
    assert "Of no row recorded: anatomy, age, site, lesion size." in text
    assert f"Calibration: {UNKNOWN}." in text
    assert "sex = male: -0.500" in section(text, "Limits")
    assert "sex = female" not in section(text, "Limits")  # the same said of those who fare better


def test_what_is_not_recorded_is_said_and_nothing_is_made_up(tmp_path: Path) -> None:
    bare = made_log([made_row(n, "yes", patient_id=None) for n in range(3)])
    text = as_markdown("t", card_sections(bare, training_stages(tmp_path)))
    for name in ("Model", "Training data", "Training", "Provenance"):
        values = re.findall(r"\*\*: (.*)", section(text, name))
        assert set(values) - {bare.manifest["rows_digest"]} == {UNKNOWN}, name
    assert f"Stages: {UNKNOWN}." in text
    assert f"**patients**: {UNKNOWN}: questions about one image count as one" in text
    limits = section(text, "Limits")
    assert "not compared with an image-blind answerer" in limits
    assert "How it was trained is not recorded." in limits


def test_limits_come_from_the_log() -> None:
    some = [made_row(n, "no", others={"majority": Answer(text="yes")}) for n in range(20)]
    some += [made_row(20, "", error="refused"), made_row(21, "")]
    log = made_log(some, recovered={"missing rows": 7})
    log = log.model_copy(
        update={"manifest": log.manifest | {"dataset": {"name": "x", "partial": "12 of 90 images"}}}
    )
    limits = section(as_markdown("t", card_sections(log)), "Limits")
    for line in (
        "presence: no better than answering without the image",
        "rows without an answer: 1.",
        "empty answers: 1.",
        "missing rows: 7.",
        "Evaluated on a data set with a stated partial: 12 of 90 images",
    ):
        assert line in limits


def test_calibration_where_there_is_some() -> None:
    benchmark = BENCHMARK.with_overrides(["scorers.closed=[closed_accuracy.strict, brier.binary]"])
    some = [made_row(n, "yes", option_probs=(0.9, 0.1)) for n in range(12)]
    log = made_log(some, benchmark)
    row = cells(section(as_markdown("t", card_sections(log)), "Calibration"), "brier.binary")
    assert row[1:5] == ["all closed", "12", "0", row[4]]
    assert row[4].startswith("0.010")


def test_where_lower_is_better_the_lower_blind_answer_is_the_stronger() -> None:
    """Squared distances: the model's 0.01, another image's 0.09, the most frequent answer's 0.25."""
    benchmark = BENCHMARK.with_overrides(["scorers.closed=[brier.binary]"])
    blind = {"swapped": (0.7, 0.3), "majority": (0.5, 0.5)}
    others = {arm: Answer(text="yes", option_probs=probs) for arm, probs in blind.items()}
    some = [made_row(n, "yes", option_probs=(0.9, 0.1), others=others) for n in range(12)]
    log = made_log(some, benchmark)
    text = as_markdown("t", card_sections(log))
    row = cells(section(text, "Evaluation"), "presence")
    assert row[6].startswith("0.090 ")
    assert row[6].endswith("(the model shown another patient's image)")
    assert [row[7].split()[0], row[8]] == ["-0.080", "yes"]
    probe = cells(section(text, "Probes"), "the model shown another patient's image")
    assert [probe[5].split()[0], probe[6]] == ["-0.080", "below 0"]
    columns = scores(log).columns
    assert [cell for cell in columns[3].cells if cell] == ["0.09", "0.09"]


def test_where_lower_is_better_a_limit_is_what_scores_higher() -> None:
    benchmark = BENCHMARK.with_overrides(["scorers.closed=[brier.binary]"])
    some = [
        made_row(
            n,
            "yes",
            option_probs=(0.9, 0.1) if n < 20 else (0.4, 0.6),
            attributes={"sex": "F" if n < 20 else "M"},
        )
        for n in range(40)
    ]
    limits = section(as_markdown("t", card_sections(made_log(some, benchmark))), "Limits")
    assert "sex = male: +0.350" in limits
    assert "sex = female" not in limits


def test_patients_are_counted_where_some_are_recorded() -> None:
    some = [made_row(n, "yes") for n in range(3)]
    some += [made_row(n, "yes", patient_id=None) for n in range(3, 5)]
    text = as_markdown("t", card_sections(made_log(some)))
    assert f"- **patients**: 3, and of 2 questions {UNKNOWN}: questions about one image" in text


def test_the_stronger_of_two_blind_answers() -> None:
    def metric(arm: str, value: float | None, *, lower: bool = False) -> Metric:
        return Metric(name="s", arm=arm, estimate=value, n=1, lower_is_better=lower)

    for lower, stronger in ((False, "majority"), (True, "swapped")):
        arms = {"model": 0.9, "majority": 0.4, "swapped": 0.2, "blank": 0.0}
        found = stronger_blind(metric(arm, value, lower=lower) for arm, value in arms.items())
        assert found is not None
        assert found.arm == stronger
    unknown = stronger_blind([metric("majority", None), metric("swapped", 0.0)])
    assert unknown is not None
    assert unknown.arm == "swapped"
    assert stronger_blind([metric("model", 1.0), metric("majority", None)]) is None


def test_the_page_loads_nothing(log: EvalLog) -> None:
    page = as_html("t", card_sections(log))
    assert "<script" not in page
    assert not re.search(r'(src|href)="http', page)
    assert page.count("<section>") == 10
