"""PS3.15 Annex E on data sets: the whole table, every level, and what is left of planted words."""

from __future__ import annotations

import hashlib
import io
from datetime import timedelta

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medloupe import errors
from medloupe.imaging.deidentify import DeidentifyConfig, PseudonymKey, deidentify_dataset
from medloupe.imaging.deidentify.dataset import known_of, shifted
from medloupe.imaging.deidentify.profile import Profile, table

KEY = PseudonymKey(b"0123456789abcdef0123456789abcdef")
# Rows of Table E.1-1 (2024b), typed from the standard: what the package's lists must say.
ROWS = {
    "AccessionNumber": "Z",
    "AcquisitionDate": "X/Z",
    "AcquisitionDateTime": "X/Z/D",
    "ContentDate": "Z/D",
    "ContentSequence": "D",
    "DeviceSerialNumber": "X/Z/D",
    "DigitalSignaturesSequence": "X",
    "FrameOfReferenceUID": "U",
    "IconImageSequence": "X",
    "ImageComments": "X",
    "InstitutionName": "X/Z/D",
    "OperatorsName": "X/Z/D",
    "OriginalAttributesSequence": "X",
    "OtherPatientIDs": "X",
    "PatientAddress": "X",
    "PatientAge": "X",
    "PatientBirthDate": "Z",
    "PatientID": "Z/D",
    "PatientName": "Z",
    "PatientSex": "Z",
    "PersonName": "D",
    "ProtocolName": "X/D",
    "ReferencedImageSequence": "X/Z/U*",
    "ReferringPhysicianName": "Z",
    "RequestAttributesSequence": "X",
    "SOPInstanceUID": "U",
    "SeriesDescription": "X",
    "SeriesInstanceUID": "U",
    "StationName": "X/Z/D",
    "StudyDate": "Z",
    "StudyDescription": "X",
    "StudyID": "Z",
    "StudyInstanceUID": "U",
    "TextString": "X",
    "TimezoneOffsetFromUTC": "X",
}
ALLOWED = {  # PS3.15 Table E.1-1a: what may be done for each code
    "X": {"remove"},
    "Z": {"empty", "replace"},
    "D": {"replace"},
    "U": {"uid"},
    "X/Z": {"empty", "replace"},  # allowed by every type of attribute
    "Z/D": {"replace"},
    "X/D": {"replace"},
    "X/Z/D": {"replace"},
    "X/Z/U*": {"walk", "empty"},
}
# A value for every VR of the table that could tell who somebody is.
VALUES = {
    **dict.fromkeys(("LO", "LT", "PN", "SH", "ST", "UC", "UT"), "PLANTED"),
    **dict.fromkeys(("AE", "CS"), "PLANTED"),
    **dict.fromkeys(("DS", "IS"), "77"),
    **dict.fromkeys(("FD", "FL", "SL", "SS", "UL", "US"), 77),
    **dict.fromkeys(("OB", "OW", "UN", "OB or OW"), b"PLANTED "),
    "AS": "077Y",
    "DA": "20200229",
    "DT": "20200229112233.5",
    "TM": "112233.5",
    "UI": "1.2.3.77",
    "UR": "http://planted.example",
}


def _written(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _base() -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    dataset.PatientID = "PID-4711"
    return dataset


def _item(**elements: object) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


@pytest.mark.parametrize("keyword", ROWS)
def test_the_table_says_what_the_standard_says(keyword):
    tag = Tag(keyword)
    assert Profile(DeidentifyConfig()).action(tag, dictionary_VR(tag)) in ALLOWED[ROWS[keyword]]


def test_the_table_has_every_row():
    exact, ranges = table()
    assert len(exact) == 652  # 2026c: 617 rows of 2024b and 35 new ones
    assert len(ranges) == 3  # curves, overlay data, overlay comments
    profile = Profile(DeidentifyConfig())
    for tag, vr in ((0x50020010, "US"), (0x60023000, "OW"), (0x60024000, "LT"), (0x60020010, "US")):
        assert profile.action(Tag(tag), vr) == "remove"


@pytest.mark.parametrize("nested", [False, True])
def test_every_attribute_of_the_table_is_gone_emptied_or_replaced(nested):
    dataset, actions = _base(), table()[0]
    holder = dataset
    if nested:  # in a sequence that the table does not name, below another one
        dataset.SharedFunctionalGroupsSequence = Sequence([Dataset()])
        outer = dataset.SharedFunctionalGroupsSequence[0]
        outer.FrameAnatomySequence = Sequence([Dataset()])
        holder = outer.FrameAnatomySequence[0]
    # command and meta elements stand elsewhere; the newest attributes are unknown to pydicom's dictionary
    tags = [Tag(tag) for tag in actions if tag >> 16 > 2 and dictionary_has_tag(tag)]
    for tag in tags:
        vr = dictionary_VR(tag)
        value = Sequence([_item(CodeMeaning="PLANTED")]) if vr == "SQ" else VALUES[vr]
        holder.add_new(tag, vr, value)
    deidentify_dataset(dataset, KEY)
    content = _written(dataset)
    assert len(tags) > 600
    for tag in tags:
        element, vr = holder.get(tag), dictionary_VR(tag)
        if actions[tag] == "remove" or vr == "UN":
            assert element is None, tag
        elif vr == "UI":
            assert element.value == KEY.uid("1.2.3.77")
        elif vr != "SQ":
            assert element.value != VALUES[vr], element
            assert element.is_empty == (actions[tag] == "empty") or "Patient" in element.keyword
    for planted in (b"PLANTED", b"20200229", b"112233", b"planted.example", b"1.2.3.77", b"077Y"):
        assert planted not in content, planted


def _planted() -> Dataset:
    """A CT whose every corner tells of Jane Doe."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.preamble = b"DOEPREAMBLE".ljust(128, b"\0")
    dataset.file_meta.SourceApplicationEntityTitle = "DOE_META_AE"
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3.99"
    dataset.file_meta.PrivateInformation = b"DOE_PRIV_META "
    dataset.PatientName = "Doe-Planted^Jane=钱^小丽"
    dataset.PatientID = "MRN0099887"
    dataset.AccessionNumber = "ACC5544332"
    dataset.OtherPatientIDs = ["OLD0011223", "OLD9988776"]
    dataset.InstitutionName = "Planted Hospital"
    dataset.OperatorsName = "Operator^Olga"
    dataset.PatientBirthDate = "19310203"
    # words that stay, and must lose the names that the header gave away
    dataset.ManufacturerModelName = "Scanner of DOE-PLANTED"
    dataset.ConvolutionKernel = "olga 5"
    dataset.ScanOptions = "MRN0099887"
    dataset.InterventionDescription = "Mrs. Miller called 555-123-4567; seen in Planted Hospital"
    # nested three deep, in a sequence that stays
    deep = _item(ContentCreatorName="Deep^Diver", PatientID="MRN0099887", CodeMeaning="钱小丽")
    deep.add_new(0x00091001, "LO", "DOE_DEEP_PRIVATE")
    deep.add_new(0x00090010, "LO", "DOE_CREATOR")
    middle = _item(DerivationCodeSequence=Sequence([deep]))
    dataset.ReferencedImageSequence = Sequence(
        [_item(ReferencedSOPInstanceUID=dataset.SOPInstanceUID)]
    )
    dataset.SharedFunctionalGroupsSequence = Sequence([middle])
    dataset.RequestAttributesSequence = Sequence(
        [_item(RequestedProcedureDescription="DOE_REQUEST")]
    )
    # private, unknown, retired and trailing
    block = dataset.private_block(0x0011, "DOE_VENDOR", create=True)
    block.add_new(0x01, "UN", b"DOE_PRIVATE_UN")
    block.add_new(0x02, "SQ", Sequence([_item(PatientComments="DOE_IN_PRIVATE_SQ")]))
    dataset.add_new(0x00081234, "LO", "DOE_UNKNOWN")
    dataset.add_new(0x50000010, "US", 1)
    dataset.add_new(0x50003000, "OB", b"DOE_CURVE ")
    dataset.add_new(0x60003000, "OW", b"DOE_OVERLAY ")
    dataset.add_new(0x60004000, "LT", "DOE_OVERLAY_COMMENT")
    dataset.add_new(0xFFFCFFFC, "OB", b"DOE_PADDING ")
    return dataset


PLANTED = (
    *(
        "DOE",
        "Doe",
        "Jane",
        "MRN0099887",
        "ACC5544332",
        "OLD0011223",
        "OLD9988776",
        "Planted",
        "PLANTED",
    ),
    *(
        "Olga",
        "olga",
        "Deep",
        "Diver",
        "Miller",
        "555-123-4567",
        "19310203",
        "钱",
        "小丽",
        "1.2.3.99",
    ),
)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_no_byte_of_what_was_planted_is_left(syntax):
    dataset = _planted()
    dataset.file_meta.TransferSyntaxUID = syntax
    original = _written(dataset)
    assert all(word.encode() in original for word in PLANTED)  # or the test would prove nothing
    read = pydicom.dcmread(io.BytesIO(original))
    changes = deidentify_dataset(read, KEY)
    content = _written(read)
    assert [word for word in PLANTED if word.encode() in content] == []
    assert not any(word in change.model_dump_json() for word in PLANTED for change in changes)
    again = pydicom.dcmread(io.BytesIO(content))
    assert again.preamble == b"\0" * 128
    assert again.file_meta.TransferSyntaxUID == syntax
    assert [element.keyword for element in again.file_meta] == [
        *("FileMetaInformationGroupLength", "FileMetaInformationVersion"),
        *("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID"),
        *("ImplementationClassUID", "ImplementationVersionName"),
    ]
    assert again.file_meta.MediaStorageSOPInstanceUID == again.SOPInstanceUID
    assert again.ReferencedImageSequence[0].ReferencedSOPInstanceUID == again.SOPInstanceUID
    assert again.PatientID == again.PatientName == KEY.patient("MRN0099887")
    assert (
        again.SharedFunctionalGroupsSequence[0].DerivationCodeSequence[0].PatientID
        == again.PatientID
    )
    assert again.InterventionDescription == "Mrs. [NAME] called [PHONE]; seen in [ID]"
    assert np.array_equal(again.pixel_array, dataset.pixel_array)


def test_chinese_names_go_in_their_own_encoding_too():
    dataset = _base()
    dataset.SpecificCharacterSet = "GB18030"
    dataset.PatientName, dataset.SegmentDescription = "Wang^XiaoDong=王^小东", "王小东的病灶"
    read = pydicom.dcmread(io.BytesIO(_written(dataset)))
    deidentify_dataset(read, KEY)
    content = _written(read)
    assert "王小东".encode("gb18030") not in content
    assert pydicom.dcmread(io.BytesIO(content)).SegmentDescription == "REMOVED的病灶"


def test_the_report_names_what_was_done_and_where():
    changes = deidentify_dataset(_planted(), KEY)
    done = {(c.at, c.tag, c.keyword): (c.action, c.count) for c in changes}
    inside = "SharedFunctionalGroupsSequence.DerivationCodeSequence"
    assert done["", "(0010,0010)", "PatientName"] == ("replaced", 1)
    assert done["", "(0008,0050)", "AccessionNumber"] == ("emptied", 1)
    assert done["", "(0010,1000)", "OtherPatientIDs"] == ("removed", 1)
    assert done["", "(0008,1234)", ""] == ("removed", 1)
    assert done["", "(0008,1090)", "ManufacturerModelName"] == ("masked", 1)
    assert done[inside, "(0070,0084)", "ContentCreatorName"] == ("replaced", 1)
    assert done[inside, "(0009,1001)", ""] == ("removed", 1)


def test_the_file_says_that_and_how_it_was_deidentified():
    dataset = _base()
    deidentify_dataset(dataset, KEY, DeidentifyConfig(dates="shift", characteristics=True))
    assert dataset.PatientIdentityRemoved == "YES"
    assert dataset.LongitudinalTemporalInformationModified == "MODIFIED"
    assert dataset.DeidentificationMethod[0].startswith("MedLoupe")
    codes = [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107", "113108"]  # PS3.16 CID 7050
    plain = _base()
    deidentify_dataset(plain, KEY)
    assert plain.LongitudinalTemporalInformationModified == "REMOVED"
    assert [item.CodeValue for item in plain.DeidentificationMethodCodeSequence] == ["113100"]


def test_dates_shift_by_one_number_of_days_for_a_patient():
    config = DeidentifyConfig(dates="shift")
    one, two, other = _base(), _base(), _base()
    other.PatientID = "somebody else"
    for dataset, day in ((one, "20200228"), (two, "20200301"), (other, "20200228")):
        dataset.StudyDate = dataset.PatientBirthDate = day
        dataset.StudyTime = "101112"
        dataset.AcquisitionDateTime = f"{day}101112.5+0100"
        dataset.RadiopharmaceuticalInformationSequence = Sequence(
            [_item(RadiopharmaceuticalStartDateTime=f"{day}0900")]
        )
        deidentify_dataset(dataset, KEY, config)
    days = [pydicom.valuerep.DA(dataset.StudyDate) for dataset in (one, two, other)]
    assert days[1] - days[0] == timedelta(days=2)  # over a leap day
    assert days[0] != days[2]
    assert days[0] < pydicom.valuerep.DA("20200228")
    assert one.AcquisitionDateTime == f"{one.StudyDate}101112.5"  # without its time zone
    start = one.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime
    assert start == f"{one.StudyDate}0900"
    assert one.StudyTime == "101112"
    assert one.PatientBirthDate == ""


def test_private_and_unknown_dates_are_removed_even_where_dates_shift():
    dataset = _base()
    dataset.private_block(0x0011, "VENDOR", create=True).add_new(0x01, "DA", "20200228")
    dataset.add_new(0x00081234, "DT", "20200228101112")
    deidentify_dataset(dataset, KEY, DeidentifyConfig(dates="shift"))
    assert 0x00111001 not in dataset
    assert 0x00081234 not in dataset


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("20200301", "20200229"),
        ("2020.03.01", "20200229"),  # ACR-NEMA
        ("202003", "202002"),
        ("20200301101112.123456&0100".replace("&", "+"), "20200229101112.123456"),
        ("20200301-0500", "20200229"),
        ("not a date", None),
        ("20201399", None),
        ("00010101", None),
        ("", None),
    ],
)
def test_a_day_earlier(value, wanted):
    assert shifted(value, timedelta(days=-1)) == wanted


@pytest.mark.parametrize(
    ("age", "kept"), [("089Y", "089Y"), ("090Y", "090Y"), ("101Y", "090Y"), ("018M", "018M")]
)
def test_characteristics_stay_by_option_and_ages_stop_at_90(age, kept):
    dataset = _base()
    dataset.PatientAge, dataset.PatientSex, dataset.PatientWeight = age, "F", "61.5"
    dataset.Allergies, dataset.PatientBirthDate = "bees", "19310203"
    removed = dataset.copy()
    deidentify_dataset(dataset, KEY, DeidentifyConfig(characteristics=True))
    assert (dataset.PatientAge, dataset.PatientSex, dataset.PatientWeight) == (kept, "F", 61.5)
    assert "Allergies" not in dataset
    assert dataset.PatientBirthDate == ""
    deidentify_dataset(removed, KEY)
    assert "PatientAge" not in removed
    assert removed.PatientSex == ""


def test_uids_of_the_standard_stay_and_all_others_change():
    dataset = _base()
    dataset.FrameOfReferenceUID = "1.2.840.10008.1.4.1.1"  # Talairach brain atlas, PS3.6 Table A-2
    dataset.VolumeFrameOfReferenceUID = "1.2.3.5"  # not in the table
    dataset.IrradiationEventUID = ["1.2.3.6", "1.2.3.7"]
    dataset.AnatomicRegionSequence = Sequence(
        [_item(ContextUID="1.2.840.10008.6.1.2", CodeValue="12")]
    )
    deidentify_dataset(dataset, KEY)
    assert dataset.SOPClassUID == CTImageStorage
    assert dataset.FrameOfReferenceUID == "1.2.840.10008.1.4.1.1"
    assert dataset.VolumeFrameOfReferenceUID == KEY.uid("1.2.3.5")
    assert list(dataset.IrradiationEventUID) == [KEY.uid("1.2.3.6"), KEY.uid("1.2.3.7")]
    assert dataset.AnatomicRegionSequence[0].ContextUID == "1.2.840.10008.6.1.2"


REAL = [
    *("CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm"),
    *("MR_small_jpeg_ls_lossless.dcm", "JPEG2000.dcm", "examples_jpeg2k.dcm", "SC_rgb_jpeg.dcm"),
    *(
        "SC_rgb_jpeg_gdcm.dcm",
        "JPGExtended.dcm",
        "image_dfl.dcm",
        "rtdose.dcm",
        "SC_rgb_rle_2frame.dcm",
    ),
    *("liver_expb_1frame.dcm", "examples_palette.dcm", "JPEGLSNearLossless_16.dcm"),
]


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("name", REAL)
def test_pixels_stay_bit_for_bit_in_the_same_encoding(name):
    path = get_testdata_file(name, download=False)
    original = pydicom.dcmread(path, force=True)
    pixels = bytes(original["PixelData"].value)
    dataset = pydicom.dcmread(path, force=True)
    deidentify_dataset(dataset, KEY)
    again = pydicom.dcmread(io.BytesIO(_written(dataset)))
    syntax = original.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    assert again.file_meta.TransferSyntaxUID == syntax
    assert hashlib.sha256(again["PixelData"].value).digest() == hashlib.sha256(pixels).digest()
    for keyword in (
        "Rows",
        "Columns",
        "BitsStored",
        "PixelSpacing",
        "ImagePositionPatient",
        "RescaleSlope",
    ):
        assert again.get(keyword) == original.get(keyword)


def test_who_a_file_without_a_patient_number_belongs_to():
    dataset = _base()
    del dataset.PatientID
    dataset.StudyInstanceUID = "1.2.3"
    assert known_of(dataset).patient == "1.2.3"
    dataset.PatientName, dataset.PatientBirthDate = "Doe^Jane", "19310203"
    assert known_of(dataset).patient == "Doe^Jane|19310203"
    dataset.PatientID = " 7 "
    assert known_of(dataset).patient == "7"


def test_keys(tmp_path):
    path = tmp_path / "sub" / "k"
    made = PseudonymKey.make(path)
    assert PseudonymKey.load(path) == made
    assert path.stat().st_mode & 0o077 == 0
    assert made.secret.decode() not in repr(made)
    other = PseudonymKey.make(tmp_path / "other")
    assert made.uid("1.2.3") != other.uid("1.2.3")
    assert made.patient("1") != other.patient("1")
    assert made.check != other.check
    uid = pydicom.uid.UID(made.uid("1.2.3"))
    assert uid.is_valid
    assert uid.startswith("2.25.")
    assert all(-3650 <= made.days(str(n)) <= -1 for n in range(2000))
    (tmp_path / "short").write_text("abc\n")
    with pytest.raises(errors.ConfigError, match="could be guessed"):
        PseudonymKey.load(tmp_path / "short")
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        PseudonymKey.load(tmp_path / "none")
