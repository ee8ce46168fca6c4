# SPDX-License-Identifier: Apache-2.0
"""Principal components: a rotated axis, a moved mean, and signs that mean nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from expunge.audit.diagnostics import published
from expunge.audit.diagnostics.pca import components, mean_shift, pc1_similarity
from expunge.audit.statistics import Unavailable

#: Axis-aligned: the first axis is x (variance 8), the second y (variance 0.5).
CROSS = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


def turned(degrees: float) -> Tensor:
    angle = math.radians(degrees)
    return CROSS @ torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def test_components_by_hand_and_against_the_covariance() -> None:
    found = components(CROSS + 7.0)
    assert found.mean_D.tolist() == [7.0, 7.0]
    assert torch.allclose(found.axes_KD, torch.eye(2, dtype=torch.float64))  # the largest entry is positive
    assert found.variances_N.tolist() == pytest.approx([8.0, 0.5])
    assert found.gap == pytest.approx(1 - 0.5 / 8)
    x = np.random.default_rng(0).normal(size=(9, 5))
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    found = components(torch.from_numpy(x))
    assert found.variances_N.numpy() == pytest.approx(values[::-1])
    assert abs(found.axes_KD[0].numpy() @ vectors[:, -1]) == pytest.approx(1.0)
    assert found.project(torch.from_numpy(x)).mean(0).numpy() == pytest.approx(np.zeros(2), abs=1e-12)


@pytest.mark.parametrize(("degrees", "expected"), [(30, 0.8660254), (150, 0.8660254), (180, 1.0), (90, 0.0)])
def test_the_first_direction_rotated(degrees: float, expected: float) -> None:
    found = pc1_similarity(CROSS, turned(degrees))
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert (found.gap_before, found.gap_after) == (pytest.approx(0.9375), pytest.approx(0.9375))


def test_mirrored_states_have_similarity_one_and_the_released_cosine_may_not() -> None:
    assert pc1_similarity(CROSS, -CROSS).value == pytest.approx(1.0)
    cosines = [published.pc1_cosine(x, sign * x) for x in (CROSS, turned(40), turned(130)) for sign in (1, -1)]
    assert all(abs(cosine) == pytest.approx(1.0) for cosine in cosines)
    assert min(cosines) < 0 < max(cosines)  # one and the same arrangement, two answers


def test_a_moved_mean() -> None:
    found = mean_shift(CROSS, CROSS + torch.tensor([3.0, -1.0]))
    assert tuple(map(abs, found.along)) == pytest.approx((3.0, 1.0))
    assert found.norm == pytest.approx(3.1622777, abs=1e-7)
    assert found.total == pytest.approx(found.norm)
    assert found.relative == pytest.approx(math.sqrt(10) / math.sqrt(8.5))


def test_a_shift_off_the_plane_shows_in_the_total_only() -> None:
    flat = torch.cat([CROSS, torch.zeros(4, 1)], dim=1)
    found = mean_shift(flat, flat + torch.tensor([0.0, 0.0, 5.0]))
    assert found.norm == pytest.approx(0.0, abs=1e-12)
    assert found.total == pytest.approx(5.0)


def test_the_length_of_a_shift_does_not_depend_on_the_axes() -> None:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    moved = x + torch.linspace(0, 1, 6)
    one, other = mean_shift(x, moved), mean_shift(x @ rotation, moved @ rotation)
    assert other.norm == pytest.approx(one.norm)
    assert mean_shift(10 * x, 10 * moved).relative == pytest.approx(one.relative)


def test_what_has_no_components() -> None:
    with pytest.raises(Unavailable, match="2 texts"):
        components(CROSS[:2])
    with pytest.raises(Unavailable, match="same state"):
        components(torch.ones(5, 4))
