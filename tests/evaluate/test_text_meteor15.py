"""METEOR 1.5 without Java: the formula by hand, the alignment, and the program itself on a small table."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocoevalcap
import pytest

from medloupe.errors import MissingExtraError
from medloupe.evaluate.scorers import meteor15
from medloupe.evaluate.scorers.base import Scorer
from medloupe.evaluate.scorers.meteor15 import Match, align, matches, meteor
from medloupe.evaluate.scorers.ptb import ptb_tokens
from medloupe.types import EvalRow

FOLDER = Path(next(iter(pycocoevalcap.__path__))) / "meteor"
PARAPHRASES = [("is the", "is this"), ("largest", "main"), ("abnormal", "normal"), ("does", "is")]


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The program's words and synsets, and a table of four paraphrases."""
    (tmp_path / "data").mkdir()
    (tmp_path / "meteor-1.5.jar").symlink_to(FOLDER / "meteor-1.5.jar")
    with gzip.open(tmp_path / "data" / "paraphrase-en.gz", "wt") as stream:
        stream.writelines(f"0.5\n{phrase}\n{other}\n" for phrase, other in PARAPHRASES)
    monkeypatch.setattr(meteor15, "_folder", lambda: tmp_path)
    caches = (meteor15._data, meteor15._paraphrases, meteor15._forms, meteor15._counted)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


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


def value(truth: str, prediction: str) -> float | None:
    return Scorer.parse("meteor.java15").judge(row(truth, prediction))[0]


def test_the_formula_by_hand() -> None:
    # "the" is a function word (0.25), others weigh 0.75; effusion ~ effusions by stem, 0.6. All three
    # words in one chunk, but not the whole answer: the penalty is 0.6 (1 / 3)^0.2.
    recall = (0.25 + 0.75 + 0.6 * 0.75) / (0.25 + 2 * 0.75)
    precision = (0.25 + 0.75 + 0.6 * 0.75) / (0.25 + 3 * 0.75)
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    found = value("the left effusion", "the left effusions seen")
    assert found == pytest.approx(mean * (1 - 0.6 * (1 / 3) ** 0.2))
    assert value("left lung", "left lung") == 1  # the whole truth in its order pays no penalty
    assert value("left", "") == value("left", "mass") == 0
    assert value("...", "left") is None
    assert value("左肺上叶", "左肺") == pytest.approx(
        (1 / 2) / (0.85 + 0.15 / 2) * (1 - 0.6 * (1 / 2) ** 0.2)
    )


def test_counts_are_summed_before_the_formula() -> None:
    scorer = Scorer.parse("meteor.java15")
    assert isinstance(scorer, meteor15.MeteorJava15)
    counts = [scorer.count(row("left lung", answer))[0] for answer in ("left lung", "right lung")]
    whole = scorer.combine(np.sum(counts, axis=0))
    # 3 of 4 words either way, in 2 chunks.
    assert whole == pytest.approx(0.75 * (1 - 0.6 * (2 / 3) ** 0.2))
    assert meteor(np.zeros((3, 21), dtype=np.int64)).tolist() == [0, 0, 0]


def test_words_match_by_stem_synset_and_phrase() -> None:
    found = matches(("is", "this", "image", "effusions"), ("is", "the", "picture", "effusion"))
    assert found == [
        [Match(0, 1, 1, 0), Match(0, 1, 1, 2), Match(0, 2, 2, 3)],
        [],
        [Match(2, 1, 1, 2)],
        [Match(3, 1, 1, 1), Match(3, 1, 1, 2)],
    ]


def test_a_match_that_shares_no_word_is_taken() -> None:
    alone = [[Match(3, 1, 1, 3)], [], []]
    assert align(("a",) * 4, ("b",) * 3, alone) == (((0, Match(3, 1, 1, 3)),), 1)
    twice = [[Match(3, 1, 1, 2), Match(3, 1, 1, 3)], [], []]
    assert align(("a",) * 4, ("b",) * 3, twice) == ((), 0)  # not worth a chunk of its own


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Left-sided T2/FLAIR, 3.5 mm.", "left sided t2 / flair 3.5 mm"),
        ("It isn't the U.S. (e.g. 5%)", "it is n 't the us -lrb- eg 5 % -rrb-"),
        ("the patient's 12:30", "the patient ' s 12 : 30"),
    ],
)
def test_words_are_the_program_s(text: str, words: str) -> None:
    assert " ".join(meteor15._english(text)) == words


PAIRS = [
    ("What is the main organ in the image? Lung", "What is the largest organ in the picture? Lung"),
    ("Does the liver look normal? Yes", "Does the kidney look abnormal? No"),
    ("Is this image normal? No", "Can pneumothorax be seen in this picture? Yes"),
    ("Small left-sided effusion is seen", "a small effusion is seen on the left side"),
    (
        "The heart isn't enlarged; T2/FLAIR 3.5 mm.",
        "Heart size is normal, 5% of the patient's U.S. norm",
    ),
    ("no no the the cat", "the cat no the no no"),
    ("nothing alike", "entirely different"),
]


@pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime")
def test_the_counts_are_the_program_s(small: Path) -> None:
    scorer = Scorer.parse("meteor.java15")
    assert isinstance(scorer, meteor15.MeteorJava15)
    command = [
        "java",
        "-Dfile.encoding=UTF-8",
        "-XX:+UseSerialGC",
        "-jar",
        "meteor-1.5.jar",
        "-",
        "-",
    ]
    command += ["-stdio", "-l", "en", "-norm", "-a", str(small / "data" / "paraphrase-en.gz")]
    split = [[" ".join(ptb_tokens(text)) for text in pair] for pair in PAIRS]
    done = subprocess.run(
        command,
        cwd=FOLDER,
        input="".join(f"SCORE ||| {true} ||| {said}\n" for true, said in split),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    for pair, line in zip(PAIRS, done.stdout.splitlines(), strict=True):
        theirs = np.array([int(float(number)) for number in line.split()])
        by_stage = theirs[4:20].reshape(4, 2, 2).swapaxes(1, 2).ravel()  # said, true -> by kind
        counts, _ = scorer.count(row(*pair))
        assert counts == (*theirs[:4], *by_stage, theirs[20]), pair


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r'pycocoevalcap is not.*"medloupe\[meteor\]"'):
        Scorer.parse("meteor.java15").require()
