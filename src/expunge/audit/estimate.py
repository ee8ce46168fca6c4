# SPDX-License-Identifier: Apache-2.0
"""A number that carries its uncertainty, its direction and what it was compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["higher", "lower", "reference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One metric of one model on one set.

    Attributes:
        value: the point estimate, or None when there is no number; then `reason` says why.
        ci_low, ci_high: 95 % interval, None where the metric has none.
        n: number of items behind the value.
        direction: `higher` or `lower` is better, or `reference`: closer to the retrained model is better.
        reference: name of the reference the number needed, or None.
        compat: which published code's variant this is; `fixed` is the mathematically right one.
        reason: why value (or the interval) is missing; "" otherwise.
        caveat: why the value, though there is one, is no evidence of what the metric is meant to show; "" otherwise.
        most: the largest value that so many items could have shown; None where they bound nothing.

    Raises:
        ValueError: if a value is NaN or infinite, or missing without a reason.
    """

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int
    direction: Direction
    reference: str | None = None
    compat: str = "fixed"
    reason: str = ""
    caveat: str = ""
    most: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "ci_low", "ci_high", "most"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} must be finite or None with a reason, got {number}")
        if self.value is None and not self.reason:
            raise ValueError("an estimate without a value needs a reason")

    @classmethod
    def missing(cls, reason: str, *, direction: Direction, n: int = 0, compat: str = "fixed") -> Estimate:
        """Return an estimate that says why there is no number."""
        return cls(value=None, n=n, direction=direction, compat=compat, reason=reason)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: the keys of `audit.json`, the last three only where they say something."""
        keys = ("value", "ci_low", "ci_high", "n", "direction", "reference", "compat")
        out: dict[str, Any] = {key: getattr(self, key) for key in keys}
        more = {key: getattr(self, key) for key in ("reason", "caveat", "most")}
        return out | {key: said for key, said in more.items() if said not in ("", None)}
