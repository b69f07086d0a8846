"""Our scores of whole sets (labels, rankings, calibration, boxes) beside the reference implementations.

    python benchmarks/set_metric_parity.py           # 1,000 rows of each kind, 20 weightings of them
    python benchmarks/set_metric_parity.py --speed   # and the seconds of 10,000 rows under 1,000 resamples

A weighting is a draw of rows with replacement, as a bootstrap makes it. The references get it as
`sample_weight` or as repeated rows. scikit-learn and pycocotools come with the dev extra; MONAI is compared
with where it is at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.calibration import calibration_curve
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    precision_recall_fscore_support,
    roc_auc_score,
)

from medloupe.evaluate.scorers.base import Scorer, SetScorer
from medloupe.evaluate.scorers.detection import FROC_RATES
from medloupe.evaluate.statistics import bootstrap_set
from medloupe.types import Box, EvalRow

HEAD = ("metric", "flavour", "reference", "rows", "weightings", "largest difference")
SKLEARN = f"scikit-learn {version('scikit-learn')}"
ENGLISH = (
    "Aortic enlargement", "Cardiomegaly", "ILD", "Lung Opacity", "Lung cyst", "Nodule/Mass",
    "Pleural effusion", "Pleural thickening", "Pneumothorax", "Edema",
)  # fmt: skip
CHINESE = ("主动脉增宽", "心影增大", "胸腔积液", "气胸", "肺气肿", "肺结节")
SIDES = ("left", "right", "both sides")

Weights = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One comparison; `difference` is None where the reference is not at hand."""

    metric: str
    flavour: str
    reference: str
    rows: int
    weightings: int
    difference: float | None

    def cells(self) -> tuple[str, ...]:
        """As the table shows it; what rounding leaves is not told apart."""
        if self.difference is None:
            value = "not at hand"
        else:
            value = "< 1e-12" if self.difference < 1e-12 else f"{self.difference:.2g}"
        sizes = f"{self.rows:,}", f"{self.weightings:,}"
        return self.metric, f"`{self.flavour}`", self.reference, *sizes, value


def main() -> None:
    wanted = argparse.ArgumentParser(description=__doc__)
    wanted.add_argument("--speed", action="store_true")
    asked = wanted.parse_args()
    print("\n".join(table(list(rows(1000, 20)))))
    if asked.speed:
        print("\n".join(speed(10_000, 1000)))


def table(found: Sequence[Row]) -> list[str]:
    """Lines of markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in found)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def rows(number: int, weightings: int) -> Iterator[Row]:
    """Every comparison."""
    weights = drawn(number, weightings)
    yield from label_rows(number, weights)
    yield from ranking_rows(number, weights)
    yield from calibration_rows(number, weights)
    yield from detection_rows(number, weights)


def drawn(number: int, weightings: int) -> Weights:
    """`[R, N]`: every row once, then draws with replacement."""
    rng = np.random.default_rng(3)
    draws = rng.multinomial(number, np.full(number, 1 / number), size=weightings - 1)
    return np.vstack([np.ones((1, number), dtype=np.int64), draws])


def row(id: int, **fields: Any) -> EvalRow:
    kept = {"patient_id": f"p{id}", "task": "t", "template": "", "images": (), "question": "?"}
    bare = {"answer_type": "closed", "truth": "", "prediction": ""}
    return EvalRow.parse({"id": f"r{id}", **kept, **bare, **fields})


def ours(name: str | dict[str, Any], asked: Sequence[EvalRow], weights: Weights) -> Floats:
    """Our scores under every weighting; every row must have counted."""
    scorer = Scorer.parse(name)
    assert isinstance(scorer, SetScorer)
    unscored = [reason for value, reason in map(scorer.judge, asked) if value is None]
    assert not unscored, unscored[0]
    return scorer.collect(asked).score(weights)


def gap(a: Floats, b: Sequence[float] | Floats) -> float:
    """The largest absolute difference; no value in one is no value in the other."""
    theirs = np.asarray(b, dtype=np.float64)
    assert a.shape == theirs.shape, f"{a.shape} and {theirs.shape}"
    assert (np.isnan(a) == np.isnan(theirs)).all(), "a value on one side only"
    return float(np.nanmax(np.abs(a - theirs)))


# Labels -------------------------------------------------------------------------------------------


def label_rows(number: int, weights: Weights) -> Iterator[Row]:
    """Texts made from known sets of labels, so that the reading of texts is compared too."""
    for language, labels in (("en", ENGLISH), ("zh", CHINESE)):
        texts, true, said = label_texts(number, labels, language)
        for flavour in ("strict", "litegpt"):
            read = said if flavour == "strict" else substrings(texts, labels)
            gaps = [
                gap(
                    ours(f"label_{figure}_{average}.{flavour}", texts, weights),
                    [reference(true, read, average, w)[place] for w in weights],
                )
                for average in ("micro", "macro", "weighted", "samples")
                for place, figure in enumerate(("precision", "recall", "f1"))
            ]
            name = f"label_{{precision,recall,f1}}_*.{flavour}"
            about = f"labels ({language}), 4 averages"
            yield Row(about, name, SKLEARN, number, len(weights), max(gaps))


def label_texts(
    number: int, labels: Sequence[str], language: str
) -> tuple[list[EvalRow], NDArray[np.int64], NDArray[np.int64]]:
    """Rows, what is true `[N, K]` and what is said `[N, K]`; a third of the answers repeat, deny, shout,
    wrap in tags, or say nothing."""
    rng = random.Random(11)
    comma = ", " if language == "en" else "、"
    none = "No finding" if language == "en" else "未见异常"
    made, true, said = [], [], []
    for n in range(number):
        truth = [label for label in labels if rng.random() < 0.2]
        answer = [label for label in labels if rng.random() < (0.7 if label in truth else 0.1)]
        rng.shuffle(answer)
        text = comma.join(answer) or none
        denied = [label for label in labels if label not in answer]
        match rng.randrange(12):
            case 0:
                text = comma.join(answer + answer) or ""
            case 1 if denied:
                lead = "No " if language == "en" else "未见"
                end = ". " if language == "en" else "。"
                text = lead + comma.join(denied) + end + comma.join(answer)
            case 2:
                text = text.upper()
            case 3:
                text = comma.join(f"<p>{label}</p> {{<1><2><30><40>}}" for label in answer)
            case 4:
                text = f"😀 mildly \u200b{text}\n naïve"
            case 5 if answer and language == "en":
                text = f"There is no change in the {answer[0]}{comma}{comma.join(answer)} – ﬁn"
        made.append(row(n, truth=comma.join(truth) or none, prediction=text, options=tuple(labels)))
        true.append([label in truth for label in labels])
        said.append([label in answer for label in labels])
    return made, np.array(true, dtype=np.int64), np.array(said, dtype=np.int64)


def substrings(texts: Sequence[EvalRow], labels: Sequence[str]) -> NDArray[np.int64]:
    """`[N, K]`: which labels occur in lower case anywhere outside of tags."""
    found = []
    for one in texts:
        outside = "".join(piece.split(">")[-1] for piece in one.prediction.lower().split("<"))
        found.append([label.lower() in outside for label in labels])
    return np.array(found, dtype=np.int64)


def reference(
    true: NDArray[np.int64], said: NDArray[np.int64], average: str, weights: NDArray[np.int64]
) -> tuple[float, float, float]:
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, said, average=average, sample_weight=weights, zero_division=0
    )
    return float(precision), float(recall), float(f1)


# Rankings -----------------------------------------------------------------------------------------


def ranking_rows(number: int, weights: Weights) -> Iterator[Row]:
    """Yes/no questions about five findings, one never present, with many equal probabilities; and
    choices among three."""
    yes_no, choices = yes_no_rows(number), choice_rows(number)
    for name, area in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        for about, asked in (("yes/no", yes_no), ("options", choices)):
            for average in ("macro", "micro"):
                theirs = [ranked(asked, area, average, w) for w in weights]
                found = gap(ours(f"{name}.{average}", asked, weights), theirs)
                title = f"{name.upper()} ({about})"
                yield Row(title, f"{name}.{average}", SKLEARN, number, len(weights), found)


def yes_no_rows(number: int) -> list[EvalRow]:
    rng = np.random.default_rng(1)
    made = []
    for n in range(number):
        finding = int(rng.integers(5))
        present = finding < 4 and rng.random() < (0.02, 0.1, 0.3, 0.6)[finding]
        prob = float(np.round(np.clip(rng.normal(0.6 if present else 0.4, 0.2), 0, 1), 2))
        made.append(
            row(
                n,
                task="presence",
                template=f"presence/finding {finding}/en",
                options=("yes", "no"),
                truth="yes" if present else "no",
                prediction="yes" if prob > 0.5 else "no",
                option_probs=(prob, 1 - prob),
                confidence=max(prob, 1 - prob),
            )
        )
    return made


def choice_rows(number: int) -> list[EvalRow]:
    rng = np.random.default_rng(2)
    made = []
    for n in range(number):
        truth = int(rng.integers(3))
        odds = np.round(rng.gamma(1.0, size=3) + np.eye(3)[truth], 1) + 0.1
        probs = tuple((odds / odds.sum()).tolist())
        made.append(
            row(n, template="side/en", options=SIDES, truth=SIDES[truth], option_probs=probs)
        )
    return made


def ranked(
    asked: Sequence[EvalRow], area: Callable[..., float], average: str, weights: NDArray[np.int64]
) -> float:
    """One ranking per finding, or per option of a choice, by the reference."""
    decisions: dict[str, list[tuple[bool, float, int]]] = {}
    for one, weight in zip(asked, weights.tolist(), strict=True):
        for option, prob in zip(one.options, one.option_probs, strict=True):
            if option != "no" and weight:
                place = one.template if option == "yes" else option
                decisions.setdefault(place, []).append((one.truth == option, prob, weight))
    if average == "micro":
        decisions = {"": [decision for made in decisions.values() for decision in made]}
    areas = []
    for made in decisions.values():
        true, probs, counts = zip(*made, strict=True)
        if len(set(true)) == 2:
            areas.append(float(area(true, probs, sample_weight=counts)))
    return float(np.mean(areas)) if areas else float("nan")


# Calibration --------------------------------------------------------------------------------------


def calibration_rows(number: int, weights: Weights) -> Iterator[Row]:
    asked = yes_no_rows(number)
    probs = np.array([one.option_probs[0] for one in asked])
    true = np.array([one.truth == "yes" for one in asked], dtype=np.int64)
    theirs = [brier_score_loss(true, probs, sample_weight=w) for w in weights]
    yield Row(
        "Brier (yes/no)", "brier.binary", SKLEARN, number, len(weights),
        gap(ours("brier.binary", asked, weights), theirs),
    )  # fmt: skip
    choices = choice_rows(number)
    some = np.array([one.option_probs for one in choices])
    named = [SIDES.index(one.truth) for one in choices]
    theirs = [
        brier_score_loss(named, some, sample_weight=w, scale_by_half=True, labels=[0, 1, 2])
        for w in weights
    ]
    yield Row(
        "Brier (options)", "brier.multi_class", SKLEARN, number, len(weights),
        gap(ours("brier.multi_class", choices, weights), theirs),
    )  # fmt: skip
    confidence = some.max(axis=1)
    right = (some.argmax(axis=1) == named).astype(np.float64)
    theirs = [binned(confidence.repeat(w), right.repeat(w)) for w in weights]
    yield Row(
        "ECE", "ece.options", f"{SKLEARN}, calibration_curve", number, len(weights),
        gap(ours("ece.options", choices, weights), theirs),
    )  # fmt: skip


def binned(confidence: Floats, right: Floats) -> float:
    """ECE of scikit-learn's reliability curve; it keeps no counts, so they are counted here."""
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    edges = np.linspace(0, 1, 16)
    counts = [
        int(((confidence > low) & (confidence <= high)).sum()) for low, high in pairwise(edges)
    ]
    filled = np.array([count for count in counts if count])
    return float((np.abs(accuracy - mean) * filled).sum() / filled.sum())


# Boxes --------------------------------------------------------------------------------------------


def detection_rows(number: int, weights: Weights) -> Iterator[Row]:
    """Images with 0 to 3 findings of four kinds, jittered, doubled and invented boxes; a score is shared
    by many boxes."""
    asked = box_rows(number)
    few = weights[:4]
    for name, about in (("map.coco", "AP 0.5:0.95"), ("map_0.5.coco", "AP 0.5")):
        theirs = [by_pycocotools(asked, w)[name == "map_0.5.coco"] for w in few]
        found = gap(ours(name, asked, few), theirs)
        label = f"pycocotools {version('pycocotools')}"
        yield Row(about, name, label, number, len(few), found)
    difference, monai = None, "MONAI"
    if importlib.util.find_spec("monai") is not None:
        difference = gap(
            ours("froc.iou_0.5", asked, weights), [by_monai(asked, w) for w in weights]
        )
        monai = f"MONAI {version('monai')}"
    yield Row("FROC", "froc.iou_0.5", monai, number, len(weights), difference)


def box_rows(number: int) -> list[EvalRow]:
    rng = np.random.default_rng(4)
    kinds = ("effusion", "nodule", "mass", "fracture")
    made = []
    for n in range(number):
        truths = [box(rng, kinds[int(rng.integers(4))]) for _ in range(int(rng.integers(4)))]
        said = []
        for truth in truths:
            for _ in range(int(rng.integers(3))):
                label = truth.label if rng.random() < 0.9 else kinds[int(rng.integers(4))]
                said.append(moved(rng, truth, label))
        said += [box(rng, kinds[int(rng.integers(4))]) for _ in range(int(rng.integers(3)))]
        answer = {"truth_boxes": tuple(truths), "predicted_boxes": scored(rng, said)}
        made.append(row(n, answer_type="open", truth="" if truths else "No finding", **answer))
    return made


def box(rng: np.random.Generator, label: str) -> Box:
    x, y, width, height = (float(v) for v in rng.uniform((0, 0, 20, 20), (400, 400, 100, 100)))
    return Box(label=label, x1=x, y1=y, x2=x + width, y2=y + height)


def moved(rng: np.random.Generator, truth: Box, label: str) -> Box:
    edges = np.array([truth.x1, truth.y1, truth.x2, truth.y2]) + rng.normal(0, 6, 4)
    x1, y1, x2, y2 = (float(edge) for edge in edges)
    return Box(label=label, x1=x1, y1=y1, x2=max(x1, x2), y2=max(y1, y2))


def scored(rng: np.random.Generator, said: Sequence[Box]) -> tuple[Box, ...]:
    """Scores that rows share, but not the boxes of one row: where a row is drawn twice, pycocotools takes
    its two copies one after the other, and we equal boxes of both together."""
    scores = rng.choice(101, size=len(said), replace=False) / 100
    return tuple(
        one.model_copy(update={"score": score})
        for one, score in zip(said, scores.tolist(), strict=True)
    )


def by_pycocotools(asked: Sequence[EvalRow], weights: NDArray[np.int64]) -> tuple[float, float]:
    """(AP at 0.5:0.95, AP at 0.5); a row drawn twice is two images, one after the other."""
    images = [
        one for one, weight in zip(asked, weights.tolist(), strict=True) for _ in range(weight)
    ]
    names = sorted({true.label for one in images for true in one.truth_boxes})
    truths, said = [], []
    for number, one in enumerate(images, start=1):
        for true in one.truth_boxes:
            truths.append({"id": len(truths) + 1, **annotation(true, number, names), "iscrowd": 0})
        for given in one.predicted_boxes:
            if given.label in names:
                said.append({**annotation(given, number, names), "score": given.score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": number} for number in range(1, len(images) + 1)],
            "categories": [{"id": number} for number in range(1, len(names) + 1)],
            "annotations": truths,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(said), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def annotation(one: Box, image: int, names: Sequence[str]) -> dict[str, Any]:
    width, height = one.x2 - one.x1, one.y2 - one.y1
    return {
        "image_id": image,
        "category_id": names.index(one.label) + 1,
        "bbox": [one.x1, one.y1, width, height],
        "area": width * height,
    }


def by_monai(asked: Sequence[EvalRow], weights: NDArray[np.int64]) -> float:
    """MONAI's score of the same hits; it leaves the lowest threshold out, so a lower one is added."""
    from monai.metrics.froc import compute_froc_curve_data, compute_froc_score

    false, found, targets = [-1.0], [], 0
    for one, weight in zip(asked, weights.tolist(), strict=True):
        hit = np.array(
            [
                [t.label == p.label and overlap(t, p) >= 0.5 for p in one.predicted_boxes]
                for t in one.truth_boxes
            ]
        ).reshape(len(one.truth_boxes), len(one.predicted_boxes))
        scores = np.array([p.score for p in one.predicted_boxes])
        false += scores[~np.any(hit, axis=0)].tolist() * weight
        found += [float(scores[on].max()) for on in hit if on.any()] * weight
        targets += len(one.truth_boxes) * weight
    curve = compute_froc_curve_data(np.array(false), np.array(found), targets, int(weights.sum()))
    return float(compute_froc_score(*curve, eval_thresholds=FROC_RATES))


def overlap(a: Box, b: Box) -> float:
    """IoU, written once more."""
    wide = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1))
    high = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1))
    areas = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1)
    return wide * high / (areas - wide * high)


# Speed --------------------------------------------------------------------------------------------


def speed(number: int, resamples: int) -> Iterator[str]:
    """Processor seconds from rows to an interval, parts left out."""
    yield from (
        "",
        "| scorer | seconds to collect | seconds with the interval |",
        "| --- | --- | --- |",
    )
    labels, yes_no, boxes = (
        label_texts(number, ENGLISH, "en")[0],
        yes_no_rows(number),
        box_rows(number),
    )
    for name, asked in (
        ("label_f1_macro.strict", labels), ("label_f1_samples.strict", labels),
        ("auroc.macro", yes_no), ("auprc.macro", yes_no), ("ece.options", yes_no),
        ("brier.binary", yes_no), ("aurc.options", yes_no), ("accuracy_at_80.options", yes_no),
        ("map.coco", boxes), ("map_0.5.voc", boxes), ("froc.iou_0.5", boxes),
    ):  # fmt: skip
        scorer = Scorer.parse(name)
        assert isinstance(scorer, SetScorer)
        begun = time.process_time()
        collected = scorer.collect(asked)
        ready = time.process_time()
        patients = [one.patient_id or "" for one in asked]
        bootstrap_set(collected.score, patients, resamples=resamples, seed=0)
        done = time.process_time()
        yield f"| `{name}` | {ready - begun:.1f} | {done - begun:.1f} |"


if __name__ == "__main__":
    warnings.simplefilter("ignore", UndefinedMetricWarning)
    main()
