# SPDX-License-Identifier: Apache-2.0
"""Is relearning an attack on this model at all? A learning rate that moves it, and whether it moved anything."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from expunge.attacks.compare import block_weights
from expunge.attacks.gauge import difference, mean
from expunge.attacks.relearn_config import How
from expunge.audit.columns import Column
from expunge.audit.config import AuditConfig
from expunge.audit.estimate import Estimate
from expunge.data.encoding import EncodedRow
from expunge.signals.head import unwrap
from expunge.training.finetune import FineTuneTask

#: Published rates, with all weights and with LoRA, and the width and weight size they are carried over from: those of
#: a model of 7 billion weights.
PUBLISHED: Mapping[How, float] = {"full": 2e-5, "lora": 2e-4}
WIDTH, SIZE = 4096, 0.02

#: Key of the scores on what was shown, among those on what is tested.
SHOWN = "shown"
#: Texts shown that are scored at most, evenly spaced through them.
MOST_SHOWN = 64


def learning_rate(model: nn.Module, how: How) -> float:
    """Return the published rate, or more where that would move this model less than one of 7 billion weights.

    A step of Adam at rate r moves each weight by about r, hence a sum over D inputs by up to r D times their size. The
    sum itself is s sqrt(D) times their size, with s the root mean square of the weights. Kept the same is the ratio
    r sqrt(D) / s, which gives r = published x (s / 0.02) x sqrt(4096 / D).

    Args:
        model: whose block weights are measured; their median root mean square is s, its width D.
        how: all weights or LoRA.
    """
    sizes = [float(weight.detach().float().square().mean().sqrt()) for weight in block_weights(model).values()]
    width = int(unwrap(model).config.get_text_config().hidden_size)
    factor = statistics.median(sizes) / SIZE * math.sqrt(WIDTH / width)
    return float(f"{PUBLISHED[how] * max(1.0, factor):.2g}")


def shown_examples(rows: Sequence[EncodedRow], *, steps: int, batch_size: int, seed: int) -> list[int]:
    """Return the numbers of the examples that a run of `steps` trains on, rising, at most `MOST_SHOWN` of them.

    Args:
        rows: what is trained on; their `index` counts examples.
        steps: optimiser steps.
        batch_size: sequences per step.
        seed: of the order.
    """
    task, used, epoch = FineTuneTask([row.encoded for row in rows], batch_size=batch_size, seed=seed), set[int](), 0
    while steps > 0:
        for step in task.steps(epoch)[:steps]:
            used |= {rows[row.index].index for group in step for row in group}
            steps -= 1
        epoch += 1
    found = sorted(used)
    count = min(MOST_SHOWN, len(found))
    return [found[i * len(found) // count] for i in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Whether a way of relearning moved anything.

    Attributes:
        before, after: mean probability of the reference on what it was shown, before and at the largest budget.
        rise: their difference, paired.
        limit: rise from which the attack counts as one; ours.
    """

    before: float
    after: float
    rise: Estimate
    limit: float

    @property
    def there(self) -> bool:
        """Whether the reference learned what it was shown."""
        return _rose(self.rise, self.limit)

    def covers(self, own_rise: Estimate) -> bool:
        """Return whether a model's result counts: the reference moved, or the model itself did on what is tested."""
        return self.there or _rose(own_rise, self.limit)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"before": self.before, "after": self.after, "rise": self.rise.to_dict(), "limit": self.limit,
                "there": self.there}  # fmt: skip


def power_of(before: Column, after: Column, *, limit: float, config: AuditConfig) -> Power:
    """Return the power of an attack from what the reference scores on the texts shown, before and after."""
    low, high = (mean(column, config).value for column in (before, after))
    assert low is not None, "a mean over texts exists"
    assert high is not None, "a mean over texts exists"
    return Power(before=low, after=high, rise=difference(after, before, config), limit=limit)


def _rose(rise: Estimate, limit: float) -> bool:
    if rise.value is None or rise.value < limit:
        return False
    return rise.ci_low is None or rise.ci_low > 0
