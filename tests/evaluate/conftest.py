"""A small real benchmark: slices of pydicom's MR and CT with a planted bright square, and two
readers of it, one that looks at the pixels and one that cannot see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file

from medloupe.data.dataset import Dataset, DatasetCard, Progress, write_dataset
from medloupe.imaging.read import read_ref
from medloupe.imaging.windows import Window, to_display
from medloupe.types import Box, Conversation, Generation, ImageRef, Message, Part, Text

PATIENTS = 30
LESION = 230


def ask(
    id: str, images: Sequence[ImageRef], question: str, *answer: Part, **fields: object
) -> Conversation:
    user = Message(role="user", content=(*images, Text(text=question)))
    return Conversation.parse(
        {
            "id": id,
            "messages": (user, Message(role="assistant", content=answer)),
            "template": question,
            **fields,
        }
    )


def anatomy(name: str) -> NDArray[np.uint8]:
    """A pydicom test slice in grey, scaled so that nothing in it is as bright as a lesion."""
    pixels = dcmread(get_testdata_file(name)).pixel_array.astype(np.float64)
    pixels -= pixels.min()
    return (pixels / pixels.max() * 150).astype(np.uint8)


def build(root: Path, slices: dict[str, NDArray[np.uint8]]) -> Dataset:
    """Patients with one slice per modality, a lesion of 3 to 12 % of the width, or none."""
    rng = np.random.default_rng(7)
    rows: list[Conversation] = []
    (root / "images").mkdir(parents=True)
    for number in range(PATIENTS):
        patient = f"p{number:02d}"
        split = "train" if number % 3 == 0 else "test"
        for modality, base in slices.items():
            pixels = base.copy()
            height, width = pixels.shape
            present, left = bool(rng.integers(2)), bool(rng.integers(2))
            side = max(2, round(width * rng.uniform(0.03, 0.12)))
            x = int(rng.integers(2, width // 2 - side - 2)) + (0 if left else width // 2)
            y = int(rng.integers(2, height - side - 2))
            if present:
                pixels[y : y + side, x : x + side] = LESION
            uri = f"images/{patient}_{modality}.png"
            Image.fromarray(pixels).save(root / uri)
            shared = {"patient_id": patient, "split": split, "dataset": "squares"}
            ref = ImageRef(uri=uri, modality=modality)
            at = {"lesion_width": f"{100 * side / width:.1f}", "plane": "axial"} if present else {}
            key = f"{patient}-{modality}"
            rows.append(
                ask(
                    f"{key}-presence",
                    [ref],
                    "Is there a bright square?",
                    Text(text="yes" if present else "no"),
                    task="presence",
                    answer_type="closed",
                    options=("yes", "no"),
                    attributes=at,
                    **shared,
                )
            )
            if not present:
                continue
            box = Box(label="square", x1=x, y1=y, x2=x + side, y2=y + side)
            word = "left" if left else "right"
            rows += [
                ask(
                    f"{key}-side",
                    [ref],
                    "Which half of the image is the square in?",
                    Text(text=word),
                    task="side",
                    answer_type="closed",
                    options=("left", "right"),
                    attributes=at,
                    **shared,
                ),
                ask(
                    f"{key}-rec",
                    [ref],
                    "Where is the square?",
                    box,
                    task="rec",
                    answer_type="box",
                    attributes=at,
                    **shared,
                ),
                ask(
                    f"{key}-report",
                    [ref],
                    "Describe the image.",
                    Text(text=f"A bright square in the {word} half."),
                    task="report",
                    attributes=at,
                    **shared,
                ),
            ]
    return write_dataset(root, DatasetCard(name="squares"), rows)


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("squares") / "data"
    return build(root, {"MR": anatomy("MR_small.dcm"), "CT": anatomy("CT_small.dcm")})


class Reader:
    """Answers by looking for the brightest square; right in all that it can see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[int] = []

    def __call__(
        self, conversations: Sequence[Conversation], *, progress: Progress
    ) -> list[Generation]:
        self.calls.append(len(conversations))
        answers = []
        for done, row in enumerate(conversations, start=1):
            answers.append(self.answer(row))
            progress("reading", done, len(conversations))
        return answers

    def answer(self, row: Conversation) -> Generation:
        assert row.answer is None, "the model must not be given the answer"
        pixels = self.pixels(row.images[0])
        ys, xs = np.nonzero(pixels >= LESION)
        present = len(xs) > 0
        left = present and int(xs.mean()) < pixels.shape[1] // 2
        match row.task:
            case "presence":
                return Generation(text="Yes." if present else "No.")
            case "side":
                return Generation(text="left" if left else "right")
            case "rec" if present:
                box = Box(label="", x1=xs.min(), y1=ys.min(), x2=xs.max() + 1, y2=ys.max() + 1)
                return Generation(text="", boxes=(box,))
            case "rec":
                return Generation(text="none")
        return Generation(text=f"There is a bright square on the {'left' if left else 'right'}.")

    def pixels(self, ref: ImageRef) -> NDArray[np.uint8]:
        return to_display(read_ref(ref, self.root), Window(mode="custom", centre=128, width=256))


class Guesser(Reader):
    """Says the same about every image."""

    def answer(self, row: Conversation) -> Generation:
        return Generation(text={"presence": "yes", "side": "left"}.get(row.task, "a square"))


@pytest.fixture(name="ask")
def _ask() -> Callable[..., Conversation]:
    return ask


@pytest.fixture(scope="session")
def readers() -> tuple[type[Reader], type[Guesser]]:
    return Reader, Guesser


@pytest.fixture
def reader(squares: Dataset) -> Reader:
    return Reader(squares.root)


@pytest.fixture
def guesser(squares: Dataset) -> Guesser:
    return Guesser(squares.root)


WORDNET = {
    "noun": ([("mass", "tumor", "growth"), ("mass", "weight"), ("focus",)], ["foci focus"]),
    "verb": ([("see", "notice")], ["seen see"]),
    "adj": ([("large", "big"), ("light(p)", "X-ray_thin")], []),
    "adv": ([], []),
}
LICENCE = "  1 Lines of the licence begin with spaces.  \n"


@pytest.fixture
def small_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few synsets in the form of WordNet's database (wndb(5WN)), in the place of the system's."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for part, (synsets, exceptions) in WORDNET.items():
        data, index = LICENCE, {}
        for words in synsets:
            offset = len(data)
            listed = " ".join(f"{word} 0" for word in words)
            data += f"{offset:08d} 04 {part[0]} {len(words):02x} {listed} 000 | a gloss; of no | use  \n"
            for word in words:
                index.setdefault(word.split("(")[0].lower(), []).append(f"{offset:08d}")
        lines = [
            f"{word} {part[0]} {len(at)} 0 {len(at)} 0 {' '.join(at)}  \n"
            for word, at in index.items()
        ]
        (folder / f"data.{part}").write_text(data)
        (folder / f"index.{part}").write_text(LICENCE + "".join(lines))
        (folder / f"{part}.exc").write_text("".join(f"{line}\n" for line in exceptions))
    monkeypatch.setattr("medloupe.evaluate.scorers.meteor.SYSTEM_FOLDER", folder)
    return folder
