# SPDX-License-Identifier: Apache-2.0
"""The empirical Fisher diagonal: by hand, against a loop, and what comparing two of them says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.audit.diagnostics.fisher import EDGES, compare, concentration, histogram, mean_square, overlap
from expunge.audit.statistics import Unavailable


def logistic_gradients() -> list[list[Tensor]]:
    """Three samples under w = (0.5, -1)."""
    w = nn.Parameter(torch.tensor([0.5, -1.0]))
    out = []
    for x, label in (((1.0, 2.0), 1.0), ((0.0, 1.0), 0.0), ((2.0, -1.0), 1.0)):
        logit = w @ torch.tensor(x)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor(label))
        out.append(list(torch.autograd.grad(loss, [w])))
    return out


def test_the_square_comes_before_the_mean() -> None:
    gradients = logistic_gradients()
    assert mean_square(gradients)[0].tolist() == pytest.approx([0.241755, 0.920084], abs=1e-6)
    squared_mean = torch.stack([g[0] for g in gradients]).mean(0).square()
    assert squared_mean.tolist() == pytest.approx([0.123899, 0.172780], abs=1e-6)  # what batches give: too little


def test_sums_are_float32_whatever_the_gradients_are() -> None:
    tiny = [[torch.full((2,), 1e-3, dtype=torch.bfloat16)] for _ in range(1000)]
    found = mean_square(tiny)[0]
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([float(tiny[0][0][0]) ** 2] * 2, rel=1e-4)
    with pytest.raises(ValueError, match="no samples"):
        mean_square([])


def test_histogram_counts_every_weight() -> None:
    found = histogram(torch.tensor([0.0, 1e-35, 1.1e-4, 3e-4, 4e-4, 1e12]))
    assert (found.zeros, found.counts.sum()) == (1, 5)
    assert found.counts[EDGES.index(-4.0)] == 2  # half a decade from 1e-4 on: up to 3.16e-4
    assert found.counts[EDGES.index(-3.5)] == 1
    assert found.counts[0] == found.counts[-1] == 1  # what is beyond the edges
    assert found.shares.sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="below 0"):
        histogram(torch.tensor([-1.0]))


def test_overlap_is_the_shared_area() -> None:
    low, high = histogram(torch.tensor([1e-8, 1e-8, 1e-8, 1e-4])), histogram(torch.tensor([1e-4, 1e-4, 1e-8, 0.0]))
    assert overlap(low, low) == pytest.approx(1.0)
    assert overlap(low, high) == overlap(high, low) == pytest.approx(0.5)


def test_a_layer_that_became_flatter() -> None:
    before = torch.tensor([1e-2, 1e-4, 1e-6, 0.0])
    found = compare(before, before / 100)
    assert found.ratio == pytest.approx(0.01)
    assert found.log_ratio == pytest.approx([-2.0] * 5, abs=1e-5)
    assert found.mass_before == pytest.approx(0.010101, rel=1e-5)
    assert found.top_before == pytest.approx(1e-2 / 0.010101, rel=1e-5)
    assert np.subtract(found.spectrum_before, found.spectrum_after) == pytest.approx([2.0] * 5, abs=1e-5)
    assert compare(before, before).overlap == pytest.approx(1.0)


def test_the_largest_hundredth() -> None:
    values = torch.ones(200)
    values[:2] = 99.0
    assert concentration(values) == pytest.approx(198 / (198 + 198))


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(torch.ones(2), torch.ones(3))
    with pytest.raises(Unavailable, match="does not depend"):
        compare(torch.ones(2), torch.zeros(2))
    with pytest.raises(Unavailable, match="in both models"):
        compare(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
