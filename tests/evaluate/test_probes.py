"""What each probe asks, by hand: the rows that it takes, those that it leaves alone, the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from medloupe.data.builders.prompts import PROMPTS
from medloupe.data.dataset import Dataset
from medloupe.data.datasets.starter.words import WORDS
from medloupe.errors import ImageError
from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import find_metric
from medloupe.evaluate.probes import Probe, default_probes
from medloupe.evaluate.probes.base import limited
from medloupe.evaluate.probes.exchanged import exchange, turned
from medloupe.evaluate.probes.mirrored import Mirrored, has_side
from medloupe.evaluate.probes.negated import negate, negated
from medloupe.evaluate.probes.paraphrased import paraphrase, wordings
from medloupe.evaluate.probes.unseen import Blank, TextOnly
from medloupe.evaluate.probes.wording import CJK, reword
from medloupe.evaluate.runner import run_benchmark
from medloupe.types import Box, Conversation, Generation, ImageRef, Language, Message, Part, Text

PICTURE = ImageRef(uri="a.png", modality="XR")
LATER = ImageRef(uri="b.png", modality="XR")
YES_NO = ("yes", "no")


class Upright:
    """Every image is 100 x 80 and may be mirrored, but for those named; remembers what was looked at."""

    def __init__(self, *sagittal: str) -> None:
        self.sagittal, self.looked = sagittal, 0

    def size_of(self, ref: ImageRef) -> tuple[int, ...]:
        return (100, 80, 5) if ref.kind == "volume" else (100, 80)

    def mirrors(self, ref: ImageRef) -> bool:
        self.looked += 1
        return ref.uri not in self.sagittal


def asked(
    question: str | Sequence[Part],
    *answer: str | Part,
    images: Sequence[ImageRef] = (PICTURE,),
    **fields: object,
) -> Conversation:
    parts = [Text(text=question)] if isinstance(question, str) else list(question)
    said = tuple(Text(text=part) if isinstance(part, str) else part for part in answer)
    messages = (
        Message(role="user", content=(*images, *parts)),
        Message(role="assistant", content=said),
    )
    return Conversation.parse({"id": "r", "patient_id": "p", "messages": messages, **fields})


def closed(
    question: str, answer: str, options: Sequence[str] = YES_NO, **fields: object
) -> Conversation:
    return asked(question, answer, answer_type="closed", options=tuple(options), **fields)


def ask_one(probe: Probe, row: Conversation, look: Upright | None = None) -> Conversation | None:
    (found,) = probe.ask([row], seed=0, look=look or Upright())
    return found


def answer_of(row: Conversation | None) -> str | None:
    return None if row is None or row.answer is None else row.answer.text


# --- negated


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is there a bright square?", "Is it true that there is no bright square?"),
        ("Is there an effusion in the left lung?", "Is it true that there is no effusion in the left lung?"),
        ("Is there any sign of pneumonia?", "Is it true that there is no sign of pneumonia?"),
        ("Is there evidence of edema?", "Is it true that there is no evidence of edema?"),
        ("is there cardiomegaly?", "Is it true that there is no cardiomegaly?"),
        ("Is there a mass or cyst?", "Is it true that there is no mass or cyst?"),
        ("Are there any nodules?", "Is it true that there are no nodules?"),
        ("Are there rib fractures?", "Is it true that there are no rib fractures?"),
        ("Does the image show any mass?", "Is it true that the image shows no mass?"),
        ("Does this CT show a fracture?", "Is it true that this CT shows no fracture?"),
        ("Does the patient have pneumonia?", "Is it true that the patient has no pneumonia?"),
        ("Does the chest x-ray show edema?", "Is it true that the chest x-ray shows no edema?"),
        ("Can any effusion be seen?", "Is it true that no effusion can be seen?"),
        ("Can any mass be seen in the image?", "Is it true that no mass can be seen in the image?"),
        ("Is the trachea displaced?", "Is it true that the trachea is not displaced?"),
        ("Is the left kidney enlarged?", "Is it true that the left kidney is not enlarged?"),
    ],
)  # fmt: skip
def test_a_negation_in_english(question: str, expected: str) -> None:
    assert negated(question, "en") == expected


@pytest.mark.parametrize(
    "question",
    [
        "Is there a mass and an effusion?",  # no mass and an effusion?
        "Is there a mass or a cyst?",
        "Is there no fracture?",
        "Is there a lesion without calcification?",
        "Is there absence of air?",
        "Is there more than one lesion?",
        "Is there a single lesion?",
        "Is there only one nodule?",
        "Is there something wrong?",
        "Is there anything abnormal?",
        "Is there the usual pattern?",
        "Is there 3 cm mass?",
        "Is there a mass, or is it normal?",
        "Is there a mass? If so, where?",
        "Is there still an effusion?",
        "Is there an effusion in both lungs?",
        "Is there a normal heart?",
        "Is there a lesion which enhances?",
        "Are there two nodules?",
        "Are there several nodules?",
        "Are there many lesions here?",
        "Are the ribs fractured?",  # none of them, or not all?
        "Are both lungs clear?",
        "Does the image show the liver?",
        "Does the image show that there is a mass?",
        "Does the image show two lesions?",
        "Does it hurt?",
        "Do the lungs look normal?",
        "Is the lesion larger than the kidney?",
        "Is this a CT?",
        "Is the heart not enlarged?",
        "Can a mass be ruled out?",
        "Was there a fracture?",
        "Which side is the lesion on?",
        "Is there a mass",
        "是否有肿块？",
    ],
)
def test_what_is_not_negated_in_english(question: str) -> None:
    assert negated(question, "en") is None


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("是否有环形病灶？", "是否没有环形病灶？"),
        ("左肺是否有肿块？", "左肺是否没有肿块？"),
        ("图像中是否存在肺炎？", "图像中是否不存在肺炎？"),
        ("是否可见骨折？", "是否未见骨折？"),
        ("这张图像是否显示肿块？", "这张图像是否未显示肿块？"),
        ("有没有积液？", "是否没有积液？"),
    ],
)
def test_a_negation_in_chinese(question: str, expected: str) -> None:
    assert negated(question, "zh") == expected


@pytest.mark.parametrize(
    "question",
    [
        "是否没有病灶？",
        "是否有肿块和积液？",
        "是否有两个病灶？",
        "是否有多发结节？",
        "肺部是否正常？",
        "是否有肿块，位于哪里？",
        "是否有其他异常？",
        "是否只有左侧有病灶？",
        "是否有肿块",
        "病灶在哪里？",
        "有几个病灶？",
    ],
)
def test_what_is_not_negated_in_chinese(question: str) -> None:
    assert negated(question, "zh") is None


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (closed("Is there a mass?", "yes"), "no"),
        (closed("Is there a mass?", "No."), "yes"),
        (closed("Is there a mass?", "No", ()), "Yes"),
        (closed("Is there a mass?", "Yes", ("Yes", "No")), "No"),
        (closed("是否有肿块？", "是", ("是", "否"), language="zh"), "否"),
        (closed("是否有肿块？", "不是", ("是", "不是"), language="zh"), "是"),
        (closed("是否有肿块？", "no", language="zh"), "yes"),
        # 有 and 没有 answer the verb, not the question
        (closed("有没有肿块？", "没有", ("有", "没有"), language="zh"), None),
        (closed("Is there a mass?", "left", ("left", "right")), None),
        (closed("Is there a mass?", "yes", ("yes", "no", "unclear")), None),
        (closed("Is there a mass?", "yes", language="zh"), None),  # English under another name
        (asked("Is there a mass?", "yes"), None),  # open: scored by words
        (closed("Reply in one word.\nIs there a mass?", "yes"), None),  # two lines
    ],
)
def test_the_answer_turns_with_the_question(row: Conversation, expected: str | None) -> None:
    found = negate(row)
    assert answer_of(found) == expected
    if found is not None:
        assert found.question != row.question
        assert (found.images, found.options) == (row.images, row.options)


def test_starter_and_builder_questions_of_presence_are_negated() -> None:
    for language, words in WORDS.items():
        kind = words.names["ring"]
        assert negated(words.questions["presence"].format(kind=kind), language) is not None
    for language, label in (("en", "consolidation"), ("zh", "实变")):
        forms = [form.format(label=label) for form in PROMPTS["presence"][language]]
        assert all(negated(form, language) for form in forms)


# --- exchanged


@pytest.mark.parametrize(
    ("answer", "language", "options", "expected"),
    [
        ("grown", "en", (), "shrunk"),
        ("Shrunk.", "en", (), "Grown."),
        ("worse", "en", (), "better"),
        ("improved", "en", (), "worsened"),
        ("unchanged", "en", (), "unchanged"),
        ("No change.", "en", (), "No change."),
        ("new", "en", (), "gone"),
        ("new", "en", ("new", "resolved", "unchanged"), "resolved"),
        ("resolved", "en", ("new", "resolved", "unchanged"), "new"),
        ("first", "en", ("first", "second"), "second"),
        ("grown", "en", ("grown", "stable"), None),  # what would be right is no option
        ("grown slightly", "en", (), None),
        ("not grown", "en", (), None),
        ("ring on the left: grown, dark: new", "en", (), "ring on the left: shrunk, dark: gone"),
        ("ring: grown, dark: it is new", "en", (), None),
        ("增大", "zh", ("新发", "增大", "不变", "缩小", "消失"), "缩小"),
        ("加重", "zh", (), "减轻"),
        ("加重", "zh", ("加重", "好转", "稳定"), "好转"),
        ("稳定", "zh", ("加重", "好转", "稳定"), "稳定"),
        ("消失。", "zh", (), "新发。"),
        ("第一张", "zh", ("第一张", "第二张"), "第二张"),
        ("左侧环形增大，楔形新发", "zh", (), "左侧环形缩小，楔形消失"),
        ("未见增大", "zh", (), None),
        ("grown", "zh", (), None),
    ],
)
def test_what_is_right_of_exchanged_images(
    answer: str, language: Language, options: tuple[str, ...], expected: str | None
) -> None:
    assert turned(answer, language, options) == expected


def test_every_change_of_the_starter_comes_back_when_exchanged_twice() -> None:
    for language, words in WORDS.items():
        options = [words.names[name] for name in ("new", "grown", "unchanged", "shrunk", "gone")]
        once = [turned(option, language, options) for option in options]
        assert once == options[::-1]
        course = words.course([("ring", "left", "grown"), ("dark", "", "gone")])
        back = turned(str(turned(course, language)), language)
        assert back == course


def compared(*answer: str | Part, **fields: object) -> Conversation:
    content = [
        Text(text="Earlier examination: "),
        PICTURE,
        Text(text="\nLater examination: "),
        LATER,
    ]
    box = Box(label="region", x1=1, y1=2, x2=3, y2=4, image=0)
    question = [*content, Text(text="\nHow has this changed? "), box]
    return asked(question, *answer, images=(), **fields)


def test_images_are_exchanged_and_boxes_go_with_them() -> None:
    found = exchange(compared("grown"))
    assert found is not None
    assert found.images == (LATER, PICTURE)
    assert [part.image for part in found.parts() if isinstance(part, Box)] == [1]
    assert found.question == compared("grown").question
    assert answer_of(found) == "shrunk"


def test_rows_that_do_not_compare_two_images_are_left_alone() -> None:
    volume = LATER.model_copy(update={"kind": "volume"})
    box = Box(label="", x1=0, y1=0, x2=1, y2=1)
    assert exchange(asked("How has it changed?", "grown")) is None  # one image
    assert exchange(asked("How has it changed?", "grown", images=(PICTURE, LATER, LATER))) is None
    assert exchange(asked("How has it changed?", "grown", images=(PICTURE, volume))) is None
    assert exchange(asked("Is the fracture new or old?", "new", images=(PICTURE, LATER))) is None
    assert exchange(compared(box)) is None
    assert exchange(compared("grown", box)) is None


# --- mirrored


def test_side_boxes_and_question_follow_the_mirrored_image() -> None:
    box = Box(label="left nodule", x1=10, y1=20, x2=30, y2=40)
    row = asked("Where is the nodule of the left lung?", box, answer_type="box")
    found = ask_one(Mirrored(), row)
    assert found is not None
    assert found.question == "Where is the nodule of the right lung?"
    (mirrored,) = (part for part in found.parts() if isinstance(part, Box))
    assert (mirrored.x1, mirrored.x2, mirrored.y1, mirrored.y2) == (70, 90, 20, 40)
    assert mirrored.label == "right nodule"
    assert [ref.edit for ref in found.images] == ["mirrored"]


def test_an_answer_that_is_a_side_is_the_other_and_options_keep_their_order() -> None:
    row = closed("Which side?", "left", ("left", "right"))
    found = ask_one(Mirrored(), row)
    assert answer_of(found) == "right"
    assert found is not None
    assert found.options == ("left", "right")
    chinese = closed("病灶在哪一侧？", "左侧", ("左侧", "右侧"), language="zh")
    assert answer_of(ask_one(Mirrored(), chinese)) == "右侧"
    kept = closed("Is there a mass in the left lung?", "yes")
    found = ask_one(Mirrored(), kept)
    assert answer_of(found) == "yes"
    assert found is not None
    assert found.question == "Is there a mass in the right lung?"


@pytest.mark.parametrize(
    "row",
    [
        closed("Is there a mass?", "yes"),  # no side
        closed("Which side?", "left", ("left", "right"), images=()),
        closed("Which lobe?", "left upper", ("left upper", "right lower")),  # other options
        closed("Is the left ventricle enlarged?", "yes"),  # named after a side
        asked("Describe the image.", "Heart on the left."),
        asked("Describe the image.", "Mass in the right lobe of the liver."),
        asked("Describe the image.", "Opacity of the right middle lobe."),
        asked("Describe the image.", "肝右叶低密度影。", language="zh"),
        asked("Where is it?", "left, at 3 o'clock"),
        asked("Is this the right diagnosis?", "yes"),
        asked("What does the lateral view show?", "left lower lobe opacity"),
        closed("Which side?", "left", ("left", "right"), attributes={"plane": "sagittal"}),
        closed("Which side?", "left", ("left", "right"), attributes={"view": "LATERAL"}),
        asked("Where is the heart?", Box(label="Cardiomegaly", x1=0, y1=0, x2=1, y2=1)),
    ],
)
def test_rows_whose_mirror_image_is_not_certain(row: Conversation) -> None:
    assert not has_side(row)
    assert ask_one(Mirrored(), row) is None


def test_files_are_looked_at_only_for_rows_that_may_be_asked() -> None:
    rows = [
        closed("Which side?", "left", ("left", "right"), id=f"r{n}", patient_id=f"p{n}", task="side")
        for n in range(20)
    ]  # fmt: skip
    look = Upright()
    found = Mirrored(limit=5).ask([*rows, closed("Is there a mass?", "yes")], seed=0, look=look)
    assert sum(row is not None for row in found) == look.looked == 5
    assert ask_one(Mirrored(), rows[0], Upright("a.png")) is None


def test_an_image_that_cannot_be_read_is_told_of_by_its_row_alone() -> None:
    class Torn(Upright):
        def mirrors(self, ref: ImageRef) -> bool:
            raise ImageError("cut short", file=ref.uri)

    assert ask_one(Mirrored(), closed("Which side?", "left", ("left", "right")), Torn()) is None


def test_a_volume_is_mirrored_in_its_columns() -> None:
    volume = PICTURE.model_copy(update={"kind": "volume"})
    box = Box(label="", x1=10, y1=20, x2=30, y2=40, z1=1, z2=2)
    found = ask_one(Mirrored(), asked("Where?", box, images=(volume,), answer_type="box"))
    assert found is not None
    (mirrored,) = (part for part in found.parts() if isinstance(part, Box))
    assert (mirrored.x1, mirrored.x2, mirrored.z1, mirrored.z2) == (70, 90, 1, 2)


# --- paraphrased


@pytest.mark.parametrize(
    ("question", "language", "expected"),
    [
        ("Is there a mass?", "en", "Do you see a mass?"),
        ("Is there any sign of pneumonia?", "en", "Do you see any sign of pneumonia?"),
        ("Are there any nodules?", "en", "Do you see any nodules?"),
        ("Does the image show any mass?", "en", "Can any mass be seen in the image?"),
        ("Which side is the ring lesion on?", "en", "On which side is the ring lesion?"),
        ("How many lesions are there?", "en", "What is the number of lesions?"),
        ("How has the ring lesion changed?", "en", "In what way has the ring lesion changed?"),
        ("Describe the image.", "en", "Please describe the image."),
        ("图像中是否存在肺炎？", "zh", "图像中有没有肺炎？"),
        ("是否有环形病灶？", "zh", "是否存在环形病灶？"),
        ("有几个病灶？", "zh", "病灶有多少个？"),
        ("环形病灶在哪一侧？", "zh", "环形病灶位于哪一侧？"),
        ("写一份简短报告。", "zh", "请写一份简短报告。"),
    ],
)
def test_a_rule_says_it_in_other_words(question: str, language: Language, expected: str) -> None:
    assert wordings(question, language) == [expected]


@pytest.mark.parametrize(
    "question", ["What is the diagnosis?", "Is there a mass seen?", "Is there a mass, or not?"]
)
def test_without_a_rule_the_question_stays_to_the_letter(question: str) -> None:
    found = wordings(question, "en")
    assert len(found) == 2
    assert all(text.endswith(question) and text != question for text in found)


def test_what_has_no_other_wording() -> None:
    assert wordings("Report this examination: findings, impression.", "en") == []
    assert wordings("What is in this box: ", "en") == []
    assert wordings("框内是什么：", "zh") == []


def test_a_paraphrase_keeps_answer_options_and_images() -> None:
    row = closed("\nWhich lobe?\nOptions: left upper, right lower.", "left upper",
                 ("left upper", "right lower"))  # fmt: skip
    found = paraphrase(row, seed=3)
    assert found is not None
    assert found.question.endswith("Which lobe?\nOptions: left upper, right lower.")
    assert found.question.startswith("\n")
    assert (found.images, found.answer, found.options) == (row.images, row.answer, row.options)
    assert found == paraphrase(row, seed=3)
    many = [paraphrase(row.model_copy(update={"id": str(n)}), seed=3) for n in range(20)]
    assert len({one.question for one in many if one is not None}) == 2


def test_no_wording_leaves_its_language() -> None:
    for language, words in WORDS.items():
        slots = {"kind": words.names["ring"], "first": words.ordinals[0], "last": words.ordinals[1],
                 "options": words.names["dark"]}  # fmt: skip
        for question in words.questions.values():
            for text in wordings(question.format(**slots), language):
                assert bool(CJK.search(text)) == (language == "zh"), text


def test_a_sentence_in_another_language_than_its_row_is_left_alone() -> None:
    found: list[str] = []

    def note(said: str) -> str:
        found.append(said)
        return said

    reword(asked("Is there a mass?", "yes", language="zh"), note)
    reword(asked("有肿块吗？", "有"), note)
    assert found == []
    reword(asked("Is there a mass?", "yes"), note)
    assert found == ["Is there a mass?"]


# --- without the image


def test_text_only_leaves_images_out_and_words_round_them_in() -> None:
    content = [
        Text(text="Earlier: "),
        PICTURE,
        Text(text="\nLater: "),
        LATER,
        Text(text="\nCompare."),
    ]
    found = ask_one(TextOnly(), asked(content, "grown", images=()))
    assert found is not None
    assert found.images == ()
    assert found.question == "Earlier: \nLater: \nCompare."


def test_text_only_asks_nothing_that_needs_the_frame_of_an_image() -> None:
    box = Box(label="", x1=0, y1=0, x2=1, y2=1)
    for row in (
        asked("Where?", box, answer_type="box"),
        asked("Where?", "none", answer_type="box"),
        asked([Text(text="What is in "), box], "a mass"),
        asked("Hello?", "yes", images=()),
        asked(" ", "yes"),
    ):
        assert ask_one(TextOnly(), row) is None


def test_blank_changes_every_image_and_nothing_else() -> None:
    row = compared("grown")
    found = ask_one(Blank(), row)
    assert found is not None
    assert [ref.edit for ref in found.images] == ["blank", "blank"]
    assert (found.question, found.answer) == (row.question, row.answer)
    assert ask_one(Blank(), asked("Hello?", "yes", images=())) is None


# --- all of them


def test_every_probe_says_what_it_does_and_asks_a_bounded_number() -> None:
    rows = [
        closed("Is there a mass in the left lung?", "yes", id=f"r{n}", patient_id=f"p{n}", task="t",
               images=(ImageRef(uri=f"{n}.png", modality="XR"),))
        for n in range(60)
    ]  # fmt: skip
    for probe in default_probes():
        found = probe.ask(rows, seed=1, look=Upright())
        assert len(found) == len(rows)
        assert found == probe.ask(rows, seed=1, look=Upright())
        assert all(row is None or row.id == own.id for row, own in zip(found, rows, strict=True))
        kept = len(limited(found, probe.limit))
        assert kept == {"swapped": 60, "exchanged": 0}.get(probe.name, 48), probe.name
        assert probe.about.split()[0] in {"shown", "given", "asked"}
        assert probe.expect in {"worse", "same"}


def test_a_reader_that_looks_but_does_not_listen(
    squares: Dataset, readers: tuple[Callable[[Path], object], object]
) -> None:
    """It finds the square in every image, and says the same whatever is asked of it."""
    looking = readers[0](squares.root)

    def read(conversations: Sequence[Conversation], *, progress: object) -> list[Generation]:
        blind = Generation(text="nothing to see")
        return [looking.answer(row) if row.images else blind for row in conversations]

    log = run_benchmark(
        Benchmark(name="squares", resamples=100),
        squares,
        read,
        manifest={},
        seed=5,
        probes=default_probes(),
        look=Upright(),
    )

    def fall(
        arm: str, task: str, name: str = "closed_accuracy.strict", kind: str = "closed"
    ) -> float | None:
        found = find_metric(
            log.metrics, name=name, arm=f"minus {arm}", answer_type=kind, group=task
        )
        return None if found is None else found.estimate

    assert fall("mirrored", "side") == 0
    assert fall("negated", "presence") == 1
    assert fall("paraphrased", "presence") == fall("paraphrased", "side") == 0
    assert fall("text_only", "side") == 1
    assert fall("negated", "side") is None
    assert fall("exchanged", "side") is None
    mirrored = [row for row in log.rows if row.task == "side" and "mirrored" in row.others]
    assert mirrored
    for row in mirrored:
        assert {row.truth, row.others["mirrored"].truth} == {"left", "right"}
