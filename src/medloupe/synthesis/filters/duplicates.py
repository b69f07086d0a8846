"""Drafts that say again what was said: turn after turn, in a loop, or in an earlier row of the run.

Rows are compared by the words of all their turns: MinHash bands (Broder 1997; Leskovec et al., Mining
of Massive Datasets, 3.4) find candidates, the Jaccard index of their word triples decides. Nothing is
kept here: bands and texts of accepted rows are what `Seen` keeps, on disk and over a resume.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medloupe.data.audit.text import normalised
from medloupe.synthesis.filters.texts import drafted_text
from medloupe.synthesis.types import Draft, Filter, Seen, SourceRow

# 16 bands of 4: a pair of likeness 0.8 is found with probability 0.9998, one of 0.3 with 0.12.
_BANDS: Final = 16
_ROWS: Final = 4
_PRIME: Final = np.uint64((1 << 31) - 1)
_TURN: Final = "duplicates/turns/"
_BAND: Final = "duplicates/band/"


class Duplicates(Filter):
    """Two turns of a row alike, an answer that repeats itself, or a row like an earlier one.

    `likeness` is the Jaccard index of word triples from which two texts count as the same. `over_run`
    looks at earlier rows too: off for labels, whose conversations are alike wherever the images are.
    """

    likeness: float = Field(default=0.8, gt=0, le=1)
    over_run: bool = True

    def judge(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        return self._within(draft) or (self._before(row, draft, seen) if self.over_run else None)

    def _within(self, draft: Draft) -> str | None:
        questions = [normalised(turn.question) for turn in draft.turns]
        answers = [normalised(turn.answer) for turn in draft.turns]
        for number, answer in enumerate(answers, start=1):
            if _loops(answer.split()):
                return f"answer {number} repeats itself"
        for later in range(1, len(questions)):
            for earlier in range(later):
                if alike(questions[earlier], questions[later]) >= self.likeness:
                    return f"questions {earlier + 1} and {later + 1} are the same"
                # Short answers ("Yes.") may well come twice.
                long = len(answers[later].split()) >= 6
                if long and alike(answers[earlier], answers[later]) >= self.likeness:
                    return f"answers {earlier + 1} and {later + 1} are the same"
        return None

    def _before(self, row: SourceRow, draft: Draft, seen: Seen) -> str | None:
        text = normalised(drafted_text(draft))
        keys = [f"{_BAND}{key}" for key in bands(text)]
        candidates = {name for key in keys for name in seen.matches(key) if name != row.id}
        for name in sorted(candidates):
            for earlier in seen.matches(_TURN + name):
                likeness = alike(earlier, text)
                if likeness >= self.likeness:
                    return f"like the conversation of row {name!r} ({likeness:.0%} of word triples)"
        for key in keys:
            seen.note(key, row.id)
        seen.note(_TURN + row.id, text)
        return None


def alike(one: str, other: str) -> float:
    """The Jaccard index of the word triples of two normalised texts."""
    mine, theirs = shingles(one), shingles(other)
    return len(mine & theirs) / len(mine | theirs)


def shingles(text: str) -> frozenset[str]:
    """The word triples of a normalised text; the whole of it where it is shorter."""
    words = text.split()
    if len(words) < 3:
        return frozenset({text})
    return frozenset(" ".join(words[at : at + 3]) for at in range(len(words) - 2))


def bands(text: str) -> Iterator[str]:
    """One key for each band of the text's MinHash signature, the same on every machine."""
    hashes = [hashlib.blake2b(s.encode(), digest_size=4).digest() for s in sorted(shingles(text))]
    values = np.array([struct.unpack("<I", h)[0] for h in hashes], dtype=np.uint64) % _PRIME
    permuted = (_MULTIPLIERS[:, None] * values[None, :] + _OFFSETS[:, None]) % _PRIME
    signature: NDArray[np.uint32] = permuted.min(axis=1).astype("<u4")
    for band in range(_BANDS):
        part = signature[band * _ROWS : (band + 1) * _ROWS].tobytes()
        yield f"{band:02d}:{hashlib.blake2b(part, digest_size=8).hexdigest()}"


def _coefficients(name: str) -> NDArray[np.uint64]:
    """Fixed numbers in 1 .. prime - 1, from a hash rather than a generator that may change."""
    count = _BANDS * _ROWS
    raw = hashlib.shake_256(name.encode()).digest(4 * count)
    drawn = np.frombuffer(raw, dtype="<u4").astype(np.uint64)
    return drawn % (_PRIME - np.uint64(1)) + np.uint64(1)


_MULTIPLIERS: Final = _coefficients("medloupe minhash multiplier")
_OFFSETS: Final = _coefficients("medloupe minhash offset")


def _loops(words: list[str]) -> bool:
    """Whether most runs of four words came before: a teacher caught in a loop."""
    runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return len(runs) >= 8 and len(set(runs)) <= 0.6 * len(runs)
