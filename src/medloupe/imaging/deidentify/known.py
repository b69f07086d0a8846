"""Names and numbers that are known from a header or table, looked for in text.

By looking words up, not by one pattern of all of them: a hospital's export knows ten thousand patients,
and every report is compared with all of them.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, Literal

# Letters and digits; an underscore ends a word (SMITH_CT), and ideographs are no words of this kind.
_TOKEN: Final = re.compile(r"[^\W_\u3400-\u9fff]+")
_IDEOGRAPH: Final = re.compile("[\u3400-\u9fff]")
_WIDEST_GAP: Final = 3  # of signs and spaces inside a name or number: `Smith - Jones`
Span = tuple[Literal["name", "id"], int, int]


class KnownWords:
    """Finds every word of the names, and the ids as a whole, whatever their case and punctuation.

    Two letters are a name only as `Li` or `LI`. Names in ideographs are found inside a run of others.
    """

    def __init__(self, names: Iterable[str] = (), ids: Iterable[str] = ()) -> None:
        self._tokens: defaultdict[str, set[tuple[Literal["name", "id"], tuple[str, ...]]]]
        self._tokens = defaultdict(set)
        self._scripts: defaultdict[str, set[tuple[Literal["name", "id"], str]]] = defaultdict(set)
        for part in name_parts(names):
            self._add("name", part)
        for number in ids:
            self._add("id", number)

    def _add(self, kind: Literal["name", "id"], known: str) -> None:
        if _IDEOGRAPH.search(known):
            self._scripts[known[:2]].add((kind, known))
        elif tokens := tuple(_TOKEN.findall(known.lower())):
            self._tokens[tokens[0]].add((kind, tokens))

    def find(self, text: str) -> Iterator[Span]:
        """(kind, start, end) of each; they may overlap."""
        tokens = list(_TOKEN.finditer(text)) if self._tokens else []
        for number, token in enumerate(tokens):
            for kind, wanted in self._tokens.get(token[0].lower(), ()):
                run = tokens[number : number + len(wanted)]
                if self._fits(run, wanted, kind):
                    yield kind, token.start(), run[-1].end()
        for at in range(len(text) - 1) if self._scripts else ():
            for kind, known in self._scripts.get(text[at : at + 2], ()):
                if text.startswith(known, at):
                    yield kind, at, at + len(known)

    def _fits(self, run: list[re.Match[str]], wanted: tuple[str, ...], kind: str) -> bool:
        if tuple(token[0].lower() for token in run) != wanted:
            return False
        first = run[0][0]
        if kind == "name" and len(wanted) == 1 and len(first) == 2:
            return first in (first.title(), first.upper())
        return all(b.start() - a.end() <= _WIDEST_GAP for a, b in itertools.pairwise(run))

    def replaced(self, text: str, filler: str) -> str:
        """The text with a filler for each."""
        parts, done = [], 0
        for _, start, end in sorted(self.find(text), key=lambda span: (span[1], -span[2])):
            if end > done:
                parts += [text[done:start], filler] if start >= done else []
                done = end
        return "".join([*parts, text[done:]])

    def is_all(self, text: str) -> bool:
        """Whether the text is made of them and of nothing else."""
        return any(map(str.isalnum, text)) and not any(map(str.isalnum, self.replaced(text, "")))


def name_parts(names: Iterable[str]) -> list[str]:
    """What to look for when these people are known: their words, and Chinese names also as a whole.

    Of a DICOM person name (PS3.5 6.2.1: `=` between scripts, `^` between components) the family, given
    and middle names count, not `Dr` and `MD`. Single letters and ideographs stand everywhere: left out.
    """
    parts: dict[str, None] = {}
    for name in names:
        for script in name.split("="):
            people = " ".join(script.split("^")[:3])
            words = [word.strip(".;()[]") for word in re.split(r"[\s,]+", people)]
            whole = "".join(words)
            if _IDEOGRAPH.search(whole):
                words.append(whole)
            parts |= dict.fromkeys(word for word in words if sum(map(str.isalnum, word)) > 1)
    return list(parts)
