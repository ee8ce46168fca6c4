# SPDX-License-Identifier: Apache-2.0
"""The collapse map: how many requests, at which learning rate, a model takes before it loses what it should keep.

Source: Xu et al., "Unlearning Isn't Deletion: Investigating Reversibility of Machine Unlearning in LLMs", 2025
(arXiv:2505.16831): single against continual unlearning over numbers of requests and learning rates.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from expunge.api.workspace import Silent, Watcher
from expunge.audit.document import environment, write_json
from expunge.audit.regimes import Thresholds
from expunge.claims import ATTACKS
from expunge.data.digests import data_digest
from expunge.data.examples import Example
from expunge.data.sources import Source
from expunge.errors import RecipeError, TrainingDiverged
from expunge.methods.registry import get_method
from expunge.recipe import merge
from expunge.report.collapse import write_collapse_page
from expunge.runs import RunFolder, earlier_run
from expunge.studies.plan import joined, read_sets
from expunge.studies.points import FORGETTING, UTILITY, read_study
from expunge.studies.scalability import scalability
from expunge.studies.sustainability import sustainability

COLLAPSE_VERSION = 1
#: `single`: all requests at once, from the original. `continual`: one after the other.
Way = Literal["single", "continual"]
WAYS: tuple[Way, ...] = ("single", "continual")


@dataclass(frozen=True, slots=True)
class Collapse:
    """Where a collapse map is, and what its `collapse.json` holds."""

    folder: Path
    document: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """What the study wrote for machines."""
        return self.folder / "collapse.json"

    @property
    def report(self) -> Path:
        """The page with the maps."""
        return self.folder / "collapse.html"


def collapse(
    settings: Mapping[str, Any],
    *,
    requests: Sequence[Source],
    rates: Sequence[float],
    folder: Path,
    seeds: Sequence[int] = (),
    threshold: float | None = None,
    notes: Sequence[str] = (),
    overwrite: bool = False,
    commands: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Collapse:
    """Unlearn 1..N requests at every learning rate, at once and one after the other, and draw what is left.

    Called again on the same folder, finished runs are kept and the others are run. A run that diverges is a cell of the
    map, not the end of it.

    Args:
        settings: nested settings of a recipe; its learning rate is replaced.
        requests: the forget sets, in order; no example may be in two of them.
        rates: learning rates.
        folder: where everything goes: a study per way and rate, the records they share, `collapse.json` and its page.
        seeds: of the runs; default: the recipe's.
        threshold: collapsed from this share of the original's utility lost on; by default that of the regimes, ours.
        notes: what a reader of the page must know of the data.
        overwrite: start again where a map already is.
        commands: how to reproduce it.
        watcher: follows the runs.

    Raises:
        RecipeError: for rates that are not positive or come twice, settings that cannot run, or a folder that holds
            another map.
        InputDataError: for data that cannot be used.
    """
    if not rates or len(set(rates)) < len(rates) or min(rates) <= 0:
        raise RecipeError("must be positive and different", field="rates", value=list(rates), remedy="Give 1e-5, 1e-4")
    asked = read_sets(requests, settings, name="request")
    sizes = [len(joined(asked[:k])) for k in range(1, len(asked) + 1)]
    level = Thresholds().collateral if threshold is None else threshold
    key = [settings, list(rates), list(seeds), [data_digest(examples) for examples in asked]]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    if not overwrite:
        earlier_run(folder, digest)
    whole = RunFolder(folder, overwrite=overwrite, resume=not overwrite)
    whole.start({"kind": "collapse", "recipe_hash": digest, "commands": list(commands)})
    watch, points = watcher or Silent(), dict[tuple[Way, float], list[dict[str, Any]]]()
    document: dict[str, Any] = {}
    with whole.recorded():
        for rate in sorted(rates):
            for way in WAYS:
                watch.heading(f"{way}, learning rate {rate:g}")
                own = merge(settings, {"training": {"learning_rate": rate}})
                points[way, rate] = _points(way, own, asked, folder, rate, seeds, watcher)
                document = _document(settings, points, sizes, rates, level) | {"notes": list(notes)}
                write_json(document, folder / "collapse.json")
                write_collapse_page(document, folder / "collapse.html", commands=commands)
    return Collapse(folder, document)


def _points(
    way: Way, settings: Mapping[str, Any], asked: Sequence[Sequence[Example]], folder: Path, rate: float,
    seeds: Sequence[int], watcher: Watcher | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run one row of one map; where a run diverges, the points before it are what there is."""
    own, records = folder / f"{way}-{rate:g}", folder / "records"
    try:
        if way == "continual":
            sustainability(settings, requests=asked, folder=own, seeds=seeds, records_dir=records, watcher=watcher)
        else:
            grown = [joined(asked[:k]) for k in range(1, len(asked) + 1)]
            scalability(settings, sources=grown, folder=own, seeds=seeds, records_dir=records, watcher=watcher)
    except TrainingDiverged:
        pass
    return _with_original(way, read_study(own)["points"]) if (own / "study.json").exists() else []


def _with_original(way: Way, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points with the numbers of the original: a continual step starts from the step before it."""
    first = {p["seed"]: p["before"] for p in points if p["step"] == 1}
    return [{**p, "original": first[p["seed"]] if way == "continual" else p["before"]} for p in points]


def _document(
    settings: Mapping[str, Any], points: Mapping[tuple[Way, float], Sequence[Mapping[str, Any]]],
    sizes: Sequence[int], rates: Sequence[float], threshold: float,
) -> dict[str, Any]:  # fmt: skip
    every = [point for row in points.values() for point in row]
    utility, forgetting = _metric(every, UTILITY), _metric(every, FORGETTING)
    method = get_method(str(settings["method"]["name"])).card
    cells = [
        _cell(way, rate, step, [p for p in row if p["step"] == step], (utility, forgetting), threshold)
        | {"utility_before": _before(points, utility, rate, step),
           "forgetting_before": _before(points, forgetting, rate, step)}
        for (way, rate), row in points.items()
        for step in range(1, len(sizes) + 1)
    ]  # fmt: skip
    return {
        "schema_version": COLLAPSE_VERSION, "kind": "collapse", "method": method.to_dict(), "claim": str(method.claim),
        "settings": dict(settings), "rates": sorted(rates), "requests": list(sizes), "threshold": threshold,
        "utility": utility, "forgetting": forgetting, "complete": len(points) == len(WAYS) * len(rates),
        "cells": cells, "environment": environment(),
        "not_tested": [name for name in ATTACKS if not all(name in point["attacks_run"] for point in every)],
        "seconds": round(sum(point["seconds"] or 0.0 for point in every), 3),
    }  # fmt: skip


def _metric(points: Sequence[Mapping[str, Any]], candidates: Sequence[str]) -> str | None:
    """Return the first metric with a number before and after every step."""
    for name in candidates:
        if points and all(p[who].get(name, {}).get("value") is not None for p in points for who in ("before", "after")):
            return name
    return None


def _before(
    points: Mapping[tuple[Way, float], Sequence[Mapping[str, Any]]], metric: str | None, rate: float, step: int
) -> float | None:
    """Return the original's number on the requests up to a step: what the single run of that size started from."""
    if metric is None:
        return None
    found = [p for (way, r), row in points.items() if way == "single" and r == rate for p in row if p["step"] == step]
    return float(found[0]["before"][metric]["value"]) if found else None


def _cell(
    way: Way, rate: float, step: int, points: Sequence[Mapping[str, Any]], metrics: tuple[str | None, str | None],
    threshold: float,
) -> dict[str, Any]:  # fmt: skip
    """Return one cell: medians over seeds, and in how many of them the model collapsed."""
    utility, forgetting = metrics
    out: dict[str, Any] = {"way": way, "rate": rate, "requests": step, "seeds": [p["seed"] for p in points]}
    if not points:
        return out | {"kept": None, "forgetting": None, "reason": "the run diverged"}
    if utility is None:
        return out | {"kept": None, "forgetting": None, "reason": "no utility metric has a number everywhere"}
    shares = [_kept(p, utility) for p in points]
    sides = [_collapsed(p, utility, threshold) for p in points]
    left = [] if forgetting is None else [p["after"][forgetting]["value"] for p in points]
    return out | {
        "kept": statistics.median(shares), "forgetting": statistics.median(left) if left else None,
        "collapsed": sides.count(True), "undecided": sides.count(None), "reason": "",
    }  # fmt: skip


def _kept(point: Mapping[str, Any], metric: str) -> float:
    base = _original(point, metric)
    return float(point["after"][metric]["value"]) / base if base else 0.0


def _collapsed(point: Mapping[str, Any], metric: str, threshold: float) -> bool | None:
    """Return whether the loss is above the threshold with its whole interval; None where it spans it.

    The original's number counts as known: it is measured on the same items.
    """
    after, line = point["after"][metric], (1.0 - threshold) * _original(point, metric)
    low, high = (after[end] if after[end] is not None else after["value"] for end in ("ci_low", "ci_high"))
    return True if high < line else False if low >= line else None


def _original(point: Mapping[str, Any], metric: str) -> float:
    return float(point["original"][metric]["value"])
