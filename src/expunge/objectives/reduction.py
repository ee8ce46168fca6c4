# SPDX-License-Identifier: Apache-2.0
"""From per-token or per-sequence losses to one scalar, the same under any split into micro-batches.

Shape suffixes: N labelled tokens, R sequences.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: `sum`: token losses summed per sequence, averaged over sequences. `sequence_mean`: averaged within each sequence
#: first. `token_mean`: averaged over all tokens, so that long sequences weigh more.
Reduction = Literal["sum", "sequence_mean", "token_mean"]


def reduce_tokens(
    loss_N: Tensor, row_N: Tensor, length_R: Tensor, reduction: Reduction, *, sequences: int, tokens: int
) -> Tensor:
    """Reduce token losses to this batch's share of the step's loss (a scalar).

    The counts are those of the whole optimiser step, so the shares of its micro-batches add up to exactly what one
    large batch gives.

    Args:
        loss_N: loss per token, [N].
        row_N: the sequence each token belongs to, [N], 0..R-1.
        length_R: labelled tokens per sequence, [R].
        reduction: see `Reduction`.
        sequences: sequences in the whole optimiser step.
        tokens: labelled tokens in the whole optimiser step.
    """
    if reduction == "token_mean":
        return loss_N.sum() / max(tokens, 1)
    if reduction == "sum":
        return loss_N.sum() / max(sequences, 1)
    weight_N = length_R.clamp(min=1).to(loss_N.dtype).reciprocal()[row_N]
    return (loss_N * weight_N).sum() / max(sequences, 1)


def reduce_sequences(loss_R: Tensor, *, sequences: int) -> Tensor:
    """Reduce sequence losses [R] to this batch's share of their mean over the step's `sequences`."""
    return loss_R.sum() / max(sequences, 1)


def per_sequence(values_N: Tensor, row_N: Tensor, length_R: Tensor, reduction: Reduction) -> Tensor:
    """Return the sum or the mean of token values within each sequence, [R].

    Raises:
        ValueError: for `token_mean`, which does not exist per sequence.
    """
    if reduction == "token_mean":
        raise ValueError("token_mean mixes sequences: choose sum or sequence_mean")
    total_R = torch.zeros_like(length_R, dtype=values_N.dtype).index_add(0, row_N, values_N)
    return total_R if reduction == "sum" else total_R / length_R.clamp(min=1)
