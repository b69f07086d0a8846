"""What a draft can be refused for, one file per reason.

`DEFAULT_FILTERS` is the order in which reasons are best read: form first, then what gives the source
away, then what the source does not say, then what it denies.
"""

from __future__ import annotations

from typing import Final

DEFAULT_FILTERS: Final = (
    "turns",
    "questions",
    "length",
    "language",
    "mentions",
    "numbers",
    "dates",
    "names",
    "unsupported",
    "negation",
    "laterality",
    "modality",
    "advice",
    "duplicates",
)
