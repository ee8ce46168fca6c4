# SPDX-License-Identifier: Apache-2.0
"""Scores against values worked out by hand, and what they are computed from against naive oracles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from expunge.optim.masks import global_masks
from expunge.optim.scores import (
    InputNorms,
    gradient_statistics,
    linear_layers,
    magnitude,
    random_scores,
    wagle,
    wanda,
)

THETA = torch.tensor([1.0, -2.0, 0.5])
FORGET = torch.tensor([0.1, 0.2, -0.4])
RETAIN = torch.tensor([0.05, 0.0, 0.3])


@pytest.mark.parametrize(
    ("mu", "expected"), [(1.0, [0.095, 0.4, 0.08]), (0.1, [0.05, 0.4, 1.0]), (0.01, [0.4, 0.4, 11.8])]
)
def test_wagle_toy(mu: float, expected: list[float]) -> None:
    assert wagle(THETA, FORGET, RETAIN, mu=mu).tolist() == pytest.approx(expected, rel=1e-6)


def test_wagle_signs_and_limits() -> None:
    signed = wagle(THETA, FORGET, RETAIN, mu=1.0, signed=True)
    assert signed.tolist() == pytest.approx([0.095, -0.4, -0.08])
    assert torch.allclose(wagle(THETA, FORGET, RETAIN, mu=1e9), (THETA * FORGET).abs(), atol=1e-6)
    assert torch.allclose(wagle(THETA, FORGET, RETAIN, mu=1e-6) * 1e-6, (RETAIN * FORGET).abs(), atol=1e-6)
    # The sign decides who is kept: the two forms keep different weights of the toy.
    for form, kept in ((False, [False, True, False]), (True, [True, False, False])):
        masks = global_masks(["w"], lambda _, s=form: wagle(THETA, FORGET, RETAIN, mu=1.0, signed=s), 0.34)
        assert masks["w"].tolist() == kept


def test_magnitude_and_wanda() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    assert magnitude(weight).tolist() == [[1.0, 2.0], [3.0, 0.5]]
    assert wanda(weight, torch.tensor([4.0, 1.0])).tolist() == [[4.0, 2.0], [12.0, 0.5]]


def test_random_scores_depend_on_name_and_seed_alone() -> None:
    one = random_scores("a.weight", (50, 40), seed=0)
    torch.manual_seed(9)
    assert torch.equal(one, random_scores("a.weight", (50, 40), seed=0))
    assert not torch.equal(one, random_scores("b.weight", (50, 40), seed=0))
    assert not torch.equal(one, random_scores("a.weight", (50, 40), seed=1))
    assert float(one.mean()) == pytest.approx(0.5, abs=0.03)
    state = torch.get_rng_state()
    random_scores("a", (3,), seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_gradient_statistics_of_two_batches() -> None:
    weight, unused = nn.Parameter(torch.tensor([2.0, -1.0])), nn.Parameter(torch.ones(2))
    x = [torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 1.0])]
    alive = []

    def losses() -> Iterator[Tensor]:
        for row in x:
            alive.append(row)
            yield (weight * row).sum()

    found = gradient_statistics({"w": weight, "u": unused}, losses())
    assert found.mean["w"].tolist() == [-0.5, 2.0]
    assert found.mean["u"].tolist() == [0.0, 0.0]
    assert found.mean_square == pytest.approx((1 + 9 + 4 + 1) / (2 * 4))
    assert found.batches == 2
    assert weight.grad is None
    with pytest.raises(ValueError, match="at least one batch"):
        gradient_statistics({"w": weight}, [])


def test_linear_layers_without_the_head() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 5))
    assert list(linear_layers(module)) == ["1", "3"]
    assert list(linear_layers(module, without=[module[3]])) == ["1"]


def test_input_norms_skip_padding_and_add_up_over_batches() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    x = torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with InputNorms(linear_layers(module)) as norms:
        for row in range(2):
            norms.observe(mask[row : row + 1])
            module(x[row : row + 1])
    found = norms.norms()
    real = x[mask.bool()]
    assert torch.allclose(found["0"], real.norm(dim=0))
    assert torch.allclose(found["2"], torch.tanh(module[0](real)).norm(dim=0))
    module(x)  # the hooks are gone
    assert torch.equal(norms.norms()["0"], found["0"])


def test_input_norms_ask_for_a_fitting_mask() -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    with InputNorms(linear_layers(module)) as norms:
        with pytest.raises(ValueError, match="observe"):
            module(torch.randn(2, 5, 4))
        norms.observe(torch.ones(2, 4))
        with pytest.raises(ValueError, match="observe"):
            module(torch.randn(2, 5, 4))
