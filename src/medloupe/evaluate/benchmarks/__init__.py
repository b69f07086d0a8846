"""Named benchmarks: which data, which rows, how asked, how scored; each frozen. Adding one is one entry."""

from medloupe.evaluate.benchmarks.base import NamedBenchmark
from medloupe.evaluate.benchmarks.registry import BENCHMARKS, named_benchmark

__all__ = ["BENCHMARKS", "NamedBenchmark", "named_benchmark"]
