# SPDX-License-Identifier: Apache-2.0
"""Bounds on epsilon against numbers worked out beforehand, naive oracles, and true mechanisms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from expunge.audit.canaries import bounds
from expunge.audit.canaries.bounds import (
    EpsilonBound,
    EpsilonEstimate,
    clopper_pearson_epsilon,
    fdp_one_run_epsilon,
    gaussian_delta,
    gaussian_epsilon,
    gdp_epsilon,
    one_run_epsilon,
    one_run_p_value,
    one_run_rejected,
    proportion_upper,
)
from expunge.audit.canaries.counts import CanaryScores, convex_auc, convex_tpr_at_fpr
from expunge.audit.canaries.strategies import BonferroniGrid, BonferroniHull, Explicit, Split
from expunge.audit.statistics import Unavailable, auc, tpr_at_fpr

HULL = BonferroniHull()


def normals(n: int, shift: float) -> CanaryScores:
    """Scores at the n-quantiles of a normal distribution, those of inserted canaries shifted."""
    grid = stats.norm.ppf((np.arange(n) + 0.5) / n)
    return CanaryScores.of(grid + shift, grid)


def counted(hits: int, inserted: int, alarms: int, held_out: int) -> CanaryScores:
    """Scores 1 and 0 with the given counts at threshold 1."""
    return CanaryScores.of(np.arange(inserted) < hits, np.arange(held_out) < alarms)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "epsilon"),
    [
        (1000, 100, 75, 1e-4, 0.672985), (100000, 1510, 1439, 1e-5, 2.675851), (100, 100, 100, 0.0, 3.492965),
        (10, 10, 10, 0.0, 1.051873), (100, 100, 60, 0.0, 0.051915), (200, 50, 50, 1e-5, 2.779048),
        (1000, 1000, 600, 1e-5, 0.297227),
    ],
)  # fmt: skip
def test_one_run_by_counts(m: int, r: int, v: int, delta: float, epsilon: float) -> None:
    assert one_run_rejected(m, r, v, delta, 0.05) == pytest.approx(epsilon, abs=1e-6)


def test_all_right_guesses_have_a_closed_form() -> None:
    q = 0.05 ** (1 / 100)
    assert one_run_rejected(100, 100, 100, 0.0, 0.05) == pytest.approx(math.log(q / (1 - q)), abs=1e-8)


def naive_p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The theorem, term by term."""
    mass = [math.comb(r, k) * expit(epsilon) ** k * expit(-epsilon) ** (r - k) for k in range(r + 1)]
    worst = max([0.0, *(sum(mass[max(0, v - i) : v]) / i for i in range(1, v + 1))])
    return min(1.0, sum(mass[v:]) + 2 * m * delta * worst)


@pytest.mark.parametrize(("r", "v"), [(12, 9), (20, 20), (5, 1), (7, 0)])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.3, 0.0), (1.7, 1e-3), (0.0, 1e-2)])
def test_the_p_value_is_the_theorems(r: int, v: int, epsilon: float, delta: float) -> None:
    assert one_run_p_value(40, r, v, epsilon, delta) == pytest.approx(
        naive_p_value(40, r, v, epsilon, delta), abs=1e-12
    )


@pytest.mark.parametrize(
    ("hits", "inserted", "alarms", "held_out", "delta", "epsilon"),
    [
        (50, 100, 1, 100, 0.0, 1.989803), (496, 1000, 10, 1000, 1e-5, 3.233449), (100, 100, 0, 100, 0.0, 3.281346),
        (500, 500, 0, 500, 1e-5, 4.905584), (10, 100, 10, 100, 0.0, 0.0),
    ],
)  # fmt: skip
def test_clopper_pearson_by_counts(
    hits: int, inserted: int, alarms: int, held_out: int, delta: float, epsilon: float
) -> None:
    found = clopper_pearson_epsilon(counted(hits, inserted, alarms, held_out), Explicit(1.0), delta=delta)
    assert isinstance(found, EpsilonBound)
    assert found.value == pytest.approx(epsilon, abs=1e-6)


def test_an_upper_bound_of_a_proportion_is_the_tail_of_the_binomial() -> None:
    assert proportion_upper([0], 100, 0.025)[0] == pytest.approx(1 - 0.025 ** (1 / 100), abs=1e-12)
    assert proportion_upper([0], 100, 0.025)[0] == pytest.approx(0.0362167, abs=1e-7)
    for k in (0, 3, 19):
        upper = proportion_upper([k], 20, 0.04)[0]
        assert sum(math.comb(20, i) * upper**i * (1 - upper) ** (20 - i) for i in range(k + 1)) == pytest.approx(0.04)
    assert proportion_upper([20], 20, 0.04)[0] == 1.0


def test_two_sides_look_at_low_scores_too() -> None:
    # Half of the held-out canaries score lower than any inserted one; from above nothing can be told apart.
    scores = counted(100, 100, 50, 100)
    assert clopper_pearson_epsilon(scores, Explicit(1.0), delta=0).value < 0.6
    both = clopper_pearson_epsilon(scores, Explicit(1.0), delta=0, two_sided=True).value
    # 50 of 100 at least .3967 right; the miss rate at most .0362.
    low = 1 - proportion_upper([50], 100, 0.025)[0]
    assert both == pytest.approx(math.log(low / 0.0362167), abs=1e-5)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.5, 1.993091), (1.0, 4.377178), (2.0, 9.997256)])
def test_gaussian_mechanisms(mu: float, epsilon: float) -> None:
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=1e-6)


def test_gaussian_deltas() -> None:
    assert gaussian_delta(0.0, 1.0) == pytest.approx(0.3829249, abs=1e-7)
    assert gaussian_delta(1.0, 1.0) == pytest.approx(0.1269367, abs=1e-7)
    x = np.linspace(-12, 12, 400001)
    gain = np.maximum(stats.norm.pdf(x, 1.3) - math.e**0.7 * stats.norm.pdf(x), 0)  # the definition, integrated
    assert gaussian_delta(0.7, 1.3) == pytest.approx(np.trapezoid(gain, x), abs=1e-8)


@pytest.mark.parametrize(
    ("hits", "alarms", "mu", "epsilon"), [(496, 10, 2.0009562, 10.003144), (600, 400, 0.347039, 1.328890)]
)
def test_gdp_by_counts(hits: int, alarms: int, mu: float, epsilon: float) -> None:
    scores = counted(hits, 1000, alarms, 1000)
    miss, alarm = bounds.error_bounds(scores.at([1.0]), 0.05)
    assert bounds.gaussian_mu(miss, alarm, 1e-5)[0] == pytest.approx(mu, abs=1e-6)
    found = gdp_epsilon(scores, Explicit(1.0), delta=1e-5)
    assert isinstance(found, EpsilonEstimate)
    assert found.value == pytest.approx(epsilon, abs=1e-5)


@pytest.mark.parametrize(
    ("n", "shift", "expected"),
    [
        (250, 1, (0.5397, 1.8677, 0.7575, 0.104)), (1000, 1, (1.0496, 2.996, 0.8938, 0.095)),
        (250, 2, (1.8106, 6.501, 2.0322, 0.396)), (1000, 2, (2.6184, 8.0547, 1.8258, 0.379)),
    ],
)  # fmt: skip
def test_normal_scores(n: int, shift: int, expected: tuple[float, ...]) -> None:
    scores = normals(n, shift)
    found = [method(scores, HULL, delta=1e-5) for method in (clopper_pearson_epsilon, gdp_epsilon, one_run_epsilon)]
    values = [one.value for one in found] + [convex_tpr_at_fpr(scores, 0.01)]
    assert values == pytest.approx(expected, abs=1e-4)
    assert all(isinstance(one, EpsilonEstimate) for one in found)  # the hull was chosen by the scores


@pytest.mark.parametrize(("shift", "epsilon"), [(0, 0.0), (1, 1.13346), (2, 2.311945), (4, 4.395568)])
def test_one_run_on_many_normal_scores(shift: int, epsilon: float) -> None:
    assert one_run_epsilon(normals(10_000, shift), HULL, delta=1e-6).value == pytest.approx(epsilon, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "epsilon"), [(0, 0.0), (1, 2.164749), (2, 4.7218075), (4, 9.133752)])
def test_f_dp_on_many_normal_scores(shift: int, epsilon: float) -> None:
    assert fdp_one_run_epsilon(normals(10_000, shift), HULL, delta=1e-6).value == pytest.approx(epsilon, abs=1e-5)


def test_f_dp_recursion_step_by_step() -> None:
    # The recursion without any shortcut, searched on a fine line of mu.
    m, r, v, s = 60, 20, 18, 0.05

    def rejected(mu: float) -> bool:
        hit, miss = s * v / m, s * (r - v) / m
        for i in reversed(range(v)):
            new = max(miss, stats.norm.cdf(stats.norm.ppf(hit) - mu))
            hit, miss = min(1.0, hit + i / (r - i) * (new - miss)), new
        return hit + miss > r / m

    line = np.linspace(0.01, 3, 300)
    last = max(mu for mu in line if rejected(mu))
    assert last <= bounds.fdp_rejected(m, r, v, s) <= last + line[1] - line[0]


DELTAS = {
    1e-5: (1.5642, 2.0322, 2.1818, 1.8258, 1.4659), 1e-6: (1.5848, 2.1025, 2.4709, 2.8059, 3.0570),
    1e-9: (1.5869, 2.1089, 2.4890, 2.8524, 3.2143),
}  # fmt: skip


@pytest.mark.parametrize("delta", DELTAS)
def test_more_canaries_at_a_fixed_delta_may_show_less(delta: float) -> None:
    found = [one_run_epsilon(normals(n, 2), HULL, delta=delta).value for n in (100, 250, 500, 1000, 2000)]
    assert found == pytest.approx(DELTAS[delta], abs=1e-4)


def test_a_threshold_fixed_beforehand_beats_looking_at_all() -> None:
    sizes = (100, 250, 500, 1000, 2000)
    found = [one_run_epsilon(normals(n, 2), Explicit(2.0), delta=1e-5) for n in sizes]
    assert [one.value for one in found] == pytest.approx((2.0267, 2.3303, 2.6014, 2.7171, 2.8225), abs=1e-4)
    assert all(isinstance(one, EpsilonBound) for one in found)


def test_convexified_and_plain_rates_differ_by_name() -> None:
    small = CanaryScores.of([1, 3], [0, 2])
    assert [convex_tpr_at_fpr(small, fpr) for fpr in (0, 0.25, 0.5)] == [0.5, 0.75, 1.0]
    assert tpr_at_fpr([1, 3], [0, 2], 0.5)[0] == 1.0
    high, low = [0, 4, 6, 7], [1, 2, 3, 5]
    assert convex_auc(CanaryScores.of(high, low)) == 13 / 16
    assert auc(high, low) == 11 / 16
    with pytest.raises(ValueError, match=r"0\.\.1"):
        convex_tpr_at_fpr(small, 1.5)


def test_the_hull_is_the_best_of_all_pairs_of_thresholds() -> None:
    rng = np.random.default_rng(3)
    scores = CanaryScores.of(rng.integers(0, 12, 30) + 2, rng.integers(0, 12, 25))
    every = scores.at([np.inf, *range(14, -1, -1)])
    x, y = every.alarms / 25, every.hits / 30
    for fpr in (0.0, 0.03, 0.2, 0.5, 0.9, 1.0):
        pairs = [
            y[i] if x[i] == x[j] else y[i] + (y[j] - y[i]) * (fpr - x[i]) / (x[j] - x[i])
            for i in range(len(x)) for j in range(len(x)) if x[i] <= fpr <= x[j]
        ]  # fmt: skip
        assert convex_tpr_at_fpr(scores, fpr) == pytest.approx(max(pairs))


def test_a_grid_shares_the_significance() -> None:
    scores, grid = normals(400, 2), (0.0, 1.0, 2.0, 3.0)
    alone = [clopper_pearson_epsilon(scores, Explicit(t), delta=0, confidence=1 - 0.05 / len(grid)).value for t in grid]
    found = clopper_pearson_epsilon(scores, BonferroniGrid(grid), delta=0)
    assert found.value == pytest.approx(max(alone))
    assert found.threshold == grid[int(np.argmax(alone))]


def test_a_split_chooses_on_one_part_only() -> None:
    scores = normals(400, 2)
    found = one_run_epsilon(scores, Split(0.25, seed=5), delta=0)
    assert (found.inserted, found.held_out) == (300, 300)
    first, second = scores.split(0.25, 5)
    threshold = one_run_epsilon(first, HULL, delta=0).threshold
    assert threshold is not None
    again = second.at([found.threshold])
    assert found.value == pytest.approx(
        one_run_rejected(600, int(again.hits[0] + again.alarms[0]), int(again.hits[0]), 0.0, 0.05)
    )
    assert sorted([*first.inserted, *second.inserted]) == sorted(scores.inserted)
    with pytest.raises(Unavailable, match="too few"):
        one_run_epsilon(CanaryScores.of([1.0], [0.0]), Split(), delta=0)


def test_power_is_what_scores_without_overlap_give() -> None:
    apart, grid = CanaryScores.of(np.full(80, -1.0), np.full(70, -9.0)), BonferroniGrid((-2.0, -5.0))
    for method in (clopper_pearson_epsilon, one_run_epsilon, gdp_epsilon, fdp_one_run_epsilon):
        found = method(apart, grid, delta=1e-5)
        assert found.value == pytest.approx(found.power)
        assert found.power > 1
        blurred = method(CanaryScores.of(np.linspace(-9, 0, 80), np.linspace(-9, -1, 70)), grid, delta=1e-5)
        assert blurred.power == pytest.approx(found.power)
        assert blurred.value < found.power


def test_a_handful_of_canaries_can_show_nothing() -> None:
    grid = BonferroniGrid(tuple(range(16)))
    found = clopper_pearson_epsilon(CanaryScores.of([20.0] * 3, [0.0] * 3), grid, delta=1e-5)
    assert (found.value, found.power, found.threshold) == (0.0, 0.0, None)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_bounds_of_randomised_response_hold_as_often_as_they_say(epsilon: float) -> None:
    # Each bit is reported rightly with chance e^eps / (1 + e^eps): exactly (epsilon, 0)-DP.
    rng, above = np.random.default_rng(7), {"one_run": 0, "clopper_pearson": 0}
    for _ in range(200):
        coins = rng.integers(0, 2, 200)
        said = np.where(rng.random(200) < expit(epsilon), coins, 1 - coins)
        scores = CanaryScores.of(said[coins == 1], said[coins == 0])
        for method in (one_run_epsilon, clopper_pearson_epsilon):
            found = method(scores, Explicit(0.5), delta=0.0)
            above[found.method] += found.value > epsilon
    assert all(count <= 20 for count in above.values())  # 5 % of 200 with four standard deviations on top


def test_numbers_out_of_range_are_refused() -> None:
    scores = normals(20, 1)
    with pytest.raises(ValueError, match="confidence"):
        one_run_epsilon(scores, HULL, delta=0, confidence=0.3)
    with pytest.raises(ValueError, match="delta"):
        gdp_epsilon(scores, HULL, delta=0)
    with pytest.raises(Unavailable, match="held-out"):
        CanaryScores.of([1.0], [])
    with pytest.raises(ValueError, match="not a number"):
        CanaryScores.of([float("nan")], [1.0])
    with pytest.raises(ValueError, match="grid"):
        BonferroniGrid(())
    with pytest.raises(ValueError, match="fraction"):
        Split(1.0)
