"""The benchmark that compares our metrics with their references, run here on the pairs it writes."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from by_path import loaded
from nltk.stem.porter import PorterStemmer

from medloupe.evaluate.scorers.base import Scorer
from medloupe.evaluate.scorers.meteor import stem
from medloupe.evaluate.scorers.mteval import tokens_13a, tokens_zh
from medloupe.evaluate.scorers.words import plain_words

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return loaded(ROOT / "benchmarks" / "metric_parity.py")


def unversioned(line: str) -> str:
    """Without the reference's version: the guide names the one that was measured."""
    return re.sub(r"(sacrebleu|NLTK|rouge-score|pycocoevalcap) [\d.]+", r"\1", line)


def test_our_scores_are_those_of_the_references(parity: ModuleType) -> None:
    pairs = parity.written()
    assert len(pairs) > 1000
    found = [row for row in parity.rows("written", pairs) if row.difference is not None]
    assert {row.flavour for row in found} >= {
        "bleu_{1..4}.sacrebleu", "bleu_{1..4}.nltk", "bleu_{1..4}.coco", "meteor.exact_stem", "rouge_l.coco",
        "cider.coco", "rouge_{1,2,l,lsum}.rouge_score", "rouge_{1,2,l,lsum}.rouge_score_stem",
    }  # fmt: skip
    for row in found:
        assert row.difference <= row.bound, row
    guide = {unversioned(line) for line in GUIDE.splitlines()}
    for line in parity.table(found):
        assert unversioned(line) in guide


def test_the_tokens_are_sacrebleu_s(parity: ModuleType) -> None:
    texts = [*parity.ENGLISH, *parity.CHINESE, *parity.ODD, "".join(map(chr, range(1, 0x2FFF)))]
    texts += [f"a{chr(number)}b {chr(number)}1.5" for number in range(0x2000, 0x10000, 7)]
    western, chinese = parity.Tokenizer13a(), parity.TokenizerZh()
    for text in texts:
        assert tokens_13a(text) == western(text.rstrip()).split(), repr(text[:20])
        assert tokens_zh(text) == chinese(text.rstrip()).split(), repr(text[:20])


def test_the_stems_are_those_of_nltk_s_original_algorithm(parity: ModuleType) -> None:
    reference = PorterStemmer(mode=PorterStemmer.ORIGINAL_ALGORITHM)
    texts = [*parity.ENGLISH, *parity.CHINESE, *parity.ODD, GUIDE, parity.__doc__ or ""]
    words = {
        word for text in texts for word in plain_words(text) if word.isascii() and len(word) > 2
    }
    assert len(words) > 200
    for word in words:
        assert stem(word) == reference.stem(word), word


def test_nltk_never_aligns_in_fewer_chunks(parity: ModuleType) -> None:
    for truth, answer in parity.written():
        true, said = ([stem(word) for word in plain_words(text)] for text in (truth, answer))
        if true and said:
            theirs = parity.single_meteor_score(
                true, said, stemmer=parity.Same(), wordnet=parity.Nothing()
            )
            assert parity.ours_of([(true, said)])[0] >= theirs - 1e-12, (truth, answer)


TEXT = {
    "bleu", "meteor", "meteor15", "rouge", "cider", "bertscore", "token_f1", "exact", "open_recall",
    "clinical",
}  # fmt: skip
FAMILIES = [
    (r"bleu_\d", "bleu_{1..4}"),
    (r"rouge_(1|2|l|lsum)\.rouge_score", "rouge_{1,2,l,lsum}.rouge_score"),
    (r"bertscore_(precision|recall|f1)", "bertscore_{precision,recall,f1}"),
    (r"radgraph_f1\.\w+", "radgraph_f1.{simple,partial,complete}"),
    (r"chexbert_accuracy_\d+", "chexbert_accuracy_{5,14}"),
]


def test_the_guide_names_every_text_scorer() -> None:
    found = 0
    for name, path in Scorer.table.items():
        if path.split(":")[0].rpartition(".")[2] in TEXT:
            flavour = name
            for pattern, family in FAMILIES:
                flavour = re.sub(pattern, family, flavour)
            assert f"`{flavour}`" in GUIDE, name
            found += 1
    assert found == 45
