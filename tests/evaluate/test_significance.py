"""p values against enumeration, scipy and hand-worked examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from medloupe.evaluate import significance
from medloupe.evaluate.significance import (
    benjamini_hochberg,
    beyond_zero,
    cluster_sums,
    exchanged,
    grains,
    holm,
    sign_flip,
    standard_error,
    visible,
)
from medloupe.evaluate.statistics import Clustered


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 1), (9, 9), (30, 12), (200, 260)])
def test_with_one_answer_a_patient_it_is_mcnemar_s_exact_test(won: int, lost: int) -> None:
    gaps = np.array([1.0] * won + [-1.0] * lost + [0.0] * 40)
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert sign_flip(grains(gaps), seed=0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("clusters", [5, 12])
def test_few_patients_are_enumerated_as_scipy_does(clusters: int) -> None:
    rng = np.random.default_rng(clusters)
    gaps = rng.normal(0.3, 1, size=clusters)

    def total(sample: np.ndarray, axis: int = -1) -> np.ndarray:
        return sample.sum(axis=axis)

    expected = stats.permutation_test(
        (gaps,), total, permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert sign_flip(grains(gaps), seed=0) == pytest.approx(expected, abs=1e-12)


def test_whole_sums_of_many_patients_are_worked_out() -> None:
    """Gaps of -2 .. 2 in 40 patients: the distribution by enumerating sizes, not signs."""
    gaps = np.random.default_rng(3).integers(-2, 3, size=40)
    shares = {0: 1.0}
    for size in np.abs(gaps):
        nxt: dict[int, float] = {}
        for value, share in shares.items():
            for moved in (value + size, value - size):
                nxt[moved] = nxt.get(moved, 0.0) + share / 2
        shares = nxt
    seen = abs(int(gaps.sum()))
    expected = math.fsum(share for value, share in shares.items() if abs(value) >= seen)
    assert sign_flip(grains(gaps.astype(float)), seed=0) == pytest.approx(expected, abs=1e-12)


def test_drawn_signs_agree_with_the_exact_p() -> None:
    gaps = np.random.default_rng(5).normal(0.35, 1, size=30)
    exact_like = stats.permutation_test(
        (gaps,), np.sum, permutation_type="samples", n_resamples=200_000, rng=1
    ).pvalue
    found = sign_flip(grains(gaps), seed=1)
    assert found == pytest.approx(exact_like, abs=0.012)  # 5 sigma of 10,000 draws
    assert found == sign_flip(grains(gaps), seed=1)
    assert sign_flip(grains(gaps * 0 + 1 + gaps * 1e-3), seed=1) == 1 / (1 + significance.FLIPS)


def test_patients_with_many_answers_count_once() -> None:
    """5 patients, each won 20 times: 2 of 2^5 signs are as far from 0, not 2 of 2^100."""
    rows = Clustered.of([f"p{i // 20}" for i in range(100)])
    assert sign_flip(cluster_sums(grains(np.ones(100)), rows), seed=0) == 2 / 32


def test_fractions_tie_where_they_are_equal() -> None:
    """A third is no exact float: 1 - 2/3 and 1/3 differ in it, and are one grain count."""
    gaps = np.array([1 - 2 / 3, 1 / 3, -(1 / 3), 0.1 + 0.2 - 0.3])
    assert len({abs(int(g)) for g in grains(gaps)[:3]}) == 1
    assert grains(gaps)[3] == 0
    assert sign_flip(grains(gaps), seed=0) == 1.0


def test_exchanging_answers_counts_what_is_as_far_apart() -> None:
    a, b = np.array([1.0, 1, 1, 0, 1, 1]), np.array([0.0, 0, 0, 0, 0, 1])

    def difference(moved_PC: np.ndarray) -> np.ndarray:
        first = np.where(moved_PC == 1, b, a).sum(axis=1)
        return first - np.where(moved_PC == 1, a, b).sum(axis=1)

    every = np.array(list(itertools.product((0, 1), repeat=6)))
    exact = np.mean(np.abs(difference(every)) >= 4)
    assert exchanged(difference, 6, seed=2, permutations=4000) == pytest.approx(exact, abs=0.03)


def test_resamples_beyond_zero() -> None:
    assert beyond_zero(np.array([1.0] * 99 + [-1.0])) == 2 * 2 / 101
    assert beyond_zero(np.zeros(100)) == 1.0
    assert beyond_zero(np.array([np.nan, np.nan, 1.0])) is None


def test_holm_by_hand_and_false_discoveries_as_scipy() -> None:
    p = [0.01, 0.04, None, 0.03, 0.005]
    # sorted: .005 * 4, .01 * 3, .03 * 2, .04 * 1 -> each at least the one before
    assert holm(p) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    expected = stats.false_discovery_control([0.01, 0.04, 0.03, 0.005]).tolist()
    found = benjamini_hochberg(p)
    assert found[2] is None
    assert [q for q in found if q is not None] == pytest.approx(expected, abs=1e-12)
    assert holm([]) == benjamini_hochberg([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_what_could_be_seen_of_independent_rows_is_the_textbook_s() -> None:
    gaps = np.random.default_rng(8).normal(size=50)
    error = standard_error((gaps - gaps.mean()) / 50)
    assert error == pytest.approx(stats.sem(gaps), abs=1e-12)
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert visible(error) == pytest.approx(z * error, rel=1e-6)
    assert visible(0.0) is None
    # ... and so often a difference is found that is as large as it says
    drawn = visible(1 / math.sqrt(50))
    assert drawn is not None
    samples = np.random.default_rng(9).normal(drawn, 1, size=(2000, 50))
    share = np.mean(
        np.abs(samples.mean(axis=1)) / samples.std(axis=1, ddof=1) * math.sqrt(50) > 1.96
    )
    assert share == pytest.approx(0.8, abs=0.04)
