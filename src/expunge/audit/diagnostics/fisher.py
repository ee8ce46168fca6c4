# SPDX-License-Identifier: Apache-2.0
"""The diagonal of the empirical Fisher matrix: how sharply the loss depends on each weight.

Shape suffix: P weights of one layer.

Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017, section 2 (the diagonal);
Kunstner et al., "Limitations of the Empirical Fisher Approximation", 2019, equation 3 (squares of single gradients,
averaged: the square of an averaged gradient is something else, and smaller).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.audit.statistics import Unavailable

Counts = NDArray[np.int64]
#: Edges of the bins, powers of ten: two to a decade, wide enough for every float32 gradient, the same for all models.
EDGES = tuple(-30 + step / 2 for step in range(81))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Share of the weights whose part of the mass is reported.
TOP = 0.01


class Histogram(NamedTuple):
    """How many weights fall into each bin of `EDGES`, and how many have no curvature at all."""

    counts: Counts
    zeros: int

    @property
    def shares(self) -> NDArray[np.float64]:
        """The share of all weights in each bin, the one of the zeros first."""
        every: NDArray[np.float64] = np.concatenate([[self.zeros], self.counts]).astype(np.float64)
        return np.asarray(every / every.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFisher:
    """One layer of two models, entry by entry.

    Attributes:
        mass_before, mass_after: sum over the weights of the diagonal, nats squared per weight squared.
        ratio: mass_after / mass_before.
        log_ratio: quantiles (`QUANTILES`) of log10(after / before), over weights where neither is zero.
        spectrum_before, spectrum_after: quantiles of log10 of the entries that are not zero.
        top_before, top_after: share of the mass in the largest hundredth of the weights.
        before, after: histograms of log10 of the entries.
        overlap: what the histograms share, in 0..1.
    """

    mass_before: float
    mass_after: float
    ratio: float
    log_ratio: tuple[float, ...]
    spectrum_before: tuple[float, ...]
    spectrum_after: tuple[float, ...]
    top_before: float
    top_after: float
    before: Histogram
    after: Histogram
    overlap: float


def mean_square(gradients: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Return E[g^2] over samples, float32: the diagonal of the empirical Fisher matrix.

    Args:
        gradients: for every sample its own gradient, as tensors of the same shapes; read once, one sample at a time.

    Raises:
        ValueError: if there is no sample.
    """
    total: list[Tensor] = []
    n = 0
    for gradient in gradients:
        n += 1
        if not total:
            total = [torch.zeros_like(g, dtype=torch.float32) for g in gradient]
        for sum_, g in zip(total, gradient, strict=True):
            sum_.addcmul_(g.float(), g.float())
    if not n:
        raise ValueError("a mean over no samples does not exist")
    return [sum_.div_(n) for sum_ in total]


def histogram(diagonal_P: Tensor) -> Histogram:
    """Return how the entries of a diagonal are spread over powers of ten; what is beyond the edges is in the last bin.

    Raises:
        ValueError: if an entry is negative or not finite.
    """
    values = diagonal_P.numpy()
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("a mean of squares must be finite and not below 0")
    positive = values[values > 0]
    logs = np.clip(np.log10(positive.astype(np.float64)), EDGES[0], EDGES[-1])
    counts, _ = np.histogram(logs, bins=np.array(EDGES))
    return Histogram(counts.astype(np.int64), values.size - positive.size)


def overlap(one: Histogram, other: Histogram) -> float:
    """Return the area that two histograms share, in 0..1."""
    return float(np.minimum(one.shares, other.shares).sum())


def compare(before_P: Tensor, after_P: Tensor) -> LayerFisher:
    """Return how the diagonal of one layer changed.

    Args:
        before_P: the diagonal of the model before, float32 on the CPU.
        after_P: the same weights in the model after.

    Raises:
        ValueError: if they are not of the same weights.
        Unavailable: if one of them is zero everywhere.
    """
    if before_P.shape != after_P.shape:
        raise ValueError(f"diagonals of {tuple(before_P.shape)} and {tuple(after_P.shape)} weights cannot be compared")
    masses = [float(diagonal.double().sum()) for diagonal in (before_P, after_P)]
    if min(masses) == 0:
        raise Unavailable("the loss does not depend on this layer at all")
    both = (before_P > 0) & (after_P > 0)
    if not both.any():
        raise Unavailable("no weight of this layer has curvature in both models")
    changes = np.log10(after_P[both].numpy().astype(np.float64) / before_P[both].numpy())
    one, other = histogram(before_P), histogram(after_P)
    return LayerFisher(
        mass_before=masses[0], mass_after=masses[1], ratio=masses[1] / masses[0], log_ratio=_quantiles(changes),
        spectrum_before=spectrum(before_P), spectrum_after=spectrum(after_P), top_before=concentration(before_P),
        top_after=concentration(after_P), before=one, after=other, overlap=overlap(one, other),
    )  # fmt: skip


def spectrum(diagonal_P: Tensor) -> tuple[float, ...]:
    """Return the quantiles (`QUANTILES`) of log10 of the entries that are not zero."""
    return _quantiles(np.log10(diagonal_P[diagonal_P > 0].numpy().astype(np.float64)))


def concentration(diagonal_P: Tensor) -> float:
    """Return the share of the mass in the largest hundredth of the entries (one entry at least), in 0..1."""
    largest = torch.topk(diagonal_P, max(1, round(TOP * diagonal_P.numel()))).values
    return float(largest.double().sum() / diagonal_P.double().sum())


def _quantiles(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.quantile(values, QUANTILES))
