# SPDX-License-Identifier: Apache-2.0
"""Intervals and ranks: clustered bootstrap, AUC, TPR at a fixed FPR, Kolmogorov-Smirnov, harmonic mean.

Shape letters: n items, K clusters, R bootstrap replicates, U distinct values, M means.

Items of one subject (an author, a patient, a document) are not independent, so a replicate draws K subjects with
replacement and takes all their items. Not-a-number raises `ValueError` naming the item; a number that does not exist
(no items, too few non-members) raises `Unavailable`, whose message is the reason a report prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 4_000_000
"""Largest number of weights held at once: 32 MB in float64."""


class Unavailable(ValueError):
    """There is no number; the message says why."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, or the reason why there is none."""

    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Resample:
    """R bootstrap replicates of K clusters.

    Attributes:
        labels: cluster names in order, [K].
        counts: how often each cluster is drawn, int32 [R, K]; every row sums to K.
    """

    labels: tuple[str, ...]
    counts: NDArray[np.int32]

    def blocks(self, width: int) -> Iterator[NDArray[np.int32]]:
        """Yield `counts` in blocks of rows so that `rows x width` stays small."""
        rows = max(1, _BLOCK // max(1, width))
        for start in range(0, len(self.counts), rows):
            yield self.counts[start : start + rows]


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of items, [n], the cluster of each, [n], and the replicates that redraw those clusters."""

    values: Floats
    clusters: Sequence[str]
    draws: Resample

    def codes(self) -> Ints:
        """Return the index of each item's cluster, [n]; raises `KeyError` for a cluster that is not resampled."""
        index = {label: code for code, label in enumerate(self.draws.labels)}
        return np.array([index[cluster] for cluster in self.clusters], dtype=np.int64)


def checked(values: ArrayLike, what: str, names: Sequence[str] | None = None) -> Floats:
    """Return `values` as float64 [n]; a NaN raises `ValueError` that names the item."""
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(np.isnan(array))
    if bad.size:
        name = names[bad[0]] if names is not None else f"number {bad[0]}"
        raise ValueError(f"{what} of item {name!r} is not a number ({bad.size} of {array.size} items)")
    return array


def resample(clusters: Sequence[str], *, replicates: int, seed: Sequence[int]) -> Resample:
    """Draw bootstrap replicates of the distinct `clusters`; the same names and seed give the same draws."""
    labels = tuple(sorted(set(clusters)))
    if not labels:
        raise Unavailable("there are no items to resample")
    k = len(labels)
    draws = np.random.default_rng(list(seed)).integers(0, k, size=(replicates, k))
    flat = (draws + k * np.arange(replicates)[:, None]).ravel()
    counts = np.bincount(flat, minlength=k * replicates).reshape(replicates, k)
    return Resample(labels, counts.astype(np.int32))


def interval(replicates: Floats, confidence: float) -> Interval:
    """Return the percentile interval of the replicates [R]; no interval if any of them is not finite."""
    undefined = int(np.count_nonzero(~np.isfinite(replicates)))
    if undefined:
        return Interval(None, None, f"the number is undefined in {undefined} of {len(replicates)} replicates")
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def mean_replicates(sample: Sample) -> Floats:
    """Return the mean in every replicate, [R]; NaN where a replicate drew none of the items."""
    codes, k = sample.codes(), len(sample.draws.labels)
    sums = np.bincount(codes, weights=sample.values, minlength=k)
    per_cluster = np.stack([sums, np.bincount(codes, minlength=k)], axis=1)
    # As float64 the product is one matrix multiplication; as integers it would be a slow loop.
    totals = np.concatenate([block.astype(np.float64) @ per_cluster for block in sample.draws.blocks(k)])
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = totals[:, 0] / totals[:, 1]
    return result


def mean_interval(
    values: Floats, clusters: Sequence[str], *, replicates: int, confidence: float, seed: int
) -> Interval:
    """Return the clustered bootstrap interval of a mean."""
    draws = resample(clusters, replicates=replicates, seed=[seed])
    if len(draws.labels) < 2:
        return Interval(None, None, "only one subject: an interval needs two or more")
    return interval(mean_replicates(Sample(values, clusters, draws)), confidence)


def function_replicates(samples: Sequence[Sample], function: Callable[[Floats], Floats]) -> Floats:
    """Return a function of several means in every replicate, [R].

    Args:
        samples: what each of the M means is taken of; means that share items share draws.
        function: maps means [R, M] to numbers [R].
    """
    return function(np.stack([mean_replicates(sample) for sample in samples], axis=1))


def harmonic_mean(values: ArrayLike) -> float:
    """Return the harmonic mean; 0 if any value is 0. Raises `ValueError` for a negative value or none at all."""
    array = checked(values, "value")
    if not array.size:
        raise Unavailable("the harmonic mean of no values does not exist")
    return float(harmonic_mean_rows(array[None, :])[0])


def harmonic_mean_rows(matrix: Floats) -> Floats:
    """Return the harmonic mean of every row of `matrix` [R, M], as [R]; 0 in rows that hold a 0."""
    if np.any(matrix < 0):
        raise ValueError(f"the harmonic mean needs values of at least 0, got {matrix.min()}")
    zero = np.any(matrix == 0, axis=1)
    safe = np.where(zero[:, None], 1.0, matrix)
    result: Floats = np.where(zero, 0.0, matrix.shape[1] / np.sum(1.0 / safe, axis=1))
    return result


def auc(member: ArrayLike, nonmember: ArrayLike) -> float:
    """Return P(member score > non-member score), ties counting one half.

    Args:
        member: scores that are high for members, [n].
        nonmember: scores of items never trained on, [m].

    Raises:
        Unavailable: if either side is empty.
        ValueError: if a score is NaN.
    """
    high, low = _two_sides(member, nonmember)
    order = np.sort(low)
    below = np.searchsorted(order, high, side="left")
    up_to = np.searchsorted(order, high, side="right")
    return float((below + up_to).sum() / (2.0 * high.size * low.size))


def auc_replicates(member: Sample, nonmember: Sample) -> Floats:
    """Return the AUC in every replicate, [R]; both sides have equally many."""
    parts = []
    for up, down in _weights_by_value(member, nonmember):
        beaten = np.cumsum(down, axis=1) - down / 2
        with np.errstate(invalid="ignore"):
            parts.append((up * beaten).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1)))
    return np.concatenate(parts)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a proportion. Source: Clopper and Pearson (1934)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    tail = (1.0 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1.0 - tail, successes + 1, n - successes))
    return low, high


def true_positives(member: ArrayLike, nonmember: ArrayLike, fpr: float) -> int:
    """Return the largest number of members above a threshold that lets through at most `fpr` of the non-members."""
    high, low = _two_sides(member, nonmember)
    allowed = int(np.floor(fpr * low.size + 1e-9))
    if allowed >= low.size:
        return int(high.size)
    # Any threshold just above the (allowed + 1)-th largest non-member score passes at most `allowed` of them.
    return int(np.count_nonzero(high > np.sort(low)[::-1][allowed]))


def tpr_at_fpr(
    member: ArrayLike, nonmember: ArrayLike, fpr: float, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return max{TPR_i : FPR_i <= fpr} without interpolation, with its Clopper-Pearson interval.

    Raises:
        Unavailable: if one non-member alone is more than `fpr` of them, so that the rate cannot be resolved.
    """
    n, m = np.size(member), np.size(nonmember)
    if m and 1.0 / m > fpr * (1 + 1e-9):
        raise Unavailable(f"{m} non-members cannot resolve a false positive rate of {fpr:g}: {1 / fpr:.0f} are needed")
    hits = true_positives(member, nonmember, fpr)
    return (hits / n, *clopper_pearson(hits, n, confidence))


def ks_two_sample(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Return the two-sided two-sample Kolmogorov-Smirnov distance D and its p-value."""
    one, two = _two_sides(first, second, names=("first", "second"))
    result = stats.ks_2samp(one, two)
    return float(result.statistic), float(result.pvalue)


def ks_replicates(first: Sample, second: Sample) -> Floats:
    """Return the Kolmogorov-Smirnov distance in every replicate, [R]; both sides have equally many."""
    parts = []
    for one, two in _weights_by_value(first, second):
        with np.errstate(invalid="ignore"):
            gap = np.cumsum(one, axis=1) / one.sum(axis=1, keepdims=True)
            gap -= np.cumsum(two, axis=1) / two.sum(axis=1, keepdims=True)
        parts.append(np.abs(gap).max(axis=1))
    return np.concatenate(parts)


def ks_p_value(distance: float, n: int, m: int) -> float:
    """Return the large-sample p-value of a two-sample distance; the p-value falls as the distance grows."""
    return float(np.clip(stats.kstwo.sf(distance, max(1, round(n * m / (n + m)))), 0.0, 1.0))


def _two_sides(
    first: ArrayLike, second: ArrayLike, names: tuple[str, str] = ("member", "non-member")
) -> tuple[Floats, Floats]:
    one, two = checked(first, f"{names[0]} score"), checked(second, f"{names[1]} score")
    for array, name in ((one, names[0]), (two, names[1])):
        if not array.size:
            raise Unavailable(f"there are no {name} items")
    return one, two


def _weights_by_value(first: Sample, second: Sample) -> Iterator[tuple[Floats, Floats]]:
    """Yield, block by block, the weight of every distinct pooled value on both sides, each [rows, U]."""
    distinct = np.unique(np.concatenate([first.values, second.values]))
    at = [np.searchsorted(distinct, sample.values) for sample in (first, second)]
    codes = [first.codes(), second.codes()]
    width = len(distinct)
    for one, two in zip(first.draws.blocks(width), second.draws.blocks(width), strict=True):
        yield _spread(one, at[0], codes[0], width), _spread(two, at[1], codes[1], width)


def _spread(counts: NDArray[np.int32], at: Ints, codes: Ints, width: int) -> Floats:
    """Return item weights `counts[:, codes]` summed per distinct value, [rows, width]."""
    order = np.argsort(at, kind="stable")
    starts = np.flatnonzero(np.diff(at[order], prepend=-1))
    out = np.zeros((len(counts), width))
    out[:, at[order][starts]] = np.add.reduceat(counts[:, codes[order]], starts, axis=1)
    return out
