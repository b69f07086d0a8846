"""All named benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from medloupe.errors import ConfigError, did_you_mean
from medloupe.evaluate.benchmarks.base import NamedBenchmark
from medloupe.evaluate.benchmarks.images import IMAGES
from medloupe.evaluate.benchmarks.radiographs import RADIOGRAPHS
from medloupe.evaluate.benchmarks.starter import STARTER
from medloupe.evaluate.benchmarks.volumes import VOLUMES
from medloupe.evaluate.benchmarks.vqa import VQA

BENCHMARKS: Final[Mapping[str, NamedBenchmark]] = {
    found.name: found for found in (*VQA, *RADIOGRAPHS, *IMAGES, *VOLUMES, *STARTER)
}


def named_benchmark(name: str) -> NamedBenchmark:
    """The benchmark of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in BENCHMARKS:
        raise ConfigError(
            f"unknown benchmark {name!r}; {did_you_mean(name, BENCHMARKS)}",
            remedy="medloupe benchmarks list shows them",
        )
    return BENCHMARKS[name]
