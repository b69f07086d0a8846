"""WordNet's synonyms (Miller 1995), read from the database files of WordNet 3.0 (wndb(5WN)).

Looked up as NLTK does, with its base forms ("lungs" is lung): it is NLTK's METEOR that asks. NLTK's own
reader wants two files that the system's packages do not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from medloupe.errors import MissingExtraError

SYSTEM_FOLDER = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it

_ENDINGS = {
    "noun": (
        ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"),
        ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"),
        ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip


class Lemma(NamedTuple):
    """One word of a synset; two words are joined by an underscore."""

    word: str

    def name(self) -> str:
        return self.word


class Synset(NamedTuple):
    """Words that mean the same."""

    words: tuple[Lemma, ...]

    def lemmas(self) -> tuple[Lemma, ...]:
        return self.words


class WordNet:
    """The part of NLTK's WordNetCorpusReader that its METEOR calls."""

    def __init__(self, folder: Path) -> None:
        self._parts = [_Part(folder, name) for name in _ENDINGS]

    def synsets(self, word: str) -> list[Synset]:
        """Every synset of every base form of a word; none for a word that WordNet does not know."""
        return [synset for part in self._parts for synset in part.synsets(word.lower())]


class _Part:
    """One part of speech: index, data and exceptions."""

    def __init__(self, folder: Path, name: str) -> None:
        self.endings = _ENDINGS[name]
        self.data = (folder / f"data.{name}").read_bytes()
        self.offsets = dict(_indexed(line) for line in _lines(folder / f"index.{name}"))
        self.exceptions: dict[str, list[str]] = {}
        for line in _lines(folder / f"{name}.exc"):
            inflected, *bases = line.split()
            self.exceptions[inflected] = bases

    def synsets(self, word: str) -> list[Synset]:
        return [self.synset(at) for form in self.base_forms(word) for at in self.offsets[form]]

    def synset(self, offset: int) -> Synset:
        """offset, file, type, number of words (hexadecimal), then each word and its sense number."""
        line = self.data[offset : self.data.index(b"\n", offset)].decode()
        fields = line.split(" | ")[0].split()
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        return Synset(tuple(Lemma(word.split("(")[0]) for word in words))

    def base_forms(self, word: str) -> list[str]:
        """The known ones of the word and its bases: by exception or, else, by one change of its ending, as
        in NLTK 3.10."""
        return self.known([word, *self.exceptions.get(word, self.shorter(word))])

    def shorter(self, word: str) -> list[str]:
        return [
            word.removesuffix(ending) + instead
            for ending, instead in self.endings
            if word.endswith(ending)
        ]

    def known(self, forms: Sequence[str]) -> list[str]:
        return [form for form in dict.fromkeys(forms) if form in self.offsets]


@lru_cache(maxsize=2)
def open_wordnet(folder: Path) -> WordNet:
    """WordNet from a folder; about a second, once.

    Raises:
        MissingExtraError: its files are not there.
    """
    try:
        return WordNet(folder)
    except FileNotFoundError as error:
        raise MissingExtraError(
            f"WordNet is not installed: there is no {error.filename}",
            remedy="Install it with: apt-get install wordnet-base (Debian, Ubuntu), or name its folder",
            field="wordnet",
        ) from None


def _lines(path: Path) -> list[str]:
    """Without the licence, whose lines begin with a space."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != " "]


def _indexed(line: str) -> tuple[str, tuple[int, ...]]:
    """lemma, part of speech, number of synsets, ..., and at the end the synsets' offsets."""
    fields = line.split()
    return fields[0], tuple(int(offset) for offset in fields[-int(fields[2]) :])
