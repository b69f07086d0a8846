"""The language objective: cross-entropy on answers, the questions of an image behind one prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from medloupe.data.dataset import Dataset
from medloupe.data.mixture import source_of
from medloupe.errors import ConfigError, TrainingError
from medloupe.models.attention import mask_plan
from medloupe.processing import collate, pack_branches
from medloupe.processing.packing import Budget, Cost, row_cost
from medloupe.train.objectives.base import (
    FrozenFeatures,
    Micro,
    Objective,
    ObjectiveConfig,
    StageContext,
    ease_of,
)
from medloupe.train.objectives.costs import ImageCosts
from medloupe.types import Conversation, ModelInput


class LanguageObjectiveConfig(ObjectiveConfig):
    """Which training conversations are taught, and how they are packed.

    `tasks` empty means all. `ranges` keeps rows whose numeric attribute lies in [low, high]; rows
    without the attribute stay.
    `pack` puts the questions of an image behind one prefix, as many as `budget` lets into a row: "auto"
    where the language model can be told that they do not see each other (tried on a narrow copy of it,
    and said where not), true everywhere or not at all, false nowhere. With an adapter that shows an image
    the question, each question keeps an image of its own. On a GPU packed rows of a micro-batch stand in
    one row without padding, and none sees another (FlexAttention).
    """

    tasks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    pack: bool | Literal["auto"] = "auto"
    budget: Budget = Budget()

    @model_validator(mode="before")
    @classmethod
    def _older(cls, data: Any) -> Any:
        """Runs that were saved before there was a budget limit tokens alone."""
        if not isinstance(data, dict) or "row_tokens" not in data:
            return data
        tokens = data["row_tokens"]
        return {name: value for name, value in data.items() if name != "row_tokens"} | {
            "budget": {"text_tokens": tokens}
        }

    def keeps(self, conversation: Conversation) -> bool:
        """Whether this stage teaches the conversation."""
        if self.tasks and conversation.task not in self.tasks:
            return False
        if self.languages and conversation.language not in self.languages:
            return False
        return all(
            low <= float(conversation.attributes[name]) <= high
            for name, (low, high) in self.ranges.items()
            if name in conversation.attributes
        )

    def check(self, dataset: Dataset, place: str) -> Sequence[Conversation]:
        rows = dataset.split("train")
        kept = [conversation for conversation in rows if self.keeps(conversation)]
        if kept:
            return kept
        wanted = ", ".join(self.tasks) or "all tasks"
        found = ", ".join(sorted({row.task or "none" for row in rows}))
        also = f" (languages: {', '.join(self.languages)})" if self.languages else ""
        raise TrainingError(
            f"no training conversation fits this stage: it wants {wanted}{also}; the data have "
            f"{len(rows):,} for training" + (f", of the tasks {found}" if rows else ""),
            field=place,
            remedy=f"Choose tasks that are there: --set {place}.objective.tasks=[NAME] ([] for all), and "
            "look at languages and ranges beside it",
        )

    def build(self, context: StageContext) -> LanguageObjective:
        return LanguageObjective(self, context)


class LanguageObjective(Objective):
    """See `LanguageObjectiveConfig`."""

    def __init__(self, config: LanguageObjectiveConfig, context: StageContext) -> None:
        self.model, self.processor, self.images = context.model, context.processor, context.images
        kept = config.check(context.dataset, "train.stages.NAME")
        self.taught = {conversation.id: conversation for conversation in kept}
        self.rows = self._encoded(kept, context)
        self.cost_of = ImageCosts(context.model, context.processor, context.images)
        self.packs = self._can_pack(config, context)
        if self.packs:
            self._pack(config.budget, context)
        self.features = FrozenFeatures(context) if context.frozen_encoder else None

    @property
    def lengths(self) -> Sequence[int]:
        return [len(row.input_ids) for row in self.rows]

    def costs(self) -> Sequence[Cost]:
        return [self._cost(row) for row in self.rows]

    def ease(self, attribute: str) -> Sequence[float]:
        return ease_of(([self.taught[name] for name in row.ids] for row in self.rows), attribute)

    @property
    def names(self) -> Sequence[str]:
        return [row.ids[0] for row in self.rows]

    def micro(self, rows: Sequence[int]) -> Micro:
        chosen = [self.rows[row] for row in rows]
        refs = [image for row in chosen for image in row.images]
        batch = collate(
            chosen,
            pad_id=0,
            images=self.features.of(refs) if self.features else self.images.inputs(refs),
            joined=self.packs and self.model.joins_rows,
        )
        return Micro(
            batch=batch,
            targets=None,
            count=int((batch.labels[:, 1:] >= 0).sum()),
            tokens=sum(len(row.input_ids) for row in chosen),
            padding=int((batch.segments < 0).sum()),
        )

    def loss(self, micro: Micro) -> torch.Tensor:
        batch = micro.batch
        return self.model.label_loss(
            batch.input_ids,
            batch.labels,
            batch.position_ids,
            batch.segments,
            self.model.image_tokens(batch.images),
            self.model.details(batch.images),
            batch.anchors,
        )[0]

    def _can_pack(self, config: LanguageObjectiveConfig, context: StageContext) -> bool:
        """Whether rows may share a prefix; says it where they are meant to and cannot.

        Raises:
            ConfigError: they must, and the language model cannot be told.
        """
        if not config.pack:
            return False
        if self.model.question_dependent:
            context.progress("not packed: images see their question", 1, 1)
            return False
        try:
            mask_plan(self.model.language_model)
        except ConfigError as error:
            if config.pack is True:
                raise
            context.progress(f"not packed: {error.fault.rule}", 1, 1)
            return False
        return True

    def _pack(self, budget: Budget, context: StageContext) -> None:
        over = sum(not budget.holds(self._cost(row)) for row in self.rows)
        if over:
            context.progress(f"{over:,} rows cost more than the budget, each stays alone", 1, 1)
        groups: dict[str, list[ModelInput]] = {}
        for row in self.rows:  # a row counts for one source of a mixture
            groups.setdefault(source_of(row.ids[0]) if context.mixed else "", []).append(row)
        self.rows = [
            packed
            for rows in groups.values()
            for packed in pack_branches(
                rows,
                image_token_id=self.processor.image_token_id,
                cost_of=self.cost_of,
                budget=budget,
            )
        ]
        self.model.join_rows()

    def _cost(self, row: ModelInput) -> Cost:
        token = self.processor.image_token_id
        return row_cost(row, image_token_id=token, cost_of=self.cost_of)

    def _encoded(self, kept: Sequence[Conversation], context: StageContext) -> list[ModelInput]:
        rows = []
        for number, conversation in enumerate(kept):
            row = self.processor.encode(conversation, self.images.size_of)
            if not bool((row.labels >= 0).any()):
                raise TrainingError(
                    "the row has no answer",
                    row=conversation.id,
                    remedy="Run medloupe check on the data",
                )
            rows.append(row)
            if number % 200 == 0 or number + 1 == len(kept):
                context.progress("encode text", number + 1, len(kept))
        return rows
