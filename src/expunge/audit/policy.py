# SPDX-License-Identifier: Apache-2.0
"""Thresholds fixed before a run, and whether its audit meets them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class Policy(BaseModel):
    """Named, versioned thresholds. An audit that misses one exits with code 3."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("none", description="name of the policy")
    version: str = Field("1", description="version of the policy")
    bounds: dict[str, Bound] = Field(default_factory=dict, description="limits by metric name")

    def violations(self, metrics: Mapping[str, Estimate]) -> list[str]:
        """Return one sentence per bound that is not met; a metric without a number never meets its bound."""
        found = []
        for name, bound in self.bounds.items():
            estimate = metrics.get(name)
            if estimate is None or estimate.value is None:
                why = "was not computed" if estimate is None else estimate.reason
                found.append(f"{name}: no number ({why})")
                continue
            low, high = estimate.value, estimate.value
            if bound.whole_interval and estimate.ci_low is not None and estimate.ci_high is not None:
                low, high = estimate.ci_low, estimate.ci_high
            if bound.min is not None and low < bound.min:
                found.append(f"{name}: {low:.4g} is below the minimum {bound.min:.4g}")
            if bound.max is not None and high > bound.max:
                found.append(f"{name}: {high:.4g} is above the maximum {bound.max:.4g}")
        return found
