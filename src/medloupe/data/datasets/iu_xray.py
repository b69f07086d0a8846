"""IU X-ray (Demner-Fushman et al., JAMIA 23:304, 2016): chest radiographs with de-identified reports.

Two copies are in circulation:

    open-i  NLM's folders `ecgen-radiology/<n>.xml` (NLMCXR_reports.tgz) and `NLMCXR_png/<image>.png`
            (NLMCXR_png.tgz). A report is an `eCitation`: `uId`, `AbstractText` with a `Label`
            (COMPARISON, INDICATION, FINDINGS, IMPRESSION), `MeSH` with `major` and `automatic`, and one
            `parentImage` per image, whose id is the file's stem. It does not say which view is which.
    kaggle  raddar/chest-xrays-indiana-university: `indiana_reports.csv` (uid, MeSH, Problems, image,
            indication, comparison, findings, impression), `indiana_projections.csv` (uid, filename,
            projection: Frontal or Lateral) and `images/images_normalized/<filename>`.

Both are counted against the 3,955 reports and 7,470 images of Open-i; the Kaggle copy has fewer and is
called partial. There is no published split, and reports do not say whose they are: the split is by
examination. XXXX stands for what was removed from the text.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from medloupe.data.builders import report
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.source import MissingImages, image_here, one_of, read_table, require, unique
from medloupe.errors import DataError
from medloupe.types import Conversation, ImageRef, Record

CITATION = (
    "Demner-Fushman D, Kohli MD, Rosenman MB, et al. Preparing a collection of radiology examinations "
    "for distribution and retrieval. J Am Med Inform Assoc 2016;23:304-310."
)
LICENCE: Final = "CC-BY-NC-ND-4.0"
PUBLISHED: Final = {"reports": 3955, "images": 7470}
SECTIONS: Final = ("comparison", "indication", "findings", "impression")
_REPORT_FOLDERS: Final = ("ecgen-radiology", "NLMCXR_reports/ecgen-radiology")
_IMAGE_FOLDERS: Final = ("NLMCXR_png", "images")
_KAGGLE_IMAGES: Final = "images/images_normalized"
_VIEWS: Final = ("Frontal", "Lateral")

Copy = Literal["open-i", "kaggle"]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """One report with the uris of its images and, where the copy gives them, their views."""

    uid: str
    sections: Mapping[str, str]
    images: tuple[str, ...]
    views: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)


class IuXrayConfig(PublishedConfig):
    """A report is asked for by those of `sections` that it has. Examinations with none of them, and
    reports without an image, are asked nothing and counted. `views` needs the Kaggle copy.
    """

    sections: tuple[str, ...] = ("findings", "impression")
    views: tuple[Literal["Frontal", "Lateral"], ...] = ()
    missing_images: MissingImages = "refuse"

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a folder that is no copy, or a faulty report."""
        copy = find_copy(source)
        if self.views and copy == "open-i":
            raise DataError(
                "this copy does not say which view an image is",
                remedy="Leave out 'views', or use the Kaggle copy",
                file=str(source),
                field="views",
            )
        reader = _open_i if copy == "open-i" else _kaggle
        examinations = list(reader(source, progress))
        unique([one.uid for one in examinations], file=source, field="uid")
        records = [self._record(source, one) for one in examinations]
        pictured = [record for record in records if record.images]
        conversations = [row for record in pictured for row in self._conversations(record)]
        found = {
            "reports": len(examinations),
            "images": sum(self._count(source, one) for one in examinations),
            "reports without an image": len(records) - len(pictured),
            "reports without these sections": len(pictured) - len(conversations),
        }
        return Reading(
            card=_card(copy),
            images=source,
            conversations=conversations,
            records=pictured,
            found=found,
        )

    def _record(self, source: Path, one: Examination) -> Record:
        views = one.views or ("",) * len(one.images)
        chosen = [
            (uri, view)
            for uri, view in zip(one.images, views, strict=True)
            if (not self.views or view in self.views) and self._here(source / uri, one.uid)
        ]
        named = {"views": ", ".join(view for _, view in chosen)} if one.views else {}
        return Record(
            id=f"iu_xray/{one.uid}",
            study_id=one.uid,
            images=tuple(ImageRef(uri=uri, study=one.uid) for uri, _ in chosen),
            report={name: text for name, text in one.sections.items() if text},
            labels=one.labels,
            attributes={**one.attributes, **named},
            dataset="iu_xray",
            licence=LICENCE,
        )

    def _here(self, path: Path, uid: str) -> bool:
        return image_here(path, self.missing_images, row=uid)

    def _count(self, source: Path, one: Examination) -> int:
        return sum((source / uri).is_file() for uri in one.images)

    def _conversations(self, record: Record) -> Iterator[Conversation]:
        sections = [name for name in self.sections if record.report.get(name)]
        if sections:
            yield report(record, sections=sections)


def find_copy(source: Path) -> Copy:
    """Which copy lies in a folder.

    Raises:
        DataError: none of them.
    """
    if any((source / name).is_dir() for name in _REPORT_FOLDERS):
        return "open-i"
    if (source / "indiana_reports.csv").is_file():
        return "kaggle"
    raise DataError(
        "no copy of IU X-ray is here",
        remedy="Expected ecgen-radiology/ and NLMCXR_png/ (Open-i), or indiana_reports.csv, "
        f"indiana_projections.csv and {_KAGGLE_IMAGES}/ (Kaggle)",
        file=str(source),
    )


def _open_i(source: Path, progress: Progress) -> Iterator[Examination]:
    """Raises `DataError` on a report that is no XML, has no uId, or names an image outside."""
    folder = next(source / name for name in _REPORT_FOLDERS if (source / name).is_dir())
    pictures = next(
        (name for name in _IMAGE_FOLDERS if (source / name).is_dir()), _IMAGE_FOLDERS[0]
    )
    files = sorted(folder.glob("*.xml"), key=lambda path: (len(path.stem), path.stem))
    if not files:
        raise DataError("holds no report (*.xml)", remedy="Complete the copy", file=str(folder))
    for done, path in enumerate(files, start=1):
        yield _citation(path, pictures)
        progress("reports", done, len(files))


def _citation(path: Path, pictures: str) -> Examination:
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"is no readable XML: {error}", file=str(path)) from None
    uid = root.find(".//uId")
    if uid is None or not uid.get("id"):
        raise DataError("the report has no uId with an id", file=str(path), field="uId")
    texts: dict[str, str] = {}
    for node in root.iter("AbstractText"):
        name = (node.get("Label") or "").lower()
        if name not in SECTIONS:
            raise DataError(f"unknown section {name!r}", file=str(path), field="AbstractText")
        texts[name] = _text(node)
    images = tuple(
        f"{pictures}/{require(node.attrib, 'id', file=path, name='parentImage')}.png"
        for node in root.iter("parentImage")
    )
    automatic = _texts(root, "automatic")
    return Examination(
        uid=str(uid.get("id")),
        sections=texts,
        images=images,
        labels=_texts(root, "major"),
        attributes={"mesh_automatic": "; ".join(automatic)} if automatic else {},
    )


def _kaggle(source: Path, progress: Progress) -> Iterator[Examination]:
    """Raises `DataError` on a missing file or column, a repeated uid, an unknown projection, or an image
    of a report that is not there."""
    path = source / "indiana_projections.csv"
    images: dict[str, list[tuple[str, str]]] = {}
    for line, row in enumerate(read_table(path, ("uid", "filename", "projection")), start=2):
        name = f"line {line}"
        uid, file = (require(row, f, file=path, name=name) for f in ("uid", "filename"))
        view = one_of(row, "projection", _VIEWS, file=path, name=name)
        images.setdefault(uid, []).append((f"{_KAGGLE_IMAGES}/{file}", view))
    table = source / "indiana_reports.csv"
    rows = list(read_table(table, ("uid", "MeSH", "Problems", "image", *SECTIONS)))
    uids = {require(row, "uid", file=table, name="") for row in rows}
    for uid in images:
        if uid not in uids:
            raise DataError(f"no report in {table.name}", file=str(path), row=uid, field="uid")
    for done, row in enumerate(rows, start=1):
        shown = sorted(images.get(row["uid"], ()), key=lambda pair: (pair[1], pair[0]))
        yield Examination(
            uid=row["uid"],
            sections={name: " ".join(row[name].split()) for name in SECTIONS},
            images=tuple(uri for uri, _ in shown),
            views=tuple(view for _, view in shown),
            labels=_listed(row["MeSH"]),
            attributes={
                key: value
                for key, value in (("problems", row["Problems"]), ("examination", row["image"]))
                if value
            },
        )
        progress("reports", done, len(rows))


def _card(copy: Copy) -> DatasetCard:
    return DatasetCard(
        name="iu_xray",
        version=copy,
        description="Frontal and lateral chest radiographs of two hospital systems in Indiana with "
        "reports and MeSH terms",
        licence=LICENCE,
        citation=CITATION,
        access="open: https://openi.nlm.nih.gov/faq",
        tasks=("report",),
        splits="by MedLoupe, by examination: the publisher gives none, and no patients",
        published=dict(PUBLISHED),
    )


def _text(node: ET.Element) -> str:
    return " ".join("".join(node.itertext()).split())


def _texts(root: ET.Element, tag: str) -> tuple[str, ...]:
    return tuple(text for node in root.iter(tag) if (text := _text(node)))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())
