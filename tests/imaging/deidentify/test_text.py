"""Identifiers in text: each rule on sentences written for it, and what must not be found."""

from __future__ import annotations

import pytest

from medloupe.imaging.deidentify import find_identifiers, mask
from medloupe.imaging.deidentify.known import KnownWords, name_parts

# «…» marks what has to be found, and nothing else may be.
ENGLISH = [
    ("date", "Comparison: «2021-03-05», «03/05/2021» and «5.3.2021»."),
    ("date", "Seen on «12/10/19» and again on «1-2-20»."),
    ("date", "Scanned «20210305» at 1200 x 2000"),
    ("date", "CT of «March 5, 2021», MR of «5th of March 2021», film of «Mar 5»."),
    ("date", "Unchanged since «January 2020» and «12/2019»."),
    ("date", "Received «2021-03-05 14:22:10» and «3/5/2021 2:05 PM»."),
    ("date", "«May 5» film. May 5 mm be missed? It may 3 times."),
    ("age", "A «92»-year-old man, a «101» yo woman, aged «90»."),
    ("age", "«93»F with cough, «95» y/o, «99» years old."),
    ("phone", "Call «(555) 123-4567», «555-123-4567» or «+44 20 7946 0958»."),
    ("phone", "Pager «12345», ext. «4321»"),
    ("email", "Write to «ann.lee@st-mary.example.org» now"),
    ("url", "See «https://pacs.example.org/viewer?id=7» today"),
    ("id", "MRN: «0012345»; accession number «A123-4567»; patient ID «PX-00981»"),
    ("id", "SSN «123-45-6789», number «12345678»"),
    ("uid", "Study «1.2.840.113619.2.55.3.604688» was read"),
    ("name", "Discussed with Dr. «Jane van der Berg» and Prof. «Smith»."),
    ("name", "Mr. «O'Neil» was informed by Nurse «Ann-Marie Lee»."),
    ("name", "«John A. Smith», MD"),
    ("name", "Electronically signed by: «SMITH, JOHN»"),
    ("name", "Radiologist: «Ann Lee»\nIMPRESSION: Clear."),
    ("name", "Dictated by «Peter Quill» yesterday"),
    ("name", "Patient name: «Maria Gomez-Ruiz»"),
]
CHINESE = [
    ("date", "于«2021年3月5日»检查，与«2020年11月»片比较，«3月5日»复查。"),
    ("date", "«二〇二一年三月五日»入院"),
    ("age", "男，«92»岁；女，«101»周岁；母 88岁"),
    ("phone", "联系电话：«010-12345678»，手机«13812345678»"),
    ("id", "住院号：«H00123»，检查号 «CT20210007»，身份证号«110101199003078515»"),
    ("name", "患者姓名：«王小明» 性别：男"),
    ("name", "报告医生：«李四» 审核医师：«欧阳娜娜»"),
    ("name", "请«张»主任会诊，«陈»医生已告知。由于医生不在，改日再查。"),
]
NOTHING = [
    "The mass measures 4.5 x 3.2 x 1.1 cm, 12.5 mm deeper than L4/5; T2/FLAIR bright.",
    "Strength 5/5, grade 3/4, image 12/45, series 3. A 45-year-old woman, aged 67.",
    "SUV 2.5, HU 40-60, 120 kVp, 250 mAs, slope 1.0024, at 14:32, in 2019.",
    "BI-RADS 4A. C5-C6 disc. COVID-19 pneumonia. Right upper lobe nodule, 6mm.",
    "The patient may march home. Doctor was informed. Signed by the team.",
    "双肺纹理清晰，心影不大。左肺下叶见3mm结节，密度约35HU。",
]


def _marked(text: str) -> tuple[str, list[str]]:
    """The sentence without its marks, and what they marked."""
    wanted = [part.split("»")[0] for part in text.split("«")[1:]]
    return text.replace("«", "").replace("»", ""), wanted


@pytest.mark.parametrize(("kind", "marked"), ENGLISH + CHINESE)
def test_what_is_marked_is_found_with_its_place_and_kind(kind, marked):
    text, wanted = _marked(marked)
    found = find_identifiers(text)
    assert [text[item.start : item.end] for item in found] == wanted
    assert {item.kind for item in found} == {kind}


@pytest.mark.parametrize("text", NOTHING)
def test_findings_of_a_report_are_no_identifiers(text):
    assert find_identifiers(text) == ()


def test_a_language_leaves_out_the_rules_of_the_other():
    text = "Dr. Smith，报告医生：李四，2021-03-05"
    assert [f.kind for f in find_identifiers(text)] == ["name", "name", "date"]
    assert [f.rule for f in find_identifiers(text, language="en")] == ["title", "year-month-day"]
    assert [f.rule for f in find_identifiers(text, language="zh")] == ["姓名", "year-month-day"]


def test_known_names_are_found_without_any_title():
    names = ["Quill^Peter^J^Dr^MD", "Wang^XiaoDong=王^小东", "Li^Bo"]
    text = "QUILL was seen; quill-peter, Md. Peterson not; 王小东复查。 li and Li, bo. Smith_QUILL"
    found = find_identifiers(text, known_names=names)
    assert [text[f.start : f.end] for f in found] == [
        *("QUILL", "quill", "peter", "王小东", "Li", "QUILL"),
    ]
    assert {f.rule for f in found} == {"known"}


def test_known_numbers_are_found_as_a_whole():
    text = "For a-77 012 and A-77/012, not A-77 or 012; St. Mary  Hospital"
    found = find_identifiers(text, known_ids=["A-77-012", "St Mary Hospital"])
    words = [text[f.start : f.end] for f in found]
    assert words == ["a-77 012", "A-77/012", "St. Mary  Hospital"]


def test_the_words_of_a_person_name():
    # PS3.5 6.2.1.1: family^given^middle^prefix^suffix, scripts apart by "="
    assert name_parts(["Yamada^Tarou^X^Dr^MD=山田^太郎"]) == [
        "Yamada",
        "Tarou",
        "山田",
        "太郎",
        "山田太郎",
    ]
    assert name_parts(["----", "", "^^^", "A^B"]) == []
    assert KnownWords(["Chest^Ann"]).is_all(" CHEST ")
    assert not KnownWords(["Chest^Ann"]).is_all("CHEST PA")


def test_overlapping_findings_become_one_and_every_letter_is_masked():
    # a name by its title, and a known name that begins inside it and ends behind it
    text = "Dr. Anna Berg (Smith) came"
    found = find_identifiers(text, known_ids=["Berg (Smith)"])
    assert [text[f.start : f.end] for f in found] == ["Anna Berg (Smith"]
    assert mask(text, found) == "Dr. [ID]) came"


def test_masking_keeps_everything_else():
    text = "Dr. Lee saw MRN 0012345 on 2021-03-05."
    assert mask(text, find_identifiers(text)) == "Dr. [NAME] saw MRN [ID] on [DATE]."
    assert mask("clear", find_identifiers("clear")) == "clear"


@pytest.mark.parametrize(
    "unit",
    ["A", "1", "1.", "a.", "A. ", "Dr. Ab ", "2021-", "a@", "(0", "Name: ", "王", "0x", "1-"],
)
def test_hostile_text_takes_time_in_proportion_to_its_length(unit):
    # a quadratic rule needs minutes for this, and the suite's time limit tells
    assert len(find_identifiers(unit * (60_000 // len(unit)))) < 60_000


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("SMITH, H. Stable.", "[NAME] Stable."),
        ("Smith, H", "[NAME]"),
        ("Smith H.J. said", "[NAME] said"),
        ("seen by H. Smith again", "seen by [NAME] again"),
        ("by J.-H. Smith, MD", "by [NAME], MD"),
        ("Smith H agrees", "[NAME] agrees"),
        ("hepatitis C. Smith was seen", "hepatitis C. [NAME] was seen"),
        ("Smith. A nodule in T2", "[NAME]. A nodule in T2"),
        ("Smith CT and Smith T2", "[NAME] CT and [NAME] T2"),
        ("Smith A nodule", "[NAME] A nodule"),
    ],
)
def test_initials_beside_a_known_name_go_with_it(text, masked):
    assert mask(text, find_identifiers(text, known_names=["Smith^Harry"])) == masked
