"""Fully sharded data parallel, through torch's own `fully_shard` (FSDP2): every process holds a share of
each weight, gradient and optimizer state.

A decoder layer of the language model is a group of its own: its weights are whole only while it runs.
Everything else that trains (connector, adapter, an encoder, embeddings, output head) is the root's group,
whole from the forward pass to the end of the backward pass, so that processes with and without images run
the same collectives. A frozen encoder is not sharded: what it makes of images is made outside of a step.

A stage trains a sharded copy; the whole model stays on the CPU of each process, and gets what was
trained when a stage ends or is evaluated.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from medloupe.models.adapters import decoder_layers
from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.checkpoint import FOLDER
from medloupe.train.engines.base import Losses, MakeOptimizer
from medloupe.train.engines.group import GroupConfig, GroupEngine, ThroughLosses, refuse_quantized
from medloupe.train.objectives.base import Micro, Objective
from medloupe.train.sharded import write_sharded


class Fsdp2Config(GroupConfig):
    """Weights, gradients and optimizer states are cut into as many shares as there are processes."""

    shards: ClassVar[bool] = True

    def open(self) -> Fsdp2Engine:
        return Fsdp2Engine(self.joined())


class TouchedLosses(ThroughLosses):
    """A loss that depends on all that trains in the root's group: a group's gradients travel together,
    and must be the same ones in every process.

    `reached` holds the names of those that a loss of the present step reached by itself.
    """

    def __init__(self, model: VisionLanguageModel, objective: Objective) -> None:
        super().__init__(model, objective)
        self.reached: set[str] = set()

    def forward(self, micro: Micro) -> torch.Tensor:
        loss = super().forward(micro)
        found = _leaves(loss)
        self.reaches = any(
            leaf.requires_grad and leaf is not self.anchor and not isinstance(leaf, DTensor)
            for leaf in found
        )
        for name, parameter in self.model.named_parameters():
            # inside of the root's forward its own group is whole; layers are not, and always run
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                if parameter in found:
                    self.reached.add(name)
                else:
                    loss = loss + 0.0 * parameter.sum()
        return loss


class Fsdp2Engine(GroupEngine):
    """See the module's docstring."""

    suffix = FOLDER

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.mesh = init_device_mesh(device.type, (self.world,))
        self._losses: TouchedLosses | None = None

    def model_for(self, model: VisionLanguageModel) -> VisionLanguageModel:
        refuse_quantized(model)
        self._losses = None  # the weights of a stage before go before the next copy comes
        gc.collect()
        return copy.deepcopy(model)

    def losses(self, model: VisionLanguageModel, objective: Objective) -> Losses:
        return TouchedLosses(model, objective)

    def wrap(self, losses: Losses, make: MakeOptimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        assert isinstance(losses, TouchedLosses), "made by this engine"
        self._losses = losses
        model = losses.model
        for layer in decoder_layers(model.language_model):
            fully_shard(layer, mesh=self.mesh)
        losses.anchor.data = losses.anchor.data.to(
            self.device
        )  # what is not sharded is not moved either
        whole = {losses.anchor}
        if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
            model.encoder.to(self.device)
            whole |= set(model.encoder.parameters())
        sharded = cast(nn.Module, fully_shard(losses, mesh=self.mesh, ignored_params=whole))
        return sharded, make()

    def settle(self) -> None:
        """What no process reached has no gradient, as in one process: an optimizer then leaves it be."""
        losses = self._losses
        assert losses is not None, "the stage is wrapped"
        reached = set().union(*self.gathered(losses.reached))
        losses.reached = set()
        layers = {
            parameter
            for layer in decoder_layers(losses.model.language_model)
            for parameter in layer.parameters()
        }
        for name, parameter in losses.model.named_parameters():
            if name not in reached and parameter not in layers:
                parameter.grad = None

    def publish(self, trained: VisionLanguageModel, model: VisionLanguageModel) -> None:
        whole = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    whole[name].copy_(_full(parameter))

    def cut(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if isinstance(value, DTensor) or not isinstance(like, DTensor) or value.shape != like.shape:
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

    def write(self, path: Path, state: Mapping[str, Any]) -> None:
        write_sharded(path, state, is_main=self.is_main)


def _full(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _leaves(loss: torch.Tensor) -> set[torch.Tensor]:
    """The parameters that a loss depends on."""
    found: set[torch.Tensor] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            found.add(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found
