# SPDX-License-Identifier: Apache-2.0
"""Solving with a damped curvature matrix that is never formed: Woodbury, diagonal, conjugate gradient.

Shape suffixes: N gradients, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: One tensor per parameter.
Vector = list[Tensor]


def woodbury_weights(gram_NN: Tensor, products_N: Tensor, *, damping: float) -> Tensor:
    """Return a with F^-1 v = (v - sum_i a_i g_i) / damping, for F = damping I + (1/N) sum_i g_i g_i^T, [N] float64.

    Needs the gradients only through their inner products, which add up over blocks of parameters.

    Args:
        gram_NN: inner products of the gradients with each other.
        products_N: their inner products with v.
        damping: positive.

    Raises:
        ValueError: if `damping` is not positive.

    Source: Woodbury's identity; the matrix is the empirical Fisher of Singh and Alistarh, NeurIPS 2020, "WoodFisher"
        (arXiv:2004.14340).
    """
    if damping <= 0.0:
        raise ValueError(f"damping must be positive, got {damping}")
    n = gram_NN.shape[0]
    system_NN = gram_NN.double() + damping * n * torch.eye(n, dtype=torch.float64, device=gram_NN.device)
    solution: Tensor = torch.linalg.solve(system_NN, products_N.double())
    return solution


def woodbury(gradients_NP: Tensor, v_P: Tensor, *, damping: float) -> Tensor:
    """Return F^-1 v for gradients that fit in memory, [P] float64; see `woodbury_weights`."""
    gradients_NP, v_P = gradients_NP.double(), v_P.double()
    weights_N = woodbury_weights(gradients_NP @ gradients_NP.T, gradients_NP @ v_P, damping=damping)
    return (v_P - gradients_NP.T @ weights_N) / damping


def inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the inner product over all parameters."""
    return sum(float((a.float() * b.float()).sum(dtype=torch.float64)) for a, b in zip(left, right, strict=True))


@dataclass(frozen=True, slots=True)
class Solution:
    """An approximate solution, the matrix products it took, and |b - A x| / |b|."""

    vector: Vector
    products: int
    residual: float


def conjugate_gradient(
    product: Callable[[Vector], Vector], right: Sequence[Tensor], *, iterations: int, tolerance: float
) -> Solution:
    """Solve A x = b for a symmetric positive definite A that is known by its products.

    Args:
        product: maps x to A x, in new tensors.
        right: b.
        iterations: the most products.
        tolerance: ends when |b - A x| <= tolerance |b|.

    Source: Hestenes and Stiefel, 1952.
    """
    x: Vector = [torch.zeros_like(b) for b in right]
    residual: Vector = [b.clone() for b in right]
    direction: Vector = [b.clone() for b in right]
    size = start = inner(residual, residual)
    done = 0
    while done < iterations and size > tolerance**2 * start:
        image = product(direction)
        done += 1
        curvature = inner(direction, image)
        if curvature <= 0.0:  # rounding has used up what positive definiteness the products had
            break
        alpha = size / curvature
        for value, d in zip(x, direction, strict=True):
            value.add_(d, alpha=alpha)
        for value, i in zip(residual, image, strict=True):
            value.sub_(i, alpha=alpha)
        before, size = size, inner(residual, residual)
        direction = [r + (size / before) * d for r, d in zip(residual, direction, strict=True)]
    return Solution(x, done, (size / start) ** 0.5 if start else 0.0)


def blocks_of(sizes: Sequence[int], limit: int) -> list[range]:
    """Return ranges of consecutive parameters whose sizes add up to at most `limit`; a larger one stands alone."""
    blocks: list[range] = []
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            blocks.append(range(start, i))
            start, total = i, 0
        total += size
    return [*blocks, range(start, len(sizes))] if sizes else []
