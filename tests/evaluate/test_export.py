"""Evaluations in the file forms of lmms-eval and VLMEvalKit, and MedLoupe's model under lmms-eval."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from medloupe.errors import ConfigError, DataError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.export import export_log
from medloupe.evaluate.lmms_eval import Pictures, conversation_of, cut_at, tokens_of
from medloupe.types import Box, EvalLog, EvalRow, ImageRef, Metric, Score, Text

BOX = Box(label="mass", x1=1, y1=2, x2=30.5, y2=40)


def row(name: str, **fields: object) -> EvalRow:
    base = {
        "id": name,
        "patient_id": "p1",
        "task": "presence",
        "template": "",
        "answer_type": "closed",
        "images": (ImageRef(uri="images/a.png"),),
        "question": 'Is there a "mass"?\nLook.',
        "truth": "yes",
        "prediction": "Yes.",
    }
    return EvalRow.parse({**base, **fields})


ROWS = (
    row("choice", options=("no", "yes")),
    row("open", answer_type="open", task="organ", truth="None", prediction="", question="What\t?"),
    row(
        "box", answer_type="box", task="rec", truth="", truth_boxes=(BOX,), prediction="", error="x"
    ),
    row(
        "volume",
        answer_type="box",
        task="rec",
        truth="",
        truth_boxes=(BOX.model_copy(update={"z1": 5.0, "z2": 7.0}),),
        prediction="",
    ),
    row("two", answer_type="open", images=(ImageRef(uri="a.png"), ImageRef(uri="b.png"))),
    row("bare", answer_type="open", images=(), truth="左肺", prediction="右肺"),
    row("off", options=("left", "right")),
)


@pytest.fixture
def log() -> EvalLog:
    benchmark = Benchmark(name="a set")
    return EvalLog(
        benchmark="a set",
        version="abc",
        manifest={"benchmark": benchmark.to_dict()},
        rows=ROWS,
        scores=(
            Score(id="choice", scorer="closed_accuracy.strict", value=1.0),
            Score(id="choice", scorer="closed_accuracy.strict", arm="swapped", value=0.0),
            Score(id="box", scorer="box_iou", value=None, reason="no answer"),
        ),
        metrics=(
            Metric(
                name="closed_accuracy.strict",
                answer_type="closed",
                estimate=0.5,
                low=0.25,
                high=0.75,
                n=2,
            ),
            Metric(
                name="closed_accuracy.strict", answer_type="closed", group="g", estimate=0.9, n=1
            ),
        ),
    )


def test_lmms_eval_reads_samples_line_by_line(log: EvalLog, tmp_path: Path) -> None:
    results, samples = export_log(log, "lmms-eval", tmp_path, model="models/runs/first")
    assert samples.parent.name == "runs__first"
    assert samples.name.endswith("_samples_medloupe_a_set.jsonl")
    found = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert [one["doc_id"] for one in found] == [0, 1, 2, 3, 4, 5, 6]
    assert found[0]["score"] == found[0]["closed/closed_accuracy.strict"] == 1.0
    assert found[0]["filtered_resps"] == "Yes."
    assert found[1]["target"] == "None"
    assert found[2]["target"] == "[[1.0, 2.0, 30.5, 40.0]]"
    assert found[3]["target"] == "[[1.0, 2.0, 30.5, 40.0, 5.0, 7.0]]"
    assert found[2]["score"] is None
    assert found[2]["error"] == "x"
    told = json.loads(results.read_text(encoding="utf-8"))
    assert told["results"]["medloupe_a_set"]["closed/closed_accuracy.strict,none"] == 0.5
    assert told["medloupe"]["metrics"][0]["low"] == 0.25
    assert len(told["medloupe"]["metrics"]) == 1
    assert told["n-samples"]["medloupe_a_set"] == {"original": 7, "effective": 7}


def test_vlmevalkit_reads_tables(log: EvalLog, tmp_path: Path) -> None:
    files = export_log(log, "vlmevalkit", tmp_path, model="first")
    names = [path.relative_to(tmp_path).as_posix() for path in files]
    assert names == [
        "LMUData/a_set_MCQ.tsv",
        "first/first_a_set_MCQ.tsv",
        "LMUData/a_set_VQA.tsv",
        "first/first_a_set_VQA.tsv",
    ]
    tables = []
    for path in files:
        with path.open(encoding="utf-8", newline="") as stream:
            tables.append(list(csv.DictReader(stream, delimiter="\t")))
    choice, chosen, asked, said = tables
    assert [(one["A"], one["B"], one["answer"]) for one in choice] == [("no", "yes", "B")]
    assert chosen[0]["prediction"] == "Yes."
    assert chosen[0]["question"] == 'Is there a "mass"?\nLook.'
    assert "image_path" not in chosen[0]
    assert [one["id"] for one in asked] == ["open", "box", "volume", "two", "bare", "off"]
    assert asked[1]["answer"] == "[[1.0, 2.0, 30.5, 40.0]]"
    assert asked[2]["answer"] == "[[1.0, 2.0, 30.5, 40.0, 5.0, 7.0]]"
    assert asked[3]["image_path"] == "['a.png', 'b.png']"
    assert asked[0]["answer"] == "None "
    assert said[0]["prediction"] == " "
    assert said[4]["prediction"] == "右肺"


def test_pandas_reads_no_text_as_missing(log: EvalLog, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="VLMEvalKit reads with pandas")
    for path in export_log(log, "vlmevalkit", tmp_path, model="first"):
        table = pandas.read_csv(path, sep="\t")
        shown = table.drop(columns=["image_path"], errors="ignore")
        assert not shown.isna().to_numpy().any(), path
        assert [str(value) for value in table["index"]] == [str(n) for n in range(len(table))]


def test_unknown_forms_and_bare_logs_are_refused(log: EvalLog, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'lmms-eval'"):
        export_log(log, "lmms_eval", tmp_path, model="m")
    with pytest.raises(DataError, match=r"manifest\.benchmark"):
        export_log(log.model_copy(update={"manifest": {}}), "lmms-eval", tmp_path, model="m")


def test_messages_become_a_conversation(tmp_path: Path) -> None:
    picture = Image.new("P", (4, 3))
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "url": picture},
                {"type": "image", "url": picture.copy()},
                {"type": "text", "text": "Same?"},
            ],
        },
    ]
    found = conversation_of(messages, Pictures(tmp_path), id="t/1")
    assert found.question == "Same?"
    assert found.messages[0].content == (Text(text="Be brief."),)
    one, other = found.images
    assert one == other
    assert Image.open(one.uri).size == (4, 3)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ConfigError, match="not video"):
        conversation_of(
            [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}],
            Pictures(tmp_path),
            id="t/2",
        )


def test_pictures_of_equal_bytes_and_other_shapes_stay_apart(tmp_path: Path) -> None:
    keep = Pictures(tmp_path).keep
    assert keep(Image.new("L", (2, 3))) != keep(Image.new("L", (3, 2)))
    with pytest.raises(ConfigError, match="not int"):
        keep(7)


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({}, 128),
        ({"max_new_tokens": 16, "temperature": 0, "do_sample": False}, 16),
        ({"temperature": 0.7, "do_sample": False, "num_beams": 1}, 128),
    ],
)
def test_greedy_arguments_are_taken(asked: dict[str, object], tokens: int) -> None:
    assert tokens_of(asked) == tokens


@pytest.mark.parametrize("asked", [{"temperature": 0.2}, {"num_beams": 3}])
def test_sampling_and_beams_are_refused(asked: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="decodes greedily"):
        tokens_of(asked)


def test_answers_end_at_the_first_stop() -> None:
    assert cut_at("yes\n\nno. ", ["\n\n", "no"]) == "yes"
    assert cut_at("yes", None) == "yes"
    assert cut_at("yes", "") == "yes"


def test_lmms_eval_finds_and_asks_the_model(lab: object) -> None:
    """Against lmms-eval's own registry and base class; `pip install --no-deps lmms-eval` and loguru and
    pytz are all that these need."""
    for package in ("lmms_eval", "loguru", "pytz"):
        pytest.importorskip(package, reason="needs pip install --no-deps lmms-eval loguru pytz")
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from medloupe.evaluate.lmms_eval import manifest

    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    cls = registry.get_model_class("medloupe")
    folder = lab.folder / "model"  # type: ignore[attr-defined]
    model = cls.create_from_arg_string(
        f"pretrained={folder}", {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    )
    picture = Image.new("L", (64, 64), 90)
    model.task_dict = {"t": {"test": ["Which plane?", "Is there a lesion?"]}}

    def messages(doc: str) -> list[dict[str, object]]:
        parts = [{"type": "image", "url": picture}, {"type": "text", "text": doc}]
        return [{"role": "user", "content": parts}]

    def asked(number: int, limit: int) -> Instance:
        arguments = ("", messages, {"max_new_tokens": limit}, number, "t", "test")
        kept = {"task": "t", "doc_id": number, "repeats": 1}
        return Instance("generate_until", arguments, 0, kept)

    both = model.generate_until([asked(0, 3), asked(1, 5), asked(0, 3)])
    assert both[0].text == both[2].text
    assert [
        one.token_counts.output_tokens <= limit for one, limit in zip(both, (3, 5, 3), strict=True)
    ] == [True] * 3
    alone = model.generate_until([asked(1, 5)])
    assert alone[0].text == both[1].text
