"""Record -> Conversation: one function for each kind of task."""

from medloupe.data.builders.base import Piece, Said, dialogue, pieces, turn
from medloupe.data.builders.compare import (
    both_orders,
    compare,
    days_between,
    headings,
    order_in_time,
)
from medloupe.data.builders.interleave import interleave
from medloupe.data.builders.questions import ask, classify, converse, label_all, presence
from medloupe.data.builders.regions import describe_region, diagnose, ground, identify, refer
from medloupe.data.builders.reports import caption, report

__all__ = [
    "Piece",
    "Said",
    "ask",
    "both_orders",
    "caption",
    "classify",
    "compare",
    "converse",
    "days_between",
    "describe_region",
    "diagnose",
    "dialogue",
    "ground",
    "headings",
    "identify",
    "interleave",
    "label_all",
    "order_in_time",
    "pieces",
    "presence",
    "refer",
    "report",
    "turn",
]
