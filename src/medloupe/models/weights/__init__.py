"""Weights between this model and the checkpoints of other projects."""

from medloupe.models.weights.llava import (
    LLAVA_LANGUAGES,
    LLAVA_PREFIXES,
    from_llava,
    renamed,
    to_llava,
)
from medloupe.models.weights.naming import LoadReport, Naming, load_named
from medloupe.models.weights.published import Parts, Published
from medloupe.models.weights.read import load_published

__all__ = [
    "LLAVA_LANGUAGES",
    "LLAVA_PREFIXES",
    "LoadReport",
    "Naming",
    "Parts",
    "Published",
    "from_llava",
    "load_named",
    "load_published",
    "renamed",
    "to_llava",
]
