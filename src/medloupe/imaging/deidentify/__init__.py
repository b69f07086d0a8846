"""De-identification: DICOM by PS3.15 Annex E, report text by rules, originals untouched.

`deidentify` does a folder, `deidentify_dataset` one data set, `find_identifiers` one text. What is done
and what is not stands in docs/deidentify.md; a person must check the result.
"""

from __future__ import annotations

from medloupe.imaging.deidentify.dataset import deidentify_dataset
from medloupe.imaging.deidentify.key import PseudonymKey
from medloupe.imaging.deidentify.profile import DeidentifyConfig
from medloupe.imaging.deidentify.report import Change, FileRow, Summary
from medloupe.imaging.deidentify.text import Finding, find_identifiers, mask
from medloupe.imaging.deidentify.tree import deidentify

__all__ = [
    "Change",
    "DeidentifyConfig",
    "FileRow",
    "Finding",
    "PseudonymKey",
    "Summary",
    "deidentify",
    "deidentify_dataset",
    "find_identifiers",
    "mask",
]
