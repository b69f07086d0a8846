"""Which column of a table means what: by its name, unless the user says so."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
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
    "sha256": ("sha256", "image_sha256"),
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
BOXES = ("box", "boxes", "bbox", "bboxes", "bounding_box", "bounding_boxes")
# "patiant_id", "splt" and "lables" are nearer to what was meant, "folder" to "fold" is not.
_NEAR = 0.85
SECTIONS = ("findings", "impression", "report", "caption")


def find_columns(header: Collection[str], named: Mapping[str, str], file: Path) -> dict[str, str]:
    """Role -> column. Roles that `named` gives a column are taken so, the others found by name.

    Raises:
        ConfigError: an unknown role.
        DataError: a named column that is not there, no column of images, half of a box, a whole box
            in one column, or a column whose name is nearly one that is looked for.
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
    columns = _with_whole_boxes(columns, named, file)
    unused = [column for column in header if column and column not in columns.values()]
    _refuse_boxes_in_one(unused, columns, file)
    _refuse_near_misses(unused, columns, file)
    return columns


def describe_columns(header: Collection[str], columns: Mapping[str, str], file: Path) -> str:
    """Which columns of a table were used and for what, and which became attributes."""
    used = ", ".join(
        role if column == role else f"{role} (column {column!r})"
        for role, column in columns.items()
    )
    rest = [column for column in header if column and column not in columns.values()]
    kept = f"as attributes: {', '.join(rest)}" if rest else "no other column"
    return f"{file.name}: used as {used}; {kept}"


def _refuse_boxes_in_one(unused: Collection[str], columns: Mapping[str, str], file: Path) -> None:
    found = next((column for column in unused if _plain(column) in BOXES), None)
    if found is not None and not _whole(CORNERS, columns) and not _whole(EXTENT, columns):
        raise DataError(
            f"the column {found!r} cannot be read: each edge of a box has a column of its own",
            remedy=f"Write the columns {', '.join(CORNERS)} in pixels, or {', '.join(EXTENT)}",
            file=str(file),
            field=found,
        )


def _refuse_near_misses(unused: Collection[str], columns: Mapping[str, str], file: Path) -> None:
    """A misspelt column would be an attribute that nobody looks at, and its rows without splits."""
    known = {name for names in ROLES.values() for name in names}
    absent = {name: role for role in _looked_for(unused, columns) for name in ROLES[role]}
    for column in unused:
        plain = _plain(column)
        near = None if plain in known else _nearest(plain, absent)
        if near is not None:
            raise DataError(
                f"the column {column!r} is none that is looked for; did you mean {near!r}?",
                remedy=f"Rename it {near!r}, or name it: --set 'columns.{absent[near]}={column}'; "
                "if it is something else, give it a name that is less like it",
                file=str(file),
                field=column,
            )


def _looked_for(unused: Collection[str], columns: Mapping[str, str]) -> Iterator[str]:
    """Roles without a column. A "weight" is no misspelt height, unless the rest of a box is there;
    what a row is called is of little weight, and much else ends with "id"."""
    boxed = {"x", "y"} <= {_plain(column) for column in unused}
    for role in ROLES:
        if role not in columns and role != "id" and (role not in EXTENT or boxed):
            yield role


def _nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that `name` is a slip of: two letters changed places, or about one is wrong."""
    swapped = [one for one in known if len(one) > 3 and sorted(one) == sorted(name)]
    near = swapped or difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
    return near[0] if near else None


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
