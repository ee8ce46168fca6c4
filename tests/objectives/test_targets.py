# SPDX-License-Identifier: Apache-2.0
"""Losses towards target distributions, against values and gradients worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from expunge.objectives.likelihood import kl_divergence
from expunge.objectives.targets import (
    bad_teacher,
    bounded_ascent,
    ceu,
    distillation_kl,
    pdu,
    pdu_multiplier,
    sampled_label_nll,
    undial,
)
from expunge.signals import head

ZERO = torch.tensor([0])


def binary(p: float) -> Tensor:
    """Logits (a, 0) that give token 0 probability p, [1, 2]."""
    return torch.tensor([[math.log(p / (1 - p)), 0.0]], dtype=torch.float64)


def value_and_grad(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[float, list[float]]:
    variable = logits.clone().requires_grad_()
    out = loss(variable).mean()
    (found,) = torch.autograd.grad(out, variable)
    return float(out.detach()), found.sum(0).tolist()


def close(*values: float) -> list[object]:
    return [pytest.approx(value, abs=1e-6) for value in values]


@pytest.mark.parametrize("tokens", [1, 3])
def test_undial_toy(tokens: int) -> None:
    labels = torch.zeros(tokens, dtype=torch.long)
    teacher = binary(0.8).expand(tokens, 2)
    value, grad = value_and_grad(lambda z: undial(z, labels, teacher, beta=3.0), binary(0.6).expand(tokens, 2))
    assert value == pytest.approx(0.848953, abs=1e-6)
    assert grad == close(0.433925, -0.433925)


@pytest.mark.parametrize(("beta", "target"), [(3.0, 0.166075), (10.0, 1.8157e-4)])
def test_undial_at_the_start_is_pulled_by_the_lowered_probability(beta: float, target: float) -> None:
    _, grad = value_and_grad(lambda z: undial(z, ZERO, binary(0.8), beta=beta), binary(0.8))
    assert grad[0] == pytest.approx(0.8 - target, abs=1e-6)


def test_undial_without_lowering_is_at_rest_and_has_its_minimum_at_the_target() -> None:
    _, grad = value_and_grad(lambda z: undial(z, ZERO, binary(0.8), beta=0.0), binary(0.8))
    assert grad == close(0.0, 0.0)
    target = torch.tensor([[math.log(4.0) - 3.0, 0.0]], dtype=torch.float64)
    q = torch.softmax(target, 1)
    value, grad = value_and_grad(lambda z: undial(z, ZERO, binary(0.8), beta=3.0), target)
    assert grad == close(0.0, 0.0)
    assert value == pytest.approx(float(-(q * q.log()).sum()), abs=1e-9)


def test_ceu_toy() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    value, grad = value_and_grad(lambda z: ceu(z, ZERO), logits)
    assert value == pytest.approx(1.366159, abs=1e-6)
    assert grad == close(0.5, -0.3, -0.2)


def test_pdu_toy_and_multiplier() -> None:
    value, grad = value_and_grad(lambda z: pdu(z, ZERO), torch.tensor([[2.0, 0.0]]))
    assert (value, grad) == (1.0, [1.0, -1.0])  # 2 (max - mean) (1 - 1/2, -1/2)
    assert float(pdu(torch.full((1, 7), 3.0), ZERO)) == 0.0
    grown = pdu_multiplier(1.0, 0.5, rate=1.0, tolerance=0.3)
    assert grown == pytest.approx(1.2)
    assert pdu_multiplier(grown, 0.1, rate=1.0, tolerance=0.3) == pytest.approx(1.0)
    assert pdu_multiplier(0.1, 0.0, rate=1.0, tolerance=0.3) == 0.0


@pytest.mark.parametrize(
    ("temperature", "value", "gradient"), [(1, 0.0915162, -0.2), (2, 0.1118922, -0.2323128), (4, 0.1180751, -0.2418662)]
)
def test_distillation_toy(temperature: float, value: float, gradient: float) -> None:
    found = value_and_grad(lambda z: distillation_kl(z, binary(0.8), temperature=temperature), binary(0.6))
    assert found == (pytest.approx(value, abs=1e-6), close(gradient, -gradient))


def test_distillation_is_at_rest_at_the_teacher() -> None:
    teacher = torch.randn(4, 9, dtype=torch.float64)
    value, grad = value_and_grad(lambda z: distillation_kl(z, teacher, temperature=2.0), teacher)
    assert value == pytest.approx(0.0, abs=1e-12)
    assert grad == close(*[0.0] * 9)
    one = distillation_kl(teacher * 0.5, teacher, temperature=1.0)
    assert torch.allclose(one, kl_divergence(teacher * 0.5, teacher).double(), atol=1e-6)


def test_ascent_stops_at_its_cap() -> None:
    loss = torch.tensor([0.5, 2.0, 9.0], requires_grad=True)
    found = bounded_ascent(loss, cap=3.0)
    assert found.tolist() == [-0.5, -2.0, -3.0]
    found.sum().backward()
    assert loss.grad is not None
    assert loss.grad.tolist() == [-1.0, -1.0, 0.0]


@pytest.mark.parametrize(("unlearn", "value", "gradient"), [(0.0, 0.0915162, -0.2), (1.0, 0.0204110, 0.1)])
def test_bad_teacher_toy(unlearn: float, value: float, gradient: float) -> None:
    uniform, share = torch.zeros(1, 2), torch.tensor([unlearn])
    found = value_and_grad(lambda z: bad_teacher(z, binary(0.8), uniform, share), binary(0.6))
    assert found == (pytest.approx(value, abs=1e-6), close(gradient, -gradient))


def test_good_teacher_alone_is_self_distillation() -> None:
    original = torch.randn(5, 6, dtype=torch.float64)
    bad = torch.randn(5, 6, dtype=torch.float64)
    _, grad = value_and_grad(lambda z: bad_teacher(z, original, bad, torch.zeros(5, dtype=torch.float64)), original)
    assert grad == close(*[0.0] * 6)
    # A teacher that rules tokens out must not turn 0 log 0 into a number that is none.
    bad[:, 0] = -torch.inf
    assert bool(torch.isfinite(bad_teacher(original, original, bad, torch.ones(5))).all())


LOSSES: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
    lambda z, y, r: undial(z, y, r, beta=3.0),
    lambda z, y, r: ceu(z, y),
    lambda z, y, r: pdu(z, y),
    lambda z, y, r: distillation_kl(z, r, temperature=2.0),
    lambda z, y, r: bad_teacher(z, r, torch.zeros(1, z.shape[1]), torch.full((len(y),), 0.3)),
    lambda z, y, r: sampled_label_nll(z, y, torch.linspace(0.1, 0.9, len(y))),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_constants_added_to_logits_change_nothing(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    now, before, labels = torch.randn(5, 7), torch.randn(5, 7), torch.arange(5)
    plain = loss(now, labels, before)
    assert plain.shape == (5,)
    assert torch.allclose(plain, loss(now + 3, labels, before - 2), atol=1e-5)
    assert loss(now.bfloat16(), labels, before.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("loss", LOSSES[:5])
def test_no_gradient_reaches_the_teacher(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    before = torch.randn(3, 4, requires_grad=True)
    loss(torch.randn(3, 4, requires_grad=True), torch.arange(3), before).sum().backward()
    assert before.grad is None


def test_labels_are_drawn_by_inverting_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64).log()
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 0.999999], dtype=torch.float64)
    found = (-sampled_label_nll(logits.expand(6, 4), torch.zeros(6, dtype=torch.long), uniform)).exp()
    assert found.tolist() == close(0.5, 0.5, 0.3, 0.3, 0.2, 0.2)


def test_squared_gradient_times_tokens_estimates_the_gauss_newton_diagonal() -> None:
    # One linear layer W x: the Gauss-Newton diagonal of the mean loss is mean_i p_iv (1 - p_iv) x_ij^2.
    torch.manual_seed(1)
    tokens, width, vocabulary, draws = 4, 3, 5, 4000
    weight = torch.randn(vocabulary, width, dtype=torch.float64, requires_grad=True)
    x = torch.randn(tokens, width, dtype=torch.float64)
    p = torch.softmax(x @ weight.detach().T, 1)
    exact = torch.einsum("iv,ij->vj", p * (1 - p), x**2) / tokens
    labels = torch.zeros(tokens, dtype=torch.long)
    estimate = torch.zeros_like(exact)
    generator = torch.Generator().manual_seed(2)
    for _ in range(draws):
        uniform = torch.rand(tokens, generator=generator, dtype=torch.float64)
        (g,) = torch.autograd.grad(sampled_label_nll(x @ weight.T, labels, uniform).mean(), weight)
        estimate += tokens * g**2 / draws
    assert torch.allclose(estimate, exact, rtol=0.15, atol=0.01)


def test_a_recomputed_chunk_draws_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    class LinearHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Linear(6, 11, bias=False)

        def forward(self, hidden: Tensor) -> Tensor:
            found: Tensor = self.projection(hidden)
            return found

    torch.manual_seed(0)
    layer, hidden, uniform = LinearHead(), torch.randn(8, 6), torch.rand(8)

    def gradient() -> Tensor:
        layer.zero_grad()
        labels = torch.zeros(8, dtype=torch.long)
        head.over_vocabulary(layer, hidden, labels, sampled_label_nll, (uniform,)).mean().backward()
        assert layer.projection.weight.grad is not None
        return layer.projection.weight.grad.clone()

    whole = gradient()
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 22)  # two positions a chunk, recomputed in the backward pass
    assert torch.allclose(gradient(), whole, atol=1e-6)


def test_keyword_settings_bind_to_a_function_of_logits_and_labels() -> None:
    function = partial(undial, beta=3.0)
    assert function(torch.randn(2, 3), torch.tensor([0, 2]), torch.randn(2, 3)).shape == (2,)
