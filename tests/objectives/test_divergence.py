# SPDX-License-Identifier: Apache-2.0
"""The divergences' activations and conjugates, against the functions they come from."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expunge.objectives.divergence import Divergence, activation, conjugate, flat

GENERATORS: dict[Divergence, Callable[[Tensor], Tensor]] = {
    "total_variation": lambda u: (u - 1).abs() / 2,
    "kl": lambda u: torch.xlogy(u, u),
    "jensen_shannon": lambda u: torch.xlogy(u, u) - (u + 1) * ((u + 1) / 2).log(),
    "pearson": lambda u: (u - 1).square(),
}
NAMES = sorted(GENERATORS)
VALUES = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_conjugate_is_the_largest_gap_between_a_line_and_f(name: Divergence) -> None:
    t = activation(VALUES, name)
    u = torch.linspace(0.0, 60.0, 600_001, dtype=torch.float64)
    oracle = torch.stack([(u * slope - GENERATORS[name](u)).max() for slope in t])
    assert torch.allclose(conjugate(t, name), oracle, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_choice_of_g_exceeds_the_divergence_itself(name: Divergence) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        p, q, v = torch.rand(3, 6, generator=generator, dtype=torch.float64)
        p, q = p / p.sum(), q / q.sum()
        bound = (p * activation(v, name)).sum() - (q * conjugate(activation(v, name), name)).sum()
        assert float(bound) <= float((q * GENERATORS[name](p / q)).sum()) + 1e-12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("total_variation", -0.0785503),
        ("kl", math.exp(-0.6) - 0.6),
        ("jensen_shannon", math.log(1 + math.exp(-0.6)) + math.log(1 + math.exp(0.4)) - 2 * math.log(2)),
        ("pearson", 0.04 + 0.4 - 0.6),
    ],
)
def test_flat_toy(name: Divergence, expected: float) -> None:
    found = flat(torch.tensor([0.4]), torch.tensor([0.6]), divergence=name)
    assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_flat_pushes_the_answer_down_and_the_refusal_up(name: Divergence) -> None:
    forget = VALUES.clone().requires_grad_()
    refusal = VALUES.clone().requires_grad_()
    flat(forget, refusal, divergence=name).sum().backward()
    assert forget.grad is not None
    assert refusal.grad is not None
    assert bool((forget.grad > 0).all())
    assert bool((refusal.grad < 0).all())
