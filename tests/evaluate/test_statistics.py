"""Cases whose resamples can be enumerated, or whose interval theory gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from medloupe.evaluate.scorers.bleu import CocoBleu4
from medloupe.evaluate.statistics import (
    Clustered,
    Estimate,
    bootstrap_mean,
    bootstrap_total,
    paired_difference,
    paired_total_difference,
    percentiles,
    resampled_means,
    resampled_totals,
    resampled_weights,
)


def width(found: Estimate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_two_patients_of_unequal_size_give_exactly_three_means() -> None:
    # Patient a: 0 0 0, patient b: 1. Drawn aa: 0, bb: 1, ab or ba: 1 / 4; odds 1 : 1 : 2.
    values, patients = np.array([0.0, 0, 0, 1]), ["a", "a", "a", "b"]
    means = resampled_means(values, patients, resamples=40_000, seed=1)
    found, counts = np.unique(means, return_counts=True)
    assert found.tolist() == [0.0, 0.25, 1.0]
    assert counts / 40_000 == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.012)  # 5 sigma
    assert bootstrap_mean(values, patients, seed=1) == (0.25, 0.0, 1.0)


def test_three_patients_follow_the_binomial_law() -> None:
    # Values 0 0 1: the mean is k / 3 with k ~ Binomial(3, 1/3). P(k = 3) = 1/27 > 2.5 %.
    means = resampled_means(np.array([0.0, 0, 1]), ["a", "b", "c"], resamples=40_000, seed=2)
    shares = [np.mean(np.isclose(means, k / 3)) for k in range(4)]
    assert shares == pytest.approx([8 / 27, 12 / 27, 6 / 27, 1 / 27], abs=0.013)
    found = bootstrap_mean([0, 0, 1], ["a", "b", "c"], resamples=40_000, seed=2)
    assert found == pytest.approx((1 / 3, 0.0, 1.0))


def test_many_independent_patients_give_the_normal_interval() -> None:
    values = [0.0, 1.0] * 200
    found = bootstrap_mean(values, [str(i) for i in range(400)], resamples=10_000, seed=3)
    half = 1.959964 * math.sqrt(0.25 / 400)  # 0.0490
    assert found.estimate == 0.5
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.004)


def test_equal_answers_within_a_patient_widen_the_interval_by_the_root_of_their_number() -> None:
    per_patient = np.random.default_rng(4).integers(0, 2, size=60).astype(float)
    values = np.repeat(per_patient, 9)
    patients = [f"p{i}" for i in range(60) for _ in range(9)]
    clustered = bootstrap_mean(values, patients, resamples=4000, seed=5)
    naive = bootstrap_mean(values, [str(i) for i in range(540)], resamples=4000, seed=5)
    assert clustered.estimate == naive.estimate
    assert width(clustered) / width(naive) == pytest.approx(3.0, rel=0.1)


def test_where_all_agree_the_open_end_is_the_exact_binomial_bound() -> None:
    # Clopper-Pearson for 20 of 20: 0.025 ^ (1 / 20) = 0.8316. The two questions of each of the
    # 20 patients do not make it 40 of 40.
    patients = [str(i // 2) for i in range(40)]
    assert bootstrap_mean([1.0] * 40, patients, seed=0) == pytest.approx((1, 0.83157, 1), abs=1e-5)
    assert bootstrap_mean([0.0] * 40, patients, seed=0) == pytest.approx((0, 0, 0.16843), abs=1e-5)


def test_nothing_and_one_patient_have_no_interval() -> None:
    assert bootstrap_mean([], [], seed=0) == (None, None, None)
    assert paired_difference([], [], [], seed=0) == (None, None, None)
    assert bootstrap_mean([0, 1], ["a", "a"], seed=0) == (0.5, None, None)


def test_equal_seed_equal_numbers_whatever_the_order_of_rows() -> None:
    rng = np.random.default_rng(6)
    values = rng.integers(0, 2, size=200).astype(float)
    patients = [f"p{i}" for i in rng.integers(0, 30, size=200)]
    first = bootstrap_mean(values, patients, seed=9)
    order = rng.permutation(200)
    assert bootstrap_mean(values[order], [patients[i] for i in order], seed=9) == first
    assert bootstrap_mean(values, patients, seed=10) != first


def test_pairing_keeps_a_constant_gain_apart_from_noise() -> None:
    rng = np.random.default_rng(7)
    hard = rng.random(300)
    patients = [str(i) for i in range(300)]
    steady = paired_difference(hard + 0.01, hard, patients, seed=1)
    assert steady == pytest.approx((0.01, 0.01, 0.01))
    assert paired_difference(hard, hard, patients, seed=1) == (0, 0, 0)
    shuffled = paired_difference(hard + 0.01, rng.permutation(hard), patients, seed=1)
    assert shuffled.low is not None
    assert shuffled.low < 0 < width(shuffled)


def test_a_paired_difference_of_answers_has_the_interval_of_its_signs() -> None:
    # 100 patients: 30 won, 10 lost, 60 alike. Mean 0.2, variance (0.4 - 0.04) / 100.
    ours = [1.0] * 30 + [0.0] * 10 + [1.0] * 60
    theirs = [0.0] * 30 + [1.0] * 10 + [1.0] * 60
    patients = [str(i) for i in range(100)]
    found = paired_difference(ours, theirs, patients, resamples=10_000, seed=2)
    half = 1.959964 * math.sqrt(0.36 / 100)
    assert found == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=0.011)


def test_more_clusters_than_one_chunk_holds() -> None:
    values = np.arange(10_000) % 2
    found = bootstrap_mean(values, [str(i) for i in range(10_000)], resamples=1000, seed=1)
    assert found.estimate == 0.5
    assert width(found) == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 10_000), rel=0.15)


def test_numbers_that_were_published_stay_the_same_to_the_last_bit() -> None:
    rng = np.random.default_rng(11)
    values = rng.random(500)
    patients = [f"p{i}" for i in rng.integers(0, 60, 500)]
    mean = bootstrap_mean(values, patients, resamples=700, seed=4)
    difference = paired_difference(values, rng.random(500), patients, resamples=700, seed=4)
    bits = [float(end).hex() for end in (*mean, *difference) if end is not None]
    assert bits == [
        "0x1.ed37ae517bc7fp-2", "0x1.d43844c917a60p-2", "0x1.03843889e0e77p-1",
        "-0x1.0368ad97d3c70p-6", "-0x1.738c455c605abp-5", "0x1.83199c6409b5bp-7",
    ]  # fmt: skip


def share(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hits over tries, both summed: no mean of rows."""
    return counts[..., 0] / np.maximum(counts[..., 1], 1)


def test_two_patients_give_exactly_three_totals() -> None:
    # Patient a: 1 of 2 and 0 of 4; patient b: 3 of 3. aa: 2 / 12, bb: 6 / 6, ab or ba: 4 / 9.
    counts, patients = np.array([[1, 2], [0, 4], [3, 3]]), ["a", "a", "b"]
    totals = resampled_totals(counts, patients, resamples=40_000, seed=1)
    found, times = np.unique(totals, axis=0, return_counts=True)
    assert found.tolist() == [[2, 12], [4, 9], [6, 6]]
    assert times / 40_000 == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.012)  # 5 sigma
    assert bootstrap_total(counts, patients, share, seed=1) == (4 / 9, 2 / 12, 1.0)


def test_a_mean_written_as_a_total_is_the_mean() -> None:
    rng = np.random.default_rng(12)
    hits, others = rng.integers(0, 2, size=(2, 900))
    patients = [f"p{i}" for i in rng.integers(0, 70, size=900)]
    ones = np.ones(900, dtype=np.int64)
    counts, against = np.stack([hits, ones], axis=1), np.stack([others, ones], axis=1)
    found = bootstrap_total(counts, patients, share, seed=2)
    assert found == pytest.approx(bootstrap_mean(hits, patients, seed=2), abs=1e-12)
    gain = paired_total_difference(counts, against, patients, share, seed=2)
    assert gain == pytest.approx(paired_difference(hits, others, patients, seed=2), abs=1e-12)


def test_totals_that_all_agree_get_the_binomial_bound_and_few_patients_none() -> None:
    patients = [str(i // 2) for i in range(40)]
    right = np.array([[3, 3]] * 40)
    wrong = np.array([[0, 3]] * 40)
    assert bootstrap_total(right, patients, share, seed=0) == pytest.approx(
        (1, 0.83157, 1), abs=1e-5
    )
    assert bootstrap_total(wrong, patients, share, seed=0) == pytest.approx(
        (0, 0, 0.16843), abs=1e-5
    )
    assert bootstrap_total(right, ["a"] * 40, share, seed=0) == (1.0, None, None)
    nothing = np.zeros((0, 2), dtype=np.int64)
    assert bootstrap_total(nothing, [], share, seed=0) == (None, None, None)
    assert paired_total_difference(nothing, nothing, [], share, seed=0) == (None, None, None)
    assert paired_total_difference(right, wrong, ["a"] * 40, share, seed=0) == (1.0, None, None)
    assert paired_total_difference(right, wrong, patients, share, seed=0) == (1.0, 1.0, 1.0)


def test_a_formula_with_guards_against_zero_gets_the_same_bound() -> None:
    """COCO's BLEU is never exactly 0 or 1."""
    coco, patients = CocoBleu4(), ["a", "b", "c"]
    right = np.array([[5, 5, 5, 4, 3, 2, 5, 4, 3, 2]] * 3)
    wrong = np.array([[5, 5, 0, 0, 0, 0, 5, 4, 3, 2]] * 3)
    assert bootstrap_total(right, patients, coco.combine, seed=0) == pytest.approx(
        (1, 0.29240, 1), abs=1e-5
    )
    assert bootstrap_total(wrong, patients, coco.combine, seed=0) == pytest.approx(
        (0, 0, 0.70760), abs=1e-5
    )


def test_a_total_over_more_clusters_than_one_chunk_holds() -> None:
    counts = np.stack([np.arange(10_000) % 2, np.ones(10_000, dtype=np.int64)], axis=1)
    patients = [str(i) for i in range(10_000)]
    totals = resampled_totals(counts, patients, resamples=300, seed=1)
    means = resampled_means(counts[:, 0].astype(float), patients, resamples=300, seed=1)
    assert share(totals) == pytest.approx(means, abs=1e-12)


def test_the_sums_of_a_resample_are_exact_whatever_the_order_of_the_rows() -> None:
    """Thirds and tenths have no exact floats; their sums are still the correctly rounded ones."""
    rng = np.random.default_rng(13)
    values = rng.integers(0, 31, size=400) / 30
    patients = [f"p{i}" for i in rng.integers(0, 40, size=400)]
    names = sorted(set(patients))
    drawn = np.random.default_rng(3).integers(0, len(names), size=(50, len(names)))
    of = {name: [v for v, p in zip(values, patients, strict=True) if p == name] for name in names}
    exact = []
    for one in drawn:
        rows = [value for index in one for value in of[names[index]]]
        exact.append(math.fsum(rows) / len(rows))
    order = rng.permutation(400)
    for at in (np.arange(400), order):
        means = resampled_means(values[at], [patients[i] for i in at], resamples=50, seed=3)
        assert means.tolist() == exact


def test_names_and_their_ranks_are_the_same_clusters() -> None:
    values = np.random.default_rng(14).random(60)
    names = [f"p{i % 7}" for i in range(60)]
    ranks = np.array([i % 7 for i in range(60)])
    assert bootstrap_mean(values, ranks, seed=1) == bootstrap_mean(values, names, seed=1)


def test_a_second_draw_of_as_many_clusters_is_the_first_one() -> None:
    """However many are held at once: kept draws, new ones and those of another seed in between."""
    values, patients = np.arange(9.0), list("aabbccdde")
    first = resampled_means(values, patients, resamples=300, seed=21)
    other = resampled_means(values, patients, resamples=300, seed=22)
    assert resampled_means(values, patients, resamples=300, seed=21).tolist() == first.tolist()
    assert other.tolist() != first.tolist()
    rows = np.concatenate(list(resampled_weights(patients, resamples=300, seed=21)))
    assert (rows @ values / rows.sum(axis=1)).tolist() == pytest.approx(first.tolist())


def test_resamples_without_a_score_are_left_out_up_to_a_half() -> None:
    nan = float("nan")
    assert percentiles(0.5, np.array([0.0, 1.0, nan])) == pytest.approx((0.5, 0.025, 0.975))
    assert percentiles(0.5, np.array([1.0, nan, nan])) == (0.5, None, None)
    members = Clustered(np.array([0, 0, 1]), 3)  # the third cluster has no row
    means = resampled_means(np.array([0.0, 0.0, 1.0]), members, resamples=4000, seed=1)
    assert np.isnan(means).mean() == pytest.approx(1 / 27, abs=0.015)
