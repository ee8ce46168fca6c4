# SPDX-License-Identifier: Apache-2.0
"""The proximal l1 step and its schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.optim.proximal import ProximalL1, l1_weight, soft_threshold


def test_soft_threshold() -> None:
    values = torch.tensor([0.3, -0.3, 0.05, -0.1, 0.0])
    assert soft_threshold(values, 0.1).tolist() == pytest.approx([0.2, -0.2, 0.0, 0.0, 0.0])
    assert torch.equal(soft_threshold(values, 0.0), values)


def test_soft_threshold_minimises_what_it_should() -> None:
    grid = torch.linspace(-2, 2, 400_001, dtype=torch.float64)
    for value in (-1.3, -0.2, 0.0, 0.4, 1.9):
        objective = (grid - value).square() / 2 + 0.3 * grid.abs()
        found = soft_threshold(torch.tensor(value, dtype=torch.float64), 0.3)
        assert float(found) == pytest.approx(float(grid[objective.argmin()]), abs=1e-5)


def test_the_weight_falls_and_ends_before_the_run() -> None:
    falling = [l1_weight(0.2, epoch, epochs=10) for epoch in range(10)]
    assert falling == pytest.approx([0.2, 0.18, 0.16, 0.14, 0.12, 0.1, 0.08, 0.06, 0.04, 0.02])
    half = [l1_weight(0.2, epoch, epochs=10, free_epochs=5) for epoch in range(10)]
    assert half == pytest.approx([0.2, 0.16, 0.12, 0.08, 0.04, 0, 0, 0, 0, 0])
    assert half[5:] == [0.0] * 5
    assert [l1_weight(0.2, epoch, epochs=3, free_epochs=3) for epoch in range(3)] == [0.2] * 3


def test_the_step_uses_each_groups_learning_rate_and_only_its_parameters() -> None:
    a, b, c = (nn.Parameter(torch.tensor([1.0, -1.0, 0.001])) for _ in range(3))
    groups = [{"params": [a], "lr": 0.1}, {"params": [b, c], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    proximal = ProximalL1([a, b], 0.5)
    proximal.attach(optimizer)
    for p in (a, b, c):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert a.tolist() == pytest.approx([0.95, -0.95, 0.0])
    assert b.tolist() == pytest.approx([0.9, -0.9, 0.0])
    assert c.tolist() == pytest.approx([1.0, -1.0, 0.001])
    assert float(a.detach()[2]) == 0.0
    proximal.weight = 0.0
    before = a.detach().clone()
    optimizer.step()
    assert torch.equal(a, before)
