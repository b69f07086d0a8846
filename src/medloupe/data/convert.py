"""A prepared data set into shards, on the cores of this machine or on a Ray cluster, and back.

What goes into which shard is planned first, from the rows alone; a shard is then made by one function
from one value, so that it has the same bytes wherever it is made, and a conversion that was interrupted
makes only the shards that are not there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from medloupe.cluster import import_ray, on_cluster, workers_on
from medloupe.data import jsonl
from medloupe.data.dataset import Dataset, Progress, image_path, load_dataset, write_dataset
from medloupe.data.rows import Row, all_rows, images_of, with_images
from medloupe.data.shards.form import INDEX_FILE, ShardIndex, ShardSet, Store, parse
from medloupe.data.shards.read import ShardedDataset, save
from medloupe.data.shards.write import ShardJob, make_shard
from medloupe.errors import DataError, Fault
from medloupe.imaging.files import folder_files
from medloupe.imaging.workers import worker_pool
from medloupe.types import Conversation, ImageRef, Record, Split

Engine = Literal["local", "ray"]
SHARD_BYTES = 256 << 20
_ROW_BYTES = 1 << 10  # what a row without its images is taken to weigh
_AHEAD = 4  # jobs handed out per worker


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The shards of the set, how many of them were made now, and how many were there before."""

    shards: ShardSet
    made: int
    kept: int


def convert(
    data: Path,
    out: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    workers: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write the data set in `data` as shards of about `shard_bytes` into `out`, a path or fsspec url.

    `engine="ray"` runs on the cluster at `address` (or the one that `RAY_ADDRESS` names, else one that
    is started here with `workers` CPUs); its machines must see `data` and `out` under the same names.

    Raises:
        DataError: a file is missing or not the one its row means, or `out` holds shards of something
            else. Shards that were finished stay and are not made again.
        MissingExtraError: Ray is not installed.
    """
    dataset = load_dataset(data)
    store = Store(str(out), options)
    jobs = plan(dataset, store, shard_bytes)
    todo = _undone(jobs, store)
    made = _on_ray(todo, workers, address) if engine == "ray" else _locally(todo, workers)
    finished = len(jobs) - len(todo)
    if progress is not None:
        progress("shards", finished, len(jobs))
    for fault in made:
        if fault is not None:
            raise DataError.of(fault)
        finished += 1
        if progress is not None:
            progress("shards", finished, len(jobs))
    found = ShardSet(
        card=dataset.card,
        rows=dataset.fingerprint(),
        shards=tuple(_index_of(job.name, store).info for job in jobs),
    )
    store.write(INDEX_FILE, (found.to_json() + "\n").encode())
    store.remove_parts()
    return Converted(shards=found, made=len(todo), kept=len(jobs) - len(todo))


def unpack(
    shards: str | Path,
    out: Path,
    *,
    options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Shards back into the native form below `out`.

    Raises:
        DataError: a shard is missing or damaged.
    """
    source = ShardedDataset(shards, options=options)

    def inside(ref: ImageRef) -> ImageRef:
        return ref.model_copy(update={"uri": ref.uri.partition("/")[2]})

    conversations: list[Conversation] = []
    records: list[Record] = list(source.records())
    written: set[str] = set()
    for number in range(len(source)):
        conversations.append(source[number])
        if progress is not None:
            progress("rows", number + 1, len(source))
    for row in all_rows(conversations, records):
        for _, ref in images_of(row):
            if ref.uri not in written:
                save(source.files(ref), out)
                written.add(ref.uri)
    return write_dataset(
        out,
        source.card,
        (with_images(row, inside) for row in conversations),
        (with_images(row, inside) for row in records),
    )


def plan(dataset: Dataset, store: Store, shard_bytes: int) -> list[ShardJob]:
    """One job per shard. Rows of a patient stay together, and so do those of a split."""
    card = dataset.card.to_json()
    sizes = _Sizes(dataset.root)
    jobs = []
    for split in (*get_args(Split), None):
        rows = [
            row for row in all_rows(dataset.conversations, dataset.records) if row.split == split
        ]
        for number, part in enumerate(_parts(rows, sizes, shard_bytes)):
            name = f"{split or 'rest'}-{number:05d}"
            jobs.append(_job(name, split, part, card, dataset.root, store))
    return jobs


def _parts(rows: Sequence[Row], sizes: _Sizes, limit: int) -> Iterator[list[Row]]:
    """Whole groups of rows until their images reach the limit."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
    part: list[Row] = []
    weights: dict[str, int] = {}
    for group in groups.values():
        more = sizes.of(group)
        if part and sum((weights | more).values()) > limit:
            yield part
            part, weights = [], {}
        part += group
        weights |= more
    if part:
        yield part


def _group(row: Row) -> str:
    """What stays together: a patient, else what shows one image."""
    if row.patient_id is not None:
        return f"0{row.patient_id}"
    return f"1{row.images[0].uri}" if row.images else f"2{row.id}"


class _Sizes:
    """Bytes of rows and of images. A file that is not there is found before anything is written."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, int] = {}

    def of(self, rows: Iterable[Row]) -> dict[str, int]:
        """Bytes by row and by image, so that an image of two rows counts once."""
        found = {}
        for row in rows:
            found[f"row {row.id}"] = _ROW_BYTES
            for _, ref in images_of(row):
                found[ref.uri] = self._image(ref.uri, row.id)
        return found

    def _image(self, uri: str, row: str) -> int:
        if uri not in self._known:
            path = image_path(self._root, uri)
            files = folder_files(path) if path.is_dir() else [path]
            if not all(file.is_file() for file in files):
                raise DataError(
                    "no such image file",
                    remedy="Restore the file, or leave out the rows that use it",
                    file=str(path),
                    row=row,
                )
            self._known[uri] = sum(file.stat().st_size for file in files)
        return self._known[uri]


def _job(
    name: str, split: Split | None, rows: Sequence[Row], card: str, root: Path, store: Store
) -> ShardJob:
    conversations = tuple(jsonl.dump_row(row) for row in rows if isinstance(row, Conversation))
    records = tuple(jsonl.dump_row(row) for row in rows if isinstance(row, Record))
    digest = hashlib.sha256()
    for text in (name, card, *conversations, *records):
        digest.update(text.encode() + b"\n")
    return ShardJob(
        name=name,
        split=split,
        conversations=conversations,
        records=records,
        card=card,
        plan=digest.hexdigest()[:16],
        root=str(root.resolve()),
        out=store.url,
        options=store.options,
    )


def _undone(jobs: Sequence[ShardJob], store: Store) -> list[ShardJob]:
    """The jobs whose shard is not there yet.

    Raises:
        DataError: the folder holds shards that are not of these jobs.
    """
    plans = {f"{job.name}.json": job.plan for job in jobs}
    names = set(store.names())
    done = set()
    for sidecar in sorted(name for name in names if name.endswith(".json") and name != INDEX_FILE):
        index = _index_of(sidecar.removesuffix(".json"), store)
        if plans.get(sidecar) != index.plan:
            raise DataError(
                "the folder holds shards of other rows, or of another shard size",
                file=store.path(sidecar),
                remedy="Choose another folder, or delete this one",
            )
        if store.size(f"{index.info.name}.tar") == index.info.bytes:
            done.add(index.info.name)
    return [job for job in jobs if job.name not in done]


def _index_of(name: str, store: Store) -> ShardIndex:
    sidecar = f"{name}.json"
    found: ShardIndex = parse(ShardIndex, store.read(sidecar), store, sidecar)
    return found


def _locally(jobs: Sequence[ShardJob], workers: int | None) -> Iterator[Fault | None]:
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1 or _in_this_process(jobs):
        yield from map(make_shard, jobs)
        return
    waiting = iter(jobs)
    with worker_pool(workers) as pool:
        running = {pool.submit(make_shard, job) for job in _taken(waiting, workers * _AHEAD)}
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(make_shard, job) for job in _taken(waiting, len(finished))}
                yield from (future.result() for future in finished)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process died while converting",
                remedy="Free memory, or run with fewer workers; finished shards are kept",
            ) from error


def _in_this_process(jobs: Iterable[ShardJob]) -> bool:
    """fsspec's memory:// lives in one process."""
    return any(job.out.startswith("memory:") for job in jobs)


def _on_ray(
    jobs: Sequence[ShardJob], workers: int | None, address: str | None
) -> Iterator[Fault | None]:
    ray = import_ray()
    if not jobs:
        return
    with on_cluster(ray, workers, address):
        task = ray.remote(num_cpus=1)(make_shard)
        ahead = _AHEAD * workers_on(ray, None)
        waiting = iter(jobs)
        running = [task.remote(job) for job in _taken(waiting, ahead)]
        while running:
            finished, running = ray.wait(running, num_returns=1)
            running += [task.remote(job) for job in _taken(waiting, len(finished))]
            yield from ray.get(finished)


def _taken(jobs: Iterator[ShardJob], number: int) -> list[ShardJob]:
    return [job for _, job in zip(range(number), jobs, strict=False)]
