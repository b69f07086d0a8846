"""A file or a tree of files into another folder.

De-identified files and their report go into the output folder; the key and the private list of sources
lie beside it. Names of files and folders are replaced like everything else, since they often are
patients' names.
"""

from __future__ import annotations

import filecmp
import os
import posixpath
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

from pydicom.uid import RE_VALID_UID

from medloupe import __version__
from medloupe.errors import ConfigError, DataError, ImageError
from medloupe.imaging.deidentify.dataset import Known
from medloupe.imaging.deidentify.documents import SUFFIXES
from medloupe.imaging.deidentify.files import Job, clean_dicom, clean_text, known_at
from medloupe.imaging.deidentify.journal import Journal
from medloupe.imaging.deidentify.key import PseudonymKey
from medloupe.imaging.deidentify.ocr import reader
from medloupe.imaging.deidentify.profile import EDITION, DeidentifyConfig, table
from medloupe.imaging.deidentify.report import FileRow, SourceRow, Summary, summarise
from medloupe.imaging.deidentify.text import finder
from medloupe.imaging.dicom import SIGNATURE_BYTES, looks_like_dicom
from medloupe.imaging.workers import Progress, in_workers

_T = TypeVar("_T")
REPORT: Final = "deidentification.jsonl"
_TABLES: Final = tuple(suffix for suffix in SUFFIXES if suffix != ".txt")
# Folder names that say nothing of anybody; every other one may be a patient's.
_PLAIN_NAMES: Final = frozenset(
    (
        *("dicom", "dcm", "images", "image", "data", "reports", "report", "texts", "text"),
        *("series", "study", "studies", "patients", "cases", "train", "training", "val"),
        *("valid", "validation", "test", "ct", "mr", "mri", "pt", "pet", "us", "cr", "dx", "mg"),
        *("xa", "nm", "xray"),
    )
)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A file below the input folder, as it was when the run looked at it."""

    path: Path
    name: str  # below the input folder, with slashes
    size: int
    modified_ns: int

    def row(self, row: FileRow, detail: str = "") -> SourceRow:
        return SourceRow(
            source=self.name,
            size=self.size,
            modified_ns=self.modified_ns,
            detail=detail,
            row=row,
        )


def deidentify(
    source: Path,
    out: Path,
    config: DeidentifyConfig | None = None,
    *,
    key: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """De-identify the DICOM files at `source` into the folder `out`; `source` is only read.

    `key` is a file with the secret of the pseudonyms, made where it does not exist. The default is
    `<out>.key` beside `out`, where the private list `<out>.sources.jsonl` also goes. What is neither
    DICOM nor a report file is listed and stays behind.

    Raises:
        ConfigError: `out` lies in `source` or the other way round, holds other files, or was begun with
            other settings; the key lies inside one of them or cannot be used.
        DataError: there is no file at `source`.
        ImageError: a worker process died.
        MissingExtraError: `dicom-anonymizer` is not installed, or RapidOCR where it is asked for.
    """
    config = config or DeidentifyConfig()
    source, out = source.resolve(), out.resolve()
    _check_places(source, out)
    table()
    if config.ocr:
        reader()
    sources = _sources(source)
    key = (key or out.with_name(f"{out.name}.key")).resolve()
    secret = _key(key, source, out)
    header = {
        "medloupe": __version__,
        "table": EDITION,
        "source": str(source),
        "key": secret.check,
        "settings": config.to_dict(),
    }
    run = _Run(out=out, config=config, key=secret, progress=progress)
    with Journal(out.with_name(f"{out.name}.sources.jsonl"), header, out) as journal:
        out.mkdir(parents=True, exist_ok=True)
        dicom = [item for item in sources if not item.path.is_dir() and _is_dicom(item.path)]
        known = run.images(dicom, journal, workers)
        images = {item.name for item in dicom}
        run.others([item for item in sources if item.name not in images], journal, known)
        rows = [journal.rows[item.name] for item in sources]
    _write_report(out, rows)
    return summarise(rows)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What all files of a run share."""

    out: Path
    config: DeidentifyConfig
    key: PseudonymKey
    progress: Progress | None

    def images(
        self, sources: Sequence[_Source], journal: Journal, workers: int | None
    ) -> list[Known]:
        """De-identify the DICOM files that the journal does not have; what all headers say of people,
        where report files ask for it."""
        todo = [item for item in sources if not self._finished(item, journal)]
        asked = self.config.text != "list"
        done = {item.name for item in todo}
        old = [known_at(item.path) for item in sources if asked and item.name not in done]
        known = [item for item in old if item is not None]
        jobs = [
            Job(path=item.path, part=self._part(item), key=self.key, config=self.config)
            for item in todo
        ]
        died = ImageError(
            "a worker process died; what is finished is kept",
            remedy="Run again with one worker, or free memory",
        )
        results = in_workers(clean_dicom, jobs, workers, died=died, chunksize=8)
        made = self._counted(results, len(jobs), "DICOM files")
        for item, job, result in zip(todo, jobs, made, strict=True):
            row = result.row
            if result.name is not None:
                row = self._settle(row, job.part, result.name)
            journal.add(item.row(row, result.detail))
            if asked and result.known is not None:
                known.append(result.known)
        return known

    def others(self, sources: Sequence[_Source], journal: Journal, known: Sequence[Known]) -> None:
        """Copy or mask report files if that is wanted, and list everything else."""
        todo = [item for item in sources if not self._finished(item, journal)]
        new = NewNames.of(row for row in journal.rows.values() if row.row.kind == "dicom")
        tables = [item.name for item in sources if item.path.suffix.lower() in _TABLES]
        patients = frozenset(one.patient for one in known if _telling(one.patient))
        find = finder(
            known_names=[name for one in known for name in one.names],
            known_ids=[*patients, *(word for one in known for word in (*one.ids, *one.places))],
        )
        for item in self._counted(todo, len(todo), "other files"):
            report = item.path.suffix.lower() in SUFFIXES and item.path.is_file()
            if not report or self.config.text == "list":
                kind = "text" if report else "other"
                reason = "not DICOM" if kind == "other" else "a report file: see --text"
                journal.add(item.row(FileRow(status="listed", kind=kind, reason=reason)))
                continue
            masking, part = self.config.text == "mask", self._part(item)
            row, detail = clean_text(
                item.path,
                part,
                find,
                self.key,
                masking=masking,
                patients=patients,
                renamed=partial(new.seen_from, item.name, part.parent.relative_to(self.out)),
            )
            if row.status == "written":
                name = self._name(item.path.stem, patients)
                plain = name == self.key.name(item.path.stem) and not find(item.path.stem)
                if plain and item.name in tables:
                    name = f"table-{tables.index(item.name) + 1}"
                row = self._settle(row, part, name + item.path.suffix.lower())
            journal.add(item.row(row, detail))

    def _finished(self, item: _Source, journal: Journal) -> bool:
        """Whether an earlier run did this file, and both it and its result are still there."""
        old = journal.rows.get(item.name)
        if old is None or (old.size, old.modified_ns) != (item.size, item.modified_ns):
            return False
        made = old.row.file is None or (self.out / old.row.file).is_file()
        return made and old.row.status != "failed"

    def _part(self, item: _Source) -> Path:
        """Where a file is written before it gets its name; its folders already have theirs."""
        folders = [self._folder(name) for name in item.name.split("/")[:-1]]
        return self.out.joinpath(*folders) / f".{self.key.name(item.name)}.part"

    def _folder(self, name: str) -> str:
        return name if name.lower() in _PLAIN_NAMES else self._name(name, frozenset())

    def _name(self, name: str, patients: frozenset[str]) -> str:
        """UIDs and patient numbers become those that stand in the files; all other names are hashed."""
        if name in patients:
            return self.key.patient(name)
        is_uid = name.count(".") > 3 and RE_VALID_UID.match(name)
        return self.key.uid(name) if is_uid else self.key.name(name)

    def _settle(self, row: FileRow, part: Path, name: str) -> FileRow:
        """Give a finished file its name; a second file of that name keeps both unless they are equal."""
        target = part.with_name(name)
        if target.exists() and not filecmp.cmp(part, target, shallow=False):
            target = target.with_name(f"{target.stem}-{part.stem.strip('.')[:8]}{target.suffix}")
        part.replace(target)
        return row.model_copy(update={"file": target.relative_to(self.out).as_posix()})

    def _counted(self, items: Iterable[_T], total: int, what: str) -> Iterator[_T]:
        for done, item in enumerate(items, start=1):
            yield item
            if self.progress is not None:
                self.progress(what, done, total)


@dataclass(frozen=True)
class NewNames:
    """Where the images went, and the folders that they lie in: source name -> new path below OUT."""

    files: dict[str, str]
    folders: dict[str, str]
    by_name: dict[str, str | None]

    @classmethod
    def of(cls, rows: Iterable[SourceRow]) -> NewNames:
        files: dict[str, str] = {}
        folders: dict[str, str] = {}
        by_name: dict[str, str | None] = {}
        for row in rows:
            if row.row.file is None:
                continue
            old, new = PurePosixPath(row.source), PurePosixPath(row.row.file)
            by_name[old.name] = None if old.name in by_name else str(new)
            files[str(old)] = str(new)
            folders |= {str(a): str(b) for a, b in zip(old.parents, new.parents, strict=True)}
        return cls(files, folders, by_name)

    def seen_from(self, table: str, folder: Path, cell: str, folders: bool) -> str | None:
        """What a cell says that named an image or, with `folders`, one of these: by its path from the
        table's folder or from the top, or by a file's name that occurs once. None for other cells."""
        if not cell.strip("./"):
            return None
        paths = ChainMap(self.files, self.folders) if folders else self.files
        said = cell.replace("\\", "/")
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(table), said))
        if beside in paths:
            return posixpath.relpath(paths[beside], folder.as_posix())
        return paths.get(posixpath.normpath(said)) or self.by_name.get(said)


def _telling(number: str) -> bool:
    """Whether a Patient ID is long enough to be looked for in text: not `1`, not `2021`."""
    return len(number) > (4 if number.isdigit() else 3)


def _check_places(source: Path, out: Path) -> None:
    """Originals are never written to, not even beside them in their folder."""
    if not source.exists():
        raise DataError("no such file or folder", file=str(source))
    if out.exists() and not out.is_dir():
        raise ConfigError("the output is a file; it must be a folder", file=str(out))
    folder = source if source.is_dir() else source.parent
    if out == folder or (source.is_dir() and folder in out.parents) or out in folder.parents:
        raise ConfigError(
            f"the output folder and the originals at {folder} lie inside each other",
            file=str(out),
            remedy="Name a folder elsewhere: what lies in the output is passed on",
        )


def _key(path: Path, source: Path, out: Path) -> PseudonymKey:
    if out in path.parents or (source.is_dir() and source in path.parents):
        raise ConfigError(
            "the key lies in the input or the output folder",
            file=str(path),
            remedy="Keep it where neither is copied from: who has it can link the files to patients",
        )
    return PseudonymKey.load(path) if path.exists() else PseudonymKey.make(path)


def _sources(root: Path) -> list[_Source]:
    """Every file, hidden ones too, sorted by name; links to folders are not followed but stand in it."""
    found = [_source(root, root.name)]
    if root.is_dir():
        found = []
        for folder, folders, names in os.walk(root):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            paths = (Path(folder, name) for name in (*names, *links))
            found += [_source(path, path.relative_to(root).as_posix()) for path in paths]
    if not found:
        raise DataError("there is no file in the folder", file=str(root))
    return sorted(found, key=lambda item: item.name)


def _source(path: Path, name: str) -> _Source:
    """A link that leads nowhere has no size, and fails when it is read."""
    if not path.exists():
        return _Source(path=path, name=name, size=0, modified_ns=0)
    status = path.stat()
    return _Source(path=path, name=name, size=status.st_size, modified_ns=status.st_mtime_ns)


def _is_dicom(path: Path) -> bool:
    """By content; a file that cannot be opened counts, so that it is reported as failed."""
    try:
        with path.open("rb") as stream:
            return looks_like_dicom(stream.read(SIGNATURE_BYTES))
    except OSError:
        return True


def _write_report(out: Path, rows: Iterable[SourceRow]) -> None:
    """The public rows, those of written files by their new name; others have none."""
    lines = [item.row for item in rows]
    lines.sort(key=lambda row: (row.file is None, row.file or "", row.status, row.reason))
    target = out / REPORT
    part = target.with_name(f".{REPORT}.part")
    part.write_text("".join(f"{row.to_json()}\n" for row in lines), encoding="utf-8")
    part.replace(target)
