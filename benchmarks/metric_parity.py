"""Our text metrics beside the reference implementations, pair by pair and over all pairs together.

    python benchmarks/metric_parity.py                  # pairs that this script writes
    python benchmarks/metric_parity.py slake/test.json  # and your own: JSON lists with question and answer

sacrebleu, NLTK, rouge-score and pycocoevalcap come with the dev extra. What needs more is compared where it
is at hand: a Java runtime for COCO's own tokens and METEOR 1.5 (apt-get install default-jre-headless), and
WordNet as the system packages it (apt-get install wordnet-base).
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import logging
import random
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import nltk
import numpy as np
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import single_meteor_score
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from medloupe.evaluate.scorers import bleu
from medloupe.evaluate.scorers.base import CorpusScorer, Scorer, SetScorer
from medloupe.evaluate.scorers.meteor import ALPHA, BETA, GAMMA, align, meteor, stem
from medloupe.evaluate.scorers.mteval import is_chinese, tokens_13a, tokens_zh
from medloupe.evaluate.scorers.wordnet import SYSTEM_FOLDER, open_wordnet
from medloupe.evaluate.scorers.words import plain_words
from medloupe.types import EvalRow

HEAD = ("metric", "flavour", "reference", "texts", "pairs", "largest difference")
ORDERS = (1, 2, 3, 4)
EXACT = "meteor.exact_stem"
EQUAL = 1e-9
NLTK = f"NLTK {version('nltk')}"
COCO = f"pycocoevalcap {version('pycocoevalcap')}"
JAVA = shutil.which("java") is not None

Pair = tuple[str, str]
"""(truth, answer)"""

ENGLISH = """The lungs are clear without focal consolidation, pleural effusion or pneumothorax.
Heart size is normal; the mediastinal and hilar contours are unremarkable.
There is a 3.5 mm calcified nodule in the right upper lobe, unchanged since 2019-05-02.
No acute fracture. No free air under the diaphragm. No change.
Small left-sided pleural effusion with adjacent atelectasis, increased from the prior study.
The patient's endotracheal tube isn't 4-5 cm above the carina; it's 1.5 cm.
T2/FLAIR hyperintensity (grade II) in both temporal lobes, R > L, with mass effect.
Findings consistent with "ground-glass" opacities, 70% of the left lung.
There is there is there is an enlarged, enlarging and largely stable enlargement of the heart.
Opacities in the lung bases are most likely atelectases, less likely infections.
Normal.
yes
left upper lobe""".splitlines()
CHINESE = """双肺野清晰，未见明显实变影，无胸腔积液及气胸。
左肺上叶见一大小约3.5 mm的GGO结节，边缘毛糙，可见分叶征。
心影大小形态正常，纵隔内未见明显肿大的淋巴结；与2019-05-02的CT比较无变化。
右肺下叶见条索状高密度影，考虑慢性炎症，建议随访复查。
MRI T2WI示双侧颞叶高信号（II级），右侧较左侧明显。
没有病灶没有病灶没有病灶
肝脏、胆囊、脾脏、胰腺未见异常。
不是
左肺""".splitlines()
ODD = [
    "", " ", ".", "...", "a", "A", "no", "no no no no no no no", "the the cat the the", "!?;:()[]{}",
    "not left", "left", "left not", "lung " * 60, "x" * 300, "肺" * 40, "肺", "The lungs ARE clear",
    "are clear lungs the", "1,000.5 mm", "1.", ".5", "5-6", "&quot;nodule&quot; &amp; mass &lt;3 mm",
    "<skipped>mass", "line one\nline two", "hyphen-\nated", "‘curly’ “quotes” – dash… → ℃ μm",
    "naïve café Ångström", "e\u0301cole", "😀 emoji 🩻", "𠀀𠀁 rare", "ﬁbrosis", "ＣＴ　检查",
    "日本語のテキスト", "한국어",
    "\u05e2\u05d1\u05e8\u05d9\u05ea", "\u200bzero\u00a0width", "tab\tand\u2003space",
    "ies dies ties skies", "operate operating operational operation operator",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One comparison; `difference` is None where the reference is not at hand. `bound` is what we claim:
    scores in 0..1 differ by no more."""

    metric: str
    flavour: str
    reference: str
    texts: str
    pairs: int
    difference: float | None
    bound: float = EQUAL

    def cells(self) -> tuple[str, ...]:
        """As the table shows it; what rounding leaves is not told apart."""
        if self.difference is None:
            value = "not at hand"
        else:
            value = "< 1e-12" if self.difference < 1e-12 else f"{self.difference:.2g}"
        return (
            self.metric,
            f"`{self.flavour}`",
            self.reference,
            self.texts,
            f"{self.pairs:,}",
            value,
        )


def main() -> None:
    """Print the table."""
    wanted = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    wanted.add_argument("files", nargs="*", type=Path, help="JSON lists with question and answer")
    args = wanted.parse_args()
    found = [*rows("written", written()), *java_rows("written", written())]
    for path in args.files:
        texts, pairs = f"`{path.parent.name}/{path.name}`", read(path)
        found += [*rows(texts, pairs), *java_rows(texts, pairs)]
    print("\n".join(table(found)))


def table(found: Sequence[Row]) -> list[str]:
    """Lines of markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in found)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def written() -> list[Pair]:
    """Reports against themselves with words changed, lost, doubled and moved; odd texts against all."""
    rng = random.Random(5)
    pairs = [(text, edited(text, rng)) for text in (*ENGLISH, *CHINESE) for _ in range(12)]
    pairs += product(ODD, ODD[:16])
    pairs += product((*ENGLISH, *CHINESE), ODD[::4])
    return pairs


def edited(text: str, rng: random.Random) -> str:
    """`text` with about a third of its words replaced, dropped or doubled, and sometimes turned round."""
    chinese = is_chinese(text)
    words = list(text) if chinese else text.split()
    out: list[str] = []
    for word in words:
        chance, other = rng.random(), rng.choice(words)
        out += [other] if chance < 0.15 else [] if chance < 0.25 else [word] * (1 + (chance > 0.92))
    cut = rng.randrange(len(words)) if rng.random() < 0.3 else 0
    return ("" if chinese else " ").join(out[cut:] + out[:cut])


def read(path: Path) -> list[Pair]:
    """Every text against the next one of the file; question and answer together make one."""
    texts = [f"{row['question']} {row['answer']}" for row in json.loads(path.read_text("utf-8"))]
    return list(pairwise(texts))


def rows(texts: str, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Every comparison over the same pairs."""
    yield sacrebleu_row(texts, pairs)
    yield nltk_row(texts, pairs)
    yield from rouge_rows(texts, pairs)
    yield from coco_rows(texts, pairs)
    yield from meteor_rows(texts, pairs)
    yield wordnet_row(texts, pairs)


def sacrebleu_row(texts: str, pairs: Sequence[Pair]) -> Row:
    """Every pair alone and all of them together; the references' tokens are the reference's own."""
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)  # "use effective_order for sentences"
    theirs_of = {True: TokenizerZh(), False: Tokenizer13a()}
    split = [[theirs_of[is_chinese(pair[0])](text.rstrip()) for text in pair] for pair in pairs]
    counts = np.array(
        [
            bleu.ngram_counts(truth, answer, tokens_zh if is_chinese(truth) else tokens_13a)
            for truth, answer in pairs
        ]
    )
    gaps = []
    for order in ORDERS:
        reference = BLEU(tokenize="none", force=True, max_ngram_order=order)
        theirs = [reference.sentence_score(answer, [truth]).score for truth, answer in split]
        truths, answers = zip(*split, strict=True)
        theirs.append(reference.corpus_score(answers, [truths]).score)
        ours = bleu.sacrebleu(np.vstack([counts, counts.sum(axis=0)]), order)
        gaps.append(gap(100 * ours, theirs) / 100)
    name = f"sacrebleu {version('sacrebleu')}"
    return Row("BLEU-1 to 4", "bleu_{1..4}.sacrebleu", name, texts, len(pairs), max(gaps))


def nltk_row(texts: str, pairs: Sequence[Pair]) -> Row:
    """Sentence BLEU, pair by pair."""
    counts = np.array([bleu.ngram_counts(*pair, plain_words) for pair in pairs])
    words = [(plain_words(truth), plain_words(answer)) for truth, answer in pairs]
    smooth = SmoothingFunction().method1
    gaps = []
    for order in ORDERS:
        weights = (1 / order,) * order
        theirs = [sentence_bleu([true], said, weights, smooth) for true, said in words]
        gaps.append(gap(bleu.nltk(counts, order), theirs))
    return Row("BLEU-1 to 4", "bleu_{1..4}.nltk", NLTK, texts, len(pairs), max(gaps))


def rouge_rows(texts: str, pairs: Sequence[Pair]) -> Iterator[Row]:
    """The package's F1, pair by pair; for a Chinese truth the package is given our words."""

    class ByCharacters(DefaultTokenizer):  # type: ignore[misc]
        def tokenize(self, text: str) -> list[str]:
            return plain_words(text)

    kinds = {"1": "rouge1", "2": "rouge2", "l": "rougeL", "lsum": "rougeLsum"}
    for flavour, stems in (("rouge_score", False), ("rouge_score_stem", True)):
        reference = RougeScorer([*kinds.values()], use_stemmer=stems)
        chinese = RougeScorer([*kinds.values()], tokenizer=ByCharacters())
        theirs = [(chinese if is_chinese(t) else reference).score(t, a) for t, a in pairs]
        gaps = [
            gap(
                judged(f"rouge_{kind}.{flavour}", pairs),
                [float(scores[name].fmeasure) for scores in theirs],
            )
            for kind, name in kinds.items()
        ]
        name = f"rouge-score {version('rouge-score')}, for Chinese our words"
        flavours = f"rouge_{{1,2,l,lsum}}.{flavour}"
        yield Row("ROUGE-1, 2, L, Lsum", flavours, name, texts, len(pairs), max(gaps))


def coco_rows(texts: str, pairs: Sequence[Pair]) -> Iterator[Row]:
    """COCO's arithmetic over the same words, pair by pair and together."""
    pairs = [pair for pair in pairs if plain_words(pair[0])]
    words = [tuple(" ".join(plain_words(text)) for text in pair) for pair in pairs]
    yield from caption_rows(texts, pairs, words, "coco", f"{COCO}, same words")


def java_rows(texts: str, pairs: Sequence[Pair]) -> Iterator[Row]:
    """The whole of COCO's evaluation with its Java programs, for truths that are not Chinese."""
    if not JAVA:
        return
    pairs = [pair for pair in pairs if not is_chinese(pair[0])]
    asked = [{n: [{"caption": p[side]}] for n, p in enumerate(pairs)} for side in (0, 1)]
    tokens = [PTBTokenizer().tokenize(captions) for captions in asked]
    split = [(tokens[0][n][0], tokens[1][n][0]) for n in range(len(pairs))]
    kept = [n for n, (truth, _) in enumerate(split) if truth]
    pairs, split = [pairs[n] for n in kept], [split[n] for n in kept]
    yield from caption_rows(texts, pairs, split, "coco_ptb", f"{COCO} with its Java tokens")
    whole, alone = Meteor().compute_score(*by_image(split))
    counts = counted("meteor.java15", pairs)
    ours = combined("meteor.java15", np.vstack([counts, counts.sum(axis=0)]))
    difference = gap(ours[:-1], alone)
    name = f"{COCO} with its Java programs, pair by pair"
    yield Row("METEOR", "meteor.java15", name, texts, len(pairs), difference, 0.15)
    mean = float(np.abs(ours[:-1] - np.array(alone)).mean())
    name = f"{COCO} with its Java programs, mean difference of a pair"
    yield Row("METEOR", "meteor.java15", name, texts, len(pairs), mean, 0.005)
    name = f"{COCO} with its Java programs, all pairs together"
    yield Row("METEOR", "meteor.java15", name, texts, len(pairs), abs(ours[-1] - whole), 0.005)


def caption_rows(
    texts: str, pairs: Sequence[Pair], words: Sequence[Pair], flavour: str, name: str
) -> Iterator[Row]:
    """BLEU, ROUGE-L and CIDEr of pairs, against pycocoevalcap on their words."""
    truths, answers = by_image(words)
    whole, alone = Bleu(4).compute_score(truths, answers, verbose=0)
    counts = counted(f"bleu_1.{flavour}", pairs)
    gaps = [
        gap(
            combined(f"bleu_{n}.{flavour}", np.vstack([counts, counts.sum(axis=0)])),
            [*alone[n - 1], whole[n - 1]],
        )
        for n in ORDERS
    ]
    yield Row("BLEU-1 to 4", f"bleu_{{1..4}}.{flavour}", name, texts, len(pairs), max(gaps))
    theirs = Rouge().compute_score(truths, answers)[1]
    difference = gap(judged(f"rouge_l.{flavour}", pairs), theirs)
    yield Row("ROUGE-L", f"rouge_l.{flavour}", name, texts, len(pairs), difference)
    whole, alone = Cider().compute_score(truths, answers)
    scorer = Scorer.parse(f"cider.{flavour}")
    assert isinstance(scorer, SetScorer)
    weights = np.vstack([np.eye(len(pairs)), np.ones(len(pairs))]).astype(np.int64)
    ours = scorer.collect([row_of(pair) for pair in pairs]).score(weights)
    difference = gap(ours, np.array([*alone, whole]) / 10)
    yield Row("CIDEr-D", f"cider.{flavour}", f"{name}; / 10", texts, len(pairs), difference)


def by_image(words: Sequence[Pair]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Truths and answers as pycocoevalcap takes them."""
    truths, answers = ({n: [pair[side]] for n, pair in enumerate(words)} for side in (0, 1))
    return truths, answers


def row_of(pair: Pair) -> EvalRow:
    """A row with nothing but its texts."""
    return EvalRow(
        id="",
        patient_id=None,
        task="",
        template="",
        answer_type="open",
        images=(),
        question="",
        truth=pair[0],
        prediction=pair[1],
    )


def judged(name: str, pairs: Sequence[Pair]) -> list[float]:
    """Our score of each pair; 0 where we give none, as the references do."""
    scorer = Scorer.parse(name)
    return [scorer.judge(row_of(pair))[0] or 0.0 for pair in pairs]


def counted(name: str, pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """Our counts of each pair."""
    scorer = Scorer.parse(name)
    assert isinstance(scorer, CorpusScorer)
    return np.array([scorer.count(row_of(pair))[0] for pair in pairs], dtype=np.int64)


def combined(name: str, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scores of counts."""
    scorer = Scorer.parse(name)
    assert isinstance(scorer, CorpusScorer)
    return scorer.combine(counts)


def meteor_rows(texts: str, pairs: Sequence[Pair]) -> Iterator[Row]:
    """NLTK with our stems and no synonyms, where no stem repeats (one alignment only) and everywhere; and
    METEOR 1.5 on the stems, where the answer is not the truth (it then waives the penalty of one chunk)."""
    stems = [
        ([stem(w) for w in plain_words(t)], [stem(w) for w in plain_words(a)]) for t, a in pairs
    ]
    stems = [pair for pair in stems if all(pair)]
    plain = [pair for pair in stems if all(len(set(text)) == len(text) for text in pair)]
    for found, which, bound in ((plain, "no word twice", EQUAL), (stems, "all", 0.5)):
        theirs = [single_meteor_score(*pair, stemmer=Same(), wordnet=Nothing()) for pair in found]
        name = f"{NLTK}, same stems, no synonyms; {which}"
        yield Row("METEOR", EXACT, name, texts, len(found), gap(ours_of(found), theirs), bound)
    other = [(true, said) for true, said in stems if true != said]
    scores = meteor_1_5(other)
    difference = None if scores is None else gap(ours_of(other), scores)
    name = "METEOR 1.5 (Java), same stems and weights"
    yield Row("METEOR", EXACT, name, texts, len(other), difference, 0.05)


def ours_of(stems: Sequence[tuple[list[str], list[str]]]) -> list[float]:
    """Our METEOR of (truth, answer)."""
    return [meteor(*align(said, true), len(said), len(true)) for true, said in stems]


def meteor_1_5(stems: Sequence[tuple[list[str], list[str]]]) -> list[float] | None:
    """The authors' own program (Denkowski and Lavie 2014), None where it or java is not there."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations or shutil.which("java") is None:
        return None
    jar = Path(found.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"
    weights = f"{ALPHA} {BETA} {GAMMA} 0.5"  # delta 0.5: function words count like the others
    command = [
        "java",
        "-Dfile.encoding=UTF-8",
        "-Xmx1G",
        "-jar",
        str(jar),
        "-",
        "-",
        "-stdio",
        "-l",
        "en",
    ]
    command += ["-m", "exact", "-w", "1.0", "-p", weights]
    asked = [f"SCORE ||| {' '.join(true)} ||| {' '.join(said)}\n" for true, said in stems]
    statistics = lines_of(command, asked)
    scores = lines_of(command, [f"EVAL ||| {line}\n" for line in statistics])
    return [float(line) for line in scores[::2]]  # of one segment, then of all


def lines_of(command: Sequence[str], asked: Sequence[str]) -> list[str]:
    """What a program answers to lines."""
    done = subprocess.run(
        command,
        input="".join(asked),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.splitlines()


def wordnet_row(texts: str, pairs: Sequence[Pair]) -> Row:
    """NLTK's METEOR over our reader of WordNet against NLTK's."""
    difference = None
    pairs = [(t, a) for t, a in pairs if plain_words(t) and plain_words(a)][:1000]
    if (SYSTEM_FOLDER / "data.noun").exists():
        readers: list[Any] = [open_wordnet(SYSTEM_FOLDER), nltks_own(SYSTEM_FOLDER)]
        ours, theirs = (
            [single_meteor_score(plain_words(t), plain_words(a), wordnet=reader) for t, a in pairs]
            for reader in readers
        )
        difference = gap(ours, theirs)
    name = f"{NLTK}, its own reader of WordNet 3.0"
    return Row("METEOR", "meteor.nltk_wordnet", name, texts, len(pairs), difference)


def nltks_own(folder: Path) -> WordNetCorpusReader:
    """NLTK's reader on a system's folder, which lacks the names of the lexicographers' files."""

    class Reader(WordNetCorpusReader):  # type: ignore[misc]
        def open(self, file: str) -> Any:
            names = "".join(f"{number:02d} name 0\n" for number in range(45))
            return io.StringIO(names) if file == "lexnames" else super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Another version's numbers are not asked for."""

    nltk.data.path.append(str(folder.parent))  # NLTK opens nothing outside of its folders
    with warnings.catch_warnings(action="ignore"):  # no other languages
        return Reader(nltk.data.FileSystemPathPointer(str(folder)), None)


class Same:
    """A stemmer for words that are stems."""

    def stem(self, word: str) -> str:
        return word


class Nothing:
    """A WordNet without synonyms."""

    def synsets(self, _: str) -> list[Any]:
        return []


def gap(
    ours: Sequence[float] | NDArray[np.float64], theirs: Sequence[float] | NDArray[np.float64]
) -> float:
    """The largest absolute difference; both 0..1."""
    assert len(ours) == len(theirs), f"{len(ours)} and {len(theirs)}"
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


if __name__ == "__main__":
    main()
