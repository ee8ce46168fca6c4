# SPDX-License-Identifier: Apache-2.0
"""Lower bounds on epsilon, and estimates of it, from the scores of inserted and held-out canaries.

None of them says anything from above: an attack that shows little may be a weak attack.
Letters: m canaries, r guesses, v right guesses, s significance (1 - confidence).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from expunge.audit.canaries.counts import CanaryScores, Counts
from expunge.audit.canaries.strategies import BonferroniHull, Finder, Strategy, choose, describe
from expunge.audit.statistics import Floats

Kind = Literal["clopper_pearson", "one_run", "gdp", "fdp_one_run"]
_TOLERANCE = 1e-9

_COINS = "every canary was inserted by its own fair coin, and the training does not know the coins otherwise"
_INDEPENDENT = "scores of different canaries are independent of each other, which within one run they are not quite"
_GAUSSIAN = "the trade-off curve of the training is that of a Gaussian mechanism"
_HULL = "the thresholds were chosen by the scores themselves"
_ASSUMPTIONS: dict[Kind, tuple[str, ...]] = {
    "clopper_pearson": (_COINS, _INDEPENDENT),
    "one_run": (_COINS,),
    "gdp": (_COINS, _INDEPENDENT, _GAUSSIAN),
    "fdp_one_run": (_COINS, _GAUSSIAN),
}
_EXTRAPOLATES: tuple[Kind, ...] = ("gdp", "fdp_one_run")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Epsilon:
    """What one computation says about epsilon.

    Attributes:
        method: how it was computed.
        value: epsilon in nats, at least 0.
        delta: the delta that goes with it.
        confidence: 1 - significance, after sharing it between thresholds.
        threshold: score from which a canary was guessed to be inserted; None where no threshold shows anything.
        strategy: where the threshold comes from, in words.
        inserted, held_out: canaries behind the number.
        power: the value that scores without any overlap would have given with as many canaries.
        assumptions: what must hold.
    """

    method: Kind
    value: float
    delta: float
    confidence: float
    threshold: float | None
    strategy: str
    inserted: int
    held_out: int
    power: float
    assumptions: tuple[str, ...]

    def _fields(self) -> dict[str, Any]:
        return asdict(self) | {"assumptions": list(self.assumptions)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonBound(_Epsilon):
    """A lower bound on epsilon that holds with the stated confidence under the stated assumptions."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"kind": "bound"} | self._fields()


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonEstimate(_Epsilon):
    """A number for epsilon that rests on an assumption no score can check: not a bound."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"kind": "estimate"} | self._fields()


def clopper_pearson_epsilon(
    scores: CanaryScores, strategy: Strategy, *, delta: float, confidence: float = 0.95, two_sided: bool = False
) -> EpsilonBound | EpsilonEstimate:
    """Return the epsilon that exact intervals of both error rates at one threshold exclude everything below.

    Source: Jagielski, Ullman and Oprea (2020), arXiv:2006.07709; Nasr et al. (2021), arXiv:2101.04535.

    Args:
        scores: of the canaries.
        strategy: where the threshold comes from.
        delta: in 0..1.
        confidence: in 0.5..1.
        two_sided: also look at low scores among the held-out canaries; the same two intervals serve both.

    Raises:
        ValueError: if a number is out of range.
        Unavailable: if there are too few canaries to split.
    """

    def finder(counts: Counts, significance: float) -> tuple[float, float]:
        miss, alarm = error_bounds(counts, significance)
        values = ratio_epsilon(miss, alarm, delta)
        values = np.maximum(values, ratio_epsilon(alarm, miss, delta)) if two_sided else values
        return _best(values, counts.thresholds)

    return _result("clopper_pearson", scores, strategy, finder, delta, confidence)


def one_run_epsilon(
    scores: CanaryScores, strategy: Strategy, *, delta: float, confidence: float = 0.95
) -> EpsilonBound | EpsilonEstimate:
    """Return the largest epsilon that the number of right guesses in one training run rejects.

    Guesses are one-sided: every canary at or above the threshold is guessed to be inserted, the others are left out.
    The price of delta grows with the number of canaries: keep m delta below 1e-3.
    Source: Steinke, Nasr and Jagielski (2023), arXiv:2305.08846, theorem 5.2.
    Arguments and errors as `clopper_pearson_epsilon`.
    """

    def finder(counts: Counts, significance: float) -> tuple[float, float]:
        def value(guesses: int, right: int, floor: float) -> float:
            return one_run_rejected(counts.canaries, guesses, right, delta, significance, floor)

        return _climb(counts, value, lambda epsilon: float(special.expit(epsilon)))

    return _result("one_run", scores, strategy, finder, delta, confidence)


def fdp_one_run_epsilon(
    scores: CanaryScores, strategy: Strategy, *, delta: float, confidence: float = 0.95
) -> EpsilonEstimate:
    """Return the epsilon of the strongest Gaussian mechanism that the guesses of one training run reject.

    That the mechanism is not so private as mu is shown; the step from mu to epsilon assumes that its trade-off curve
    is Gaussian. Source: Mahloujifar, Melis and Chaudhuri (2024), arXiv:2410.22235, the recursion with a cap.
    Arguments and errors as `clopper_pearson_epsilon`, with `delta` above 0.
    """
    _positive_delta(delta)

    def finder(counts: Counts, significance: float) -> tuple[float, float]:
        def value(guesses: int, right: int, floor: float) -> float:
            return fdp_rejected(counts.canaries, guesses, right, significance, floor)

        # A guess at a Gaussian mechanism is right with at most the chance of its best single guess.
        mu, threshold = _climb(counts, value, lambda mu: 0.5)
        return gaussian_epsilon(mu, delta), threshold

    found = _result("fdp_one_run", scores, strategy, finder, delta, confidence)
    assert isinstance(found, EpsilonEstimate)
    return found


def gdp_epsilon(scores: CanaryScores, strategy: Strategy, *, delta: float, confidence: float = 0.95) -> EpsilonEstimate:
    """Return the epsilon of the Gaussian mechanism whose trade-off curve passes through the bounded error rates.

    Source: Nasr et al. (2023), arXiv:2302.07956; Dong, Roth and Su (2019), arXiv:1905.02383, equation 6 and
    corollary 2.13. Bounded error rates that add up to more than 1 show nothing; jax_privacy counts them as evidence in
    the other direction. Arguments and errors as `clopper_pearson_epsilon`, with `delta` above 0.
    """
    _positive_delta(delta)

    def finder(counts: Counts, significance: float) -> tuple[float, float]:
        miss, alarm = error_bounds(counts, significance)
        best, threshold = _best(gaussian_mu(miss, alarm, delta), counts.thresholds)
        return gaussian_epsilon(best, delta), threshold

    found = _result("gdp", scores, strategy, finder, delta, confidence)
    assert isinstance(found, EpsilonEstimate)
    return found


def proportion_upper(successes: ArrayLike, n: int, significance: float) -> Floats:
    """Return the one-sided Clopper-Pearson upper bound of proportions, [K].

    Args:
        successes: counts, [K].
        n: trials.
        significance: chance that a bound is too low.
    """
    found = np.asarray(successes, dtype=np.float64)
    inside = np.minimum(found, n - 1)
    bounds: Floats = np.where(found < n, stats.beta.ppf(1 - significance, inside + 1, n - inside), 1.0)
    return bounds


def error_bounds(counts: Counts, significance: float) -> tuple[Floats, Floats]:
    """Return upper bounds of the false negative and false positive rates, [K] each, that together fail with `s`."""
    miss = proportion_upper(counts.inserted - counts.hits, counts.inserted, significance / 2)
    return miss, proportion_upper(counts.alarms, counts.held_out, significance / 2)


def ratio_epsilon(miss: Floats, alarm: Floats, delta: float) -> Floats:
    """Return max(0, ln((1 - miss - delta) / alarm)), [K]."""
    left = 1 - miss - delta
    found: Floats = np.where(left > 0, np.log(np.where(left > 0, left, 1.0)) - np.log(alarm), 0.0)
    return np.maximum(found, 0.0)


def gaussian_mu(miss: Floats, alarm: Floats, delta: float) -> Floats:
    """Return max(0, Phi^-1(1 - alarm) - Phi^-1(miss)), [K]; 0 where a bounded rate is too close to 1."""
    usable = np.maximum(miss, alarm) < 1 - delta
    a, b = np.where(usable, alarm, 0.5), np.where(usable, miss, 0.5)
    found: Floats = np.maximum(special.ndtri(1 - a) - special.ndtri(b), 0.0)
    return found


def one_run_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return a bound on the chance of at least `right` right guesses under (epsilon, delta)-DP.

    Source: arXiv:2305.08846, theorem 5.2 and its algorithm; the delta term is 2 m delta max_i P[v > Bin >= v - i] / i.
    """
    chance = special.expit(epsilon)
    at_least = float(stats.binom.sf(right - 1, guesses, chance))
    if delta == 0 or right == 0:
        return at_least
    i = np.arange(1, right + 1)
    between = stats.binom.sf(right - i - 1, guesses, chance) - at_least
    return float(min(1.0, at_least + 2 * canaries * delta * max(0.0, float(np.max(between / i)))))


def one_run_rejected(
    canaries: int, guesses: int, right: int, delta: float, significance: float, floor: float = 0.0
) -> float:
    """Return the largest epsilon that is rejected, or `floor` if that one is not."""

    def margin(epsilon: float) -> float:
        return significance - one_run_p_value(canaries, guesses, right, epsilon, delta)

    return _last_positive(margin, floor)


def fdp_rejected(canaries: int, guesses: int, right: int, significance: float, floor: float = 0.0) -> float:
    """Return the largest mu whose Gaussian mechanism is rejected, or `floor` if that one is not."""
    return _last_positive(lambda mu: 1.0 if _fdp_rejects(mu, canaries, guesses, right, significance) else -1.0, floor)


def _fdp_rejects(mu: float, canaries: int, guesses: int, right: int, significance: float) -> bool:
    """Whether a mu-Gaussian mechanism gives so many right guesses with a chance below the significance."""
    hit, miss = significance * right / canaries, significance * (guesses - right) / canaries
    whole = guesses / canaries
    for i in range(right - 1, -1, -1):
        if hit + miss > whole:  # both only grow
            return True
        grown = max(miss, float(special.ndtr(special.ndtri(hit) - mu)))
        if grown == miss:
            break
        hit, miss = min(hit + i / (guesses - i) * (grown - miss), 1.0), grown
    return hit + miss > whole


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return the delta of a mu-Gaussian mechanism at epsilon. Source: arXiv:1905.02383, corollary 2.13."""
    first = special.log_ndtr(-epsilon / mu + mu / 2)
    second = epsilon + special.log_ndtr(-epsilon / mu - mu / 2)
    return float(np.exp(first) * -np.expm1(min(0.0, second - first)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of a mu-Gaussian mechanism at delta; 0 where delta alone covers it."""
    if mu <= 0:
        return 0.0
    return _last_positive(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0.0)


def power(method: Kind, *, inserted: int, held_out: int, tests: int, delta: float, confidence: float) -> float:
    """Return what scores without any overlap between the two sides would have shown, with as many canaries."""
    significance = (1 - confidence) / tests
    counts = Counts(np.zeros(1), np.array([inserted]), np.array([0]), inserted, held_out)
    miss, alarm = error_bounds(counts, significance)
    if method == "clopper_pearson":
        return float(ratio_epsilon(miss, alarm, delta)[0])
    if method == "gdp":
        return gaussian_epsilon(float(gaussian_mu(miss, alarm, delta)[0]), delta)
    if method == "one_run":
        return one_run_rejected(counts.canaries, inserted, inserted, delta, significance)
    return gaussian_epsilon(fdp_rejected(counts.canaries, inserted, inserted, significance), delta)


def _result(
    method: Kind, scores: CanaryScores, strategy: Strategy, finder: Finder, delta: float, confidence: float
) -> EpsilonBound | EpsilonEstimate:
    if not 0 <= delta < 1 or not 0.5 < confidence < 1:
        raise ValueError(f"out of range: {delta=}, {confidence=}")
    chosen = choose(strategy, scores, 1 - confidence, finder)
    by_scores = isinstance(strategy, BonferroniHull)
    kind = EpsilonEstimate if by_scores or method in _EXTRAPOLATES else EpsilonBound
    return kind(
        method=method, value=chosen.epsilon, delta=delta, confidence=confidence,
        threshold=float(chosen.threshold) if np.isfinite(chosen.threshold) else None, strategy=describe(strategy),
        inserted=chosen.inserted, held_out=chosen.held_out,
        power=power(method, inserted=chosen.inserted, held_out=chosen.held_out, tests=chosen.tests,
                    delta=delta, confidence=confidence),
        assumptions=_ASSUMPTIONS[method] + ((_HULL,) if by_scores else ()),
    )  # fmt: skip


def _best(values: Floats, thresholds: Floats) -> tuple[float, float]:
    """Return the largest value and its threshold; an infinite one where all are 0."""
    at = int(np.argmax(values))
    return (float(values[at]), float(thresholds[at])) if values[at] > 0 else (0.0, np.inf)


def _climb(
    counts: Counts, value: Callable[[int, int, float], float], precision_of: Callable[[float], float]
) -> tuple[float, float]:
    """Return the largest value over the thresholds, looking first where the guesses are most precise.

    Args:
        counts: at the thresholds.
        value: of guesses, right guesses and the value to beat.
        precision_of: share of right guesses below which a value cannot be beaten.
    """
    guesses = counts.hits + counts.alarms
    wrong = [proportion_upper([alarms], int(n), 0.05)[0] if n else 1.0 for alarms, n in
             zip(counts.alarms, guesses, strict=True)]  # fmt: skip
    best, threshold = 0.0, np.inf
    for at in np.argsort(wrong, kind="stable"):
        if not guesses[at] or counts.hits[at] / guesses[at] <= precision_of(best):
            continue
        found = value(int(guesses[at]), int(counts.hits[at]), best)
        if found > best:
            best, threshold = found, float(counts.thresholds[at])
    return best, threshold


def _last_positive(margin: Callable[[float], float], floor: float) -> float:
    """Return where a falling function crosses 0, or `floor` if it is not positive there."""
    if margin(floor) <= 0:
        return floor
    low, high = floor, max(1.0, 2 * floor)
    while margin(high) > 0:
        low, high = high, 2 * high
    return float(optimize.brentq(margin, low, high, xtol=_TOLERANCE))


def _positive_delta(delta: float) -> None:
    if delta <= 0:
        raise ValueError(f"a Gaussian mechanism has no finite epsilon at {delta=}")
