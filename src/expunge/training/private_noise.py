# SPDX-License-Identifier: Apache-2.0
"""The coins and the noise of private training: repeatable from a seed, or from the operating system."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Returns that many independent numbers from [0, 1).
Uniform = Callable[[int], NDArray[np.float64]]
#: Returns a float32 tensor of that shape with independent standard normal entries.
Normal = Callable[[torch.Size], Tensor]

_SAMPLES, _NOISE = 86028121, 67867967


def poisson_sample(n: int, rate: float, uniform: Uniform) -> list[int]:
    """Return which of 0..n-1 a step draws, ascending: each by a coin of its own that falls with probability `rate`.

    Gaps between those drawn are geometric, so the cost is that of the sample and not of n coins.
    """
    if rate >= 1:
        return list(range(n))
    drawn: list[int] = []
    last, size = -1.0, int(n * rate + 4 * math.sqrt(n * rate) + 8)
    while last < n:
        gaps = 1 + np.floor(np.log1p(-uniform(size)) / math.log1p(-rate))
        places = last + np.cumsum(gaps)
        drawn += places[places < n].astype(np.int64).tolist()
        last = float(places[-1])
    return drawn


def seeded_uniform(seed: int, epoch: int, step: int) -> Uniform:
    """Return the coins of one step of one epoch."""
    return np.random.default_rng([seed, _SAMPLES, epoch, step]).random


def secure_uniform(count: int) -> NDArray[np.float64]:
    """Return numbers from [0, 1), with 53 random bits each, from the operating system's generator."""
    return (np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seeded_normal(seed: int, step: int) -> Normal:
    """Return the noise of one step: the same for the same seed, whatever ran before."""
    state = int(np.random.SeedSequence([seed, _NOISE, step]).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(state)
    return lambda shape: torch.randn(shape, generator=generator, dtype=torch.float32)


def secure_normal(shape: torch.Size) -> Tensor:
    """Return noise from the operating system's generator: half the sum of four normals for each entry.

    Summing hides which floating-point numbers a single draw can take.

    Source: Box and Muller 1958; Holohan and Braghin, Secure Random Sampling in Differential Privacy, 2021
    (arXiv:2107.10138), section 4.
    """
    count = math.prod(shape)
    radius = np.sqrt(-2 * np.log1p(-secure_uniform(2 * count)))
    angle = 2 * math.pi * secure_uniform(2 * count)
    both = (radius * (np.cos(angle) + np.sin(angle))).reshape(2, count)
    return torch.from_numpy((both.sum(0) / 2).astype(np.float32)).reshape(shape)
