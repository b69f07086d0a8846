"""Precision and recall of the filters on the hand-labelled pairs in `judged/`.

python tests/synthesis/measure.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from medloupe.synthesis.types import Draft, Filter, SourceRow, Turn

JUDGED = Path(__file__).parent / "judged"
FILTERS = tuple(sorted(path.stem for path in JUDGED.glob("*.yaml")))


@dataclass(frozen=True)
class Pair:
    """A source, one turn, and whether the filter should refuse it."""

    refuse: bool
    row: SourceRow
    draft: Draft

    def __str__(self) -> str:
        turn = self.draft.turns[0]
        return f"{self.row.text!r}: {turn.question!r} {turn.answer!r}"


class Nothing:
    """A run at its first row."""

    def matches(self, _: str, /) -> tuple[str, ...]:
        return ()

    def note(self, _: str, __: str, /) -> None:
        return


def pairs(name: str) -> list[Pair]:
    found = []
    lines = yaml.safe_load((JUDGED / f"{name}.yaml").read_text(encoding="utf-8"))
    for number, (verdict, language, text, question, answer) in enumerate(lines):
        assert verdict in ("accept", "reject"), verdict
        row = SourceRow(id=f"{name}{number}", text=text, language=language)
        draft = Draft(turns=(Turn(question=question, answer=answer),), raw="")
        found.append(Pair(refuse=verdict == "reject", row=row, draft=draft))
    return found


@dataclass(frozen=True)
class Quality:
    """How a filter does: `wrong` are the pairs it misjudges, with what it said."""

    refused_rightly: int
    refused: int
    to_refuse: int
    pairs: int
    wrong: tuple[tuple[Pair, str | None], ...]

    @property
    def precision(self) -> float:
        return self.refused_rightly / self.refused

    @property
    def recall(self) -> float:
        return self.refused_rightly / self.to_refuse


def measure(name: str) -> Quality:
    judge = Filter.parse(name)
    judged = [(pair, judge.judge(pair.row, pair.draft, Nothing())) for pair in pairs(name)]
    return Quality(
        refused_rightly=sum(pair.refuse and reason is not None for pair, reason in judged),
        refused=sum(reason is not None for _, reason in judged),
        to_refuse=sum(pair.refuse for pair, _ in judged),
        pairs=len(judged),
        wrong=tuple((pair, why) for pair, why in judged if pair.refuse != (why is not None)),
    )


def main() -> None:
    print(f"{'filter':12} {'pairs':>5} {'precision':>9} {'recall':>7}")  # noqa: T201
    for name in FILTERS:
        found = measure(name)
        print(  # noqa: T201
            f"{name:12} {found.pairs:5} {found.precision:9.2f} {found.recall:7.2f}"
        )
        for pair, reason in found.wrong:
            print(f"    {'missed' if pair.refuse else reason}: {pair}")  # noqa: T201


if __name__ == "__main__":
    main()
