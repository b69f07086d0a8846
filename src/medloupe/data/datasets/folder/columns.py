"""Which column of a table means what: by its name, unless the user says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from medloupe.errors import ConfigError, DataError, did_you_mean

# Role -> names under which it is looked for, the likeliest first. Case, spaces and hyphens do not
# count. What matches no role becomes an attribute.
ROLES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "record_id", "row_id", "case_id", "qid", "question_id"),
    "image": (
        *("image", "images", "image_path", "image_file", "image_name", "image_id", "img"),
        *("file_name", "filename", "file", "path", "filepath"),
    ),
    "volume": ("volume", "volumes", "volume_path", "volume_name", "scan"),
    "frame": ("frame", "slice", "frame_number"),
    "series": ("series", "series_uid", "series_instance_uid"),
    "modality": ("modality",),
    "patient_id": ("patient_id", "patient", "patientid", "subject_id", "subject"),
    "study_id": ("study_id", "study", "studyid", "exam_id", "accession_number"),
    "date": ("date", "study_date", "studydate", "exam_date"),
    "days": ("date_offset_days", "days", "day", "offset_days"),
    "split": ("split", "subset", "partition", "fold"),
    "language": ("language", "lang", "q_lang"),
    "question": ("question", "query"),
    "answer": ("answer", "response"),
    "options": ("options", "choices"),
    "answer_type": ("answer_type",),
    "task": ("task", "question_type"),
    "label": ("label", "class", "class_name", "category", "target"),
    "labels": ("labels", "classes", "tags"),
    "diagnosis": ("diagnosis",),
    "report": ("report", "report_text"),
    "findings": ("findings",),
    "impression": ("impression", "conclusion"),
    "caption": ("caption", "description"),
    "prior": ("prior", "prior_id", "previous", "previous_id"),
    "comparison": ("comparison",),
    "change": ("change", "progression"),
    "x1": ("x1", "xmin", "x_min"),
    "y1": ("y1", "ymin", "y_min"),
    "x2": ("x2", "xmax", "x_max"),
    "y2": ("y2", "ymax", "y_max"),
    "z1": ("z1", "zmin", "z_min"),
    "z2": ("z2", "zmax", "z_max"),
    "x": ("x", "box_x"),
    "y": ("y", "box_y"),
    "width": ("width", "box_width", "w"),
    "height": ("height", "box_height", "h"),
}
CORNERS = ("x1", "y1", "x2", "y2")
EXTENT = ("x", "y", "width", "height")
SECTIONS = ("findings", "impression", "report", "caption")


def find_columns(header: Collection[str], named: Mapping[str, str], file: Path) -> dict[str, str]:
    """Role -> column. Roles that `named` gives a column are taken so, the others found by name.

    Raises:
        ConfigError: an unknown role.
        DataError: a named column that is not there, no column of images, or half of a box.
    """
    named = {role: column for role, column in named.items() if column}
    columns = {role: _named(role, column, header, file) for role, column in named.items()}
    free = {_plain(column): column for column in header if column not in columns.values()}
    for role, names in ROLES.items():
        found = next((free[name] for name in names if name in free), None)
        if role not in columns and found is not None:
            columns[role] = found
    if not {"image", "volume"} & columns.keys():
        near = did_you_mean("image", header)
        raise DataError(
            f"no column names the images; {near}",
            remedy="Name it: --set columns.image=my_column",
            file=str(file),
            field="image",
        )
    return _with_whole_boxes(columns, named, file)


def _named(role: str, column: str, header: Collection[str], file: Path) -> str:
    if role not in ROLES:
        raise ConfigError(f"unknown role {role!r}; {did_you_mean(role, ROLES)}", field="columns")
    if column not in header:
        raise DataError(
            f"the table has no column {column!r}; {did_you_mean(column, header)}",
            remedy="Column names are compared letter by letter",
            file=str(file),
            field=f"columns.{role}",
        )
    return column


def _with_whole_boxes(
    columns: dict[str, str], named: Mapping[str, str], file: Path
) -> dict[str, str]:
    """The columns with box columns only where they make a box: "width" alone is an attribute."""
    for group in (CORNERS, EXTENT):
        missing = [role for role in group if role not in columns]
        meant = any(role in named for role in group) or (group is CORNERS and len(missing) < 4)
        if missing and meant and not _whole(EXTENT, columns):
            raise DataError(
                f"the box columns are not complete: no {', no '.join(missing)}",
                remedy="A box needs x1, y1, x2, y2 in pixels, or x, y, width, height",
                file=str(file),
                field=", ".join(columns[role] for role in group if role in columns),
            )
        if missing:
            for role in group:
                columns.pop(role, None)
    if not _whole(CORNERS, columns) and not _whole(EXTENT, columns):
        for role in ("z1", "z2"):
            columns.pop(role, None)
    return columns


def _whole(group: Collection[str], columns: Mapping[str, str]) -> bool:
    return all(role in columns for role in group)


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")
