"""Questions with short answers: published ones, classes and labels."""

from __future__ import annotations

from collections.abc import Sequence

from medloupe.data.builders.base import dialogue, turn
from medloupe.data.builders.prompts import word
from medloupe.data.builders.words import (
    NONE_OF_THESE,
    YES_NO,
    YES_NO_PAIRS,
    in_sentence,
    is_yes_no,
    joined,
    listed,
    plain,
    require_name,
    require_option,
    spoken,
    with_options,
)
from medloupe.errors import DataError
from medloupe.types import Conversation, Language, Question, Record


def ask(record: Record, question: Question) -> Conversation:
    """A published question with its answer; the task defaults to "vqa".

    A closed question that is answered yes or no gets both as its options; other options are listed
    below the question unless it names them.

    Raises:
        DataError: options without the answer.
    """
    task = question.task or "vqa"
    language, options = question.language, _options_of(question, record)
    return turn(
        record,
        task=task,
        key=question.id,
        question=with_options(question.text, options, language),
        answer=question.answer,
        template=f"{task}/{_form(question, options)}/{language}",
        answer_type=question.answer_type,
        options=options,
        language=language,
        attributes=question.attributes,
    )


def converse(
    record: Record, questions: Sequence[Question] = (), *, task: str = "conversation"
) -> Conversation:
    """All questions (default: those of the record) as turns of one conversation, in their order.

    Raises:
        DataError: there is none, they are in two languages, or options lack the answer.
    """
    questions = questions or record.questions
    if not questions:
        raise DataError("the record has no question", row=record.id, field="questions")
    languages = {question.language for question in questions}
    if len(languages) > 1:
        raise DataError(
            "a conversation is in one language, these questions are in two",
            remedy="Build one conversation per language",
            row=record.id,
            field="questions",
        )
    language = questions[0].language
    turns = [
        (with_options(question.text, _options_of(question, record), language), question.answer)
        for question in questions
    ]
    return dialogue(
        record,
        task=task,
        turns=turns,
        key=language if language != "en" else "",
        template=f"{task}/{language}",
        language=language,
    )


def classify(
    record: Record,
    label: str,
    classes: Sequence[str],
    *,
    task: str = "classification",
    question: str | None = None,
    language: Language = "en",
    multiple_choice: bool = True,
    seed: int = 0,
) -> Conversation:
    """Which one of `classes` the record is; `multiple_choice` lists them in the question.

    Raises:
        DataError: `label` is none of the classes, or the classes are fewer than two or repeat.
    """
    options = [spoken(name) for name in classes]
    answer = require_option(spoken(label), options, row=record.id, field="labels")
    wording = word("classification", record.id, task, language=language, seed=seed)
    asked = question or wording.text
    return turn(
        record,
        task=task,
        key=key_of(language),
        question=with_options(asked, options, language) if multiple_choice else asked,
        answer=answer,
        template=f"{task}/{language}",
        answer_type="closed",
        options=options,
        language=language,
        attributes={} if question else {"wording": str(wording.number)},
    )


def label_all(
    record: Record,
    present: Sequence[str],
    classes: Sequence[str],
    *,
    task: str = "labels",
    language: Language = "en",
    seed: int = 0,
) -> Conversation:
    """All of `classes` that apply, in the order of the classes; "None of these" where none does.

    Raises:
        DataError: a label that is none of the classes, or classes that are fewer than two or repeat.
    """
    options = [spoken(name) for name in classes]
    known = {
        require_option(spoken(label), options, row=record.id, field="labels") for label in present
    }
    names = [option for option in options if option in known]
    wording = word(
        "labels", record.id, task, language=language, seed=seed, classes=joined(options, language)
    )
    return turn(
        record,
        task=task,
        key=key_of(language),
        question=wording.text,
        answer=listed(names, language) or NONE_OF_THESE[language],
        template=f"{task}/{language}",
        language=language,
        attributes={"wording": str(wording.number)},
    )


def presence(
    record: Record,
    label: str,
    present: bool,
    *,
    task: str = "presence",
    language: Language = "en",
    seed: int = 0,
) -> Conversation:
    """Whether one label applies: yes or no.

    Raises:
        DataError: the label is empty, or a negation ("No finding").
    """
    require_name(label, row=record.id)
    name = in_sentence(label, language)
    wording = word("presence", record.id, task, language=language, seed=seed, label=name)
    options = YES_NO[language]
    return turn(
        record,
        task=task,
        key=key_of(language, name),
        question=wording.text,
        answer=options[0] if present else options[1],
        template=f"{task}/{name}/{language}",
        answer_type="closed",
        options=options,
        language=language,
        attributes={"wording": str(wording.number)},
    )


def key_of(language: Language, *parts: str) -> str:
    """The end of an id: the parts, and the language unless it is English."""
    return "/".join([*parts, *([language] if language != "en" else [])])


def _options_of(question: Question, record: Record) -> tuple[str, ...]:
    """The published options; for a closed question answered yes or no, that pair."""
    if question.options:
        row = f"{record.id}/{question.id}"
        require_option(question.answer, question.options, row=row, field="answer")
        return question.options
    if question.answer_type != "closed":
        return ()
    pairs = YES_NO_PAIRS[question.language]
    return next((pair for pair in pairs if plain(question.answer) in pair), ())


def _form(question: Question, options: Sequence[str]) -> str:
    """What kind of answer a constant would have to be: yes_no, choice, closed, open or box."""
    if question.answer_type != "closed" or not options:
        return question.answer_type
    return "yes_no" if is_yes_no(options, question.language) else "choice"
