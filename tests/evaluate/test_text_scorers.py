"""BLEU and METEOR: goldens computed by hand, flavours side by side, and every alignment of small texts."""

from __future__ import annotations

import itertools
from collections import Counter
from math import exp
from pathlib import Path

import numpy as np
import pytest

from medloupe.data.dataset import Dataset
from medloupe.errors import MissingExtraError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.scorers.base import CorpusScorer, Scorer
from medloupe.evaluate.scorers.meteor import align, meteor, stem
from medloupe.evaluate.scorers.mteval import is_chinese, tokens_13a, tokens_zh
from medloupe.evaluate.scorers.wordnet import open_wordnet
from medloupe.evaluate.scorers.words import plain_words
from medloupe.types import EvalRow

BLEU = [name for name in Scorer.table if name.startswith("bleu")]
TEXT = [name for name in Scorer.table if name.startswith(("bleu", "meteor"))]
MAT = ("the cat sat on the mat", "the the cat sat")
LUNG = ("左肺上叶结节", "左肺结节")


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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 4 words for 6: exp(1 - 6 / 4). Words 4 of 4 (the truth has "the" twice as well), pairs 2 of 3
        # ("the the" is not there), threes 1 of 2, fours 0 of 1.
        ("bleu_1.sacrebleu", exp(-0.5)),
        ("bleu_2.sacrebleu", exp(-0.5) * (2 / 3) ** (1 / 2)),
        ("bleu_3.sacrebleu", exp(-0.5) * (2 / 3 * 1 / 2) ** (1 / 3)),
        ("bleu_4.sacrebleu", exp(-0.5) * (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4)),  # 0 of 1 is 1 / 2
        ("bleu_1.nltk", exp(-0.5)),
        ("bleu_2.nltk", exp(-0.5) * (2 / 3) ** (1 / 2)),
        ("bleu_3.nltk", exp(-0.5) * (2 / 3 * 1 / 2) ** (1 / 3)),
        ("bleu_4.nltk", exp(-0.5) * (2 / 3 * 1 / 2 * 0.1) ** (1 / 4)),  # 0 of 1 is 0.1
        ("bleu_4.coco", exp(-0.5) * (2 / 3 * 1 / 2 * 1e-15) ** (1 / 4)),  # 0 of 1 is 1e-15
    ],
)
def test_bleu_of_a_small_pair(name: str, expected: float) -> None:
    assert value(name, *MAT) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # By characters: 4 for 6, singles 4 of 4, pairs 2 of 3 (肺结 is not there), threes 0 of 2, fours 0
        # of 1. sacrebleu's first 0 is 1 / 2 of a count, its second 1 / 4.
        ("bleu_2.sacrebleu", exp(-0.5) * (2 / 3) ** (1 / 2)),
        ("bleu_4.sacrebleu", exp(-0.5) * (2 / 3 * 0.5 / 2 * 0.25 / 1) ** (1 / 4)),
        ("bleu_4.nltk", exp(-0.5) * (2 / 3 * 0.1 / 2 * 0.1 / 1) ** (1 / 4)),
        # 4 matches in 2 chunks: P = 1, R = 4 / 6, P R / (0.9 P + 0.1 R) = 20 / 29, 1 - 0.5 (2 / 4)^3.
        ("meteor.exact_stem", 20 / 29 * 15 / 16),
    ],
)
def test_chinese_counts_by_characters(name: str, expected: float) -> None:
    assert value(name, *LUNG) == pytest.approx(expected, rel=1e-12)


def test_corpus_bleu_is_that_of_the_sums() -> None:
    scorer = Scorer.parse("bleu_4.sacrebleu")
    assert isinstance(scorer, CorpusScorer)
    counted = [scorer.count(row(*pair))[0] for pair in (MAT, ("a b c d", "a b c d"))]
    # 8 words for 10; 8 of 8, 2 + 3 of 3 + 3, 1 + 2 of 2 + 2, 0 + 1 of 1 + 1.
    assert np.sum(counted, axis=0).tolist() == [8, 10, 8, 5, 3, 1, 8, 6, 4, 2]
    together = scorer.combine(np.sum(counted, axis=0))
    assert together == pytest.approx(exp(-1 / 4) * (5 / 6 * 3 / 4 * 1 / 2) ** (1 / 4))
    many = scorer.combine(np.array([counted[0], counted[1], np.zeros(10, dtype=np.int64)]))
    assert many.tolist() == [value(scorer.name, *MAT), 1.0, 0.0]


@pytest.mark.parametrize("name", BLEU)
def test_bleu_of_nothing_of_the_same_and_of_one_word(name: str) -> None:
    long = "no acute fracture is seen"
    assert value(name, long, long) == pytest.approx(1, abs=1e-8)
    assert value(name, long, "yes") == pytest.approx(0, abs=2e-4)
    assert value(name, long, "") == pytest.approx(0, abs=2e-4)
    if name.startswith("bleu_4"):  # where there are no four words, there is no common four
        alone = {"sacrebleu": 0, "nltk": 0.1 ** (3 / 4), "coco": (1e-6) ** (3 / 4)}
        alone["coco_ptb"] = alone["coco"]
        assert value(name, "left", "left") == pytest.approx(alone[name.split(".")[1]], rel=1e-6)


@pytest.mark.parametrize("name", TEXT)
def test_a_truth_without_words_is_unscored(name: str, small_wordnet: Path) -> None:
    truth = "" if "sacrebleu" in name else " ... "
    assert Scorer.parse(name).judge(row(truth, "left")) == (None, "the truth has no words")


@pytest.mark.parametrize("name", TEXT)
def test_a_text_scorer_states_its_tokens(name: str) -> None:
    stated = Scorer.parse(name).stated
    assert "by characters" in stated
    assert ("13a" in stated) == ("sacrebleu" in name)
    assert ("corpus" in stated) == isinstance(Scorer.parse(name), CorpusScorer)


def test_case_counts_for_sacrebleu_only() -> None:
    assert value("bleu_1.sacrebleu", "Left lung", "left lung") == 1 / 2
    assert value("bleu_1.nltk", "Left lung", "left lung") == 1
    assert value("meteor.exact_stem", "Left lung", "left lung") == 1 - 0.5 / 8


def test_the_truth_decides_what_is_chinese() -> None:
    # As 13a the whole Chinese answer is one word; as zh it is four.
    assert value("bleu_1.sacrebleu", "左肺 CT", "左肺") == exp(1 - 3 / 2)
    assert value("bleu_1.sacrebleu", "left CT", "左肺CT") == 0
    assert [is_chinese(text) for text in ("CT", "CT 示", "3.5 mm，", "")] == [
        False,
        True,
        False,
        False,
    ]


def test_tokens() -> None:
    assert plain_words("左肺见 3.5 mm GGO结节, T2-FLAIR!") == [
        "左", "肺", "见", "3.5", "mm", "ggo", "结", "节", "t2", "flair",
    ]  # fmt: skip
    assert tokens_zh("左肺见3.5 mm GGO结节。") == [
        "左", "肺", "见", "3.5", "mm", "GGO", "结", "节", "。",
    ]  # fmt: skip
    assert tokens_13a("It's 1,000.5 mm (&lt;5-6), no.\nEnd-\ning <skipped>x") == [
        "It's", "1,000.5", "mm", "(", "<", "5", "-", "6", ")", ",", "no", ".", "Ending", "x",
    ]  # fmt: skip


def test_meteor_of_small_pairs() -> None:
    # All six words in three chunks: on the mat | sat | the cat. 1 - 0.5 (3 / 6)^3.
    assert value("meteor.exact_stem", MAT[0], "on the mat sat the cat") == 1 - 0.5 / 8
    # small, effusion, seen: P = 3 / 5, R = 3 / 4, in two chunks.
    mean = (3 / 5 * 3 / 4) / (0.9 * 3 / 5 + 0.1 * 3 / 4)
    found = value("meteor.exact_stem", "small effusions are seen", "a small effusion was seen")
    assert found == pytest.approx(mean * (1 - 0.5 * (2 / 3) ** 3))
    assert value("meteor.exact_stem", "left", "left") == 0.5
    assert value("meteor.exact_stem", "left", "right") == 0
    assert value("meteor.exact_stem", "left", "") == 0


def test_negation_and_repetition_cost_what_they_cost() -> None:
    # "no" is one word of five; METEOR and BLEU do not know that it matters.
    truth = "no pleural effusion is seen"
    assert value("meteor.exact_stem", truth, "pleural effusion is seen") == pytest.approx(
        (4 / 5) / (0.9 + 0.1 * 4 / 5) * (1 - 0.5 / 64)
    )
    # "no" five times matches once: P = R = 1 / 5, one chunk of one match.
    assert value("meteor.exact_stem", truth, "no no no no no") == pytest.approx(1 / 5 * 0.5)
    assert value("bleu_1.sacrebleu", truth, "no no no no no") == pytest.approx(1 / 5)


def test_stems_are_porter_s_and_short_words_stay() -> None:
    words = ("opacities", "opacity", "effusions", "enlarging", "as", "is", "s", "肺", "3.5", "été")
    assert [stem(word) for word in words] == [
        "opac", "opac", "effus", "enlarg", "as", "is", "s", "肺", "3.5", "été",
    ]  # fmt: skip


def fewest(said: tuple[str, ...], true: tuple[str, ...]) -> tuple[int, int]:
    """By trying every alignment with the most matches."""
    matches = (Counter(said) & Counter(true)).total()
    best = matches
    for chosen in itertools.combinations(range(len(said)), matches):
        for places in itertools.permutations(range(len(true)), matches):
            if all(said[i] == true[j] for i, j in zip(chosen, places, strict=True)):
                pairs = list(zip(chosen, places, strict=True))
                links = sum(
                    (b[0] - a[0], b[1] - a[1]) == (1, 1) for a, b in itertools.pairwise(pairs)
                )
                best = min(best, matches - links)
    return matches, best


def test_no_alignment_of_a_small_text_has_fewer_chunks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        said, true = (tuple(rng.choice(list("abc"), size=rng.integers(0, 6))) for _ in range(2))
        assert align(said, true) == fewest(said, true), (said, true)


def test_words_that_repeat_are_aligned_for_the_fewest_chunks() -> None:
    # the the cat | the cat the: "the cat" goes together. NLTK, from the end on, breaks it: 3 chunks.
    assert align(["the", "the", "cat"], ["the", "cat", "the"]) == (3, 2)
    assert align(["a", "b"] * 100, ["a", "b"] * 100) == (200, 1)
    assert align(["a", "b"] * 30, ["a", "b"] * 50) == (60, 1)
    assert meteor(3, 2, 3, 3) == pytest.approx(1 - 0.5 * (2 / 3) ** 3)


def test_synonyms_come_from_wordnet(small_wordnet: Path) -> None:
    # small = small, masses -> mass ~ tumor: two matches in one chunk, 1 - 0.5 / 2^3.
    assert value("meteor.nltk_wordnet", "small tumor", "small masses") == 15 / 16
    # Without them one word of two matches: F = 1 / 2, 1 - 0.5.
    assert value("meteor.exact_stem", "small tumor", "small masses") == 1 / 4
    # NLTK's alignment of repeated words: 3 chunks where 2 would do.
    assert value("meteor.nltk_wordnet", "the cat the", "the the cat") == 1 - 0.5
    assert value("meteor.nltk_wordnet", "肺", "肺") == 0.5


def test_wordnet_is_read_as_its_files_say(small_wordnet: Path) -> None:
    def names(word: str) -> list[list[str]]:
        return [
            [lemma.name() for lemma in s.lemmas()]
            for s in open_wordnet(small_wordnet).synsets(word)
        ]

    assert names("Masses") == names("mass") == [["mass", "tumor", "growth"], ["mass", "weight"]]
    assert names("foci") == [["focus"]]  # by exception
    assert names("seen") == names("sees") == [["see", "notice"]]
    assert names("bigger") == []  # neither "bigg" nor "bigge"
    assert names("larger") == [["large", "big"]]
    assert names("light") == [["light", "X-ray_thin"]]
    assert names("unknown") == []
    assert names("masseses") == []  # an ending is changed once, as in NLTK 3.10


def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squares: Dataset
) -> None:
    open_asks = {"scorers": {"open": [{"name": "meteor.nltk_wordnet", "wordnet": str(tmp_path)}]}}
    benchmark = Benchmark.parse({"name": "x", "tasks": ["report"], **open_asks})
    with pytest.raises(
        MissingExtraError, match=r"data\.noun\. Install it with: apt-get install wordnet-base"
    ):
        benchmark.select(squares)  # before a model is asked
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        MissingExtraError, match=r'nltk is not installed.*pip install "medloupe\[wordnet\]"'
    ):
        benchmark.select(squares)
    scorer = Scorer.parse("meteor.nltk_wordnet")
    with pytest.raises(MissingExtraError, match="nltk is not installed"):
        scorer.judge(row("left", "left"))  # where a stored log is scored again
