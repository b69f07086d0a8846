"""Tiny real parts, made offline: tokenizers trained on a few lines, a two-layer Llama with weights that
depend on their names alone, images with one bright square. Loaded by path from the conftests."""

from __future__ import annotations

import dataclasses
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

from medloupe.data.dataset import Dataset, DatasetCard, load_dataset, write_dataset
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.vlm import IMAGE_TOKEN, VisionLanguageModel, VLMConfig
from medloupe.processing import ImageSource, Processor, ProcessorConfig
from medloupe.train import StageConfig, TrainConfig, Trainer
from medloupe.train.objectives.base import StageContext
from medloupe.types import Box, Conversation, ImageRef, Message, Part, Record, Text

CORPUS = [
    "Is there a bright lesion in the image? yes no",
    "Which side is the lesion on? left right",
    "USER: Describe the findings.\nASSISTANT:\nA ring lesion on the left side.",
    "system user assistant [INST] [/INST] <<SYS>> <</SYS>>",
    "There is a dark wedge of 12 mm, 3 ring lesions and a streak; no change since.",
] * 4

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}"
    "{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Writes an empty thought before an answer, but not into the generation prompt.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "thinking": THINKING,
    "default": None,
}


def tokenizer(kind: str = "bytes", template: str | None = None) -> PreTrainedTokenizerFast:
    """`kind`: "bytes" (byte-level BPE, GPT-2 and Llama 3), "metaspace" (a space before the first word),
    "legacy" (Llama 2's normaliser). The last two put a BOS before every text, as SentencePiece does."""
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    special += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    core = Tokenizer(models.BPE(unk_token=None, byte_fallback=kind != "bytes"))
    if kind == "bytes":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, show_progress=False
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(vocab_size=150, show_progress=False)
        core.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    core.train_from_iterator(CORPUS, trainer)
    if kind != "bytes":
        core.model = with_bytes(core)
    if kind == "legacy":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        core.pre_tokenizer = None
    core.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    if kind != "bytes":
        core.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "thinking": "<|im_end|>"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=end.get(template or "", "</s>")
    )
    made.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, False)
    made.chat_template = TEMPLATES[template or "default"]
    return made


def with_bytes(core: Tokenizer) -> models.BPE:
    """The trained model with one more token for each byte, as SentencePiece's byte fallback has."""
    trained = json.loads(core.to_str())["model"]
    vocabulary = dict(trained["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in trained["merges"]]
    return models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True)


def model(vocabulary: int, image_token_id: int, *, size: int = 64) -> VisionLanguageModel:
    """EfficientNet-Lite0 at stride 16, linear, a Llama of two layers of width 32, tied embeddings."""
    llama = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    made = VisionLanguageModel(
        VLMConfig(
            encoder=EfficientNetLite0Config(image_size=size, stride=16).to_dict(),
            connector=MLPConnectorConfig(depth=2).to_dict(),
            language=llama.to_dict(),
            image_token_id=image_token_id,
        )
    )
    fill(made)
    made.train(False)
    return made


def fill(module: torch.nn.Module) -> None:
    """Weights from the name of each, so that they do not depend on the order of construction."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if parameter.ndim > 1:
                spread = 0.02 if "embed" in name else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=source) * spread)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def processor(vlm: VisionLanguageModel, words: PreTrainedTokenizerFast, **fields: Any) -> Processor:
    """For `vlm`, views of 64 pixels."""
    config = ProcessorConfig(transform=ImageTransform(size=64), **fields)
    return Processor(config, words, vlm.layouts, vlm.config.image_token_id)


def conversation(name: str, *turns: tuple[Part | str, ...], **fields: Any) -> Conversation:
    """`turns` alternate from the user; plain strings become text parts."""
    messages = tuple(
        Message(
            role=("user", "assistant")[number % 2],  # type: ignore[arg-type]
            content=tuple(Text(text=p) if isinstance(p, str) else p for p in turn),
        )
        for number, turn in enumerate(turns)
    )
    return Conversation(id=name, messages=messages, **fields)


def dataset(root: Path, *, images: int = 8) -> Dataset:
    """One patient an image: a bright square on one side; three questions each, one text-only row."""
    rng = np.random.default_rng(7)
    rows, records = [], []
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in range(images):
        pixels = rng.integers(0, 60, (48, 64), dtype=np.uint8)
        side = ("left", "right")[number % 2]
        x, y = (6 if side == "left" else 46) + number % 3, 8 + 3 * (number % 8)
        pixels[y : y + 12, x : x + 12] = 240
        ref = ImageRef(uri=f"images/{number}.png")
        Image.fromarray(pixels).save(root / ref.uri)
        box = Box(label="lesion", x1=x, y1=y, x2=x + 12, y2=y + 12)
        common: dict[str, Any] = {"patient_id": f"p{number}", "split": "train"}
        asked = [
            ("side", "Which side is the lesion on?", (side,)),
            ("kind", "Is there a bright lesion?", ("yes",)),
            ("rec", "Where is the lesion?", (box,)),
        ]
        rows += [
            conversation(f"{number}-{task}", (ref, question), answer, task=task, **common)
            for task, question, answer in asked
        ]
        records.append(
            Record(id=f"r{number}", images=(ref,), boxes=(box,), labels=(side,), **common)
        )
    rows.append(
        conversation(
            "text", ("Describe the findings.",), ("no change",), patient_id="t", split="train"
        )
    )
    return write_dataset(root, DatasetCard(name="tiny"), rows, records)


class Lab:
    """A saved data set, model and processor; every `trainer` starts from the files anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = load_dataset(folder / "data")

    @classmethod
    def create(cls, folder: Path) -> Lab:
        dataset(folder / "data")
        words = tokenizer("bytes", "chatml")
        vlm = model(len(words), words.convert_tokens_to_ids(IMAGE_TOKEN))
        vlm.save_pretrained(folder / "model")
        processor(vlm, words).save(folder / "model")
        return cls(folder)

    def model(self) -> VisionLanguageModel:
        return VisionLanguageModel.load(self.folder / "model")

    def context(self, vlm: VisionLanguageModel, data: Dataset | None = None) -> StageContext:
        """The inputs of an objective on `vlm`, its encoder taken as one that trains."""
        read = Processor.load(self.folder / "model")
        found = data or self.dataset
        return StageContext(
            model=vlm,
            processor=read,
            dataset=found,
            images=ImageSource(found.root, read.config.transform),
            frozen_encoder=False,
            precision="fp32",
            progress=lambda *_: None,
        )

    def trainer(self, out: Path, config: TrainConfig, **options: Any) -> Trainer:
        vlm = options.pop("model", None) or self.model()
        options.setdefault("progress", lambda *_: None)
        context = self.context(vlm, options.pop("dataset", None))
        kind = options.pop("trainer", Trainer)
        return kind(
            vlm,
            config,
            out,
            lambda stage: dataclasses.replace(
                context, frozen_encoder="encoder" not in stage.trainable
            ),
            **options,
        )


def language_stage(name: str = "tune", **fields: Any) -> StageConfig:
    """Whole batches of three rows in fp32 unless said otherwise."""
    base: dict[str, Any] = {
        "name": name,
        "objective": {"name": "language"},
        "trainable": ("connector",),
        "learning_rate": 3e-3,
        "batch_size": 3,
        "precision": "fp32",
    }
    return StageConfig.parse(base | fields)


def two_stages(**fields: Any) -> TrainConfig:
    """Vision alone, then connector and adapters under bf16: a merge and a boundary to resume over."""
    align = language_stage("align", trainable=("encoder", "connector"), steps=12)
    tune = language_stage(
        "tune",
        trainable=("connector", "language_model"),
        lora={"rank": 2, "dropout": 0.1},
        steps=12,
        accumulate=2,
        precision="bf16",
    )
    return TrainConfig(stages=(align, tune), save_every=3, **fields)


if __name__ == "__main__":  # python tiny.py LAB OUT: what a test starts in order to kill it
    torch.set_num_threads(1)
    Lab(Path(sys.argv[1])).trainer(
        Path(sys.argv[2]),
        TrainConfig.from_yaml(Path(sys.argv[2]) / "run.yaml"),
        progress=lambda what, done, _: (
            sys.stdout.write(f"{what.split(' (')[0]} {done}\n") and sys.stdout.flush()
        ),
    ).fit(resume=True)
