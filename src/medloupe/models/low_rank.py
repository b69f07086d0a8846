"""Low-rank adapters inside a part of the model, through peft: LoRA (Hu et al. 2021), rsLoRA
(Kalajdzievski 2023) and DoRA (Liu et al. 2024).

Adapters sit on linear layers of the language model or the encoder and nowhere else. They are float32
whatever the type of the layer they adapt. A model that carries them says so in its config, so its folder
loads with them.

Merging adds them to the weights: exact up to rounding where those are float32. In bfloat16 each merged
weight is off by up to 2**-8 of itself and 2**-8 of its change, which is as much as storing any weight in
bfloat16 costs, but can be more than what was learned for a single weight; kept adapters lose nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import peft
from peft.tuners.lora import LoraLayer
from pydantic import Field
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from medloupe.config import Config
from medloupe.errors import CheckpointError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from medloupe.models.vlm import VisionLanguageModel

ADAPTER = "default"  # peft's name for the only adapter of a module
_PREFIX = "base_model.model."  # what peft's own files put before a name


class LowRankConfig(Config):
    """Adapters of one part. With `alpha` a and rank r the change counts a / r, as `rslora` a / sqrt(r);
    `dora` learns the length of each weight's rows apart from their direction.

    `targets` are names of linear layers, whole or from a dot on ("q_proj", "mlp.fc1"), or "all-linear":
    every linear layer of the part but the output head.
    """

    kind: Literal["lora", "dora", "rslora"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


def inject(part: nn.Module, config: LowRankConfig) -> None:
    """Put fresh adapters on a part, in place; they change nothing yet, and only they train there.

    Raises:
        ConfigError: `targets` names no linear layer, or one that cannot carry an adapter.
    """
    is_language = isinstance(part, PreTrainedModel)
    names = _chosen(part, config.targets)
    spec = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
        fan_in_fan_out=any(isinstance(part.get_submodule(name), Conv1D) for name in names),
        use_dora=config.kind == "dora",
        use_rslora=config.kind == "rslora",
        task_type="CAUSAL_LM" if is_language else None,
    )
    peft.inject_adapter_in_model(spec, part, ADAPTER)
    for _, layer in _adapted(part):
        layer.train(part.training)
    for name, parameter in part.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


def attach(model: VisionLanguageModel, part: str, config: LowRankConfig) -> None:
    """Put adapters on a part of the model, or go on with those that it carries; only they train there.

    Raises:
        ConfigError: it carries others, or as for `inject`.
    """
    carried = carried_adapters(model).get(part)
    if carried is not None and carried != config:
        raise ConfigError(
            f"{part} carries adapters {carried.to_json()}, the new ones are {config.to_json()}",
            remedy="Give them the same fields, or merge those before",
        )
    module = model.get_submodule(part)
    if carried is None:
        if part == "language_model" and model.config.is_quantized:
            peft.prepare_model_for_kbit_training(module, use_gradient_checkpointing=False)
        inject(module, config)
        _note(model, part, config)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def merge(model: VisionLanguageModel, part: str) -> None:
    """Add a part's adapters to the weights they adapt and take them off.

    Raises:
        ConfigError: the weights are quantised, and would be again: the adapters would be rounded away.
    """
    module = model.get_submodule(part)
    if model.config.is_quantized and part == "language_model":
        raise ConfigError(
            "adapters cannot be merged into quantised weights",
            remedy="Keep them; saved alone they fit the model that is not quantised",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tied output embeddings are not adapted
        for name, layer in _adapted(module):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, layer.get_base_layer())
    del module.peft_config
    _note(model, part, None)


def save_adapters(model: VisionLanguageModel, part: str, folder: Path) -> None:
    """Write a part's adapters alone, as a folder that peft loads onto the part without them
    (`peft.PeftModel.from_pretrained(language_model, folder)`).

    Raises:
        CheckpointError: the part carries none.
    """
    module: Any = model.get_submodule(part)
    if part not in carried_adapters(model):
        raise CheckpointError(f"{part} carries no adapters that could be saved", file=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    spec = module.peft_config[ADAPTER]
    spec.inference_mode = True
    spec.save_pretrained(folder)
    tensors = peft.get_peft_model_state_dict(
        module, adapter_name=ADAPTER, save_embedding_layers=False
    )
    tensors = {_PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def carried_adapters(model: VisionLanguageModel) -> dict[str, LowRankConfig]:
    """The adapters that each part of the model carries."""
    return {part: LowRankConfig.parse(data) for part, data in model.config.low_rank.items()}


def noted_adapters(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a saved config or a stage's last checkpoint says that each part carries. What was written
    before there were adapters of another kind calls it `adapters`."""
    return dict(saved.get("low_rank") or saved.get("adapters") or {})


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter: peft gives all of its own this prefix."""
    return "lora_" in name


def rest_dropout(part: nn.Module) -> None:
    """Adapters that do not train drop nothing: the part then says the same in every step."""
    for _, layer in _adapted(part):
        if not any(p.requires_grad for p in layer.parameters()):
            layer.eval()


def _adapted(part: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(name, m) for name, m in part.named_modules() if isinstance(m, LoraLayer)]


def _note(model: VisionLanguageModel, part: str, config: LowRankConfig | None) -> None:
    others = {name: data for name, data in model.config.low_rank.items() if name != part}
    model.config.low_rank = others if config is None else others | {part: config.to_dict()}


def _chosen(part: nn.Module, targets: str | Iterable[str]) -> list[str]:
    """The full names of the layers that `targets` means."""
    head = part.get_output_embeddings() if isinstance(part, PreTrainedModel) else None
    linears = _linears(part)
    if isinstance(targets, str):
        chosen = [name for name, module in linears.items() if module is not head]
        if not chosen:
            raise ConfigError(
                "the part has no linear layer to adapt", remedy="Train it whole, or leave it frozen"
            )
        return chosen
    chosen = []
    for target in targets:
        found = [name for name in linears if f".{name}".endswith(f".{target}")]
        if not found:
            known = {name.rpartition(".")[2] for name in linears}
            raise ConfigError(f"no linear layer is named {target!r}; {did_you_mean(target, known)}")
        chosen += found
    if any(linears[name] is head for name in chosen) and _is_tied(part):
        raise ConfigError(
            "the output head is the embedding table, which an adapter on it would not change",
            remedy="Leave the head out of targets",
        )
    return sorted(set(chosen))


def _linears(part: nn.Module) -> dict[str, nn.Module]:
    """The linear layers whose own forward runs: torch's attention reads its layers' weights itself,
    so that an adapter on them would never be asked."""
    inner = {
        child
        for module in part.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
    }
    return {
        name: module
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module not in inner
    }


def _is_tied(part: nn.Module) -> bool:
    assert isinstance(part, PreTrainedModel)
    head: Any = part.get_output_embeddings()
    return head.weight is part.get_input_embeddings().weight
