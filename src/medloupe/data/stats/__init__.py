"""What a data set holds, in numbers and as a page."""

from medloupe.data.stats.numbers import DataStats, describe
from medloupe.data.stats.page import write_stats_page

__all__ = ["DataStats", "describe", "write_stats_page"]
