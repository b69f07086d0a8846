"""LLaVA JSON in and out: every image at its placeholder, no word lost, counts that must agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medloupe.data.dataset import Dataset, DatasetCard, load_dataset
from medloupe.data.datasets.base import DatasetConfig
from medloupe.data.llava import _parts, _value, export_llava, import_llava
from medloupe.errors import DataError, ImageError, LeakError, MedLoupeError
from medloupe.types import Box, Conversation, ImageRef, Message, Text


def turns(*values: str) -> list[dict[str, str]]:
    speakers = ("human", "gpt")
    return [{"from": speakers[i % 2], "value": value} for i, value in enumerate(values)]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., tuple[Conversation, ...]]:
    """Writes rows as LLaVA JSON and imports them again."""

    def write_and_read(*rows: Any, **options: Any) -> tuple[Conversation, ...]:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return import_llava(tmp_path / "rows.json", tmp_path, **options)

    return write_and_read


def test_images_stand_where_the_text_says(read: Any, png: Any) -> None:
    png("a.png", seed=1)
    png("b.png", seed=2)
    (row,) = read(
        {
            "id": 7,
            "image": ["b.png", "a.png"],
            "conversations": [
                {"from": "system", "value": "You read films."},
                *turns("Earlier:\n<image>\nNow: <image>\nWhat is new?", "A ring.", "Where?", "L"),
            ],
        }
    )
    assert row.id == "7"
    assert [message.role for message in row.messages] == [
        "system", "user", "assistant", "user", "assistant"
    ]  # fmt: skip
    content = row.messages[1].content
    assert [p.uri if isinstance(p, ImageRef) else p.text for p in content] == [  # type: ignore[union-attr]
        "Earlier:", "b.png", "Now: ", "a.png", "What is new?"
    ]  # fmt: skip
    assert row.images[0].sha256 != row.images[1].sha256


def test_one_file_may_be_a_string_and_no_image_is_no_fault(read: Any, png: Any) -> None:
    one = {"id": "a", "image": png("a.png"), "conversations": turns("<image>\nWhat?", "A head.")}
    two = {"id": "b", "conversations": turns("What is a loupe?", "A lens.")}
    first, second = read(one, two)
    assert first.question == "What?"
    assert [ref.uri for ref in first.images] == ["a.png"]
    assert second.images == ()


def test_volumes_have_their_own_field(read: Any, png: Any, tmp_path: Path) -> None:
    png("a.png")
    (tmp_path / "v.nii").write_bytes(b"only its name and hash matter here")
    both = turns("<image3d>\n<image>\nWhich is larger?", "The first.")
    plain = turns("<image>\nWhat is it?", "A hippocampus.")
    first, second = read(
        {"id": "a", "image": ["a.png"], "image3d": "v.nii", "conversations": both},
        {"id": "b", "image3d": ["v.nii"], "conversations": plain},
    )
    assert [(ref.uri, ref.kind) for ref in first.images] == [
        ("v.nii", "volume"),
        ("a.png", "image"),
    ]
    assert [(ref.uri, ref.kind) for ref in second.images] == [("v.nii", "volume")]


@pytest.mark.parametrize(
    ("image", "text", "said"),
    [
        (["a.png"], "<image>\n<image>\nWhat?", "the text holds 2 <image>, the field names 1 files"),
        (["a.png", "a.png"], "<image>\nWhat?", "1 <image>, the field names 2 files"),
        ("a.png", "What?", "0 <image>, the field names 1 files"),
        (None, "<image>\nWhat?", "1 <image>, the field names 0 files"),
    ],
)
def test_placeholders_and_files_must_agree(
    read: Any, png: Any, image: Any, text: str, said: str
) -> None:
    png("a.png")
    good = {"id": "good", "image": "a.png", "conversations": turns("<image>\nWhat?", "x")}
    with pytest.raises(DataError) as error:
        read(good, {"id": "case-9", "image": image, "conversations": turns(text, "x")})
    assert said in str(error.value)
    fault = error.value.fault
    assert (fault.row, fault.field) == ("case-9", "image")
    assert str(fault.file).endswith("rows.json")


def test_a_volume_too_few_is_counted_apart(read: Any, png: Any) -> None:
    row = {"id": "a", "image": png("a.png"), "conversations": turns("<image><image3d>?", "x")}
    with pytest.raises(DataError, match="1 <image3d>, the field names 0 files"):
        read(row)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "image": "gone.png", "conversations": turns("<image>?", "x")}, "gone.png"),
        ({"id": "a", "image": 5, "conversations": turns("?", "x")}, "5 is neither a file name"),
        ({"id": "a", "conversations": [{"from": "humann", "value": "?"}]}, "did you mean 'human'"),
        ({"id": "a", "conversations": [{"from": "human"}]}, "'from' and a text 'value'"),
        ({"id": "a", "conversations": turns("?", "x"), "split": "dev"}, "field 'split'"),
        ({"id": "a"}, "row number 0 is no LLaVA row"),
        ("a", "row number 0 is no LLaVA row"),
    ],
)
def test_a_malformed_row_is_named(read: Any, row: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(row)


@pytest.mark.parametrize("text", ['[{"id": "a", ', '{"id": 1}\n{', "", "[]"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError, match=r"rows\.json"):
        import_llava(tmp_path / "rows.json", tmp_path)


def test_repeated_ids_are_refused_or_numbered(read: Any) -> None:
    rows = [{"id": "a", "conversations": turns("?", str(i))} for i in range(2)]
    with pytest.raises(DataError, match="occurs 2 times"):
        read(*rows)
    assert [row.id for row in read(*rows, ids="number")] == ["row-0", "row-1"]


def test_other_keys_are_kept(read: Any) -> None:
    row = {
        "id": "a",
        "conversations": turns("Is it?", "Yes"),
        "answer_type": "CLOSED",
        "patient_id": "p",
        "domain": {"ct_scan": True},
        "age": 71,
        "attributes": {"site": "lung"},
    }
    (found,) = read(row)
    assert (found.answer_type, found.patient_id) == ("closed", "p")
    assert found.attributes == {"age": "71", "domain": '{"ct_scan": true}', "site": "lung"}


def test_json_lines_are_read_too(tmp_path: Path) -> None:
    lines = [json.dumps({"id": str(i), "conversations": turns("?", "x")}) for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    assert len(import_llava(tmp_path / "rows.jsonl", tmp_path)) == 3


def dataset_of(root: Path, *rows: Conversation) -> Dataset:
    return Dataset(root, DatasetCard(name="tiny"), rows)


def test_what_is_exported_is_plain_llava_and_imports_equal(
    read: Any, png: Any, tmp_path: Path
) -> None:
    png("a.png", seed=1)
    png("b.png", seed=2)
    rows = read(
        {"id": "a", "image": "a.png", "conversations": turns("<image>\nWhat – 何?", "A ring.")},
        {
            "id": "b",
            "image": ["a.png", "b.png"],
            "conversations": turns("<image>\n<image>\nNew?\n", "yes", "Sure?", "yes"),
            "patient_id": "p",
            "answer_type": "closed",
            "options": ["yes", "no"],
            "age": 5,
        },
        {"id": "c", "image3d": ["b.png"], "conversations": turns("See <image3d>", "ok")},
    )
    export_llava(dataset_of(tmp_path, *rows), tmp_path / "out" / "again.json")
    text = (tmp_path / "out" / "again.json").read_text(encoding="utf-8")
    plain = json.loads(text)
    assert plain[0]["image"] == "a.png"
    assert plain[0]["conversations"] == turns("<image>\nWhat – 何?", "A ring.")
    assert plain[1]["image"] == ["a.png", "b.png"]
    assert plain[2]["image3d"] == ["b.png"]
    assert import_llava(tmp_path / "out" / "again.json", tmp_path) == rows
    export_llava(dataset_of(tmp_path, *rows), tmp_path / "out" / "third.json")
    assert (tmp_path / "out" / "third.json").read_text(encoding="utf-8") == text


words = st.text(alphabet="ab \n<>", max_size=6).filter(lambda text: "<image" not in text)


@given(st.lists(st.one_of(st.just(None), words), max_size=6))
def test_text_and_images_survive_in_any_order(pieces: list[str | None]) -> None:
    """None is an image. Neighbouring texts are one text in LLaVA."""
    content: list[ImageRef | Text] = []
    for piece in pieces:
        if piece is None:
            content.append(ImageRef(uri=f"{len(content)}.png"))
        elif piece and not (content and isinstance(content[-1], Text)):
            content.append(Text(text=piece))
    message = Message(role="user", content=tuple(content))
    row = Conversation(id="a", messages=(message,))
    refs = iter([ref.to_dict() for ref in row.images])
    again = Message.parse({"role": "user", "content": _parts(_value(row, message, None), refs)})
    assert again == message


def test_what_llava_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    box = Box(label="ring", x1=0, y1=0, x2=1, y2=1)
    cases = {
        "has no boxes": (box,),
        "frame 2": (ImageRef(uri="a.dcm", frame=2),),
        "holds an image placeholder": (Text(text="the word <image>"),),
    }
    for said, content in cases.items():
        row = Conversation(id="row-x", messages=(Message(role="user", content=content),))
        with pytest.raises(DataError, match=said) as error:
            export_llava(dataset_of(tmp_path, row), tmp_path / "out.json")
        assert error.value.fault.row == "row-x"
    assert list(tmp_path.iterdir()) == []


def test_boxes_are_written_in_the_words_of_the_caller(tmp_path: Path) -> None:
    box = Box(label="ring", x1=0, y1=0, x2=1, y2=2.5)
    content = (Text(text="It is at "), box)
    row = Conversation(id="a", messages=(Message(role="assistant", content=content),))
    export_llava(
        dataset_of(tmp_path, row), tmp_path / "o.json", box_text=lambda _, b: f"<{b.x2},{b.y2}>"
    )
    plain = json.loads((tmp_path / "o.json").read_text())
    assert plain[0]["conversations"][0]["value"] == "It is at <1.0,2.5>"


def test_a_folder_becomes_a_data_set(png: Any, tmp_path: Path, progress: Any) -> None:
    rows = []
    for i in range(40):
        png(f"source/images/{i}.png", seed=i, width=5, height=4)
        rows.append({"id": i, "image": f"{i}.png", "conversations": turns("<image>\nWhat?", "x")})
    (tmp_path / "source" / "all.json").write_text(json.dumps(rows))
    config = DatasetConfig.parse({"name": "llava", "title": "mine", "licence": "CC0-1.0"})
    made = config.prepare(tmp_path / "out", root=tmp_path / "source", progress=progress)
    assert load_dataset(tmp_path / "out") == made
    assert made.card.counts["images"] == 40
    assert {row.split for row in made.conversations} == {"train", "validation", "test"}
    assert {(row.dataset, row.licence) for row in made.conversations} == {("mine", "CC0-1.0")}
    uri = made.conversations[0].images[0].uri
    copied = (tmp_path / "out" / uri).read_bytes()
    assert copied == (tmp_path / "source" / "images" / "0.png").read_bytes()


def test_one_file_a_split_and_images_left_where_they_are(
    png: Any, tmp_path: Path, progress: Any
) -> None:
    for split in ("train", "test"):
        rows = []
        for i in range(30):
            name = png(
                f"source/{split}{i}.png", seed=i + 100 * (split == "test"), width=4, height=3
            )
            rows.append(
                {"id": i, "image": Path(name).name, "conversations": turns("<image>?", "x")}
            )
        (tmp_path / "source" / f"{split}.json").write_text(json.dumps(rows))
    config = DatasetConfig.parse(
        {
            "name": "llava",
            "files": {"train": "train.json", "test": "test.json"},
            "image_folder": ".",
            "images": "reference",
            "validation": 0.3,
        }
    )
    made = config.prepare(tmp_path / "out", root=tmp_path / "source", progress=progress)
    assert len(made.split("test")) == 30
    assert {row.id.split("-")[0] for row in made.split("validation")} == {"train"}
    assert made.split("test")[0].images[0].uri == (tmp_path / "source" / "test0.png").as_posix()
    assert not (tmp_path / "out" / "images").exists()


def test_files_that_share_an_image_are_a_leak(png: Any, tmp_path: Path, progress: Any) -> None:
    png("source/images/a.png")
    rows = [{"id": 1, "image": "a.png", "conversations": turns("<image>?", "x")}]
    for split in ("train", "test"):
        (tmp_path / "source" / f"{split}.json").write_text(json.dumps(rows))
    files = {"train": "train.json", "test": "test.json"}
    config = DatasetConfig.parse({"name": "llava", "files": files})
    with pytest.raises(LeakError, match="allow_leak"):
        config.prepare(tmp_path / "out", root=tmp_path / "source", progress=progress)
    allowed = config.with_overrides(["allow_leak=true"])
    made = allowed.prepare(tmp_path / "out", root=tmp_path / "source", progress=progress)
    assert made.card.leak == "1 images are in more than one split"


def test_a_name_that_leaves_the_folder_is_kept_inside(
    png: Any, tmp_path: Path, progress: Any
) -> None:
    png("elsewhere/a.png")
    (tmp_path / "source" / "images").mkdir(parents=True)
    rows = [
        {"id": 1, "image": "../../elsewhere/a.png", "conversations": turns("<image>?", "x")},
        {"id": 2, "image": f"{tmp_path}/elsewhere/a.png", "conversations": turns("<image>?", "x")},
    ]
    (tmp_path / "source" / "rows.json").write_text(json.dumps(rows))
    made = DatasetConfig.parse("llava").prepare(
        tmp_path / "out", root=tmp_path / "source", progress=progress
    )
    for row in made.conversations:
        assert (tmp_path / "out" / row.images[0].uri).resolve().is_relative_to(tmp_path / "out")


def test_without_a_folder_or_a_file_it_says_what_is_needed(tmp_path: Path, progress: Any) -> None:
    config = DatasetConfig.parse("llava")
    for root, said in (
        (None, "--root"),
        (tmp_path / "gone", "no such folder"),
        (tmp_path, "found: none"),
    ):
        with pytest.raises(MedLoupeError, match=said):
            config.prepare(tmp_path / "out", root=root, progress=progress)


def test_a_missing_image_is_an_image_error_before_anything_is_written(
    tmp_path: Path, progress: Any
) -> None:
    rows = [{"id": 1, "image": "a.png", "conversations": turns("<image>?", "x")}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises((DataError, ImageError), match=r"row '1'.*no such image file"):
        DatasetConfig.parse("llava").prepare(tmp_path / "out", root=tmp_path, progress=progress)
    assert not (tmp_path / "out").exists()


def test_a_row_that_ends_with_the_question_is_refused(tmp_path: Path, progress: Any) -> None:
    rows = [{"id": "x1", "conversations": turns("What?")}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"row 'x1'.*the row has no answer"):
        DatasetConfig.parse("llava").prepare(tmp_path / "out", root=tmp_path, progress=progress)
