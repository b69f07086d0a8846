"""What both peers need to train what `train.py` trains. Runs in a peer's environment, without MedLoupe.

`train.py` hands over a LLaVA folder as transformers 5 writes it and a folder of rows; here the first
becomes the folders that the peers load, and `Trainer.train`, which both call, is put under a clock, or,
with `--check`, is replaced by a comparison of the rows and a sum of their losses.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

# TinyLLaVA Factory chooses classes by words in a path: a Llama, a CLIP encoder.
PARTS = "tinyllama_clip"
LANGUAGE, VISION, CONNECTOR = "language_model", "vision_tower", "connector"
IGNORE, IMAGE = -100, -200
RENAMED = {
    "language_model.": (LANGUAGE, ""),
    "vision_tower.": (VISION, "vision_model."),
    "multi_modal_projector.linear_1.": (CONNECTOR, "_connector.0."),
    "multi_modal_projector.linear_2.": (CONNECTOR, "_connector.2."),
}
SYSTEM = "<|im_start|>system\nAnswer in a few words.<|im_end|>\n"
USER = "<|im_start|>user\n{{content}}<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant\n"
ANSWER = ASSISTANT + "{{content}}<|im_end|>\n"


def arguments() -> argparse.Namespace:
    wanted = argparse.ArgumentParser()
    wanted.add_argument("--checkout", type=Path, required=True)
    wanted.add_argument("--folder", type=Path, required=True, help="a LLaVA of transformers 5")
    wanted.add_argument("--data", type=Path, required=True, help="rows.json and their images")
    wanted.add_argument("--rows", type=int, required=True, help="conversations an optimizer step")
    wanted.add_argument("--micro", type=int, required=True)
    wanted.add_argument("--rate", type=float, required=True)
    wanted.add_argument("--check", action="store_true")
    args = wanted.parse_args()
    for name in ("checkout", "folder", "data"):
        setattr(args, name, getattr(args, name).resolve())
    sys.path.insert(0, str(args.checkout))
    return args


def measure(args: argparse.Namespace, entry: Callable[[], Any], flags: dict[str, Any]) -> None:
    """Call a peer's own `train` with these and the common flags, and print the result as JSON."""
    parts = args.data / PARTS
    if not parts.is_dir():
        convert(args.folder, parts)
    result: dict[str, Any] = {}
    plain = transformers.Trainer.train

    def train(trainer: Any) -> None:
        if args.check:
            result.update(compared(trainer, rows_of(args.data)))
            return
        loaded = held()
        begun = time.perf_counter()
        plain(trainer)
        result.update(
            seconds=time.perf_counter() - begun,
            samples=len(trainer.train_dataset),
            losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            loaded=loaded,
            peak=held(),
        )

    replaceable: Any = transformers.Trainer
    replaceable.train = train
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        os.chdir(
            args.data
        )  # the paths in the flags have no folder above them with words in its name
        written = {**common_flags(args, out), **flags}
        sys.argv = ["train", *(f"--{name}={value}" for name, value in written.items())]
        entry()
    print(json.dumps({**result, "versions": versions()}))


def common_flags(args: argparse.Namespace, out: str) -> dict[str, Any]:
    """Those of transformers' `TrainingArguments`."""
    return {
        "output_dir": out,
        "num_train_epochs": 1,
        "per_device_train_batch_size": args.micro,
        "gradient_accumulation_steps": args.rows // args.micro,
        "learning_rate": args.rate,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.0,
        "bf16": not args.check,
        "use_cpu": True,
        "group_by_length": True,
        "remove_unused_columns": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def rows_of(data: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((data / "rows.json").read_text())
    return rows


def written_rows(data: Path, name: str, *, listed: bool) -> str:
    """The rows in LLaVA's JSON, one image a row, `listed` or not; the name of the file."""
    rows = [
        {
            "id": row["id"],
            "image": [row["image"]] if listed else row["image"],
            "conversations": [
                {"from": "human", "value": f"<image>{row['question']}"},
                {"from": "gpt", "value": row["answer"]},
            ],
        }
        for row in rows_of(data)
    ]
    (data / name).write_text(json.dumps(rows))
    return name


def compared(trainer: Any, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """Their tokens and labels against ours, and their loss over all rows."""
    model = trainer.model.eval()
    total, count = 0.0, 0
    for place, row in enumerate(expected):
        item = trainer.train_dataset[place]
        for name in ("input_ids", "labels"):
            theirs = item[name].tolist()
            if theirs != row[name]:
                raise SystemExit(f"{row['id']}: {name} are {theirs}, not {row[name]}")
        learned = sum(label != IGNORE for label in row["labels"])
        with torch.no_grad():
            total += float(model(**trainer.data_collator([item])).loss) * learned
        count += learned
    return {"loss": total, "labels": count}


def masked(input_ids: Any, prompt: str, tokenize: Callable[[str], list[int]]) -> Any:
    """Labels for the answer and its end token: not for the prompt, nor for the newline at the end."""
    labels = input_ids.clone()
    before = prompt[: prompt.rindex(ASSISTANT) + len(ASSISTANT)]
    labels[: len(tokenize(before))] = IGNORE
    labels[-1] = IGNORE
    return labels


def hashable_formatters(name: str, file: Path) -> None:
    """Load the module of their prompt formatters and let its objects be hashed.

    Their templates have such objects as defaults, which Python 3.11's dataclasses refuse otherwise.
    """
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    for formatter in (module.EmptyFormatter, module.StringFormatter):
        formatter.__hash__ = object.__hash__


def stub(name: str, **content: Any) -> None:
    """A module of that name for those who import it and do not need it."""
    module = ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    vars(module).update(content)
    sys.modules[name] = module


def convert(llava: Path, out: Path) -> None:
    """The folders that both peers load: language model, encoder, connector."""
    config = json.loads((llava / "config.json").read_text())
    tensors: dict[str, dict[str, torch.Tensor]] = {LANGUAGE: {}, VISION: {}, CONNECTOR: {}}
    with safe_open(llava / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            old = next(prefix for prefix in RENAMED if name.startswith(prefix))
            part, new = RENAMED[old]
            tensors[part][new + name.removeprefix(old)] = file.get_tensor(name)
    for part in tensors:
        (out / part).mkdir(parents=True)
    for part in (LANGUAGE, VISION):
        save_file(tensors[part], out / part / "model.safetensors", metadata={"format": "pt"})
    torch.save(tensors[CONNECTOR], out / CONNECTOR / "pytorch_model.bin")
    write(out / LANGUAGE / "config.json", language_config(config["text_config"]))
    write(out / VISION / "config.json", {**config["vision_config"], "torch_dtype": "float32"})
    write(out / VISION / "preprocessor_config.json", processor_config())
    tokenizer = json.loads((llava / "tokenizer.json").read_text())
    # older tokenizers read a merge as one text; no part of one has a space
    tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    write(out / LANGUAGE / "tokenizer.json", tokenizer)
    write(out / LANGUAGE / "tokenizer_config.json", tokenizer_config())


def language_config(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 4 reads it: there the base of the rotation is a field of its own."""
    return {
        **{k: v for k, v in config.items() if k not in ("rope_parameters", "dtype")},
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "torch_dtype": "float32",
    }


def tokenizer_config() -> dict[str, Any]:
    """A BOS that is not the first token of every prompt: TinyLLaVA Factory takes a prompt that begins with
    it as a sign that its tokenizer puts one before every text, and cuts the first token behind an image.
    Padding with a token of its own, which no row has.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }


def processor_config() -> dict[str, Any]:
    """The images have the encoder's size already."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": False,
        "do_center_crop": False,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1))


def versions() -> dict[str, str]:
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def held() -> int:
    """The most bytes that the process held so far (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
