"""Your own images with a CSV, TSV or JSONL beside them, or in one folder per class.

    medloupe prepare folder --root my_folder --out data/mine

Columns are found by their names (`columns.ROLES`) or named: `--set columns.image=scan_file`.
What is asked follows from the columns that are there: `label` gives a closed classification, `labels`
(several in a cell) a list, `question` and `answer` VQA, `findings`, `impression` or `report` a report,
`caption` a caption, a label with `x1, y1, x2, y2` findings with boxes, REC and REG, `prior` with
`comparison` or `change` a comparison. Rows that name the same images are one case. Every other column
becomes an attribute. A cell may name a DICOM series by its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.folder.cases import Case, gather, refuse_fractions
from medloupe.data.datasets.folder.columns import ROLES, describe_columns
from medloupe.data.datasets.folder.files import VOLUMES, ImageFiles
from medloupe.data.datasets.folder.pictures import (
    Placed,
    refuse_boxes_outside,
    refuse_other_files,
)
from medloupe.data.datasets.folder.tables import (
    SPLITS,
    Line,
    find_tables,
    read_lines,
    spreadsheets,
)
from medloupe.data.datasets.folder.tasks import TASKS
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.source import MissingImages
from medloupe.errors import ConfigError, DataError, did_you_mean
from medloupe.types import Conversation, ImageRef, Language

_CLASS_COLUMNS = {"image": "image", "label": "label", "split": "split"}


class FolderConfig(PublishedConfig):
    """`file` names the table where there are several, `columns` which column plays which
    role, `image_folder` where below the root images are looked for first. `separators` part several
    values in a cell. `tasks` are those to build (all that the columns allow). `missing_images` says
    what happens to rows whose image is not there.
    """

    title: str = ""
    licence: str = ""
    citation: str = ""
    language: Language = "en"
    file: str = ""
    image_folder: str = ""
    columns: dict[str, str] = Field(default_factory=lambda: dict.fromkeys(ROLES, ""))
    separators: str = ";|"
    tasks: tuple[str, ...] = ()
    missing_images: MissingImages = "refuse"

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` naming file, line, column and what to do."""
        for task in self.tasks:
            if task not in TASKS:
                raise ConfigError(
                    f"unknown task {task!r}; {did_you_mean(task, TASKS)}", field="tasks"
                )
        files = ImageFiles(source, first=self.image_folder, without=out)
        tables = find_tables(source, self.file)
        lines = [
            line for path in tables for line in read_lines(path, self.columns, self.separators)
        ] or lines_of_classes(source, files)
        placed = self._placed(lines, files)
        title = self.title or source.resolve().name
        cases = gather(placed, dataset=title, licence=self.licence, language=self.language)
        refuse_fractions(cases)
        refuse_other_files(placed, source)
        refuse_boxes_outside(placed, source, progress)
        conversations = self._built(cases)
        named = {image.uri for _, images in placed for image in images}
        used = {file for uri in named for file in files.below(uri)}
        return Reading(
            card=self._card(title, lines, files, used, conversations).model_copy(
                update={"notes": _notes(source, lines)}
            ),
            images=source,
            conversations=conversations,
            records=[case.record for case in cases],
            found={"rows": len(placed), "image files": len(used)},
        )

    def _placed(self, lines: Sequence[Line], files: ImageFiles) -> list[Placed]:
        """Every row with its images.

        Raises:
            DataError: rows name images that are not here, and none may be left out.
        """
        placed: list[Placed] = []
        missing: list[tuple[Line, str, str]] = []
        for line in lines:
            images, lost = _images_of(line, files)
            if lost is None:
                placed.append((line, images))
            else:
                missing.append((line, *lost))
        if missing and (self.missing_images == "refuse" or not placed):
            line, role, cell = missing[0]
            what = (
                f"there is no image {cell!r}; {files.near(cell)}" if cell else "the cell is empty"
            )
            raise line.error(
                f"{what} ({len(missing):,} of {len(lines):,} rows have no image)",
                role,
                "Complete the folder, mend the column, or set missing_images=leave_out: such rows are "
                "then left out, and the data set is called partial",
            )
        return placed

    def _built(self, cases: Sequence[Case]) -> list[Conversation]:
        wanted = self.tasks or tuple(TASKS)
        file = str(cases[0].line.file)
        try:
            built = [row for task in wanted for row in TASKS[task](cases)]
        except DataError as error:
            raise DataError.of(error.at(file=file).fault) from None
        if not built:
            labels = {label for case in cases for label in case.record.labels}
            only = f"; all labels are {labels.pop()!r}" if len(labels) == 1 else ""
            columns = ", ".join(cases[0].line.columns.values())
            raise DataError(
                f"the columns ({columns}) give no question of the tasks {', '.join(wanted)}{only}",
                remedy="Add a column label, labels, caption, report or question and answer, or name "
                "the one you have: --set columns.label=my_column",
                file=file,
            )
        return built

    def _card(
        self,
        title: str,
        lines: Sequence[Line],
        files: ImageFiles,
        used: set[str],
        conversations: Sequence[Conversation],
    ) -> DatasetCard:
        given = sum(line.split_of() is not None for line in lines)
        by_patient = f"by patient, or by image where none is named, with seed {self.seed}"
        return DatasetCard(
            name=title,
            description="Own images and tables, read by 'folder'",
            licence=self.licence,
            citation=self.citation,
            tasks=tuple(dict.fromkeys(row.task for row in conversations)),
            splits=f"given for {given:,} of {len(lines):,} rows; others {by_patient}"
            if given
            else by_patient,
            languages=tuple(sorted({row.language for row in conversations})),
            published={"rows": len(lines), "image files": len(files.images | used)},
        )


def _notes(source: Path, lines: Sequence[Line]) -> tuple[str, ...]:
    """How the columns of every table were taken, and which tables were not read."""
    headers: dict[Path, dict[str, None]] = {}
    roles: dict[Path, Mapping[str, str]] = {}
    for line in lines:
        if line.file != source:  # a row of a folder of classes stands in no table
            headers.setdefault(line.file, {}).update(dict.fromkeys(line.cells))
            roles[line.file] = line.columns
    notes = [describe_columns(headers[file], roles[file], file) for file in headers]
    return (
        *notes,
        *(f"{name} was not read: save it as CSV UTF-8" for name in spreadsheets(source)),
    )


def lines_of_classes(source: Path, files: ImageFiles) -> list[Line]:
    """A row for every image in a folder per class, with one folder per split around them or not.

    Raises:
        DataError: fewer than two such folders, or images beside them.
    """
    paths = [path.split("/") for path in sorted(files.images)]
    split = bool(paths) and all(path[0].casefold() in SPLITS and len(path) > 2 for path in paths)
    depth = 1 if split else 0
    classes = {path[depth] for path in paths if len(path) > depth + 1}
    if len(classes) < 2 or any(len(path) < depth + 2 for path in paths):
        unread = spreadsheets(source)
        if unread:
            raise DataError(
                f"there is no table here that can be read: {', '.join(unread)} is a spreadsheet",
                remedy="Open it and save it as CSV UTF-8 in the same folder",
                file=str(source / unread[0]),
            )
        raise DataError(
            f"there is no table here, and {len(paths):,} images do not lie in one folder per class",
            remedy="Add a CSV with the columns image and label (or question and answer, report, "
            "caption, ...), or make one folder per class",
            file=str(source),
        )
    return [
        Line(
            file=source,
            number=number,
            cells={
                "image": "/".join(path),
                "label": path[depth],
                "split": path[0] if split else "",
            },
            columns=_CLASS_COLUMNS,
            separators="",
        )
        for number, path in enumerate(paths, start=1)
    ]


def _images_of(
    line: Line, files: ImageFiles
) -> tuple[tuple[ImageRef, ...], tuple[str, str] | None]:
    """The images of a row, and the first (role, cell) that is not there."""
    refs: list[ImageRef] = []
    for role in ("image", "volume"):
        for cell in line.several(role):
            try:
                uri = files.find(cell)
            except DataError as error:
                raise line.error(error.fault.rule, role, error.fault.remedy) from None
            if uri is None:
                return (), (role, cell)
            refs.append(_ref(line, role, uri, files))
    return tuple(refs), None if refs else ("image", "")


def _ref(line: Line, role: str, uri: str, files: ImageFiles) -> ImageRef:
    folder = (files.root / uri).is_dir()
    whole = folder or role == "volume" or uri.lower().endswith(VOLUMES)
    frame = int(line.number_of("frame")) if line.has("frame") else None
    return ImageRef(
        uri=uri,
        kind="volume" if whole and frame is None else "image",
        frame=frame,
        series=(line.text("series") or None) if folder else None,
        modality=line.text("modality") or None,
    )
