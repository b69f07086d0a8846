"""What an optimizer remembers, by the names of parameters, as checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn


def state_by_name(
    optimizer: torch.optim.Optimizer, named: Sequence[tuple[str, nn.Parameter]]
) -> dict[str, dict[str, Any]]:
    """What the optimizer remembers of each parameter that it has moved so far."""
    state = cast(Mapping[torch.Tensor, Mapping[str, Any]], optimizer.state)
    return {name: dict(state[parameter]) for name, parameter in named if parameter in state}


def load_state(
    optimizer: torch.optim.Optimizer,
    named: Sequence[tuple[str, nn.Parameter]],
    saved: Mapping[str, Mapping[str, Any]],
) -> None:
    """Go on from `state_by_name`."""
    names = {parameter: name for name, parameter in named}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    state = {place: dict(saved[name]) for place, name in enumerate(order) if name in saved}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
