"""MedLoupe's models under lmms-eval: the entry point, and lmms-eval's requests as conversations.

    lmms-eval --model medloupe --model_args pretrained=runs/first --tasks vqa_rad --batch_size 8

lmms-eval finds the model by the entry point `lmms_eval.models` and talks to `lmms_eval_model.MedLoupe`;
this module holds what needs no lmms-eval. Decoding is greedy; a task that asks for sampling is refused.
Pictures arrive decoded and are kept as PNG for the length of a run, by their content, so that the
questions of an image share its prefix.
Source: lmms-eval 0.7.2, "Model guide" and lmms_eval/models/registry_v2.py (tested with 0.7.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from PIL import Image

from medloupe.errors import ConfigError, import_extra
from medloupe.types import Conversation, ImageRef, Message, Part, Role, Text

MODEL: Final = "medloupe.evaluate.lmms_eval_model.MedLoupe"
DEFAULT_TOKENS: Final = 128


def manifest() -> Any:
    """The entry point `lmms_eval.models`: which class runs our models.

    Raises:
        MissingExtraError: lmms-eval is not installed.
    """
    registry = import_extra(
        "lmms_eval.models.registry_v2",
        extra="",
        package="lmms-eval",
        line="pip install lmms-eval",
    )
    return registry.ModelManifest(model_id="medloupe", chat_class_path=MODEL)


class Pictures:
    """Decoded pictures as files below `folder`, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, picture: Any) -> ImageRef:
        """A PIL image, or a path of one.

        Raises:
            ConfigError: neither.
        """
        if isinstance(picture, str | Path):
            return ImageRef(uri=str(Path(picture).resolve()))
        if not isinstance(picture, Image.Image):
            raise ConfigError(
                f"MedLoupe is shown pictures, not {type(picture).__name__}",
                remedy="Choose tasks of images",
            )
        plain = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
        shape = f"{plain.mode} {plain.size}".encode()
        name = hashlib.sha256(shape + plain.tobytes()).hexdigest()[:32]
        path = self.folder / f"{name}.png"
        if not path.is_file():
            plain.save(path)
        return ImageRef(uri=str(path))


def conversation_of(
    messages: Sequence[Mapping[str, Any]], pictures: Pictures, *, id: str
) -> Conversation:
    """lmms-eval's chat messages as a conversation that ends with the question.

    Raises:
        ConfigError: a part that is neither text nor a picture.
    """
    return Conversation(id=id, messages=tuple(_message(one, pictures) for one in messages))


def tokens_of(asked: Mapping[str, Any]) -> int:
    """How many new tokens a task's generation arguments allow.

    Raises:
        ConfigError: they ask for sampling or for beams.
    """
    samples = (asked.get("temperature") or 0) > 0 and asked.get("do_sample", True)
    if samples or (asked.get("num_beams") or 1) > 1:
        raise ConfigError(
            "the task asks for sampling or beams, and MedLoupe decodes greedily",
            remedy="Pass --gen_kwargs temperature=0,do_sample=False,num_beams=1",
        )
    return int(asked.get("max_new_tokens") or DEFAULT_TOKENS)


def cut_at(text: str, until: Any) -> str:
    """The text before the first of the task's stop texts."""
    stops = [until] if isinstance(until, str) else list(until or ())
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def _message(message: Mapping[str, Any], pictures: Pictures) -> Message:
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts = tuple(_part(part, pictures) for part in content)
    return Message(role=cast("Role", message["role"]), content=parts)


def _part(part: Mapping[str, Any], pictures: Pictures) -> Part:
    match part["type"]:
        case "text":
            return Text(text=str(part["text"]))
        case "image":
            return pictures.keep(part["url"])
    raise ConfigError(
        f"MedLoupe answers texts and pictures, not {part['type']}", remedy="Choose tasks of images"
    )
