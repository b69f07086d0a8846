"""Source rows -> instruction conversations: survey, ask, judge.

Three passes over the source, each with constant memory. The survey counts, checks and estimates; nothing
is sent before it. Asking spends, and journals every answer. Judging is free and can be repeated: it
writes all files from the journal, so that a run that was killed anywhere ends with the same files.
A request that was under way at a kill may be sent, and paid for, a second time; no answered one is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from medloupe.cluster import stays_here
from medloupe.config import Config
from medloupe.data.dataset import CARD_FILE, DatasetCard, Progress
from medloupe.errors import ConfigError, DataError
from medloupe.synthesis.asking import Asking, Halt, most_used
from medloupe.synthesis.config import SynthesisConfig
from medloupe.synthesis.guard import flags, refuse_external
from medloupe.synthesis.journal import JOURNAL_FILE, Journal, Notes, Use, refuse_changed
from medloupe.synthesis.judging import OUTCOMES_FILE, Judge, OutcomeFiles, Tally, write_whole
from medloupe.synthesis.page import write_sample_page
from medloupe.synthesis.prompts import prompt_set
from medloupe.synthesis.ray import open_on_ray
from medloupe.synthesis.teachers import Teacher, TeacherConfig
from medloupe.synthesis.types import (
    Outcome,
    PromptSet,
    Rejection,
    SourceRow,
    SynthesisError,
)

CONFIG_FILE = "synthesis.yaml"
ACCOUNT_FILE = "account.json"
PAGE_FILE = "samples.html"

Engine = Literal["local", "ray"]


class TeacherEstimate(Config):
    """What is left for one teacher: requests, prompt tokens (from above), and completion tokens and cost
    at most, each row asked once; retries come on top where the endpoint charges for answers that broke
    off. `cost` is None where no price is known."""

    teacher: str
    local: bool
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class Estimate(Config):
    """What a sitting will ask for, before anything is sent. `rows` are all, `done` those answered or given
    up before, `withheld` those that are not asked (no text, or names and dates in it); `flagged` hold
    names or dates, whether or not they are withheld. `lost` requests were under way at a kill."""

    rows: int
    done: int
    withheld: int
    flagged: int
    lost: int
    teachers: tuple[TeacherEstimate, ...]

    @property
    def requests(self) -> int:
        return sum(teacher.requests for teacher in self.teachers)


class TeacherAccount(Config):
    """What one teacher was asked and gave. Tokens and cost include what failed and lost requests may have
    used. `models` counts answers by the model that the endpoint reports."""

    teacher: str
    rows: int
    accepted: int
    requests: int
    lost: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    models: dict[str, int]


class Account(Config):
    """What a run did, over all sittings. `filters` counts rows by the filters that refused them; a row
    refused by two counts under both. `stopped` says why rows are `unanswered`."""

    rows: int
    accepted: int
    rejected: int
    unanswered: int
    without_llava: int
    filters: dict[str, int]
    teachers: tuple[TeacherAccount, ...]
    stopped: str = ""


Agree = Callable[[Estimate], bool]


def synthesize(
    config: SynthesisConfig,
    out: Path,
    *,
    agree: Agree,
    progress: Progress,
    engine: Engine = "local",
    workers: int | None = None,
    address: str | None = None,
) -> Account:
    """Write the folder `out`, or go on with it where it was left.

    `agree` is shown the estimate before anything is sent, unless nothing is left to send. With
    `engine="ray"`, `workers` actors on the cluster at `address` hold the teachers; journal and files stay
    with this process.

    Raises:
        ConfigError: the config is not the one the folder was begun with, `out` holds a data set of another
            making or the source, a price is missing that `limits.cost` needs, or a key is not set.
        DataError: a source row is broken, or an id occurs twice.
        SynthesisError: the agreement of the source forbids a teacher, `agree` says no, the teachers
            cannot be used, or no row at all was accepted. What was answered stays in the journal.
    """
    card = config.source.card()
    _refuse_out(out, config.source.path)
    _refuse_unpriced(config)
    here = engine == "local" or stays_here(address)
    local = frozenset(teacher.called for teacher in config.teachers if here and teacher.is_local)
    for teacher in config.teachers:
        if teacher.called not in local:
            refuse_external(card, teacher.called, config.permission)
    prompts = prompt_set(config.prompts)
    out.mkdir(parents=True, exist_ok=True)
    with Journal(out) as journal:
        refuse_changed(journal, config.fixed() | {"prompt_hash": prompts.hash})
        if config.limits.retry_failed:
            journal.forget_failures()
        run = _Run(config, out, prompts, journal, progress, local=local)
        estimate = run.survey()
        halt = None
        if estimate.requests:
            if not agree(estimate):
                raise SynthesisError("nothing was sent: the estimate was not agreed to")
            names = {t.teacher for t in estimate.teachers if t.requests}
            teachers = _opened(config, names, engine, workers, address)
            halt = asyncio.run(run.ask(teachers, estimate.requests))
        account = run.judge(card, halt)
    if halt is not None and halt.fault:
        raise SynthesisError(
            f"{halt.reason}; {account.unanswered:,} of {account.rows:,} rows are not answered",
            remedy="Mend it and give the same command again: nothing that was answered is lost",
        )
    if not account.accepted and not account.unanswered:
        raise SynthesisError(
            f"none of {account.rows:,} rows was accepted",
            file=str(out),
            remedy=f"Read {PAGE_FILE} or rejected.jsonl there; another teacher or other filters may help",
        )
    return account


def _refuse_out(out: Path, source: Path) -> None:
    """See that nothing is written over what synthesis has not made.

    Raises:
        ConfigError: `out` holds a data set without a journal, or the source.
    """
    read = source.resolve()
    if out.resolve() in (read, *read.parents):
        raise ConfigError(
            "the source lies in the folder that is to be written",
            file=str(source),
            field="source.path",
            remedy="Choose another --out",
        )
    if (out / CARD_FILE).exists() and not (out / JOURNAL_FILE).exists():
        raise ConfigError(
            "the folder holds a data set that synthesize has not written",
            file=str(out),
            remedy="Choose another --out",
        )


def _refuse_unpriced(config: SynthesisConfig) -> None:
    """A teacher without a price would count as free.

    Raises:
        ConfigError: `limits.cost` is set, and a teacher that is not local has no price.
    """
    for number, teacher in enumerate(config.teachers):
        if config.limits.cost is not None and teacher.price is None and not teacher.is_local:
            raise ConfigError(
                f"limits.cost needs the price of teacher {teacher.called!r}",
                field=f"teachers.{number}.price",
                remedy="State prompt and completion, each per million tokens; or limit tokens or requests",
            )


class _Run:
    """One sitting. `local` names the teachers to which nothing leaves."""

    def __init__(
        self,
        config: SynthesisConfig,
        out: Path,
        prompts: PromptSet,
        journal: Journal,
        progress: Progress,
        *,
        local: frozenset[str],
    ) -> None:
        self._config, self._out, self._prompts = config, out, prompts
        self._journal, self._progress, self._local = journal, progress, local
        self._rows = 0

    def survey(self) -> Estimate:
        """Read every row once; see that they are those the run began with."""
        config, journal = self._config, self._journal
        done = withheld = flagged = 0
        left: dict[str, Use] = {teacher.called: Use() for teacher in config.teachers}
        digest, notes = hashlib.sha256(), Notes()
        try:
            for place, row in enumerate(config.source.rows()):
                self._rows += 1
                if not notes.add("ids", row.id):
                    raise DataError(
                        "the id occurs twice",
                        remedy="Give every row its own id",
                        file=str(config.source.path),
                        row=row.id,
                        field="id",
                    )
                digest.update(row.to_json().encode() + b"\n")
                teacher = config.teacher_of(row.id)
                if teacher.called not in self._local:
                    refuse_external(row, teacher.called, config.permission)
                flagged += bool(flags(row))
                if self._withheld(row) is not None:
                    withheld += 1
                elif journal.is_done(place):
                    done += 1
                else:
                    left[teacher.called] += most_used(self._prompts, row, teacher)[1]
        finally:
            notes.close()
        self._refuse_other_rows(digest.hexdigest())
        return Estimate(
            rows=self._rows,
            done=done,
            withheld=withheld,
            flagged=flagged,
            lost=journal.lost,
            teachers=tuple(self._estimate(t, left[t.called]) for t in config.teachers),
        )

    def _estimate(self, teacher: TeacherConfig, use: Use) -> TeacherEstimate:
        return TeacherEstimate(
            teacher=teacher.called,
            local=teacher.called in self._local,
            requests=use.requests,
            prompt_tokens=use.prompt_tokens,
            completion_tokens=use.completion_tokens,
            cost=_cost(teacher, use),
        )

    def _refuse_other_rows(self, digest: str) -> None:
        if not self._rows:
            raise DataError("the source holds no rows", file=str(self._config.source.path))
        if self._journal.settle("source", digest) != digest:
            raise DataError(
                "the source's rows are not those that this folder was begun with",
                file=str(self._config.source.path),
                remedy="Put the rows back to go on, or choose a new --out",
            )

    async def ask(self, teachers: Mapping[str, Teacher], total: int) -> Halt | None:
        """Answer what can be answered."""
        try:
            asking = Asking(self._config, self._prompts, self._journal, teachers)
            return await asking.run(self._left(), total=total, progress=self._progress)
        finally:
            for teacher in teachers.values():
                await teacher.close()

    def _left(self) -> Iterator[tuple[int, SourceRow]]:
        for place, row in enumerate(self._config.source.rows()):
            if not self._journal.is_done(place) and self._withheld(row) is None:
                yield place, row

    def judge(self, card: DatasetCard, halt: Halt | None) -> Account:
        """Every file from the journal."""
        notes, files = Notes(), OutcomeFiles(self._out)
        try:
            tally, judge = Tally(notes), Judge(self._config, self._prompts, notes)
            for place, row in enumerate(self._config.source.rows()):
                result = self._withheld(row) or self._journal.result(place)
                if result is not None:
                    outcome = judge(row, result)
                    tally.add(outcome)
                    tally.without_llava += not files.write(row, outcome)
                self._progress("judge", place + 1, self._rows)
            account = self._account(tally, halt)
            write_whole(self._out / CONFIG_FILE, self._config.to_yaml().rstrip("\n"))
            write_whole(self._out / ACCOUNT_FILE, account.model_dump_json(indent=2))
            files.publish(self._card(card, tally, account) if tally.accepted else None)
        finally:
            files.discard()
            notes.close()
        write_sample_page(self._out / PAGE_FILE, read_outcomes(self._out), title=card.name)
        return account

    def _withheld(self, row: SourceRow) -> Rejection | None:
        """Why a row is not to be asked, decided by the row alone."""
        if not (row.text.strip() or row.labels or row.boxes or any(row.sections.values())):
            return Rejection(filter="source", reason="there is no text, no label and no box")
        teacher = self._config.teacher_of(row.id).called
        if self._config.flagged == "withhold" and teacher not in self._local:
            found = flags(row)
            if found:
                return Rejection(filter="guard", reason=f"holds {'; '.join(found)}")
        return None

    def _account(self, tally: Tally, halt: Halt | None) -> Account:
        use, lost = self._journal.use(), self._journal.use(state="lost")
        models: dict[str, Counter[str]] = {}
        for teacher, model, number in self._journal.models():
            models.setdefault(teacher, Counter())[model] += number
        return Account(
            rows=self._rows,
            accepted=tally.accepted,
            rejected=tally.rows - tally.accepted,
            unanswered=self._rows - tally.rows,
            without_llava=tally.without_llava,
            filters=dict(sorted(tally.filters.items())),
            stopped=halt.reason if halt is not None else "",
            teachers=tuple(
                TeacherAccount(
                    teacher=teacher.called,
                    rows=tally.by_teacher[teacher.called],
                    accepted=tally.accepted_by_teacher[teacher.called],
                    requests=use.get(teacher.called, Use()).requests,
                    lost=lost.get(teacher.called, Use()).requests,
                    prompt_tokens=use.get(teacher.called, Use()).prompt_tokens,
                    completion_tokens=use.get(teacher.called, Use()).completion_tokens,
                    cost=_cost(teacher, use.get(teacher.called, Use())),
                    models=dict(sorted(models.get(teacher.called, Counter()).items())),
                )
                for teacher in self._config.teachers
            ),
        )

    def _card(self, source: DatasetCard, tally: Tally, account: Account) -> DatasetCard:
        said = "; ".join(
            f"{t.teacher} ({', '.join(t.models)}): {t.accepted:,} of {t.rows:,} rows accepted"
            for t in account.teachers
            if t.rows
        )
        partial = ""
        if account.unanswered:
            partial = f"{account.unanswered:,} of {account.rows:,} source rows are not answered yet"
        return DatasetCard(
            name=f"{source.name}_synthesised",
            description=f"Conversations that language models wrote from the texts of {source.name}, "
            "not from its images.",
            licence=source.licence,
            citation=source.citation,
            access=source.access,
            tasks=("synthesised",),
            splits=source.splits,
            languages=tuple(name for name in ("en", "zh") if tally.languages[name]),
            counts=tally.counts(),
            partial="; ".join(filter(None, (source.partial, partial))),
            leak=source.leak,
            notes=(
                f"teachers: {said}",
                f"prompt set {self._config.prompts}, hash {self._prompts.hash}",
            ),
        )


def read_outcomes(folder: Path) -> Iterator[tuple[SourceRow, Outcome]]:
    """Every row of a finished run with what became of it, in the source's order."""
    with (folder / OUTCOMES_FILE).open(encoding="utf-8") as lines:
        for line in lines:
            data = json.loads(line)
            yield SourceRow.parse(data["row"]), Outcome.parse(data["outcome"])


def _cost(teacher: TeacherConfig, use: Use) -> float | None:
    if teacher.price is None:
        return 0.0 if teacher.is_local else None
    return use.cost


def _opened(
    config: SynthesisConfig,
    names: set[str],
    engine: Engine,
    workers: int | None,
    address: str | None,
) -> dict[str, Teacher]:
    """The teachers that are needed; a missing key or package is found before anything is sent."""
    needed = [teacher for teacher in config.teachers if teacher.called in names]
    if engine == "ray":
        return open_on_ray(needed, workers=workers, address=address)
    return {teacher.called: teacher.open() for teacher in needed}
