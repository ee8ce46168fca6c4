# SPDX-License-Identifier: Apache-2.0
"""What a metric is to the audit: cards, a function, and the estimates built from columns."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal
from zlib import crc32

import numpy as np

from expunge.audit.columns import Column, View
from expunge.audit.config import AuditConfig, Compat
from expunge.audit.estimate import Direction, Estimate
from expunge.audit.protocol import Protocol, SetRole
from expunge.audit.statistics import (
    Interval,
    Resample,
    Sample,
    Unavailable,
    clopper_pearson,
    interval,
    mean_replicates,
    resample,
)
from expunge.claims import MetricCard

Group = Literal["forget", "utility", "holdout", "hazard", "questions", "reasoning"]
GROUPS: Mapping[SetRole, Group] = {
    "forget": "forget", "retain": "utility", "options": "utility", "holdout": "holdout",
    "hazard": "hazard", "questions": "questions", "reasoning": "reasoning",
}  # fmt: skip
PREFIX: Mapping[Group, str] = {
    "forget": "forget", "utility": "{set}", "holdout": "holdout",
    "hazard": "wmdp", "questions": "{set}", "reasoning": "{set}",
}  # fmt: skip

ONE_CLUSTER = "only one subject: an interval needs two or more"
ALIKE = "every item has the same share of a point, which resampling cannot vary"


@dataclass(slots=True)
class Context:
    """Everything a metric may look at.

    `draws` keeps the bootstrap of each set, so that its metrics share it; `caveats` what was found out once and
    concerns a whole family of metrics.
    """

    view: View
    protocol: Protocol
    config: AuditConfig
    reference: View | None = None
    reference_name: str | None = None
    refusals: tuple[str, ...] = ()
    caveats: dict[str, str] = field(default_factory=dict)
    _draws: dict[tuple[str, tuple[str, ...]], Resample] = field(default_factory=dict)

    def draws(self, name: str, clusters: Sequence[str]) -> Resample:
        """Return the bootstrap of a set; equal sets of clusters get equal draws, whichever metric asks."""
        key = (name, tuple(sorted(set(clusters))))
        if key not in self._draws:
            seed = [self.config.seed, crc32(name.encode())]
            self._draws[key] = resample(key[1], replicates=self.config.bootstrap, seed=seed)
        return self._draws[key]

    def sample(self, name: str, values: Column) -> Sample:
        """Return a column with the bootstrap of its set."""
        return Sample(values.values, values.clusters, self.draws(name, values.clusters))

    def needed_reference(self) -> View:
        """Return the reference's records; raises `Unavailable` if none were given."""
        if self.reference is None:
            raise Unavailable("no records of a reference model were given")
        return self.reference


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMetric:
    """A metric that exists once per set: the mean of a column.

    Attributes:
        name: what follows the set's name and a dot.
        columns: returns the per-item values of one set; the fourth argument is the variant to compute.
        groups: direction and target for each group of sets that has the metric.
        rate: the values are 0 or 1, so that a constant column still gets an exact interval.
    """

    name: str
    title: str
    definition: str
    unit: str
    columns: Callable[[Context, str, SetRole, Compat], Column]
    groups: Mapping[Group, tuple[Direction, str]]
    needs: tuple[str, ...] = ()
    compat: tuple[Compat, ...] = ("fixed",)
    known_failures: tuple[str, ...] = ()
    source: str = ""
    rate: bool = False

    def cards(self, groups: Container[Group] = tuple(PREFIX)) -> list[MetricCard]:
        """Return one card per group of sets, of those asked for."""
        return [
            MetricCard(
                name=f"{PREFIX[group]}.{self.name}", title=self.title, definition=self.definition, unit=self.unit,
                direction=direction, target=target, needs=self.needs, compat=self.compat,
                known_failures=self.known_failures, source=self.source,
            )
            for group, (direction, target) in self.groups.items()
            if group in groups
        ]  # fmt: skip

    def estimate(self, context: Context, name: str, role: SetRole) -> Estimate:
        """Return the metric of one set."""
        compat = variant(self.compat, context.config)
        direction = self.groups[GROUPS[role]][0]
        try:
            values = self.columns(context, name, role, compat)
            return mean_estimate(context, name, values, direction=direction, compat=compat, rate=self.rate)
        except Unavailable as reason:
            return Estimate.missing(str(reason), direction=direction, compat=compat)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditMetric:
    """A metric of the whole audit; `compute` may raise `Unavailable`.

    `protocols` are the patterns of protocol names that define the metric; () means that every protocol has it.
    """

    card: MetricCard
    compute: Callable[[Context, Compat], Estimate]
    protocols: tuple[str, ...] = ()

    def offered(self, protocol: Protocol) -> bool:
        """Return whether the metric belongs to a protocol."""
        return not self.protocols or any(fnmatchcase(protocol.name, pattern) for pattern in self.protocols)

    def estimate(self, context: Context) -> Estimate:
        """Return the metric, or an estimate that says why there is none."""
        compat = variant(self.card.compat, context.config)
        try:
            return self.compute(context, compat)
        except Unavailable as reason:
            return Estimate.missing(str(reason), direction=direction_of(self.card), compat=compat)


def variant(known: Sequence[str], config: AuditConfig) -> Compat:
    """Return the variant to compute: the configured one where the metric has it, else `fixed`."""
    return config.compat if config.compat in known else "fixed"


def direction_of(card: MetricCard) -> Direction:
    """Return the card's direction as the type that estimates use."""
    match card.direction:
        case "higher" | "lower" | "reference":
            return card.direction
    raise ValueError(f"card {card.name!r} has no valid direction: {card.direction!r}")


def single_cluster(*columns: Column) -> bool:
    """Return whether any of the columns has fewer than two clusters, so that it has no interval."""
    return any(len(set(values.clusters)) < 2 for values in columns)


def mean_estimate(
    context: Context, name: str, values: Column, *, direction: Direction, compat: Compat, rate: bool = False
) -> Estimate:
    """Return the mean of a column with its clustered bootstrap interval."""
    if not len(values):
        raise Unavailable(f"set {name!r} has no item for this metric")
    bounds = _mean_bounds(context, name, values, rate)
    return Estimate(
        value=float(values.values.mean()), ci_low=bounds.low, ci_high=bounds.high, n=len(values),
        direction=direction, compat=compat, reason=bounds.reason,
    )  # fmt: skip


def _mean_bounds(context: Context, name: str, values: Column, rate: bool) -> Interval:
    clusters = len(set(values.clusters))
    if rate and np.ptp(values.values) == 0 and values.values[0] not in (0.0, 1.0):
        return Interval(None, None, ALIKE)
    if rate and np.ptp(values.values) == 0:
        # Resampling equal values gives an interval of length zero; 0 of 40 does not mean never.
        hits = clusters if values.values[0] else 0
        return Interval(*clopper_pearson(hits, clusters, context.config.confidence))
    if clusters < 2:
        return Interval(None, None, ONE_CLUSTER)
    return interval(mean_replicates(context.sample(name, values)), context.config.confidence)
