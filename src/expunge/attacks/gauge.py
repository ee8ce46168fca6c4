# SPDX-License-Identifier: Apache-2.0
"""Measure attacked models: per-item values from the audit's records, and estimates that share their resampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from transformers import PreTrainedModel

from expunge.audit.collect import collect
from expunge.audit.columns import Column
from expunge.audit.config import AuditConfig
from expunge.audit.estimate import Estimate
from expunge.audit.metrics import item_values
from expunge.audit.protocol import default_protocol
from expunge.audit.registry import ONE_CLUSTER
from expunge.audit.statistics import (
    Floats,
    Interval,
    Resample,
    Sample,
    Unavailable,
    checked,
    clopper_pearson,
    function_replicates,
    interval,
    mean_replicates,
    resample,
)
from expunge.data.encoding import Encoder
from expunge.data.examples import Example

#: Values of every item, by metric.
Columns: TypeAlias = Mapping[str, Column]

PROBABILITY, EXTRACTION = "probability", "extraction_strength"
_SET = "forget"


class Gauge:
    """Scores the answers of some examples under any model: one pass, nothing generated.

    Args:
        encoder: the tokenizer under one template and context length.
        examples: what is scored; paraphrases and wrong answers are left out.
        config: batch sizes and intervals.
    """

    def __init__(self, encoder: Encoder, examples: Sequence[Example], config: AuditConfig) -> None:
        bare = {"paraphrased_prompt": None, "paraphrased_answer": None, "perturbed_answers": ()}
        self._sets = {_SET: [replace(example, **bare) for example in examples]}  # type: ignore[arg-type]
        self._encoder = encoder
        self._protocol = default_protocol(self._sets)
        quiet = {"generate": False, "lowercase": False, "gradient_norm": False, "neighbours": 0,
                 "extraction_prefixes": 0, "limit": None, "metrics": ("*",)}  # fmt: skip
        self.config = config.model_copy(update=quiet)

    def __call__(self, model: PreTrainedModel) -> Columns:
        """Return `probability` and, where answers have two tokens or more, `extraction_strength` of every item."""
        records = collect(model, self._encoder, self._sets, config=self.config, protocol=self._protocol)
        out: dict[str, Column] = {}
        for name in (PROBABILITY, EXTRACTION):
            try:
                out[name] = item_values(records, f"{_SET}.{name}", protocol=self._protocol, config=self.config)
            except Unavailable:
                if name == PROBABILITY:
                    raise
        return out


def column_of(examples: Sequence[Example], values: ArrayLike, what: str) -> Column:
    """Return values of examples as a column clustered by subject; a NaN raises `ValueError` naming the item."""
    ids = tuple(example.id for example in examples)
    clusters = tuple(f"subject:{e.subject}" if e.subject else f"item:{e.id}" for e in examples)
    return Column(ids, clusters, checked(values, what, ids))


def joined(parts: Sequence[Column]) -> Column:
    """Return columns of different items as one."""
    ids, clusters = (tuple(x for part in parts for x in getattr(part, key)) for key in ("ids", "clusters"))
    return Column(ids, clusters, np.concatenate([part.values for part in parts]))


def mean(column: Column, config: AuditConfig, *, rate: bool = False, control: str | None = None) -> Estimate:
    """Return the mean of a column with its clustered bootstrap interval.

    Args:
        column: per-item values.
        config: replicates, confidence and seed.
        rate: values are 0 or 1, so that a constant column gets an exact interval.
        control: what the number is to be read beside.
    """
    bounds = _bounds(column, config, rate)
    return Estimate(
        value=float(column.values.mean()), ci_low=bounds.low, ci_high=bounds.high, n=len(column),
        direction="reference", reference=control, reason=bounds.reason,
    )  # fmt: skip


def difference(first: Column, second: Column, config: AuditConfig) -> Estimate:
    """Return mean(first) - mean(second): paired where both have the same items, else resampled independently."""
    if first.ids == second.ids:
        return mean(Column(first.ids, first.clusters, first.values - second.values), config)
    value, n = float(first.values.mean() - second.values.mean()), len(first) + len(second)
    bounds = Interval(None, None, ONE_CLUSTER)
    if min(len(set(first.clusters)), len(set(second.clusters))) > 1:
        sides = [_sample(column, config, salt) for salt, column in enumerate((first, second))]
        bounds = interval(mean_replicates(sides[0]) - mean_replicates(sides[1]), config.confidence)
    return Estimate(
        value=value, ci_low=bounds.low, ci_high=bounds.high, n=n, direction="reference", reason=bounds.reason
    )


def of_means(columns: Sequence[Column], function: Callable[[Floats], Floats], config: AuditConfig) -> Estimate:
    """Return a function of the means of columns over the same clusters, with a shared bootstrap.

    Args:
        columns: M columns.
        function: maps means [R, M] to numbers [R].
        config: replicates, confidence and seed.
    """
    samples = [_sample(column, config) for column in columns]
    value = float(function(np.array([[column.values.mean() for column in columns]]))[0])
    n = min(len(column) for column in columns)
    if not np.isfinite(value):
        return Estimate.missing("the number is not defined here", direction="reference", n=n)
    bounds = Interval(None, None, ONE_CLUSTER)
    if min(len(sample.draws.labels) for sample in samples) > 1:
        bounds = interval(function_replicates(samples, function), config.confidence)
    return Estimate(
        value=value, ci_low=bounds.low, ci_high=bounds.high, n=n, direction="reference", reason=bounds.reason
    )


def _sample(column: Column, config: AuditConfig, salt: int = 0) -> Sample:
    return Sample(column.values, column.clusters, _draws(column, config, salt))


def _draws(column: Column, config: AuditConfig, salt: int = 0) -> Resample:
    # The same clusters always get the same draws, so that models measured on the same items are compared pairwise.
    return resample(column.clusters, replicates=config.bootstrap, seed=[config.seed, salt])


def _bounds(column: Column, config: AuditConfig, rate: bool) -> Interval:
    clusters = len(set(column.clusters))
    if rate and np.ptp(column.values) == 0 and column.values[0] in (0.0, 1.0):
        return Interval(*clopper_pearson(clusters if column.values[0] else 0, clusters, config.confidence))
    if clusters < 2:
        return Interval(None, None, ONE_CLUSTER)
    return interval(mean_replicates(_sample(column, config)), config.confidence)
