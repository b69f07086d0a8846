"""BERTScore on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_bert import made_bert
from transformers import BertModel

from medloupe.errors import ConfigError, MissingExtraError
from medloupe.evaluate.scorers import bertscore
from medloupe.evaluate.scorers.base import Scorer
from medloupe.types import EvalRow

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] the left right lung is clear no effusion 左 肺 结 节 ."
KNOWN = VOCABULARY.split()


def row(truth: str, prediction: str) -> EvalRow:
    return EvalRow(
        id="r",
        patient_id=None,
        task="report",
        template="",
        answer_type="open",
        images=(),
        question="Describe.",
        truth=truth,
        prediction=prediction,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    made_bert(folder, KNOWN, layers=2)
    return folder


def by_the_paper(folder: Path, layer: int, truth: str, answer: str) -> tuple[float, float, float]:
    """Equations 1 to 3, in loops. The marks of both ends are matched, not averaged."""
    model = BertModel.from_pretrained(folder).eval()

    def states(text: str) -> list[torch.Tensor]:
        words = [KNOWN.index(w) if w in KNOWN else 1 for w in ["[CLS]", *text.split(), "[SEP]"]]
        with torch.no_grad():
            return list(
                model(torch.tensor([words]), output_hidden_states=True).hidden_states[layer][0]
            )

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    true, said = states(truth), states(answer)
    precision = [max(cosine(a, b) for b in true) for a in said[1:-1]]
    recall = [max(cosine(a, b) for b in said) for a in true[1:-1]]
    p, r = sum(precision) / len(precision), sum(recall) / len(recall)
    return p, r, 2 * p * r / (p + r)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_bertscore_is_the_paper_s(tiny: Path, layer: int) -> None:
    for pair in [
        ("the left lung is clear", "no effusion"),
        ("左 肺", "左 肺 结 节"),
        ("lung", "seen"),
    ]:
        expected = by_the_paper(tiny, layer, *pair)
        found = [
            Scorer.parse({"name": name, "model": str(tiny), "layer": layer}).judge(row(*pair))[0]
            for name in ("bertscore_precision", "bertscore_recall", "bertscore_f1")
        ]
        assert found == pytest.approx([max(0, v) for v in expected], abs=1e-5)  # float32


def test_bertscore_of_nothing_and_of_the_same(tiny: Path) -> None:
    scorer = Scorer.parse({"name": "bertscore_f1", "model": str(tiny), "layer": 1})
    assert scorer.judge(row("left lung", "left lung"))[0] == pytest.approx(1)
    assert scorer.judge(row("left lung", " ")) == (0.0, "")
    assert scorer.judge(row(" . ", "left")) == (None, "the truth has no words")
    assert f"{tiny}, layer 1" in scorer.stated
    long = Scorer.parse({"name": "bertscore_f1", "model": str(tiny), "layer": 1, "longest": 6})
    assert long.judge(row("left lung is clear " * 40, "left lung is clear"))[0] == pytest.approx(1)


def test_bertscore_s_model_and_layer_must_be_there(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scorer.parse({"name": "bertscore_f1", "model": str(tiny), "layer": 2}).require()
    with pytest.raises(ConfigError, match="has 2 layers, not 3"):
        Scorer.parse({"name": "bertscore_f1", "model": str(tiny), "layer": 3}).require()
    with pytest.raises(MissingExtraError, match=r"neither a folder nor.*Name the folder"):
        Scorer.parse({"name": "bertscore_f1", "model": str(tmp_path / "none")}).require()
    assert bertscore.BertScoreF1().layer == 17
