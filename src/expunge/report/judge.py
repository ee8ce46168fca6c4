# SPDX-License-Identifier: Apache-2.0
"""Which colour and which words a number gets, compared with the reference; the same on either side of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.report.metrics import describe
from expunge.report.view import REFERENCE, TARGET, EstimateDict, ReportView

#: Gaps, in units of the metric's scale, up to which a number counts as close to or near the reference.
CLOSE = 0.05
OFF = 0.10

Level = Literal["good", "warn", "bad", "none"]
_MARKS = {("good", "above"): "≈", ("good", "below"): "≈", ("warn", "above"): "△", ("warn", "below"): "▽",
          ("bad", "above"): "▲", ("bad", "below"): "▼"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judgement:
    """A colour level, a mark that does not need colour, and words."""

    level: Level
    mark: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a number is compared with; `label` names it."""

    value: float
    low: float
    high: float
    label: str


NONE = Judgement("none")


def _as_anchor(estimate: EstimateDict | None, label: str) -> Anchor | None:
    if estimate is None or estimate.get("value") is None:
        return None
    low, high = bounds(estimate)
    return Anchor(estimate["value"], low, high, label)


def bounds(estimate: EstimateDict) -> tuple[float, float]:
    """Return the interval of an estimate that has a value; the value itself on a side without a bound."""
    value, low, high = estimate["value"], estimate.get("ci_low"), estimate.get("ci_high")
    return (value if low is None else low), (value if high is None else high)


def anchor(view: ReportView, name: str) -> Anchor | None:
    """Return what `name` is compared with: the reference model, else a neutral value, else the model before."""
    reference, target = view.first(REFERENCE), view.first(TARGET)
    found = _as_anchor(reference.metrics.get(name), "reference") if reference else None
    if found:
        return found
    neutral = describe(name).neutral
    if neutral is not None:
        return Anchor(neutral, neutral, neutral, "no-leak value")
    before = target.metrics.get(name) if target else None
    return _as_anchor(before, "model before") if before and before.get("direction") == "higher" else None


def judge(name: str, estimate: EstimateDict | None, to: Anchor | None) -> Judgement:
    """Compare an estimate with its anchor.

    For a `reference` metric both sides count alike. For `higher` and `lower` only the worse side counts, except
    that a forgetting metric far beyond the reference is amber: less is known than without the data. Green needs
    a small gap, red a large one that the intervals do not explain; what lies between is amber. A metric without a
    scale, a share outside 0..1, or a number with a caveat gets no colour.
    """
    if estimate is None or estimate.get("value") is None or estimate.get("caveat") or to is None:
        return NONE
    value, words = estimate["value"], describe(name)
    shares = max(abs(value), abs(to.value)) <= 1
    if words.scale is None or (words.scale == 1 and not shares):
        return NONE
    side = "above" if value > to.value else "below"
    better = {"higher": "above", "lower": "below"}.get(str(estimate.get("direction")))
    gap = abs(value - to.value)
    low, high = bounds(estimate)
    apart = max(low, to.low) > min(high, to.high)
    if better is not None and (side == better or value == to.value):
        if _beyond(name, to) and gap > OFF * words.scale and apart:
            return Judgement("warn", _MARKS["warn", side], _meaning(name, side, to.label, apart))
        return Judgement("good", "✓", f"at least as good as the {to.label}")
    if gap <= CLOSE * words.scale + 1e-12:
        return Judgement("good", "≈", f"close to the {to.label}")
    level: Level = "bad" if gap > OFF * words.scale and apart else "warn"
    return Judgement(level, _MARKS[level, side], _meaning(name, side, to.label, apart))


def _beyond(name: str, to: Anchor) -> bool:
    """Whether passing the anchor on the better side can mean over-unlearning."""
    return describe(name).group == "Forgetting" and describe(name).known != 0 and to.label == "reference"


def _meaning(name: str, side: str, label: str, apart: bool) -> str:
    """Say which side of the anchor a number lies on and, where the metric tells, what that means."""
    words = describe(name)
    text = f"{side} the {label}"
    if words.group in ("Forgetting", "Membership") and words.known and label != "model before":
        under = (side == "above") == (words.known > 0)
        text += ": under-unlearned" if under else ": over-unlearned"
    return text if apart else f"{text}, though the intervals overlap"
