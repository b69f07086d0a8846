"""The scorer family: one evaluated row -> one score, or counts that are scored together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medloupe.config import ComponentConfig
from medloupe.types import EvalRow

Verdict = tuple[float | None, str]
"""A value in 0..1 and, where it is None or needs explaining, the reason."""

Counted = tuple[tuple[int, ...] | None, str]
"""What a row adds to the counts of all, or None and the reason."""


class Scorer(ComponentConfig):
    """Scores one row by its `prediction` and `predicted_boxes`.

    `right_from` is the value from which an answer is shown as right. `stated` is what a number must
    carry to be compared (tokens, smoothing); it stands in the note of every metric.
    """

    family = "scorer"
    table: ClassVar[Mapping[str, str]] = {
        "open_recall.strict": "medloupe.evaluate.scorers.open_recall:StrictOpenRecall",
        "open_recall.llava_med": "medloupe.evaluate.scorers.open_recall:LlavaMedOpenRecall",
        "closed_accuracy.strict": "medloupe.evaluate.scorers.closed:StrictClosedAccuracy",
        "closed_accuracy.llava_med": "medloupe.evaluate.scorers.closed:LlavaMedClosedAccuracy",
        "closed_accuracy.medm_vl": "medloupe.evaluate.scorers.closed:MedmVlClosedAccuracy",
        "exact_match": "medloupe.evaluate.scorers.exact:ExactMatch",
        "token_f1": "medloupe.evaluate.scorers.token_f1:TokenF1",
        "bleu_1.sacrebleu": "medloupe.evaluate.scorers.bleu:SacrebleuBleu1",
        "bleu_2.sacrebleu": "medloupe.evaluate.scorers.bleu:SacrebleuBleu2",
        "bleu_3.sacrebleu": "medloupe.evaluate.scorers.bleu:SacrebleuBleu3",
        "bleu_4.sacrebleu": "medloupe.evaluate.scorers.bleu:SacrebleuBleu4",
        "bleu_1.nltk": "medloupe.evaluate.scorers.bleu:NltkBleu1",
        "bleu_2.nltk": "medloupe.evaluate.scorers.bleu:NltkBleu2",
        "bleu_3.nltk": "medloupe.evaluate.scorers.bleu:NltkBleu3",
        "bleu_4.nltk": "medloupe.evaluate.scorers.bleu:NltkBleu4",
        "bleu_1.coco": "medloupe.evaluate.scorers.bleu:CocoBleu1",
        "bleu_2.coco": "medloupe.evaluate.scorers.bleu:CocoBleu2",
        "bleu_3.coco": "medloupe.evaluate.scorers.bleu:CocoBleu3",
        "bleu_4.coco": "medloupe.evaluate.scorers.bleu:CocoBleu4",
        "bleu_1.coco_ptb": "medloupe.evaluate.scorers.bleu:CocoPtbBleu1",
        "bleu_2.coco_ptb": "medloupe.evaluate.scorers.bleu:CocoPtbBleu2",
        "bleu_3.coco_ptb": "medloupe.evaluate.scorers.bleu:CocoPtbBleu3",
        "bleu_4.coco_ptb": "medloupe.evaluate.scorers.bleu:CocoPtbBleu4",
        "meteor.exact_stem": "medloupe.evaluate.scorers.meteor:MeteorExactStem",
        "meteor.nltk_wordnet": "medloupe.evaluate.scorers.meteor:MeteorNltkWordNet",
        "meteor.java15": "medloupe.evaluate.scorers.meteor15:MeteorJava15",
        "rouge_1.rouge_score": "medloupe.evaluate.scorers.rouge:Rouge1",
        "rouge_2.rouge_score": "medloupe.evaluate.scorers.rouge:Rouge2",
        "rouge_l.rouge_score": "medloupe.evaluate.scorers.rouge:RougeL",
        "rouge_lsum.rouge_score": "medloupe.evaluate.scorers.rouge:RougeLsum",
        "rouge_1.rouge_score_stem": "medloupe.evaluate.scorers.rouge:Rouge1Stem",
        "rouge_2.rouge_score_stem": "medloupe.evaluate.scorers.rouge:Rouge2Stem",
        "rouge_l.rouge_score_stem": "medloupe.evaluate.scorers.rouge:RougeLStem",
        "rouge_lsum.rouge_score_stem": "medloupe.evaluate.scorers.rouge:RougeLsumStem",
        "rouge_l.coco": "medloupe.evaluate.scorers.rouge:CocoRougeL",
        "rouge_l.coco_ptb": "medloupe.evaluate.scorers.rouge:CocoPtbRougeL",
        "cider.coco": "medloupe.evaluate.scorers.cider:CocoCider",
        "cider.coco_ptb": "medloupe.evaluate.scorers.cider:CocoPtbCider",
        "cider.paper": "medloupe.evaluate.scorers.cider:PaperCider",
        "bertscore_precision": "medloupe.evaluate.scorers.bertscore:BertScorePrecision",
        "bertscore_recall": "medloupe.evaluate.scorers.bertscore:BertScoreRecall",
        "bertscore_f1": "medloupe.evaluate.scorers.bertscore:BertScoreF1",
        "radgraph_f1.simple": "medloupe.evaluate.scorers.clinical:RadGraphSimple",
        "radgraph_f1.partial": "medloupe.evaluate.scorers.clinical:RadGraphPartial",
        "radgraph_f1.complete": "medloupe.evaluate.scorers.clinical:RadGraphComplete",
        "ratescore": "medloupe.evaluate.scorers.clinical:RaTEScore",
        "chexbert_accuracy_5": "medloupe.evaluate.scorers.clinical:CheXbertAccuracy5",
        "chexbert_accuracy_14": "medloupe.evaluate.scorers.clinical:CheXbertAccuracy14",
        "box_iou": "medloupe.evaluate.scorers.boxes:BoxIoU",
        "box_hit_0.5": "medloupe.evaluate.scorers.boxes:BoxHit50",
        "rec_iou": "medloupe.evaluate.scorers.boxes:RecIoU",
        "rec_accuracy_0.5": "medloupe.evaluate.scorers.boxes:RecAccuracy50",
        "label_precision_micro.strict": "medloupe.evaluate.scorers.labels:StrictMicroPrecision",
        "label_precision_macro.strict": "medloupe.evaluate.scorers.labels:StrictMacroPrecision",
        "label_precision_weighted.strict": "medloupe.evaluate.scorers.labels:StrictWeightedPrecision",
        "label_precision_samples.strict": "medloupe.evaluate.scorers.labels:StrictSamplesPrecision",
        "label_recall_micro.strict": "medloupe.evaluate.scorers.labels:StrictMicroRecall",
        "label_recall_macro.strict": "medloupe.evaluate.scorers.labels:StrictMacroRecall",
        "label_recall_weighted.strict": "medloupe.evaluate.scorers.labels:StrictWeightedRecall",
        "label_recall_samples.strict": "medloupe.evaluate.scorers.labels:StrictSamplesRecall",
        "label_f1_micro.strict": "medloupe.evaluate.scorers.labels:StrictMicroF1",
        "label_f1_macro.strict": "medloupe.evaluate.scorers.labels:StrictMacroF1",
        "label_f1_weighted.strict": "medloupe.evaluate.scorers.labels:StrictWeightedF1",
        "label_f1_samples.strict": "medloupe.evaluate.scorers.labels:StrictSamplesF1",
        "label_precision_micro.litegpt": "medloupe.evaluate.scorers.labels:LitegptMicroPrecision",
        "label_precision_macro.litegpt": "medloupe.evaluate.scorers.labels:LitegptMacroPrecision",
        "label_precision_weighted.litegpt": "medloupe.evaluate.scorers.labels:LitegptWeightedPrecision",
        "label_precision_samples.litegpt": "medloupe.evaluate.scorers.labels:LitegptSamplesPrecision",
        "label_recall_micro.litegpt": "medloupe.evaluate.scorers.labels:LitegptMicroRecall",
        "label_recall_macro.litegpt": "medloupe.evaluate.scorers.labels:LitegptMacroRecall",
        "label_recall_weighted.litegpt": "medloupe.evaluate.scorers.labels:LitegptWeightedRecall",
        "label_recall_samples.litegpt": "medloupe.evaluate.scorers.labels:LitegptSamplesRecall",
        "label_f1_micro.litegpt": "medloupe.evaluate.scorers.labels:LitegptMicroF1",
        "label_f1_macro.litegpt": "medloupe.evaluate.scorers.labels:LitegptMacroF1",
        "label_f1_weighted.litegpt": "medloupe.evaluate.scorers.labels:LitegptWeightedF1",
        "label_f1_samples.litegpt": "medloupe.evaluate.scorers.labels:LitegptSamplesF1",
        "auroc.macro": "medloupe.evaluate.scorers.ranking:MacroAuroc",
        "auroc.micro": "medloupe.evaluate.scorers.ranking:MicroAuroc",
        "auprc.macro": "medloupe.evaluate.scorers.ranking:MacroAuprc",
        "auprc.micro": "medloupe.evaluate.scorers.ranking:MicroAuprc",
        "ece.options": "medloupe.evaluate.scorers.calibration:OptionsEce",
        "ece_adaptive.options": "medloupe.evaluate.scorers.calibration:OptionsAdaptiveEce",
        "aurc.options": "medloupe.evaluate.scorers.calibration:OptionsAurc",
        "accuracy_at_80.options": "medloupe.evaluate.scorers.calibration:OptionsAt80",
        "accuracy_at_50.options": "medloupe.evaluate.scorers.calibration:OptionsAt50",
        "ece.answer": "medloupe.evaluate.scorers.calibration:AnswerEce",
        "ece_adaptive.answer": "medloupe.evaluate.scorers.calibration:AnswerAdaptiveEce",
        "aurc.answer": "medloupe.evaluate.scorers.calibration:AnswerAurc",
        "accuracy_at_80.answer": "medloupe.evaluate.scorers.calibration:AnswerAt80",
        "accuracy_at_50.answer": "medloupe.evaluate.scorers.calibration:AnswerAt50",
        "brier.binary": "medloupe.evaluate.scorers.calibration:BinaryBrier",
        "brier.multi_class": "medloupe.evaluate.scorers.calibration:MultiClassBrier",
        "localisation_0.3.strict": "medloupe.evaluate.scorers.detection:StrictLocalisation30",
        "localisation_0.4.strict": "medloupe.evaluate.scorers.detection:StrictLocalisation40",
        "localisation_0.5.strict": "medloupe.evaluate.scorers.detection:StrictLocalisation50",
        "localisation_0.3.litegpt": "medloupe.evaluate.scorers.detection:LitegptLocalisation30",
        "localisation_0.4.litegpt": "medloupe.evaluate.scorers.detection:LitegptLocalisation40",
        "localisation_0.5.litegpt": "medloupe.evaluate.scorers.detection:LitegptLocalisation50",
        "localisation_0.3.litegpt_paper": "medloupe.evaluate.scorers.detection:LitegptPaperLocalisation30",
        "localisation_0.4.litegpt_paper": "medloupe.evaluate.scorers.detection:LitegptPaperLocalisation40",
        "localisation_0.5.litegpt_paper": "medloupe.evaluate.scorers.detection:LitegptPaperLocalisation50",
        "map.coco": "medloupe.evaluate.scorers.detection:CocoMap",
        "map_0.5.coco": "medloupe.evaluate.scorers.detection:CocoMap50",
        "map_0.5.voc": "medloupe.evaluate.scorers.detection:VocMap50",
        "froc.iou_0.5": "medloupe.evaluate.scorers.detection:FrocIoU50",
        "froc.centre": "medloupe.evaluate.scorers.detection:FrocCentre",
    }
    right_from: ClassVar[float] = 1.0
    lower_is_better: ClassVar[bool] = False
    stated: ClassVar[str] = ""

    @abstractmethod
    def judge(self, row: EvalRow) -> Verdict:
        """The row's value, or None with the reason it cannot be scored."""

    def require(self) -> None:
        """Check what it needs beyond the package, before a model is asked.

        Raises:
            MissingExtraError: something is not installed.
        """


class CorpusScorer(Scorer):
    """Scores all rows together: `combine` of the sums of what every row counts.

    The score of a row is `combine` of its own counts; their mean is not the metric.
    """

    @abstractmethod
    def count(self, row: EvalRow) -> Counted:
        """What the row adds, always as many numbers, or None with the reason it cannot be scored."""

    @abstractmethod
    def combine(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sums of counts `[..., K]` -> scores `[...]` in 0..1."""

    def judge(self, row: EvalRow) -> Verdict:
        counts, reason = self.count(row)
        if counts is None:
            return None, reason
        return float(self.combine(np.array(counts))), reason


class Collected(ABC):
    """The rows of a set scorer, made ready once to be scored under many weightings."""

    @abstractmethod
    def score(self, weights_RN: NDArray[np.int64]) -> NDArray[np.float64]:
        """`[R]` scores of the rows, row n counted `weights_RN[r, n]` times, some row at least once; NaN
        where there is none."""

    def parts(self) -> Mapping[str, Collected]:
        """Scores of parts of what a row says, by name ("finding = effusion"); over the same rows."""
        return {}


class WeightedMean(Collected):
    """The mean of values that rows have by themselves."""

    def __init__(self, values_N: NDArray[np.float64]) -> None:
        self.values_N = values_N

    def score(self, weights_RN: NDArray[np.int64]) -> NDArray[np.float64]:
        weights = weights_RN.astype(np.float64)
        return np.asarray(weights @ self.values_N / weights.sum(axis=1))


class MeanOfParts(Collected):
    """The mean over those parts that have a score."""

    def __init__(self, named: Mapping[str, Collected]) -> None:
        self.named = named

    def score(self, weights_RN: NDArray[np.int64]) -> NDArray[np.float64]:
        total_R, number_R = np.zeros(len(weights_RN)), np.zeros(len(weights_RN))
        for part in self.named.values():
            scores_R = part.score(weights_RN)
            total_R += np.nan_to_num(scores_R)
            number_R += ~np.isnan(scores_R)
        nowhere_R = np.full_like(total_R, np.nan)
        return np.divide(total_R, number_R, out=nowhere_R, where=number_R > 0)

    def parts(self) -> Mapping[str, Collected]:
        return self.named


class Falling:
    """M things by falling value, those of equal value together: G distinct `values_G`. `order_M` are their
    places in the order given, which those of equal value keep."""

    def __init__(self, values_M: NDArray[np.float64]) -> None:
        self.order_M = np.argsort(-values_M, kind="stable")
        falling_M = values_M[self.order_M]
        self._starts_G = np.flatnonzero(np.diff(falling_M, prepend=np.inf))
        self.values_G = falling_M[self._starts_G]

    def summed(self, counts_RM: NDArray[np.float64]) -> NDArray[np.float64]:
        """`[R, G]` sums over equal values of what stands in falling order."""
        if len(self._starts_G) == len(self.order_M):
            return counts_RM
        return np.add.reduceat(counts_RM, self._starts_G, axis=1)


class SetScorer(Scorer):
    """Scores all rows together by more than sums: a ranking, a curve, an average over findings.

    `judge` gives a row a value of its own for readers of samples, and decides whether the row counts;
    the mean of these values is not the metric.
    """

    @abstractmethod
    def collect(self, rows: Sequence[EvalRow]) -> Collected:
        """Rows that `judge` gave a value, in this order."""
