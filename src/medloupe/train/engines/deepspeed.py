"""DeepSpeed's ZeRO: every process holds a share of optimizer states and gradients (2), and of weights (3).

Processes with and without images, or with images of several kinds, run different modules. ZeRO sums
gradients in the order in which they come, and ZeRO-3 gathers weights in the order in which modules run:
both must be the same in every process. So DeepSpeed is shown the decoder layers, which run alike
everywhere, and everything else (connector, adapter, an encoder that trains, embeddings, output head) as
one module, whose gradients leave together when the backward pass ends, zeros for what a process did not
reach. A frozen encoder is not sharded: what it makes of images is made outside of a step.

Under ZeRO-3 a stage trains a sharded copy; the whole model stays on the CPU of each process, and gets what
was trained when a stage ends or is evaluated.
"""

from __future__ import annotations

import copy
import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from medloupe.errors import MissingExtraError
from medloupe.models.adapters import decoder_layers
from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.engines.base import Losses, MakeOptimizer, Named
from medloupe.train.engines.group import GroupConfig, GroupEngine, ThroughLosses, refuse_quantized
from medloupe.train.engines.zero import MOMENTS, ZeroAdamW
from medloupe.train.objectives.base import Micro, Objective

BUCKET = 500_000_000  # gradients that travel together, DeepSpeed's default; it allocates that many


class DeepspeedConfig(GroupConfig):
    """`zero` 2 cuts gradients and optimizer states into as many shares as there are processes, 3 the
    weights as well."""

    shards: ClassVar[bool] = True
    compiles: ClassVar[bool] = False

    zero: Literal[2, 3] = 2

    def open(self) -> DeepspeedEngine:
        if find_spec("deepspeed") is None:
            raise MissingExtraError.naming("deepspeed", extra="deepspeed")
        return DeepspeedEngine(self.joined(), self.zero)


class ZeroLosses(ThroughLosses):
    """`ran` says whether the language model ran."""

    def __init__(self, model: VisionLanguageModel, objective: Objective) -> None:
        super().__init__(model, objective)
        self.ran = False

    def _anchored(self, module: nn.Module, args: Any, embeddings: torch.Tensor) -> torch.Tensor:
        self.ran = True
        return super()._anchored(module, args, embeddings)


class Shown(nn.Module):
    """What DeepSpeed sees of a stage: `layers`, where it is to shard them, and all other parameters as its
    own. `reached` holds the names of those that a loss of the present step reached by itself."""

    def __init__(self, losses: ZeroLosses, zero: int) -> None:
        super().__init__()
        self._losses = (losses,)  # not as a module of this one
        self.reached: set[str] = set()
        self.precision = (False, torch.bfloat16)
        layers = decoder_layers(losses.model.language_model)
        inside = set(layers.parameters())
        self.layered = {
            f"model.{name}"
            for name, parameter in losses.model.named_parameters()
            if parameter in inside and parameter.requires_grad
        }
        encoder = set(losses.model.encoder.parameters())
        apart = set() if any(p.requires_grad for p in encoder) else encoder
        named = {f"model.{name}": parameter for name, parameter in losses.model.named_parameters()}
        if zero == 3:
            self.layers = layers
            shown = {name: p for name, p in named.items() if p not in inside | apart}
        else:  # frozen weights are no business of ZeRO-2
            shown = {name: p for name, p in named.items() if p.requires_grad}
        for number, parameter in enumerate(shown.values()):
            self.register_parameter(f"own_{number}", parameter)
        self.together = {
            name: p for name, p in shown.items() if p.requires_grad and p not in inside
        }

    @property
    def losses(self) -> ZeroLosses:
        return self._losses[0]

    def forward(self, micro: Micro) -> torch.Tensor:
        anchor, *aliases = _Together.apply(  # type: ignore[no-untyped-call]
            self._note, self.losses.anchor, *self.together.values()
        )
        taken = dict(zip(self.together, aliases, strict=True)) | {"anchor": anchor}
        enabled, dtype = self.precision
        self.losses.ran = False
        with torch.autocast(anchor.device.type, dtype=dtype, enabled=enabled):
            loss: torch.Tensor = functional_call(self.losses, taken, (micro,))
        if self.losses.ran:
            self.reached |= self.layered
        self.losses.reaches = self.losses.ran and bool(self.layered)
        return loss

    def _note(self, reached: Sequence[bool]) -> None:
        """Of the backward pass: which of those that leave together a gradient came to."""
        found = {name for name, one in zip(self.together, reached, strict=True) if one}
        self.reached |= found
        self.losses.reaches |= bool(found)


class _Together(torch.autograd.Function):
    """Parameters as they are, whose gradients leave together and in one order; zeros where none came. The
    first is the anchor, on which every loss depends."""

    @staticmethod
    def forward(
        ctx: Any, note: Callable[[Sequence[bool]], None], *parameters: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.note = note
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return tuple(p.view_as(p) for p in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        ctx.note([gradient is not None for gradient in gradients[1:]])
        whole = (
            torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
            for gradient, (shape, dtype, device) in zip(gradients, ctx.like, strict=True)
        )
        return None, *whole


class Called(nn.Module):
    """What the loop calls. DeepSpeed turns an autocast around it off, so it is handed on."""

    def __init__(self, deepspeed: Any, shown: Shown) -> None:
        super().__init__()
        self._held = (deepspeed, shown)

    def forward(self, micro: Micro) -> torch.Tensor:
        deepspeed, shown = self._held
        kind = shown.losses.anchor.device.type
        shown.precision = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            loss: torch.Tensor = deepspeed(micro)
        return loss


class DeepspeedEngine(GroupEngine):
    """See the module's docstring."""

    def __init__(self, device: torch.device, zero: int) -> None:
        super().__init__(device)
        self.zero = zero
        self._deepspeed: Any = None
        self._shown: Shown | None = None
        self._optimizer: ZeroAdamW | None = None
        self._noted: dict[nn.Parameter, set[str]] = {}

    def model_for(self, model: VisionLanguageModel) -> VisionLanguageModel:
        refuse_quantized(model)
        return super().model_for(model) if self.zero == 2 else copy.deepcopy(model)

    def losses(self, model: VisionLanguageModel, objective: Objective) -> Losses:
        return ZeroLosses(model, objective)

    def wrap(self, losses: Losses, make: MakeOptimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        assert isinstance(losses, ZeroLosses), "made by this engine"
        self._to_device(losses)
        optimizer = ZeroAdamW(make())
        shown = Shown(losses, self.zero)
        self._noted = {parameter: set(vars(parameter)) for parameter in shown.parameters()}
        self._deepspeed = _initialized(shown, optimizer, self.zero, self.device)
        optimizer.ready(self._deepspeed)
        self._shown, self._optimizer = shown, optimizer
        return Called(self._deepspeed, shown), optimizer

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        self._deepspeed.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        if self.zero == 2:  # it counts on some gradient to do this
            self._deepspeed.optimizer.setup_buckets()
        self._deepspeed.backward(loss)

    def settle(self) -> None:
        """What no process reached is left out of the step, as in one process."""
        assert self._shown is not None, "the stage is wrapped"
        assert self._optimizer is not None, "the stage is wrapped"
        reached = set().union(*self.gathered(self._shown.reached))
        self._shown.reached = set()
        self._optimizer.client.reached = {
            parameter
            for name, parameter in self._shown.losses.model.named_parameters()
            if f"model.{name}" in reached
        }

    def norm(self, parameters: Iterable[nn.Parameter]) -> float:
        return float(self._norm(parameters))

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> float:
        assert self._optimizer is not None, "the stage is wrapped"
        norm = self._norm(parameters)
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)  # as torch's own
        for share in self._optimizer.gradients().values():
            share.mul_(factor.to(share.device))
        return float(norm)

    def _norm(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        assert self._optimizer is not None, "the stage is wrapped"
        shares = self._optimizer.gradients()
        norms = [
            torch.linalg.vector_norm(shares[parameter], dtype=torch.float64)
            for parameter in parameters
            if parameter in shares
        ]
        square = float(torch.stack(norms).square().sum()) if norms else 0.0
        return torch.tensor(self.sums([square])[0]).sqrt()

    def publish(self, trained: VisionLanguageModel, model: VisionLanguageModel) -> None:
        if self.zero == 2:
            return super().publish(trained, model)
        assert self._optimizer is not None, "the stage is wrapped"
        whole = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    whole[name].copy_(self._optimizer.whole(parameter))
        return None

    def finish(self, trained: VisionLanguageModel, model: VisionLanguageModel) -> None:
        super().finish(trained, model)
        self._free()

    def kept(self, parameter: nn.Parameter) -> torch.Tensor:
        """Whole, in the first process, which writes the file."""
        if self.zero == 2:
            return parameter.detach()
        assert self._optimizer is not None, "the stage is wrapped"
        whole = self._optimizer.whole(parameter)
        return whole.cpu() if self.is_main else whole.new_empty(0)

    def remembered(self, optimizer: torch.optim.Optimizer, named: Named) -> dict[str, Any]:
        """Whole, in the first process, which writes the file."""
        assert isinstance(optimizer, ZeroAdamW), "made by this engine"
        mine = {name: optimizer.moments(parameter) for name, parameter in named}
        steps: dict[str, float] = {}
        for known in self.gathered({n: float(of["step"]) for n, of in mine.items() if of}):
            steps |= known
        found: dict[str, Any] = {}
        for name, parameter in named:
            if name not in steps:
                continue
            whole = {key: optimizer.whole(parameter, mine[name].get(key)) for key in MOMENTS}
            if self.is_main:
                found[name] = {"step": torch.tensor(steps[name])}
                found[name] |= {key: value.cpu() for key, value in whole.items()}
        return found

    def like(self, parameter: nn.Parameter) -> torch.Tensor:
        assert self._optimizer is not None, "the stage is wrapped"
        return torch.zeros(()).expand(self._optimizer.shapes[parameter])

    def put(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        assert self._optimizer is not None, "the stage is wrapped"
        self._optimizer.put(parameter, value)

    def recall(
        self, optimizer: torch.optim.Optimizer, named: Named, saved: Mapping[str, Mapping[str, Any]]
    ) -> None:
        assert isinstance(optimizer, ZeroAdamW), "made by this engine"
        optimizer.recall({parameter: saved[name] for name, parameter in named if name in saved})

    def close(self) -> None:
        self._free()
        super().close()

    def _to_device(self, losses: ZeroLosses) -> None:
        """What DeepSpeed does not move itself."""
        model = losses.model
        losses.anchor.data = losses.anchor.data.to(self.device)
        if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
            model.encoder.to(self.device)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(self.device)

    def _free(self) -> None:
        """Leave the model's parameters as they were before DeepSpeed saw them, but for their values."""
        if self._deepspeed is None:
            return
        assert self._shown is not None, "the stage is wrapped"
        self._shown.losses.hook.remove()
        self._deepspeed.destroy()
        for parameter, before in self._noted.items():
            if self.zero == 2:
                parameter.data = parameter.data.clone()
            for name in set(vars(parameter)) - before:
                delattr(parameter, name)
        self._deepspeed = self._shown = self._optimizer = None
        self._noted = {}
        gc.collect()


def _initialized(shown: Shown, optimizer: ZeroAdamW, zero: int, device: torch.device) -> Any:
    """DeepSpeed's engine. Clipping, the rate and the loss scale are the loop's."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    from deepspeed.utils import logger, set_z3_leaf_module

    logger.setLevel(logging.ERROR)  # it warns of every optimizer but its own
    # else it compiles an all-reduce through shared memory for CPUs, which nothing here uses
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trained = sum(shape.numel() for shape in optimizer.shapes.values())
    if zero == 3:
        for layer in shown.layers:
            set_z3_leaf_module(layer, True)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": zero, "reduce_bucket_size": min(BUCKET, trained)}
        | ({"compute_grad_norm": False} if zero == 2 else _THREE),
    }
    engine, *_ = deepspeed.initialize(model=shown, optimizer=optimizer.client, config=config)
    return engine


_THREE: dict[str, Any] = {
    # every weight of a layer is sharded, however small: layers are gathered as a whole anyway
    "stage3_param_persistence_threshold": 0,
    # only what the very next module uses stays: from the end of the forward pass on all but the layers
    "stage3_max_reuse_distance": 1,
}
