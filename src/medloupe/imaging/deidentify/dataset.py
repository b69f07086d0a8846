"""One DICOM data set made anonymous in place, at every level of nesting.

Elements that stay are not decoded, so pixels are written as they were read, bit for bit. What stays
and can hold words is searched for the names and numbers that the same file gave away elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID_dictionary

from medloupe import __version__
from medloupe.imaging.deidentify.key import PseudonymKey
from medloupe.imaging.deidentify.known import KnownWords, name_parts
from medloupe.imaging.deidentify.profile import EDITION, DeidentifyConfig, Profile
from medloupe.imaging.deidentify.report import Change
from medloupe.imaging.deidentify.text import OLDEST_AGE, find_identifiers, mask
from medloupe.imaging.dicom.parse import give_transfer_syntax, text

WORD_VRS: Final = ("LO", "SH", "LT", "ST", "UT", "UC")
FREE_TEXT_VRS: Final = ("LT", "ST", "UT", "UC")
_LENGTHS: Final = {"SH": 16, "LO": 64}
_FILLER: Final = "REMOVED"
_DUMMIES: Final[dict[str, object]] = {
    "AS": "000Y",
    "DA": "19000101",
    "DS": "0",
    "DT": "19000101000000",
    "IS": "0",
    "PN": _FILLER,
    "TM": "000000",
    "UR": "http://removed.invalid",
    **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"), _FILLER),
    **dict.fromkeys(("AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV", "US or SS"), 0),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "OB or OW", "UN"), b"\0" * 8),
}
# Numbers of people, looked for like their names (every PN) in all words that stay.
_TELLING: Final = tuple(
    Tag(keyword)
    for keyword in (
        "PatientID",
        "OtherPatientIDs",
        "AccessionNumber",
        "AdmissionID",
        "MedicalRecordLocator",
        "PatientTelephoneNumbers",
        "PatientAddress",
    )
)
_PLACES: Final = (Tag("InstitutionName"), Tag("InstitutionalDepartmentName"))
_SHORTEST_NUMBER: Final = 5
# Codes are compared with tables, and no hospital chooses them.
_CODES: Final = (Tag("CodeValue"), Tag("CodingSchemeDesignator"), Tag("CodingSchemeVersion"))
_PATIENT: Final = (Tag("PatientID"), Tag("PatientName"))
_BIRTH: Final = "PatientBirthDate"
_METHODS: Final = {  # PS3.16 CID 7050
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "shift": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "characteristics": ("113108", "Retain Patient Characteristics Option"),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a header says about who it belongs to. It identifies people: never written anywhere."""

    patient: str
    names: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


def known_of(dataset: Dataset) -> Known:
    """The patient's identity and every name and number by which the file tells of people.

    The identity is the Patient ID; without one the name and birth date; without these the study.
    """
    names, ids, places = [], [], []
    for element in _telling(dataset):
        values = element.value if isinstance(element.value, MultiValue) else [element.value]
        said = [str(value).strip() for value in values if str(value or "").strip()]
        if element.VR == "PN":
            names += said
        elif element.tag in _PLACES:
            places += said
        else:
            ids += [value for value in said if len(value) >= _SHORTEST_NUMBER]
    own = (text(dataset, "PatientName"), text(dataset, _BIRTH))
    identity = (text(dataset, "PatientID") or "").strip() or "|".join(filter(None, own))
    return Known(
        patient=identity or text(dataset, "StudyInstanceUID") or "",
        names=tuple(dict.fromkeys(names)),
        ids=tuple(dict.fromkeys(ids)),
        places=tuple(dict.fromkeys(places)),
    )


def deidentify_dataset(
    dataset: Dataset, key: PseudonymKey, config: DeidentifyConfig | None = None
) -> tuple[Change, ...]:
    """Apply the Basic Application Level Confidentiality Profile (PS3.15 E.2) and the options chosen.

    The file meta information and preamble are made anew (PS3.10 7.1), the transfer syntax stays.

    Raises:
        MissingExtraError: `dicom-anonymizer` is not installed.
        Any of `medloupe.imaging.dicom.parse.BROKEN`: the data set is broken.
    """
    config = config or DeidentifyConfig()
    known = known_of(dataset)
    walk = _Walk(key, config, known)
    walk.through(dataset, "")
    pseudonym = key.patient(known.patient)
    dataset.PatientName = dataset.PatientID = pseudonym
    _declare(dataset, config)
    _make_meta(dataset, key)
    return walk.changes()


class _Walk:
    """One pass through a data set and the items of its sequences."""

    def __init__(self, key: PseudonymKey, config: DeidentifyConfig, known: Known) -> None:
        self._key, self._known = key, known
        self._profile = Profile(config)
        self._days = timedelta(days=key.days(known.patient))
        words = (word for name in known.names for word in _words(name))
        self._words = KnownWords(words, known.ids)
        self._counts: Counter[tuple[str, str, str, str]] = Counter()  # at, tag, keyword, action

    def changes(self) -> tuple[Change, ...]:
        return tuple(
            Change(at=at, tag=tag, keyword=keyword, action=action, count=count)
            for (at, tag, keyword, action), count in sorted(self._counts.items())
        )

    def through(self, dataset: Dataset, at: str) -> None:
        for tag in list(dataset.keys()):
            if tag.element == 0:  # group lengths are retired (PS3.5 7.2) and would be wrong
                del dataset[tag]
                continue
            vr = vr_of(dataset, tag)
            done = self._change(dataset, tag, vr, at)
            if done:
                keyword = "" if tag.is_private else keyword_for_tag(tag)
                self._counts[at, str(tag), keyword, done] += 1

    def _change(self, dataset: Dataset, tag: BaseTag, vr: str, at: str) -> str:
        """Do what the profile says; returns what was done, "" for nothing."""
        action = self._profile.action(tag, vr)
        if action == "remove":
            del dataset[tag]
            return "removed"
        if action == "keep":
            return self._clean(dataset, tag, vr)
        element = dataset[tag]
        if action == "walk":
            return self._items(element, at)
        if element.is_empty:
            return ""
        if tag in _PATIENT:
            own = str(element.value) if tag == _PATIENT[0] else self._known.patient
            element.value = self._key.patient(own)
            return "replaced"
        if action == "empty":
            element.value = Sequence() if vr == "SQ" else b"" if vr.startswith("O") else ""
            return "emptied"
        if action == "uid":
            return self._uids(element)
        if action == "shift":
            return self._shift(element)
        if action == "cap":
            return _cap(element)
        self._dummy(element)
        return "replaced"

    def _items(self, element: DataElement, at: str) -> str:
        place = f"{at}.{element.keyword}" if at else element.keyword
        for item in element.value:
            self.through(item, place)
        return ""

    def _uids(self, element: DataElement) -> str:
        """Replace every UID that DICOM itself does not define."""
        several = isinstance(element.value, MultiValue)
        old = list(element.value) if several else [element.value]
        new = [uid if uid in UID_dictionary else self._key.uid(str(uid)) for uid in old]
        element.value = new if several else new[0]
        return "replaced" if new != old else ""

    def _shift(self, element: DataElement) -> str:
        """Move dates back (PS3.15 E.3.6); what is no date becomes a dummy. Times of day stay."""
        if element.VR == "TM":
            return ""
        several = isinstance(element.value, MultiValue)
        old = [str(value) for value in (element.value if several else [element.value])]
        new = [shifted(value, self._days) or str(_DUMMIES[element.VR]) for value in old]
        element.value = new if several else new[0]
        return "shifted"

    def _dummy(self, element: DataElement) -> None:
        """A value of the same kind that says nothing (PS3.15 E.1.1, action D); one item of a sequence."""
        if element.VR == "UI":
            self._uids(element)
        elif element.VR == "SQ":
            element.value = Sequence(list(element.value)[:1])
            for item in element.value:
                for tag in list(item.keys()):
                    if tag.is_private or self._profile.action(tag, vr_of(item, tag)) == "remove":
                        del item[tag]
                    elif not item[tag].is_empty:
                        self._dummy(item[tag])
        else:
            element.value = _DUMMIES[element.VR]

    def _clean(self, dataset: Dataset, tag: BaseTag, vr: str) -> str:
        """Mask the file's own names and numbers in words that stay, and in free text by the rules."""
        if vr not in (*WORD_VRS, "CS") or tag in _CODES:
            return ""
        element = dataset[tag]
        several = isinstance(element.value, MultiValue)
        old = [str(value or "") for value in (element.value if several else [element.value])]
        new = [self._masked(value, vr) for value in old]
        if new == old:
            return ""
        element.value = new if several else new[0]
        return "masked"

    def _masked(self, value: str, vr: str) -> str:
        if vr == "CS":  # a code is a name only if it is nothing else: CHEST is no Mrs Chester
            return _FILLER if self._words.is_all(value) else value
        clean = self._words.replaced(value, _FILLER)
        if vr in FREE_TEXT_VRS:
            clean = mask(clean, find_identifiers(clean, known_ids=self._known.places))
        return clean if len(clean) <= _LENGTHS.get(vr, len(clean)) else _FILLER


def vr_of(dataset: Dataset, tag: BaseTag) -> str:
    """The VR of an element that is not decoded yet; implicit and UN ones as the dictionary has them."""
    vr = dataset.get_item(tag).VR
    if vr in (None, "UN") and not tag.is_private and keyword_for_tag(tag):
        return str(dictionary_VR(tag))
    return str(vr or "UN")


def shifted(value: str, days: timedelta) -> str | None:
    """A DA or DT (PS3.5 6.2) moved by whole days, to the precision it had, without its time zone.

    None where it is no date.
    """
    plain = value.strip().replace(".", "", 2) if value.count(".") == 2 else value.strip()
    stem = plain.partition("+")[0].partition("-")[0]
    day, rest = stem[:8], stem[8:]
    form = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d"}.get(len(day))
    if form is None or not day.isdigit():
        return None
    try:
        moved = datetime.strptime(day, form) + days
    except (ValueError, OverflowError):
        return None
    return f"{moved.year:04}{moved:%m%d}"[: len(day)] + rest


def _cap(element: DataElement) -> str:
    """Ages above 89 years become 90 (45 CFR 164.514(b)(2)(i)(C))."""
    value = str(element.value).strip()
    if value.endswith("Y") and value[:-1].isdigit() and int(value[:-1]) > OLDEST_AGE:
        element.value = f"{OLDEST_AGE + 1:03}Y"
        return "capped"
    return ""


def _telling(dataset: Dataset) -> Iterator[DataElement]:
    """Elements at any level that name people or number them."""
    for tag in list(dataset.keys()):
        if tag.is_private:
            continue
        vr = vr_of(dataset, tag)
        if vr == "SQ":
            for item in dataset[tag].value:
                yield from _telling(item)
        elif vr == "PN" or tag in (*_TELLING, *_PLACES):
            yield dataset[tag]


def _words(name: str) -> list[str]:
    """The words of a person's name that are long enough to be looked for in other elements."""
    return [part for part in name_parts([name]) if len(part) > 2 or not part.isascii()]


def _declare(dataset: Dataset, config: DeidentifyConfig) -> None:
    """Say what was done (PS3.15 E.2, PS3.3 C.7.1.1 and C.12.1, codes of PS3.16 CID 7050)."""
    shift = config.dates == "shift"
    chosen = ["basic", *(["shift"] if shift else [])]
    chosen += ["characteristics"] if config.characteristics else []
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if shift else "REMOVED"
    dataset.DeidentificationMethod = [
        f"MedLoupe {__version__}: DICOM PS3.15 {EDITION} Annex E",
        *(_METHODS[name][1] for name in chosen),
    ]
    items = []
    for name in chosen:
        item = Dataset()
        item.CodeValue, item.CodeMeaning = _METHODS[name]
        item.CodingSchemeDesignator = "DCM"
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = Sequence(items)


def _make_meta(dataset: Dataset, key: PseudonymKey) -> None:
    """File meta information of nothing but classes, and an empty preamble (PS3.10 7.1)."""
    give_transfer_syntax(dataset)
    old = dataset.file_meta
    if not old.TransferSyntaxUID.is_implicit_VR and any(
        dataset.get_item(tag).VR is None for tag in list(dataset.keys())
    ):
        for _ in dataset.iterall():  # finds each VR: the file has none, against its transfer syntax
            pass
    made = FileMetaDataset()
    made.TransferSyntaxUID = old.TransferSyntaxUID
    made.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or old.get("MediaStorageSOPClassUID")
    made.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or key.uid(
        str(old.get("MediaStorageSOPInstanceUID"))
    )
    dataset.file_meta = made
    dataset.preamble = b"\0" * 128
