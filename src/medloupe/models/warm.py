"""Warm starts: parts of a model from another run, with every name of both sides accounted for.

A connector from an earlier run's first stage, a 3D model's encoder and language model from a 2D one.
Names must agree after `rename`, shapes must agree, types are cast to the model's own. A tensor that fits
nothing and one that nothing fills are errors, unless allowed by name.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from medloupe.config import Config
from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.low_rank import LowRankConfig, attach, noted_adapters
from medloupe.models.vlm import ALL_PARTS, PARTS, Part, VisionLanguageModel
from medloupe.models.weights.naming import LoadReport, shards

Tensors = Mapping[str, torch.Tensor]


class StartConfig(Config):
    """Where parts of a model begin.

    `folder` is a saved model, a run that holds one, or the last checkpoint of one of its stages
    (`checkpoints/00-align-end.pt`). `parts` leaves out an adapter unless it is named: it then begins
    fresh. `rename` maps prefixes of its names to prefixes here; the longest that fits counts.
    `allow_unused` are prefixes of its names that may fit nothing, `allow_missing` prefixes of names here
    that may stay as they are. A prefix ends where a name does, or at a dot.
    """

    folder: str
    parts: tuple[Part, ...] = Field(default=PARTS, min_length=1)
    rename: dict[str, str] = Field(default_factory=dict)
    allow_unused: tuple[str, ...] = ()
    allow_missing: tuple[str, ...] = ()


class StartReport(LoadReport):
    """What a warm start did, by name. `kept` holds all of the parts that were not asked for, `unread`
    what the checkpoint has of these.

    `casts` counts tensors by the change of their type, `adapters` names the parts that took over the
    checkpoint's low-rank adapters.
    """

    casts: dict[str, int] = Field(default_factory=dict)
    adapters: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        casts = [f"cast from {change}: {number:,} tensors" for change, number in self.casts.items()]
        adapters = (
            [f"low-rank adapters taken over: {', '.join(self.adapters)}"] if self.adapters else []
        )
        return [*super().lines(), *casts, *adapters]


def warm_start(model: VisionLanguageModel, start: StartConfig) -> StartReport:
    """Fill parts of the model, in place; adapters that a part carries there, it then carries here.

    Raises:
        CheckpointError: there is nothing to read, or a tensor fits nothing, is missing, or has another
            shape. The model is then of no use.
        ConfigError: a quantised language model, on either side.
    """
    source = _source(Path(start.folder))
    settings = _settings(source)
    _refuse_quantized(model, settings, start)
    noted = noted_adapters(settings)
    taken = tuple(part for part in start.parts if part in noted)
    for part in taken:
        attach(model, part, LowRankConfig.parse(noted[part]))
    filling = _Filling(start, model.state_dict(), _aliases(model))
    for tensors in _tensors(source):
        filling.fill(tensors)
    return filling.report(str(source), taken)


@dataclass
class _Filling:
    """One pass over the checkpoint's tensors: what went where, and what did not."""

    start: StartConfig
    own: Tensors
    aliases: Mapping[str, set[str]]
    placed: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    casts: dict[str, int] = field(default_factory=dict)
    renames: set[str] = field(default_factory=set)

    def fill(self, tensors: Tensors) -> None:
        for theirs, tensor in tensors.items():
            ours = self._renamed(theirs)
            part = ours.partition(".")[0]
            if part in ALL_PARTS and part not in self.start.parts:
                self.unread.append(theirs)
            elif ours in self.own:
                self._place(theirs, ours, tensor)
            elif any(_below(theirs, prefix) for prefix in self.start.allow_unused):
                self.unused.append(theirs)
            else:
                renamed = f", renamed {ours!r}," if ours != theirs else ""
                self.faults.append(f"{theirs!r}{renamed} fits nothing")

    def report(self, source: str, adapters: tuple[str, ...]) -> StartReport:
        filled = {name for placed in self.placed for name in self.aliases.get(placed, {placed})}
        kept = sorted(self.own.keys() - filled)
        missing = [
            name
            for name in kept
            if name.partition(".")[0] in self.start.parts
            and not any(_below(name, prefix) for prefix in self.start.allow_missing)
        ]
        idle = sorted(set(self.start.rename) - self.renames)
        faults = [
            *(f"rename has {prefix!r}, and no tensor begins so" for prefix in idle),
            *self.faults,
            *(f"{name!r} of the model is not in it" for name in missing),
        ]
        if faults:
            raise CheckpointError(
                f"{len(faults):,} things do not agree: {'; '.join(faults[:4])}"
                + ("; ..." if len(faults) > 4 else ""),
                file=source,
                field="model.start",
                remedy="Choose parts, rename prefixes, or allow them by name in allow_unused (of the "
                "checkpoint) and allow_missing (of the model)",
            )
        return StartReport(
            source=source,
            loaded=tuple(sorted(self.placed)),
            kept=tuple(kept),
            unread=tuple(sorted(self.unread)),
            allowed=tuple(sorted(self.unused)),
            parameters=sum(self.own[name].numel() for name in self.placed),
            casts=self.casts,
            adapters=adapters,
        )

    def _renamed(self, theirs: str) -> str:
        fitting = [prefix for prefix in self.start.rename if _below(theirs, prefix)]
        if not fitting:
            return theirs
        self.renames.update(fitting)
        prefix = max(fitting, key=len)
        return self.start.rename[prefix].rstrip(".") + theirs[len(prefix.rstrip(".")) :]

    def _place(self, theirs: str, ours: str, tensor: torch.Tensor) -> None:
        own = self.own[ours]
        if own.shape != tensor.shape:
            given, wanted = list(tensor.shape), list(own.shape)
            self.faults.append(f"{theirs!r} has shape {given}, {ours!r} has {wanted}")
            return
        for name in self.aliases.get(ours, {ours}) & self.placed.keys():
            if not torch.equal(own, tensor.to(own.dtype)):
                here = f"and {name!r} are one tensor here" if name != ours else "has two sources"
                self.faults.append(f"{theirs!r} and {self.placed[name]!r} differ, {ours!r} {here}")
                return
        if own.dtype != tensor.dtype:
            change = f"{tensor.dtype} to {own.dtype}".replace("torch.", "")
            self.casts[change] = self.casts.get(change, 0) + 1
        own.copy_(tensor)
        self.placed[ours] = theirs


def _below(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(prefix.rstrip(".") + ".")


def _aliases(model: VisionLanguageModel) -> dict[str, set[str]]:
    """For each parameter with several names (tied tables), all of these."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}


def _source(path: Path) -> Path:
    """A model's folder, or a stage's last checkpoint.

    Raises:
        CheckpointError: neither.
    """
    if path.is_file():
        return path
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(
        "no saved model here to start from",
        file=str(path),
        field="model.start.folder",
        remedy="Name a model's folder, a run's, or a checkpoint that ends in -end.pt",
    )


def _settings(source: Path) -> dict[str, Any]:
    """What a saved model says about its adapters and its quantisation."""
    if source.is_file():
        return {"low_rank": noted_adapters(_stage(source))}
    settings: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return settings


def _tensors(source: Path) -> Iterator[Tensors]:
    if source.is_dir():
        yield from shards(str(source))
        return
    for part, tensors in _stage(source)["parts"].items():
        yield {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def _stage(file: Path) -> dict[str, Any]:
    """The last checkpoint of a stage: the parts that were trained, and the adapters they carry.

    Raises:
        CheckpointError: it is no such file.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError("cannot be read as a checkpoint", file=str(file)) from error
    if not isinstance(state, dict) or "parts" not in state:
        raise CheckpointError(
            "not the last checkpoint of a stage",
            file=str(file),
            remedy="Name one that ends in -end.pt; others hold a stage that goes on",
        )
    return state


def _refuse_quantized(
    model: VisionLanguageModel, settings: Mapping[str, Any], start: StartConfig
) -> None:
    if "language_model" not in start.parts:
        return
    if model.config.is_quantized or settings.get("quantization_config") is not None:
        raise ConfigError(
            "quantised weights of a language model can neither be filled nor fill others",
            field="model.start.parts",
            remedy="Leave language_model out of parts: its weights come from model.language.source",
        )
