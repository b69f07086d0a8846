"""Small parts that a grid makes once and all its runs load.

A language model of a few layers, trained on the questions and answers of the training split alone; an
encoder that has seen the training split's boxes; and a vision tower with random weights, which a row of
the grid trains before others take it over. A part may be made of another (`made:language`).
Shapes: B rows, L tokens.
"""

from __future__ import annotations

import abc
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from medloupe.config import ComponentConfig
from medloupe.data.dataset import Dataset, Progress
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.efficientnet import WEIGHTS_FILE, EfficientNetLite0Config
from medloupe.models.language import LanguageConfig
from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing import ImageSource, Processor, ProcessorConfig
from medloupe.processing.boxes import Views
from medloupe.train import StageConfig, TrainConfig, Trainer
from medloupe.train.objectives.base import StageContext
from medloupe.train.objectives.grounding import GroundingObjectiveConfig
from medloupe.types import Box, Conversation, Message, Text

MADE = "made:"
"""Stands before a part's name where a config wants its folder."""
START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_IGNORE = -100


class Part(ComponentConfig, abc.ABC):
    """Base of what can be made."""

    family: ClassVar[str] = "small part"
    table: ClassVar[Mapping[str, str]] = {
        "language": "medloupe.reproduce.parts:SmallLanguage",
        "encoder": "medloupe.reproduce.parts:TrainedEncoder",
        "tower": "medloupe.reproduce.parts:SmallTower",
    }

    def made(
        self, folder: Path, dataset: Dataset, processor: ProcessorConfig, progress: Progress
    ) -> Path:
        """The part in `folder`, whole or absent; what stands there is used again."""
        if not folder.is_dir():
            scratch = folder.with_suffix(".partial")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            self.write(scratch, dataset, processor, progress)
            scratch.rename(folder)
        return folder

    @abc.abstractmethod
    def write(
        self, folder: Path, dataset: Dataset, processor: ProcessorConfig, progress: Progress
    ) -> None:
        """Make it and save it in the hub's format."""


class SmallTower(Part):
    """SigLIP's architecture, small, with random weights."""

    image_size: int = 96
    patch_size: int = 16
    width: int = 192
    layers: int = 4
    heads: int = 4
    seed: int = 0

    def write(
        self, folder: Path, dataset: Dataset, processor: ProcessorConfig, progress: Progress
    ) -> None:
        del dataset, processor, progress
        shape = SiglipVisionConfig(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            SiglipVisionModel(shape).save_pretrained(folder)


class SmallLanguage(Part):
    """Llama's architecture with a byte-level tokenizer of the data's words, digits one by one."""

    vocabulary: int = Field(default=700, ge=300)
    width: int = 192
    hidden: int = 512
    layers: int = 4
    heads: int = 4
    steps: int = Field(default=500, ge=1)
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0

    def write(
        self, folder: Path, dataset: Dataset, processor: ProcessorConfig, progress: Progress
    ) -> None:
        texts = chats(dataset, processor, progress)
        tokenizer = self._tokenizer(texts)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = LlamaForCausalLM(self._shape(tokenizer))
            self._train(model, [tokenizer.encode(text) for text in texts], progress)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def _tokenizer(self, texts: Sequence[str]) -> PreTrainedTokenizerFast:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[START, END],
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        made = PreTrainedTokenizerFast(
            tokenizer_object=core, eos_token=END, additional_special_tokens=[START, END]
        )
        made.chat_template = TEMPLATE
        return made

    def _shape(self, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=len(tokenizer) + 1,  # and the image token
            hidden_size=self.width,
            intermediate_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )

    def _train(
        self, model: LlamaForCausalLM, rows: Sequence[Sequence[int]], progress: Progress
    ) -> None:
        """Next-token prediction on whole texts; there are no images yet."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate)
        for step in range(self.steps):
            chosen = torch.randint(len(rows), (self.batch_size,)).tolist()
            ids_BL = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(rows[row]) for row in chosen], True, _IGNORE
            )
            logits_BLV = model(input_ids=ids_BL.clamp(min=0)).logits[:, :-1]
            loss = F.cross_entropy(
                logits_BLV.flatten(0, 1), ids_BL[:, 1:].flatten(), ignore_index=_IGNORE
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress(f"language model (loss {loss.item():.3f})", step + 1, self.steps)


class TrainedEncoder(Part):
    """EfficientNet-Lite0, trained on from ImageNet by the grounding objective on the training split's
    boxes and labels, in the words of the language model in `language`."""

    language: str = MADE + "language"
    image_size: int = 96
    stride: Literal[8, 16, 32] = 16
    steps: int = Field(default=300, ge=1)
    batch_size: int = 16
    learning_rate: float = 1e-3
    seed: int = 0

    def write(
        self, folder: Path, dataset: Dataset, processor: ProcessorConfig, progress: Progress
    ) -> None:
        encoder = EfficientNetLite0Config(image_size=self.image_size, stride=self.stride)
        transform = encoder.fitted(ImageTransform(fit="stretch"))
        stage = StageConfig(
            name="ground",
            objective=GroundingObjectiveConfig(),
            trainable=("encoder", "connector"),
            learning_rate=self.learning_rate,
            steps=self.steps,
            batch_size=self.batch_size,
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model, tokenizer = VisionLanguageModel.compose(
                encoder, MLPConnectorConfig(depth=1), LanguageConfig(source=self.language)
            )
            context = StageContext(
                model=model,
                processor=Processor(
                    processor.model_copy(update={"transform": transform}),
                    tokenizer,
                    model.layouts,
                    model.config.image_token_id,
                ),
                dataset=dataset,
                images=ImageSource(dataset.root, transform),
                frozen_encoder=False,
                precision=stage.precision,
                progress=progress,
            )
            config = TrainConfig(stages=(stage,), seed=self.seed)
            run = folder / "training"
            Trainer(model, config, run, lambda _: context, progress=progress).fit()
        save_file(model.encoder.state_dict(), folder / WEIGHTS_FILE)
        shutil.rmtree(run)


def chats(dataset: Dataset, processor: ProcessorConfig, progress: Progress) -> list[str]:
    """The training split's conversations as the template writes them, images left out."""
    images = ImageSource(dataset.root, processor.transform)
    rows = dataset.split("train")
    texts = []
    for number, row in enumerate(rows):
        texts.append(_chat(row, processor, images))
        if number % 200 == 0 or number + 1 == len(rows):
            progress("texts for the language model", number + 1, len(rows))
    return texts


def _chat(row: Conversation, processor: ProcessorConfig, images: ImageSource) -> str:
    has_boxes = any(isinstance(part, Box) for m in row.messages for part in m.content)
    sizes = [images.size_of(image) for image in row.images] if has_boxes else []
    views = Views(placements=tuple(processor.transform.placement(size) for size in sizes))
    head = [f"{START}system\n{processor.system}{END}\n"] if processor.system is not None else []
    return "".join([*head, *(_turn(message, processor, views) for message in row.messages)])


def _turn(message: Message, processor: ProcessorConfig, views: Views) -> str:
    said = [
        part.text if isinstance(part, Text) else processor.boxes.write(part, views.of(part))
        for part in message.content
        if isinstance(part, Text | Box)
    ]
    return f"{START}{message.role}\n{''.join(said)}{END}\n"
