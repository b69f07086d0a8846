"""A plan as a value: printed by `medloupe plan`, compared with the papers in docs/recipes.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field

from medloupe.config import Config
from medloupe.errors import ConfigError, did_you_mean
from medloupe.recipes.config import RunConfig
from medloupe.recipes.plan.memory import GIB, Memory, Sizes, memory, sizes
from medloupe.recipes.plan.meta import Kind, build, example, set_trainable
from medloupe.recipes.plan.work import Work, count, trained
from medloupe.recipes.published import ROWS, Rows
from medloupe.train.objectives.language import LanguageObjectiveConfig
from medloupe.train.stages import StageConfig

TEXT_TOKENS = 256


class StagePlan(Config):
    """One stage. FLOPs are of a row of one image, forward by part; `recomputed` is what gradient
    checkpointing adds. `kept` and `checkpointed` are bytes of activations a row.

    `steps_per_epoch` is None where nobody published the number of rows: `rows_source` says so.
    """

    name: str
    trainable: dict[str, int]
    forward_flops: dict[str, int]
    backward_flops: int
    recomputed_flops: int
    batch: int
    kept: int
    checkpointed: int
    sizes: Sizes
    engines: tuple[Memory, ...]
    rows: int | None
    rows_source: str
    steps_per_epoch: int | None
    steps: int | None

    @property
    def row_flops(self) -> int:
        """Forward and backward of one row."""
        return sum(self.forward_flops.values()) + self.backward_flops

    @property
    def step_flops(self) -> int:
        """Forward and backward of a global batch."""
        return self.row_flops * self.batch


class Plan(Config):
    """A recipe at its real size, on `gpus` GPUs of `limit` bytes; rows of one image of `kind` and
    `text_tokens` tokens of text."""

    recipe: str
    gpus: int = Field(ge=1)
    limit: int
    kind: Kind
    encoder_tokens: int
    image_tokens: int
    text_tokens: int
    parameters: dict[str, int]
    stages: tuple[StagePlan, ...]


def make_plan(
    config: RunConfig,
    *,
    gpus: int = 1,
    memory_gib: float = 80,
    text_tokens: int = TEXT_TOKENS,
    rows: Mapping[str, int] | None = None,
) -> Plan:
    """Plan every stage; `rows` gives the number of training rows of stages by name.

    Raises:
        ConfigError: the architecture is not known offline, an image and its text are longer than a row
            may be, or `rows` names no stage.
    """
    given = dict(rows or {})
    names = [stage.name for stage in config.train.stages]
    for name in given:
        if name not in names:
            raise ConfigError(f"unknown stage {name!r}; {did_you_mean(name, names)}", field="rows")
    whole = build(config.model)
    kind: Kind = "volume" if "volume" in whole.encoder.kinds else "image"
    limit = round(memory_gib * GIB)
    counted: dict[str, Counted] = {}
    stages: list[StagePlan] = []
    for stage in config.train.stages:
        key = f"{stage.trainable} {stage.adapted} {type(stage.objective)}"
        if key not in counted:
            counted[key] = _count(config, stage, kind, text_tokens)
        found = counted[key]
        fitting = memory(found.sizes, found.work, gpus=gpus, limit=limit)
        stages.append(_stage(stage, found, fitting, rows_of(config, stage, given.get(stage.name))))
    work = next(iter(counted.values())).work
    return Plan(
        recipe=config.name,
        gpus=gpus,
        limit=limit,
        kind=kind,
        encoder_tokens=work.encoder_tokens,
        image_tokens=work.image_tokens,
        text_tokens=text_tokens,
        parameters={
            part: sum(p.numel() for p in whole.get_submodule(part).parameters())
            for part in whole.parts
        },
        stages=tuple(stages),
    )


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What depends only on which parts train."""

    sizes: Sizes
    trained: dict[str, int]
    work: Work


def _count(config: RunConfig, stage: StageConfig, kind: Kind, text_tokens: int) -> Counted:
    model = build(config.model)
    set_trainable(model, stage)
    held, trains = sizes(model, config.model.language.quantization), trained(model)
    image = example(kind, config.processor.transform, torch.bfloat16)
    work = count(model.bfloat16(), image, _text(stage, text_tokens))
    if work.tokens > config.processor.max_length:
        raise ConfigError(
            f"{work.image_tokens} image tokens and {text_tokens} of text make {work.tokens}, and a "
            f"row may have {config.processor.max_length}",
            field="processor.max_length",
            remedy="Plan with fewer tokens of text, or raise the limit",
        )
    return Counted(sizes=held, trained=trains, work=work)


def rows_of(config: RunConfig, stage: StageConfig, given: int | None) -> Rows:
    """The training rows of a stage: as given, else as published."""
    if given is not None:
        return Rows(count=given, source="given")
    found = [
        ROWS.get(name) or Rows(count=None, source=_unknown(name)) for name in _sets(config, stage)
    ]
    counts = [one.count for one in found]
    unknown = [one.source for one in found if one.count is None]
    if unknown:
        return Rows(count=None, source="; ".join(dict.fromkeys(unknown)))
    total = sum(count for count in counts if count is not None)
    return Rows(count=total, source="; ".join(one.source for one in found))


def _sets(config: RunConfig, stage: StageConfig) -> list[str]:
    """The keys of what a stage trains on in the table of published numbers."""
    if stage.mixture is not None:
        return [source.name for source in stage.mixture.sources]
    tasks = stage.objective.tasks if isinstance(stage.objective, LanguageObjectiveConfig) else ()
    return [" ".join((config.data.name, *tasks))]


def _unknown(name: str) -> str:
    return f"no published number of training rows for {name!r}"


def _text(stage: StageConfig, tokens: int) -> int:
    """Tokens of text a row; an objective on image tokens alone has none."""
    return tokens if isinstance(stage.objective, LanguageObjectiveConfig) else 0


def _stage(
    stage: StageConfig, counted: Counted, engines: tuple[Memory, ...], rows: Rows
) -> StagePlan:
    work = counted.work
    batch = stage.batch_size * stage.accumulate
    per_epoch = None if rows.count is None else math.ceil(rows.count / batch)
    whole = None if per_epoch is None else math.ceil(stage.epochs * per_epoch)
    return StagePlan(
        name=stage.name,
        trainable=counted.trained,
        forward_flops=work.forward,
        backward_flops=work.backward,
        recomputed_flops=work.recomputed,
        batch=batch,
        kept=work.kept,
        checkpointed=work.checkpointed,
        sizes=counted.sizes,
        engines=engines,
        rows=rows.count,
        rows_source=rows.source,
        steps_per_epoch=per_epoch,
        steps=stage.steps or whole,
    )
