"""The whole of a run as one value: data, model, processor, stages, evaluation.

The encoder says at which size and with which mean and standard deviation it wants its pixels. A recipe
leaves these three fields of `processor.transform` out and they are filled in; where a file states
them, they must agree. So it is with the detail view of an adapter: `processor.transform` names the base's
view, and that of the adapter's encoder is joined to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from medloupe.config import Config
from medloupe.data.audit import GateConfig
from medloupe.data.datasets.base import DatasetConfig
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.probes import Probe, default_probes
from medloupe.generate import GenerateConfig
from medloupe.imaging.composed import DetailedTransform
from medloupe.imaging.views import ViewTransform
from medloupe.models.adapters import AdapterConfig
from medloupe.models.connectors import ConnectorConfig
from medloupe.models.encoders import EncoderConfig, undecided
from medloupe.models.language import LanguageConfig
from medloupe.models.vlm import ALL_PARTS, PARTS
from medloupe.models.warm import StartConfig
from medloupe.processing import ProcessorConfig
from medloupe.train import TrainConfig
from medloupe.train.lora import check_adapters
from medloupe.train.preflight import check_parts

# What changes the view if it is set.
_VIEWED = ("model.encoder.", "model.encoder=", "model.adapter.", "model.adapter=")
_TRANSFORM = "processor.transform"


class ModelConfig(Config):
    """The parts that `VisionLanguageModel.compose` joins, and where some of them begin instead: with
    weights of another run."""

    encoder: EncoderConfig
    connector: ConnectorConfig
    language: LanguageConfig = LanguageConfig()
    adapter: AdapterConfig | None = None
    start: StartConfig | None = None

    def fitted(self, transform: ViewTransform) -> ViewTransform:
        """The transform that makes the views of the encoder, and of the adapter where it reads some.

        Raises:
            ConfigError: it states what one of them cannot take.
        """
        if self.adapter is None:
            return self.encoder.fitted(transform)
        if isinstance(transform, DetailedTransform):
            base = self.encoder.fitted(transform.base)
            view: ViewTransform = transform.model_copy(update={"base": base})
        else:
            view = self.encoder.fitted(transform)
        return self.adapter.for_base(self.encoder).fitted(view)


class EvaluateConfig(Config):
    """What is asked and how it is decoded. The benchmark decides the number of new tokens.

    Each of the `probes` asks the rows to which it applies once more; [] saves these passes.
    """

    benchmark: Benchmark
    generate: GenerateConfig = GenerateConfig()
    probes: tuple[Probe, ...] = Field(default_factory=default_probes)

    def decoding(self) -> GenerateConfig:
        """`generate` with the benchmark's limit."""
        limit = {"max_new_tokens": self.benchmark.max_new_tokens}
        return self.generate.model_copy(update=limit)


class RunConfig(Config):
    """See the module's docstring. `seed` draws the connector's first weights and the image-blind
    pairs; the order of training rows has its own in `train.seed`.

    `store` is the folder in which decoded images are kept between epochs and runs, 16 GiB at most:
    `cache` stands for `views` in MedLoupe's cache folder (`MEDLOUPE_CACHE`), null keeps none. It
    changes no bit of what a model sees. The pixels there are those of the data: guard them alike.

    `features` is where the features of a frozen encoder are kept: null in memory (4 GiB at most, for
    the run), `cache` or a folder also on disk (8 GiB, for other runs too), `off` nowhere: then images are
    encoded whenever a batch has them, together and in the stage's precision, which on a fast GPU may cost
    less than reading.
    """

    name: str = Field(min_length=1)
    description: str = ""
    data: DatasetConfig
    model: ModelConfig
    processor: ProcessorConfig = ProcessorConfig()
    train: TrainConfig
    evaluate: EvaluateConfig
    audit: GateConfig = GateConfig()
    store: str | None = Field(default="cache", min_length=1)
    features: str | None = Field(default=None, min_length=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fit_view(self) -> Self:
        fitted = self.model.fitted(self.processor.transform)
        # frozen for everybody else: the value is still being made here
        self.__dict__["processor"] = self.processor.model_copy(update={"transform": fitted})
        return self

    @model_validator(mode="after")
    def _fit_stages(self) -> Self:
        is_quantized = self.model.language.quantization != "none"
        check_parts(self.train.stages, PARTS if self.model.adapter is None else ALL_PARTS)
        check_adapters(self.train.stages, {}, quantized=is_quantized)
        return self

    def with_overrides(self, assignments: Sequence[str]) -> Self:
        """As `Config.with_overrides`; the view follows another encoder or adapter unless it is set as
        well."""
        viewed = [item for item in assignments if item.startswith(_VIEWED)]
        if not viewed or any(
            item.startswith((f"{_TRANSFORM}.", f"{_TRANSFORM}=")) for item in assignments
        ):
            return super().with_overrides(assignments)
        given = self.processor.transform
        base = given.base if isinstance(given, DetailedTransform) else given
        # what trains may change with what there is to train, so both are set before they are checked
        train = [item for item in assignments if item.startswith("train.")]
        data = self.to_dict() | {
            "model": self.model.with_overrides(_below("model.", viewed)).to_dict(),
            "train": self.train.with_overrides(_below("train.", train)).to_dict(),
        }
        data["processor"]["transform"] = undecided(base.to_dict())
        changed = type(self).parse(data)
        others = [item for item in assignments if item not in (*viewed, *train)]
        return super(RunConfig, changed).with_overrides(others)


def _below(prefix: str, assignments: Sequence[str]) -> list[str]:
    return [item.removeprefix(prefix) for item in assignments]
