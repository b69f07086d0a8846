"""The same images and questions to several models, their answers side by side, in one HTML file.

What the papers show as examples (HiA Fig. 1; Llama3-Med Tables 4, 5 and 10; LiteGPT Table 7 and Fig. 3)
for any models: runs of ours, models of transformers, endpoints. Rows are drawn without favour: the first
of each kind of question by a hash, never by what anybody answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from medloupe.data.dataset import Dataset, Progress
from medloupe.errors import ConfigError, DataError, MedLoupeError, did_you_mean
from medloupe.evaluate.benchmark import limited_rows
from medloupe.evaluate.predictors import HF, is_foreign
from medloupe.evaluate.report.pictures import Gallery
from medloupe.evaluate.resume import TellingPredictor
from medloupe.html.markup import Html, join, tag
from medloupe.html.page import asset, document
from medloupe.recipes.predict import ModelSpec
from medloupe.types import Box, Conversation, Generation, ImageRef, Split

PIXELS: Final = 640
Said = Generation | MedLoupeError
Shown = Callable[[ImageRef], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A model by the name that heads its column, and what it said to each row: an answer or an error."""

    name: str
    said: tuple[Said, ...]


def choose_rows(
    dataset: Dataset,
    *,
    split: Split = "test",
    tasks: Sequence[str] = (),
    limit: int = 12,
    ids: Sequence[str] = (),
) -> tuple[Conversation, ...]:
    """Rows by id, or `limit` in all, spread over the tasks and the patients; always the same ones.

    Raises:
        DataError: an unknown id or task, or nothing left.
    """
    if ids:
        return _by_ids(dataset, ids)
    rows = [row for row in dataset.split(split) if row.answer is not None]
    known = sorted({row.task for row in rows})
    for task in tasks:
        if task not in known:
            raise DataError(
                f"unknown task {task!r}; {did_you_mean(task, known)}", file=str(dataset.root)
            )
    wanted = [task for task in known if not tasks or task in tasks]
    if not wanted:
        raise DataError(
            f"nothing to show: the {split} split has no rows",
            remedy="Choose another split",
            file=str(dataset.root),
        )
    ranked = _ranked([row for row in rows if row.task in wanted], -(-limit // len(wanted)))
    return tuple(ranked[:limit])


def render(
    rows: Sequence[Conversation],
    speakers: Sequence[Speaker],
    shown: Shown,
    *,
    title: str,
    notes: Sequence[str] = (),
) -> str:
    """The page. `shown` is an image as people see it; `notes` stand above the rows.

    Raises:
        ConfigError: there is no model to show.
    """
    if not speakers:
        raise ConfigError("no model was named", remedy="Name at least one")
    gallery = Gallery(shown, PIXELS)
    cards = [_card(number, row, speakers, gallery) for number, row in enumerate(rows)]
    body = tag(
        "main",
        tag("p", "MedLoupe, side by side", class_="eyebrow"),
        tag("h1", title),
        *(tag("p", note, class_="lead") for note in notes),
        tag("p", _legend(), class_="legend"),
        gallery.store(),
        *cards,
    )
    style = asset("medloupe.reproduce", "sidebyside.css")
    return document(title, body, style=style)


def model_specs(
    names: Sequence[str], *, max_new_tokens: int, trust_code: bool = False
) -> dict[str, ModelSpec]:
    """What the command line names, by the name that heads a column: a folder, hf:FOLDER, MODEL@URL.

    Raises:
        ConfigError: one is named twice, or an endpoint without its model.
    """
    found: dict[str, ModelSpec] = {}
    for name in names:
        if name in found:
            raise ConfigError(f"{name!r} is named twice", remedy="Name each model once")
        served, sign, url = name.partition("@")
        is_url = url.startswith(("http://", "https://"))
        if not sign and is_foreign(name) and not name.startswith(HF):
            raise ConfigError(
                f"an endpoint serves models by name: {name!r}", remedy="Write MODEL@URL"
            )
        found[name] = ModelSpec(
            model=url if is_url else name,
            endpoint_model=served if is_url else None,
            max_new_tokens=max_new_tokens,
            trust_code=trust_code,
        )
    return found


def ask_and_render(
    specs: Mapping[str, ModelSpec],
    dataset: Dataset,
    rows: Sequence[Conversation],
    *,
    progress: Progress,
    title: str = "",
    notes: Sequence[str] = (),
) -> str:
    """The page of these models; one at a time is in memory. Images are shown as the first one's are."""
    shown: Shown | None = None
    speakers: list[Speaker] = []
    for name, spec in specs.items():
        answerer = spec.open(dataset.root)
        speakers.append(Speaker(name=name, said=_answers(answerer.predict, rows, progress)))
        shown = shown or answerer.shown
    if shown is None:
        raise ConfigError("no model was named", remedy="Name at least one")
    heading = title or f"{len(specs)} models on {dataset.card.name}"
    said = [dataset.card.partial and f"Partial copy: {dataset.card.partial}.", *notes]
    return render(rows, speakers, shown, title=heading, notes=[note for note in said if note])


def _by_ids(dataset: Dataset, ids: Sequence[str]) -> tuple[Conversation, ...]:
    known = {row.id: row for row in dataset.conversations}
    for name in ids:
        if name not in known:
            raise DataError(
                f"no such row; {did_you_mean(name, known)}", file=str(dataset.root), row=name
            )
    return tuple(known[name] for name in ids)


def _ranked(rows: Sequence[Conversation], each: int) -> list[Conversation]:
    """At most `each` of a task, the first of every task before a second of any."""
    by_task: dict[str, list[Conversation]] = {}
    for row in limited_rows(rows, each):
        by_task.setdefault(row.task, []).append(row)
    longest = max(len(found) for found in by_task.values())
    return [
        by_task[task][place]
        for place in range(longest)
        for task in sorted(by_task)
        if place < len(by_task[task])
    ]


def _answers(
    predict: TellingPredictor, rows: Sequence[Conversation], progress: Progress
) -> tuple[Said, ...]:
    """What a model cannot answer stands as its error."""
    heard: dict[int, Said] = {}
    asked = [row.without_answer() for row in rows]
    predict.answer_each(asked, heard.__setitem__, progress=progress, done=frozenset())
    return tuple(heard[number] for number in range(len(rows)))


def _legend() -> Html:
    return join(
        tag("span", "truth", class_="key truth"),
        tag("span", "model", class_="key predicted"),
        tag("span", "in the question", class_="key asked"),
    )


def _card(number: int, row: Conversation, speakers: Sequence[Speaker], gallery: Gallery) -> Html:
    answer = row.answer
    truth = _boxes([] if answer is None else answer.content)
    asked = _boxes(row.without_answer().parts())
    drawn = [(box, "asked") for box in asked]
    first = tag(
        "div",
        _pictures(row, [*drawn, *((box, "truth") for box in truth)], gallery, "truth"),
        tag("p", row.question.strip() or "(no text)", class_="question"),
        tag("p", tag("b", "truth "), _told(answer.text if answer else "", truth), class_="truth"),
        tag("p", f"{row.task or row.answer_type} · {row.id}", class_="id"),
        class_="asked",
    )
    columns = [_column(row, one.name, one.said[number], drawn, gallery) for one in speakers]
    return tag("section", first, tag("div", *columns, class_="answers"), class_="row")


def _column(
    row: Conversation, name: str, said: Said, asked: Sequence[tuple[Box, str]], gallery: Gallery
) -> Html:
    if isinstance(said, MedLoupeError):
        words = tag("p", f"no answer: {said}", class_="fault")
        return tag("article", tag("h3", name), words)
    parts = [tag("p", _told(said.text, said.boxes), class_="answer")]
    if said.boxes:
        boxes = [*asked, *((box, "predicted") for box in said.boxes)]
        parts.insert(0, _pictures(row, boxes, gallery, name))
    small = [] if said.confidence is None else [f"probability {said.confidence:.2f}"]
    if said.finish_reason == "length":
        small.append("cut at the longest length allowed")
    if small:
        parts.append(tag("p", ", ".join(small), class_="id"))
    return tag("article", tag("h3", name), *parts)


def _pictures(
    row: Conversation, boxes: Sequence[tuple[Box, str]], gallery: Gallery, who: str
) -> Html:
    figures = [
        tag(
            "figure",
            gallery.picture(
                ref,
                [(box, kind) for box, kind in boxes if box.image == place],
                f"image {place + 1} of {row.id}, {who}",
            ),
        )
        for place, ref in enumerate(row.images)
    ]
    return tag("div", *figures, class_=f"pictures n{min(len(figures), 3)}")


def _boxes(parts: Any) -> list[Box]:
    return [part for part in parts if isinstance(part, Box)]


def _told(text: str, boxes: Sequence[Box]) -> str:
    if text.strip():
        return text.strip()
    return f"{len(boxes)} box{'es' if len(boxes) != 1 else ''}" if boxes else "(nothing)"
