# SPDX-License-Identifier: Apache-2.0
"""What both sides are given alike: weights of the losses, settings of the loop, the order of the rows, the metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from torch import Tensor

from benchmarks.workload import Workload
from expunge.data.sampling import PairedSampler
from expunge.methods.topics import Topics, control_vectors

#: Adam's epsilon stands well above the rounding of gradients that are zero in exact numbers, such as those of the
#: divergence from the original in the first step; with the usual 1e-8 it would turn that rounding into whole steps.
TRAINING: Mapping[str, float] = {"learning_rate": 1e-4, "weight_decay": 0.01, "max_grad_norm": 1.0, "epsilon": 1e-6}
NPO: Mapping[str, float] = {"beta": 0.1, "retain_weight": 1.0}
KL: Mapping[str, float] = {"retain_weight": 1.0}
RMU: Mapping[str, float] = {"coefficient": 6.5, "retain_weight": 10.0}
#: Blocks that train in RMU, the last being the one that is read.
TRAINED_BLOCKS = 3
#: Share of the tokens that Min-K% and Min-K%++ average.
MIN_K = 0.4

#: What the default evaluation of TOFU states; forget quality and PrivLeak are left out, which need a retrained model.
DEFAULT_METRICS = (
    "forget.probability", "forget.truth_ratio", "forget.rouge_l", "forget.extraction_strength", "retain.probability",
    "retain.truth_ratio", "retain.rouge_l", "real_authors.probability", "real_authors.truth_ratio",
    "real_authors.rouge_l", "world_facts.probability", "world_facts.truth_ratio", "world_facts.rouge_l",
    "model_utility", "membership.min_k.auc",
)  # fmt: skip
ALL_METRICS = (
    *DEFAULT_METRICS, "forget.exact_memorization", "membership.loss.auc", "membership.zlib.auc",
    "membership.min_k_plus_plus.auc", "membership.gradient_norm.auc",
)  # fmt: skip
METRICS = {"default": DEFAULT_METRICS, "all": ALL_METRICS}


@dataclass(frozen=True, slots=True)
class Job:
    """One method on one workload."""

    method: str
    workload: Workload

    def order(self) -> list[tuple[int, int]]:
        """Return the pairs (forget row, retain row) in the order of training, over all epochs."""
        sizes = self.workload.sizes
        sampler = PairedSampler(sizes.forget, sizes.retain, batch_size=sizes.batch, seed=sizes.seed)
        return [(f, r) for epoch in range(sizes.epochs) for step in sampler.steps(epoch) for f, r in step
                if r is not None]  # fmt: skip

    @property
    def trained(self) -> tuple[int, ...]:
        """Blocks that train in RMU."""
        read = self.workload.sizes.read
        return tuple(range(read - TRAINED_BLOCKS + 1, read + 1))

    def control(self) -> Tensor:
        """Return where RMU sends the states of the forget set, [D]."""
        sizes = self.workload.sizes
        vectors = control_vectors(Topics(("all",)), sizes.width, distribution="uniform", seed=sizes.seed)
        return RMU["coefficient"] * vectors["all"]


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time: of the wall clock, and of the processor time of this process, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Moment:
        """Return this moment."""
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Moment) -> Moment:
        """Return the time that passed since `other`."""
        return Moment(self.wall - other.wall, self.cpu - other.cpu)


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """Loss of every step, the moment after each, and when it all began and ended."""

    losses: list[float]
    stamps: list[Moment]
    started: Moment
    ended: Moment

    @property
    def step(self) -> Moment:
        """Return the median duration of a step, the first left out."""
        steps = [after - before for before, after in pairwise(self.stamps)]
        return Moment(median(one.wall for one in steps), median(one.cpu for one in steps))

    @property
    def whole(self) -> Moment:
        """Return the duration of the whole run, preparation included."""
        return self.ended - self.started
