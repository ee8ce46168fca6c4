# SPDX-License-Identifier: Apache-2.0
"""What one run minimises and on which rows: the part of training that methods bring, apart from the loop.

Shape suffixes: B batch rows, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from expunge.data.batching import PaddedBatch, pad
from expunge.data.encoding import Encoded
from expunge.signals.likelihood import Scorer


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence in a step: its tokens, the role it plays (`forget`, `retain`, `refusal`...), its example's index."""

    encoded: Encoded
    role: str
    index: int


#: Rows that belong together, such as a forget example, its refusal and its retain partner; never split.
Group = Sequence[Row]


@dataclass(frozen=True, slots=True)
class Counts:
    """Sequences and labelled tokens per role in a whole optimiser step, whatever its split into micro-batches."""

    sequences: Mapping[str, int]
    tokens: Mapping[str, int]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Counts:
        """Count a step."""
        sequences: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for group in groups:
            for row in group:
                sequences[row.role] += 1
                tokens[row.role] += row.encoded.n_labels
        return cls(sequences, tokens)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some groups of a step, padded into one forward."""

    rows: tuple[Row, ...]
    batch: PaddedBatch

    @classmethod
    def of(cls, groups: Sequence[Group], pad_id: int, device: torch.device) -> MicroBatch:
        """Pad the rows of `groups` into one batch on `device`."""
        rows = tuple(row for group in groups for row in group)
        return cls(rows, pad([row.encoded for row in rows], pad_id).to(device))

    def rows_of(self, role: str) -> Tensor:
        """Return the indices of the rows that play `role`, [R] int64."""
        found = [b for b, row in enumerate(self.rows) if row.role == role]
        return torch.tensor(found, dtype=torch.long, device=self.batch.input_ids.device)

    def items_of(self, role: str) -> list[Encoded]:
        """Return the sequences that play `role`, in row order."""
        return [row.encoded for row in self.rows if row.role == role]


class Task(Protocol):
    """A method, as the loop sees it."""

    def prepare(self, model: nn.Module) -> None:
        """Compute, from the still unchanged model, whatever the losses compare with."""

    def steps(self, epoch: int) -> Sequence[Sequence[Group]]:
        """Return the optimiser steps of an epoch; the same epoch always gives the same steps."""

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, Tensor]:
        """Return the weighted parts of this micro-batch's share of the loss; their sum is minimised.

        A part that requires no gradient is only summed over the step and handed to `finish_step`.
        """

    def finish_step(self, watched: Mapping[str, float]) -> Mapping[str, float]:
        """Called after each optimiser step with the parts that were only watched; return what to log beside them."""

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive an interruption, as JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
