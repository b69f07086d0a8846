"""Near duplicates in two steps: hashes say which pairs to look at, aligned thumbnails decide.

Radiographs of one kind all look alike, so a hash alone floods: of 75,466 pairs of chest radiographs
50 lie within 8 bits, and one is a copy. What a copy keeps and another film does not is fine structure
in place. So thumbnails are high-passed, aligned over small crops, and correlated.
Letters: P pairs, S `SIDE`, F `_FINE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medloupe.data.audit.hamming import HammingIndex, Numbers
from medloupe.data.audit.look import CROPS, SIDE, TURNS, Look, Turn

RADIUS: Final = 8
# What a pair must reach to be looked at more closely: 16 x 16 as it is, then at the crop that met.
_COARSE: Final = 0.8
_ROUGH: Final = 0.8
_FINE: Final = 48
_BLUR: Final = 5.0  # pixels of the fine view; what is broader is anatomy that all images share
_MARGINS: Final = (0.02, 0.04)
_CHUNK: Final = 512

Crop = tuple[float, float, float, float]
Thumbnails = NDArray[np.uint8]  # [N, S, S]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class NearPair:
    """Images `first` < `second`, how they are alike, and their correlation."""

    first: int
    second: int
    how: str
    score: float


def near_pairs(
    looks: Sequence[Look], sides: Numbers, opposed: NDArray[np.bool_], similarity: float
) -> tuple[list[NearPair], int]:
    """Near duplicates between opposed sides, and how many pairs of hashes were compared.

    `sides` `[N]` is the side of each image, `opposed` (symmetric) which sides are held against each
    other.
    """
    seen = np.array([n for n, look in enumerate(looks) if look.hashes is not None], dtype=np.int64)
    if len(seen) < 2 or not opposed.any():
        return [], 0
    hashes = np.stack([h for look in looks if (h := look.hashes) is not None])
    thumbnails = np.stack([t for look in looks if (t := look.thumbnail) is not None])
    search = _Search(hashes, sides[seen], opposed)
    best: dict[tuple[int, int], NearPair] = {}
    for number, (how, turn) in enumerate(TURNS.items()):
        candidates = search.candidates(number)
        for (one, other), score in _verified(candidates, thumbnails, turn, similarity):
            first, second = sorted((int(seen[one]), int(seen[other])))
            known = best.get((first, second))
            if known is None or known.score < score:
                best[first, second] = NearPair(first, second, how, score)
    return [best[key] for key in sorted(best)], search.compared


class _Search:
    """Pairs whose hashes met. Every image is filed as it is and cropped; those on all sides but the
    largest ask, as they are and cropped, so that either of a pair may be the cropped one."""

    def __init__(
        self, hashes: NDArray[np.uint64], side: Numbers, opposed: NDArray[np.bool_]
    ) -> None:
        self.hashes, self.side, self.opposed = hashes, side, opposed
        self.whole = HammingIndex(hashes[:, 0, 0], RADIUS)
        self.cropped = HammingIndex(hashes[:, 0, 1:].ravel(), RADIUS)
        largest = int(np.argmax(np.bincount(side, minlength=len(opposed))))
        everybody = bool(opposed[largest, largest])
        self.asking = np.flatnonzero(everybody | (side != largest))

    @property
    def compared(self) -> int:
        return self.whole.compared + self.cropped.compared

    def candidates(self, turn: int) -> Numbers:
        """`[P, 4]`, sorted: the image that asks (turned), the filed image, the crop of each."""
        width = len(CROPS)
        asked = self.hashes[self.asking, turn]  # [A, crops]
        found = [np.empty((0, 4), dtype=np.int64)]
        for query, filed in self.whole.pairs(asked.ravel()):
            found.append(self._kept(self.asking[query // width], filed, query % width, 0 * filed))
        for query, filed in self.cropped.pairs(np.ascontiguousarray(asked[:, 0])):
            image, crop = np.divmod(filed, width - 1)
            found.append(self._kept(self.asking[query], image, 0 * query, crop + 1))
        candidates: Numbers = np.unique(np.concatenate(found), axis=0)
        return candidates

    def _kept(self, *columns: Numbers) -> Numbers:
        one, other, _, _ = columns
        keep = (one != other) & self.opposed[self.side[one], self.side[other]]
        kept: Numbers = np.stack(columns, axis=1)[keep]
        return kept


Verified = Iterator[tuple[tuple[int, int], float]]


def _verified(
    candidates: Numbers, thumbnails: Thumbnails, turn: Turn, similarity: float
) -> Verified:
    for start in range(0, len(candidates), _CHUNK):
        part = candidates[start : start + _CHUNK]
        one, other = turn(thumbnails[part[:, 0]]), thumbnails[part[:, 1]]
        part = part[_correlation(_pooled(one), _pooled(other)) >= _COARSE]
        pairs, which = np.unique(part[:, :2], axis=0, return_inverse=True)
        score = np.zeros(len(pairs), dtype=np.float32)
        np.maximum.at(score, which.ravel(), _at_crops(part, thumbnails, turn))
        doubtful = np.flatnonzero((score >= _ROUGH) & (score < similarity))
        score[doubtful] = _aligned(pairs[doubtful], thumbnails, turn)
        for pair in np.flatnonzero(score >= similarity):
            yield (int(pairs[pair, 0]), int(pairs[pair, 1])), round(float(score[pair]), 4)


def _pooled(thumbnails: Thumbnails) -> Vectors:
    """`[P, 16, 16]`: means of squares."""
    step = SIDE // 16
    pooled: Vectors = thumbnails.reshape(-1, 16, step, 16, step).mean(axis=(2, 4), dtype=np.float32)
    return pooled


def _at_crops(part: Numbers, thumbnails: Thumbnails, turn: Turn) -> Vectors:
    """The correlation at the crops whose hashes met."""
    score = np.zeros(len(part), dtype=np.float32)
    for mine, theirs in np.unique(part[:, 2:], axis=0):
        rows = np.flatnonzero((part[:, 2] == mine) & (part[:, 3] == theirs))
        one, other = turn(thumbnails[part[rows, 0]]), thumbnails[part[rows, 1]]
        score[rows] = _correlation(_cut(one, CROPS[mine]), _cut(other, CROPS[theirs]))
    return score


def _aligned(pairs: Numbers, thumbnails: Thumbnails, turn: Turn) -> Vectors:
    """The best correlation over small crops of either."""
    best = np.zeros(len(pairs), dtype=np.float32)
    if not len(pairs):
        return best
    one, other = turn(thumbnails[pairs[:, 0]]), thumbnails[pairs[:, 1]]
    plain_one, plain_other = _cut(one, CROPS[0]), _cut(other, CROPS[0])
    for crop in _small_crops():
        best = np.maximum(best, _correlation(_cut(one, crop), plain_other))
        best = np.maximum(best, _correlation(plain_one, _cut(other, crop)))
    return best


def _cut(thumbnails: Thumbnails, crop: Crop) -> Vectors:
    """`[P, F, F]`: the rest after cropping, high-passed."""
    left, upper, right, lower = crop
    views = thumbnails.astype(np.float32)
    cut = _resampled(views, _resampler(upper, lower), _resampler(left, right))
    return cut - _resampled(cut, _blur(), _blur())


def _resampled(views: Vectors, rows: Vectors, columns: Vectors) -> Vectors:
    """`rows @ view @ columns.T` of each view."""
    resampled: Vectors = np.matmul(rows, np.matmul(views, columns.T))
    return resampled


def _correlation(one: Vectors, other: Vectors) -> Vectors:
    """Pearson's, of each pair."""
    one, other = _centred(one), _centred(other)
    size = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    pearson: Vectors = ((one * other).sum(axis=1) / np.maximum(size, 1e-6)).astype(np.float32)
    return pearson


def _centred(views: Vectors) -> Vectors:
    """`[P, pixels]` of mean zero."""
    flat: Vectors = views.reshape(len(views), views[:1].size)
    centred: Vectors = flat - flat.mean(axis=1, keepdims=True, dtype=np.float32)
    return centred


@cache
def _small_crops() -> tuple[Crop, ...]:
    """Crops by each margin, at nine places each."""
    shares = (0.0, 0.5, 1.0)
    return tuple(
        (margin * x, margin * y, margin * (1 - x), margin * (1 - y))
        for margin in _MARGINS
        for y in shares
        for x in shares
    )


@cache
def _resampler(before: float, after: float) -> Vectors:
    """`[F, S]`: linear interpolation of what is left between two cut-off shares."""
    length = SIDE * (1 - before - after)
    centres = SIDE * before + (np.arange(_FINE) + 0.5) * length / _FINE - 0.5
    distance = np.abs(centres[:, None] - np.arange(SIDE)[None])
    weights = np.maximum(0.0, 1.0 - distance / max(1.0, length / _FINE))
    rows: Vectors = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows


@cache
def _blur() -> Vectors:
    """`[F, F]`: a Gaussian of `_BLUR` pixels, normalised at the edges."""
    place = np.arange(_FINE)
    weights = np.exp(-0.5 * ((place[:, None] - place[None]) / _BLUR) ** 2)
    rows: Vectors = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows
