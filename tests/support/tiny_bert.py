"""A BERT of a few words with random weights, as the hub keeps one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import BertConfig, BertModel, BertTokenizer


def made_bert(
    folder: Path, words: Sequence[str], *, layers: int, initializer_range: float = 0.02
) -> BertModel:
    """Model and tokenizer, saved in `folder`; the first five words are BERT's special ones."""
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=initializer_range,
    )
    model = BertModel(config)
    model.save_pretrained(folder)
    vocab = {word: number for number, word in enumerate(words)}
    BertTokenizer(vocab=vocab, model_max_length=64).save_pretrained(folder)
    return model
