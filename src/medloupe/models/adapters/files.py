"""An adapter on disk without the model it adapts: what it is, what it fits, and its weights.

FOLDER/adapter.json            the resolved config, and the language model's width and number of layers
FOLDER/adapter.safetensors     every tensor of the adapter, its encoder's too
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medloupe.config import Config, read_yaml, trusting_code
from medloupe.errors import CheckpointError, ConfigError
from medloupe.models.adapters.base import AdapterConfig

if TYPE_CHECKING:
    from medloupe.models.vlm import VisionLanguageModel

CONFIG_FILE: Final = "adapter.json"
WEIGHTS_FILE: Final = "adapter.safetensors"


class SavedAdapter(Config):
    """What stands in `adapter.json`."""

    adapter: AdapterConfig
    width: int
    decoder_layers: int


def save_adapter(model: VisionLanguageModel, folder: Path) -> None:
    """Write a model's adapter alone.

    Raises:
        CheckpointError: it has none.
    """
    if model.adapter is None or model.config.adapter is None:
        raise CheckpointError("the model has no adapter that could be saved", file=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    saved = SavedAdapter(adapter=AdapterConfig.parse(model.config.adapter), **_shape_of(model))
    (folder / CONFIG_FILE).write_text(saved.model_dump_json(indent=1) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in model.adapter.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_adapter(
    model: VisionLanguageModel, folder: Path, *, trust_code: bool = False
) -> AdapterConfig:
    """Put a saved adapter on a model without one, or fill one that is alike. Returns its config, whose
    `fitted` joins the detail view to the transform of the model's processor.

    Raises:
        CheckpointError: the folder holds none, or a field differs between the adapter and the model.
        ConfigError: it names code outside of the package and `trust_code` is false.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"not a saved adapter: no {CONFIG_FILE}", file=str(folder))
    with trusting_code(trust_code):
        saved = SavedAdapter.parse(read_yaml(folder / CONFIG_FILE), file=str(folder / CONFIG_FILE))
    _refuse_other(saved.to_dict(), _shape_of(model), folder)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the adapter's weights do not fit: {error}", file=str(folder / WEIGHTS_FILE)
        ) from error
    if model.adapter is None:
        try:
            model.put_on(saved.adapter)
        except ConfigError as error:
            raise CheckpointError(
                error.fault.rule,
                file=str(folder),
                field=error.fault.field,
                remedy=error.fault.remedy,
            ) from error
    assert model.config.adapter is not None
    assert model.adapter is not None
    _refuse_other(saved.adapter.to_dict(), model.config.adapter, folder)
    try:
        model.adapter.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the adapter's weights do not fit: {error}", file=str(folder / WEIGHTS_FILE)
        ) from error
    return saved.adapter


def _shape_of(model: VisionLanguageModel) -> dict[str, int]:
    text = model.language_model.config.get_text_config()
    return {"width": int(text.hidden_size), "decoder_layers": int(text.num_hidden_layers)}


def _refuse_other(saved: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Every field that the model states must be the adapter's.

    Raises:
        CheckpointError: naming the first that differs and both values.
    """
    for field, value in wanted.items():
        if saved.get(field) != value:
            raise CheckpointError(
                f"the adapter has {field} {saved.get(field)}, the model {value}",
                file=str(folder / CONFIG_FILE),
                field=field,
                remedy="Load it onto a model like the one it was trained on",
            )
