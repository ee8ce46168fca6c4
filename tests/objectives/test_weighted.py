# SPDX-License-Identifier: Apache-2.0
"""Weighted ascents against gradients worked out by hand, and the prospect loss against its relatives.

Logits are (a, 0) and the label is token 0, so p = sigma(a) and d log p / da = 1 - p.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from expunge.objectives.preference import dpo, kto, npo
from expunge.objectives.weighted import satimp, tnpo, wga, wtnpo

LN = math.log


def gradient(loss: Callable[[Tensor], Tensor], p: float, tokens: int = 1) -> float:
    a = torch.tensor(LN(p / (1 - p)), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(logsigmoid(a).expand(tokens)).mean(), a)
    return float(found)


REFERENCE = torch.tensor([LN(0.8)], dtype=torch.float64)


@pytest.mark.parametrize(("p", "expected"), [(0.99, 0.0099), (0.5, 0.25), (0.01, 0.0099), (0.6, 0.24)])
@pytest.mark.parametrize("tokens", [1, 3])
def test_wga(p: float, expected: float, tokens: int) -> None:
    assert gradient(lambda logp: wga(logp, beta=1.0), p, tokens) == pytest.approx(expected, abs=1e-9)


def test_wga_without_exponent_is_gradient_ascent() -> None:
    logp = torch.tensor([-0.3, -4.0], dtype=torch.float64)
    assert torch.equal(wga(logp, beta=0.0), logp)
    assert gradient(lambda x: wga(x, beta=0.0), 0.6) == pytest.approx(0.4)


@pytest.mark.parametrize(("p", "expected"), [(0.99, 9.51e-5), (0.5, 0.0078125), (0.01, 9.8e-11)])
def test_satimp(p: float, expected: float) -> None:
    assert gradient(lambda logp: satimp(logp, beta1=5.0, beta2=1.0), p) == pytest.approx(expected, rel=1e-3)


def test_satimp_survives_certainty_and_rounding_beyond_it() -> None:
    logp = torch.tensor([0.0, 1e-7, -1e-8, -80.0], requires_grad=True)
    loss = satimp(logp, beta1=5.0, beta2=0.1)
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all())
    assert logp.grad is not None
    assert bool(torch.isfinite(logp.grad).all())


def test_satimp_without_importance_is_wga() -> None:
    logp = torch.tensor([-0.1, -2.0, -9.0])
    assert torch.equal(satimp(logp, beta1=3.0, beta2=0.0), wga(logp, beta=3.0))


def test_tnpo_weight() -> None:
    weight = 2 * 0.6**4 / (0.6**4 + 0.8**4)
    assert weight == pytest.approx(0.480712, abs=1e-6)
    assert gradient(lambda logp: tnpo(logp, REFERENCE, beta=4.0), 0.6) == pytest.approx(weight * 0.4, rel=1e-9)
    # At the start the weight is 1 whatever beta is.
    for beta in (0.1, 1.0, 4.0):
        assert gradient(lambda logp, b=beta: tnpo(logp, REFERENCE, beta=b), 0.8) == pytest.approx(0.2, rel=1e-9)


def test_tnpo_is_npo_on_sequences_of_one_token() -> None:
    logp, before = torch.tensor([-0.2, -3.0, -7.0]), torch.tensor([-0.1, -5.0, -1.0])
    assert torch.equal(tnpo(logp, before, beta=0.7), npo(logp, before, beta=0.7))


def test_wtnpo_multiplies_both_weights() -> None:
    weight = 2 * 0.6**4 / (0.6**4 + 0.8**4)
    found = gradient(lambda logp: wtnpo(logp, REFERENCE, alpha=2.0, beta=4.0), 0.6)
    assert found == pytest.approx(0.6**2 * weight * 0.4, rel=1e-9)
    assert gradient(lambda logp: wtnpo(logp, REFERENCE, alpha=0.0, beta=4.0), 0.6) == pytest.approx(
        gradient(lambda logp: tnpo(logp, REFERENCE, beta=4.0), 0.6), rel=1e-9
    )


LOSE, LOSE0 = torch.tensor([-6.0]), torch.tensor([-5.0])


def test_kto_without_a_moved_refusal_is_npo() -> None:
    assert torch.equal(kto(LOSE, LOSE0, torch.tensor(0.0), beta=0.1), npo(LOSE, LOSE0, beta=0.1))


def test_kto_is_dpo_that_does_not_train_its_refusal() -> None:
    win, win0 = torch.tensor([-2.0], requires_grad=True), torch.tensor([-3.0])
    lose = LOSE.clone().requires_grad_()
    found = kto(lose, LOSE0, win - win0, beta=0.1)
    assert float(found.detach()) == pytest.approx(11.962777, abs=1e-5)
    found.sum().backward()
    prospect = lose.grad
    assert win.grad is None
    other = LOSE.clone().requires_grad_()
    dpo(win, other, win0, LOSE0, beta=0.1).sum().backward()
    assert prospect is not None
    assert other.grad is not None
    assert torch.allclose(prospect, other.grad)
    # A refusal that gained already weakens the push: sigma(-0.2) < sigma(-0.1).
    alone = LOSE.clone().requires_grad_()
    npo(alone, LOSE0, beta=0.1).sum().backward()
    assert alone.grad is not None
    assert float(prospect) < float(alone.grad)
