"""LLaVA-Med (Li et al., NeurIPS 2023, arXiv:2306.00890): figures of PubMed Central with their captions
(alignment) and with conversations that GPT-4 wrote from the captions (instruct).

Layout, from the official repository (microsoft/LLaVA-Med: README, download_data.sh; in v1.0.0
llava/data/download_images.py, llava/instruct/instruct_postprocess.py, llava/train/train.py):

    alignment/llava_med_alignment_500k.json
    instruct/llava_med_instruct_60k_inline_mention.json (also 60k and 10k, by `file`)
    images/<id>.jpg             taken from the articles by the publisher's script

    {"id": "18627621_F2", "image": "18627621_F2.jpg", "domain": {"chest_xray": true, ...},
     "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}, ...]}

The key of the turns is misspelt `conversatons` in some of the files (train.py reads both); so does
this. JSON files may also lie beside the folders. The part of an id before "_" is the PubMed id of
the article: figures of one article stay in one split.

The papers speak of 600K, 500K and 60K rows; exact numbers of rows are not published. What is
published is the size of each file (Git LFS pointers of the repository), so a copy is checked against
that: fewer bytes are a partial copy, more are something else.

Many figures cannot be had any more: `missing_images="leave_out"` leaves their rows out and says so.
Files are read row by row; the conversations are in memory at once, 5 kB each for alignment (2.5 GB
for 500K) and 10 kB for instruct, twice that while they are being adopted. Images stay where they
are unless `images=copy`.
"""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from medloupe.data.adopt import Images
from medloupe.data.builders import Piece, caption, dialogue
from medloupe.data.builders.reports import is_brief
from medloupe.data.dataset import DatasetCard, Progress
from medloupe.data.datasets.published import PublishedConfig, Reading
from medloupe.data.source import MissingImages, image_here, one_of, require, unique
from medloupe.data.streaming import stream_rows
from medloupe.errors import DataError, did_you_mean
from medloupe.types import Conversation, ImageRef, Record, Split

LICENCE: Final = "CC-BY-NC-4.0 (research use only; not for clinical decisions)"
CITATION: Final = (
    "Li C, Wong C, Zhang S, Usuyama N, Liu H, Yang J, Naumann T, Poon H, Gao J. LLaVA-Med: training "
    "a large language-and-vision assistant for biomedicine in one day. NeurIPS 2023."
)
# Bytes of each file, from the Git LFS pointers in the official repository.
BYTES: Final[Mapping[str, int]] = {
    "llava_med_alignment_500k.json": 358_112_840,
    "llava_med_instruct_10k.json": 20_176_754,
    "llava_med_instruct_60k.json": 88_758_916,
    "llava_med_instruct_60k_inline_mention.json": 87_669_379,
}
# The five domains, with the modality where the domain is one (DICOM PS3.3 C.7.3.1.1.1).
DOMAINS: Final[Mapping[str, str | None]] = {
    "chest_xray": "DX",
    "ct_scan": "CT",
    "mri": "MR",
    "histology": "SM",
    "gross": "XC",
}
SHARES: Final[Mapping[Split, float]] = {"train": 1.0}
_SPEAKERS: Final = ("human", "gpt")
_PLACEHOLDER: Final = "<image>"

Raw = Mapping[str, Any]


class LlavaMedConfig(PublishedConfig, abc.ABC):
    """Both parts. Everything trains by default, as the publisher has it."""

    part: ClassVar[str]

    images: Images = "reference"
    missing_images: MissingImages = "refuse"
    fractions: dict[Split, float] = Field(default_factory=lambda: dict(SHARES))

    @property
    @abc.abstractmethod
    def file_name(self) -> str:
        """The publisher's name of the JSON file."""

    @abc.abstractmethod
    def build(self, record: Record, turns: Sequence[tuple[str, str]], file: Path) -> Conversation:
        """The conversation of one row, from its question and answer turns."""

    def read(self, source: Path, out: Path, progress: Progress) -> Reading:
        """Raises `DataError` on a faulty row or, unless that is allowed, a missing image."""
        path = _find(source, self.part, self.file_name)
        folder = source / "images"
        size = path.stat().st_size
        conversations, rows = [], 0
        for raw in stream_rows(path):
            rows += 1
            record = _record(raw, path, name=f"llava_med_{self.part}")
            if image_here(folder / record.images[0].uri, self.missing_images, row=record.id):
                conversations.append(self.build(record, _turns(raw, path, record.id), path))
        unique([row.id for row in conversations], file=path, field="id")
        size_of = f"bytes of {path.name}"
        return Reading(
            card=self._card({"rows with their image": rows, size_of: BYTES[path.name]}),
            images=folder,
            conversations=conversations,
            found={"rows with their image": len(conversations), size_of: size},
        )

    def _card(self, published: Mapping[str, int]) -> DatasetCard:
        return DatasetCard(
            name=f"llava_med_{self.part}",
            version=self.file_name.removesuffix(".json"),
            description="Figures of PubMed Central "
            + ("with captions" if self.part == "alignment" else "with conversations by GPT-4"),
            licence=LICENCE,
            citation=CITATION,
            access="open: https://github.com/microsoft/LLaVA-Med (figures: PubMed Central)",
            tasks=("caption",) if self.part == "alignment" else ("conversation",),
            splits="the publisher holds nothing out; others are by article",
            published=dict(published),
        )


class LlavaMedAlignmentConfig(LlavaMedConfig):
    """Captions as single-turn instructions, brief for captions of fewer than 30 words, else detailed
    (LLaVA-Med, section 3.1).

    `instructions`: keep the wording in the file, which follows that rule, or choose one of
    MedLoupe's by the same rule.
    """

    part: ClassVar[str] = "alignment"

    instructions: Literal["published", "own"] = "published"

    @property
    def file_name(self) -> str:
        return "llava_med_alignment_500k.json"

    def build(self, record: Record, turns: Sequence[tuple[str, str]], file: Path) -> Conversation:
        """Raises `DataError` on a row of several turns."""
        if len(turns) != 1:
            raise DataError(f"{len(turns)} turns; expected one", file=str(file), row=record.id)
        answer = turns[0][1]
        record = record.model_copy(update={"report": {"caption": answer}})
        if self.instructions == "own":
            return caption(record, answer, seed=self.seed)
        form = "brief" if is_brief(answer, "en") else "detailed"
        return _published(record, turns, task="caption", template=f"caption/{form}/en")


class LlavaMedInstructConfig(LlavaMedConfig):
    """Conversations of several turns. `file` names one of the published files; the default is the one
    that also used the sentences that mention the figure (60K-IM)."""

    part: ClassVar[str] = "instruct"

    file: Literal["60k_inline_mention", "60k", "10k"] = "60k_inline_mention"

    @property
    def file_name(self) -> str:
        return f"llava_med_instruct_{self.file}.json"

    def build(self, record: Record, turns: Sequence[tuple[str, str]], file: Path) -> Conversation:
        return _published(record, turns, task="conversation", template="conversation/en")


def _find(source: Path, part: str, name: str) -> Path:
    """The file in its folder, or beside the folders."""
    inside = source / part / name
    return source / name if not inside.is_file() and (source / name).is_file() else inside


def _record(raw: Raw, path: Path, *, name: str) -> Record:
    row = str(require(raw, "id", file=path, name="without id"))
    image = str(require(raw, "image", file=path, name=row))
    domains = _domains(raw, path, row)
    modalities = {DOMAINS[domain] for domain in domains}
    return Record(
        id=f"{name}/{row}",
        patient_id=f"pmid-{row.partition('_')[0]}",
        images=(ImageRef(uri=image, modality=modalities.pop() if len(modalities) == 1 else None),),
        attributes={"domain": ", ".join(domains)} if domains else {},
        dataset=name,
        licence=LICENCE,
    )


def _domains(raw: Raw, path: Path, row: str) -> list[str]:
    """The domains that are marked true; a figure may show several, or none."""
    marks = raw.get("domain") or {}
    if not isinstance(marks, dict):
        raise DataError("is no object of marks", file=str(path), row=row, field="domain")
    return [
        one_of({"domain": name}, "domain", DOMAINS, file=path, name=row)
        for name, marked in marks.items()
        if marked
    ]


def _turns(raw: Raw, path: Path, row: str) -> list[tuple[str, str]]:
    """(question, answer) pairs; the image stands once, before or after the first question."""
    key = "conversatons" if "conversatons" in raw else "conversations"
    said = require(raw, key, file=path, name=row)
    texts = list(_texts(said, key, path, row))
    if len(texts) % 2 or not texts:
        raise DataError("a question has no answer", file=str(path), row=row, field=key)
    placed = Counter(number for number, text in enumerate(texts) if _PLACEHOLDER in text)
    if list(placed) != [0] or texts[0].count(_PLACEHOLDER) != 1:
        raise DataError(
            "the image does not stand once, in the first question",
            file=str(path),
            row=row,
            field=key,
        )
    return list(zip(texts[::2], texts[1::2], strict=True))


def _texts(said: Any, key: str, path: Path, row: str) -> Iterator[str]:
    if not isinstance(said, list):
        raise DataError("is no list of turns", file=str(path), row=row, field=key)
    for number, turn in enumerate(said):
        field = f"{key}.{number}"
        expected = _SPEAKERS[number % 2]
        if not isinstance(turn, dict) or turn.get("from") != expected:
            speaker = str(turn.get("from")) if isinstance(turn, dict) else repr(turn)
            hint = "" if speaker in _SPEAKERS else f"; {did_you_mean(speaker, _SPEAKERS)}"
            rule = f"expected {expected!r} to speak, found {speaker!r}{hint}"
            raise DataError(rule, file=str(path), row=row, field=field)
        yield str(require(turn, "value", file=path, name=row)).strip()


def _published(
    record: Record, turns: Sequence[tuple[str, str]], *, task: str, template: str
) -> Conversation:
    """The turns in the publisher's words, the image where the first question has it."""
    (first, answer), *others = turns
    before, after = (part.strip() for part in first.split(_PLACEHOLDER))
    question: list[Piece] = [part for part in (before, record.images[0], after) if part != ""]
    return dialogue(record, task=task, turns=[(question, answer), *others], template=template)
