"""Operations and bytes of one training step, the time that they need at least here, and how both grow.

    python benchmarks/train_floor.py

A step is one image with its questions behind it (a packed row), forward, backward and AdamW; connector and
language model train, the encoder is frozen and runs anew in each step. Weights are random.

Operations are counted by torch while the step runs: matrix products, attention in full. Bytes are what
must travel whatever the cache: every weight is read forward and backward, and where it trains its gradient
is written and read, and AdamW reads and writes the weight and two moments, all in float32. Activations are
left out, so this is a lower bound. The floor is the longer of operations over the measured peak of a
matrix product in bfloat16 and bytes over the measured rate of a copy. An exponent is the slope of a
straight line through the logarithms.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig

from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders import EncoderConfig
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.resolution.scales import ScalesConfig
from medloupe.models.vlm import VisionLanguageModel, VLMConfig
from medloupe.train.meters.work import StepWork, matmul_peak
from medloupe.types import ImageInput

PATCH, VOCABULARY, IMAGE = 14, 49152, 49152
PROMPT, QUESTION, ANSWER = 20, 24, 6


@dataclass(frozen=True, kw_only=True)
class Step:
    """What varies. `width` is the language model's, with nine layers and heads of 64; `side` the number of
    patches along the image, of which the encoder makes as many tokens."""

    questions: int = 8
    side: int = 14
    scales: int = 1
    width: int = 576


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a step asks for and takes."""

    operations: float
    bytes: float
    seconds: float


VARIED = {
    "questions": (1, 2, 4, 8, 16),
    "side": (8, 12, 16, 24),
    "scales": (1, 2, 3),
    "width": (256, 512, 1024),
}


def main() -> None:
    """Measure and print."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("--rounds", type=int, default=5)
    rounds = wanted.parse_args().rounds
    peak, rate = matmul_peak("cpu", torch.bfloat16), copy_rate()
    print(f"{torch.get_num_threads()} threads: {peak / 1e9:.0f} G operations/s in a matrix product, "
          f"{rate / 1e9:.1f} GB/s in a copy")  # fmt: skip
    found = measured(Step(), rounds)
    floor = max(found.operations / peak, found.bytes / rate)
    print(f"one step of {Step()}: {found.operations / 1e9:.0f} G operations, "
          f"{found.bytes / 1e9:.2f} GB; at least {found.operations / peak:.2f} s and "
          f"{found.bytes / rate:.2f} s; took {found.seconds:.2f} s, the floor is "
          f"{floor / found.seconds:.0%} of that")  # fmt: skip
    for name, values in VARIED.items():
        steps = [measured(replace(Step(), **{name: value}), rounds) for value in values]
        sizes = [value**2 if name in ("side", "scales") else value for value in values]
        if name == "scales":  # as many tiles as the squares up to here
            sizes = [sum(k**2 for k in range(1, value + 1)) for value in values]
        shown = {"side": "image tokens", "scales": "tiles"}.get(name, name)
        work = exponent(sizes, [step.operations for step in steps])
        spent = exponent(sizes, [step.seconds for step in steps])
        cells = ", ".join(f"{s}: {x.seconds:.2f} s" for s, x in zip(sizes, steps, strict=True))
        print(f"{shown:14} operations ~ x^{work:.2f}, time ~ x^{spent:.2f}   ({cells})")


def measured(step: Step, rounds: int) -> Found:
    """The median of `rounds` steps after one that is counted."""
    torch.manual_seed(0)
    model = model_of(step)
    trained = [p for part in ("connector", "language_model")
               for p in model.get_submodule(part).parameters()]  # fmt: skip
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    row, image = row_of(step, model), ImageInput(views=torch.randn(3, *2 * (size_of(step),)))
    work, seconds = StepWork(), []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        with work.counting(1), torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                encoded = model.encode([image])
            loss, count = model.label_loss(**row, tokens=model.image_tokens(encoded))
            (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
    assert work.per_token is not None
    weights, learned = bytes_of(model), sum(p.numel() * 4 for p in trained)
    return Found(
        operations=work.per_token,
        bytes=2 * weights + 8 * learned,
        seconds=statistics.median(seconds[1:]),
    )


def model_of(step: Step) -> VisionLanguageModel:
    tower = CLIPEncoderConfig(
        architecture=CLIPVisionConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=12,
            num_attention_heads=6,
            image_size=step.side * PATCH,
            patch_size=PATCH,
        ).to_diff_dict(),
        image_size=step.side * PATCH,
    )
    encoder: EncoderConfig = tower
    if step.scales > 1:
        sizes = tuple(step.side * PATCH * (k + 1) for k in range(step.scales))
        encoder = ScalesConfig(encoder=tower, scales=sizes)
    language = LlamaConfig(
        hidden_size=step.width,
        intermediate_size=step.width * 8 // 3,
        num_hidden_layers=9,
        num_attention_heads=step.width // 64,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    config = VLMConfig(
        encoder=encoder.to_dict(),
        connector=MLPConnectorConfig(depth=2).to_dict(),
        language={**language.to_diff_dict(), "model_type": "llama"},
        image_token_id=IMAGE,
    )
    return VisionLanguageModel(config).train()


def size_of(step: Step) -> int:
    return step.side * PATCH * step.scales


def row_of(step: Step, model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """The prefix once, and each question with its answer as a branch."""
    image = model.layouts.image.tokens
    prefix = torch.cat([torch.randint(VOCABULARY, (PROMPT,)), torch.full((image,), IMAGE)])
    branch = QUESTION + ANSWER
    ids = torch.cat([prefix, torch.randint(VOCABULARY, (step.questions * branch,))])
    labels = torch.full_like(ids, -100)
    segments, positions = torch.zeros_like(ids), torch.arange(len(ids))
    for k in range(step.questions):
        start = len(prefix) + k * branch
        labels[start + QUESTION : start + branch] = ids[start + QUESTION : start + branch]
        segments[start : start + branch] = k + 1
        positions[start : start + branch] = len(prefix) + torch.arange(branch)
    return {
        "input_ids": ids[None],
        "labels": labels[None],
        "position_ids": positions[None],
        "segments": segments[None],
    }


def bytes_of(model: nn.Module) -> int:
    return sum(parameter.numel() * 4 for parameter in model.parameters())


def copy_rate() -> float:
    """Bytes a second, read and written, of the fastest of a few copies of 256 MiB."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begun)
    return 2 * source.nbytes / min(times)


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of the line of least squares through the logarithms."""
    xs, ys = [math.log(s) for s in sizes], [math.log(v) for v in values]
    middle_x, middle_y = statistics.mean(xs), statistics.mean(ys)
    above = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - middle_x) ** 2 for x in xs)


if __name__ == "__main__":
    main()
