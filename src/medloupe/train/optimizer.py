"""AdamW over named parts, warm-up and cosine."""

from __future__ import annotations

import importlib.util
import itertools
import math
from typing import Any

import torch
from torch import nn

from medloupe.errors import ConfigError, MissingExtraError
from medloupe.models.vlm import VisionLanguageModel
from medloupe.train.stages import StageConfig

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def trained_parameters(model: VisionLanguageModel) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The parameters that train, by part, in a fixed order."""
    return {
        part: [
            (f"{part}.{name}", parameter)
            for name, parameter in model.get_submodule(part).named_parameters()
            if parameter.requires_grad
        ]
        for part in model.parts
    }


def build_optimizer(model: VisionLanguageModel, stage: StageConfig) -> torch.optim.Optimizer:
    """One parameter group a part, two where the adapter's encoder has a rate of its own; vectors (norms,
    biases) are not decayed. Each group keeps its peak rate under "peak".

    Raises:
        MissingExtraError, ConfigError: 8-bit states are not installed, or not for this machine.
    """
    groups: list[dict[str, Any]] = []
    for named in trained_parameters(model).values():
        rates = [_rate(name, stage) for name, _ in named]
        for rate, decay in itertools.product(dict.fromkeys(rates), (True, False)):
            chosen = [
                p
                for (_, p), own in zip(named, rates, strict=True)
                if own == rate and (p.ndim > 1) == decay
            ]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "lr": rate,
                        "peak": rate,
                        "weight_decay": stage.weight_decay if decay else 0.0,
                    }
                )
    if stage.optimizer == "adamw_8bit":
        return _eight_bit(groups, f"train.stages.{stage.name}.optimizer")
    on_gpu = all(p.device.type == "cuda" for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, betas=_BETAS, eps=_EPSILON, fused=True if on_gpu else None)


def _rate(name: str, stage: StageConfig) -> float:
    """The peak rate of a parameter: of the narrowest part of the model that has one, else the stage's."""
    rated = {part: r for part, r in stage.learning_rates.items() if name.startswith(f"{part}.")}
    narrowest = max(rated, key=lambda part: len(part), default=None)
    return stage.learning_rate if narrowest is None else rated[narrowest]


def _eight_bit(groups: list[dict[str, Any]], field: str) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW, tried on a few numbers first: not every machine has its kernels."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError.naming("bitsandbytes", extra="quantized")
    from bitsandbytes.optim import AdamW8bit

    device = groups[0]["params"][0].device
    trial = nn.Parameter(torch.ones(8192, device=device))  # below 4,096 it keeps 32 bits
    trial.grad = torch.ones_like(trial)
    try:
        AdamW8bit([trial]).step()
    except (NotImplementedError, RuntimeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"bitsandbytes has no 8-bit optimizer for {device.type} here: {error}",
            field=field,
            remedy="Set it to adamw",
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(groups, betas=_BETAS, eps=_EPSILON)
    return made


def set_rates(optimizer: torch.optim.Optimizer, stage: StageConfig, step: int, total: int) -> float:
    """Set the learning rates of step `step` (0-based) of `total`; returns the schedule's factor."""
    factor = schedule(step, total, stage.warmup, stage.min_learning_rate)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor


def schedule(step: int, total: int, warmup: float, floor: float) -> float:
    """Linear over the first `warmup` share, then a cosine from 1 to `floor`."""
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(total - rising, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
