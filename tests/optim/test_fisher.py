# SPDX-License-Identifier: Apache-2.0
"""Solving with a damped curvature, against dense solves and retraining in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from expunge.optim.fisher import blocks_of, conjugate_gradient, woodbury


@pytest.fixture
def gradients() -> Tensor:
    return torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def v() -> Tensor:
    return torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def rank_one(gradients: Tensor, v: Tensor, damping: float) -> Tensor:
    """Sherman and Morrison's update of the inverse, one gradient at a time."""
    n, width = gradients.shape
    inverse = torch.eye(width, dtype=torch.float64) / damping
    for g in gradients:
        u = inverse @ g
        inverse -= torch.outer(u, u) / (n + g @ u)
    return inverse @ v


def in_circulation(gradients: Tensor, v: Tensor) -> Tensor:
    """The recurrence of released code: it carries one vector for the whole inverse."""
    n, o, k = len(gradients), gradients[0].clone(), v.clone()
    for g in gradients[1:]:
        scale = n + o @ g
        k = k - (k @ g) / scale * o
        o = o - (o @ g) / scale * o
    return k


def test_woodbury_is_the_dense_solve_and_the_rank_one_recursion(gradients: Tensor, v: Tensor) -> None:
    fisher = 0.3 * torch.eye(4, dtype=torch.float64) + gradients.T @ gradients / 6
    found = woodbury(gradients, v, damping=0.3)
    torch.testing.assert_close(found, torch.linalg.solve(fisher, v))
    torch.testing.assert_close(found, rank_one(gradients, v, 0.3))


def test_the_recurrence_in_circulation_only_adds_a_multiple_of_one_gradient(gradients: Tensor, v: Tensor) -> None:
    change = in_circulation(gradients, v) - v
    cosine = change @ gradients[0] / (change.norm() * gradients[0].norm())
    assert abs(float(cosine)) == pytest.approx(1.0)
    true = woodbury(gradients, v, damping=1.0)
    assert float((in_circulation(gradients, v) - true).norm() / true.norm()) > 0.5


def test_much_damping_leaves_the_vector(gradients: Tensor, v: Tensor) -> None:
    torch.testing.assert_close(1e9 * woodbury(gradients, v, damping=1e9), v)
    with pytest.raises(ValueError, match="positive"):
        woodbury(gradients, v, damping=0.0)


def test_conjugate_gradient_solves_in_as_many_products_as_there_are_unknowns(gradients: Tensor, v: Tensor) -> None:
    matrix = gradients.T @ gradients + torch.eye(4, dtype=torch.float64)
    found = conjugate_gradient(lambda x: [matrix @ x[0]], [v], iterations=10, tolerance=1e-6)
    assert found.products <= 4
    assert found.residual <= 1e-6
    torch.testing.assert_close(found.vector[0], torch.linalg.solve(matrix, v), atol=1e-6, rtol=1e-6)
    none = conjugate_gradient(lambda x: [matrix @ x[0]], [torch.zeros(4)], iterations=10, tolerance=1e-6)
    assert none.products == 0


def test_on_a_quadratic_one_step_is_retraining() -> None:
    """Least squares, 20 x 3: theta + H_r^-1 sum_f g_i is the optimum without the forgotten rows."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(20, dtype=torch.float64, generator=generator)
    theta = torch.linalg.lstsq(x, y).solution
    forget, retain = x[:5], x[5:]
    gradient = forget.T @ (forget @ theta - y[:5])
    hessian = retain.T @ retain
    shift = conjugate_gradient(lambda d: [hessian @ d[0]], [gradient], iterations=9, tolerance=1e-12).vector[0]
    torch.testing.assert_close(theta + shift, torch.linalg.lstsq(retain, y[5:]).solution)


def test_blocks_cover_all_parameters_and_keep_the_limit() -> None:
    assert blocks_of([3, 3, 10, 1, 2], 6) == [range(0, 2), range(2, 3), range(3, 5)]
    assert blocks_of([5], 1) == [range(0, 1)]
    assert blocks_of([], 5) == []
