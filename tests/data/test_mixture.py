"""Exact counts, no repetition within a pass, and every sample found alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medloupe.data.dataset import Dataset, DatasetCard
from medloupe.data.mixture import Mixture, MixtureOrder, apportion, merge, source_of
from medloupe.data.shuffle import Shuffle
from medloupe.errors import ConfigError, DataError
from medloupe.train.order import BatchOrder, MixedRows
from medloupe.train.stages import StageConfig
from medloupe.types import Conversation, Record


def mixture(*names: str, **fields: Any) -> Mixture:
    weights = fields.pop("weights", [None] * len(names))
    sources = [
        {"name": name, "data": f"data/{name}", "weight": weight}
        for name, weight in zip(names, weights, strict=True)
    ]
    return Mixture.parse({"sources": sources, **fields})


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 1000])
def test_a_shuffle_has_every_number_once(length: int) -> None:
    shuffle = Shuffle(length, (1, 2))
    assert sorted(shuffle(np.arange(length)).tolist()) == list(range(length))
    assert [int(shuffle(k)[0]) for k in range(length)] == shuffle(np.arange(length)).tolist()


def test_a_shuffle_is_shuffled() -> None:
    """Against what an honest shuffle does: mean displacement a third of the length, few runs kept."""
    found = Shuffle(10_000, (0,))(np.arange(10_000))
    assert abs(np.abs(found - np.arange(10_000)).mean() / 10_000 - 1 / 3) < 0.01
    assert (np.diff(found) == 1).sum() < 10
    # each half of the places gets about half of the small numbers: 2500 +- 5 standard deviations
    assert abs((found[:5000] < 5000).sum() - 2500) < 5 * 25
    assert (Shuffle(10_000, (1,))(np.arange(10_000)) == found).sum() < 10


@pytest.mark.parametrize(
    ("total", "shares", "counts"),
    [
        (10, (3, 1), (8, 2)),  # 7.5 and 2.5: a tie, the earlier takes it
        (100, (1, 1, 1), (34, 33, 33)),
        (7, (0.5, 0.25, 0.25), (3, 2, 2)),  # 3.5, 1.75, 1.75
        (1, (1, 2, 3), (0, 0, 1)),
        (0, (1, 2), (0, 0)),
        (1_000_003, (1e-9, 1), (0, 1_000_003)),
    ],
)
def test_largest_remainder_by_hand(
    total: int, shares: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    assert apportion(total, shares) == counts


def test_shares_of_a_temperature_by_hand() -> None:
    sizes = {"a": 100, "b": 400, "c": 1600}
    by_size = mixture("a", "b", "c", samples=210).order(sizes)
    assert by_size.counts == (10, 40, 160)
    square_roots = mixture("a", "b", "c", samples=70, temperature=2).order(sizes)
    assert square_roots.counts == (10, 20, 40)
    assert mixture("a", "b", "c").order(sizes).counts == (100, 400, 1600)


def test_an_epoch_has_the_exact_counts_and_a_pass_no_repetition() -> None:
    order = mixture("a", "b", weights=[3, 1], samples=40, seed=5).order({"a": 7, "b": 23})
    assert order.counts == (30, 10)
    drawn: dict[int, list[int]] = {0: [], 1: []}
    for epoch in range(23):
        samples = [order[epoch * 40 + k] for k in range(40)]
        assert Counter(source for source, _ in samples) == {0: 30, 1: 10}
        for source, row in samples:
            drawn[source].append(row)
        # rows of a source never differ by more than one full pass
        for source, size in ((0, 7), (1, 23)):
            times = Counter(drawn[source])
            assert max(times.values()) - min(times[row] for row in range(size)) <= 1
    assert set(Counter(drawn[1]).values()) == {10}  # 230 draws of 23 rows: ten whole passes


def test_any_sample_is_found_without_those_before_it() -> None:
    order = MixtureOrder((5, 100, 3), (20, 60, 1), seed=9)
    straight = [order[k] for k in range(400)]
    again = MixtureOrder((5, 100, 3), (20, 60, 1), seed=9)
    numbers = np.random.default_rng(0).permutation(400)
    assert [again[int(k)] for k in numbers] == [straight[k] for k in numbers]
    assert again[10**12] == again[10**12]
    sources, rows = again.at(np.arange(400))
    assert list(zip(sources.tolist(), rows.tolist(), strict=True)) == straight
    assert straight[:81] != straight[81:162]
    assert [MixtureOrder((5, 100, 3), (20, 60, 1), seed=8)[k] for k in range(81)] != straight[:81]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"weights": [1, None]}, "all sources a weight or none"),
        ({"weights": [1, 2], "temperature": 2}, "exclude each other"),
        ({"weights": [1, -2]}, "greater than 0"),
        ({"temperature": 0.5}, "greater than or equal to 1"),
        ({"samples": 0}, "samples"),
    ],
)
def test_mixtures_that_do_not_fit_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        mixture("a", "b", **fields)


def test_two_sources_of_one_name_and_an_empty_one() -> None:
    with pytest.raises(ConfigError, match="one name"):
        mixture("a", "a")
    with pytest.raises(DataError, match="'b' of the mixture has no rows"):
        mixture("a", "b").order({"a": 3})


def test_a_mixture_comes_back_from_yaml() -> None:
    made = mixture("a", "b", weights=[1, 2.5], samples=7)
    assert Mixture.parse(made.to_dict()) == made


def data(root: Path, row: Any, *, licence: str) -> Dataset:
    root.mkdir(parents=True)
    rows = []
    for number in range(3):
        Image.new("L", (8, 8), number).save(root / f"{number}.png")
        fields = row(f"{number}", f"{number}.png", split="train", patient_id=f"p{number}")
        rows.append(Conversation.model_validate(fields))
    records = (Record(id="r0"), Record(id="r1", prior="r0"))
    card = DatasetCard(name=root.name, licence=licence, leak="2 images")
    return Dataset(root, card, tuple(rows), records)


def test_merged_data_keep_their_ids_apart_and_find_their_images(tmp_path: Path, row: Any) -> None:
    merged = merge(
        {
            "one": data(tmp_path / "one", row, licence="CC0"),
            "two": data(tmp_path / "two", row, licence="CC BY"),
        }
    )
    assert [c.id for c in merged.conversations][::3] == ["one:0", "two:0"]
    patients = {c.patient_id for c in merged.conversations}
    assert patients == {f"{s}:p{n}" for s in ("one", "two") for n in range(3)}
    assert all(Path(c.images[0].uri).is_file() for c in merged.conversations)
    assert merged.records[3].prior == "two:r0"
    assert (merged.card.licence, merged.card.leak) == ("CC0; CC BY", "one: 2 images; two: 2 images")
    assert source_of("two:0") == "two"


def test_batches_of_a_mixture(row: Any) -> None:
    """Rows of a stage come from their sources in exact numbers, in batches of similar length."""
    names = [f"big:{n}" for n in range(40)] + [f"small:{n}" for n in range(4)]
    mixed = MixedRows(mixture("small", "big", weights=[1, 1], samples=30, seed=2), names)
    assert mixed.counts == {"small": 15, "big": 15}
    order = BatchOrder([10] * 40 + [200] * 4, 4, seed=1, mixed=mixed)
    assert order.per_epoch == 8
    for epoch in range(4):
        rows = [r for n in range(8) for r in order.batch(epoch * 8 + n)]
        assert Counter(names[r].partition(":")[0] for r in rows) == {"small": 15, "big": 15}
        small = Counter(r for r in rows if r >= 40)
        assert sum(small.values()) == 15
        assert max(small.values()) - min(small.values()) <= 2
    again = BatchOrder([10] * 40 + [200] * 4, 4, seed=1, mixed=mixed)
    assert again.batch(29) == order.batch(29)


def test_a_stage_names_its_mixture() -> None:
    stage = {
        "name": "a",
        "objective": {"name": "language"},
        "trainable": ["connector"],
        "mixture": mixture("a", "b", temperature=3).to_dict(),
    }
    parsed = StageConfig.parse(stage)
    assert parsed.mixture == mixture("a", "b", temperature=3)
    assert StageConfig.parse(parsed.to_dict()) == parsed
    with pytest.raises(ConfigError, match="a mixture or a curriculum"):
        StageConfig.parse(stage | {"curriculum": {"attribute": "width"}})
