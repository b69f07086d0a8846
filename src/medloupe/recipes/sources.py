"""The data of a run: the prepared set, and the sets that its stages mix instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medloupe.data.audit import AuditSet, Passed, gate
from medloupe.data.dataset import Dataset, DatasetCard, Progress, load_dataset
from medloupe.data.mixture import Mixture, merge
from medloupe.recipes.config import RunConfig
from medloupe.train import StageConfig


@dataclass(frozen=True)
class RunData:
    """`own` is the prepared set, `sources` are the data sets of mixtures by folder, `merged` the
    mixtures by stage. `own_trains`: some stage has no mixture and trains on `own`."""

    own: Dataset
    own_trains: bool
    sources: Mapping[str, Dataset]
    merged: Mapping[str, Dataset]

    def of(self, stage: StageConfig) -> Dataset:
        """What a stage trains on."""
        return self.merged.get(stage.name, self.own)

    def fingerprints(self) -> dict[str, str]:
        """Folder -> fingerprint of every source."""
        return {folder: found.fingerprint() for folder, found in self.sources.items()}

    def provenance(self) -> list[str]:
        """Name, licence and access of everything trained on, one line each."""
        own = [self.own] if self.own_trains else []
        return [_origin(found.card) for found in (*own, *self.sources.values())]


def load_run_data(config: RunConfig, data: Path) -> RunData:
    """Read the prepared set in `data` and every set that a stage mixes.

    Raises:
        DataError: as `load_dataset`.
    """
    sources = {folder: load_dataset(Path(folder)) for folder in mixed_folders(config)}
    merged = {
        stage.name: _merged(stage.mixture, sources)
        for stage in config.train.stages
        if stage.mixture is not None
    }
    own_trains = any(stage.mixture is None for stage in config.train.stages)
    return RunData(load_dataset(data), own_trains, sources, merged)


def mixed_folders(config: RunConfig) -> list[str]:
    """The folders of all mixtures, each once."""
    mixtures = [stage.mixture for stage in config.train.stages if stage.mixture is not None]
    return list(dict.fromkeys(source.data for mixture in mixtures for source in mixture.sources))


def pass_gate(
    config: RunConfig, data: RunData, manifest: Path, *, workers: int | None, progress: Progress
) -> Passed:
    """The audit before training; a run that goes on with the same data passed it before.

    Raises:
        LeakError: patients or images stand in training and in held-out rows, and nobody allowed it.
    """
    before = _passed_before(manifest, data)
    if before is not None:
        return before
    found = [data.own, *(s for s in data.sources.values() if not _is_same(s, data.own))]
    stated = "; ".join(one.card.leak for one in found if one.card.leak)
    return gate(
        [AuditSet.of(one) for one in found],
        config.audit,
        stated=stated,
        workers=workers,
        progress=progress,
    )


def _is_same(one: Dataset, other: Dataset) -> bool:
    return one.root.resolve() == other.root.resolve()


def _passed_before(manifest: Path, data: RunData) -> Passed | None:
    if not manifest.is_file():
        return None
    noted: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    same = noted["data_fingerprint"] == data.own.fingerprint()
    if not same or noted.get("mixtures") != data.fingerprints() or "audit" not in noted:
        return None
    return Passed(leak=noted["audit"]["leak"], warnings=tuple(noted["audit"]["warnings"]))


def _merged(mixture: Mixture, sources: Mapping[str, Dataset]) -> Dataset:
    return merge({source.name: sources[source.data] for source in mixture.sources})


def _origin(card: DatasetCard) -> str:
    text = f"data {card.name}: licence {card.licence or 'not stated'}"
    return f"{text}, access {card.access}" if card.access else text
