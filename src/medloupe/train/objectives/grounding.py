"""The grounding objective: image tokens learn to say, in the language model's own words, what they show.

Through a language model the signal from a small lesion to the encoder is faint: thousands of steps
pass before it says more than the prior. Here it is direct. Each label is the direction of its words'
input embeddings in the language model. An image token inside a box is pulled along the directions of
the box's label and words, all other tokens are pushed off them, and the mean token is pulled along the
image's own labels (a plane, a view, a diagnosis). The language model is not run, only its embedding
table is read, and what is learned sits in the encoder and the connector, in the very space in which
the next stage reads. Needs `Record`s with boxes or labels in the training split.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch.nn import functional as F

from medloupe.data.dataset import Dataset
from medloupe.errors import ConfigError, TrainingError
from medloupe.imaging.transforms import Geometry, clip_box
from medloupe.models.connectors.base import ALIGNMENT_OFFSET, ALIGNMENT_SLOPE, word_directions
from medloupe.models.vlm import on_device, plain_encoder
from medloupe.processing.packing import Cost
from medloupe.train.objectives.base import Micro, Objective, ObjectiveConfig, StageContext, ease_of
from medloupe.train.objectives.costs import ImageCosts
from medloupe.types import Batch, Box, ImageInput, ImageLayout, Record


class GroundingObjectiveConfig(ObjectiveConfig):
    """`cover` is the share of a token's cell (or of the box, if that is smaller) that a box must cover
    for the token to be one of the box's; the token at a box's centre always is. `image_weight` weighs
    image labels against boxes; `focal` is the exponent of Lin et al. 2017, eq. 4. `min_count` leaves
    out words with fewer training boxes or images."""

    cover: float = Field(default=0.25, gt=0, le=1)
    image_weight: float = Field(default=1.0, ge=0)
    focal: float = Field(default=2.0, ge=0)
    min_count: int = Field(default=10, ge=1)

    def check(self, dataset: Dataset, place: str) -> Sequence[Record]:
        records = [
            record
            for record in dataset.records
            if record.split == "train" and len(record.images) == 1
            and record.images[0].kind == "image" and (record.boxes or record.labels)
        ]  # fmt: skip
        if records:
            return records
        raise TrainingError(
            f"no training record with one 2D image and a box or label (of {len(dataset.records):,} "
            "records)",
            field=place,
            remedy="Grounding needs records.jsonl. Teach conversations in this stage, --set "
            f"{place}.objective=language, or leave it out of the run's YAML",
        )

    def build(self, context: StageContext) -> GroundingObjective:
        return GroundingObjective(self, context)


class GroundingObjective(Objective):
    """See `GroundingObjectiveConfig`. K words; targets are `[N, tokens + 1, K]`, the last row for the
    whole image: 1 yes, 0 no, -1 not asked."""

    def __init__(self, config: GroundingObjectiveConfig, context: StageContext) -> None:
        self.config, self.model, self.images = config, context.model, context.images
        if "image" not in context.model.encoder.kinds:
            raise ConfigError(
                "grounding looks at 2D images, and this model's encoder reads volumes",
                field="model.encoder",
                remedy="Leave this stage out, or use the encoder by_kind or slices",
            )
        self.cost_of = ImageCosts(context.model, context.processor, context.images)
        self.layout = context.model.encoder.for_kind("image").layout
        self.records = config.check(context.dataset, "train.stages.NAME")
        self._refuse_other_grid()
        self.box_words, self.image_words = vocabulary(self.records, config.min_count)
        self.words = (*self.box_words, *self.image_words)
        encode = plain_encoder(context.processor.tokenizer)
        table = self.model.get_input_embeddings().weight.detach()
        self.directions_KD = word_directions(encode, table, self.words)

    def _refuse_other_grid(self) -> None:
        first = self.images.inputs([self.records[0].images[0]])
        with torch.no_grad():
            tokens = self._grid_tokens(first).shape[1]
        if tokens != self.layout.tokens:
            raise ConfigError(
                f"grounding needs one token for each of the encoder's {self.layout.tokens} places; "
                f"the connector gives {tokens}",
                remedy="Use a connector that keeps the grid (window: 1), or leave this stage out",
            )

    @property
    def lengths(self) -> Sequence[int]:
        return [1] * len(self.records)

    def costs(self) -> Sequence[Cost]:
        return [self.cost_of(record.images[0]) for record in self.records]

    def ease(self, attribute: str) -> Sequence[float]:
        return ease_of(([record] for record in self.records), attribute)

    @property
    def names(self) -> Sequence[str]:
        return [record.id for record in self.records]

    def micro(self, rows: Sequence[int]) -> Micro:
        chosen = [self.records[row] for row in rows]
        images = self.images.inputs([record.images[0] for record in chosen])
        targets = torch.stack([self._targets(record) for record in chosen])
        nothing = torch.zeros(len(chosen), 0, dtype=torch.long)
        boxes = targets[:, :-1, : len(self.box_words)]
        return Micro(
            batch=Batch(
                ids=tuple(record.id for record in chosen),
                input_ids=nothing,
                labels=nothing,
                position_ids=nothing,
                segments=nothing,
                images=tuple(images),
            ),
            targets=targets,
            count=max(float((boxes > 0).sum()), 1.0),
            tokens=len(chosen) * self.layout.tokens,
            padding=0,
        )

    def loss(self, micro: Micro) -> torch.Tensor:
        assert micro.targets is not None
        tokens = self._grid_tokens(micro.batch.images).float()
        lengths = tokens @ self.directions_KD.to(tokens.device).T
        logits = lengths * ALIGNMENT_SLOPE + ALIGNMENT_OFFSET
        split = len(self.box_words)
        local = self._focal(logits[:, :, :split], micro.targets[:, :-1, :split]).sum()
        whole = self._focal(logits[:, :, split:].mean(1), micro.targets[:, -1, split:])
        return local + self.config.image_weight * micro.count * whole.mean()

    def _grid_tokens(self, images: Sequence[ImageInput]) -> torch.Tensor:
        """`[N, T, D]` of 2D images, which are all of one shape."""
        encoded = self.model.encode([on_device(image, self.model.device) for image in images])
        features_NTC = torch.stack(
            [image.features for image in encoded if image.features is not None]
        )
        tokens: torch.Tensor = self.model.connector.for_kind("image").grid_tokens(
            features_NTC, self.layout
        )
        return tokens

    def _focal(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        wrong = (targets - torch.sigmoid(logits)).abs().detach()
        return loss * wrong**self.config.focal

    def _targets(self, record: Record) -> torch.Tensor:
        targets = torch.zeros(self.layout.tokens + 1, len(self.words))
        geometry = self.images.transform.geometry(*self.images.size_of(record.images[0]))
        for box in record.boxes:
            cells = covered_cells(box, geometry, self.layout, self.config.cover)
            for word in {box.label, *box.words} & set(self.box_words):
                targets[cells, self.box_words.index(word)] = 1.0
        for word in set(record.labels) & set(self.image_words):
            targets[-1, len(self.box_words) + self.image_words.index(word)] = 1.0
        return targets


def vocabulary(
    records: Sequence[Record], min_count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of boxes, and those of images that no box has; sorted, each often enough."""
    boxes: dict[str, int] = {}
    images: dict[str, int] = {}
    for record in records:
        for box in record.boxes:
            for word in {box.label, *box.words}:
                boxes[word] = boxes.get(word, 0) + 1
        for word in set(record.labels):
            images[word] = images.get(word, 0) + 1
    local = tuple(sorted(word for word, number in boxes.items() if number >= min_count))
    whole = tuple(
        sorted(w for w, number in images.items() if number >= min_count and w not in boxes)
    )
    return local, whole


def covered_cells(box: Box, geometry: Geometry, layout: ImageLayout, cover: float) -> list[int]:
    """The tokens of a box: those whose cell it covers by `cover`, and the one at its centre."""
    seen = clip_box(geometry.forward_box(box), geometry.view)
    if seen is None:
        return []
    width, height = geometry.view[0] / layout.columns, geometry.view[1] / layout.rows
    least = cover * min(width * height, (seen.x2 - seen.x1) * (seen.y2 - seen.y1))
    centre = (
        min(int((seen.x1 + seen.x2) / 2 / width), layout.columns - 1),
        min(int((seen.y1 + seen.y2) / 2 / height), layout.rows - 1),
    )
    cells = []
    for row in range(int(seen.y1 / height), min(int(seen.y2 / height) + 1, layout.rows)):
        for column in range(int(seen.x1 / width), min(int(seen.x2 / width) + 1, layout.columns)):
            across = min(seen.x2, (column + 1) * width) - max(seen.x1, column * width)
            down = min(seen.y2, (row + 1) * height) - max(seen.y1, row * height)
            if (column, row) == centre or across * down >= least:
                cells.append(row * layout.columns + column)
    return cells
