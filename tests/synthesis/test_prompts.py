"""Prompt sets: what a teacher is sent, and that the examples keep our own rules."""

from __future__ import annotations

import json
import re
import shutil
from importlib import resources
from pathlib import Path

import pytest
import yaml

from medloupe.errors import ConfigError
from medloupe.synthesis.filters import DEFAULT_FILTERS
from medloupe.synthesis.parse import parse
from medloupe.synthesis.prompts import PROMPT_SETS, prompt_set
from medloupe.synthesis.prompts.sets import FilePrompts, answer_json, answer_schema
from medloupe.synthesis.types import Draft, Filter, SourceRow, SynthesisError
from medloupe.types import Box

DATA = resources.files("medloupe.synthesis.prompts")
FILES = [name for name in PROMPT_SETS if name != "auto"]
CAPTION = SourceRow(
    id="r",
    text="MRI of the\nfemur.",
    mentions=("A mass is seen (Fig. 2).", "It is bright."),
    modality="MRI",
)


class Nothing:
    def matches(self, _: str, /) -> tuple[str, ...]:
        return ()

    def note(self, _: str, __: str, /) -> None:
        return


def load(name: str) -> FilePrompts:
    found = prompt_set(name)
    assert isinstance(found, FilePrompts)
    return found


def test_every_file_is_named_and_every_name_has_a_file() -> None:
    here = sorted(path.name.removesuffix(".yaml") for path in DATA.joinpath("sets").iterdir())
    assert here == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_examples_pass_every_filter(name: str) -> None:
    prompts = load(name)
    assert len(prompts.examples) >= 2
    for example in prompts.examples:
        assert (example.source.kind, example.source.language) == (
            prompts.file.kind,
            prompts.file.language,
        )
        draft = parse(answer_json(example.turns), example.source)
        assert draft.turns == example.turns
        assert prompts.file.fewest <= len(draft.turns) <= prompts.file.most
        for judge in map(Filter.parse, DEFAULT_FILTERS):
            assert judge.judge(example.source, draft, Nothing()) is None, example.source.id


@pytest.mark.parametrize("name", FILES)
def test_messages_are_system_examples_row(name: str) -> None:
    prompts = load(name)
    row = SourceRow(
        id="r", kind=prompts.file.kind, language=prompts.file.language, text="UNIQUE TEXT"
    )
    messages = prompts.messages(row)
    roles = [message["role"] for message in messages]
    assert roles == ["system", *["user", "assistant"] * len(prompts.examples), "user"]
    assert "UNIQUE TEXT" in messages[-1]["content"]
    assert all("UNIQUE TEXT" not in message["content"] for message in messages[:-1])
    for rule in prompts.file.rules:
        assert rule in messages[0]["content"]


@pytest.mark.parametrize("name", FILES)
def test_a_row_of_another_kind_or_language_is_refused(name: str) -> None:
    prompts = load(name)
    other = "report" if prompts.file.kind != "report" else "caption"
    with pytest.raises(SynthesisError, match='Set prompts to "auto"'):
        prompts.messages(SourceRow(id="r", kind=other, language=prompts.file.language))


def test_both_prompts_of_the_paper_ask_for_what_it_asks_for() -> None:
    """Table 6: visual aspects only, the three words, diversity, 2-3 turns, no advice, professional."""
    for name in ("caption", "caption_llava_med"):
        text = load(name).messages(CAPTION)[0]["content"]
        for word in (
            "visual", "abbreviations", "dates", "numbers", "names", '"mentioned"', '"caption"',
            '"context"', '"in the image"', "two or three" if name == "caption" else "Two to three",
            "medical advice", "healthcare professional",
        ):  # fmt: skip
            assert word in text.replace("“", '"').replace("”", '"'), (name, word)


def test_no_seven_words_in_a_row_are_the_papers(shared_data: Path) -> None:
    paper = shared_data.parent / "papers" / "llama3-med.txt"
    if not paper.is_file():
        pytest.skip("the paper's text is not here")

    def runs(text: str) -> set[str]:
        words = re.findall(r"\w+", text.lower())
        return {" ".join(words[at : at + 7]) for at in range(len(words) - 6)}

    theirs = runs(paper.read_text(encoding="utf-8"))
    for name in FILES:
        file = load(name).file
        row = SourceRow(id="r", kind=file.kind, language=file.language)
        assert not runs(load(name).messages(row)[0]["content"]) & theirs, name


def test_a_caption_is_laid_out_with_its_mentions() -> None:
    shown = load("caption").messages(CAPTION)[-1]["content"]
    assert shown.startswith(
        "Kind of image: MRI\nFigure caption: MRI of the femur.\n"
        "Sentence about the figure, no. 1: A mass is seen (Fig. 2).\n"
        "Sentence about the figure, no. 2: It is bright.\n\n"
    )


def test_a_report_is_shown_once() -> None:
    whole = SourceRow(id="r", kind="report", text="F. I.")
    cut = whole.model_copy(update={"sections": {"findings": "F.", "impression": "I."}})
    assert load("report").messages(whole)[-1]["content"].startswith("Report: F. I.\n\n")
    shown = load("report").messages(cut)[-1]["content"]
    assert shown.startswith("Report, findings: F.\nReport, impression: I.\n\n")


def test_boxes_are_told_by_name_and_number_never_by_pixels() -> None:
    boxes = tuple(Box(label="Lung_nodule", x1=17, y1=23, x2=99, y2=98) for _ in range(2))
    row = SourceRow(id="r", kind="labels", labels=("No_finding", "X"), boxes=boxes)
    shown = load("labels").messages(row)[-1]["content"]
    assert "Labels: No finding, X\nBoxes drawn around: Lung nodule (x2)\n" in shown
    assert "17" not in shown


def test_a_pair_shows_the_earlier_study_first() -> None:
    row = SourceRow(id="r", kind="pair", text="NOW", sections={"findings": "NOW", "prior": "THEN"})
    shown = load("pair").messages(row)[-1]["content"]
    assert shown.index("first image (earlier): THEN") < shown.index("(later), findings: NOW")
    assert shown.count("THEN") == shown.count("NOW") == 1


def test_auto_takes_the_set_of_kind_and_language() -> None:
    auto = prompt_set("auto")
    for kind in ("caption", "report", "labels", "pair"):
        for language, end in (("en", ""), ("zh", "_zh")):
            row = SourceRow.parse({"id": "r", "kind": kind, "language": language, "text": "T"})
            used = load(f"{kind}{end}")
            assert auto.of(row).messages(row) == used.messages(row)
            assert auto.of(row).schema() == used.schema()
            assert (auto.of(row).hash, auto.of(row).few_shot) == (used.hash, used.few_shot)
    assert auto.hash != load("caption").hash


def test_hashes_differ_between_sets_and_stay_the_same() -> None:
    hashes = {name: prompt_set(name).hash for name in PROMPT_SETS}
    assert len(set(hashes.values())) == len(PROMPT_SETS)
    assert hashes == {name: prompt_set(name).hash for name in PROMPT_SETS}


def copied(folder: Path) -> Path:
    for part, name in (("sets", "report"), ("examples", "report_en")):
        shutil.copy(str(DATA.joinpath(part, f"{name}.yaml")), folder / f"{name}.yaml")
    return folder / "report.yaml"


def test_a_file_of_ones_own_gives_the_same_messages(tmp_path: Path) -> None:
    mine = prompt_set(str(copied(tmp_path)))
    assert isinstance(mine, FilePrompts)
    row = SourceRow(id="r", kind="report", text="T")
    assert mine.messages(row) == load("report").messages(row)
    assert mine.hash == load("report").hash


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "Another task."),
        ("rules", ["One rule."]),
        ("form", "Another form."),
        ("request", "Another request."),
        ("fewest", 3),
        ("most", 9),
        ("words.text", "Findings of the reader"),
        ("words.prior", "Before"),
        ("words.boxes", "Marked"),
        ("words.mention", "Sentence {n}"),
        ("words.times", "{n} {label}"),
        ("words.sections", {"technique": "How it was taken"}),
    ],
)
def test_everything_that_shapes_a_prompt_is_in_the_hash(
    tmp_path: Path, field: str, value: object
) -> None:
    path = copied(tmp_path)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if field == "words.times":
        data["words"]["boxes"] = "Marked"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
    before = prompt_set(str(path)).hash
    outer, _, inner = field.partition(".")
    if inner:
        data[outer][inner] = value
    else:
        data[outer] = value
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert before != prompt_set(str(path)).hash


def test_a_changed_example_changes_the_hash(tmp_path: Path) -> None:
    path = copied(tmp_path)
    before = prompt_set(str(path)).hash
    examples = tmp_path / "report_en.yaml"
    text = examples.read_text(encoding="utf-8")
    examples.write_text(text.replace("moderate", "large"), encoding="utf-8")
    assert prompt_set(str(path)).hash != before


def test_unknown_names_and_broken_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'caption'"):
        prompt_set("captoin")
    path = copied(tmp_path)
    path.write_text(path.read_text(encoding="utf-8") + "\nrulez: []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rulez: unknown field; did you mean 'rules'"):
        prompt_set(str(path))
    copied(tmp_path)
    (tmp_path / "report_en.yaml").write_text("a: b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="examples are a list"):
        prompt_set(str(path))


def test_the_schema_is_that_of_the_wanted_answer() -> None:
    schema = answer_schema(2, 6)
    assert schema["properties"]["turns"]["minItems"] == 2
    example = json.loads(answer_json(load("caption").examples[0].turns))
    assert set(example) == set(schema["properties"])
    item = schema["properties"]["turns"]["items"]
    assert all(set(turn) == set(item["required"]) for turn in example["turns"])


def test_a_draft_of_an_example_is_one_that_a_row_can_have() -> None:
    example = load("caption").examples[0]
    assert Draft(turns=example.turns, raw="").turns == example.turns
