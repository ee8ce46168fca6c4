# SPDX-License-Identifier: Apache-2.0
"""Which forget example meets which retain example, from private generators only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int | None]


class PairedSampler:
    """Batches of (forget, retain) positions, the same for the same seed and epoch whatever ran before.

    Args:
        n_forget: number of forget rows, at least 1.
        n_retain: number of retain rows; 0 gives None in their place.
        batch_size: pairs per step; the last step of an epoch may be smaller.
        seed: non-negative seed.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, n_forget: int, n_retain: int, *, batch_size: int, seed: int) -> None:
        if n_forget < 1 or n_retain < 0 or batch_size < 1 or seed < 0:
            raise ValueError(f"out of range: {n_forget=}, {n_retain=}, {batch_size=}, {seed=}")
        self.n_forget = n_forget
        self.n_retain = n_retain
        self.batch_size = batch_size
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps that show every forget row once."""
        return -(-self.n_forget // self.batch_size)

    def steps(self, epoch: int) -> list[list[Pair]]:
        """Return the steps of one epoch: every forget row once, each with a retain row.

        Retain rows are drawn without replacement until all were seen, then shuffled again, so that within an epoch
        the counts of two rows differ by at most one.
        """
        rng = np.random.default_rng((self.seed, epoch))
        forget: list[int] = rng.permutation(self.n_forget).tolist()
        pairs: list[Pair] = list(zip(forget, self._retain(rng), strict=True))
        return [pairs[start : start + self.batch_size] for start in range(0, self.n_forget, self.batch_size)]

    def _retain(self, rng: np.random.Generator) -> list[int] | list[None]:
        if self.n_retain == 0:
            return [None] * self.n_forget
        rounds = -(-self.n_forget // self.n_retain)
        drawn = np.concatenate([rng.permutation(self.n_retain) for _ in range(rounds)])
        rows: list[int] = drawn[: self.n_forget].tolist()
        return rows


def derangement(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a uniformly drawn permutation of 0..n-1 that leaves nothing in its place, [n].

    Permutations are drawn until one qualifies, which keeps it uniform and takes e = 2.72 draws on average.

    Raises:
        ValueError: if `n` is below 2, where there is none.
    """
    if n < 2:
        raise ValueError(f"a derangement needs at least 2 items, got {n}")
    while True:
        order = rng.permutation(n)
        if not (order == np.arange(n)).any():
            return order
