"""What happens to each attribute: PS3.15 Table E.1-1 as `dicom-anonymizer` ships it, and its options.

The table is the package's (DICOM edition `EDITION`), the walk is not: the package goes through the top
level of a data set only, writes the date 0001-01-01 where the table says "remove", and draws random
UIDs that no second process can repeat. Where the table leaves a choice to the object's definition (Type
1, 2 or 3), the action is taken that every definition allows: X/Z is emptied, X/D, Z/D and X/Z/D are
replaced. What the table does not name is judged by its value representation.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from pydicom.datadict import dictionary_has_tag, keyword_for_tag, repeater_has_tag
from pydicom.tag import BaseTag, Tag

from medloupe.config import Config
from medloupe.errors import MissingExtraError

Action = Literal["keep", "remove", "empty", "replace", "uid", "walk", "shift", "cap"]
EDITION: Final = "2026c"

_ACTIONS: Final[Mapping[str, Action]] = {
    "D_TAGS": "replace",
    "Z_TAGS": "empty",
    "X_TAGS": "remove",
    "U_TAGS": "uid",
    "Z_D_TAGS": "replace",
    "X_Z_TAGS": "empty",
    "X_D_TAGS": "replace",
    "X_Z_D_TAGS": "replace",
    # a sequence of references: its UIDs are replaced like all others, which every definition allows
    "X_Z_U_STAR_TAGS": "walk",
}
# Kept (K) by the Retain Patient Characteristics Option (PS3.15 E.3.7). Those that the option wants
# cleaned (allergies, patient state, pre-medication, special needs) are free text and stay removed.
CHARACTERISTICS: Final = frozenset(
    Tag(keyword)
    for keyword in (
        "EthnicGroup",
        "PatientAge",
        "PatientSex",
        "PatientSexNeutered",
        "PatientSize",
        "PatientWeight",
        "PregnancyStatus",
        "SmokingStatus",
    )
)
# Times that the Modified Dates Option (PS3.15 E.3.6) does not name: they go in any case.
_NEVER_SHIFTED: Final = frozenset(
    Tag(keyword) for keyword in ("PatientBirthDate", "PatientBirthTime", "GPSTimeStamp")
)
# UIDs of classes, codes and encodings: the same in every hospital.
_COMMON_UIDS: Final = frozenset(
    Tag(keyword)
    for keyword in (
        "SOPClassesInStudy",
        "SOPClassesSupported",
        "PertinentSOPClassesInStudy",
        "PertinentSOPClassesInSeries",
        "CodingSchemeUID",
        "ContextGroupExtensionCreatorUID",
        "ContextUID",
        "MappingResourceUID",
    )
)
_CODE_URLS: Final = frozenset((Tag("CodingSchemeURL"), Tag("URNCodeValue")))
_TEMPORAL: Final = ("DA", "DT", "TM")


class DeidentifyConfig(Config):
    """The choices of a run; a second run into the same folder must make the same.

    `dates="shift"` moves every date of a patient back by the same secret number of whole days (1 to
    3,650), so that intervals survive; the time of day stays. `characteristics` keeps sex, age (above 89
    as 90), size, weight, ethnic group, smoking and pregnancy status. `text` says what happens to report
    files: they are only listed, or copied as they are, or copied with every finding masked. `burned_in`
    says what happens to images that declare or are likely to show text in their pixels.
    """

    dates: Literal["remove", "shift"] = "remove"
    characteristics: bool = False
    text: Literal["list", "copy", "mask"] = "list"
    burned_in: Literal["withhold", "copy"] = "withhold"
    ocr: bool = False


class Profile:
    """Answers, for a tag and its VR, what the table and the options say."""

    def __init__(self, config: DeidentifyConfig) -> None:
        self._table, self._ranges = table()
        self._shift = config.dates == "shift"
        self._kept = CHARACTERISTICS if config.characteristics else frozenset()

    def action(self, tag: BaseTag, vr: str) -> Action:
        """Private attributes, those that nobody knows, and overlays without their data are removed."""
        if tag.is_private or vr == "UN":
            return "remove"
        if tag in self._kept:
            return "cap" if vr == "AS" else "keep"
        found = self._named(tag)
        if found is None and not (dictionary_has_tag(tag) or repeater_has_tag(tag)):
            return "remove"
        if self._shift and vr in _TEMPORAL and tag not in _NEVER_SHIFTED:
            return "shift"
        return found or _by_vr(tag, vr)

    def _named(self, tag: BaseTag) -> Action | None:
        """What the table says; None where it does not name the attribute."""
        if (found := self._table.get(int(tag))) is not None:
            return found
        for group, element, group_bits, element_bits in self._ranges:
            if tag.group & group_bits == group and tag.element & element_bits == element:
                return "remove"
        return None


def _by_vr(tag: BaseTag, vr: str) -> Action:
    """Attributes outside the table: what can only identify goes, UIDs change, the rest stays."""
    overlay = 0x6000 <= tag.group <= 0x60FF  # not valid without the data that the table removes
    if overlay or vr in ("PN", "AE", *_TEMPORAL):
        return "remove"
    if vr == "UR":
        return "keep" if tag in _CODE_URLS else "remove"
    if vr == "UI":
        named = keyword_for_tag(tag).removesuffix("InFile")
        common = tag in _COMMON_UIDS or named.endswith(("ClassUID", "TransferSyntaxUID"))
        return "keep" if common else "uid"
    return "walk" if vr == "SQ" else "keep"


@functools.cache
def table() -> tuple[Mapping[int, Action], tuple[tuple[int, int, int, int], ...]]:
    """Table E.1-1: the action of each tag, and (group, element, their masks) of repeating ones.

    Raises:
        MissingExtraError: `dicom-anonymizer` is not installed.
    """
    try:
        from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
    except ModuleNotFoundError:
        raise MissingExtraError.naming("dicom-anonymizer", extra="deidentify") from None
    lists = dicom_anonymization_database_selector(f"dicomfields_{EDITION}")
    exact: dict[int, Action] = {}
    ranges = []
    for name, action in _ACTIONS.items():
        for entry in lists[name]:
            if len(entry) == 2:
                exact[entry[0] << 16 | entry[1]] = action
            else:
                ranges.append(entry)
    return MappingProxyType(exact), tuple(ranges)
