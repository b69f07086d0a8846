"""Run a grid: every row under every seed, each in a folder of its own, once.

OUT/data/HASH/          the prepared data set, shared by all grids on it
OUT/parts/NAME-HASH/    the small parts, made once
OUT/features/           what frozen encoders make of the images
OUT/runs/KEY/           a run: checkpoints, model, evaluation, report
OUT/ledger.jsonl        a line for every run that is finished
OUT/GRID/               results.md and manifest.json

A run is named by its key, so grids share the runs they have in common. One that was killed goes on
from its last checkpoint; those in the ledger are not run again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from medloupe.data.dataset import Dataset, Progress, silent
from medloupe.errors import ConfigError
from medloupe.evaluate.log import read_log
from medloupe.imaging.workers import worker_pool
from medloupe.models.features import FeatureStore
from medloupe.recipes import run
from medloupe.recipes.config import RunConfig
from medloupe.recipes.manifest import surroundings
from medloupe.recipes.prepare import prepare
from medloupe.reproduce.compare import Comparison, compare
from medloupe.reproduce.grid import ROW, Grid
from medloupe.reproduce.ledger import Entry, Ledger
from medloupe.reproduce.page import markdown
from medloupe.reproduce.parts import MADE, Part

LEDGER_FILE = "ledger.jsonl"
RESULTS_FILE = "results.md"
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row under one seed."""

    label: str
    seed: int
    key: str
    folder: Path


class Reproduction:
    """A grid below `out` under `seeds`, `processes` runs at a time.

    Small models leave most of several threads idle: two runs of one thread each end long before one of
    two threads has run twice. `progress` shows runs only where they come one by one.

    Raises:
        ConfigError: results of this version of the grid were made with other rows.
    """

    def __init__(
        self,
        grid: Grid,
        out: Path,
        *,
        seeds: tuple[int, ...],
        progress: Progress,
        tell: Tell,
        processes: int = 1,
    ) -> None:
        self.grid, self.out, self.seeds = grid, out, seeds
        self.progress, self.tell, self.processes = progress, tell, processes
        self.ledger = Ledger(out / LEDGER_FILE)
        self.ledger.refuse_changed(grid)

    def run(self) -> Comparison:
        """Run what is not finished, then write and return the results.

        Raises:
            ConfigError: another process is at work in the folder.
            MedLoupeError: what is wrong with a run, see `recipes.run.train`.
        """
        with _alone(self.out):
            jobs = self._jobs()
            self._note_shared(jobs)
            waiting = [job for job in jobs if not self._is_finished(job)]
            for job in jobs:
                if job not in waiting:
                    self.tell(f"{self._about(job, jobs)}: finished before")
            if self.processes == 1:
                self._one_by_one(waiting, jobs)
            else:
                self._side_by_side(waiting, jobs)
            return self._report(jobs)

    def _one_by_one(self, waiting: list[Job], jobs: list[Job]) -> None:
        for job in waiting:
            self.tell(self._about(job, jobs) + self._left(jobs))
            self._finish(job, _train_and_score(*self._work(job), progress=self.progress))

    def _side_by_side(self, waiting: list[Job], jobs: list[Job]) -> None:
        """A run waits for the one that it begins with. One that fails ends the grid when those beside it
        have come to their end; nothing of them is lost."""
        threads = max((os.cpu_count() or 1) // self.processes, 1)
        running: dict[Future[float], Job] = {}
        failed: BaseException | None = None
        with worker_pool(self.processes, torch.set_num_threads, threads) as pool:
            while waiting or running:
                ready = [
                    job for job in waiting if self._can_begin(job, [*waiting, *running.values()])
                ]
                for job in ready[: self.processes - len(running)]:
                    waiting.remove(job)
                    self.tell(self._about(job, jobs) + self._left(jobs))
                    running[pool.submit(_train_and_score, *self._work(job))] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, error = running.pop(future), future.exception()
                    if error is None:
                        self._finish(job, future.result())
                    else:
                        failed = failed or error
                        waiting.clear()
        if failed is not None:
            raise failed

    def _can_begin(self, job: Job, unfinished: Iterable[Job]) -> bool:
        start = self.grid.start(job.label)
        return start is None or all((o.label, o.seed) != (start, job.seed) for o in unfinished)

    def _about(self, job: Job, jobs: list[Job]) -> str:
        return f"[{jobs.index(job) + 1}/{len(jobs)}] {job.label}, seed {job.seed}"

    def _jobs(self) -> list[Job]:
        """Seed after seed, so that an early stop leaves whole tables; rows in their order."""
        return [
            Job(label=row.label, seed=seed, key=key, folder=self.out / "runs" / key)
            for seed in self.seeds
            for row in self.grid.rows
            for key in [self.grid.key(row.label, seed)]
        ]

    def _is_finished(self, job: Job) -> bool:
        return job.key in self.ledger.seconds() and (job.folder / run.EVALUATION_FILE).is_file()

    def _work(self, job: Job) -> tuple[RunConfig, Path, Path, Path]:
        """What `_train_and_score` takes."""
        return self._resolved(job), self._data.root, job.folder, self.out / "features"

    def _finish(self, job: Job, seconds: float) -> None:
        self._enter(job, seconds)
        # The model is saved and scored; what a resumed run would need is most of the folder.
        shutil.rmtree(job.folder / "checkpoints")

    def _left(self, jobs: list[Job]) -> str:
        """How long the rest will take if it is like what is finished; nothing before that."""
        seconds = self.ledger.seconds()
        known = [seconds[job.key] for job in jobs if job.key in seconds]
        rest = len(jobs) - len(known)
        if not known:
            return ""
        minutes = rest * sum(known) / len(known) / 60 / self.processes
        return f" (about {minutes:.0f} min left)"

    def _note_shared(self, jobs: list[Job]) -> None:
        """What another grid has run, this one has, too."""
        known, seconds = self._entered(), self.ledger.seconds()
        for job in jobs:
            if job.key in seconds and (job.label, job.seed, job.key) not in known:
                self._enter(job, seconds[job.key])

    def _entered(self) -> set[tuple[str, int, str]]:
        return {
            (entry.label, entry.seed, entry.key)
            for entry in self.ledger.entries()
            if (entry.grid, entry.version) == (self.grid.name, self.grid.version)
        }

    def _enter(self, job: Job, seconds: float) -> None:
        self.ledger.add(
            Entry(
                grid=self.grid.name,
                version=self.grid.version,
                rows=self.grid.rows_fingerprint(),
                label=job.label,
                seed=job.seed,
                key=job.key,
                seconds=round(seconds, 1),
                date=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )

    def _resolved(self, job: Job) -> RunConfig:
        """The job's run with the folders of parts and other rows in place of their names."""
        config = self.grid.config(job.label, job.seed).to_dict()
        start = self.grid.start(job.label)
        found = {} if start is None else {ROW + start: self._run_of(start, job)}
        found |= {MADE + name: str(self._part(name)) for name in self.grid.named(config)}
        return RunConfig.parse(_replaced(config, found))

    def _run_of(self, label: str, job: Job) -> str:
        key = self.grid.key(label, job.seed)
        if key not in self.ledger.seconds():
            raise ConfigError(
                f"row {job.label!r} begins with row {label!r}, which has not run",
                field=f"grid {self.grid.name}",
                remedy="Put it before that row",
            )
        return str(self.out / "runs" / key)

    @cached_property
    def _data(self) -> Dataset:
        config = self.grid.base.data
        folder = self.out / "data" / config.fingerprint()
        return prepare(config, folder, root=None, progress=self.progress)

    def _part(self, name: str) -> Path:
        """A part, and before it those that it is made of."""
        asked, base = self.grid.parts[name].to_dict(), self.grid.base
        found = {MADE + other: self._part(other) for other in self.grid.named(asked)}
        made_of = {other: folder.name for other, folder in found.items()}
        key = Part.parse(_replaced(asked, made_of)).fingerprint()
        part = Part.parse(_replaced(asked, {other: str(f) for other, f in found.items()}))
        folder = self.out / "parts" / f"{name}-{key}-{base.data.fingerprint()}"
        return part.made(folder, self._data, base.processor, self.progress)

    def _report(self, jobs: list[Job]) -> Comparison:
        logs = {(j.label, j.seed): read_log(j.folder / run.EVALUATION_FILE) for j in jobs}
        comparison = compare(self.grid, logs, self.seeds)
        folder = self.out / self.grid.name
        folder.mkdir(parents=True, exist_ok=True)
        seconds = self.ledger.seconds()
        reports = {(j.label, j.seed): f"../runs/{j.key}/{run.REPORT_FILE}" for j in jobs}
        took = {(j.label, j.seed): seconds[j.key] for j in jobs}
        page = markdown(comparison, reports, took)
        (folder / RESULTS_FILE).write_text(page, encoding="utf-8")
        text = json.dumps(self._manifest(jobs), indent=1, ensure_ascii=False)
        (folder / run.MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
        return comparison

    def _manifest(self, jobs: list[Job]) -> dict[str, Any]:
        """The grid as it was run; each run has its own manifest in its folder."""
        return {
            "grid": self.grid.to_dict(),
            "rows_fingerprint": self.grid.rows_fingerprint(),
            "seeds": list(self.seeds),
            "data_fingerprint": self._data.fingerprint(),
            "runs": {f"{job.label}, seed {job.seed}": job.key for job in jobs},
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **surroundings(),
        }


def _train_and_score(
    config: RunConfig, data: Path, folder: Path, features: Path, progress: Progress = silent
) -> float:
    """One run, as far as it is not done; returns the seconds that it took now."""
    begun = time.perf_counter()
    if not run.is_trained(config, folder):
        store = FeatureStore(features)
        run.train(config, data, folder, resume=True, progress=progress, features=store)
    run.evaluate(folder / run.MODEL_FOLDER, data, folder, trust_code=True, progress=progress)
    return time.perf_counter() - begun


def _replaced(value: Any, found: dict[str, str]) -> Any:
    """Plain data with whole strings replaced."""
    if isinstance(value, dict):
        return {key: _replaced(inner, found) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, found) for inner in value]
    return found.get(value, value) if isinstance(value, str) else value


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two processes in one folder would train the same runs."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / "lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            "another process reproduces a grid in this folder",
            file=str(out),
            remedy="Wait for it, or choose another --out",
        ) from None
