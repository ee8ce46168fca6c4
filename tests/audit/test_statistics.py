# SPDX-License-Identifier: Apache-2.0
"""Ranks, intervals and means against hand-worked numbers and slow oracles."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.audit import statistics as st


def slow_auc(member, nonmember):
    return np.mean([[(m > h) + 0.5 * (m == h) for h in nonmember] for m in member])


def slow_tpr(member, nonmember, fpr):
    best = 0.0
    for threshold in [*member, *nonmember, np.inf]:
        if np.mean(np.asarray(nonmember) >= threshold) <= fpr:
            best = max(best, float(np.mean(np.asarray(member) >= threshold)))
    return best


def test_harmonic_mean_of_nine_and_with_a_zero():  # T5
    assert st.harmonic_mean([0.9, 0.8, 0.5, 0.4, 0.9, 0.6, 0.4, 0.9, 0.5]) == pytest.approx(0.5901639, abs=1e-7)
    assert st.harmonic_mean([1, 1, 0]) == 0.0
    assert st.harmonic_mean([0.95, 0.68]) == pytest.approx(0.7926, abs=1e-4)  # O2
    assert st.harmonic_mean([0.8, 0.5, 0.7, 0.6]) == pytest.approx(0.6303940, abs=1e-7)  # O3
    with pytest.raises(ValueError, match="at least 0"):
        st.harmonic_mean([0.5, -0.1])
    with pytest.raises(st.Unavailable):
        st.harmonic_mean([])


def test_ks_fixtures():  # T4
    assert st.ks_two_sample([1, 2, 3, 4], [3, 4, 5, 6]) == pytest.approx((0.5, 0.7714286), abs=1e-6)
    assert st.ks_two_sample([1, 2, 3, 4, 5], [6, 7, 8, 9, 10])[1] == pytest.approx(2 / 252, abs=1e-9)
    assert st.ks_two_sample([1, 2, 3], [1, 2, 3]) == (0.0, 1.0)
    assert st.ks_two_sample([1], [2])[0] == 1.0


def test_auc_and_tpr_fixture():  # I4
    member, nonmember = [0.9, 0.8, 0.7, 0.3], [0.6, 0.4, 0.2, 0.1]
    assert st.auc(member, nonmember) == 0.875
    assert [st.true_positives(member, nonmember, f) / 4 for f in (0, 0.25, 0.5)] == [0.75, 0.75, 1.0]
    assert st.tpr_at_fpr(member, nonmember, 0.25)[0] == 0.75
    with pytest.raises(st.Unavailable, match="100 are needed"):
        st.tpr_at_fpr(member, nonmember, 0.01)


@pytest.mark.parametrize("seed", range(8))
def test_auc_and_tpr_match_slow_oracles_with_ties(seed):
    rng = np.random.default_rng(seed)
    member, nonmember = rng.integers(0, 6, rng.integers(1, 15)), rng.integers(-1, 5, rng.integers(1, 15))
    assert st.auc(member, nonmember) == pytest.approx(slow_auc(member, nonmember), abs=1e-12)
    for fpr in (0.0, 0.1, 0.25, 0.5, 1.0):
        assert st.true_positives(member, nonmember, fpr) / len(member) == pytest.approx(
            slow_tpr(member, nonmember, fpr)
        )


def test_all_ties_are_one_half_and_complement_holds():
    assert st.auc([1, 1, 1], [1, 1]) == 0.5
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 4, 20), rng.integers(0, 4, 30)
    assert st.auc(a, b) + st.auc(b, a) == pytest.approx(1.0)


def test_infinite_scores_rank_and_nan_is_named():
    assert st.auc([np.inf, 0.0], [-np.inf]) == 1.0
    with pytest.raises(ValueError, match=r"number 1.*not a number"):
        st.auc([0.0, np.nan], [1.0])
    with pytest.raises(ValueError, match="'q7' is not a number"):
        st.checked([1.0, np.nan], "loss", ["q1", "q7"])
    for call in (st.auc, st.ks_two_sample):
        with pytest.raises(st.Unavailable):
            call([], [1.0])
        with pytest.raises(st.Unavailable):
            call([1.0], [])


def test_tpr_needs_enough_nonmembers_exactly():
    member = np.linspace(0, 1, 50)
    assert st.tpr_at_fpr(member, np.zeros(100), 0.01)[0] == 49 / 50
    with pytest.raises(st.Unavailable):
        st.tpr_at_fpr(member, np.zeros(99), 0.01)


def test_clopper_pearson():  # A2: the one-sided bound at 0.025 is the end of the two-sided 95 % interval
    assert st.clopper_pearson(0, 100) == (0.0, pytest.approx(0.0362167, abs=1e-7))
    assert st.clopper_pearson(100, 100)[0] == pytest.approx(0.025 ** (1 / 100))
    assert st.clopper_pearson(1, 1) == (pytest.approx(0.025), 1.0)
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            st.clopper_pearson(*bad)


def slow_replicates(draws, clusters, function):
    """Redraw item lists one replicate at a time."""
    members = {label: [i for i, c in enumerate(clusters) if c == label] for label in draws.labels}
    out = []
    for row in draws.counts:
        picked = [
            i for label, times in zip(draws.labels, row, strict=True) for _ in range(times) for i in members[label]
        ]
        out.append(function(picked))
    return np.array(out)


@pytest.fixture
def two_sides():
    rng = np.random.default_rng(5)
    sides = []
    for seed, n in ((1, 17), (2, 11)):
        clusters = [f"c{i % 4}" if i % 3 else f"own{i}" for i in range(n)]
        draws = st.resample(clusters, replicates=60, seed=[seed])
        sides.append(st.Sample(rng.integers(0, 6, n).astype(float), clusters, draws))
    return sides


def test_mean_replicates_match_a_slow_loop(two_sides):
    sample = two_sides[0]
    slow = slow_replicates(sample.draws, sample.clusters, lambda rows: sample.values[rows].mean())
    np.testing.assert_allclose(st.mean_replicates(sample), slow)


@pytest.mark.parametrize("block", [4_000_000, 40])
def test_auc_and_ks_replicates_match_a_slow_loop(two_sides, block, monkeypatch):
    monkeypatch.setattr(st, "_BLOCK", block)
    one, two = two_sides
    pairs = [(one.values[a], two.values[b]) for a, b in zip(_rows(one), _rows(two), strict=True)]
    np.testing.assert_allclose(st.auc_replicates(one, two), [slow_auc(a, b) for a, b in pairs])
    np.testing.assert_allclose(st.ks_replicates(one, two), [st.ks_two_sample(a, b)[0] for a, b in pairs], atol=1e-12)


def _rows(sample):
    """Return the redrawn item numbers of every replicate."""
    codes = sample.codes()
    return [np.repeat(np.arange(len(codes)), row[codes]) for row in sample.draws.counts]


def test_means_that_share_items_move_together():
    values = np.random.default_rng(0).random(30)
    clusters = [str(i) for i in range(30)]
    draws = st.resample(clusters, replicates=500, seed=[1])
    samples = [st.Sample(values, clusters, draws), st.Sample(1.0 - values, clusters, draws)]
    total = st.function_replicates(samples, lambda means: means.sum(axis=1))
    np.testing.assert_allclose(total, 1.0)


def test_bootstrap_interval_covers_like_theory_and_is_wider_for_clusters():
    rng = np.random.default_rng(1)
    values = rng.normal(size=400)
    free = st.mean_interval(values, [str(i) for i in range(400)], replicates=2000, confidence=0.95, seed=0)
    assert free.high - free.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    repeated = np.repeat(rng.normal(size=20), 20)
    grouped = st.mean_interval(repeated, [str(i // 20) for i in range(400)], replicates=2000, confidence=0.95, seed=0)
    ignored = st.mean_interval(repeated, [str(i) for i in range(400)], replicates=2000, confidence=0.95, seed=0)
    assert grouped.high - grouped.low > 3 * (ignored.high - ignored.low)


def test_bootstrap_is_seeded_and_ignores_item_order():
    clusters = ["a", "b", "c", "a"]
    one = st.resample(clusters, replicates=50, seed=[3])
    two = st.resample(clusters[::-1], replicates=50, seed=[3])
    assert one.labels == two.labels == ("a", "b", "c")
    np.testing.assert_array_equal(one.counts, two.counts)
    assert np.any(one.counts != st.resample(clusters, replicates=50, seed=[4]).counts)
    assert set(one.counts.sum(axis=1)) == {3}


def test_no_items_and_one_subject():
    with pytest.raises(st.Unavailable):
        st.resample([], replicates=10, seed=[0])
    alone = st.mean_interval(np.array([1.0, 2.0]), ["a", "a"], replicates=10, confidence=0.95, seed=0)
    assert alone.low is None
    assert "two" in alone.reason


def test_undefined_replicates_give_no_interval():
    found = st.interval(np.array([1.0, np.nan, np.inf]), 0.95)
    assert found.low is None
    assert "2 of 3" in found.reason


def test_ks_p_value_falls_with_the_distance():
    p = [st.ks_p_value(d, 50, 80) for d in (0.0, 0.1, 0.3, 1.0)]
    assert p[0] == 1.0
    assert p == sorted(p, reverse=True)
