"""HiA's Table 3 by arithmetic: forward FLOPs and activations of the 13B base and of HiA at five sizes.

    python benchmarks/hia_costs.py
    python benchmarks/hia_costs.py --runs runs/hia     # of a reproduced hia_resolution, its rows instead

Both are built at their real size on the meta device, so this needs neither weights nor memory. The base
reads the larger image itself, (size / 14)^2 tokens; HiA's base stays at 336 pixels, and its ResNet-50 and
adapter read the larger one. A row is one image and `--text` tokens. Activations are what a backward
would keep in bfloat16: of HiA as it trains, of the base with everything but its encoder trained, and
`cache` the keys and values that an answer needs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medloupe.recipes.config import RunConfig
from medloupe.recipes.hia import hia
from medloupe.recipes.plan import StagePlan, make_plan
from medloupe.recipes.published import LANGUAGE
from medloupe.recipes.run import RUN_FILE
from medloupe.reproduce.grids.hia import hia_resolution
from medloupe.reproduce.papers.hia import base_at

SIZES = (448, 560, 672, 784, 896)
# The paper's columns: FLOPs (T) and memory (GB) of the baseline, and of HiA; None is out of memory.
PAPER = {
    448: (46.8, 30.8, 15.8, 29.6),
    560: (85.5, 31.3, 16.2, 29.9),
    672: (105.0, None, 16.5, 30.1),
    784: (162.0, None, 16.7, 30.3),
    896: (208.0, None, 16.8, 30.4),
}


def main() -> None:
    """Print the table."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("--text", type=int, default=256)
    wanted.add_argument("--runs", type=Path, help="the folder of a reproduced hia_resolution")
    args = wanted.parse_args()
    if args.runs is not None:
        reproduced(args.runs, args.text)
        return
    print(f"text: {args.text} tokens a row; ours / the paper's; its memory in GB")
    heads = ("pixels", "base: tokens", "TFLOPs", "activations", "cache", "paper's memory")
    heads += ("HiA: TFLOPs", "adapter's", "activations", "paper's memory")
    print(f"| {' | '.join(heads)} |")
    print("|" + "---|" * len(heads))
    for size in SIZES:
        tokens, base = costs(larger_base(size), args.text)
        _, adapted = costs(adapted_at(size), args.text)
        print(
            f"| {size} | {tokens} | {tera(base)} / {PAPER[size][0]} | {gib(base.kept)} | "
            f"{gib(cache(tokens + args.text))} | {PAPER[size][1] or 'out of memory'} | "
            f"{tera(adapted)} / {PAPER[size][2]} | {adapted.forward_flops['adapter'] / 1e12:.2f} | "
            f"{gib(adapted.kept)} | {PAPER[size][3]} |"
        )


def reproduced(out: Path, text: int) -> None:
    """The rows of the grid, as they were run."""
    print(f"text: {text} tokens a row")
    print("| row | image tokens | GFLOPs | adapter's | activations |")
    print("|---|---|---|---|---|")
    grid = hia_resolution()
    for label in (row.label for row in grid.rows):
        run = RunConfig.from_yaml(out / "runs" / grid.key(label, 0) / RUN_FILE)
        tokens, stage = costs(run, text)
        flops = stage.forward_flops
        print(
            f"| {label} | {tokens} | {sum(flops.values()) / 1e9:.2f} | "
            f"{flops.get('adapter', 0) / 1e9:.2f} | {stage.kept / 2**20:.1f} MiB |"
        )


def costs(run: RunConfig, text: int) -> tuple[int, StagePlan]:
    """Image tokens in the row, and the plan of its last stage."""
    plan = make_plan(run, text_tokens=text)
    return plan.image_tokens, plan.stages[-1]


def larger_base(size: int) -> RunConfig:
    """The base alone, reading `size` pixels by interpolated position embeddings."""
    return hia().with_overrides(base_at(size))


def adapted_at(size: int) -> RunConfig:
    return hia().with_overrides([f"model.adapter.encoder.image_size={size}"])


def tera(stage: StagePlan) -> str:
    """Forward FLOPs of all parts."""
    return f"{sum(stage.forward_flops.values()) / 1e12:.1f}"


def gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"


def cache(tokens: int) -> int:
    """Bytes of the language model's keys and values in bfloat16."""
    shape = LANGUAGE[hia().model.language.source]
    return tokens * 2 * 2 * int(shape["num_hidden_layers"]) * int(shape["hidden_size"])


if __name__ == "__main__":
    main()
