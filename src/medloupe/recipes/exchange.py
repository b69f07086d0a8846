"""Whole model folders to and from other projects' formats.

An imported folder is complete: model, tokenizer, processor with the prompt that the checkpoint was trained
with, and `import.json`, which names every tensor that was and was not loaded. An export to LLaVA's
format is what transformers, vLLM and SGLang load; our processor stands beside it, so that it comes back
as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from medloupe.errors import CheckpointError
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.vlm import VisionLanguageModel
from medloupe.models.weights import LoadReport, Parts, load_published, to_llava
from medloupe.models.weights.read import NO_PARTS
from medloupe.processing import Processor, ProcessorConfig
from medloupe.processing.processor import FILE, SavedProcessor

REPORT_FILE = "import.json"


def import_model(
    source: str, out: Path, parts: Parts = NO_PARTS, *, allow: Collection[str] = ()
) -> LoadReport:
    """Load a published checkpoint and save it as our model in `out`.

    Raises:
        CheckpointError, ConfigError: see `load_published`; also where `out` cannot be written or exists.
    """
    published = load_published(source, parts, allow=allow)
    model = published.model
    processor = Processor(
        _exported_before(source)
        or ProcessorConfig(
            transform=published.transform,
            prompt=published.prompt,
            max_length=published.max_length,
        ),
        published.tokenizer,
        model.layouts,
        int(model.config.image_token_id),
    )

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save(folder)
        (folder / REPORT_FILE).write_text(
            published.report.model_dump_json(indent=1) + "\n", "utf-8"
        )

    _publish(out, write)
    return published.report


def export_llava(folder: Path, out: Path, *, trust_code: bool = False) -> tuple[str, ...]:
    """Write a saved model as transformers' LLaVA; returns what its image processor cannot say.

    Raises:
        ConfigError: the composition is not LLaVA's.
        CheckpointError: the folder is no saved model, or `out` exists or cannot be written.
    """
    processor = Processor.load(folder)
    model = VisionLanguageModel.load(folder, trust_code=trust_code)
    llava = to_llava(model)
    pixels, notes = image_processor(processor.config)
    if processor.form.template is not None:  # for programs that know only chat templates
        processor.tokenizer.chat_template = processor.form.template
    image_token = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)

    def write(target: Path) -> None:
        llava.save_pretrained(target)
        processor.save(target)
        _write(target / "preprocessor_config.json", pixels)
        words = _llava_processor(llava.config) | {"image_token": image_token}
        _write(target / "processor_config.json", words)

    _publish(out, write)
    return notes


def image_processor(config: ProcessorConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config of the image processor of transformers that comes nearest, and what it cannot say."""
    transform = config.transform
    assert isinstance(transform, ImageTransform), "LLaVA's encoders take one 2D view"
    notes = []
    if transform.window != type(transform.window)():
        notes.append("the window: give 8-bit images that were windowed before")
    if transform.fit == "pad" and transform.padding != "mean":
        notes.append("black padding: LLaVA pads with the mean colour")
    square = {"height": transform.size, "width": transform.size}
    crop = transform.fit == "crop"
    return {
        "image_processor_type": (
            "LlavaImageProcessor" if transform.fit == "pad" else "CLIPImageProcessor"
        ),
        "do_convert_rgb": True,
        "do_pad": transform.fit == "pad",
        "do_resize": True,
        "size": {"shortest_edge": transform.size} if crop else square,
        "resample": {"bicubic": 3, "bilinear": 2}[transform.interpolation],
        "do_center_crop": crop,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }, tuple(notes)


def _llava_processor(config: Any) -> dict[str, Any]:
    return {
        "processor_class": "LlavaProcessor",
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": int(config.vision_config.model_type == "clip_vision_model"),
    }


def _exported_before(source: str) -> ProcessorConfig | None:
    """The processor that one of our exports carries."""
    path = Path(source) / FILE
    return SavedProcessor.from_yaml(path).config if path.is_file() else None


def _publish(out: Path, write: Callable[[Path], None]) -> None:
    """Write beside `out` and rename: the folder is whole or absent."""
    if out.exists():
        raise CheckpointError("exists already", file=str(out), remedy="Choose another --out")
    scratch = out.with_name(out.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        write(scratch)
        scratch.rename(out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointError(f"could not be written: {error}", file=str(out)) from error


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
