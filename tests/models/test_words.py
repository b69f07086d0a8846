"""The words connector says what its grid tokens are aligned with, one word a token."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from medloupe.models.connectors.words import WordsConnector, WordsConnectorConfig
from medloupe.types import ImageLayout

WIDTH = 24
WORDS = ("ring", "dark", "left", "right")
TABLE = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(3))
IDS = {word: 10 + number for number, word in enumerate((*WORDS, "axial", "coronal", "tissue"))}


def encode(text: str) -> list[int]:
    """One token a word; a word in the middle of a text has a space before it."""
    assert text[0] == " "
    return [IDS[text[1:]]]


def connector(keep: int = 3) -> WordsConnector:
    config = WordsConnectorConfig(words=WORDS, image_words=("axial", "coronal"), keep=keep)
    built = config.build(8, WIDTH)
    built.learn_words(encode, TABLE)
    return built


def said(words: WordsConnector, aligned: torch.Tensor) -> list[str]:
    """The nearest word of each token that comes out for given grid tokens."""
    words.grid_tokens = lambda *_: aligned  # type: ignore[method-assign]
    tokens = words(torch.zeros(1, 16, 8), ImageLayout(rows=4, columns=4))[0]
    names = list(IDS)
    table = F.normalize(TABLE[[IDS[name] for name in names]], dim=1)
    return [names[i] for i in (F.normalize(tokens, dim=1) @ table.T).argmax(1).tolist()]


def test_says_each_peak_once_kind_before_side_in_reading_order() -> None:
    words = connector()
    ring, dark, left, right, axial, _ = words.directions_KD
    aligned = torch.zeros(1, 16, WIDTH) - 0.0
    aligned[0, :] = 3 * axial
    aligned[0, 5] += 4 * ring + 4 * left
    aligned[0, 6] += 3 * ring + 3 * left  # a neighbour of the same lesion: not said again
    aligned[0, 15] += 4 * dark + 4 * right
    spoken = said(words, aligned)
    assert spoken[0] == "axial"
    pairs = [tuple(spoken[i : i + 2]) for i in range(1, 7, 2)]
    assert pairs.count(("ring", "left")) == 1
    assert pairs.count(("dark", "right")) == 1
    assert pairs.index(("ring", "left")) < pairs.index(("dark", "right"))
    assert ("tissue", "tissue") in pairs


def test_words_come_from_the_language_model_and_are_saved() -> None:
    words = connector()
    assert torch.equal(words.embeddings_KD[0], TABLE[IDS["ring"]])
    again = connector()
    again.embeddings_KD.zero_()
    again.load_state_dict(words.state_dict())
    assert torch.equal(again.embeddings_KD, words.embeddings_KD)
    assert torch.equal(again.neutral_D, TABLE[IDS["tissue"]])
