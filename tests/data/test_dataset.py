"""The native form: written whole, read strictly, equal bytes for equal rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medloupe.data.dataset import DatasetCard, load_dataset, write_dataset
from medloupe.errors import DataError, LeakError
from medloupe.types import Box, Conversation, ImageRef, Message, Record, Text


def conversation(name: str = "a", **fields: Any) -> Conversation:
    asked = (
        ImageRef(uri="images/a.png"),
        Text(text="What is in "),
        Box(label="", x1=0, y1=0, x2=4, y2=4.5),
        Text(text="?"),
    )
    messages = (
        Message(role="user", content=asked),
        Message(role="assistant", content=(Text(text="积液 – a ring"),)),
    )
    return Conversation(id=name, messages=messages, **fields)


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    rows = (
        conversation("a", patient_id="p", split="train", attributes={"side": "left"}),
        conversation("b", options=("a ring", "a disc"), answer_type="closed", language="zh"),
    )
    record = Record(
        id="r",
        images=(ImageRef(uri="images/a.png", frame=0),),
        boxes=(Box(label="ring", x1=1, y1=2, x2=3, y2=4, z1=0, z2=1),),
        date_offset_days=0.0,
    )
    card = DatasetCard(name="tiny", published={"images": 9}, partial="1 of 9 images")
    written = write_dataset(tmp_path, card, rows, [record])
    assert load_dataset(tmp_path) == written
    assert written.conversations == rows
    assert written.records == (record,)
    assert written.card.counts == {"conversations": 2, "records": 1, "images": 1, "patients": 1}
    assert written.card.partial == "1 of 9 images"


def test_a_row_in_its_file_is_short_sorted_and_legible(tmp_path: Path) -> None:
    write_dataset(tmp_path, DatasetCard(name="tiny"), [conversation()])
    line = (tmp_path / "conversations.jsonl").read_text(encoding="utf-8")
    assert line == (
        '{"answer_type": "open", "id": "a", "language": "en", "messages": [{"content": ['
        '{"kind": "image", "type": "image", "uri": "images/a.png"}, '
        '{"text": "What is in ", "type": "text"}, '
        '{"image": 0, "label": "", "type": "box", "x1": 0.0, "x2": 4.0, "y1": 0.0, "y2": 4.5}, '
        '{"text": "?", "type": "text"}], "role": "user"}, '
        '{"content": [{"text": "积液 – a ring", "type": "text"}], "role": "assistant"}]}\n'
    )


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_dataset(tmp_path / name, DatasetCard(name="tiny"), [conversation()])
    for file in ("dataset.json", "conversations.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    one, two = load_dataset(tmp_path / "one"), load_dataset(tmp_path / "two")
    assert one.fingerprint() == two.fingerprint()
    other = write_dataset(tmp_path / "two", DatasetCard(name="tiny"), [conversation("b")])
    assert other.fingerprint() != one.fingerprint()


def test_a_second_write_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    write_dataset(tmp_path, DatasetCard(name="tiny"), [conversation()], [Record(id="r")])
    write_dataset(tmp_path, DatasetCard(name="tiny"), [conversation("b")])
    assert {path.name for path in tmp_path.iterdir()} == {"dataset.json", "conversations.jsonl"}


def test_a_refused_write_leaves_the_old_data_set_whole(tmp_path: Path) -> None:
    old = write_dataset(tmp_path, DatasetCard(name="tiny"), [conversation()])
    with pytest.raises(DataError, match="occurs 2 times"):
        write_dataset(tmp_path, DatasetCard(name="tiny"), [conversation("b"), conversation("b")])
    with pytest.raises(DataError, match="empty: it has no conversation"):
        write_dataset(tmp_path, DatasetCard(name="tiny"), [])
    assert load_dataset(tmp_path) == old
    assert {path.name for path in tmp_path.iterdir()} == {"dataset.json", "conversations.jsonl"}


def test_splits_are_read_by_name(tmp_path: Path) -> None:
    rows = [conversation("a", split="train"), conversation("b")]
    dataset = write_dataset(tmp_path, DatasetCard(name="tiny"), rows)
    assert dataset.split("train") == (rows[0],)
    assert dataset.split("test") == ()
    with pytest.raises(DataError, match="did you mean 'validation'"):
        dataset.split("valid")  # type: ignore[arg-type]


def test_a_patient_in_two_splits_is_refused_unless_the_card_says_so(tmp_path: Path) -> None:
    rows = [
        conversation("a", patient_id="p", split="train"),
        conversation("b", patient_id="p", split="test"),
    ]
    with pytest.raises(LeakError, match=r"patient 'p' is in train \(row 'a'\) and test"):
        write_dataset(tmp_path, DatasetCard(name="tiny"), rows)
    card = DatasetCard(name="tiny", leak="1 patient is in more than one split")
    write_dataset(tmp_path, card, rows)
    assert load_dataset(tmp_path).card.leak == card.leak
    (tmp_path / "dataset.json").write_text('{"name": "tiny"}')
    with pytest.raises(LeakError, match="patient 'p'"):
        load_dataset(tmp_path)


def test_a_folder_without_a_card_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="medloupe prepare") as error:
        load_dataset(tmp_path)
    assert error.value.fault.file == str(tmp_path / "dataset.json")


def test_a_lost_row_is_noticed_by_the_count_on_the_card(tmp_path: Path) -> None:
    write_dataset(tmp_path, DatasetCard(name="tiny"), [conversation("a"), conversation("b")])
    file = tmp_path / "conversations.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="states 2 conversations, the files hold 1"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"patient": "p"}, "patient", "unknown field. Did you mean 'patient_id'"),
        ({"split": "dev"}, "split", "'dev'"),
        ({"options": "yes"}, "options", "got 'yes'"),
        ({"attributes": {"age": 7}}, "attributes.age", "got 7"),
        ({"messages": 3}, "messages", "got 3"),
    ],
)
def test_a_wrong_field_is_named(
    folder: Any, row: Any, change: dict[str, Any], field: str, message: str
) -> None:
    root = folder({**row("a", "a.png"), **change})
    with pytest.raises(DataError) as error:
        load_dataset(root)
    fault = error.value.fault
    assert (fault.row, fault.field) == ("a", field)
    assert fault.file == str(root / "conversations.jsonl")
    assert message in str(fault)


@pytest.mark.parametrize(
    ("part", "field", "message"),
    [
        ({"type": "image", "url": "a.png"}, "content.0.uri", "the field is missing"),
        ({"type": "image", "uri": "a", "sha": "0"}, "content.0.sha", "Did you mean 'sha256'"),
        ({"type": "box", "x1": 1}, "content.0.label", "the field is missing"),
        ({"type": "pixels"}, "content.0", "'pixels'"),
        ({"text": "no type"}, "content.0", "a part has no 'type'"),
        (
            {"type": "box", "label": "", "x1": 2, "x2": 1, "y1": 0, "y2": 1},
            "content.0",
            "box corners are reversed",
        ),
    ],
)
def test_a_wrong_part_is_named_as_it_stands_in_the_file(
    folder: Any, row: Any, part: dict[str, Any], field: str, message: str
) -> None:
    bad = row("a")
    bad["messages"][0]["content"] = [part]
    with pytest.raises(DataError) as error:
        load_dataset(folder(bad))
    assert error.value.fault.field == f"messages.0.{field}"
    assert message in str(error.value)


def test_the_first_fault_says_how_many_follow(folder: Any, row: Any) -> None:
    with pytest.raises(DataError, match=r"no answer.*2 more: medloupe check"):
        load_dataset(folder(*(row(name, answer=None) for name in "abc")))


@pytest.mark.parametrize("text", ["{", '{"name": "tiny"} {', "[]", "null"])
def test_a_broken_card_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path)
    assert error.value.fault.file == str(tmp_path / "dataset.json")


def test_windows_line_ends_a_byte_order_mark_and_odd_breaks_inside_text_are_read(
    folder: Any, row: Any
) -> None:
    root = folder("")
    text = json.dumps(row("a", answer="one\u2028two"), ensure_ascii=False)
    (root / "conversations.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    answer = load_dataset(root).conversations[0].answer
    assert answer is not None
    assert answer.text == "one\u2028two"


def test_half_a_surrogate_pair_is_refused_on_reading(folder: Any, row: Any) -> None:
    with pytest.raises(DataError, match="row 'a'"):
        load_dataset(folder(row("a", answer="\ud83d")))
