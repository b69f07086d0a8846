"""The lock: what every named benchmark was when it was frozen.

`spec` is pinned for all of them, rows and version for those whose data were here: a copy with the same
rows has the same version, one with other rows says so. After a deliberate change, raise `release` and
write the lock again: `python -m medloupe.evaluate.benchmarks.lock FOLDER`, with the folder that holds the
real sets. Without one, the rows are taken as they were pinned before, which takes a second.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from medloupe.config import Config
from medloupe.data.dataset import Dataset
from medloupe.errors import ConfigError
from medloupe.evaluate.benchmark import digest_rows
from medloupe.evaluate.benchmarks.base import NamedBenchmark
from medloupe.evaluate.benchmarks.registry import BENCHMARKS
from medloupe.types import EvalLog

LOCK_FILE: Final = "lock.json"
SHARED: Final[Mapping[str, str]] = {
    "vqa_rad": "vqa_rad",
    "vqa_rad_official": "vqa_rad",
    "slake_text_en": "slake_text",
    "slake_text_zh": "slake_text",
    "templated_vqa": "templated_bilingual_vqa",
    "covid_chestxray": "cxr_covid_cc",
    "covid_image_repository": "cxr_hannover",
    "pneumoniamnist": "pneumoniamnist",
    "bccd": "bccd",
    "openslide_regions": "pathology_roi",
    "msd_hippocampus": "msd_hippocampus",
    "pyradiomics": "radiomics_ct_mr",
    "studyforrest": "studyforrest_t1",
}
"""The folder of each benchmark's data among the real sets."""


class Pin(Config):
    """`rows` is the digest of the questions, `copy_of` says what part of the published data they are."""

    release: int
    spec: str
    rows: str = ""
    count: int = 0
    version: str = ""
    copy_of: str = ""


def read_pins() -> dict[str, Pin]:
    """The lock that comes with the package, by benchmark."""
    text = resources.files(__package__).joinpath(LOCK_FILE).read_text(encoding="utf-8")
    return {name: Pin.parse(value, file=LOCK_FILE) for name, value in json.loads(text).items()}


def pin(named: NamedBenchmark, dataset: Dataset | None = None) -> Pin:
    """What is pinned: without a data set, the spec alone.

    Raises:
        DataError: as `Benchmark.select`.
    """
    if dataset is None:
        return Pin(release=named.release, spec=named.spec())
    rows = named.benchmark.select(dataset)
    digest = digest_rows(rows)
    return Pin(
        release=named.release,
        spec=named.spec(),
        rows=digest,
        count=len(rows),
        version=named.benchmark.version(digest),
        copy_of=dataset.card.partial or "all of it",
    )


def deviation(named: NamedBenchmark, version: str, rows: int) -> str:
    """One line where an evaluation is not of the pinned rows, else ""."""
    pinned = read_pins().get(named.name)
    if pinned is None or not pinned.version:
        return (
            f"version {version}: no version of {named.name} is pinned, its data were not at hand; "
            "compare only with runs of the same version"
        )
    if pinned.version == version:
        return ""
    return (
        f"version {version} with {rows:,} rows is not the pinned {pinned.version} with "
        f"{pinned.count:,} rows ({pinned.copy_of}): the two do not compare"
    )


def deviation_of(log: EvalLog) -> str:
    """`deviation` of an evaluation; "" where it was not asked a named benchmark as it is frozen."""
    named = BENCHMARKS.get(log.benchmark)
    if named is None or log.manifest.get("benchmark") != named.benchmark.to_dict():
        return ""
    return deviation(named, log.version, len(log.rows))


def prepared(named: NamedBenchmark, shared: Path, out: Path) -> Dataset:
    """The benchmark's data, made anew in `out`: the starter, or from its folder among the real sets."""
    folder = SHARED.get(named.name)
    root = None if folder is None else shared / folder
    return named.data.prepare(out, root=root, progress=lambda *_: None)


def is_here(name: str) -> bool:
    """Whether a benchmark's data can be made from the real sets, or from nothing."""
    return name in SHARED or name.startswith("starter")


def measured(shared: Path) -> dict[str, Pin]:
    """All pins, with the rows of everything whose data can be made."""
    pins: dict[str, Pin] = {}
    for name, named in BENCHMARKS.items():
        if not is_here(name):
            pins[name] = pin(named)
            continue
        with tempfile.TemporaryDirectory() as folder:
            pins[name] = pin(named, prepared(named, shared, Path(folder) / "data"))
    return pins


def renewed(before: Mapping[str, Pin]) -> dict[str, Pin]:
    """All pins for the benchmarks as they are now, over the rows that were pinned before: for a change of
    prompt, decoding or scorers that leaves rows alone."""
    pins: dict[str, Pin] = {}
    for name, named in BENCHMARKS.items():
        old = before.get(name)
        if old is None or not old.rows:
            pins[name] = pin(named)
            continue
        version = named.benchmark.version(old.rows)
        now = {"release": named.release, "spec": named.spec(), "version": version}
        pins[name] = old.model_copy(update=now)
    return pins


def refuse_unraised(pins: Mapping[str, Pin], before: Mapping[str, Pin]) -> None:
    """Refuse a benchmark that has changed under the release of `before`.

    Raises:
        ConfigError: its name, and that of the field to change.
    """
    for name, found in pins.items():
        old = before.get(name)
        if old is not None and old.spec != found.spec and found.release <= old.release:
            raise ConfigError(
                f"the benchmark {name!r} is not what was locked as release {old.release}",
                field="release",
                remedy=f"Set its release to {old.release + 1}, then write the lock again",
            )


def write_pins(pins: Mapping[str, Pin]) -> None:
    """Write the lock beside this file."""
    values = {name: found.to_dict() for name, found in sorted(pins.items())}
    text = json.dumps(values, indent=1, ensure_ascii=False)
    (Path(__file__).parent / LOCK_FILE).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    locked = read_pins()
    now = renewed(locked)
    refuse_unraised(now, locked)
    write_pins(measured(Path(sys.argv[1])) if sys.argv[1:] else now)
