"""What a teacher wrote -> turns, whatever form it chose.

In order: JSON (bare, in a code fence, with prose around it, cut off, or nearly JSON), then labelled lines
("Q: ... A: ...", "User: ... Assistant: ...", "问：... 答：..."), then numbered questions. Of an answer that
was cut off the whole turns are kept, and `Reading.note` says so.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from medloupe.config import Config
from medloupe.synthesis.types import Draft, SourceRow, SynthesisError, Turn

_REMEDY: Final = (
    "The answer is kept beside the reason; a teacher that takes a schema keeps to the form"
)
_THOUGHTS: Final = re.compile(
    r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE
)
_SPECIAL: Final = re.compile(r"<\|[a-z_]+\|>|</?s>|\[/?INST\]|\ufeff")
_FENCE: Final = re.compile(r"```[a-zA-Z]*[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_IMAGE: Final = re.compile(r"^\s*<image(?:3d)?>\s*|\s*<image(?:3d)?>\s*$")

_QUESTION_KEYS: Final = r"(?:question|query|q|user|human|instruction|问题|问|提问|用户)"
_ANSWER_KEYS: Final = (
    r"(?:answer|response|reply|a|assistant|gpt|model|output|回答|答案|答|助手|答复)"
)
_QUESTION_KEY: Final = re.compile(rf"{_QUESTION_KEYS}[ _]?\d*", re.IGNORECASE)
_ANSWER_KEY: Final = re.compile(rf"{_ANSWER_KEYS}[ _]?\d*", re.IGNORECASE)
_ROLE_KEYS: Final = ("role", "from", "speaker")
_SAID_KEYS: Final = ("content", "value", "text")
_OPENING: Final = re.compile(r"[{\[]")
_JSON_OPENING: Final = re.compile(r"[{\[]\s*[\"'“{\[]")
_LABEL: Final = re.compile(
    rf"^[ \t>*#\-•]*(?:\(?\d{{1,2}}[.)、）]\s*)?[*_]*(?:(?P<q>{_QUESTION_KEYS})|(?P<a>{_ANSWER_KEYS}))"
    r"[ _]?(?:\d{1,2}|[一二三四五六七八九十])?[*_]*\s*(?:[:：]|[.](?=\s))[*_]*[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
# An answer that follows its question on the same line.
_LABEL_INSIDE: Final = re.compile(
    rf"(?<=[?？])[ \t]+[*_]*(?P<a>{_ANSWER_KEYS})[ _]?\d*[*_]*\s*[:：][*_]*[ \t]*", re.IGNORECASE
)
_NUMBER: Final = re.compile(r"^[ \t*#]*(?:\(?\d{1,2}[.)、）])[*_]*[ \t]*", re.MULTILINE)
_REFUSAL: Final = re.compile(
    r"^\W*(?:I'?m sorry|I am sorry|I apologi[sz]e|Sorry|I can(?:'|no)t|I am (?:not able"
    r"|unable)|As an AI|抱歉|对不起|很抱歉|我无法|我不能)",
    re.IGNORECASE,
)


class Reading(Config):
    """The turns of an answer; `note` says what was left out, if anything."""

    turns: tuple[Turn, ...]
    note: str = ""


def parse(text: str, row: SourceRow) -> Draft:
    """The draft in a teacher's answer.

    Raises:
        SynthesisError: there are no turns, or one lacks its question or its answer.
    """
    try:
        reading = read_turns(text)
    except SynthesisError as error:
        raise error.at(row=row.id) from None
    return Draft(turns=reading.turns, raw=text)


def read_turns(text: str) -> Reading:
    """The turns of an answer in any form; see `parse`."""
    plain = _SPECIAL.sub("", _THOUGHTS.sub("", text)).strip()
    if not plain:
        why = "only thoughts, no answer" if text.strip() else "an empty answer"
        raise _fault(f"the teacher gave {why}")
    reading = _from_json(plain) or _from_labels(plain) or _from_numbers(plain)
    if reading is not None:
        return reading
    if _REFUSAL.search(plain):
        raise _fault(f"the teacher refused: {_start(plain)!r}")
    raise _fault(f"no question and answer can be read in: {_start(plain)!r}")


def _fault(rule: str) -> SynthesisError:
    return SynthesisError(rule, remedy=_REMEDY)


def _start(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= 80 else f"{shown[:79]}…"


def _from_json(text: str) -> Reading | None:
    """Turns from the first JSON value that holds some, else from whole objects of a broken one."""
    fault: SynthesisError | None = None
    for candidate in _candidates(text):
        values = list(_values(candidate))
        # Turn after turn without a list around them, or one value that holds them all.
        bare = tuple(turn for turn in map(_turn_of, values) if turn is not None)
        if bare:
            return Reading(turns=bare)
        for value in values:
            try:
                found = tuple(_turns_in(value))
            except SynthesisError as error:
                fault = fault or error
                continue
            if found:
                return Reading(turns=found)
    rescued = _rescued(text)
    if rescued:
        note = f"the JSON is broken or cut off; {len(rescued)} whole turns were kept"
        return Reading(turns=rescued, note=note)
    if fault is not None:
        raise fault
    if re.match(r"(?:```\w*\s*)?[{\[]", text) and not _LABEL.search(text):
        raise _fault(f"JSON without a whole turn: {_start(text)!r}")
    return None


def _candidates(text: str) -> Iterator[str]:
    for match in _FENCE.finditer(text):
        yield match[1]
    yield text


def _values(text: str) -> Iterator[Any]:
    """Every outermost JSON object or array in the text; where one is broken, what can be mended."""
    decoder = json.JSONDecoder(strict=False)
    at = 0
    while match := _OPENING.search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
        except ValueError:
            if _JSON_OPENING.match(text, match.start()):
                yield from _nearly(text)
                return
            at = match.start() + 1  # a bracket in prose
        else:
            yield value


def _nearly(text: str) -> Iterator[Any]:
    """JSON with trailing commas, curly quotes or full-width signs, or a Python literal."""
    start, end = _OPENING.search(text), max(text.rfind("}"), text.rfind("]"))
    if start is None or end <= start.start():
        return
    body = text[start.start() : end + 1]
    mended = re.sub(r",(\s*[}\]])", r"\1", body)
    signs = re.sub('(")\\s*：\\s*(")', r"\1: \2", mended)
    signs = re.sub('(["}])\\s*，\\s*(["{])', r"\1, \2", signs)
    for attempt in (mended, signs, signs.translate(str.maketrans("“”", '""'))):
        try:
            yield json.loads(attempt, strict=False)
        except ValueError:
            continue
        return
    try:
        yield ast.literal_eval(mended)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return  # TypeError: a set or a key that Python cannot hash, as in {[]}


def _rescued(text: str) -> tuple[Turn, ...]:
    """The objects of a broken answer that are turns by themselves."""
    decoder = json.JSONDecoder(strict=False)
    found: list[Turn] = []
    messages: list[Any] = []
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        at = end
        turn = _turn_of(value)
        if turn is not None and turn.question and turn.answer:
            found.append(turn)
        elif _role_of(value):
            messages.append(value)
    if len(messages) % 2:
        messages.pop()
    return tuple(found) or tuple(_from_messages(messages))


def _turns_in(value: Any) -> Iterator[Turn]:
    """The turns of a JSON value, however it wraps them."""
    if isinstance(value, Mapping):
        turn = _turn_of(value)
        if turn is not None:
            yield turn
            return
        numbered = list(_numbered_keys(value))
        if numbered:
            yield from numbered
            return
        for inner in value.values():
            if isinstance(inner, list | Mapping):
                found = list(_turns_in(inner))
                if found:
                    yield from found
                    return
        return
    if isinstance(value, list):
        yield from _turns_of_list(value)


def _turns_of_list(items: list[Any]) -> Iterator[Turn]:
    if items and all(_role_of(item) for item in items):
        yield from _from_messages(items)
        return
    for number, item in enumerate(items, start=1):
        if isinstance(item, list) and len(item) == 2 and all(isinstance(x, str) for x in item):
            yield Turn(question=_clean(item[0]), answer=_clean(item[1]))
        elif isinstance(item, Mapping):
            turn = _turn_of(item)
            if turn is None:
                inner = list(_turns_in(item))
                if not inner:
                    raise _fault(f"turn {number} lacks {_lacking(item)}")
                yield from inner
            else:
                yield turn


def _lacking(item: Mapping[str, Any]) -> str:
    keys = [str(key) for key in item]
    has_question = any(_QUESTION_KEY.fullmatch(key) for key in keys)
    has_answer = any(_ANSWER_KEY.fullmatch(key) for key in keys)
    missing = "an answer" if has_question else "a question" if has_answer else "question and answer"
    return f"{missing}; its keys are {', '.join(map(repr, keys)) or 'none'}"


def _turn_of(value: Any) -> Turn | None:
    """A turn, where an object has one question and one answer, both text."""
    if not isinstance(value, Mapping):
        return None
    questions = [v for k, v in value.items() if _QUESTION_KEY.fullmatch(str(k))]
    answers = [v for k, v in value.items() if _ANSWER_KEY.fullmatch(str(k))]
    if len(questions) != 1 or len(answers) != 1:
        return None
    if not isinstance(questions[0], str) or not isinstance(answers[0], str | int | float | bool):
        return None
    return Turn(question=_clean(questions[0]), answer=_clean(str(answers[0])))


def _numbered_keys(value: Mapping[str, Any]) -> Iterator[Turn]:
    """`{"question1": ..., "answer1": ..., "question2": ...}`"""
    questions = [v for k, v in value.items() if _QUESTION_KEY.fullmatch(str(k))]
    answers = [v for k, v in value.items() if _ANSWER_KEY.fullmatch(str(k))]
    texts = all(isinstance(text, str) for text in (*questions, *answers))
    if len(questions) > 1 and len(questions) == len(answers) and texts:
        for question, answer in zip(questions, answers, strict=True):
            yield Turn(question=_clean(question), answer=_clean(answer))


def _role_of(value: Any) -> str:
    """ "q" or "a" for a message of a chat (LLaVA's or OpenAI's form), else ""."""
    if not isinstance(value, Mapping):
        return ""
    role = next((str(value[key]) for key in _ROLE_KEYS if key in value), "")
    if not any(isinstance(value.get(key), str) for key in _SAID_KEYS):
        return ""
    if _QUESTION_KEY.fullmatch(role):
        return "q"
    return "a" if _ANSWER_KEY.fullmatch(role) else ""


def _from_messages(messages: list[Any]) -> Iterator[Turn]:
    said = [(_role_of(m), next(str(m[k]) for k in _SAID_KEYS if k in m)) for m in messages]
    yield from _paired([(role, _clean(text)) for role, text in said])


def _from_labels(text: str) -> Reading | None:
    """ "Q: ...", "A: ..." and their kin."""
    labels = sorted(
        [*_LABEL.finditer(text), *_LABEL_INSIDE.finditer(text)], key=lambda match: match.start()
    )
    parts: list[tuple[str, str]] = []
    for at, match in enumerate(labels):
        end = labels[at + 1].start() if at + 1 < len(labels) else len(text)
        role = "q" if match.groupdict().get("q") else "a"
        body = _clean(text[match.end() : end])
        if not parts and role == "a":
            continue  # "Assistant:" before the first question is a preamble
        if parts and parts[-1][0] == role:
            parts[-1] = (role, f"{parts[-1][1]} {body}".strip())
        else:
            parts.append((role, body))
    if not any(role == "a" for role, _ in parts):
        return None
    note = ""
    if parts[-1][0] == "q" or not parts[-1][1]:
        while parts and (parts[-1][0] == "q" or not parts[-1][1]):
            parts.pop()
        note = "the last question has no answer and was left out"
    turns = tuple(_paired(parts))
    return Reading(turns=turns, note=note) if turns else None


def _paired(parts: list[tuple[str, str]]) -> Iterator[Turn]:
    for number in range(0, len(parts), 2):
        pair = parts[number : number + 2]
        turn = number // 2 + 1
        if [role for role, _ in pair] != ["q", "a"]:
            raise _fault(f"turn {turn} is not a question followed by an answer")
        if not pair[0][1] or not pair[1][1]:
            raise _fault(f"turn {turn} has an empty {'answer' if pair[0][1] else 'question'}")
        yield Turn(question=pair[0][1], answer=pair[1][1])


def _from_numbers(text: str) -> Reading | None:
    """ "1. What ...? It ..." or the answer on the lines below."""
    marks = list(_NUMBER.finditer(text))
    turns: list[Turn] = []
    note = ""
    for at, match in enumerate(marks):
        end = marks[at + 1].start() if at + 1 < len(marks) else len(text)
        question, sign, answer = re.split(r"([?？])", text[match.end() : end], maxsplit=1) + [
            ""
        ] * (0 if re.search("[?？]", text[match.end() : end]) else 2)
        if not sign or not _clean(answer):
            if sign and turns and at + 1 == len(marks):
                note = "the last question has no answer and was left out"
                continue
            return None
        turns.append(Turn(question=_clean(question) + sign, answer=_clean(answer)))
    return Reading(turns=tuple(turns), note=note) if turns else None


def _clean(text: str) -> str:
    """Without placeholders, emphasis, list marks and quotes around it."""
    text = _IMAGE.sub("", text.strip())
    text = re.sub(r"\*\*|__|^[-*•>#\s]+|[\s>*#]+$|```", "", text).strip()
    if len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("“", "”"), ("'", "'")}:
        inner = text[1:-1]
        if text[0] not in inner and text[-1] not in inner:
            text = inner
    return text.strip()
