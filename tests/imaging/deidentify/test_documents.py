"""Report files: what is masked, what stays, and where findings are said to stand."""

from __future__ import annotations

import csv
import io
import json

import pytest

from medloupe.errors import DataError
from medloupe.imaging.deidentify import PseudonymKey
from medloupe.imaging.deidentify.documents import clean_document, kind_of_column
from medloupe.imaging.deidentify.text import finder

KEY = PseudonymKey(b"0123456789abcdef0123456789abcdef")
PATIENTS = frozenset({"MRN0099887"})
FIND = finder(known_names=["Doe^Jane"], known_ids=PATIENTS)


def _clean(text: str, name: str, *, masking: bool = True) -> tuple[str, list[tuple[str, str]]]:
    made, found = clean_document(text.encode(), name, FIND, KEY, masking=masking, patients=PATIENTS)
    return made.decode(), [(item.kind, item.at) for item in found]


def test_text_keeps_all_but_its_identifiers_and_its_link_to_the_images():
    text = "Jane Doe (MRN0099887), study 1.2.840.1.2.3.4\nSeen 2021-03-05.\n"
    made, found = _clean(text, "a.txt")
    assert made == (
        f"[NAME] [NAME] ({KEY.patient('MRN0099887')}), study {KEY.uid('1.2.840.1.2.3.4')}\nSeen [DATE].\n"
    )
    assert [kind for kind, _ in found] == ["name", "name", "id", "uid", "date"]


def test_copying_changes_no_byte_and_still_reports():
    text = "\ufeffJane Doe, 2021-03-05\r\n"
    made, found = _clean(text, "a.txt", masking=False)
    assert made == text
    assert [kind for kind, _ in found] == ["name", "name", "date"]


def test_a_table_is_masked_by_its_columns_and_by_the_rules():
    table = (
        "patient_id;Name;age;report;label\r\n"
        'MRN0099887;Zoe Unknown;93;"Seen by Dr. Lee;\nno change";nodule\r\n'
        "17;;61;clear;none\r\n"
    )
    made, found = _clean(table, "a.csv")
    assert list(csv.reader(io.StringIO(made), delimiter=";")) == [
        ["patient_id", "Name", "age", "report", "label"],
        [KEY.patient("MRN0099887"), "[NAME]", "[AGE]", "Seen by Dr. [NAME];\nno change", "nodule"],
        [KEY.patient("17"), "", "61", "clear", "none"],
    ]
    assert found == [
        ("id", "row 2, column patient_id"),
        ("name", "row 2, column Name"),
        ("age", "row 2, column age"),
        ("name", "row 2, column report"),
        ("id", "row 3, column patient_id"),
    ]


def test_json_is_masked_in_values_keys_and_numbers():
    data = {
        "Jane Doe": [{"mrn": 17, "studyDate": "2021", "text": "Dr. Lee", "count": 93, "age": 93}]
    }
    made, found = _clean(json.dumps(data), "a.json")
    assert json.loads(made) == {
        "[NAME] [NAME]": [
            {
                "mrn": KEY.patient("17"),
                "studyDate": "[DATE]",
                "text": "Dr. [NAME]",
                "count": 93,
                "age": "[AGE]",
            }
        ]
    }
    assert ("name", "[NAME] [NAME][0].text") in found
    assert not any("Jane" in at for _, at in found)


def test_json_lines_stay_lines():
    made, found = _clean('{"text": "Dr. Lee"}\n\n{"text": "好"}\n', "a.jsonl")
    assert made == '{"text": "Dr. [NAME]"}\n\n{"text": "好"}\n'
    assert found == [("name", "line 1.text")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("PatientID", "patient number"),
        ("subject_id", "patient number"),
        ("MRN", "patient number"),
        ("病历号", "patient number"),
        ("Accession Number", "id"),
        ("Referring Physician", "name"),
        ("patient's name", "name"),
        ("姓名", "name"),
        ("Date of Birth", "date"),
        ("StudyDate", "date"),
        ("home_address", "address"),
        ("age_at_diagnosis", "age"),
        ("file_name", None),
        ("class_name", None),
        ("image_id", None),
        ("update", None),
        ("image", None),
        ("findings", None),
    ],
)
def test_columns_by_their_names(name, kind):
    assert kind_of_column(name) == kind


@pytest.mark.parametrize(
    ("data", "name", "rule"),
    [
        (b"\xff\xfeJ\0", "a.txt", "not UTF-8"),
        (b'{"a": ', "a.json", "not JSON"),
        (b'{"a": 1}\n{"a"', "a.jsonl", "not JSONL"),
    ],
)
def test_what_cannot_be_read_is_said(data, name, rule):
    with pytest.raises(DataError, match=rule):
        clean_document(data, name, FIND, KEY, masking=True)
