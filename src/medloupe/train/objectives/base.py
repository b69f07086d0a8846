"""What an objective is: rows it can put into batches, and a loss that is a sum over counted targets.

The loop divides by the count over all micro-batches of a step, so that accumulation and padding change
no gradient.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from medloupe.config import ComponentConfig
from medloupe.data.dataset import Dataset
from medloupe.errors import TrainingError
from medloupe.models.features import FeatureStore, Precision, frozen_features
from medloupe.models.vlm import VisionLanguageModel
from medloupe.processing import ImageSource, Processor
from medloupe.processing.packing import Cost
from medloupe.types import Batch, Conversation, ImageInput, ImageRef, Record, Views

Progress = Callable[[str, int, int], None]
# What a stage keeps of frozen encoders' features in memory.
KEPT_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What an objective builds its rows from. `frozen_encoder`: its features may be kept, in `features`
    also for other runs; it makes them in `precision`, the stage's. `mixed`: the rows are those of several
    data sets, each with its share."""

    model: VisionLanguageModel
    processor: Processor
    dataset: Dataset
    images: ImageSource
    frozen_encoder: bool
    precision: Precision
    progress: Progress
    features: FeatureStore | None = None
    mixed: bool = False


@dataclass(frozen=True, kw_only=True)
class Micro:
    """One micro-batch: the tensors, and how many targets its loss sums over."""

    batch: Batch
    targets: torch.Tensor | None
    count: float
    tokens: int
    padding: int


class Objective(abc.ABC):
    """Rows of one stage and their loss."""

    @property
    @abc.abstractmethod
    def lengths(self) -> Sequence[int]:
        """The cost of each row, for grouping rows of similar length."""

    @abc.abstractmethod
    def costs(self) -> Sequence[Cost]:
        """What each row asks of the machine; looks at images whose size decides it."""

    @abc.abstractmethod
    def ease(self, attribute: str) -> Sequence[float]:
        """The value of a numeric attribute for each row, infinite where a row has none.

        Raises:
            TrainingError: no row has it, or a value is no number.
        """

    @property
    @abc.abstractmethod
    def names(self) -> Sequence[str]:
        """The id of each row, or of the first conversation packed into it."""

    @abc.abstractmethod
    def micro(self, rows: Sequence[int]) -> Micro:
        """Build the batch of these rows, ahead of its step and in a thread: it reads nothing that training
        changes, and draws no random number."""

    @abc.abstractmethod
    def loss(self, micro: Micro) -> torch.Tensor:
        """The loss summed over `micro.count` targets."""


class ObjectiveConfig(ComponentConfig):
    """Base of all objective configs."""

    family: ClassVar[str] = "objective"
    table: ClassVar[Mapping[str, str]] = {
        "language": "medloupe.train.objectives.language:LanguageObjectiveConfig",
        "grounding": "medloupe.train.objectives.grounding:GroundingObjectiveConfig",
    }

    def check(
        self,
        dataset: Dataset,  # noqa: ARG002, for those that look
        place: str,  # noqa: ARG002
    ) -> Sequence[Conversation | Record]:
        """The rows that the objective would take, unread: cheap, before any stage trains.

        `place` is the stage's path in the run (`train.stages.ground`), for messages. An objective
        without a check of its own gives none.

        Raises:
            TrainingError: there are no rows; says what to `--set`.
        """
        return ()

    @abc.abstractmethod
    def build(self, context: StageContext) -> Objective:
        """Read, check and encode every row, before any training.

        Raises:
            TrainingError: there are no rows.
            PromptError, ImageError: a row that cannot be used, with its id.
        """


def ease_of(rows: Iterable[Iterable[Record | Conversation]], attribute: str) -> list[float]:
    """`Objective.ease` of rows that are each made from one or several cases: the hardest counts."""
    ease = [min((_number(case, attribute) for case in cases), default=math.inf) for cases in rows]
    if all(math.isinf(value) for value in ease):
        raise TrainingError(
            f"no row has the attribute {attribute!r} to order a curriculum by",
            field="curriculum.attribute",
            remedy="Name a numeric attribute of the data set's rows, or leave the curriculum out",
        )
    return ease


def _number(case: Record | Conversation, attribute: str) -> float:
    text = case.attributes.get(attribute)
    if text is None:
        return math.inf
    try:
        return float(text)
    except ValueError:
        raise TrainingError(
            f"{text!r} is no number",
            row=case.id,
            field=f"attributes.{attribute}",
            remedy="A curriculum orders rows by a numeric attribute",
        ) from None


class FrozenFeatures:
    """Encoder features where the encoder does not train: each image is encoded once, when first met.

    They are kept in memory, up to `KEPT_BYTES`, and in `StageContext.features` where there is a store;
    what fits into neither is encoded again in the next epoch. Always one image at a time: its features
    then do not depend on its neighbours in a batch, so a resumed run sees the same bits. Detail views are
    those of an encoder that may train: they are made anew each time.
    """

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self._features: dict[str, ImageInput] = {}
        self._bytes = 0
        self._known = context.features and context.features.of(context.model, context.precision)

    def of(self, refs: Sequence[ImageRef]) -> list[ImageInput]:
        """The images with their features, on the CPU."""
        return [self._detailed(self._one(ref), self.context.images.detail(ref)) for ref in refs]

    @staticmethod
    def _detailed(image: ImageInput, detail: Views | None) -> ImageInput:
        return image if detail is None else replace(image, detail=detail)

    def _one(self, ref: ImageRef) -> ImageInput:
        key = ref.to_json()
        if key in self._features:
            return self._features[key]
        image = ImageInput(kind=ref.kind, views=self.context.images.view(ref))
        if self._known:
            made = self._known.of(image)
        else:
            made = frozen_features(self.context.model, image, self.context.precision)
        assert made.features is not None, "an encoded image has features"
        if self._bytes + made.features.nbytes <= KEPT_BYTES:  # the first ones stay
            self._features[key] = made
            self._bytes += made.features.nbytes
        return made
