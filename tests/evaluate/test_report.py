"""The page is parsed, not looked at: structure, escaping, boxes, pictures, and nothing external."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file

from medloupe.data.dataset import Dataset, DatasetCard
from medloupe.errors import ImageError
from medloupe.evaluate.benchmark import Benchmark, Stratum
from medloupe.evaluate.benchmarks import named_benchmark
from medloupe.evaluate.probes.base import Expect
from medloupe.evaluate.report import render_report, write_report
from medloupe.evaluate.report.charts import bars, difference, loss_curve, reach_of
from medloupe.evaluate.report.groups import Groups
from medloupe.evaluate.report.pictures import data_uri
from medloupe.evaluate.report.probes import probe_verdict
from medloupe.evaluate.runner import rescore, run_benchmark
from medloupe.html.markup import Html, join, tag
from medloupe.imaging.read import read_image, read_ref
from medloupe.imaging.windows import Window, to_display
from medloupe.types import Answer, Box, EvalLog, EvalRow, ImageRef, Metric

VOID = {"meta", "input", "br", "img", "hr"}
EVIL = "<script>alert('1')</script> & \"quoted\""


class Page(HTMLParser):
    """Elements as (name, attributes, text inside, path of open elements); checks nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open, "an element was not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        path = [self.elements[index][0] for index in self.open]
        self.elements.append((tag, {key: value or "" for key, value in attrs}, [], path))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag, f"{tag} closes another element"

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.elements[index][2].append(data)

    def all(self, name: str, **attributes: str) -> list[tuple[dict[str, str], str]]:
        return [
            (found, "".join(text))
            for tag, found, text, _ in self.elements
            if tag == name and all(found.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]


def evaluation(*rows: EvalRow, card: DatasetCard | None = None) -> EvalLog:
    manifest = {
        "benchmark": Benchmark(name="bench", resamples=100).to_dict(),
        "dataset": (card or DatasetCard(name="few")).to_dict(),
        "rows_digest": "0",
        "evaluation_seed": 0,
    }
    log = EvalLog(benchmark=f"bench {EVIL}", version="v", manifest=manifest, rows=rows)
    return rescore(log)


def row(id: str, **fields: object) -> EvalRow:
    base: dict[str, object] = {
        "id": id,
        "patient_id": id,
        "task": "rec",
        "template": "",
        "answer_type": "box",
        "images": (ImageRef(uri="CT_small.dcm"),),
        "question": "Where?",
        "truth": "",
        "prediction": "",
    }
    return EvalRow.parse(base | fields)


def ct(ref: ImageRef) -> NDArray[np.uint8]:
    """A real DICOM file, 128 x 128."""
    return to_display(read_image(Path(get_testdata_file(ref.uri))), Window())


@pytest.fixture(scope="module")
def squares_log(squares: Dataset, readers: tuple[type, type]) -> EvalLog:
    benchmark = Benchmark(
        name="squares", strata=(Stratum(attribute="lesion_width", edges=(4, 8)),), resamples=200
    )
    manifest = {"model": "reader", "date": "2026-01-01"}
    return run_benchmark(benchmark, squares, readers[0](squares.root), manifest=manifest, seed=5)


@pytest.fixture(scope="module")
def text(squares: Dataset, squares_log: EvalLog) -> str:
    training = [{"step": step, "loss": 1 / (step + 1), "stage": "one"} for step in range(50)]
    return render_report(squares_log, lambda ref: to_display(read_ref(ref, squares.root)), training)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_verdict_comes_first_and_names_every_kind(page: Page) -> None:
    assert page.all("h2")[0][1] == (
        "The model beats its image-blind comparison on 3 of 4 kinds of question"
    )
    lead = page.all("p", class_="lead")[0][1]
    assert lead.startswith("All closed questions together: 1.00; difference to image-blind +0.")
    kinds = [text for _, text in page.all("th", scope="row")]
    for task in ("all of them", "presence", "side", "rec", "report"):
        assert any(text.startswith(task) for text in kinds), task
    verdicts = [text for _, text in page.all("span", class_="pill yes")]
    assert verdicts.count("yes") == 4  # all closed, presence, side, rec


def test_every_number_of_the_verdict_is_the_metric_s(page: Page, squares_log: EvalLog) -> None:
    cells = [text for attributes, text in page.all("td") if "data-label" in attributes]
    for metric in squares_log.metrics:
        headlined = metric.name in {"closed_accuracy.strict", "open_recall.strict", "box_iou"}
        if not headlined or metric.stratum or not metric.group or metric.arm == "minus swapped":
            continue
        form = "+.2f" if metric.arm == "difference" else ".2f"
        assert metric.estimate is not None
        value = format(metric.estimate, form).replace("-", "−")
        assert any(value in cell for cell in cells), (metric, value)


def test_every_score_stands_in_the_full_table(page: Page, squares_log: EvalLog) -> None:
    notes = {text for _, text in page.all("td")}
    assert {metric.note for metric in squares_log.metrics} <= notes
    assert any(
        text == f"Every score ({len(squares_log.metrics)})" for _, text in page.all("summary")
    )


def test_nothing_is_loaded_from_elsewhere(page: Page, text: str) -> None:
    for _, attributes, _, _ in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), attributes
    assert not page.all("link")
    assert not page.all("iframe")
    style = page.all("style")[0][1]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?:|file:|javascript:", text)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert policy.startswith("default-src 'none'")


def test_cards_carry_their_filters_and_counts_add_up(page: Page, squares_log: EvalLog) -> None:
    cards = [attributes for attributes, _ in page.all("article")]
    assert len(cards) == len(squares_log.rows)
    counts = {a["data-state"]: int(text) for a, text in page.all("small") if "data-state" in a}
    for state, count in counts.items():
        assert count == sum(not state or card["data-state"] == state for card in cards)
    assert sum(counts.values()) == 2 * len(cards)
    options = {attributes["value"] for attributes, _ in page.all("option")}
    groups = {group for card in cards for group in json.loads(card["data-groups"])}
    assert groups == {
        "lesion_width < 4",
        "4 <= lesion_width < 8",
        "lesion_width >= 8",
        "plane = axial",
    }
    assert options == {"", *groups, *(card["data-task"] for card in cards)}


def test_each_image_is_embedded_once_and_every_use_finds_it(
    page: Page, squares_log: EvalLog
) -> None:
    stored = {attributes["id"]: attributes for attributes, _ in page.all("image")}
    uses = [attributes["href"].removeprefix("#") for attributes, _ in page.all("use")]
    assert len(stored) == len({image for row in squares_log.rows for image in row.images})
    assert len(uses) == len(squares_log.rows)
    assert set(uses) == set(stored)
    for attributes in stored.values():
        kind, data = attributes["href"].split(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert kind == f"data:image/{(picture.format or '').lower()}"
            assert picture.size == (int(attributes["width"]), int(attributes["height"]))


def test_boxes_are_drawn_in_original_pixels_however_small_the_copy() -> None:
    def large(ref: ImageRef) -> NDArray[np.uint8]:
        return np.kron(ct(ref), np.ones((7, 7), dtype=np.uint8))

    truth = Box(label="ring", x1=12.5, y1=20, x2=40, y2=64)
    said = Box(label="ring", x1=10, y1=22, x2=44, y2=60)
    asked = Box(label="", x1=1, y1=2, x2=3, y2=5)
    log = evaluation(
        row("r", truth_boxes=(truth,), predicted_boxes=(said,), question_boxes=(asked,))
    )
    page = Page(render_report(log, large))
    for box, kind in ((truth, "truth"), (said, "predicted"), (asked, "asked")):
        (rectangle,) = (attributes for attributes, _ in page.all("rect", class_=f"box {kind}"))
        drawn = [float(rectangle[name]) for name in ("x", "y", "width", "height")]
        assert drawn == [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]
    assert [a for a, _ in page.all("svg", viewbox="0 0 896 896")]
    (stored,) = (attributes for attributes, _ in page.all("image"))
    assert (stored["width"], stored["height"]) == ("896", "896")
    with Image.open(io.BytesIO(base64.b64decode(stored["href"].split(",")[1]))) as picture:
        assert picture.size == (448, 448)
    labels = [text for _, text in page.all("text", class_="label truth")]
    assert labels == ["ring"]


def test_each_image_of_a_row_gets_its_own_boxes() -> None:
    images = (ImageRef(uri="CT_small.dcm"), ImageRef(uri="MR_small.dcm"))
    boxes = tuple(Box(label="", x1=n, y1=0, x2=n + 9, y2=9, image=n) for n in (0, 1))
    page = Page(render_report(evaluation(row("r", images=images, truth_boxes=boxes)), ct))
    order = [
        (name, attributes.get("href") or attributes.get("x"))
        for name, attributes, _, path in page.elements
        if "figure" in path and name in {"use", "rect"}
    ]
    assert order == [("use", "#image-0"), ("rect", "0"), ("use", "#image-1"), ("rect", "1")]


def test_whatever_stands_in_the_data_is_text(page: Page) -> None:
    box = Box(label=EVIL, x1=0, y1=0, x2=9, y2=9)
    log = evaluation(
        row(
            "r",
            question=EVIL,
            task=EVIL,
            truth=EVIL,
            prediction=EVIL,
            others={arm: Answer(text=EVIL) for arm in ("swapped", "majority")},
            truth_boxes=(box,),
            options=(EVIL,),
            attributes={EVIL: EVIL},
            patient_id=EVIL,
        ),
        card=DatasetCard(name=EVIL, partial=EVIL, leak=EVIL),
    )
    hostile = Page(render_report(log, ct))
    assert len(hostile.all("script")) == len(page.all("script")) == 1
    assert "alert" not in hostile.all("script")[0][1]
    for name in ("h1", "text", "article", "aside", "pre", "option"):
        assert any(
            EVIL in text or EVIL in text.replace('\\"', '"') for _, text in hostile.all(name)
        )
    assert hostile.all("article")[0][0]["data-task"] == EVIL


def test_what_stands_for_unrecorded_patients_is_said_at_the_top() -> None:
    some = [row("a"), row("b", patient_id="a"), row("c", patient_id=None)]
    for rows, said in (
        (some[:2], "1"),
        (
            some,
            "1, and of 1 question not recorded: questions about one image count as one patient's",
        ),
        (some[2:], "not recorded: questions about one image count as one patient's"),
    ):
        (facts,) = (text for _, text in Page(render_report(evaluation(*rows), ct)).all("header"))
        assert f"patients{said}version" in facts


def test_partial_copy_leak_cut_and_unscored_are_said_at_the_top() -> None:
    card = DatasetCard(name="few", partial="255 of 315 images", leak="9 images in both")
    log = evaluation(row("a", finish_reason="length"), row("b"), card=card)
    (warnings,) = (text for _, text in Page(render_report(log, ct)).all("aside"))
    assert "Partial copy: 255 of 315 images" in warnings
    assert "Leak: 9 images in both" in warnings
    assert "1 answer reached the longest length allowed" in warnings
    assert "2 questions could not be scored" in warnings


def test_other_rows_than_the_frozen_ones_are_said_at_the_top() -> None:
    named = named_benchmark("bccd")
    log = evaluation(row("a"))
    manifest = {**log.manifest, "benchmark": named.benchmark.to_dict()}
    log = log.model_copy(update={"benchmark": "bccd", "manifest": manifest})
    (warnings,) = (text for _, text in Page(render_report(log, ct)).all("aside"))
    assert "Frozen benchmark: version" in warnings
    assert "the two do not compare" in warnings


def test_faults_of_the_answers_are_said_at_the_top() -> None:
    log = evaluation(row("a"))
    found = {"unknown ids": 3, "duplicate ids": 0}
    log = log.model_copy(update={"manifest": {**log.manifest, "faults": found}})
    (warnings,) = (text for _, text in Page(render_report(log, ct)).all("aside"))
    assert "Faults: 3 unknown ids" in warnings
    assert "duplicate" not in warnings


def test_an_unreadable_image_is_named_in_its_place() -> None:
    def broken(ref: ImageRef) -> NDArray[np.uint8]:
        raise ImageError("cut short", file=ref.uri)

    page = Page(render_report(evaluation(row("a"), row("b")), broken))
    faults = [text for _, text in page.all("p", class_="fault")]
    assert len(faults) == 2
    assert all("CT_small.dcm" in fault and "cut short" in fault for fault in faults)


def test_an_evaluation_without_rows_images_or_training() -> None:
    page = Page(render_report(evaluation(), ct))
    assert page.all("h2")[0][1] == "Not compared with an image-blind model"
    assert not page.all("article")
    assert len(Page(render_report(evaluation(row("a", images=())), ct)).all("article")) == 1


def test_a_sample_is_taken_evenly_and_says_so(squares: Dataset, squares_log: EvalLog) -> None:
    shown = Page(render_report(squares_log, lambda ref: to_display(read_ref(ref, squares.root)),
                               samples=8))  # fmt: skip
    tasks = [attributes["data-task"] for attributes, _ in shown.all("article")]
    assert len(tasks) == 8
    assert set(tasks) == {"presence", "side", "rec", "report"}
    lead = [text for _, text in shown.all("p", class_="lead")]
    assert any(text.startswith(f"8 of {len(squares_log.rows)} questions") for text in lead)


def test_the_same_log_gives_the_same_bytes_and_no_temporary(
    squares: Dataset, squares_log: EvalLog, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_report(
            tmp_path / f"{name}.html",
            squares_log,
            lambda ref: to_display(read_ref(ref, squares.root)),
        )
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_bars_and_whiskers_stand_where_the_numbers_say() -> None:
    metric = Metric(name="x", estimate=0.5, low=0.25, high=0.75, n=1)
    chart = Page(bars([(metric, "model")], "t"))
    (bar,) = (attributes for attributes, _ in chart.all("rect"))
    assert (bar["x"], bar["width"], bar["class"]) == ("0", "120", "model")  # of 240
    line = chart.all("line", class_="whisker")[0][0]
    assert (line["x1"], line["x2"]) == ("60", "180")
    moved = Page(difference(metric.model_copy(update={"low": None}), 1.0, "t"))
    assert moved.all("circle")[0][0]["cx"] == "105"  # of 140, zero at 70
    assert not moved.all("line", class_="whisker")
    assert Page(difference(metric, 1.0, "t")).all("line", class_="whisker")[0][0]["x1"] == "87.5"
    assert [reach_of([metric]), reach_of([])] == [1.0, 1.0]
    assert reach_of([metric.model_copy(update={"high": 0.5})]) == 0.5


def test_a_loss_curve_leaves_out_what_is_no_number() -> None:
    rows = [{"step": 1, "loss": 4.0}, {"step": 2}, {"step": 3, "loss": float("nan")}]
    assert loss_curve(rows, "t") is None
    curve = loss_curve([*rows, {"step": 5, "loss": 0.0}], "t")
    assert curve is not None
    faint = Page(curve).all("polyline", class_="loss faint")[0][0]["points"]
    assert faint == "40.0,43.2 552.0,168.0"  # 4 of 5 from the foot, and the foot
    long = loss_curve([{"step": n, "loss": 1.0} for n in range(5000)], "t")
    assert long is not None
    assert len(Page(long).all("polyline")[0][0]["points"].split()) <= 600


def test_markup_escapes_unless_told() -> None:
    assert tag("p", "<b>", Html("<i></i>"), class_="a\"b", hidden=True, id=None) == (
        '<p class="a&quot;b" hidden>&lt;b&gt;<i></i></p>'
    )  # fmt: skip
    assert join("a<", tag("br")) == "a&lt;<br>"


def test_a_large_picture_is_shrunk_and_a_noisy_one_is_a_jpeg() -> None:
    noise = np.random.default_rng(0).integers(0, 256, size=(600, 900, 3), dtype=np.uint8)
    uri = data_uri(noise, 448)
    assert uri.startswith("data:image/jpeg")
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
        assert picture.size == (448, 299)
    thin = np.zeros((1, 2000), dtype=np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(data_uri(thin, 448).split(",")[1]))) as picture:
        assert picture.size == (448, 1)


# --- probes, curves, findings, errors


def probed(*, falls: int, expect_probe: str = "negated") -> EvalLog:
    """20 patients with one yes-no question each, all right; `falls` of them wrong under a probe."""
    rows = [
        row(
            f"r{n:02d}",
            task="presence",
            answer_type="closed",
            question="Is there a mass?",
            truth="yes",
            prediction="yes",
            options=("yes", "no"),
            option_probs=(0.75, 0.25),
            confidence=0.5,
            others={
                expect_probe: {
                    "text": "yes" if n < falls else "no",
                    "question": "Is it true that there is no mass?",
                    "truth": "no",
                }
            },
        )
        for n in range(20)
    ]
    return evaluation(*rows)


def probe_rows(page: Page) -> list[list[str]]:
    """The cells of the rows of the first table of probes."""
    tables = [n for n, (name, a, _, _) in enumerate(page.elements)
              if name == "table" and "asked-otherwise" in a.get("class", "")]  # fmt: skip
    (section,) = [text for a, text in page.all("section") if a.get("id") == "probes"]
    assert section
    cells = []
    for name, attributes, text, path in page.elements[tables[0] :]:
        if name == "table" and cells:
            break
        if name == "th" and attributes.get("scope") == "row":
            cells.append(["".join(text)])
        elif name == "td" and cells and "tbody" in path:
            cells[-1].append("".join(text))
    return cells


def test_the_probes_table_says_what_was_asked_expected_and_seen() -> None:
    page = Page(render_report(probed(falls=15), ct))
    (cells,) = probe_rows(page)
    assert cells[0] == "asked the negated question20 questions, 20 patients"
    assert cells[1:5] == ["stays", "falls", "1.00", cells[4]]
    assert cells[4].startswith("0.25 ")
    assert cells[6].startswith("+0.75 +0.")
    assert page.all("span", class_="pill no")


@pytest.mark.parametrize(
    ("low", "high", "clusters", "expect", "text", "kind"),
    [
        (0.1, 0.5, 20, "worse", "falls", "yes"),
        (0.1, 0.5, 20, "same", "falls", "no"),
        (-0.1, 0.5, 20, "worse", "no fall shown", "unsure"),
        (-0.1, 0.5, 20, "same", "no change shown", "unsure"),
        (0.0, 0.0, 20, "same", "no change shown", "unsure"),
        (-0.5, -0.1, 20, "worse", "rises", "no"),
        (-0.5, -0.1, 20, "same", "rises", "unsure"),
        (0.1, 0.5, 9, "worse", "too few patients", "unsure"),
        (None, None, 20, "worse", "too few patients", "unsure"),
    ],
)
def test_a_verdict_says_no_more_than_the_interval(
    low: float | None, high: float | None, clusters: int, expect: Expect, text: str, kind: str
) -> None:
    metric = Metric(name="x", estimate=0.3, low=low, high=high, n=clusters, clusters=clusters)
    assert probe_verdict(metric, expect) == (text, kind)
    assert probe_verdict(metric.model_copy(update={"estimate": None}), expect).text == "not scored"


def test_a_card_shows_what_a_probe_asked_and_what_was_right() -> None:
    page = Page(render_report(probed(falls=20), ct))
    (said, *_) = [text for _, text in page.all("dd") if "asked:" in text]
    assert said == "yes\nasked: Is it true that there is no mass?\nright: no"
    assert ("yes 0.75, no 0.25") in [text for _, text in page.all("dd")]
    assert "0.50" in [text for _, text in page.all("dd")]


def test_a_report_without_probes_has_no_such_section() -> None:
    assert not [a for a, _ in Page(render_report(evaluation(row("a")), ct)).all("section")
                if a.get("id") in {"probes", "calibration", "froc", "findings"}]  # fmt: skip


def test_the_reliability_plot_stands_where_confidence_and_accuracy_say() -> None:
    """10 answers of 0.75, all right, and 10 of 0.25, all wrong, in the frame of the axes."""
    log = probed(falls=20)
    rows = [
        one.model_copy(update={"option_probs": (0.75, 0.25) if n % 2 else (0.4, 0.6)})
        for n, one in enumerate(log.rows)
    ]
    page = Page(render_report(rescore(log.model_copy(update={"rows": tuple(rows)})), ct))
    dots = [(float(a["cx"]), float(a["cy"])) for a, _ in page.all("circle", class_="bin")]
    # x from 54 to 270, y from 192 up to 12
    assert dots == [(54 + 0.6 * 216, 192.0), (54 + 0.75 * 216, 12.0)]
    lines = [a["points"] for a, _ in page.all("polyline", class_="loss")]
    assert lines[1] == "162.0,192.0 270.0,102.0"  # the surer half is right, of all one in two


def test_the_froc_curve_is_that_of_the_boxes() -> None:
    truth = Box(label="nodule", x1=0, y1=0, x2=10, y2=10)
    right = truth.model_copy(update={"score": 0.9})
    wrong = Box(label="nodule", x1=50, y1=50, x2=60, y2=60, score=0.5)
    log = evaluation(
        row("a", truth_boxes=(truth,), predicted_boxes=(right, wrong)),
        row("b", truth_boxes=(truth,), predicted_boxes=(wrong,)),
    )
    page = Page(render_report(log, ct))
    (section,) = [text for a, text in page.all("section") if a.get("id") == "froc"]
    assert "2 images" in section
    (line,) = [a["points"] for a, _ in page.all("polyline", class_="loss")]
    # half of the findings without a false box, then one false box per image
    assert line == "54.0,192.0 54.0,102.0 270.0,102.0"


def test_findings_are_ranked_bars_and_no_strata() -> None:
    log = probed(falls=20)
    own = next(m for m in log.metrics if m.arm == "model" and m.group)
    parts = [
        own.model_copy(update={"name": "f1", "stratum": f"finding = {name}", "estimate": value})
        for name, value in (("edema", 0.25), ("mass", 0.5), ("rare", None))
    ]
    together = [part.model_copy(update={"group": ""}) for part in parts]
    metrics = (*log.metrics, *parts, *together)
    page = Page(render_report(log.model_copy(update={"metrics": metrics}), ct))
    (text,) = [text for a, text in page.all("section") if a.get("id") == "findings"]
    assert re.findall("edema|mass|rare", text) == [
        *("mass", "mass"),  # its name, and the title of its bar
        *("edema", "edema"),
        *("rare", "rare"),
    ]
    assert not [a for a, _ in page.all("section") if a.get("id") == "strata"]


def test_a_row_without_an_answer_is_counted_and_can_be_looked_at() -> None:
    log = evaluation(row("a", error="the server said 500"), row("b"))
    page = Page(render_report(log, ct))
    (warnings,) = (text for _, text in page.all("aside"))
    assert "1 question got no answer" in warnings
    assert "1 question could not be scored" in warnings  # the other one
    (card,) = page.all("article", **{"data-state": "error"})
    assert "the server said 500" in card[1]
    assert "error" in {a.get("value") for a, _ in page.all("input")}


def test_groups_are_attributes_with_few_values_and_strata() -> None:
    strata = (Stratum(attribute="width", edges=(4,)), Stratum(attribute="plane"))
    rows = [
        row(f"r{n}", attributes={"width": str(n), "plane": "axial" if n % 2 else "coronal",
                                 "site": "one", "note": f"note {n}", "age": "40"})
        for n in range(14)
    ]  # fmt: skip
    groups = Groups(rows, strata)
    assert groups.names == ["width < 4", "width >= 4", "plane = axial", "plane = coronal"]
    assert groups.of(rows[3]) == ["width < 4", "plane = axial", "site = one"]
    assert Groups([], strata).names == []


def test_every_group_stands_with_its_counts_and_its_difference_to_the_others() -> None:
    rows = [
        row(f"r{n:02d}", task="presence", answer_type="closed", truth="yes", options=("yes", "no"),
            prediction="yes" if n < 15 else "no", attributes={"sex": "F" if n < 10 else "M"})
        for n in range(20)
    ]  # fmt: skip
    page = Page(render_report(evaluation(*rows), ct))
    (text,) = [text for a, text in page.all("section") if a.get("id") == "subgroups"]
    assert "sex: female10 questions, 10 patients1.00 " in text
    assert "sex: male10 questions, 10 patients0.50 " in text
    assert "−0.50 " in text
