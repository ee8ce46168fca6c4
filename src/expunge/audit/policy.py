# SPDX-License-Identifier: Apache-2.0
"""Thresholds fixed before a run, and whether its audit meets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.audit.canaries.cards import CANARY_PREFIX, NO_CANARIES
from expunge.audit.estimate import Estimate


class Bound(BaseModel):
    """Limits of one metric. By default the whole interval must lie inside them, not only the value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float | None = Field(None, description="smallest value that passes")
    max: float | None = Field(None, description="largest value that passes")
    whole_interval: bool = Field(True, description="hold the interval, not only the value, against the limits")

    @model_validator(mode="after")
    def _some_limit(self) -> Bound:
        if self.min is None and self.max is None:
            raise ValueError("a bound needs min or max")
        return self


class Verdict(NamedTuple):
    """One limit: its text, the number held against it (None if there is none), whether it is met, and why not.

    `reason` says why there is no number, or why the number shows nothing; "" otherwise.
    """

    rule: str
    measured: float | None
    met: bool
    reason: str = ""


class Policy(BaseModel):
    """Named, versioned thresholds. An audit that misses one exits with code 3."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("none", description="name of the policy")
    version: str = Field("1", description="version of the policy")
    bounds: dict[str, Bound] = Field(default_factory=dict, description="limits by metric name")

    def check(self, metrics: Mapping[str, Estimate]) -> list[Verdict]:
        """Return one verdict per limit; a metric without a number that is evidence never meets its limit.

        Neither does one that so few items could not have missed.
        """
        found = []
        for name, bound in self.bounds.items():
            one = metrics.get(name)
            (low, high), reason = _range(one, bound), _reason(name, one)
            if bound.min is not None:
                met = low is not None and low >= bound.min
                found.append(Verdict(f"{name} at least {bound.min:g}", low, met, reason))
            if bound.max is not None:
                weak = _too_weak(one, bound.max)
                met = high is not None and high <= bound.max and not weak
                found.append(Verdict(f"{name} at most {bound.max:g}", high, met, reason or weak))
        return found


def _reason(name: str, estimate: Estimate | None) -> str:
    """Say why there is no number to hold against a limit, "" where there is one."""
    if estimate is not None:
        return estimate.caveat or (estimate.reason if estimate.value is None else "")
    if name.startswith(CANARY_PREFIX):
        return NO_CANARIES
    return "the audit has no metric of this name"


def _too_weak(estimate: Estimate | None, limit: float) -> str:
    if estimate is None or estimate.most is None or estimate.most > limit:
        return ""
    return f"so few canaries could not have shown more than {estimate.most:.3g}, whatever was left"


def _range(estimate: Estimate | None, bound: Bound) -> tuple[float | None, float | None]:
    """Return the two ends that are held against the limits, or None where there is no number to rely on."""
    if estimate is None or estimate.value is None or estimate.caveat:
        return None, None
    if bound.whole_interval and estimate.ci_low is not None and estimate.ci_high is not None:
        return estimate.ci_low, estimate.ci_high
    return estimate.value, estimate.value
