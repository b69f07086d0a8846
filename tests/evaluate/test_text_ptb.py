"""The Penn Treebank tokens of COCO's evaluation: as its documentation and its program give them."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pycocoevalcap
import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

from medloupe.evaluate.scorers.base import CorpusScorer, Scorer
from medloupe.evaluate.scorers.ptb import ptb_tokens, ptb_words
from medloupe.types import EvalRow

FOLDER = Path(next(iter(pycocoevalcap.__path__))) / "tokenizer"

WORDS = """the lungs Left no yes No. 3.5 mm cm 5 12 2019 T2 C5 e.g. i.e. Dr. vs. etc. p.m. x-ray well-defined
it's isn't patient's 1/2 12:30 5% (s) [1] "a" 'b' - -- — ; : , . ... ? ! & &amp; / + = < > * # $ ~ ( ) mm² °C
µm ½ ± ≥ 左肺 é b I A O'Brien cannot <b> a.b end.,x U.S. AT&T www.example.com/ab a@b.org :) 1,000.5 3x4
3.5x4 left/right"""


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The patient's lungs aren't clear.", "the patient 's lungs are n't clear"),
        ("Left-sided effusion (small), 3.5 mm.", "left-sided effusion -lrb- small -rrb- 3.5 mm"),
        ('A "nodule"; see Fig. 3 -- cannot exclude...', "a nodule see fig. 3 can not exclude"),
        ("3.5x4cm 5mm 10% T2/FLAIR L4-5", "3.5 x4cm 5mm 10 % t2/flair l4-5"),
        ("Dr. Smith vs. U.S. practice e.g. here", "dr. smith vs. u.s. practice e.g. here"),
        ("End.Next word,well-defined edge", "end.next word,well-defined edge"),
        ("m² ½ £5 AT&amp;T", "m ² 1/2 # 5 at&t"),
        ("soft\u00adhyphen 😀 Ⅱ", "softhyphen"),
        ("It’s ‘so’ “called”", "it 's so called"),
        ("", ""),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert " ".join(ptb_tokens(text)) == tokens


def test_a_fraction_is_one_token_for_rouge_and_two_for_the_others() -> None:
    assert ptb_tokens("about 1 1/2 cm") == ("about", "1\u00a01/2", "cm")
    assert ptb_words("about 1 1/2 cm") == ["about", "1", "1/2", "cm"]


@pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime")
def test_tokens_are_the_program_s(tmp_path: Path) -> None:
    rng = random.Random(4)
    texts = [" ".join(rng.choices(WORDS.split(), k=14)) + " end" for _ in range(400)]
    texts += ["The patient's tube isn't 4-5 cm above the carina; it's 1.5 cm.", "No change, R > L."]
    (tmp_path / "texts").write_text("\n".join(texts), encoding="utf-8")
    command = ["java", "-cp", "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(tmp_path / "texts")],
        cwd=FOLDER,
        capture_output=True,
        encoding="utf-8",
        check=True,
        env={
            "JAVA_TOOL_OPTIONS": "-Dfile.encoding=UTF-8 -XX:+UseSerialGC",
            "PATH": "/usr/bin:/bin",
        },
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(texts)
    wrong = []
    for text, line in zip(texts, lines, strict=True):
        theirs = [word for word in line.split(" ") if word and word not in PUNCTUATIONS]
        if list(ptb_tokens(text)) != theirs:
            wrong.append((text, theirs, ptb_tokens(text)))
    assert not wrong, wrong[:3]


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


def test_bleu_counts_treebank_tokens_and_chinese_characters() -> None:
    scorer = Scorer.parse("bleu_1.coco_ptb")
    assert isinstance(scorer, CorpusScorer)
    # it 's left-sided, against it 's right-sided: 2 of 3. Plain words: it s left sided, 3 of 4.
    assert scorer.judge(row("It's left-sided", "it's right-sided"))[0] == pytest.approx(2 / 3)
    plain = Scorer.parse("bleu_1.coco").judge(row("It's left-sided", "it's right-sided"))[0]
    assert plain == pytest.approx(3 / 4)
    counts, _ = scorer.count(row("左肺上叶结节", "左肺结节"))
    assert counts is not None
    assert counts[:3] == (4, 6, 4)
