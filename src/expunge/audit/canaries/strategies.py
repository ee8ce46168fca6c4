# SPDX-License-Identifier: Apache-2.0
"""Where the threshold of a bound comes from: a bound may not be chosen by the scores it is computed from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from expunge.audit.canaries.counts import CanaryScores, Counts


@dataclass(frozen=True, slots=True)
class Explicit:
    """One threshold, fixed before the scores were seen."""

    threshold: float


@dataclass(frozen=True, slots=True)
class Split:
    """Choose the threshold on a random share of the canaries, compute the bound on the others."""

    fraction: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {self.fraction}")


@dataclass(frozen=True, slots=True)
class BonferroniGrid:
    """Try every threshold of a grid that was fixed before the scores were seen; each gets its share of the error."""

    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.thresholds or not all(math.isfinite(value) for value in self.thresholds):
            raise ValueError(f"a grid needs finite thresholds, got {self.thresholds}")


@dataclass(frozen=True, slots=True)
class BonferroniHull:
    """Try every vertex of the concave hull of the ROC, as google-deepmind/jax_privacy does.

    The vertices come from the scores themselves and are fewer than the thresholds that were looked at, so what comes
    out is an estimate and not a bound.
    """


Strategy = Explicit | Split | BonferroniGrid | BonferroniHull

#: The best epsilon over the thresholds of the counts and its threshold, at a significance for each threshold.
Finder = Callable[[Counts, float], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a strategy came to.

    Attributes:
        epsilon: at least 0.
        threshold: where it was found; infinite where no threshold shows anything.
        tests: thresholds that shared the significance.
        inserted, held_out: canaries behind the number.
    """

    epsilon: float
    threshold: float
    tests: int
    inserted: int
    held_out: int


def choose(strategy: Strategy, scores: CanaryScores, significance: float, finder: Finder) -> Chosen:
    """Apply a finder as the strategy says.

    Raises:
        Unavailable: if there are too few canaries to split.
    """
    match strategy:
        case Explicit(threshold):
            counts, tests = scores.at([threshold]), 1
        case BonferroniGrid(thresholds):
            counts, tests = scores.at(thresholds), len(thresholds)
        case BonferroniHull():
            counts = scores.hull()
            tests = len(counts.thresholds)
        case Split(fraction, seed):
            first, second = scores.split(fraction, seed)
            counts, tests = second.at([finder(first.hull(), significance)[1]]), 1
    epsilon, at = finder(counts, significance / tests)
    return Chosen(epsilon, at, tests, counts.inserted, counts.held_out)


def describe(strategy: Strategy) -> str:
    """Return in words where the threshold comes from."""
    match strategy:
        case Explicit(threshold):
            return f"threshold {threshold:g}, fixed beforehand"
        case BonferroniGrid(thresholds):
            return f"grid of {len(thresholds)} thresholds fixed beforehand, Bonferroni"
        case BonferroniHull():
            return "vertices of the ROC's hull, Bonferroni; chosen by the scores"
        case Split(fraction, seed):
            return f"threshold chosen on a share of {fraction:g} (seed {seed}), bound on the others"
