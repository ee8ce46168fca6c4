# SPDX-License-Identifier: Apache-2.0
"""The trimmed mean by hand, and where its gradient does not go."""

from __future__ import annotations

import pytest
import torch

from expunge.objectives.trimmed import left_out, trimmed_mean


def test_the_extremes_are_left_out_and_get_no_gradient():
    losses = torch.tensor([1.0, 9.0, 2.0, 4.0, -7.0], requires_grad=True)
    assert trimmed_mean(losses, 0.0).item() == pytest.approx(1.8)
    assert trimmed_mean(losses, 0.2).item() == pytest.approx(0.0)
    assert trimmed_mean(losses, 0.2, side="low").item() == pytest.approx(4.0)
    both = trimmed_mean(losses, 0.2, side="both")
    assert both.item() == pytest.approx(7 / 3)
    both.backward()
    assert losses.grad.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3, 0])
    assert trimmed_mean(losses, 0.39).item() == trimmed_mean(losses, 0.2).item()


def test_a_share_is_rounded_down():
    assert [left_out(16, share) for share in (0.0, 0.0624, 0.0625, 0.25, 0.999)] == [0, 0, 1, 4, 15]
    assert left_out(10, 0.3) == 3  # 2.9999999999999996 in floating point


def test_something_must_be_left():
    with pytest.raises(ValueError, match="leaves nothing"):
        trimmed_mean(torch.ones(4), 0.5, side="both")
    with pytest.raises(ValueError, match="leaves nothing"):
        trimmed_mean(torch.ones(0), 0.1)
