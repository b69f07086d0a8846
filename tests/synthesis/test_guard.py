"""What may not leave this machine, and what counts as leaving it."""

from __future__ import annotations

import pytest

from medloupe.data.dataset import DatasetCard
from medloupe.data.datasets.mimic_cxr import MimicCxrConfig
from medloupe.endpoints import is_local
from medloupe.synthesis.guard import flags, forbids_external, permits, refuse_external
from medloupe.synthesis.types import SourceRow, SynthesisError
from medloupe.types import Box

PHYSIONET = "PhysioNet Credentialed Health Data License 1.5.0"


def known(dataset: str = "mine", licence: str = "", access: str = "") -> str | None:
    return forbids_external(dataset=dataset, licence=licence, access=access)


@pytest.mark.parametrize(
    "dataset",
    ["mimic_cxr", "MIMIC-CXR", "mimic-cxr-jpg", "MIMIC CXR 2.0", "mimiciv", "vindr_cxr", "VinDr-Mammo",
     "CheXpert Plus", "eICU", "PadChest", "i2b2_2010", "mimiccxr", "physionet_mimic_cxr", "my_mimic_cxr",
     "PhysioNet MIMIC-CXR", "our-MS-CXR-T", "the UK Biobank"],
)  # fmt: skip
def test_a_credentialed_set_is_known_by_its_name(dataset: str) -> None:
    assert "its name" in str(known(dataset))


@pytest.mark.parametrize(
    "text",
    [
        PHYSIONET,
        "PhysioNet Restricted Health Data Use Agreement",
        "credentialed: a PhysioNet account with CITI training",
        "under a data use agreement with the hospital",
        "Signed DUA required",
        "not public",
        "internal use only",
        "The text may not be shared with third parties",
        "confidential",
        "需签署数据使用协议",
        "院内数据，不得外传",
        "仅限院内使用",
    ],
)
def test_an_agreement_is_known_by_its_words(text: str) -> None:
    assert "its licence" in str(known(licence=text))
    assert "its access" in str(known(access=text))


@pytest.mark.parametrize(
    ("dataset", "licence", "access"),
    [
        ("vqa_rad", "CC0", "https://osf.io/89kps/"),
        ("iu_xray", "CC BY-NC-ND 4.0", "open: https://openi.nlm.nih.gov/faq"),
        ("slake", "CC BY 4.0", "open: https://www.med-vqa.com/slake"),
        ("mine", "MIT", "open, no data use agreement"),
        ("mine", "MIT", "without a data use agreement"),
        ("mine", "MIT", "无需签署数据使用协议"),
        ("minimical", "", ""),
        ("pmc", "CC BY", "city of Berlin, open"),
        ("", "", ""),
    ],
)
def test_open_sources_are_let_through(dataset: str, licence: str, access: str) -> None:
    assert known(dataset, licence, access) is None
    refuse_external(SourceRow(id="r", dataset=dataset, licence=licence, access=access), "gpt", "")


def test_the_cards_of_this_package_are_known() -> None:
    card = MimicCxrConfig()._card()
    with pytest.raises(SynthesisError, match="its name, 'mimic_cxr'"):
        refuse_external(card, "gpt", "")
    renamed = card.model_copy(update={"name": "chest"})
    with pytest.raises(SynthesisError, match="its licence, which says 'PhysioNet Credentialed"):
        refuse_external(renamed, "gpt", "")
    with pytest.raises(SynthesisError, match="its access"):
        refuse_external(renamed.model_copy(update={"licence": ""}), "gpt", "")


def test_a_refusal_names_the_row_the_teacher_and_the_way_out() -> None:
    row = SourceRow(id="r7", dataset="mimic_cxr")
    with pytest.raises(SynthesisError) as caught:
        refuse_external(row, "gpt-x", "")
    said = str(caught.value)
    assert caught.value.fault.row == "r7"
    assert caught.value.fault.field == "permission"
    assert "'gpt-x'" in said
    assert "set permission to a sentence that says so and names 'mimic_cxr'" in said


@pytest.mark.parametrize(
    ("permission", "dataset", "permitted"),
    [
        ("Our agreement lets MIMIC-CXR go to this endpoint.", "mimic_cxr", True),
        ("mimic_cxr: Bedrock, no retention", "mimic_cxr", True),
        ("mimic_cxr_jpg may go", "mimic_cxr", False),
        ("MIMIC-CXR-JPG may go", "mimic_cxr", False),
        ("vindr_cxr may go", "mimic_cxr", False),
        ("yes", "mimic_cxr", False),
        ("", "mimic_cxr", False),
        ("all of it", "", False),
        ("允许发送本院胸片", "本院胸片", True),
    ],
)
def test_permission_has_to_name_the_data_set(
    permission: str, dataset: str, permitted: bool
) -> None:
    assert permits(permission, dataset) is permitted
    source = DatasetCard(name=dataset or "x", licence=PHYSIONET)
    row = SourceRow(id="r", dataset=dataset, licence=PHYSIONET)
    if permitted:
        refuse_external(source, "gpt", permission)
        refuse_external(row, "gpt", permission)
    else:
        with pytest.raises(SynthesisError):
            refuse_external(row, "gpt", permission)


# Where an address leads.


def resolving(*addresses: str) -> object:
    return lambda _: addresses


@pytest.mark.parametrize(
    ("url", "addresses", "local"),
    [
        ("http://localhost:8000/v1", ["127.0.0.1", "::1"], True),
        ("http://gpu.lan/v1", ["192.168.1.20"], True),
        ("http://gpu", ["10.1.2.3"], True),
        ("http://gpu", ["172.31.0.1"], True),
        ("http://gpu", ["172.32.0.1"], False),
        ("http://gpu", ["fd00::1"], True),
        ("http://gpu", ["::ffff:10.0.0.1"], True),
        ("http://gpu", ["::ffff:8.8.8.8"], False),
        ("https://api.example.com", ["93.184.216.34"], False),
        ("http://both", ["10.0.0.1", "93.184.216.34"], False),
        ("http://nothing", [], False),
        ("http://metadata", ["169.254.169.254"], False),
        ("http://carrier", ["100.64.0.1"], False),
        ("http://zero", ["0.0.0.0"], False),
        ("http://link", ["fe80::1%eth0"], False),
        ("http://odd", ["not an address"], False),
        ("unix:///run/teacher.sock", ["127.0.0.1"], False),
        ("http://[oops", ["127.0.0.1"], False),
        ("ftp://localhost", ["127.0.0.1"], False),
        ("localhost:8000", ["127.0.0.1"], False),
        ("", ["127.0.0.1"], False),
    ],
)
def test_is_local(url: str, addresses: list[str], local: bool) -> None:
    assert is_local(url, resolve=lambda _: addresses) is local


def test_the_host_is_what_is_resolved_not_the_user_before_it() -> None:
    asked = []
    is_local("http://127.0.0.1@evil.example/v1", resolve=lambda host: asked.append(host) or [])
    is_local("http://gpu.lan./v1", resolve=lambda host: asked.append(host) or [])
    assert asked == ["evil.example", "gpu.lan."], "a search domain may make the dot matter"


def test_a_name_that_cannot_be_resolved_is_elsewhere() -> None:
    def fails(host: str) -> list[str]:
        raise OSError("no such host")

    assert not is_local("http://gpu", resolve=fails)


def test_loopback_numbers_are_local_without_asking_anybody() -> None:
    assert is_local("http://127.0.0.1:11434/v1")
    assert is_local("http://[::1]:8000")


# What a text gives away.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Seen on 2019-05-03 by Dr. Miller.", ("1 date", "1 name")),
        ("Compared with May 3, 2019 and 04/12/2018.", ("2 dates",)),
        ("患者姓名：王小明，2019年5月3日。", ("1 date", "1 name")),
        ("MRN: 00123456", ("1 id",)),
        ("A nodule in the right lung, 5 mm.", ()),
        ("", ()),
    ],
)
def test_flags_say_how_many_of_what_and_never_what(text: str, found: tuple[str, ...]) -> None:
    assert flags(SourceRow(id="r", text=text)) == found


def test_flags_look_at_every_part_and_count_repeated_text_once() -> None:
    said = "Seen on 2019-05-03."
    whole = SourceRow(id="r", kind="report", text=said, sections={"findings": said})
    assert flags(whole) == ("1 date",)
    assert flags(SourceRow(id="r", mentions=("By Dr. Miller.",))) == ("1 name",)
    assert flags(SourceRow(id="r", sections={"prior": "Tel: 555-123-4567"})) == ("1 phone",)
    box = Box(label="cyst", x1=1, y1=2, x2=3, y2=4)
    for part in (
        {"labels": ("Seen_by Dr. Miller",)},
        {"modality": "X-ray, by Dr. Miller"},
        {"anatomy": "chest (Dr. Miller)"},
        {"boxes": (box.model_copy(update={"label": "cyst, Dr. Miller"}),)},
        {"boxes": (box.model_copy(update={"words": ("by", "Dr. Miller")}),)},
        {"sections": {"Dr. Miller": "A band."}},
    ):
        assert flags(SourceRow.parse({"id": "r"} | part)) == ("1 name",), part
