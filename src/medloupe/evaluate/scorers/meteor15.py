"""METEOR 1.5 (Denkowski and Lavie 2014) as COCO's caption evaluation calls it, without Java.

Words match by being equal, by stem, by a synset of WordNet they share, and phrases by a table of
paraphrases, with the weights 1, 0.6, 0.8, 0.6; function words weigh 0.25, others 0.75. What the rows count
is summed before the formula is applied.

Which of the possible matches are taken was learnt from what the program answers, not from its source, and is
the one thing that differs (docs/metrics.md says how often): a match that shares no word with another is
taken; of the others those that cover most words, equal ones before the rest, less a cost for each chunk they
begin, then the nearest places, as far as a beam of 40 finds them.

The words, synsets and paraphrases are data inside the package pycocoevalcap, read where it is installed.
"""

from __future__ import annotations

import gzip
import importlib.util
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import snowballstemmer
from numpy.typing import NDArray

from medloupe.errors import MissingExtraError
from medloupe.evaluate.scorers.base import CorpusScorer, Counted
from medloupe.evaluate.scorers.mteval import is_chinese
from medloupe.evaluate.scorers.ptb import PTB, ptb_tokens
from medloupe.evaluate.scorers.words import CJK, plain_words
from medloupe.types import EvalRow

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # English, task "rank"
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
COVER = (
    1.0,
    0.5,
    0.5,
    0.5,
)  # what a covered word is worth to the alignment, and what a chunk costs
CHUNK = 1.3
BEAM = 40

_STEMMER = snowballstemmer.stemmer("english")

Words = tuple[str, ...]


class MeteorJava15(CorpusScorer):
    """METEOR of all rows as pycocoevalcap's: Penn Treebank tokens, normalised as with -norm."""

    stated = (
        f"corpus METEOR 1.5; {PTB}; exact, stem, synonym, paraphrase; alpha {ALPHA}, beta "
        f"{BETA}, gamma {GAMMA}, delta {DELTA}"
    )

    def require(self) -> None:
        _folder()

    def count(self, row: EvalRow) -> Counted:
        words = _chinese if is_chinese(row.truth) else _english
        true = words(row.truth)
        if not true:
            return None, "the truth has no words"
        return _counted(words(row.prediction), true), ""

    def combine(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        return meteor(counts)


class Match(NamedTuple):
    """`said` words of the answer from `place` on, for `true` words of the truth, in one of four stages."""

    place: int
    said: int
    true: int
    stage: int


def meteor(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[..., 21]` sums -> `[...]` scores. The counts: words said and true, function words among them; by
    stage and of each the matched content and function words (said, true); chunks."""
    c = counts.astype(np.float64)
    matched = c[..., 4:20].reshape(
        *c.shape[:-1], 4, 4
    )  # stage; said, said function, true, true function
    sides = []
    for side in (0, 1):
        words, function = c[..., side], c[..., 2 + side]
        whole = DELTA * (words - function) + (1 - DELTA) * function
        found = matched[..., 2 * side : 2 * side + 2] @ np.array([DELTA, 1 - DELTA]) @ WEIGHTS
        sides.append(found / np.maximum(whole, 1e-12))
    precision, recall = sides
    below = ALPHA * precision + (1 - ALPHA) * recall
    mean = precision * recall / np.where(below > 0, below, 1)
    said, true = matched[..., :2].sum((-1, -2)), matched[..., 2:].sum((-1, -2))
    chunks = c[..., 20]
    alone = (
        (chunks == 1) & (said == c[..., 0]) & (true == c[..., 1])
    )  # the whole truth, in its order
    share = np.where(alone, 0, chunks / np.maximum((said + true) / 2, 1))
    result: NDArray[np.float64] = mean * (1 - GAMMA * share**BETA)
    return result


@lru_cache(maxsize=2**10)
def _counted(said: Words, true: Words) -> tuple[int, ...]:
    data = _data()
    alike = [[Match(place, 1, 1, 0)] for place in range(len(true))]
    taken, chunks = align(said, true, alike if said == true else matches(said, true))
    function = [sum(word in data.function for word in text) for text in (said, true)]
    by_stage = np.zeros((4, 4), dtype=np.int64)
    for start, match in taken:
        for side, words in (
            (0, said[match.place : match.place + match.said]),
            (2, true[start : start + match.true]),
        ):
            small = sum(word in data.function for word in words)
            by_stage[match.stage, side : side + 2] += (len(words) - small, small)
    return (len(said), len(true), *function, *by_stage.ravel().tolist(), chunks)


def matches(said: Words, true: Words) -> list[list[Match]]:
    """For each place of the truth what could match there, once for every stage that says so."""
    ours, theirs = ([_forms(word) for word in text] for text in (said, true))
    found: list[list[Match]] = [[] for _ in true]
    for start, (word, (stem, synsets)) in enumerate(zip(true, theirs, strict=True)):
        for place, (other, (other_stem, other_synsets)) in enumerate(zip(said, ours, strict=True)):
            if word == other:
                found[start].append(Match(place, 1, 1, 0))
            elif stem == other_stem:
                found[start].append(Match(place, 1, 1, 1))
            if synsets & other_synsets:
                found[start].append(Match(place, 1, 1, 2))
    for start, place, n_true, n_said in _paraphrases().between(true, said):
        found[start].append(Match(place, n_said, n_true, 3))
    return found


class _Path(NamedTuple):
    """A beginning of an alignment: what it is worth, chunks, distances of places; what of the answer is in
    use, as bits; where the last match ended (truth, answer); the matches."""

    gain: float
    chunks: int
    distance: int
    used: int
    end: tuple[int, int]
    taken: tuple[tuple[int, Match], ...]


def align(
    said: Words, true: Words, found: Sequence[Sequence[Match]]
) -> tuple[tuple[tuple[int, Match], ...], int]:
    """The matches of the best alignment, each with its place in the truth, and the number of chunks."""
    sole = _sole(found, len(said), len(true))
    waiting: list[dict[tuple[int, tuple[int, int]], _Path]] = [{} for _ in range(len(true) + 1)]
    _offer(waiting[0], _Path(0.0, 0, 0, 0, (-1, -1), ()))
    for start in range(len(true)):
        for path in sorted(waiting[start].values(), key=_better)[:BEAM]:
            if start not in sole:
                _offer(waiting[start + 1], path)
            for match in found[start]:
                bits = ((1 << match.said) - 1) << match.place
                if path.used & bits:
                    continue
                begins = path.end != (start, match.place)
                longer = _Path(
                    path.gain
                    + COVER[match.stage] * (match.said + match.true)
                    - CHUNK * (begins and start not in sole),
                    path.chunks + begins,
                    path.distance + abs(start - match.place),
                    path.used | bits,
                    (start + match.true, match.place + match.said),
                    (*path.taken, (start, match)),
                )
                _offer(waiting[start + match.true], longer)
    best = min(waiting[-1].values(), key=_better)
    return best.taken, best.chunks


def _sole(found: Sequence[Sequence[Match]], said: int, true: int) -> set[int]:
    """The places of matches that share no word with another: they are taken as they are."""
    ours, theirs = np.zeros(said, dtype=np.int64), np.zeros(true, dtype=np.int64)
    for start, options in enumerate(found):
        for match in options:
            ours[match.place : match.place + match.said] += 1
            theirs[start : start + match.true] += 1
    return {
        start
        for start, options in enumerate(found)
        for match in options
        if ours[match.place : match.place + match.said].max() == 1
        and theirs[start : start + match.true].max() == 1
    }


def _better(path: _Path) -> tuple[float, int, int]:
    return -round(path.gain, 9), path.chunks, path.distance


def _offer(places: dict[tuple[int, tuple[int, int]], _Path], path: _Path) -> None:
    key = (path.used, path.end)
    if key not in places or _better(path) < _better(places[key]):
        places[key] = path


class _Paraphrases:
    """A table of phrases and what may stand for them, held as sorted 64-bit hashes."""

    longest = 7  # words in a phrase

    def __init__(self, file: Path) -> None:
        with gzip.open(file) as stream:  # probability, phrase, phrase
            hashes = np.fromiter((hash(line.rstrip()) for line in stream), dtype=np.int64)
        self.pairs = np.unique(_key(hashes[1::3], hashes[2::3]))
        self.phrases = np.unique(np.concatenate([hashes[1::3], hashes[2::3]]))

    def between(self, true: Words, said: Words) -> Iterator[tuple[int, int, int, int]]:
        """(place in the truth, place in the answer, words of the one, words of the other); twice where
        the table has both directions."""
        theirs, ours = self._phrases(true), self._phrases(said)
        if not len(theirs) or not len(ours):
            return
        ahead = _key(ours[None, :, 2], theirs[:, None, 2])
        back = _key(theirs[:, None, 2], ours[None, :, 2])
        for pairs in (ahead, back):
            for row, column in np.argwhere(_among(pairs, self.pairs)).tolist():
                start, n_true, _ = theirs[row].tolist()
                place, n_said, _ = ours[column].tolist()
                yield start, place, n_true, n_said

    def _phrases(self, text: Words) -> NDArray[np.int64]:
        """`[N, 3]` (place, words, hash) of the phrases that the table knows."""
        words = [word.encode() for word in text]
        found = [
            (start, end - start, hash(b" ".join(words[start:end])))
            for start in range(len(words))
            for end in range(start + 1, min(start + self.longest, len(words)) + 1)
        ]
        phrases = np.array(found, dtype=np.int64).reshape(-1, 3)
        return phrases[_among(phrases[:, 2], self.phrases)]


def _key(phrase: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """One hash of two; which is first counts."""
    result: NDArray[np.int64] = phrase * np.int64(0x1E3779B97F4A7C15) ^ other
    return result


def _among(values: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    result: NDArray[np.bool_] = known[at] == values
    return result


class _Data(NamedTuple):
    """METEOR's own."""

    function: frozenset[str]
    exceptions: dict[str, list[str]]
    synsets: dict[str, frozenset[str]]


@lru_cache(maxsize=1)
def _data() -> _Data:
    """Read once."""
    with zipfile.ZipFile(_folder() / "meteor-1.5.jar") as jar:

        def lines(name: str) -> list[str]:
            return jar.read(name).decode().splitlines()

        synsets, exceptions = lines("synonym/english.synsets"), lines("synonym/english.exceptions")
        return _Data(
            frozenset(lines("function/english.words")),
            _bases(exceptions),
            {word: frozenset(ids) for word, ids in _pairs(synsets).items()},
        )


@lru_cache(maxsize=1)
def _paraphrases() -> _Paraphrases:
    """Read once, where two texts differ; some seconds and 0.2 GB."""
    return _Paraphrases(_folder() / "data" / "paraphrase-en.gz")


def _pairs(lines: Sequence[str]) -> dict[str, list[str]]:
    """A word on one line, what belongs to it on the next."""
    found: dict[str, list[str]] = defaultdict(list)
    for word, rest in zip(lines[::2], lines[1::2], strict=True):
        found[word] += rest.split()
    return dict(found)


def _bases(lines: Sequence[str]) -> dict[str, list[str]]:
    """Irregular forms: a word on one line, its forms on the next."""
    found: dict[str, list[str]] = defaultdict(list)
    for base, forms in _pairs(lines).items():
        for form in forms:
            found[form].append(base)
    return dict(found)


def _folder() -> Path:
    """
    Raises:
        MissingExtraError: pycocoevalcap is not installed.
    """
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError.naming("pycocoevalcap", extra="meteor")
    return Path(found.submodule_search_locations[0]) / "meteor"


@lru_cache(maxsize=2**16)
def _forms(word: str) -> tuple[str, frozenset[str]]:
    """The Snowball stem, and the synsets of the word and its base forms."""
    data = _data()
    bases = (word, *(data.exceptions.get(word) or _shorter(word)))
    return _STEMMER.stemWord(word), frozenset().union(*(data.synsets.get(b, ()) for b in bases))


def _shorter(word: str) -> list[str]:
    """What WordNet's rules of endings leave of a word."""
    return [word.removesuffix(end) + new for end, new in _ENDINGS if word.endswith(end)]


_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
    ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
)  # fmt: skip

_ACRONYM = re.compile(r"(?<!\S)(?:\w\.){2,}(?!\S)")
_MARK = re.compile(rf"([^\w\s.'-]|[_{CJK}]|,(?!\d)|(?<!\d),)")
_STOP = re.compile(r"(?<=[^\s.])\.(?=\s+[^a-z\s]|\s*$)")


def _english(text: str) -> Words:
    return _normalised(" ".join(ptb_tokens(text)))


def _chinese(text: str) -> Words:
    return tuple(plain_words(text))


def _normalised(text: str) -> Words:
    """As METEOR's -norm splits words, found from what the program answers: a hyphen within a word parts
    it, "u.s." is us, an apostrophe stands alone or begins the second half of a word."""
    text = re.sub(r"--+", "-", text).replace("``", '"').replace("''", '"').replace("`", "'")
    text = _ACRONYM.sub(lambda match: match[0].replace(".", ""), text)
    text = re.sub(r"(\w)-(\w)", r"\1 \2", text)
    text = _MARK.sub(r" \1 ", text)
    text = re.sub(r"(\w)'(\w)", r"\1 '\2", re.sub(r"(?<!\w)'|'(?!\w)", " ' ", text))
    return tuple(_STOP.sub(" .", text).split())
