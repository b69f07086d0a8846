"""The nouns that pass between rooms.

Rows that live in files (`ImageRef`, `Box`, `Conversation`, `Record`, ...) are frozen pydantic
values; things that hold arrays are frozen dataclasses and compare by identity. Boxes have one home
frame: the original pixels of one image.
Shapes: D slices, H rows, W columns, L tokens, B samples, N images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.errors import MedLoupeError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Anchor = Literal["prompt", "user"]
"""Where a question is read: at the last position of its prompt, which predicts the answer's first token,
or at the last token of what the user says."""

Views: TypeAlias = "torch.Tensor | tuple[Views, ...]"
"""The views of one image, or of a batch of alike ones: a tensor for one encoder, a tuple for several."""

Role = Literal["system", "user", "assistant"]
Language = Literal["en", "zh"]
Split = Literal["train", "validation", "test"]
AnswerType = Literal["open", "closed", "box"]


Edit = Literal["mirrored", "blank"]
"""What a probe does to an image when it is read: left and right exchanged, or every pixel the same."""


class ImageRef(Config):
    """Where pixels live, never the pixels; `uri` is absolute or relative to the data set.

    `edit` is what is done to them when they are read; only probes ask for one.
    """

    type: Literal["image"] = "image"
    uri: str = Field(min_length=1)
    sha256: str | None = None
    kind: Literal["image", "volume"] = "image"
    modality: str | None = None
    study: str | None = None
    series: str | None = None
    frame: int | None = Field(default=None, ge=0)
    edit: Edit | None = None


class Box(Config):
    """A labelled box in the original pixels of image number `image` of its conversation or record.

    Edges are continuous coordinates: pixel column j covers [j, j + 1), so a box round one pixel is
    one wide. `z1`, `z2` are slice coordinates of a volume, in voxels of the stored array. `words`
    say more than the label does (a side, a size); they are never part of the box's text. `size_mm` is
    the extent along x, y and, for a volume, z, where the spacing is known.
    """

    type: Literal["box"] = "box"
    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    z1: float | None = None
    z2: float | None = None
    image: int = Field(default=0, ge=0)
    score: float | None = None
    words: tuple[str, ...] = ()
    size_mm: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _ordered(self) -> Box:
        if self.x2 < self.x1 or self.y2 < self.y1:
            raise ValueError(f"box corners are reversed: {self.x1, self.y1, self.x2, self.y2}")
        if (self.z1 is None) != (self.z2 is None):
            raise ValueError("a box has both z1 and z2, or neither")
        if self.z1 is not None and self.z2 is not None and self.z2 < self.z1:
            raise ValueError(f"box slices are reversed: {self.z1, self.z2}")
        if self.size_mm and len(self.size_mm) != (2 if self.z1 is None else 3):
            raise ValueError(f"size_mm needs one length per axis of the box: {self.size_mm}")
        return self


class Text(Config):
    """A run of text inside a message."""

    type: Literal["text"] = "text"
    text: str


Part = Annotated[Text | ImageRef | Box, Field(discriminator="type")]


class Message(Config):
    """One turn: text, images and boxes in the order in which they are read."""

    role: Role
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts joined; images and boxes left out."""
        return "".join(part.text for part in self.content if isinstance(part, Text))


class Conversation(Config):
    """One training, evaluation or serving sample: the same type from file to served answer.

    `task` is the kind of question ("presence", "side", ...), `template` the wording it was made
    from (the image-blind baseline gives the template's most frequent training answer), and
    `answer_type` decides which scorers apply. `options` are the choices of a closed question.
    """

    id: str = Field(min_length=1)
    messages: tuple[Message, ...]
    patient_id: str | None = None
    study_id: str | None = None
    split: Split | None = None
    dataset: str = ""
    licence: str = ""
    task: str = ""
    template: str = ""
    answer_type: AnswerType = "open"
    options: tuple[str, ...] = ()
    language: Language = "en"
    attributes: dict[str, str] = Field(default_factory=dict)

    def parts(self) -> Iterator[Text | ImageRef | Box]:
        """Every part of every message, in reading order."""
        for message in self.messages:
            yield from message.content

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images in reading order; `Box.image` indexes this."""
        return tuple(part for part in self.parts() if isinstance(part, ImageRef))

    @property
    def question(self) -> str:
        """The text of the last user message."""
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def answer(self) -> Message | None:
        """The last message if the assistant speaks it, else None."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last.role == "assistant" else None

    def without_answer(self) -> Conversation:
        """The conversation up to the question: what a model is given to answer."""
        if self.answer is None:
            return self
        return self.model_copy(update={"messages": self.messages[:-1]})


class Question(Config):
    """A question that a data set asks about a record, with its answer as published.

    `id` is unique within the data set. `options` are the choices of a closed question.
    """

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    answer_type: AnswerType = "open"
    options: tuple[str, ...] = ()
    language: Language = "en"
    task: str = ""
    attributes: dict[str, str] = Field(default_factory=dict)


class Record(Config):
    """One case as its data set describes it; conversations are built from records.

    `report` holds text by section ("findings", "impression", "caption", ...), `prior` the id of the
    record of an earlier study of the same patient.
    """

    id: str = Field(min_length=1)
    patient_id: str | None = None
    study_id: str | None = None
    date_offset_days: float | None = None
    images: tuple[ImageRef, ...] = ()
    report: dict[str, str] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    boxes: tuple[Box, ...] = ()
    masks: tuple[ImageRef, ...] = ()
    prior: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)
    split: Split | None = None
    dataset: str = ""
    licence: str = ""


class ImageLayout(Config):
    """The tokens an image becomes: a grid of `depth x rows x columns`, row-major."""

    depth: int = Field(default=1, ge=1)
    rows: int = Field(ge=1)
    columns: int = Field(ge=1)

    @property
    def tokens(self) -> int:
        return self.depth * self.rows * self.columns


class ImageLayouts(Config):
    """The tokens of each kind of image; None where the model takes no such image.

    Some transforms cut an image into units (tiles, slices), and a model may say `layout` of each unit,
    one after another (`per_unit`), or of all of them together.
    """

    image: ImageLayout | None = None
    volume: ImageLayout | None = None
    image_per_unit: bool = False
    volume_per_unit: bool = False

    def tokens(self, kind: Literal["image", "volume"], units: Callable[[], int]) -> int | None:
        """The tokens of an image; `units` is asked only where their number depends on it."""
        layout = self.image if kind == "image" else self.volume
        if layout is None:
            return None
        repeated = self.image_per_unit if kind == "image" else self.volume_per_unit
        return layout.tokens * (units() if repeated else 1)


Units = Literal["HU", "stored", "rgb"]


@dataclass(frozen=True, kw_only=True, eq=False)
class VoiTable:
    """How a file wants its grey values shown (DICOM VOI LUT, PS3.3 C.11.2.1.1): 0 to 255.

    A value v in the image's units is shown as `shown[round(v) - first]`; values outside of the
    table take its first or last entry.
    """

    first: int
    shown: NDArray[np.float32]  # [entries]


@dataclass(frozen=True, kw_only=True, eq=False)
class MedicalImage:
    """Pixels with their physical meaning.

    `array` is `[D, H, W]` float32 (D = 1 for a radiograph) in `units` "HU" or "stored", or
    `[H, W, 3]` uint8 in "rgb". `affine` maps voxel indices (column i, row j, slice k) to RAS+ mm.
    `spacing` is (slice, row, column) in mm. `window` is (centre, width) in `units` where the file
    has one, `voi_table` a table where it has that; the table then goes before the window.
    """

    array: NDArray[np.float32] | NDArray[np.uint8]
    units: Units
    affine: NDArray[np.float64] | None = None
    spacing: tuple[float, float, float] | None = None
    window: tuple[float, float] | None = None
    voi_table: VoiTable | None = None
    source: ImageRef | None = None
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        rows, columns = self.array.shape[:2] if self.units == "rgb" else self.array.shape[1:]
        return int(columns), int(rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInput:
    """One row of tokens. `labels` is -100 where nothing is learned.

    `segments` is 0 on the shared prefix and k >= 1 on branch k: a branch sees the prefix and
    itself. `images` stand in the order of their spans in `input_ids`; `ids` are the conversations.
    `anchors` are places in the row where the question of each image's own turn is read, one column for
    each of `Anchor`; a row of several branches has those of its first.
    """

    ids: tuple[str, ...]
    input_ids: torch.Tensor  # [L] int64
    labels: torch.Tensor  # [L] int64
    position_ids: torch.Tensor  # [L] int64
    segments: torch.Tensor  # [L] int64
    images: tuple[ImageRef, ...]
    anchors: torch.Tensor | None = None  # [N, 2] int64


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageInput:
    """One image as a model takes it: its views, or features `[T, C]` on a `grid` that were kept.

    The views of an encoder are a tensor, those of several encoders a tuple with one entry each. `detail`
    are those of an adapter's own encoder, where the model has one.
    """

    kind: Literal["image", "volume"] = "image"
    views: Views | None = None
    features: torch.Tensor | None = None
    grid: ImageLayout | None = None
    detail: Views | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Padded rows; `segments` is -1 on padding. `images` stand in reading order, row after row, and so do
    their `anchors` (see `ModelInput`)."""

    ids: tuple[str, ...]
    input_ids: torch.Tensor  # [B, L]
    labels: torch.Tensor  # [B, L]
    position_ids: torch.Tensor  # [B, L]
    segments: torch.Tensor  # [B, L]
    images: tuple[ImageInput, ...] = ()
    anchors: torch.Tensor | None = None  # [N, 2]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a model said. `log_probs` are natural logarithms, one per token of `token_ids`.

    `option_probs` are the probabilities of the conversation's options, in their order, scaled to sum to
    1; () where it has none or they were not asked for.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    boxes: tuple[Box, ...] = ()
    finish_reason: Literal["stop", "length"] = "stop"
    seconds: float = 0.0
    option_probs: tuple[float, ...] = ()

    @property
    def confidence(self) -> float | None:
        """The probability of the whole answer, its end included; None where no log-probability is known."""
        return math.exp(math.fsum(self.log_probs)) if self.log_probs else None


Hear: TypeAlias = Callable[[int, Generation | MedLoupeError], None]
"""`hear(number, answer)`: what became of a conversation, by its number."""

Arm = str
"""Whose answer it is: "model", "majority" (the most frequent training answer), or the name of the probe
under which the model was asked ("swapped": another patient's images)."""


class Score(Config):
    """One sample under one scorer: a value, or None with the reason it could not be scored."""

    id: str
    scorer: str
    arm: Arm = "model"
    value: float | None
    reason: str = ""


class Metric(Config):
    """An estimate with its interval, the number of samples behind it and those left unscored.

    `name` is the scorer, `group` the task ("" = all rows of `answer_type`), `stratum` a part of it
    ("lesion_width >= 4", or one finding of many), `clusters` the patients behind `n` samples. The arm
    "difference" is the model minus the stronger of the two image-blind arms, "minus NAME" the model minus
    one probe; both are paired by sample.
    """

    name: str
    arm: Arm = "model"
    answer_type: str = ""
    group: str = ""
    stratum: str = ""
    estimate: float | None
    low: float | None = None
    high: float | None = None
    n: int
    clusters: int = 0
    unscored: int = 0
    lower_is_better: bool = False
    note: str = ""


class Answer(Config):
    """What one arm other than the model's own said to a row.

    `question`, `truth` and `truth_boxes` stand where the arm was asked something else, or another answer
    is right under it: of a mirrored image, the other side.
    """

    text: str
    boxes: tuple[Box, ...] = ()
    finish_reason: str = "stop"
    error: str = ""
    confidence: float | None = None
    option_probs: tuple[float, ...] = ()
    question: str | None = None
    truth: str | None = None
    truth_boxes: tuple[Box, ...] | None = None


class EvalRow(Config):
    """One sample of an evaluation, complete: it can be scored again without the model.

    `confidence` is the probability of the whole answer, `option_probs` those of the options; None and ()
    where the model gives none. `others` are the answers under the other arms, by name. `error` says why
    there is no answer: such a row counts as unscored.
    """

    id: str
    patient_id: str | None
    task: str
    template: str
    answer_type: AnswerType
    images: tuple[ImageRef, ...]
    question: str
    question_boxes: tuple[Box, ...] = ()
    truth: str
    truth_boxes: tuple[Box, ...] = ()
    options: tuple[str, ...] = ()
    language: Language = "en"
    prediction: str
    predicted_boxes: tuple[Box, ...] = ()
    confidence: float | None = None
    option_probs: tuple[float, ...] = ()
    finish_reason: str = "stop"
    error: str = ""
    others: dict[str, Answer] = Field(default_factory=dict)
    attributes: dict[str, str] = Field(default_factory=dict)

    def under(self, arm: Arm) -> EvalRow | None:
        """The row as an arm was asked and answered it, None where it was not."""
        if arm == "model":
            return self
        other = self.others.get(arm)
        if other is None:
            return None
        return self.model_copy(
            update={
                "question": self.question if other.question is None else other.question,
                "truth": self.truth if other.truth is None else other.truth,
                "truth_boxes": self.truth_boxes if other.truth_boxes is None else other.truth_boxes,
                "prediction": other.text,
                "predicted_boxes": other.boxes,
                "confidence": other.confidence,
                "option_probs": other.option_probs,
                "finish_reason": other.finish_reason,
                "error": other.error,
            }
        )


class EvalLog(Config):
    """A whole evaluation: manifest, rows, scores and metrics. Stored as JSONL, one row a line."""

    benchmark: str
    version: str
    manifest: dict[str, Any]
    rows: tuple[EvalRow, ...]
    scores: tuple[Score, ...] = ()
    metrics: tuple[Metric, ...] = ()
