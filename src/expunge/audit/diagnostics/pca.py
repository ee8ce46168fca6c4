# SPDX-License-Identifier: Apache-2.0
"""Principal components: whether the main direction of the states stays, and how far their mean moves.

Shape suffixes: N texts, D width, K components.

Source: Xu et al., "Unlearning Isn't Deletion: Investigating Reversibility of Machine Unlearning in LLMs", 2025
(arXiv:2505.16831), PCA similarity and PCA shift.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from expunge.audit.diagnostics.cka import ROUNDING
from expunge.audit.statistics import Unavailable


class Components(NamedTuple):
    """Principal components of one model's states.

    Attributes:
        mean_D: mean state.
        axes_KD: unit directions, the first the one of the largest variance; the entry of largest size is positive.
        variances_N: all variances, falling, of the 1/n kind.
    """

    mean_D: Tensor
    axes_KD: Tensor
    variances_N: Tensor

    @property
    def gap(self) -> float:
        """(first - second variance) / first: near 0 the first direction is arbitrary."""
        first, second = (float(v) for v in self.variances_N[:2])
        return (first - second) / first

    def project(self, x_ND: Tensor) -> Tensor:
        """Return the coordinates of states along the axes, from the mean, [N, K] float64."""
        return (x_ND.double() - self.mean_D) @ self.axes_KD.T


class Similarity(NamedTuple):
    """|cos| between two first directions, and the gap behind each of them."""

    value: float
    gap_before: float
    gap_after: float


class Shift(NamedTuple):
    """How far the mean state moved.

    Attributes:
        along: its coordinates in the plane of the first two components of the model before, in units of the states.
        norm: its length in that plane.
        total: its length in all dimensions.
        relative: `norm` over the standard deviation of the texts in that plane before.
    """

    along: tuple[float, float]
    norm: float
    total: float
    relative: float


def components(x_ND: Tensor, k: int = 2) -> Components:
    """Return the first k principal components of states.

    Args:
        x_ND: a row a text; more than k of them.
        k: how many, at most D.

    Raises:
        Unavailable: if there are too few texts, or they all have the same state.
    """
    n, width = x_ND.shape
    if n <= k or width < k:
        raise Unavailable(f"{n} texts of width {width} have no {k} principal components")
    x = x_ND.double()
    mean = x.mean(0)
    _, singular, axes = torch.linalg.svd(x - mean, full_matrices=False)
    if float(singular.square().sum()) <= ROUNDING * float(x.square().sum()):
        raise Unavailable(f"all {n} texts have the same state, so there is no main direction")
    axes = axes[:k]
    # A direction has no sign of its own; this one is the same on every machine.
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return Components(mean, axes * largest.sign(), singular.square() / n)


def pc1_similarity(before_ND: Tensor, after_ND: Tensor) -> Similarity:
    """Return |cos| of the angle between the first principal directions of two models' states.

    Args:
        before_ND: states of the model before.
        after_ND: states of the model after, of any texts, of the same width.

    Raises:
        Unavailable: as `components`.
    """
    before, after = components(before_ND), components(after_ND)
    return Similarity(float((before.axes_KD[0] @ after.axes_KD[0]).abs()), before.gap, after.gap)


def mean_shift(before_ND: Tensor, after_ND: Tensor) -> Shift:
    """Return how far the mean state moved, seen in the plane of the first two components of the model before.

    Args:
        before_ND: states of the model before.
        after_ND: states of the model after.

    Raises:
        Unavailable: as `components`.
    """
    before = components(before_ND)
    moved_D = after_ND.double().mean(0) - before.mean_D
    plane = before.axes_KD @ moved_D
    spread = float(before.variances_N[:2].sum().sqrt())
    x, y = (float(v) for v in plane)
    return Shift((x, y), float(plane.norm()), float(moved_D.norm()), float(plane.norm()) / spread)
