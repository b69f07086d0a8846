"""VLMEvalKit's files: a data set as LMUData/NAME.tsv, and predictions as MODEL/MODEL_NAME.tsv.

Rows with options are multiple choice (columns A, B, ...; `answer` is the letter) and stand in NAME_MCQ, all
others in NAME_VQA: VLMEvalKit takes any file with columns A and B for multiple choice. `image_path` holds
paths of images, a Python list where there are several; a volume stays a path, which VLMEvalKit cannot open.
Its reader takes some words for missing values ("None", "NA", an empty field): a space behind them keeps them
texts. Read the predictions with PRED_FORMAT=tsv.
Form read from vlmeval/dataset/image_base.py, vlmeval/smp/file.py, vlmeval/inference.py and
docs/en/Development.md (revision e8e78f0).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Final

from medloupe.data.store import write_lines
from medloupe.evaluate.export.boxes import said
from medloupe.evaluate.scorers.closed import named_options
from medloupe.evaluate.scorers.words import strict_words
from medloupe.types import EvalLog, EvalRow

# What pandas.read_csv takes for a missing value.
MISSING: Final = frozenset(
    {
        *(
            "",
            "#N/A",
            "#N/A N/A",
            "#NA",
            "-1.#IND",
            "-1.#QNAN",
            "-NaN",
            "-nan",
            "1.#IND",
            "1.#QNAN",
        ),
        *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    }
)
_UNSAFE = re.compile(r"[^\w.-]+")


def write_vlmevalkit(log: EvalLog, out: Path, model: str) -> list[Path]:
    """Write the data sets below `out/LMUData` and the predictions below `out/MODEL`."""
    chosen = [row for row in log.rows if _is_choice(row)]
    others = [row for row in log.rows if not _is_choice(row)]
    files = []
    for suffix, rows in (("MCQ", chosen), ("VQA", others)):
        if rows:
            files += _write(rows, f"{_safe(log.benchmark)}_{suffix}", out, _safe(model))
    return files


def _write(rows: Sequence[EvalRow], name: str, out: Path, model: str) -> list[Path]:
    letters = ascii_uppercase[: max((len(row.options) for row in rows), default=0)]
    is_choice = name.endswith("_MCQ")
    columns = ["index", "image_path", "question"]
    columns += [*(letters if is_choice else ()), "answer", "category", "l2-category", "split", "id"]
    table = [_asked(number, row, letters if is_choice else "") for number, row in enumerate(rows)]
    answered = [
        {key: value for key, value in record.items() if key != "image_path"}
        | {"prediction": _kept(said(row.prediction, row.predicted_boxes))}
        for record, row in zip(table, rows, strict=True)
    ]
    data = out / "LMUData" / f"{name}.tsv"
    predictions = out / model / f"{model}_{name}.tsv"
    shown = [column for column in columns if column != "image_path"]
    for path, header, records in (
        (data, columns, table),
        (predictions, [*shown, "prediction"], answered),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, [_tsv(header, records)])
    return [data, predictions]


def _asked(number: int, row: EvalRow, letters: str) -> dict[str, str]:
    options = {letter: _kept(option) for letter, option in zip(letters, row.options, strict=False)}
    answer = _letter_of(row) if letters else said(row.truth, row.truth_boxes)
    return {
        "index": str(number),
        "image_path": _paths([image.uri for image in row.images]),
        "question": _kept(row.question),
        **options,
        "answer": _kept(answer),
        "category": _kept(row.task or row.answer_type),
        "l2-category": row.answer_type,
        "split": "test",
        "id": row.id,
    }


def _letter_of(row: EvalRow) -> str:
    """The letter of the option that is the truth."""
    place = _place(row)
    assert place is not None, "a row of multiple choice has its truth among the options"
    return ascii_uppercase[place]


def _is_choice(row: EvalRow) -> bool:
    return 1 < len(row.options) <= len(ascii_uppercase) and _place(row) is not None


def _place(row: EvalRow) -> int | None:
    words = strict_words(row.truth)
    for place, option in enumerate(row.options):
        if strict_words(option) == words:
            return place
    named = named_options(row.truth, row.options)
    return row.options.index(named[0]) if len(named) == 1 else None


def _paths(uris: Sequence[str]) -> str:
    """One path as it is, several as the list that VLMEvalKit evaluates."""
    return uris[0] if len(uris) == 1 else repr(list(uris)) if uris else ""


def _kept(text: str) -> str:
    return f"{text} " if text in MISSING else text


def _safe(name: str) -> str:
    return _UNSAFE.sub("_", name).strip("_") or "model"


def _tsv(header: Sequence[str], records: Sequence[Mapping[str, str]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([record.get(column, "") for column in header] for record in records)
    return stream.getvalue().rstrip("\n")
