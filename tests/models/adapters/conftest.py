"""The module kit.py, pictures of several shapes, and labs: a model with an adapter and what feeds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from by_path import loaded
from PIL import Image
from transformers import PreTrainedTokenizerFast

from medloupe.imaging.transforms import ImageTransform
from medloupe.models.vlm import IMAGE_TOKEN
from medloupe.processing import ImageSource, Processor, ProcessorConfig
from medloupe.types import Conversation, ImageRef


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    return loaded(Path(__file__).with_name("kit.py"))


MakeLab = Callable[..., Any]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, each picture of another shape: `0.png` to `3.png`."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, shape in enumerate([(30, 40), (60, 24), (33, 33), (90, 120)]):
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def words(tiny: ModuleType) -> PreTrainedTokenizerFast:
    made: PreTrainedTokenizerFast = tiny.tokenizer("bytes", "chatml")
    assert made.convert_tokens_to_ids(IMAGE_TOKEN) == len(made) - 1
    return made


@pytest.fixture
def make_lab(kit: ModuleType, pictures: Path, words: PreTrainedTokenizerFast) -> MakeLab:
    """`make_lab(kit.hia(), "llama", trained=True)`; without a config a model without an adapter."""

    def make(
        adapter: Any,
        family: str = "llama",
        *,
        trained: bool = True,
        prompt: str = "template",
        **language: Any,
    ) -> Any:
        model = kit.tiny_vlm(len(words), adapter, family, **language)
        transform: Any = kit.base_encoder().fitted(ImageTransform())
        if model.adapter is not None:
            assert adapter is not None
            transform = adapter.for_base(kit.base_encoder()).fitted(transform)
            if trained:
                kit.stir(model.adapter)
        processor = Processor(
            ProcessorConfig(transform=transform, prompt=prompt),
            words,
            model.layouts,
            model.config.image_token_id,
        )
        return kit.Adapted(
            model=model, processor=processor, images=ImageSource(pictures, transform)
        )

    return make


@pytest.fixture
def lab(kit: ModuleType, make_lab: MakeLab) -> Any:
    return make_lab(kit.hia())


@pytest.fixture(scope="session")
def talk(tiny: ModuleType) -> Callable[..., Conversation]:
    """`talk([0, "Side?"], ["left"], ...)`: turns from the user on; numbers are pictures."""

    def make(*turns: Sequence[int | str], name: str = "row") -> Conversation:
        parts = [
            tuple(ImageRef(uri=f"{p}.png") if isinstance(p, int) else p for p in turn)
            for turn in turns
        ]
        made: Conversation = tiny.conversation(name, *parts)
        return made

    return make


@pytest.fixture(scope="session")
def mixed(talk: Callable[..., Conversation]) -> list[Conversation]:
    """One, two and three images, several turns, no image; of different lengths."""
    return [
        talk([0, "Is there a lesion?"], ["yes"], name="one"),
        talk(["What is a wedge?"], ["A shape."], name="text"),
        talk(["Before: ", 1, " after: ", 2, " What changed?"], ["no change"], name="two"),
        talk([3, "Side?"], ["left"], ["And the plane?"], ["axial"], name="turns"),
        talk([0, "Side?"], ["left"], [1, 2, "And here, in both?"], ["right"], name="later"),
        talk([3, 3, 0, "Compare."], ["alike"], name="three"),
    ]
