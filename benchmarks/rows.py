# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: what is run on both sides, compared and divided."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import ours, plain_training
from benchmarks.counting import counted
from benchmarks.measure import (
    LOSS_TOLERANCE,
    METRIC_TOLERANCE,
    Peak,
    Ratio,
    apart,
    largest_loss_difference,
    largest_metric_difference,
    speedup,
)
from benchmarks.plain_audit import PlainAudit
from benchmarks.settings import METRICS, Job, Moment, TrainingLog
from benchmarks.workload import Workload

Row = dict[str, Any]
TITLES: Mapping[str, str] = {
    "npo": "NPO step with retain",
    "grad_diff_kl": "GradDiff + KL step",
    "rmu": "RMU step, {first} to {read} of {layers} blocks",
    "audit_default": "TOFU audit, default metrics",
    "audit_all": "TOFU audit with EM and all membership attacks",
    "memory_npo": "Peak memory of an NPO run",
    "start_audit": "Start of an audit to its first batch",
}
METHODS = ("npo", "grad_diff_kl", "rmu")
SIDES = {"ours": ours.train, "plain": plain_training.train}


def title(name: str, workload: Workload) -> str:
    """Return what a row is called."""
    sizes = workload.sizes
    return TITLES[name].format(first=Job("rmu", workload).trained[0], read=sizes.read, layers=sizes.layers)


def training_row(workload: Workload, method: str) -> Row:
    """Measure the steps of a method; the first pair warms up, is counted and compared, and not timed."""
    job = Job(method, workload)
    logs: dict[str, list[TrainingLog]] = {side: [] for side in SIDES}
    work, shares = {}, []
    for pair in range(workload.sizes.pairs + 1):
        for side, train in SIDES.items():
            model, tokenizer = workload.load()
            if pair == 0:
                with counted(model) as count:
                    logs[side].append(train(job, model, tokenizer))
                work[side] = count.to_dict() | {"blocks": count.blocks, "steps": len(logs[side][0].losses)}
            else:
                logs[side].append(train(job, model, tokenizer))
        shares.append(largest_loss_difference(logs["ours"][-1].losses, logs["plain"][-1].losses))
    first, second = logs["ours"][1:], logs["plain"][1:]
    return {
        "equal": {"what": "loss of every step, relative", "largest": max(shares), "tolerance": LOSS_TOLERANCE},
        "ratio": speedup([log.step for log in first], [log.step for log in second]),
        "whole_run": speedup([log.whole for log in first], [log.whole for log in second]),
        "work": work,
    }


def audit_row(workload: Workload, which: str) -> Row:
    """Measure a whole audit, from files and a loaded model to the values of all metrics."""
    names = METRICS[which]
    sides: dict[str, Callable[..., dict[str, float]]] = {
        "ours": lambda model, tokenizer: ours.audit(workload, names, model, tokenizer),
        "plain": lambda model, tokenizer: PlainAudit(workload, model, tokenizer).values(names),
    }
    spent: dict[str, list[Moment]] = {side: [] for side in sides}
    work, values, differences = {}, dict[str, dict[str, float]](), []
    for pair in range(workload.sizes.pairs + 1):
        for side, audit in sides.items():
            model, tokenizer = workload.load()
            if pair == 0:
                with counted(model) as count:
                    values[side] = audit(model, tokenizer)
                work[side] = count.to_dict() | {"blocks": count.blocks}
            else:
                started = Moment.now()
                values[side] = audit(model, tokenizer)
                spent[side].append(Moment.now() - started)
        differences.append(largest_metric_difference(values["ours"], values["plain"]))
    return {
        "equal": {"what": "every metric, absolute", "largest": max(differences), "tolerance": METRIC_TOLERANCE},
        "ratio": speedup(spent["ours"], spent["plain"]),
        "work": work,
        "values": values["ours"],
    }


def memory_row(workload: Workload, method: str) -> Row:
    """Measure the peak memory of a run on both sides, each in a process forked after all imports."""
    peaks: dict[str, list[int]] = {side: [] for side in SIDES}
    losses: dict[str, list[float]] = {}
    differences = []
    for _ in range(workload.sizes.pairs):
        for side in SIDES:
            peak, losses[side] = apart(_peak, workload, method, side)
            peaks[side].append(peak)
        differences.append(largest_loss_difference(losses["ours"], losses["plain"]))
    model, _ = workload.load()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "equal": {"what": "loss of every step, relative", "largest": max(differences), "tolerance": LOSS_TOLERANCE},
        "ratio": {"memory": Ratio.of(peaks["ours"], peaks["plain"]).to_list()},
        "in_weights": {side: round(sorted(found)[len(found) // 2] / weights, 2) for side, found in peaks.items()},
    }


def _peak(workload: Workload, method: str, side: str) -> tuple[int, list[float]]:
    peak = Peak()
    model, tokenizer = workload.load()
    losses = SIDES[side](Job(method, workload), model, tokenizer).losses
    return peak.bytes(), losses


def start_row(workload: Workload) -> Row:
    """Measure how long a new process takes from its start to the first forward pass of an audit."""
    spent: dict[str, list[Moment]] = {"ours": [], "plain": []}
    for pair in range(workload.sizes.pairs + 1):
        for side, found in spent.items():
            one = _start(workload, side)
            if pair:
                found.append(one)
    return {"ratio": {clock: Ratio.of([getattr(one, clock) for one in spent["ours"]],
                                      [getattr(one, clock) for one in spent["plain"]]).to_list()
                      for clock in ("cpu", "wall")}}  # fmt: skip


def _start(workload: Workload, side: str) -> Moment:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.startup", side, str(workload.folder)]
    subprocess.run(command, check=True, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Moment(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measured(name: str, workload: Workload) -> Row:
    """Measure one row, in a process of its own where it measures this process."""
    if name in METHODS:
        row = apart(training_row, workload, name)
    elif name == "memory_npo":
        row = memory_row(workload, "npo")
    elif name == "start_audit":
        row = start_row(workload)
    else:
        row = apart(audit_row, workload, name.removeprefix("audit_"))
    return {"title": title(name, workload), **row}
