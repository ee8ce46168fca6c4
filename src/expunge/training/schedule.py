# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from expunge.training.config import TrainingConfig


def learning_rate(step: int, total: int, config: TrainingConfig) -> float:
    """Return the learning rate of optimiser step `step` (0-based) out of `total`.

    Rises linearly over the warm-up so that its first step is already positive, then follows the schedule towards 0.
    """
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, total - warmup)
    factor = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * factor
