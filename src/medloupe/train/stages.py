"""A stage as a value: what trains, on what, by which objective, for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.data.mixture import Mixture
from medloupe.models.features import Precision
from medloupe.models.low_rank import LowRankConfig
from medloupe.models.vlm import Part
from medloupe.processing.packing import Budget
from medloupe.train.engines.base import Engine, EngineConfig
from medloupe.train.objectives.base import ObjectiveConfig
from medloupe.train.trackers import TrackerConfig
from medloupe.types import Split

RatedPart = Part | Literal["adapter.encoder"]
LORA_FIELDS = {"encoder": "encoder_lora", "language_model": "lora"}


class LoraConfig(LowRankConfig):
    """Low-rank adapters that a stage trains in place of a part's own weights.

    `merge` adds them to the weights when the stage ends (see `models.low_rank` for what that costs in
    bfloat16). Else they are kept: they are saved with the model, and later stages with the same fields
    go on training them.
    """

    merge: bool = True

    def adapters(self) -> LowRankConfig:
        """Without what the stage does with them."""
        return LowRankConfig(**{name: getattr(self, name) for name in LowRankConfig.model_fields})


class CurriculumConfig(Config):
    """Easy rows first. `attribute` is a number that the rows carry (a lesion's width); larger is
    easier, and a row without it is as easy as the easiest. Over the first `share` of the steps the
    pool of rows grows linearly from the easiest `start` of them to all; then epochs begin."""

    attribute: str = Field(min_length=1)
    start: float = Field(default=0.5, gt=0, le=1)
    share: float = Field(default=0.3, gt=0, lt=1)


class BestConfig(Config):
    """Which checkpoint of a stage is the best: by a metric of the evaluations while it trains (see
    `TrainConfig.evaluate_every`); of equal ones the first. It is kept beside the newest.

    `patience` evaluations in a row that are no better end the stage. With `restore` the stage ends with
    the weights of the best, else with its last ones.
    """

    metric: str = Field(min_length=1)
    mode: Literal["max", "min"] = "max"
    patience: int | None = Field(default=None, ge=1)
    restore: bool = False

    def beats(self, value: float, other: float) -> bool:
        """Whether one value is better than another."""
        return value > other if self.mode == "max" else value < other


class StageConfig(Config):
    """One stage. `trainable` names parts; with `lora`, "language_model" means its low-rank adapters alone,
    and with `encoder_lora`, "encoder" means those of the encoder. "adapter" is the model's adapter between
    layers, with its own encoder.

    `mixture` names prepared data sets to train on instead of the run's, and how much of each, in rows
    of the stage; an epoch is then the mixture's. Length is `steps`, or `epochs` over the stage's rows.
    `learning_rates` overrides `learning_rate` per part, and for the encoder inside of the adapter, to which a
    fresh adapter's gradient says little and AdamW's steps are no smaller. The rate rises linearly over the
    first `warmup` share of the steps and falls along a cosine to `min_learning_rate` times its peak.
    `batch_size` counts rows, an image or an image with all its packed questions, of all processes
    together: how many there are changes no batch. A process reads its rows of a batch one part after the
    other, each of no more than `micro_budget` (null: all at once), which changes neither loss nor
    gradients but for rounding, and for the image labels of the grounding objective. `clip` is the
    largest gradient norm.

    `optimizer` null is AdamW in the weights' own precision (fused on GPUs); `adamw_8bit` keeps its two
    moments in 8 bits (bitsandbytes). `checkpointing` computes what lies inside of layers again in the
    backward pass, instead of keeping it.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")
    objective: ObjectiveConfig
    trainable: tuple[Part, ...] = Field(min_length=1)
    lora: LoraConfig | None = None
    encoder_lora: LoraConfig | None = None
    mixture: Mixture | None = None
    learning_rate: float = Field(default=1e-4, gt=0)
    learning_rates: dict[RatedPart, float] = Field(default_factory=dict)
    steps: int | None = Field(default=None, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    micro_budget: Budget | None = None
    warmup: float = Field(default=0.03, ge=0, lt=1)
    min_learning_rate: float = Field(default=0.0, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    curriculum: CurriculumConfig | None = None
    precision: Precision = "bf16"
    optimizer: Literal["adamw", "adamw_8bit"] | None = None
    checkpointing: bool | None = None
    best: BestConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> StageConfig:
        for part in self.adapted:
            if part not in self.trainable:
                raise ValueError(f"{LORA_FIELDS[part]} needs {part!r} in trainable")
        if self.mixture is not None and self.curriculum is not None:
            raise ValueError("a stage has a mixture or a curriculum, not both")
        idle = {name for name in self.learning_rates if name.split(".")[0] not in self.trainable}
        if idle:
            raise ValueError(f"learning_rates name parts that do not train: {sorted(idle)}")
        return self

    @property
    def adapted(self) -> dict[Part, LoraConfig]:
        """The parts whose adapters train in place of their own weights."""
        fields: dict[Part, LoraConfig | None] = {
            "encoder": self.encoder_lora,
            "language_model": self.lora,
        }
        return {part: lora for part, lora in fields.items() if lora is not None}


class TrainConfig(Config):
    """All stages of a run. A checkpoint is written every `save_every` steps and at a stage's end;
    the newest `keep` are kept. `max_refused` non-finite steps in a row end the run.

    Every `evaluate_every` steps, and after a stage's last, a run asks its benchmark on
    `evaluate_split`, at most `evaluate_limit` rows of each task (null: the validation split, 32 rows).

    How the work is done changes no batch: `engine` (null: one process), `prefetch` (batches are made so
    many steps ahead, in a thread; null: 2 on a GPU, 0 on a CPU; changes no bit) and `compile` (the
    layers of the language model go through torch.compile, where it has a compiler) may differ when a
    run is resumed. So may `trackers`, which get the figures of the log.
    """

    stages: tuple[StageConfig, ...] = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=100, ge=1)
    keep: int = Field(default=2, ge=1)
    evaluate_every: int | None = Field(default=None, ge=1)
    max_refused: int = Field(default=5, ge=1)
    evaluate_split: Split | None = None
    evaluate_limit: int | None = Field(default=None, ge=1)
    engine: EngineConfig | None = None
    prefetch: int | None = Field(default=None, ge=0)
    compile: bool | None = None
    trackers: tuple[TrackerConfig, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages have one name: {names}")
        for stage in self.stages:
            if stage.best is not None and self.evaluate_every is None:
                raise ValueError(
                    f"stage {stage.name} wants its best by a metric: set evaluate_every"
                )
            if stage.optimizer == "adamw_8bit" and self.engine is not None and self.engine.shards:
                raise ValueError(
                    f"stage {stage.name}: 8-bit states cannot be sharded; set optimizer to adamw"
                )
        if self.compile and self.engine is not None and not self.engine.compiles:
            raise ValueError(
                f"the engine {self.engine.name} compiles no layers; set compile to null"
            )
        return self

    def open_engine(self) -> Engine:
        """Join the other processes of the run, if there are any: once a process.

        Raises:
            ConfigError: this process was not started as the engine needs it.
        """
        return (self.engine or EngineConfig.parse("one")).open()

    def decisive(self) -> TrainConfig:
        """What decides on the course of the training: all but how the work is done and kept."""
        free = dict.fromkeys(("engine", "prefetch", "compile", "trackers"))
        return self.model_copy(update=free | {"save_every": 1, "keep": 1})
