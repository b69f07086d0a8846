"""Judging: a row and its answer become one outcome, and outcomes become files.

Pure: the same journal and filters give the same outcomes, row after row in the source's order, however
the asking went. Memory stays constant; sets and earlier texts lie in a temporary database.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import IO

from medloupe.data import jsonl
from medloupe.data.dataset import CARD_FILE, CONVERSATIONS_FILE, RECORDS_FILE, DatasetCard
from medloupe.data.llava import llava_row
from medloupe.data.rows import conversation_faults
from medloupe.data.store import aside, write_lines
from medloupe.synthesis.config import SynthesisConfig
from medloupe.synthesis.journal import Answered, Notes
from medloupe.synthesis.parse import parse
from medloupe.synthesis.types import (
    Draft,
    Outcome,
    PromptSet,
    Provenance,
    Rejection,
    SourceRow,
    SynthesisError,
)
from medloupe.types import Conversation, Message, Text

LLAVA_FILE = "llava.json"
REJECTED_FILE = "rejected.jsonl"
OUTCOMES_FILE = "outcomes.jsonl"
_PLACEHOLDERS = ("<image>", "<image3d>")


class Judge:
    """Rows in the source's order -> outcomes."""

    def __init__(self, config: SynthesisConfig, prompts: PromptSet, notes: Notes) -> None:
        self._config, self._prompts, self._notes = config, prompts, notes

    def __call__(self, row: SourceRow, result: Answered | str | Rejection) -> Outcome:
        """The outcome of a row with its answer, the reason why it was given up, or a rejection that
        kept it from being asked."""
        if isinstance(result, Rejection):
            return Outcome(source=row.id, rejections=(result,))
        if isinstance(result, str):
            given_up = Rejection(filter="teacher", reason=result)
            return Outcome(source=row.id, rejections=(given_up,))
        outcome = self._read(row, result)
        if outcome.conversation is None:
            self._notes.drop()
        else:
            self._notes.keep()
        return outcome

    def _read(self, row: SourceRow, result: Answered) -> Outcome:
        provenance = self._provenance(row, result)
        answer = result.answer
        against = []
        if answer.finish == "refusal":
            against.append(Rejection(filter="teacher", reason=f"refused: {answer.text[:200]}"))
        elif answer.finish == "length":
            reason = f"the answer was cut at {answer.completion_tokens:,} tokens"
            against.append(Rejection(filter="teacher", reason=reason))
        draft = Draft(turns=(), raw=answer.text)
        conversation = None
        try:
            draft = parse(answer.text, row)
        except SynthesisError as error:
            against.append(Rejection(filter="parse", reason=error.fault.rule))
        else:
            against += self._judged(row, draft)
            conversation = conversation_of(row, draft, provenance)
            against += _form_faults(conversation)
        return Outcome(
            source=row.id,
            conversation=None if against else conversation,
            rejections=tuple(against),
            draft=draft,
            provenance=provenance,
        )

    def _judged(self, row: SourceRow, draft: Draft) -> list[Rejection]:
        found = []
        for judge in self._config.filters:
            reason = judge.judge(row, draft, self._notes)
            if reason is not None:
                found.append(Rejection(filter=judge.name, reason=reason))
        return found

    def _provenance(self, row: SourceRow, result: Answered) -> Provenance:
        prompts = self._prompts.of(row)
        temperature = self._config.teacher_of(row.id).temperature
        return Provenance(
            teacher=result.teacher,
            model=result.answer.model,
            prompt_hash=prompts.hash,
            few_shot=prompts.few_shot,
            temperature=temperature,
            source=row.id,
            licence=row.licence,
            date=result.date,
        )


def conversation_of(row: SourceRow, draft: Draft, provenance: Provenance) -> Conversation:
    """The native form: images before the first question, where the row comes from in the attributes."""
    messages = []
    for number, turn in enumerate(draft.turns):
        images = row.images if number == 0 else ()
        messages += [
            Message(role="user", content=(*images, Text(text=turn.question))),
            Message(role="assistant", content=(Text(text=turn.answer),)),
        ]
    known = {"domain": row.domain, "modality": row.modality, "anatomy": row.anatomy}
    stated = provenance.to_dict() | known
    del stated["licence"]
    return Conversation(
        id=row.id,
        messages=tuple(messages),
        patient_id=row.patient_id,
        study_id=row.study_id,
        split=row.split,
        dataset=row.dataset,
        licence=row.licence,
        task="synthesised",
        language=row.language,
        attributes={name: str(value) for name, value in stated.items() if value != ""},
    )


def _form_faults(conversation: Conversation) -> list[Rejection]:
    """What the native form does not take."""
    faults = [fault.rule for fault in conversation_faults([conversation], Path(CONVERSATIONS_FILE))]
    texts = [part.text for part in conversation.parts() if isinstance(part, Text)]
    faults += [
        f"the text holds the placeholder {sign}"
        for sign in _PLACEHOLDERS
        if any(sign in text for text in texts)
    ]
    return [Rejection(filter="form", reason=fault) for fault in faults]


class Tally:
    """What the files hold so far."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.rows = self.accepted = self.without_llava = 0
        self.filters: Counter[str] = Counter()
        self.by_teacher: Counter[str] = Counter()
        self.accepted_by_teacher: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        self.rows += 1
        self.filters.update({rejection.filter for rejection in outcome.rejections})
        if outcome.provenance is not None:
            self.by_teacher[outcome.provenance.teacher] += 1
        found = outcome.conversation
        if found is None:
            return
        self.accepted += 1
        self.languages[found.language] += 1
        if outcome.provenance is not None:
            self.accepted_by_teacher[outcome.provenance.teacher] += 1
        for ref in found.images:
            self._notes.add("images", ref.uri)
        if found.patient_id is not None:
            self._notes.add("patients", found.patient_id)

    def counts(self) -> dict[str, int]:
        """As on a card."""
        return {
            "conversations": self.accepted,
            "records": 0,
            "images": self._notes.size("images"),
            "patients": self._notes.size("patients"),
        }


class OutcomeFiles:
    """The files of a folder, complete under temporary names before the first is renamed; the card, without
    which it is no data set, comes last.

    `conversations.jsonl` and `llava.json` hold what was accepted, `rejected.jsonl` every other row with
    all reasons, `outcomes.jsonl` every row with its source, to be read side by side.
    """

    _NAMES = (CONVERSATIONS_FILE, LLAVA_FILE, REJECTED_FILE, OUTCOMES_FILE)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in self._NAMES:  # of a process that was killed; nobody else writes here
            for left in folder.glob(f".{name}.*.tmp"):
                left.unlink()
        self._paths = {name: aside(folder / name) for name in self._NAMES}
        self._files: dict[str, IO[str]] = {
            name: path.open("w", encoding="utf-8", newline="\n")
            for name, path in self._paths.items()
        }
        self._llava_rows = 0

    def write(self, row: SourceRow, outcome: Outcome) -> bool:
        """Put one row where it belongs; False where LLaVA's form cannot hold it (a frame)."""
        self._line(OUTCOMES_FILE, {"row": json.loads(row.to_json()), "outcome": outcome.to_dict()})
        if outcome.conversation is None:
            reasons = [rejection.to_dict() for rejection in outcome.rejections]
            raw = outcome.draft.raw if outcome.draft is not None else ""
            self._line(REJECTED_FILE, {"id": row.id, "rejections": reasons, "answer": raw})
            return True
        self._files[CONVERSATIONS_FILE].write(jsonl.dump_row(outcome.conversation) + "\n")
        if any(ref.frame is not None for ref in outcome.conversation.images):
            return False
        lead = "[\n" if self._llava_rows == 0 else ",\n"
        written = json.dumps(llava_row(outcome.conversation), ensure_ascii=False)
        self._files[LLAVA_FILE].write(lead + written)
        self._llava_rows += 1
        return True

    def publish(self, card: DatasetCard | None) -> None:
        """Rename everything into place; without a card (nothing was accepted) there is no data set."""
        self._files[LLAVA_FILE].write("\n]\n" if self._llava_rows else "[]\n")
        self.close()
        target = self._folder / CARD_FILE
        target.unlink(missing_ok=True)
        (self._folder / RECORDS_FILE).unlink(missing_ok=True)
        for name, path in self._paths.items():
            path.replace(self._folder / name)
        if card is not None:
            text = json.dumps(card.to_dict(), indent=2, ensure_ascii=False, sort_keys=True)
            write_whole(target, text)

    def close(self) -> None:
        """Everything on the disk."""
        for file in self._files.values():
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()

    def discard(self) -> None:
        """Leave nothing behind of files that were not published."""
        self.close()
        for path in self._paths.values():
            path.unlink(missing_ok=True)

    def _line(self, name: str, data: object) -> None:
        self._files[name].write(json.dumps(data, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all; it ends with a line break."""
    temporary = aside(path)
    try:
        write_lines(temporary, [text])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
