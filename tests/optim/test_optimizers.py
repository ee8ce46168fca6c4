# SPDX-License-Identifier: Apache-2.0
"""Sophia, SOUL and Signum against steps worked out by hand and naive loops; their settings and their state."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from expunge.optim.clipped import ClippedOptimizer
from expunge.optim.config import OptimizerConfig
from expunge.optim.factory import build_optimizer
from expunge.optim.signum import Signum
from expunge.optim.sophia import Sophia
from expunge.optim.soul import Soul
from expunge.training.config import TrainingConfig

Make = Callable[[list[nn.Parameter]], ClippedOptimizer]


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def step(optimizer: ClippedOptimizer, p: nn.Parameter, gradient: Tensor | float) -> None:
    p.grad = torch.zeros_like(p) + gradient
    if isinstance(optimizer, Sophia) and "hessian" not in optimizer.state[p]:
        optimizer.update_hessian(tokens=1)
    optimizer.step()


def test_soul_with_a_constant_gradient() -> None:
    p = parameter(0.0)
    optimizer = Soul([p], 5e-6, weight_decay=0.0)
    expected = [(0.0019, 5e-6, 1.8555), (0.003439, 9.75e-6, 1.7223), (0.00468559, 1.42625e-5, 1.6041)]
    for t, (m, h, ratio) in enumerate(expected, start=1):
        step(optimizer, p, 0.01)
        state = optimizer.state[p]
        assert float(state["exp_avg"]) == pytest.approx(m, rel=1e-9)
        assert float(state["hessian"]) == pytest.approx(h, rel=1e-9)
        assert m / (204.8 * h) == pytest.approx(ratio, abs=1e-4)
        assert float(p.detach()) == pytest.approx(-5e-6 * t, rel=1e-9)
        assert optimizer.clip_fraction == 1.0


def test_soul_leaves_large_gradients_unclipped() -> None:
    p = parameter(0.0, 0.0)
    optimizer = Soul([p], 1.0, weight_decay=0.0)
    step(optimizer, p, torch.tensor([0.05, 0.01], dtype=torch.float64))
    assert p.tolist() == [pytest.approx(-0.3711, abs=1e-4), -1.0]
    assert optimizer.clip_fraction == 0.5


def test_soul_without_curvature_steps_by_sign() -> None:
    p = parameter(0.0, 0.0, 0.0)
    optimizer = Soul([p], 0.1, betas=(0.9, 0.95), rho=1e-30, weight_decay=0.0)
    step(optimizer, p, torch.tensor([0.3, -2.0, 0.0], dtype=torch.float64))
    assert p.tolist() == pytest.approx([-0.1, 0.1, 0.0])


@pytest.mark.parametrize("make", [lambda ps: Soul(ps, 0.1), lambda ps: Signum(ps, 0.1), lambda ps: Sophia(ps, 0.1)])
def test_turning_the_gradient_turns_the_step(make: Make) -> None:
    one, other = parameter(0.0, 0.0), parameter(0.0, 0.0)
    first, second = make([one]), make([other])
    for scale in (1.0, -0.2, 3.0):
        gradient = torch.tensor([0.02, -0.7], dtype=torch.float64) * scale
        step(first, one, gradient)
        step(second, other, -gradient)
        assert torch.equal(one, -other)


def test_sophia_in_the_form_of_the_paper() -> None:
    p = parameter(0.0)
    optimizer = Sophia([p], 1.0, betas=(0.0, 0.0), rho=0.04, eps=1e-12, weight_decay=0.0)
    p.grad = torch.ones_like(p)
    optimizer.update_hessian(tokens=1)
    assert float(optimizer.state[p]["hessian"]) == 1.0
    step(optimizer, p, 0.002)
    assert float(p.detach()) == pytest.approx(-0.05)
    assert optimizer.clip_fraction == 0.0
    step(optimizer, p, -0.08)
    assert float(p.detach()) == pytest.approx(0.95)
    assert optimizer.clip_fraction == 1.0


def test_sophia_against_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    p = parameter(*torch.randn(5, generator=generator).tolist())
    values, m, h = p.detach().tolist(), [0.0] * 5, [0.0] * 5
    optimizer = Sophia([p], 0.01, betas=(0.9, 0.8), rho=0.5, eps=1e-3, weight_decay=0.3)
    for t in range(6):
        if t % 2 == 0:
            sampled = torch.randn(5, generator=generator, dtype=torch.float64)
            p.grad = sampled
            optimizer.update_hessian(tokens=3)
            h = [0.8 * old + 0.2 * 3 * g**2 for old, g in zip(h, sampled.tolist(), strict=True)]
        g = torch.randn(5, generator=generator, dtype=torch.float64)
        step(optimizer, p, g)
        m = [0.9 * old + 0.1 * new for old, new in zip(m, g.tolist(), strict=True)]
        u = [max(-1.0, min(1.0, a / max(0.5 * b, 1e-3))) for a, b in zip(m, h, strict=True)]
        values = [w - 0.01 * 0.3 * w - 0.01 * x for w, x in zip(values, u, strict=True)]
    assert p.tolist() == pytest.approx(values, rel=1e-9)


def test_sophia_asks_for_its_curvature() -> None:
    p = parameter(1.0)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="update_hessian"):
        Sophia([p], 0.1).step()
    with pytest.raises(ValueError, match="at least one token"):
        Sophia([p], 0.1).update_hessian(tokens=0)


def test_signum_steps_by_the_sign_of_its_momentum() -> None:
    p = parameter(0.0, 2.0, 5.0)
    optimizer = Signum([p], 0.1, momentum=0.5, weight_decay=0.0)
    step(optimizer, p, torch.tensor([4.0, -1e-9, 0.0], dtype=torch.float64))
    assert p.tolist() == pytest.approx([-0.1, 2.1, 5.0])
    step(optimizer, p, torch.tensor([-1.0, 1e-9, 0.0], dtype=torch.float64))  # momentum 0.5, and just above 0
    assert p.tolist() == pytest.approx([-0.2, 2.0, 5.0])
    assert optimizer.clip_fraction == 1.0  # the weight that never moved does not count


@pytest.mark.parametrize("make", [lambda ps: Soul(ps, 0.1), lambda ps: Signum(ps, 0.1), lambda ps: Sophia(ps, 0.1)])
def test_decay_is_apart_from_the_direction(make: Make) -> None:
    p = parameter(2.0, -4.0)
    optimizer = make([p])
    step(optimizer, p, 0.0)
    assert p.tolist() == pytest.approx([2.0 * 0.99, -4.0 * 0.99])
    assert optimizer.clip_fraction is None


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(t))
        if isinstance(optimizer, Sophia) and t % 2 == 0:
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.update_hessian(tokens=8)
        optimizer.zero_grad()
        (module(x).sum(1) - x.sum(1)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sophia", "soul", "signum"])
def test_state_survives_a_file(name: str) -> None:
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    whole = model()
    train(whole, build_optimizer(whole, config, learning_rate=1e-2), range(7))
    first = model()
    optimizer = build_optimizer(first, config, learning_rate=1e-2)
    train(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = copy.deepcopy(first)
    again = build_optimizer(second, config, learning_rate=1e-2)
    again.load_state_dict(torch.load(file, weights_only=True))
    train(second, again, range(3, 7))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["adamw", "sophia", "soul", "signum"])
def test_a_name_is_enough(name: str) -> None:
    config = TrainingConfig(**{"optimizer": {"name": name}}).optimizer  # type: ignore[arg-type]
    optimizer = build_optimizer(model(), config, learning_rate=1e-3)
    assert type(optimizer).__name__.lower() == name
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
    decays = {group["params"][0].ndim: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {2: 0.01 if name == "adamw" else 0.1, 1: 0.0}
    written = config.model_dump(mode="json")
    assert OptimizerConfig(**written) == config
    assert all(written[key] is not None for key in config.constants())


def test_settings_replace_constants() -> None:
    assert OptimizerConfig() == OptimizerConfig(name="adamw", weight_decay=0.01, betas=(0.9, 0.999), eps=1e-8)
    assert OptimizerConfig(name="sophia").hessian_every == 10
    assert OptimizerConfig(name="sophia", rho=0.08, betas=None).betas == (0.965, 0.99)
    optimizer = build_optimizer(model(), OptimizerConfig(name="soul", rho=0.5), learning_rate=1.0)
    assert {(group["rho"], group["curvature_batch"], group["eps"]) for group in optimizer.param_groups} == {
        (0.5, 5120, 1e-15)
    }


def test_settings_of_another_optimiser_are_refused() -> None:
    with pytest.raises(ValidationError, match="rho is not a setting of adamw, which has betas, eps, weight_decay"):
        OptimizerConfig(rho=0.1)
    with pytest.raises(ValidationError, match="betas is not a setting of signum"):
        OptimizerConfig(name="signum", betas=(0.9, 0.9))
    with pytest.raises(ValidationError, match="'adamw', 'sophia', 'soul' or 'signum'"):
        OptimizerConfig(name="adam")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="Extra inputs"):
        OptimizerConfig(nam="adamw")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="less than 1"):
        OptimizerConfig(betas=(0.9, 1.0))


def test_copies_keep_working() -> None:
    module = model()
    optimizer = Soul(module.parameters(), 1e-3)
    train(module, optimizer, range(1))
    assert copy.deepcopy(optimizer).clip_fraction is None
    assert optimizer.clip_fraction is not None
