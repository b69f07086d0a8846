"""Record -> Conversation: one function for each kind of task."""

from medloupe.data.builders.base import Piece, Said, dialogue, pieces, turn
from medloupe.data.builders.compare import compare
from medloupe.data.builders.interleave import interleave
from medloupe.data.builders.questions import ask, classify, converse, label_all, presence
from medloupe.data.builders.regions import describe_region, diagnose, ground, identify, refer
from medloupe.data.builders.reports import caption, report

__all__ = [
    "Piece",
    "Said",
    "ask",
    "caption",
    "classify",
    "compare",
    "converse",
    "describe_region",
    "diagnose",
    "dialogue",
    "ground",
    "identify",
    "interleave",
    "label_all",
    "pieces",
    "presence",
    "refer",
    "report",
    "turn",
]
