"""METEOR (Banerjee and Lavie 2005; Lavie and Agarwal 2007): words matched one to one, order counted.

With m matches, precision P = m / words said and recall R = m / words of the truth, and with the matches
in c chunks (runs that stand side by side in both texts):

    METEOR = P R / (alpha P + (1 - alpha) R) * (1 - gamma (c / m) ^ beta)

alpha 0.9, beta 3, gamma 0.5: METEOR 1.0's values before tuning, and NLTK's. One chunk is still a chunk:
a right answer of one word scores 0.5, of two words 0.9375, of five 0.996.
"""

from __future__ import annotations

import importlib.util
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import snowballstemmer

from medloupe.errors import MissingExtraError
from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.wordnet import SYSTEM_FOLDER, WordNet, open_wordnet
from medloupe.evaluate.scorers.words import PLAIN, plain_words
from medloupe.types import EvalRow

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5
BEAM = 40  # METEOR 1.5's

_PORTER = snowballstemmer.stemmer("porter")


class MeteorExactStem(Scorer):
    """The mean over rows of METEOR with equal words and equal Porter (1980) stems as matches.

    Of all alignments with the most matches, the one with the fewest chunks counts (Denkowski and Lavie
    2011), as far as a beam of BEAM finds it. No synonyms, so nothing is downloaded.
    """

    right_from = 0.5  # one word, and it is the truth
    stated = f"mean of METEOR; {PLAIN}; equal words and Porter stems, no synonyms; beam of {BEAM}"

    def judge(self, row: EvalRow) -> Verdict:
        said, true = plain_words(row.prediction), plain_words(row.truth)
        if not true:
            return None, "the truth has no words"
        matches, chunks = align([stem(word) for word in said], [stem(word) for word in true])
        return meteor(matches, chunks, len(said), len(true)), ""


class MeteorNltkWordNet(Scorer):
    """The mean over rows of NLTK's meteor_score: equal words, then stems, then WordNet synonyms.

    NLTK matches each stage from the end of the answer on, to the last word that is free, so where words
    repeat it may count more chunks than need be. `wordnet` is the folder with data.noun and the rest of
    WordNet's database; without it the system's package is used.
    """

    right_from = 0.5
    stated = f"mean of METEOR; {PLAIN}; NLTK's alignment: equal words, stems, WordNet synonyms"

    wordnet: Path | None = None

    def require(self) -> None:
        self._synonyms()

    def _synonyms(self) -> WordNet:
        """
        Raises:
            MissingExtraError: NLTK or WordNet is not installed.
        """
        if importlib.util.find_spec("nltk") is None:
            raise MissingExtraError.naming("nltk", extra="wordnet")
        return open_wordnet(self.wordnet or SYSTEM_FOLDER)

    def judge(self, row: EvalRow) -> Verdict:
        synonyms = self._synonyms()
        from nltk.translate.meteor_score import (
            single_meteor_score,
        )  # 1 s, only where it is asked for

        true = plain_words(row.truth)
        if not true:
            return None, "the truth has no words"
        score = single_meteor_score(true, plain_words(row.prediction), wordnet=synonyms)
        return float(score), ""


def meteor(matches: int, chunks: int, said: int, true: int) -> float:
    """The score, 0 to 1; 0 without a match."""
    if not matches:
        return 0.0
    precision, recall = matches / said, matches / true
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    penalty: float = GAMMA * (chunks / matches) ** BETA
    return mean * (1 - penalty)


@lru_cache(maxsize=2**16)
def stem(word: str) -> str:
    """The Porter stem of a lower-case word; Chinese characters and numbers are their own.

    Words of one or two letters stay (https://tartarus.org/martin/PorterStemmer, point of departure):
    "as" is no form of "a".
    """
    found: str = word if len(word) <= 2 else _PORTER.stemWord(word)
    return found


def align(said: Sequence[str], true: Sequence[str]) -> tuple[int, int]:
    """(matches, chunks): as many equal words as there can be, in as few chunks as can be found.

    The fewest chunks are sought from left to right, with the `BEAM` best beginnings kept: exact for
    short texts, and a bound from above where words repeat often in long ones.
    """
    ours, theirs = Counter(said), Counter(true)
    matches = (ours & theirs).total()
    if said == true or not matches:
        return matches, min(matches, 1)
    return matches, matches - _most_links(said, true)


def _most_links(said: Sequence[str], true: Sequence[str]) -> int:
    """The most neighbours in `said` that can be matched to neighbours in `true`.

    A beginning is (the places of `true` in use as bits, the place that would continue the chunk or
    None), with its links so far. A word is matched where it continues a chunk or may begin one of two;
    those passed over find a free place afterwards, as many as there are, and are chunks of one.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(true):
        places[word].append(place)
    beginnings: dict[tuple[int, int | None], int] = {(0, None): 0}
    for word, after in zip(said, (*said[1:], None), strict=True):
        longer: dict[tuple[int, int | None], int] = {}
        for (used, next_place), links in beginnings.items():
            longer[used, None] = max(longer.get((used, None), 0), links)
            for place in places.get(word, ()):
                follows = place + 1 if after in true[place + 1 : place + 2] else None
                linked = place == next_place
                if used >> place & 1 or not (linked or follows):
                    continue
                key = (used | 1 << place, follows)
                longer[key] = max(longer.get(key, 0), links + linked)
        best = sorted(longer.items(), key=lambda item: (-item[1], item[0][1] is None))
        beginnings = dict(best[:BEAM])
    return max(beginnings.values())
