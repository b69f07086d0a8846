"""Templated English and Chinese questions about pictures of other data sets (`rows.json`).

Made by template from the annotations of BCCD, the COVID-19 Image Data Collection and the PyRadiomics
cases; the Chinese was not reviewed by a reader. `image` names a file of a neighbouring folder, so the
folders of these sets have to lie beside this one. Patient, split and licence of a question are those of
its picture there; both languages of a pair share them. Answers of some templates are lopsided
(one white cell in 94 of 100 pictures): compare with the most frequent answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medloupe.data.builders import ask
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets import bccd, covid_chestxray, pyradiomics
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.source import read_json_list, require
from medloupe.errors import DataError
from medloupe.types import Conversation, Language, Question, Record

NAME = "templated_vqa"
FILE = "rows.json"
# Folder -> the module that reads it.
NEIGHBOURS = {
    "bccd": bccd.read_records,
    "cxr_covid_cc": covid_chestxray.read_records,
    "radiomics_ct_mr": pyradiomics.read_records,
}
LANGUAGES: Mapping[str, Language] = {"en": "en", "zh": "zh"}
CARD = DatasetCard(
    name=NAME,
    description="Questions in English and Chinese, made by template from annotations of other sets. "
    "The Chinese was not reviewed by a reader; chest radiographs are NON-COMMERCIAL. Not for clinical "
    "use",
    licence="that of each question's image (MIT, BSD-3-Clause, CC BY-NC-SA 4.0 and others)",
    citation=" ".join(module.CARD.citation for module in (bccd, covid_chestxray, pyradiomics)),
    access="made from the sets bccd, covid_chestxray and pyradiomics",
    tasks=("presence", "location", "count", "view", "modality"),
    splits="those of the images' own sets",
    languages=("en", "zh"),
    published={"questions": 2800},
)


class TemplatedVqaConfig(PublishedConfig):
    """Question pairs in English and Chinese; the sets of their images lie in the folders beside."""

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        path = source / FILE
        rows = read_json_list(path)
        _refuse_broken_pairs(rows, path)
        records = _records(rows, source.resolve().parent, path)
        return Reading(
            card=CARD,
            images=source.resolve().parent,
            conversations=[_ask(record, q) for record in records for q in record.questions],
            records=records,
            found={"questions": len(rows)},
        )


def _ask(record: Record, question: Question) -> Conversation:
    """The question; its template is its wording, since the answers of each lean another way."""
    row = ask(record, question)
    return row.model_copy(update={"template": f"{question.task}/{question.text}"})


def _records(rows: Sequence[Mapping[str, Any]], neighbours: Path, path: Path) -> list[Record]:
    """One record per picture, as its own set describes it, with its questions."""
    questions: defaultdict[str, list[Question]] = defaultdict(list)
    for row in rows:
        qid = str(require(row, "qid", file=path, name="a question"))
        questions[str(require(row, "image", file=path, name=qid))].append(_question(row, path, qid))
    known = _pictures(sorted({uri.split("/")[0] for uri in questions}), neighbours, path)
    records = []
    for uri, asked in questions.items():
        if uri not in known:
            raise DataError("its set has no such picture", file=str(path), row=asked[0].id)
        records.append(_asked(known[uri], uri, asked))
    return records


def _asked(record: Record, uri: str, questions: Sequence[Question]) -> Record:
    """What the picture's own set says of patient, split, licence and attributes, with the questions.

    Boxes, notes and earlier studies are read with that set, and stay out here.
    """
    return Record(
        id=record.id,
        patient_id=record.patient_id,
        study_id=record.study_id,
        images=(record.images[0].model_copy(update={"uri": uri}),),
        questions=tuple(questions),
        attributes=record.attributes,
        split=record.split,
        dataset=NAME,
        licence=record.licence,
    )


def _pictures(folders: Sequence[str], root: Path, path: Path) -> dict[str, Record]:
    """uri below `root` -> the record that shows it."""
    found = {}
    for folder in folders:
        if folder not in NEIGHBOURS:
            raise DataError(f"pictures of an unknown set {folder!r}", file=str(path), field="image")
        if not (root / folder).is_dir():
            remedy = f"Put the set {folder!r} beside this one"
            raise DataError("the pictures are not here", remedy=remedy, file=str(root / folder))
        for record in NEIGHBOURS[folder](root / folder):
            found[f"{folder}/{record.images[0].uri}"] = record
    return found


def _question(row: Mapping[str, Any], path: Path, qid: str) -> Question:
    language = str(require(row, "lang", file=path, name=qid))
    if language not in LANGUAGES:
        raise DataError(f"unknown language {language!r}", file=str(path), row=qid, field="lang")
    return Question(
        id=qid,
        text=require(row, "question", file=path, name=qid),
        answer=require(row, "answer", file=path, name=qid),
        answer_type="closed" if row.get("answer_type") == "CLOSED" else "open",
        language=LANGUAGES[language],
        task=str(require(row, "content_type", file=path, name=qid)),
        attributes={"pair": str(require(row, "pair", file=path, name=qid)), "origin": "template"},
    )


def _refuse_broken_pairs(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Raises `DataError` where a pair is not one question in two languages about one picture."""
    times = Counter((row.get("pair"), row.get("lang")) for row in rows)
    pictures: defaultdict[Any, set[Any]] = defaultdict(set)
    for row in rows:
        pictures[row.get("pair")].add(row.get("image"))
    for pair, images in pictures.items():
        if len(images) > 1 or any(times[pair, language] != 1 for language in LANGUAGES):
            raise DataError(
                "a pair is one question in English and in Chinese about one picture",
                file=str(path),
                row=str(pair),
                field="pair",
            )
