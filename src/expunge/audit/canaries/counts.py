# SPDX-License-Identifier: Apache-2.0
"""Canary scores as counts: how many inserted and held-out canaries lie at or above a threshold.

Shape letters: I inserted canaries, O held-out canaries, K thresholds. Scores are high for canaries believed inserted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from expunge.audit.statistics import Floats, Ints, Unavailable, checked


@dataclass(frozen=True, slots=True)
class Counts:
    """Canaries guessed to be inserted at each threshold.

    Attributes:
        thresholds: [K].
        hits: inserted canaries with a score of at least the threshold, [K].
        alarms: held-out canaries with such a score, [K].
        inserted, held_out: I and O.
    """

    thresholds: Floats
    hits: Ints
    alarms: Ints
    inserted: int
    held_out: int

    @property
    def canaries(self) -> int:
        """I + O."""
        return self.inserted + self.held_out


@dataclass(frozen=True, slots=True)
class CanaryScores:
    """One score per canary.

    Attributes:
        inserted: scores of the canaries that were trained on, [I].
        held_out: scores of those that were not, [O].
    """

    inserted: Floats
    held_out: Floats

    @classmethod
    def of(cls, inserted: ArrayLike, held_out: ArrayLike) -> CanaryScores:
        """Return checked scores.

        Raises:
            Unavailable: if either side is empty.
            ValueError: if a score is not a number.
        """
        sides = [checked(values, f"{name} score") for values, name in ((inserted, "inserted"), (held_out, "held-out"))]
        for side, name in zip(sides, ("inserted", "held-out"), strict=True):
            if not side.size:
                raise Unavailable(f"there are no {name} canaries")
        return cls(*sides)

    def at(self, thresholds: ArrayLike) -> Counts:
        """Return the counts at given thresholds, [K]."""
        cuts = np.asarray(thresholds, dtype=np.float64)
        hits, alarms = (
            side.size - np.searchsorted(np.sort(side), cuts, side="left") for side in (self.inserted, self.held_out)
        )
        return Counts(cuts, hits, alarms, self.inserted.size, self.held_out.size)

    def hull(self) -> Counts:
        """Return the counts at the vertices of the concave hull of the ROC curve, both ends included.

        The thresholds fall, so hits and alarms rise from (0, 0) to (I, O).
        """
        pooled = np.unique(np.concatenate([self.inserted, self.held_out]))[::-1]
        every = self.at(np.concatenate([[np.inf], pooled]))
        kept: list[int] = []
        for point in range(len(every.thresholds)):
            while len(kept) > 1 and _not_above(every, kept[-2], kept[-1], point):
                kept.pop()
            kept.append(point)
        return Counts(every.thresholds[kept], every.hits[kept], every.alarms[kept], every.inserted, every.held_out)

    def split(self, fraction: float, seed: int) -> tuple[CanaryScores, CanaryScores]:
        """Return a random share of both sides and the rest of them.

        Raises:
            Unavailable: if a part would be empty.
        """
        rng = np.random.default_rng(seed)
        parts: list[tuple[Floats, Floats]] = []
        for side in (self.inserted, self.held_out):
            order, cut = rng.permutation(side.size), int(side.size * fraction)
            parts.append((side[order[:cut]], side[order[cut:]]))
        if any(not half.size for part in parts for half in part):
            raise Unavailable("too few canaries to split them")
        (one, two), (three, four) = parts
        return CanaryScores(one, three), CanaryScores(two, four)


def _not_above(every: Counts, left: int, middle: int, right: int) -> bool:
    """Whether the middle point lies on or below the line from left to right."""
    x, y = every.alarms, every.hits
    turn = (x[middle] - x[left]) * (y[right] - y[left]) - (y[middle] - y[left]) * (x[right] - x[left])
    return bool(turn >= 0)


def convex_tpr_at_fpr(scores: CanaryScores, fpr: float) -> float:
    """Return the largest true positive rate at a false positive rate when the guesser may mix two thresholds.

    At least as large as `statistics.tpr_at_fpr`, which takes single thresholds only. Source: the ROC of
    google-deepmind/jax_privacy, `auditing.py`.

    Args:
        scores: of the canaries.
        fpr: in 0..1.

    Raises:
        ValueError: if `fpr` is out of range.
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr must be in 0..1, got {fpr}")
    hull = scores.hull()
    steps, first = np.unique(hull.alarms[::-1], return_index=True)
    best = hull.hits[::-1][first]  # where the curve climbs straight up, its top
    return float(np.interp(fpr * hull.held_out, steps, best) / hull.inserted)


def convex_auc(scores: CanaryScores) -> float:
    """Return the area under the concave hull of the ROC curve; at least as large as `statistics.auc`."""
    hull = scores.hull()
    area = np.sum(np.diff(hull.alarms) * (hull.hits[1:] + hull.hits[:-1])) / 2
    return float(area / (hull.inserted * hull.held_out))
