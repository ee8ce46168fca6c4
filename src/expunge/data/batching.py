# SPDX-License-Identifier: Apache-2.0
"""Padding, and buckets of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data.encoding import IGNORE, Encoded

# Shapes: B rows, T tokens of the longest row.


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Rows padded on the right.

    Attributes:
        input_ids: [B, T] int64.
        attention_mask: [B, T] int64, 1 at real tokens; by length, so a real token that equals the padding id counts.
        labels: [B, T] int64, `IGNORE` where nothing is scored.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> PaddedBatch:
        """Return the batch on another device; the host goes on while it is copied to a GPU."""
        pinned = torch.device(device).type == "cuda"
        ids, mask, labels = (
            (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)
            for tensor in (self.input_ids, self.attention_mask, self.labels)
        )
        return PaddedBatch(ids, mask, labels)


def pad(items: Sequence[Encoded], pad_id: int) -> PaddedBatch:
    """Return sequences as one batch, padded on the right to the longest.

    Raises:
        ValueError: if `items` is empty.
    """
    if not items:
        raise ValueError("a batch needs at least one sequence")
    width = max(len(item.ids) for item in items)
    ids = [[*item.ids] + [pad_id] * (width - len(item.ids)) for item in items]
    mask = [[1] * len(item.ids) + [0] * (width - len(item.ids)) for item in items]
    labels = [[*item.labels] + [IGNORE] * (width - len(item.ids)) for item in items]
    return PaddedBatch(torch.tensor(ids), torch.tensor(mask), torch.tensor(labels))


def length_buckets(lengths: Sequence[int], max_tokens: int, *, max_rows: int | None = None) -> list[list[int]]:
    """Return the positions in `lengths` as batches of similar length, longest first.

    The longest batch comes first so that a run short of memory fails at its start. Rows of equal length keep their
    order. A row longer than `max_tokens` is a batch of its own.

    Args:
        lengths: tokens of each row.
        max_tokens: bound on rows x longest row of a batch.
        max_rows: bound on rows of a batch.

    Raises:
        ValueError: if a bound is below 1.
    """
    if max_tokens < 1 or (max_rows is not None and max_rows < 1):
        raise ValueError(f"max_tokens and max_rows must be at least 1, got {max_tokens} and {max_rows}")
    buckets: list[list[int]] = []
    room = 0  # rows the current batch still takes
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if room == 0:
            buckets.append([])
            room = max(1, max_tokens // max(1, lengths[index]))
            room = room if max_rows is None else min(room, max_rows)
        buckets[-1].append(index)
        room -= 1
    return buckets
