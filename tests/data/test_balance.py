"""Thinning of closed questions: what stays, what goes, and that it hangs on nothing but ids."""

from __future__ import annotations

import random
from collections import Counter

from medloupe.data.balance import even_out
from medloupe.data.builders import turn
from medloupe.types import Conversation, Record


def row(number: int, answer: str, template: str = "t", language: str = "en") -> Conversation:
    made = turn(
        Record(id=f"r{number}"),
        task="presence",
        question="Is it there?",
        answer=answer,
        template=template,
        answer_type="closed",
        options=("yes", "no"),
    )
    return made.model_copy(update={"language": language, "id": f"{template}/{language}/{number}"})


def answers(rows: list[Conversation]) -> Counter[str]:
    return Counter(row.answer.text for row in rows if row.answer is not None)


def test_every_answer_is_equally_frequent_and_as_many_rows_stay_as_can() -> None:
    rows = [row(i, "yes" if i < 7 else "no") for i in range(30)]
    kept = even_out(rows)
    assert answers(kept) == {"yes": 7, "no": 7}
    assert [r.id for r in kept] == [r.id for r in rows if r in kept]  # in their order


def test_templates_and_languages_are_evened_out_apart() -> None:
    rows = [row(i, "yes" if i < 2 else "no", "a") for i in range(8)]
    rows += [row(i, "yes" if i < 6 else "no", "b") for i in range(8)]
    rows += [row(i, "yes" if i < 1 else "no", "a", "zh") for i in range(8)]
    kept = even_out(rows)
    assert answers([r for r in kept if r.template == "a" and r.language == "en"]) == {
        "yes": 2,
        "no": 2,
    }
    assert answers([r for r in kept if r.template == "b"]) == {"yes": 2, "no": 2}
    assert answers([r for r in kept if r.language == "zh"]) == {"yes": 1, "no": 1}


def test_a_question_with_one_answer_only_is_not_asked() -> None:
    assert even_out([row(i, "no") for i in range(5)]) == []


def test_the_choice_hangs_on_ids_and_not_on_order() -> None:
    rows = [row(i, "yes" if i < 7 else "no") for i in range(30)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert {r.id for r in even_out(shuffled)} == {r.id for r in even_out(rows)}
