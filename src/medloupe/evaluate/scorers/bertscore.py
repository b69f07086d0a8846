"""BERTScore (Zhang et al. 2020): each token of one text against the nearest of the other, by a model.

With x the unit vectors of the truth's tokens and y those of the answer's, from one layer of a model:

    recall = mean over x of max over y of x . y,    precision the other way round,    F1 from both.

As the package bert-score computes it: the tokens that only mark the ends are matched but not averaged,
no weights by rarity, no rescaling by a baseline. The package (last release 2023) brings pandas and
matplotlib; transformers alone gives the same numbers. A value depends on the model and the layer, and
unlike the other text metrics cannot be computed again without them.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from medloupe.errors import ConfigError, MissingExtraError
from medloupe.evaluate.scorers.base import Scorer, Verdict
from medloupe.evaluate.scorers.words import plain_words
from medloupe.types import EvalRow

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class BertScore(Scorer):
    """`model` is a folder or a hub id, `layer` whose output is compared (0 the embeddings). The package's
    choice for English is layer 17 of roberta-large, for Chinese layer 8 of bert-base-chinese.

    A text is cut after `longest` tokens, or where the tokenizer does. Values below 0, which opposite
    vectors give, count as 0.
    """

    model: str = "roberta-large"
    layer: int = Field(default=17, ge=0)
    longest: int = Field(default=512, ge=1)

    @property
    def stated(self) -> str:  # type: ignore[override]  # the number means nothing without the model
        return (
            f"mean of BERTScore; {self.model}, layer {self.layer}; its own tokens, at most {self.longest}; "
            "no idf, no baseline"
        )

    def require(self) -> None:
        """
        Raises:
            MissingExtraError: the model is neither in that folder nor to be had from a hub.
            ConfigError: it has no such layer.
        """
        layers = _loaded(self.model)[0].config.num_hidden_layers
        if self.layer > layers:
            raise ConfigError(
                f"{self.model!r} has {layers} layers, not {self.layer}",
                remedy="Name one of its layers",
                field="layer",
            )

    def judge(self, row: EvalRow) -> Verdict:
        if not plain_words(row.truth):
            return None, "the truth has no words"
        if not row.prediction.strip():
            return 0.0, ""
        self.require()
        found = matched(self, row.truth, row.prediction)
        return min(1.0, max(0.0, self.pick(found))), ""

    @abstractmethod
    def pick(self, found: Matched) -> float:
        """The one that is meant."""


class BertScorePrecision(BertScore):
    """How near the answer's tokens are to the truth's."""

    def pick(self, found: Matched) -> float:
        return found.precision


class BertScoreRecall(BertScore):
    """How near the truth's tokens are to the answer's."""

    def pick(self, found: Matched) -> float:
        return found.recall


class BertScoreF1(BertScore):
    """The harmonic mean of both."""

    def pick(self, found: Matched) -> float:
        both = found.precision + found.recall
        return 2 * found.precision * found.recall / both if both > 0 else 0.0


class Matched(NamedTuple):
    """Mean cosines, -1..1."""

    precision: float
    recall: float


def matched(scorer: BertScore, truth: str, answer: str) -> Matched:
    """Precision and recall of an answer."""
    true, said = (
        embedded(scorer.model, scorer.layer, scorer.longest, text.strip())
        for text in (truth, answer)
    )
    cosines = said.vectors @ true.vectors.T
    precision = cosines.amax(dim=1)[said.counted].mean()
    recall = cosines.amax(dim=0)[true.counted].mean()
    return Matched(float(precision), float(recall))


class Embedded(NamedTuple):
    """Unit vectors `[T, D]` of a text's tokens, and which are averaged `[T]`."""

    vectors: torch.Tensor
    counted: torch.Tensor


@lru_cache(maxsize=32)  # precision, recall and F1, and the arms of a row, read the same texts
def embedded(model: str, layer: int, longest: int, text: str) -> Embedded:
    """The tokens of a text."""
    import torch
    from transformers import GPT2Tokenizer, RobertaTokenizer

    network, tokenizer = _loaded(model)
    if isinstance(tokenizer, GPT2Tokenizer | RobertaTokenizer):
        text = f" {text}"  # their first word is a word in the middle too
    longest = min(longest, tokenizer.model_max_length)
    tokens = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
    with torch.inference_mode():
        states = network(**tokens, output_hidden_states=True).hidden_states[layer][0]
    ends = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id])
    counted = torch.isin(tokens["input_ids"][0], ends, invert=True)
    return Embedded(torch.nn.functional.normalize(states.double(), dim=-1), counted)


@lru_cache(maxsize=2)
def _loaded(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(name, dtype="float32").eval()
        return model, AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise MissingExtraError(
            f"BERTScore's model {name!r} is neither a folder nor to be had from a hub: "
            f"{str(error).splitlines()[0]}",
            remedy="Name the folder of an encoder: {name: bertscore_f1, model: my/bert, layer: 9}",
            field="model",
        ) from None
