"""Where ZeRO keeps what trains, and AdamW over it.

DeepSpeed lays the parameters of a group end to end and cuts them: a process holds float32 weights of
*fragments* of parameters. AdamW runs over these fragments, each with its own state, so that a
parameter that no row reached is left as it is, as in one process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True, eq=False)
class Fragment:
    """Numbers from `start` on of a flattened parameter: `values`, which lie in `flat` from `place` on.
    `shape` is the parameter's."""

    parameter: nn.Parameter
    shape: torch.Size
    start: int
    values: nn.Parameter
    flat: torch.Tensor
    place: int

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The same numbers of a whole tensor of that shape."""
        return whole.reshape(-1).narrow(0, self.start, self.values.numel())


class ClientAdamW(torch.optim.Optimizer):
    """The optimizer that DeepSpeed steps, group by group: it puts its own flat tensors into the groups.
    Only parameters in `reached` move."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        super().__init__([dict(group) for group in groups], {})
        self.adamw: torch.optim.Optimizer | None = None
        self.reached: Collection[nn.Parameter] = ()
        self._in: dict[int, list[Fragment]] = defaultdict(list)

    def cut(self, fragments: Sequence[Fragment], adamw: torch.optim.Optimizer) -> None:
        """Go on with `adamw`, which holds the values of these fragments."""
        self.adamw = adamw
        for fragment in fragments:
            self._in[id(fragment.flat)].append(fragment)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loop takes losses itself"
        assert self.adamw is not None, "the fragments are known"
        for flat in (flat for group in self.param_groups for flat in group["params"]):
            for fragment in self._in[id(flat)]:
                if fragment.parameter in self.reached:
                    here = flat.grad.narrow(0, fragment.place, fragment.values.numel())
                    fragment.values.grad = here
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)


class ZeroAdamW(torch.optim.Optimizer):
    """AdamW as the loop knows it, with the model's parameters in its groups, whose rates are its own.

    `ready` takes what DeepSpeed made; before, nothing else can be asked.
    """

    def __init__(self, whole: torch.optim.Optimizer) -> None:
        super().__init__([dict(group) for group in whole.param_groups], whole.defaults)
        self.client = ClientAdamW(whole.param_groups)
        self.fragments: dict[nn.Parameter, Fragment] = {}
        self.shapes: dict[nn.Parameter, torch.Size] = {
            parameter: parameter.shape
            for group in self.param_groups
            for parameter in group["params"]
        }

    def ready(self, deepspeed: Any) -> None:
        """`deepspeed` is the engine that `deepspeed.initialize` made with `client`."""
        self.deepspeed, self.zero = deepspeed, deepspeed.optimizer
        cut = _cut_three if deepspeed.zero_optimization_stage() == 3 else _cut_two
        self.fragments = {
            fragment.parameter: fragment
            for fragment in cut(self.zero, self.shapes)
            if fragment.values.numel()
        }
        groups = [
            {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
            | {"params": [self.fragments[p].values for p in group["params"] if p in self.fragments]}
            for group in self.param_groups
        ]
        on_gpu = all(parameter.device.type == "cuda" for parameter in self.shapes)
        self.adamw = torch.optim.AdamW(groups, fused=True if on_gpu else None)
        self.client.cut(list(self.fragments.values()), self.adamw)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        del closure
        for mine, inner in zip(self.param_groups, self.adamw.param_groups, strict=True):
            inner["lr"] = mine["lr"]
        self.deepspeed.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, those that were summed up but not used as well."""
        self.zero.zero_grad(set_to_none=set_to_none)
        for sums in (self.zero.averaged_gradients, getattr(self.zero, "all_grad_tensors", {})):
            for number in sums:
                sums[number] = None

    def gradients(self) -> dict[nn.Parameter, torch.Tensor]:
        """This process's share of each parameter's gradient, once a step's last backward pass is done."""
        return dict(self._gradients())

    def _gradients(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        three = self.deepspeed.zero_optimization_stage() == 3
        groups = self.zero.fp16_groups if three else self.zero.params_in_partition
        for number, group in enumerate(groups):
            shares = self.zero.averaged_gradients[number]  # and padding behind them
            yield from zip(group, shares, strict=False)

    def whole(self, parameter: nn.Parameter, values: torch.Tensor | None = None) -> torch.Tensor:
        """A parameter, or what `values` are a fragment of, put together from all processes."""
        fragment, shape = self.fragments.get(parameter), self.shapes[parameter]
        buffer = torch.zeros(shape, device=parameter.device)
        if fragment is not None:
            fragment.of(buffer).copy_(fragment.values.detach() if values is None else values)
        dist.all_reduce(buffer)
        return buffer

    def put(self, parameter: nn.Parameter, whole: torch.Tensor) -> None:
        """Set a parameter, wherever this process keeps numbers of it."""
        fragment = self.fragments.get(parameter)
        with torch.no_grad():
            if self.deepspeed.zero_optimization_stage() == 2:
                parameter.copy_(whole)
            elif fragment is not None:
                kept = parameter.ds_tensor.data  # type: ignore[attr-defined]
                kept[: fragment.values.numel()].copy_(fragment.of(whole))
            if fragment is not None:
                fragment.values.copy_(fragment.of(whole))

    def moments(self, parameter: nn.Parameter) -> Mapping[str, torch.Tensor]:
        """What AdamW remembers of this process's fragment; nothing where there is none."""
        fragment = self.fragments.get(parameter)
        return {} if fragment is None else self.adamw.state.get(fragment.values, {})

    def recall(self, saved: Mapping[nn.Parameter, Mapping[str, torch.Tensor]]) -> None:
        """Go on from whole moments and numbers of steps."""
        owner = {fragment.values: fragment for fragment in self.fragments.values()}
        order = [owner[values] for group in self.adamw.param_groups for values in group["params"]]
        state = {
            place: {
                key: fragment.of(value).clone() if key in MOMENTS else value
                for key, value in saved[fragment.parameter].items()
            }
            for place, fragment in enumerate(order)
            if fragment.parameter in saved
        }
        groups = self.adamw.state_dict()["param_groups"]
        self.adamw.load_state_dict({"state": state, "param_groups": groups})


def _cut_two(zero: Any, shapes: Mapping[nn.Parameter, torch.Size]) -> Iterator[Fragment]:
    """As ZeRO-2 cuts: a group's numbers in equal shares, wherever parameters begin."""
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:  # it lies in the shares of others
                continue
            mine, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield _fragment(parameter, shapes, mine.start, flat, there.start, mine.numel)


def _cut_three(zero: Any, shapes: Mapping[nn.Parameter, torch.Size]) -> Iterator[Fragment]:
    """As ZeRO-3 cuts: each parameter in equal shares, the last ones padded."""
    rank = dist.get_rank()
    for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        for parameter in group:
            _, place, size = zero.grad_position[zero.get_param_id(parameter)]
            numel = min(size, shapes[parameter].numel() - rank * size)
            yield _fragment(parameter, shapes, rank * size, flat, place, max(numel, 0))


def _fragment(
    parameter: nn.Parameter,
    shapes: Mapping[nn.Parameter, torch.Size],
    start: int,
    flat: torch.Tensor,
    place: int,
    numel: int,
) -> Fragment:
    values = nn.Parameter(flat.detach().narrow(0, place, numel))
    return Fragment(
        parameter=parameter,
        shape=shapes[parameter],
        start=start,
        values=values,
        flat=flat,
        place=place,
    )
