# SPDX-License-Identifier: Apache-2.0
"""Linear CKA: numbers by hand, the loop over quadruples, invariances, and what the released code gives instead."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.audit.diagnostics import published
from expunge.audit.diagnostics.cka import hsic_debiased, linear_cka
from expunge.audit.statistics import Unavailable

X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
Y = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
Q = torch.tensor([[0.6, -0.8], [0.8, 0.6]])


def states(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("other", [X, X @ Q, 3 * X + 5])
def test_the_same_arrangement_is_one(other: Tensor) -> None:
    assert linear_cka(X, other) == (pytest.approx(1.0, abs=1e-12), "biased")


def test_numbers_by_hand() -> None:
    assert linear_cka(X, Y).value == pytest.approx(0.9453741, abs=1e-7)
    line, other = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([[1.0], [2.0], [2.0], [5.0]])
    assert linear_cka(line, other).value == pytest.approx(0.8)  # in one dimension it is r squared


def test_both_forms_of_the_biased_estimate_agree() -> None:
    """The features' form is the kernels' form: tr(KHLH) by a double loop over centred kernels."""
    x, y = states(7, 3), states(7, 2, seed=1)
    k, m = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y))

    def loop(a: Tensor, b: Tensor) -> float:
        return float(sum(a[i, j] * b[i, j] for i in range(7) for j in range(7)))

    expected = loop(k, m) / math.sqrt(loop(k, k) * loop(m, m))
    assert linear_cka(x, y, estimator="biased").value == pytest.approx(expected, rel=1e-12)


def test_the_debiased_estimate_is_the_mean_over_quadruples() -> None:
    x, y = states(6, 9), states(6, 4, seed=2)
    k, m = x @ x.T, y @ y.T  # not centred: the estimate must not care
    every = list(itertools.permutations(range(6), 4))
    naive = sum(float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])) for i, j, q, r in every) / len(every)
    assert hsic_debiased(k, m) == pytest.approx(naive, rel=1e-10)
    centred = x - x.mean(0)
    assert hsic_debiased(centred @ centred.T, m) == pytest.approx(naive, rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 12), d=st.integers(2, 8), seed=st.integers(0, 10**6), scale=st.floats(0.1, 100.0))
def test_rotation_and_scale_change_nothing(n: int, d: int, seed: int, scale: float) -> None:
    x, y = states(n, d, seed), states(n, d, seed + 1)
    rotation = torch.linalg.qr(states(d, d, seed + 2))[0]
    for estimator in ("biased", "debiased"):
        before = linear_cka(x, y, estimator=estimator).value
        assert linear_cka(scale * x @ rotation + 3.0, y, estimator=estimator).value == pytest.approx(before, abs=1e-8)


def test_few_texts_are_debiased_and_unrelated_states_come_out_near_zero() -> None:
    x, y = states(40, 400), states(40, 400, seed=5)
    assert linear_cka(x, y, estimator="biased").value > 0.8  # the bias that makes strangers look alike
    found = linear_cka(x, y)
    assert found.estimator == "debiased"
    assert abs(found.value) < 0.1
    assert linear_cka(x, x).value == pytest.approx(1.0)
    assert linear_cka(states(900, 400), states(900, 400, seed=1)).estimator == "biased"
    assert linear_cka(states(799, 400), states(799, 400, seed=1)).estimator == "debiased"


def test_equal_states_have_no_number_where_the_released_code_has_zero() -> None:
    same = torch.full((8, 16), 0.3)
    with pytest.raises(Unavailable, match="same state"):
        linear_cka(same, same)
    assert published.cka(same, same) == 0.0
    assert "0 / 0.000001" in published.REASONS["cka"]
    x, y = states(8, 3), states(8, 3, seed=1)
    assert published.cka(x, y) == pytest.approx(linear_cka(x, y, estimator="biased").value)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same texts"):
        linear_cka(X, Y[:3])
    with pytest.raises(Unavailable, match="3 texts are too few"):
        linear_cka(states(3, 9), states(3, 9))
    with pytest.raises(Unavailable, match="1 texts"):
        linear_cka(states(1, 2), states(1, 2))
