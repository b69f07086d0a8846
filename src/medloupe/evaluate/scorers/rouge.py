"""ROUGE (Lin 2004): the words, pairs of words, or longest common subsequence that two texts share.

Two conventions are published. `rouge_score` is Google's package (F1 of words of a-z and 0-9, with or
without stems), `coco` the COCO caption evaluation (ROUGE-L with recall weighted by beta = 1.2). The
package's own longest common subsequence is a table in Python; bits in an integer find its length some
hundred times faster, and the scores are the same.
"""

from __future__ import annotations

import importlib.util
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from medloupe.errors import MissingExtraError
from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.mteval import is_chinese
from medloupe.evaluate.scorers.ptb import PTB, ptb_tokens
from medloupe.evaluate.scorers.words import PLAIN, Words, plain_words
from medloupe.types import EvalRow

if TYPE_CHECKING:
    from nltk.stem.porter import PorterStemmer

BETA = 1.2  # COCO's weight of recall

_WORD = re.compile(r"[a-z0-9]+")
_LOWER = "lower-case runs of a-z and 0-9; a Chinese truth and its answer by characters"


class RougeScore(Scorer):
    """The mean over rows of F1, as the package rouge-score 0.1.2 counts it."""

    stems: ClassVar[bool] = False
    stated = f"mean of F1; {_LOWER}; no stems"

    def require(self) -> None:
        if self.stems and importlib.util.find_spec("nltk") is None:
            raise MissingExtraError.naming("nltk", extra="wordnet")

    def judge(self, row: EvalRow) -> Verdict:
        self.require()
        words: Words = plain_words if is_chinese(row.truth) else _stems if self.stems else _runs
        true, said = (
            [words(line) for line in _lines(text)] for text in (row.truth, row.prediction)
        )
        if not any(true):
            return None, "the truth has no words"
        return self.f1(true, said), ""

    @abstractmethod
    def f1(self, true: Sequence[list[str]], said: Sequence[list[str]]) -> float:
        """Of texts as lines of words; 0 where an answer has no words."""


class Rouge1(RougeScore):
    """ROUGE-1: words."""

    def f1(self, true: Sequence[list[str]], said: Sequence[list[str]]) -> float:
        return ngram_f1(_joined(true), _joined(said), 1)


class Rouge2(RougeScore):
    """ROUGE-2: pairs of neighbours; 0 where the truth has one word."""

    def f1(self, true: Sequence[list[str]], said: Sequence[list[str]]) -> float:
        return ngram_f1(_joined(true), _joined(said), 2)


class RougeL(RougeScore):
    """ROUGE-L: the longest common subsequence of the whole texts."""

    def f1(self, true: Sequence[list[str]], said: Sequence[list[str]]) -> float:
        first, second = _joined(true), _joined(said)
        return _f1(longest(first, second), len(first), len(second))


class RougeLsum(RougeScore):
    """ROUGE-Lsum: per line of the truth, the words in a longest common subsequence with any line of the
    answer. Lines are split at line breaks only, so a report of one paragraph is one line (ROUGE-L)."""

    def f1(self, true: Sequence[list[str]], said: Sequence[list[str]]) -> float:
        return lines_f1(true, said)


class Rouge1Stem(Rouge1):
    """ROUGE-1 on stems."""

    stems = True
    stated = f"mean of F1; {_LOWER}; words of four letters and more by NLTK's Porter stems"


class Rouge2Stem(Rouge2):
    """ROUGE-2 on stems."""

    stems = True
    stated = Rouge1Stem.stated


class RougeLStem(RougeL):
    """ROUGE-L on stems."""

    stems = True
    stated = Rouge1Stem.stated


class RougeLsumStem(RougeLsum):
    """ROUGE-Lsum on stems."""

    stems = True
    stated = Rouge1Stem.stated


class CocoRougeL(Scorer):
    """The mean over rows of ROUGE-L by the arithmetic of the COCO caption evaluation (Chen et al. 2015)."""

    stated = f"mean of F with beta {BETA}; {PLAIN}"

    def judge(self, row: EvalRow) -> Verdict:
        true, said = self.words(row)
        return (coco(true, said), "") if true else (None, "the truth has no words")

    def words(self, row: EvalRow) -> tuple[Sequence[str], Sequence[str]]:
        """Of the truth and of the answer."""
        return plain_words(row.truth), plain_words(row.prediction)


class CocoPtbRougeL(CocoRougeL):
    """The same over the Penn Treebank tokens of COCO's own program."""

    stated = f"mean of F with beta {BETA}; {PTB}"

    def words(self, row: EvalRow) -> tuple[Sequence[str], Sequence[str]]:
        if is_chinese(row.truth):
            return super().words(row)
        return ptb_tokens(row.truth), ptb_tokens(row.prediction)


def ngram_f1(true: Sequence[str], said: Sequence[str], n: int) -> float:
    """F1 of n-grams, each as often as both texts have it."""
    ours, theirs = (
        Counter(zip(*(text[start:] for start in range(n)), strict=False)) for text in (said, true)
    )
    return _f1((ours & theirs).total(), theirs.total(), ours.total())


def lines_f1(true: Sequence[list[str]], said: Sequence[list[str]]) -> float:
    """ROUGE-Lsum; a word counts at most as often as both texts have it (as in ROUGE 1.5.5)."""
    left = Counter(_joined(true)) & Counter(_joined(said))
    hits = 0
    for line in true:
        for place in sorted(set().union(*(_places(line, other) for other in said))):
            if left[line[place]]:
                left[line[place]] -= 1
                hits += 1
    return _f1(hits, sum(map(len, true)), sum(map(len, said)))


def coco(true: Sequence[str], said: Sequence[str]) -> float:
    """ROUGE-L with recall weighted by beta; 0 where an answer has no words."""
    common = longest(true, said)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(true)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest(true: Sequence[str], said: Sequence[str]) -> int:
    """The length of the longest common subsequence (bit-parallel: Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(true):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(true)) - 1
    row = whole
    for word in said:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & whole
    return len(true) - row.bit_count()


def _places(true: Sequence[str], said: Sequence[str]) -> list[int]:
    """The places in `true` of one longest common subsequence: which one decides the union, so it is found
    as the package finds it, from the end, leaving a word of the answer only where that is longer."""
    table = [[0] * (len(said) + 1)]
    for word in true:
        above, row = table[-1], [0]
        for column, other in enumerate(said):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[-1]))
        table.append(row)
    i, j, found = len(true), len(said), []
    while i and j:
        if true[i - 1] == said[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found


def _f1(common: int, true: int, said: int) -> float:
    return 2 * common / (true + said) if common else 0.0


def _joined(lines: Sequence[list[str]]) -> list[str]:
    return [word for line in lines for word in line]


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]


def _runs(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _stems(text: str) -> list[str]:
    return [_stem(word) for word in _runs(text)]


@lru_cache(maxsize=2**16)
def _stem(word: str) -> str:
    found: str = word if len(word) <= 3 else _porter().stem(word)
    return found


@lru_cache(maxsize=1)
def _porter() -> PorterStemmer:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
