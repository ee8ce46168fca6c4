# SPDX-License-Identifier: Apache-2.0
"""Losses on hidden states, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from expunge.objectives.reduction import reduce_tokens
from expunge.objectives.representation import (
    adaptive_coefficient,
    control_vector,
    cut_target,
    expert_direction,
    rmu_forget,
    rmu_retain,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_control_vectors_have_length_one_and_follow_the_seed(distribution: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    u = control_vector(64, distribution=distribution, generator=generator(3))  # type: ignore[arg-type]
    again = control_vector(64, distribution=distribution, generator=generator(3))  # type: ignore[arg-type]
    other = control_vector(64, distribution=distribution, generator=generator(4))  # type: ignore[arg-type]
    assert float(u.norm()) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(u, again)
    assert not torch.equal(u, other)
    assert torch.equal(before, torch.get_rng_state())


def test_uniform_controls_share_a_direction_and_gaussian_ones_do_not() -> None:
    """E[cos] of two vectors with U[0,1) entries is (1/4) / (1/3) = 3/4; with the diagonal it is sqrt(3)/2."""
    width = 20_000
    a, b = (control_vector(width, distribution="uniform", generator=generator(s)) for s in (0, 1))
    assert bool((a >= 0).all())
    assert float(a @ b) == pytest.approx(0.75, abs=0.01)
    assert float(a.sum()) / math.sqrt(width) == pytest.approx(math.sqrt(3) / 2, abs=0.01)
    a, b = (control_vector(width, distribution="gaussian", generator=generator(s)) for s in (0, 1))
    assert abs(float(a @ b)) < 0.03


def test_forget_loss_by_hand() -> None:
    states = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
    control = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    coefficient = torch.tensor([10.0, 2.0])
    # (3-6)^2 + (4-8)^2 = 25 and (0-2)^2 + (1-0)^2 = 5; ||h||^2 - 2 c h.u + c^2 = 25 - 100 + 100 and 1 - 0 + 4.
    assert rmu_forget(states, control, coefficient, distance="sum").tolist() == [25.0, 5.0]
    assert rmu_forget(states, control, coefficient, distance="mean").tolist() == [12.5, 2.5]
    rmu_forget(states, control, coefficient, distance="sum").sum().backward()
    assert states.grad is not None
    assert torch.allclose(states.grad, torch.tensor([[-6.0, -8.0], [-4.0, 2.0]]))


def test_retain_loss_is_zero_where_nothing_moved_and_its_target_takes_no_gradient() -> None:
    original = torch.tensor([[1.0, 2.0]], requires_grad=True)
    moved = torch.tensor([[2.0, 4.0]], requires_grad=True)
    assert rmu_retain(original, original, distance="sum").tolist() == [0.0]
    loss = rmu_retain(moved, original, distance="sum")
    assert loss.tolist() == [5.0]
    loss.sum().backward()
    assert original.grad is None


def test_mean_over_real_tokens_with_unequal_lengths() -> None:
    """Sequences of 3 and 1 tokens: dividing one by the other's length would give another number."""
    loss, row, length = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 0, 1]), torch.tensor([3, 1])
    both = reduce_tokens(loss, row, length, "sequence_mean", sequences=2, tokens=4)
    assert float(both) == 3.0
    alone = [reduce_tokens(loss[:3], row[:3], length[:1], "sequence_mean", sequences=1, tokens=3), loss[3]]
    assert float(both) == pytest.approx(float(sum(alone)) / 2)
    assert float(reduce_tokens(loss, row, length, "token_mean", sequences=2, tokens=4)) == 2.5


def test_adaptive_coefficient_by_hand() -> None:
    states = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    # The mean state (1.5, 2) is 2.5 long; the states are 3 and 4 long.
    assert adaptive_coefficient(states, beta=5.0, mode="paper") == pytest.approx(12.5)
    assert adaptive_coefficient(states, beta=5.0, mode="official") == pytest.approx(17.5)
    assert adaptive_coefficient(states, beta=0.0, mode="paper") == 0.0
    same = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    for mode in ("paper", "official"):
        assert adaptive_coefficient(same, beta=1.0, mode=mode) == pytest.approx(7.5)  # type: ignore[arg-type]
        assert adaptive_coefficient(3 * states, beta=2.0, mode=mode) == pytest.approx(  # type: ignore[arg-type]
            3 * adaptive_coefficient(states, beta=2.0, mode=mode)  # type: ignore[arg-type]
        )


def test_cut_shifts_the_original_from_expert_to_novice() -> None:
    direction = expert_direction(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 5.0]))
    assert torch.allclose(direction, torch.tensor([0.6, -0.8]))
    assert torch.allclose(cut_target(torch.tensor([[1.0, 1.0]]), direction, 5.0), torch.tensor([[4.0, -3.0]]))
    with pytest.raises(ValueError, match="same state"):
        expert_direction(torch.ones(2), torch.ones(2))
