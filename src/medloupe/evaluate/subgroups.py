"""For whom a model works less well: every group that the rows tell of, against the rest.

The groups come from what a row says of its case (sex, age, site, ...), of its images (modality), of its
boxes (lesion size) and of itself (question type, language). A row that does not say stands in a group of
its own, "not recorded". Groups overlap in patients (one patient has a CT and an MR), so patients are
resampled across both sides of a difference. With many groups some differ by chance: the p values of a
scorer's groups are corrected together.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medloupe.evaluate.benchmark import Benchmark
from medloupe.evaluate.metrics import (
    ANSWER_TYPES,
    FEWEST_PATIENTS,
    MODEL,
    clusters_of,
    pools_of,
    task_of,
)
from medloupe.evaluate.pools import Place, Pool, Tested
from medloupe.evaluate.significance import Corrected, corrected
from medloupe.evaluate.statistics import NOTHING, Clustered, Estimate
from medloupe.types import EvalLog, EvalRow

NOT_RECORDED = "not recorded"
OTHERS = "all others"
MOST_VALUES = 12
"""Values of a dimension with a line of their own, the most frequent ones; the rest stand together."""

# What data sets call it, the first that a row has; upper and lower case are the same.
_SEX = ("sex", "gender", "patient_sex", "patientsex")
_AGE = ("age", "patient_age", "patientage", "age_years")
_SITE = ("site", "hospital", "institution", "centre", "center")
_ANATOMY = ("anatomy", "body_part", "bodypartexamined", "organ", "region", "location_category")
# "location" is a part of the body in one data set and a hospital in another
_ANATOMY_OF: Mapping[str, tuple[str, ...]] = {"slake": ("location",)}
_LESION_MM = ("lesion_size_mm", "lesion_diameter_mm")
_LESION_PERCENT = ("lesion_width_percent", "lesion_width")

_AGE_EDGES = (18, 40, 60, 80)
_AGE_BANDS = ("under 18", "18 to 39", "40 to 59", "60 to 79", "80 and over")
_MM_EDGES = (10.0, 30.0)
_MM_BANDS = ("under 10 mm", "10 to 30 mm", "30 mm and over")
_PERCENT_EDGES = (4.0, 8.0)
_PERCENT_BANDS = ("under 4 % of the width", "4 to 8 % of the width", "8 % of the width and over")
_PIXEL_EDGES = (32.0**2, 96.0**2)
_PIXEL_BANDS = ("under 32² pixels", "32² to 96² pixels", "96² pixels and over")  # as COCO has them
_YEARS = {"": 1.0, "y": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}


@dataclass(frozen=True, kw_only=True)
class Subgroup(Corrected):
    """One group under one scorer, and its difference to all other rows of the answer type.

    p is corrected for all groups of the scorer, None where there are too few patients on either side.
    `visible` is the smallest difference that would be seen four times in five.
    """

    dimension: str
    value: str
    scorer: str
    answer_type: str
    n: int
    patients: int
    unscored: int
    score: Estimate
    difference: Estimate = NOTHING
    visible: float | None = None
    note: str = ""


def subgroups(log: EvalLog, benchmark: Benchmark | None = None) -> tuple[Subgroup, ...]:
    """The groups of every dimension that some row tells of, under the first scorer of each answer type.

    Raises:
        ConfigError: the manifest has no benchmark and none is given.
    """
    asked = benchmark or Benchmark.parse(log.manifest.get("benchmark"))
    pools = pools_of(log.rows, log.scores, asked, seed_of(log))
    clusters = clusters_of(log.rows)
    found: list[Subgroup] = []
    for kind in ANSWER_TYPES:
        rows = [row for row in log.rows if row.answer_type == kind]
        if rows:
            name = asked.scorers_of(kind)[0].name
            found += corrected(
                _group(dimension, value, ids, rows, name, pools[name], clusters)
                for dimension, values in groups_of(rows, dataset_name(log)).items()
                for value, ids in values.items()
            )
    return tuple(found)


def groups_of(rows: Sequence[EvalRow], dataset: str = "") -> dict[str, dict[str, frozenset[str]]]:
    """Dimension -> value -> the ids of its rows; dimensions of which no row says anything are left out,
    and so is one in which all rows are alike."""
    found: dict[str, dict[str, frozenset[str]]] = {}
    for dimension, read in dimensions(dataset).items():
        said = {row.id: read(row) for row in rows}
        counts = Counter(value for value in said.values() if value is not None)
        if not counts or (len(counts) == 1 and None not in said.values()):
            continue
        values = _ordered(dimension, counts)
        kept = set(values)
        ids: dict[str, set[str]] = defaultdict(set)
        for id, value in said.items():
            ids[NOT_RECORDED if value is None else value if value in kept else OTHERS].add(id)
        found[dimension] = {
            value: frozenset(ids[value])
            for value in (*values, OTHERS, NOT_RECORDED)
            if value in ids
        }
    return found


def unrecorded(rows: Sequence[EvalRow], dataset: str = "") -> list[str]:
    """The dimensions of which no row says anything."""
    return [
        dimension
        for dimension, read in dimensions(dataset).items()
        if all(read(row) is None for row in rows)
    ]


def dimensions(dataset: str = "") -> dict[str, Callable[[EvalRow], str | None]]:
    """What a row is asked about itself, in the order in which it is shown."""
    anatomy = (*_ANATOMY_OF.get(dataset, ()), *_ANATOMY)
    return {
        "modality": _modality,
        "anatomy": lambda row: _said(row, anatomy),
        "sex": _sex,
        "age": _age,
        "site": lambda row: _said(row, _SITE),
        "question type": task_of,
        "lesion size": _lesion_size,
        "language": lambda row: row.language,
    }


def dataset_name(log: EvalLog) -> str:
    """The name on the data set's card, "" where the manifest has none."""
    card = log.manifest.get("dataset")
    return str(card.get("name", "")) if isinstance(card, dict) else ""


def seed_of(log: EvalLog) -> int:
    """What an evaluation's resamples were drawn with, 0 where the manifest does not say."""
    seed = log.manifest.get("evaluation_seed", 0)
    return seed if isinstance(seed, int) else 0


def _group(
    dimension: str,
    value: str,
    ids: frozenset[str],
    rows: Sequence[EvalRow],
    scorer: str,
    pool: Pool,
    clusters: Mapping[str, int],
) -> Subgroup:
    scored = pool.scored_ids(MODEL)
    inside: list[Place] = [(row.id, MODEL) for row in rows if row.id in ids and row.id in scored]
    outside: list[Place] = [
        (row.id, MODEL) for row in rows if row.id not in ids and row.id in scored
    ]
    own = np.array([clusters[id] for id, _ in inside], dtype=np.intp)
    rest = np.array([clusters[id] for id, _ in outside], dtype=np.intp)
    fewest = min(len(np.unique(own)), len(np.unique(rest)))
    tested, note = Tested(NOTHING), ""
    if inside and outside:
        tested = pool.contrasted(inside, outside, np.concatenate([own, rest]))
        if fewest < FEWEST_PATIENTS:
            note = f"fewer than {FEWEST_PATIENTS} patients on one side: not tested"
            tested = Tested(tested.difference)
    return Subgroup(
        dimension=dimension,
        value=value,
        scorer=scorer,
        answer_type=rows[0].answer_type,
        n=len(inside),
        patients=len(np.unique(own)),
        unscored=len(ids) - len(inside),
        score=pool.estimate(inside, Clustered.of(own)) if inside else NOTHING,
        difference=tested.difference,
        p=tested.p,
        visible=tested.visible,
        note=note,
    )


def _ordered(dimension: str, counts: Counter[str]) -> list[str]:
    """Bands from small to large, other values by how many rows they have."""
    bands = {"age": _AGE_BANDS, "lesion size": (*_MM_BANDS, *_PERCENT_BANDS, *_PIXEL_BANDS)}
    if dimension in bands:
        return [band for band in (*bands[dimension], _UNREADABLE) if counts[band]]
    return sorted(counts, key=lambda value: (-counts[value], value))[:MOST_VALUES]


_UNREADABLE = "not readable"


def _said(row: EvalRow, names: Iterable[str]) -> str | None:
    own = {name.casefold(): value.strip() for name, value in row.attributes.items()}
    return next((own[name] for name in names if own.get(name)), None)


def _modality(row: EvalRow) -> str | None:
    found = sorted({image.modality for image in row.images if image.modality})
    return " + ".join(found) if found else _said(row, ("modality",))


def _sex(row: EvalRow) -> str | None:
    said = _said(row, _SEX)
    known = {"f": "female", "w": "female", "female": "female", "m": "male", "male": "male"}
    return None if said is None else known.get(said.casefold(), said)


def _age(row: EvalRow) -> str | None:
    """Whole years ("45", "45.5"), or DICOM's age string ("045Y", "018M"; PS3.5 6.2, AS)."""
    said = _said(row, _AGE)
    if said is None:
        return None
    found = re.fullmatch(
        r"(\d+(?:\.\d+)?)\s*([ymwd]?)(?:ears?|onths?|eeks?|ays?|/?o)?", said.lower()
    )
    if found is None:
        return _UNREADABLE
    return _AGE_BANDS[bisect_right(_AGE_EDGES, float(found[1]) * _YEARS[found[2]])]


def _lesion_size(row: EvalRow) -> str | None:
    """The largest true box in mm where the spacing is known; else what the case says of it; else pixels."""
    longest = [max(box.size_mm) for box in row.truth_boxes if box.size_mm]
    if longest:
        return _MM_BANDS[bisect_right(_MM_EDGES, max(longest))]
    for names, edges, bands in (
        (_LESION_MM, _MM_EDGES, _MM_BANDS),
        (_LESION_PERCENT, _PERCENT_EDGES, _PERCENT_BANDS),
    ):
        said = _said(row, names)
        if said is not None:
            number = next(_numbers(said), None)
            return _UNREADABLE if number is None else bands[bisect_right(edges, number)]
    areas = [(box.x2 - box.x1) * (box.y2 - box.y1) for box in row.truth_boxes]
    return _PIXEL_BANDS[bisect_right(_PIXEL_EDGES, max(areas))] if areas else None


def _numbers(text: str) -> Iterator[float]:
    for found in re.findall(r"\d+(?:\.\d+)?", text):
        yield float(found)
