"""ROUGE, token F1 and CIDEr: goldens computed by hand, and agreement with the reference packages."""

from __future__ import annotations

import random
from math import exp, log, sqrt

import numpy as np
import pytest
from nltk.stem.porter import PorterStemmer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from medloupe.errors import MissingExtraError
from medloupe.evaluate.scorers.base import Scorer, SetScorer
from medloupe.evaluate.scorers.rouge import longest
from medloupe.types import EvalRow

KINDS = {"1": "rouge1", "2": "rouge2", "l": "rougeL", "lsum": "rougeLsum"}
MAT = ("the cat sat on the mat", "the the cat sat")


def row(truth: str, prediction: str) -> EvalRow:
    return EvalRow(
        id="r",
        patient_id=None,
        task="report",
        template="",
        answer_type="open",
        images=(),
        question="Describe.",
        truth=truth,
        prediction=prediction,
    )


def value(name: str, truth: str, prediction: str) -> float | None:
    return Scorer.parse(name).judge(row(truth, prediction))[0]


def soup(seed: int, count: int, words: str) -> list[tuple[str, str]]:
    """Pairs of texts of a few words, which repeat; lines end where "\n" is drawn."""
    rng = random.Random(seed)
    known = words.split(" ")
    return [
        tuple(" ".join(rng.choices(known, k=rng.randrange(1, 14))) for _ in range(2))  # type: ignore[misc]
        for _ in range(count)
    ]


PAIRS = soup(
    1, 250, "no effusions effusion, lungs. clear \n \n enlarged 3.5 mm it's e\u0301 dying T2"
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 4 words for 6, all of them there (twice "the"): 8 / 10.
        ("rouge_1.rouge_score", 8 / 10),
        # the the, the cat, cat sat of 3, against 5 pairs: two in common.
        ("rouge_2.rouge_score", 4 / 8),
        # the cat sat: P = 3 / 4, R = 3 / 6.
        ("rouge_l.rouge_score", 6 / 10),
        ("rouge_lsum.rouge_score", 6 / 10),
        ("rouge_l.coco", 2.44 * (3 / 4) * (3 / 6) / (3 / 6 + 1.44 * 3 / 4)),
        ("token_f1", 2 * 2 / (2 + 4)),  # without articles: cat sat, cat sat on mat
    ],
)
def test_a_small_pair(name: str, expected: float) -> None:
    assert value(name, *MAT) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 左肺上叶结节 and 左肺结节: 4 of 4 and of 6; pairs 2 of 3 and of 5; in order all 4.
        ("rouge_1.rouge_score", 8 / 10),
        ("rouge_2.rouge_score", 4 / 8),
        ("rouge_l.rouge_score_stem", 8 / 10),
        ("rouge_l.coco_ptb", 2.44 * (4 / 6) / (4 / 6 + 1.44)),
        ("token_f1", 8 / 10),
    ],
)
def test_chinese_counts_by_characters(name: str, expected: float) -> None:
    assert value(name, "左肺上叶结节", "左肺结节") == pytest.approx(expected, rel=1e-12)


def test_lines_share_words_once() -> None:
    # Line 1 finds "a b" in the first line of the answer; line 2 finds b there too, but b is used up by
    # then: the answer has it once. 2 + 1 (c) of 4 and of 4.
    assert value("rouge_lsum.rouge_score", "a b\nb c", "a b\nc d") == pytest.approx(6 / 8)
    assert value("rouge_l.rouge_score", "a b\nb c", "a b\nc d") == pytest.approx(6 / 8)
    assert value("rouge_lsum.rouge_score", "a b\nc d", "c d\na b") == 1
    assert value("rouge_l.rouge_score", "a b\nc d", "c d\na b") == 1 / 2


@pytest.mark.parametrize("stems", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rouge_is_that_of_the_package(kind: str, stems: bool) -> None:
    reference = RougeScorer([KINDS[kind]], use_stemmer=stems)
    ours = Scorer.parse(f"rouge_{kind}.rouge_score{'_stem' if stems else ''}")
    for truth, answer in PAIRS:
        found, why = ours.judge(row(truth, answer))
        theirs = reference.score(truth, answer)[KINDS[kind]].fmeasure
        assert (0 if found is None else found) == pytest.approx(theirs, abs=1e-12), (truth, answer)
        assert (found is None) == (why == "the truth has no words")


def test_stems_are_nltk_s_with_its_extensions() -> None:
    assert PorterStemmer().stem("dying") == "die"
    assert value("rouge_1.rouge_score_stem", "effusions", "effusion") == 1
    assert value("rouge_1.rouge_score", "effusions", "effusion") == 0


def test_stems_need_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r'nltk is not installed.*"medloupe\[wordnet\]"'):
        Scorer.parse("rouge_l.rouge_score_stem").require()
    Scorer.parse("rouge_l.rouge_score").require()


def test_coco_s_rouge_l_is_that_of_its_program() -> None:
    for truth, answer in soup(2, 200, "no effusion lungs clear the of mass"):
        theirs = Rouge().calc_score([answer], [truth])
        assert value("rouge_l.coco", truth, answer) == pytest.approx(theirs, abs=1e-12)


def test_the_longest_common_subsequence() -> None:
    assert longest(list("abcab"), list("cbaba")) == 3
    assert longest([], ["a"]) == longest(["a"], []) == 0
    assert longest(["a", "b"] * 100, ["b", "a"] * 100) == 199


@pytest.mark.parametrize("name", ["rouge_l.coco", "rouge_l.coco_ptb", "token_f1", "cider.coco_ptb"])
def test_a_truth_without_words_is_unscored(name: str) -> None:
    assert Scorer.parse(name).judge(row(" ... ", "left")) == (None, "the truth has no words")
    assert value(name, "left", "") == 0


def cider(name: str, pairs: list[tuple[str, str]], weights: list[list[int]]) -> list[float]:
    scorer = Scorer.parse(name)
    assert isinstance(scorer, SetScorer)
    collected = scorer.collect([row(*pair) for pair in pairs])
    return collected.score(np.array(weights, dtype=np.int64)).tolist()


def test_cider_by_hand() -> None:
    # Three truths; "lung" is in two of them, weight ln 3 / 2; "left" and "clear" in one, ln 3.
    pairs = [("left lung", "left lung lung"), ("lung clear", "clear"), ("mass", "")]
    rare, common = log(3), log(3 / 2)
    # Row 1: one words' cosine with the answer's "lung" clipped to one, and the pair "left lung" (rare)
    # beside "lung lung" (in no truth, also ln 3); the lengths are 2 pairs and 1.
    ones = (rare**2 + common**2) / (sqrt(rare**2 + common**2) * sqrt(rare**2 + 4 * common**2))
    first = (ones + 1 / sqrt(2)) / 4 * exp(-1 / 72)
    second = rare / sqrt(rare**2 + common**2) / 4 * exp(-1 / 72)
    found = cider("cider.coco", pairs, [[1, 1, 1], [2, 0, 1]])
    assert found == pytest.approx([(first + second) / 3, 2 * first / 3], rel=1e-12)
    # Unclipped: the answer's two "lung" count twice. No penalty of length.
    ones = (rare**2 + 2 * common**2) / (sqrt(rare**2 + common**2) * sqrt(rare**2 + 4 * common**2))
    first, second = (ones + 1 / sqrt(2)) / 4, second * exp(1 / 72)
    assert cider("cider.paper", pairs, [[1, 1, 1]]) == pytest.approx([(first + second) / 3])


def test_cider_is_coco_s_by_ten() -> None:
    pairs = soup(3, 60, "no effusion lungs clear the of mass left right")
    reference = CiderScorer(n=4, sigma=6.0)
    for truth, answer in pairs:
        reference += (answer, [truth])
    whole, alone = reference.compute_score()
    assert cider("cider.coco", pairs, [[1] * 60]) == pytest.approx([whole / 10], abs=1e-12)
    assert cider("cider.coco", pairs, np.eye(60, dtype=int).tolist()) == pytest.approx(
        alone / 10, abs=1e-12
    )


def test_cider_weighs_by_the_truths_of_the_rows_together() -> None:
    same = [("left lung", "left lung")]
    assert cider("cider.coco", same, [[1]]) == [0]  # one row tells nothing of what is rare
    assert cider("cider.coco", same * 2, [[1, 1]]) == [0]
    assert cider("cider.coco", [*same, ("no mass seen", "x")], [[1, 0]]) == pytest.approx([1 / 2])
    assert value("cider.coco", *same[0]) == pytest.approx(1 / 2)  # shown beside a row, unweighted
