# SPDX-License-Identifier: Apache-2.0
"""Weights reserved for one shard: disjoint random masks, so that the updates of all can stand in one model."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Reserve:
    """One of several disjoint shares of the weights; together they are all of them.

    Attributes:
        slot: which, from 0.
        slots: how many there are; fixed for good, so that no share depends on who is there.
    """

    slot: int
    slots: int

    def mask(self, name: str, shape: torch.Size) -> Tensor:
        """Return True at the reserved weights of a parameter."""
        draw = np.random.default_rng([zlib.crc32(name.encode()), self.slots])
        owner = draw.integers(0, self.slots, size=int(np.prod(shape)), dtype=np.int64)
        return torch.from_numpy(owner == self.slot).reshape(shape)

    def masks(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the masks of all parameters that may move, by name."""
        return {name: self.mask(name, p.shape) for name, p in model.named_parameters() if p.requires_grad}
