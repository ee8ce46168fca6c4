# SPDX-License-Identifier: Apache-2.0
"""Results of the lm-evaluation-harness as estimates: of a run in memory, or of the file it wrote."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from expunge.audit.estimate import Direction, Estimate
from expunge.claims import MetricCard

HARNESS = "lm_eval"
#: Metrics that are shares of items, so that an interval ends at 0 and 1.
_SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")


def from_results(
    found: Mapping[str, Any], *, confidence: float = 0.95
) -> tuple[dict[str, Estimate], dict[str, dict[str, Any]]]:
    """Return the estimates and the description of every task in a result of the harness, as its own files hold it.

    Args:
        found: what `simple_evaluate` returns or `results_*.json` holds.
        confidence: coverage of the intervals.
    """
    estimates: dict[str, Estimate] = {}
    described: dict[str, dict[str, Any]] = {}
    for task, values in found["results"].items():
        n, better = _size(task, found), found.get("higher_is_better", {}).get(task, {})
        for key, value in values.items():
            metric, comma, part = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            name = ".".join([HARNESS, task, metric, *([] if part == "none" else [part])])
            error = values.get(f"{metric}_stderr,{part}")
            estimates[name] = _estimate(metric, value, error, n, better.get(metric), confidence)
        described[task] = {
            "version": found.get("versions", {}).get(task), "n": n, "n_shot": found.get("n-shot", {}).get(task),
            "hash": _hash(found.get("samples", {}).get(task)) or found.get("task_hashes", {}).get(task),
        }  # fmt: skip
    return estimates, described


def harness_card(name: str) -> MetricCard:
    """Return the card of an estimate of the harness, by its full name."""
    _, task, metric, *part = name.split(".", 3)
    return MetricCard(
        name=name, title=f"{task}: {metric}{' (' + part[0] + ')' if part else ''}", unit="as the task defines it",
        definition=f"The metric {metric} of the task {task} as the lm-evaluation-harness computes it; the interval is "
        "the value with its standard error times the normal quantile.",
        direction="higher", target="the value before unlearning", needs=("the package lm_eval",),
        source="EleutherAI, lm-evaluation-harness; version and hash of the task stand with the numbers",
        known_failures=("Items are taken as independent.", "Comparable only at the same version, hash and shots."),
    )  # fmt: skip


def _estimate(metric: str, value: Any, error: Any, n: int, better: bool | None, confidence: float) -> Estimate:
    direction: Direction = "reference" if better is None else "higher" if better else "lower"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return Estimate.missing(f"the harness gives {value!r}", direction=direction, n=n)
    low, high, reason = None, None, ""
    if not isinstance(error, int | float) or not math.isfinite(error):
        reason = "the harness gives no standard error"
    elif error == 0:
        reason = "its standard error is 0: every item has the same value, so that it says nothing"
    else:
        half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(error)
        low, high = float(value) - half, float(value) + half
        if metric in _SHARES:
            low, high = max(0.0, low), min(1.0, high)
    return Estimate(value=float(value), ci_low=low, ci_high=high, n=n, direction=direction, reason=reason)


def _size(task: str, found: Mapping[str, Any]) -> int:
    """Return the number of items behind a task, or behind a group through its tasks."""
    own = found.get("n-samples", {}).get(task)
    if own is not None:
        return int(own["effective"])
    return sum(_size(part, found) for part in found.get("group_subtasks", {}).get(task, ()))


def _hash(samples: Sequence[Mapping[str, Any]] | None) -> str:
    if not samples:
        return ""
    parts = (sample[f"{key}_hash"] for sample in samples for key in ("doc", "prompt", "target"))
    return hashlib.sha256("".join(parts).encode()).hexdigest()
