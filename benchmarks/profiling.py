# SPDX-License-Identifier: Apache-2.0
"""Where the time goes, by kind of operation, from `torch.profiler`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks import ours
from benchmarks.measure import apart
from benchmarks.plain_audit import PlainAudit
from benchmarks.rows import SIDES
from benchmarks.settings import DEFAULT_METRICS, Job
from benchmarks.workload import Workload

#: Kind of operation by what its name contains; the first that fits counts.
KINDS: Mapping[str, tuple[str, ...]] = {
    "optimiser": ("adam", "optimizer", "foreach", "addcdiv", "addcmul", "lerp", "sqrt", "clip_grad"),
    "matrix products": ("mm", "linear", "matmul"),
    "attention": ("attention", "flash"),
    "softmax and losses": ("softmax", "logsumexp", "nll", "cross_entropy", "kl_div", "logsigmoid", "argmax"),
    "copies and indices": ("copy", "cat", "index", "gather", "scatter", "clone", "contiguous", "fill", "zero", "stack",
                           "pad", "arange", "select", "slice", "view", "expand"),
}  # fmt: skip


def kind(name: str) -> str:
    """Return the kind an operation belongs to."""
    bare = name.removeprefix("aten::").lower()
    return next((label for label, parts in KINDS.items() if any(part in bare for part in parts)), "elementwise, norms")


def profiles(workload: Workload) -> dict[str, dict[str, dict[str, float]]]:
    """Return, for a training run of each method and for an audit, the share of each kind of operation on both sides."""
    out = {}
    for name in ("npo", "grad_diff_kl", "rmu", "audit_default"):
        out[name] = {side: apart(_profile, workload, name, side) for side in SIDES}
    return out


def _profile(workload: Workload, name: str, side: str) -> dict[str, float]:
    model, tokenizer = workload.load()
    work: Callable[[], Any]
    if name != "audit_default":
        work = lambda: SIDES[side](Job(name, workload), model, tokenizer)  # noqa: E731
    elif side == "ours":
        work = lambda: ours.audit(workload, DEFAULT_METRICS, model, tokenizer)  # noqa: E731
    else:
        work = lambda: PlainAudit(workload, model, tokenizer).values(DEFAULT_METRICS)  # noqa: E731
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work()
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        spent[kind(event.key)] = spent.get(kind(event.key), 0.0) + event.self_cpu_time_total
    total = sum(spent.values())
    return {label: round(value / total, 3) for label, value in sorted(spent.items(), key=lambda one: -one[1])}
