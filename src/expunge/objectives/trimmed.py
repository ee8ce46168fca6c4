# SPDX-License-Identifier: Apache-2.0
"""A mean over sequences that leaves the most extreme ones out. Shape suffixes: B sequences."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Side = Literal["high", "low", "both"]


def left_out(count: int, share: float) -> int:
    """Return how many of `count` losses a share leaves out on one side: its floor."""
    return int(share * count + 1e-9)


def trimmed_mean(losses_B: Tensor, share: float, *, side: Side = "high") -> Tensor:
    """Return the mean of the losses without the floor(share x B) most extreme ones, a scalar.

    What is left out gets no gradient. A retain item that was put into the forget set by mistake keeps a high forget
    loss as long as the retain loss holds it up, so that `high` leaves out what the two sets fight over.

    Args:
        losses_B: one loss per sequence, [B], B >= 1.
        share: share left out, on each side where `side` is `both`; at least one loss is kept.
        side: which end.

    Raises:
        ValueError: if there is no loss, or the share leaves none.
    """
    count = losses_B.shape[0]
    cut = left_out(count, share)
    low, high = cut if side in ("low", "both") else 0, cut if side in ("high", "both") else 0
    if count == 0 or share < 0 or low + high >= count:
        raise ValueError(f"a share of {share} on side {side!r} leaves nothing of {count} losses")
    kept = losses_B.detach().argsort(stable=True)[low : count - high]
    return losses_B[kept].mean()
