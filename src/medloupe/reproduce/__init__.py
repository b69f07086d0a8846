"""Grids of runs that ask a paper's questions again. Adding one is one function in `grids`."""

from medloupe.reproduce.grid import Claim, Grid, Measure, Row
from medloupe.reproduce.runner import Reproduction

__all__ = ["Claim", "Grid", "Measure", "Reproduction", "Row"]
