"""Tensors of a published checkpoint under our names, with every name of both sides accounted for.

Names are mapped by whole prefixes. What the model does not read by design (layers above the one that is
read, buffers that are computed anew) is known by pattern. Everything else that fits nothing is an error
unless the user allows it by name, and so is a tensor of ours that nothing fills, unless the load is
partial. Either way the report names every tensor once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from medloupe.config import Config
from medloupe.errors import CheckpointError
from medloupe.models.encoders.checkpoints import checkpoint_file, read_json, read_tensors

WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# Buffers that old checkpoints carry and that every model computes for itself.
COMPUTED = r".*\.(rotary_emb\.inv_freq|embeddings\.position_ids)"
NEVER = re.compile(r"(?!)")


class LoadReport(Config):
    """What a load did, by name.

    `loaded` and `kept` are the model's tensors: filled, and left as they were. `unread` and `allowed`
    are the checkpoint's: not read by design, and fitting nothing but let through by the user.
    `elsewhere` says where parts of `kept` were loaded from instead.
    """

    source: str = ""
    loaded: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    parameters: int = 0

    def lines(self) -> list[str]:
        """For people: a count a line, with the parts that the names lie in."""
        rows = [
            ("loaded", self.loaded, f" ({self.parameters:,} numbers)"),
            ("not loaded, as they were", self.kept, ""),
            ("of the checkpoint not read", self.unread, ""),
            ("of the checkpoint allowed to fit nothing", self.allowed, ""),
        ]
        text = [
            f"{what}: {len(names):,} tensors{more}{_parts(names)}"
            for what, names, more in rows
            if names
        ]
        return [*text, *self.elsewhere]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """(their prefix, ours) pairs: no prefix of one side begins another of that side. `unread` matches
    whole names of theirs."""

    prefixes: tuple[tuple[str, str], ...]
    unread: re.Pattern[str] = NEVER

    def ours(self, name: str) -> str | None:
        """Our name of a tensor of theirs; None where no prefix fits."""
        return _renamed(name, self.prefixes)

    def theirs(self, name: str) -> str | None:
        """Their name of a tensor of ours."""
        return _renamed(name, tuple((ours, theirs) for theirs, ours in self.prefixes))


def shards(source: str) -> Iterator[dict[str, torch.Tensor]]:
    """The files of a folder or hub id, one after another, so that one is in memory at a time.

    Raises:
        CheckpointError: there is none, or one cannot be read; pickles that hold more than tensors are
            not.
    """
    path = checkpoint_file(source, WEIGHTS)
    if path.suffix != ".json":
        yield read_tensors(path)
        return
    for name in dict.fromkeys(read_json(path).get("weight_map", {}).values()):
        yield read_tensors(checkpoint_file(source, (str(name),)))


def load_named(
    model: nn.Module,
    files: Iterable[Mapping[str, torch.Tensor]],
    naming: Naming,
    *,
    source: str | Path,
    allow: Collection[str] = (),
    partial: bool = False,
    absent: str | None = None,
) -> LoadReport:
    """Copy tensors into the model, whose dtypes stay.

    Args:
        allow: prefixes of names that may fit nothing.
        partial: whether tensors of the model may stay as they are.
        absent: a prefix of ours that the checkpoint may leave out as a whole.

    Raises:
        CheckpointError: see the module's docstring; also another shape. A model that was being filled
            by several files is then of no use; from one file nothing has been copied.
    """
    own = model.state_dict()
    placed: dict[str, None] = {}
    unread: list[str] = []
    allowed: list[str] = []
    for tensors in files:
        fitting = {}
        strange = []
        for name, tensor in tensors.items():
            ours = naming.ours(name)
            if ours is not None and ours in own:
                fitting[ours] = tensor
            elif naming.unread.fullmatch(name):
                unread.append(name)
            elif name.startswith(tuple(allow)):
                allowed.append(name)
            else:
                strange.append(name)
        _refuse_strange(strange, source)
        _refuse_shapes(own, fitting, source)
        model.load_state_dict(fitting, strict=False)
        placed |= dict.fromkeys(fitting)
    kept = sorted(own.keys() - _with_tied(model, placed))
    lacking = [name for name in kept if not (absent and name.startswith(absent))]
    if absent and len(lacking) + sum(name.startswith(absent) for name in own) != len(kept):
        lacking = kept  # a part of it is there: it is not left out as a whole
    if lacking and not partial:
        raise CheckpointError(
            f"lacks tensors of the model ({len(lacking):,}), the first "
            f"{naming.theirs(lacking[0]) or lacking[0]!r}",
            file=str(source),
        )
    return LoadReport(
        source=str(source),
        loaded=tuple(sorted(placed)),
        kept=tuple(kept),
        unread=tuple(sorted(unread)),
        allowed=tuple(sorted(allowed)),
        parameters=sum(own[name].numel() for name in placed),
    )


def layers_from(prefix: str, first: int, count: int) -> str:
    """A pattern of every name in the layers `first` to `count - 1` below `prefix`."""
    numbers = "|".join(str(number) for number in range(first, count))
    return rf"{re.escape(prefix)}({numbers})\..*" if numbers else NEVER.pattern


def either(*patterns: str) -> re.Pattern[str]:
    """A pattern that matches what any of them matches."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def _renamed(name: str, prefixes: tuple[tuple[str, str], ...]) -> str | None:
    found = next((pair for pair in prefixes if name.startswith(pair[0])), None)
    return None if found is None else found[1] + name.removeprefix(found[0])


def _refuse_strange(strange: list[str], source: str | Path) -> None:
    if strange:
        raise CheckpointError(
            f"tensors that fit nothing in the model ({len(strange):,}): {', '.join(strange[:3])}"
            + (", ..." if len(strange) > 3 else ""),
            file=str(source),
            remedy="If they may be left out, allow them by name (allow, or --allow PREFIX)",
        )


def _refuse_shapes(
    own: Mapping[str, torch.Tensor], fitting: Mapping[str, torch.Tensor], source: str | Path
) -> None:
    for name, tensor in fitting.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {tuple(tensor.shape)}, the model wants "
                f"{tuple(own[name].shape)}",
                file=str(source),
            )


def _with_tied(model: nn.Module, placed: Collection[str]) -> set[str]:
    """`placed`, and every other name of the same parameters: tied ones are often saved once."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name for group in names.values() if set(group) & set(placed) for name in group}
    return tied | set(placed)


def _parts(names: Collection[str]) -> str:
    """`: encoder 24, connector 4`."""
    counts: dict[str, int] = {}
    for name in names:
        part = name.partition(".")[0]
        counts[part] = counts.get(part, 0) + 1
    return ": " + ", ".join(f"{part} {number:,}" for part, number in counts.items())
