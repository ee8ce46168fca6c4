# SPDX-License-Identifier: Apache-2.0
"""Wrappers on functions small enough for autograd to differentiate twice."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from expunge.errors import RecipeError
from expunge.optim.rules import GradientRule
from expunge.optim.smoothing import Curvature, GradientPenalty, RandomisedSmoothing, Sam, WeightAveraging
from expunge.optim.surgery import Blur, Gru
from expunge.optim.wrapper_config import CONSTANTS, WrapperConfig

Losses = Mapping[str, Callable[[Tensor], Tensor]]


class Toy:
    """One vector of weights, some losses, and what a training step does with them."""

    def __init__(self, start: list[float], **losses: Callable[[Tensor], Tensor]) -> None:
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.losses = losses
        self.calls = 0

    def backward(self, parts: Container[str] | None) -> dict[str, float]:
        self.calls += 1
        values = {name: loss(self.x) for name, loss in self.losses.items()}
        for name, value in values.items():
            if parts is None or name in parts:
                value.backward()
        return {name: float(value.detach()) for name, value in values.items()}

    def gradient(self, rule: GradientRule, step: int = 0) -> Tensor:
        before = self.x.detach().clone()
        self.x.grad = None
        rule.gradients(self.backward, [self.x], step=step)
        assert torch.equal(self.x, before)
        assert self.x.grad is not None
        return self.x.grad


def linear(*coefficients: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ torch.tensor(coefficients, dtype=x.dtype)


A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x @ A @ x


def curved(x: Tensor) -> Tensor:
    return torch.log(torch.cosh(A @ x)).sum() + 0.1 * (x**4).sum()


def test_the_plain_rule_is_the_sum_of_all_parts() -> None:
    toy = Toy([0.1, 0.7], forget=quadratic, retain=linear(5.0, -1.0))
    expected = A @ toy.x.detach() + torch.tensor([5.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(toy.gradient(GradientRule()), expected)


def test_sam_takes_the_forget_gradient_at_the_worst_point_and_the_retain_gradient_where_it_is() -> None:
    toy = Toy([0.1, 0.7], forget=quadratic, retain=lambda x: (x**3).sum())
    x = toy.x.detach().clone()
    g = A @ x
    worst = A @ (x + 0.2 * g / g.norm())
    torch.testing.assert_close(toy.gradient(Sam(rho=0.2)), worst + 3 * x**2)
    torch.testing.assert_close(toy.gradient(Sam(rho=0.0)), g + 3 * x**2)


def test_weights_come_back_bit_for_bit_where_adding_and_subtracting_would_not() -> None:
    x = nn.Parameter(torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 1e-3)
    before, e = x.detach().clone(), 0.37
    assert not torch.equal((before + e) - e, before)

    def backward(parts: Container[str] | None) -> dict[str, float]:
        loss = 1e4 * (x**2).sum()
        loss.backward()
        return {"forget": float(loss.detach())}

    for rule in (
        Sam(rho=30.0),
        RandomisedSmoothing(sigma=0.5, samples=2, seed=0),
        GradientPenalty(rho=1, difference=9),
    ):
        x.grad = None
        rule.gradients(backward, [x], step=0)
        assert torch.equal(x, before)


def test_sixteen_bit_weights_are_refused() -> None:
    x = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))

    def backward(parts: Container[str] | None) -> dict[str, float]:
        x.sum().backward()
        return {"forget": 2.0}

    with pytest.raises(RecipeError, match=r"training\.wrapper"):
        Sam(rho=0.1).gradients(backward, [x], step=0)


def test_smoothing_is_the_mean_over_noise_of_its_own_generator() -> None:
    toy = Toy([0.1, 0.7], forget=quadratic)
    rule = RandomisedSmoothing(sigma=0.3, samples=4000, seed=1)
    state = torch.get_rng_state()
    found = toy.gradient(rule, step=3)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(found, A @ toy.x.detach(), atol=0.05, rtol=0)  # on a quadratic noise averages out
    assert torch.equal(found, toy.gradient(rule, step=3))
    assert not torch.equal(found, toy.gradient(rule, step=4))
    exact = Toy([0.1, 0.7], forget=quadratic, retain=linear(1.0, 0.0))
    rule = RandomisedSmoothing(sigma=0.0, samples=3, seed=1)
    torch.testing.assert_close(exact.gradient(rule), A @ exact.x.detach() + torch.eye(2, dtype=torch.float64)[0])


def test_the_gradient_penalty_has_the_gradient_that_double_backward_gives() -> None:
    toy = Toy([0.1, 0.7], forget=curved, retain=linear(1.0, 2.0))
    found = toy.gradient(GradientPenalty(rho=0.4, difference=1e-4))
    x = toy.x.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(curved(x), x, create_graph=True)
    total = curved(x) + 0.4 * g.norm() + linear(1.0, 2.0)(x)
    torch.testing.assert_close(found, torch.autograd.grad(total, x)[0], atol=1e-7, rtol=1e-7)


def test_the_curvature_penalty_has_the_gradient_that_double_backward_gives() -> None:
    toy = Toy([0.1, 0.7], forget=curved)
    found = toy.gradient(Curvature(rho=0.4, radius=0.5, difference=1e-4))
    x = toy.x.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(curved(x), x, create_graph=True)
    far = x + 0.5 * (g / g.norm()).detach()
    (g_far,) = torch.autograd.grad(curved(far), far, create_graph=True)
    total = curved(x) + 0.4 * (g_far - g).norm()
    torch.testing.assert_close(found, torch.autograd.grad(total, x)[0], atol=1e-7, rtol=1e-7)


def test_penalties_are_not_inert() -> None:
    toy = Toy([0.1, 0.7], forget=curved)
    plain = toy.gradient(GradientRule()).clone()
    for rule in (GradientPenalty(rho=0.4, difference=1e-3), Curvature(rho=0.4, radius=0.5, difference=1e-3)):
        assert float((toy.gradient(rule) - plain).norm()) > 0.05


@pytest.mark.parametrize("rule", [Sam(rho=0.1), GradientPenalty(rho=0.1, difference=0.1)])
def test_without_a_forget_term_a_step_is_plain(rule: GradientRule) -> None:
    toy = Toy([0.1, 0.7], retain=quadratic)
    torch.testing.assert_close(toy.gradient(rule), A @ toy.x.detach())


def test_gru_takes_out_what_would_raise_the_retain_loss() -> None:
    against = Toy([0.0, 0.0], forget=linear(1.0, 1.0), retain=linear(-1.0, 0.0))
    assert against.gradient(Gru(average=0.0)).tolist() == [0.0, 1.0]
    along = Toy([0.0, 0.0], forget=linear(1.0, 1.0), retain=linear(1.0, 0.0))
    assert along.gradient(Gru(average=0.0)).tolist() == [1.0, 1.0]


def test_gru_can_average_the_retain_gradient_and_remembers_it() -> None:
    first = Toy([0.0, 0.0], forget=linear(1.0, 1.0), retain=linear(-1.0, 0.0))
    then = Toy([0.0, 0.0], forget=linear(1.0, 1.0), retain=linear(0.0, -1.0))
    rule, again = Gru(average=0.5), Gru(average=0.5)
    first.gradient(rule)
    again.load_state_dict(rule.state_dict())
    # The running gradient is (-1, -1) / 2, so nothing of (1, 1) is left.
    assert then.gradient(rule).tolist() == [0.0, 0.0]
    assert then.gradient(again).tolist() == [0.0, 0.0]


def test_blur_serves_the_retain_loss_and_lowers_the_forget_loss_at_a_fixed_rate() -> None:
    toy = Toy([0.0, 0.0], forget=linear(1.0, 1.0), retain=linear(1.0, 0.0))
    found = toy.gradient(Blur(gamma=1.0))
    assert found.tolist() == [1.5, 0.5]
    assert float(found.sum()) == 2.0  # <d, g_f> = gamma |g_f|^2


@pytest.mark.parametrize("rule", [Gru(average=0.0), Blur(gamma=1.0)])
def test_surgery_needs_both_terms(rule: GradientRule) -> None:
    with pytest.raises(RecipeError, match="no retain term"):
        Toy([0.0, 0.0], forget=linear(1.0, 1.0)).gradient(rule)
    with pytest.raises(RecipeError, match="no forget term"):
        Toy([0.0, 0.0], retain=linear(1.0, 1.0)).gradient(rule)


def test_weight_averaging_ends_with_the_mean_of_its_turns() -> None:
    p = nn.Parameter(torch.tensor([0.0, 0.1]))  # the second never moves
    rule, resumed = WeightAveraging(start=2, every=2), WeightAveraging(start=2, every=2)
    for step in range(1, 8):
        p.data[0] = float(step)
        rule.after_step([p], step=step)
        if step == 5:
            resumed.load_state_dict(rule.state_dict())
        if step > 5:
            resumed.after_step([p], step=step)
    for one in (rule, resumed):
        one.finish([p])
        assert p.tolist() == [4.0, pytest.approx(0.1)]  # (2 + 4 + 6) / 3
        assert torch.equal(p[1], torch.tensor(0.1))
    unused = WeightAveraging(start=9, every=1)
    unused.finish([p])
    assert p[0] == 4.0


def test_settings_are_filled_and_foreign_ones_refused() -> None:
    for name, constants in CONSTANTS.items():
        assert WrapperConfig(name=name).constants() == constants  # type: ignore[arg-type]
    assert WrapperConfig(name="sam", rho=0.5).constants() == {"rho": 0.5}
    with pytest.raises(ValidationError, match="sigma is not a setting of sam, which has rho"):
        WrapperConfig(name="sam", sigma=1.0)
    with pytest.raises(ValidationError, match="which has none"):
        WrapperConfig(rho=1.0)
