# SPDX-License-Identifier: Apache-2.0
"""From the audits of a study's steps to its points, its curves and its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.audit.config import AuditConfig
from expunge.audit.document import AuditDocument, ModelEntry, environment
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import Protocol
from expunge.audit.records import Records
from expunge.audit.store import read_records
from expunge.claims import ATTACKS, ClaimKind
from expunge.data.digests import data_digest
from expunge.methods.registry import get_method
from expunge.recipe import Recipe
from expunge.report.curves import BEFORE, REFERENCE, Curve, StudyView
from expunge.report.metrics import describe
from expunge.report.view import CurvePoint
from expunge.report.words import duration, interval, number
from expunge.runs import read_run
from expunge.studies.plan import Plan

STUDY_VERSION = 1
#: What a curve shows: the first of these with a number at every step.
FORGETTING = ("knowmem_f", "forget.probability", "forget.extraction_strength")
UTILITY = ("knowmem_r", "model_utility", "retain.probability")
#: What a point keeps beside them; everything else stands in the audit of its run.
ALSO = (
    "verbmem", "privleak", "privleak_published", "membership.min_k.auc", "forget_quality", "forget_quality_ks",
    "forget.rouge_l", "forget.exact_memorization", "retain.rouge_l", "retain.extraction_strength",
)  # fmt: skip
KEPT = (*FORGETTING, *UTILITY, *ALSO)
PER_REQUEST = "probability"
AXES = {"scalability": "forget examples", "sustainability": "requests"}
UNLEARNED = "unlearned"


def point(plan: Plan, document: AuditDocument, recipe: Recipe, *, seed: int, step: int) -> dict[str, Any]:
    """Return what a study keeps of one finished step.

    Args:
        plan: the study.
        document: what the step's audit found.
        recipe: of the step.
        seed: of the step.
        step: its number, from 1.
    """
    path, this = plan.run_folder(seed, step), plan.steps[step - 1]
    info, roles = read_run(path), {entry.role: entry for entry in document.models.values()}
    after = roles["method"]
    out: dict[str, Any] = {
        "seed": seed, "step": step, "new_examples": len(this.forget), "examples": len(this.so_far),
        "recipe_hash": recipe.hash, "run": str(path.relative_to(plan.folder)), "model_digest": after.digest,
        **{key: info.get(key) for key in ("seconds", "unlearning_seconds", "steps", "stopped")},
        "attacks_run": list(document.attacks_run), "before": _kept(roles["target"]), "after": _kept(after),
    }  # fmt: skip
    if "reference" in roles:
        out["reference"] = _kept(roles["reference"])
    if plan.kind == "sustainability" and plan.benchmark is None:
        out["requests"] = _by_request(plan, step, str(after.digest), recipe.audit)
    return out


def study_document(plan: Plan, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what `study.json` holds: the points, the curves through them, and where they come from."""
    method = get_method(str(plan.settings["method"]["name"])).card
    return {
        "schema_version": STUDY_VERSION, "kind": plan.kind, "study_hash": plan.hash,
        "complete": len(points) == len(plan.runs), "method": method.to_dict(), "claim": str(method.claim),
        "protocol": None if plan.benchmark is None else plan.benchmark.protocol.to_dict(),
        "steps": len(plan.steps), "seeds": list(plan.seeds), "settings": dict(plan.settings), "axis": AXES[plan.kind],
        "attacks_run": [name for name in ATTACKS if all(name in entry["attacks_run"] for entry in points)],
        "curves": _curves(plan.kind, points), "points": list(points), "notes": list(plan.notes),
        "environment": environment(), "seconds": round(sum(p["seconds"] or 0.0 for p in points), 3),
    }  # fmt: skip


def study_view(document: Mapping[str, Any], commands: Sequence[str] = ()) -> StudyView:
    """Return the page of a study from its `study.json`."""
    kind, method, points = document["kind"], document["method"], document["points"]
    done = f"{len(points)} of {document['steps'] * len(document['seeds'])} runs are there"
    return StudyView(
        title=f"{str(kind).capitalize()} of {method['name']}", lead=_lead(document), claim=ClaimKind(document["claim"]),
        axis=document["axis"], curves=[_drawn(name, curve) for name, curve in document["curves"].items()],
        heads=_HEADS, rows=[_row(document, entry) for entry in points], notes=document["notes"],
        asked=[
            ("Method", method["title"]), ("Steps", _ASKED[kind].format(n=document["steps"])),
            ("Seeds", ", ".join(map(str, document["seeds"]))), ("Took", duration(document["seconds"])),
        ],
        not_tested=[name for name in ATTACKS if name not in document["attacks_run"]], not_shown=_NOT_SHOWN,
        environment=document["environment"], reproduce=commands,
        unfinished="" if document["complete"] else done,
    )  # fmt: skip


_ASKED = {
    "scalability": "{n} growing forget sets, each unlearned from the same model",
    "sustainability": "{n} requests one after the other, each on the result of the one before",
}
_NOT_SHOWN = ("How the curves would look with other settings: the recipe was the same at every step.",)
_ABOUT = {
    "forgetting": "Measured on everything asked up to each step; lines end at the last step that has a number.",
    "utility": "Measured on the same data at every step.",
    "requests": "Each request on its own, from the step that unlearned it: where a line rises, it comes back.",
}
_HEADS = ("Seed", "Step", "Forget examples", "Tokens", "Forgetting: before", "after", "reference", "Utility: before",
          "after", "reference", "Optimiser steps", "Time", "Recipe")  # fmt: skip


def _kept(entry: ModelEntry) -> dict[str, Any]:
    return {name: found.model_dump() for name, found in entry.metrics.items() if name in KEPT}


def _by_request(plan: Plan, step: int, digest: str, config: AuditConfig) -> dict[str, Any]:
    """Return the answer probability of every request so far, each as a set of its own, from the step's records."""
    records = _records_of(plan, digest, data_digest(plan.steps[step - 1].so_far))
    owner = {e.id: f"request {k}" for k, asked in enumerate(plan.steps[:step], start=1) for e in asked.forget}
    # A running text is scored in chunks `id#0`, `id#1`...
    items = [
        replace(item, set=owner.get(item.id) or owner[item.id.rpartition("#")[0]])
        for item in records.scored
        if item.set == "forget"
    ]
    protocol = Protocol("requests", "1", dict.fromkeys((f"request {k}" for k in range(1, step + 1)), "forget"))
    wanted = config.model_copy(update={"metrics": (f"request*.{PER_REQUEST}",)})
    found = compute_metrics(Records(items, [], records.meta), protocol=protocol, config=wanted)
    return {name.rpartition(".")[0]: estimate.to_dict() for name, estimate in found.items()}


def _records_of(plan: Plan, model_digest: str, forget_digest: str) -> Records:
    """Return the records of a model on a forget set; the step that made it wrote them."""
    for meta in sorted(plan.records.glob("*/meta.json")):
        found = json.loads(meta.read_text("utf-8"))["meta"]
        if (found["model_digest"], found["data"]["forget"]["digest"]) == (model_digest, forget_digest):
            return read_records(meta.parent)
    raise FileNotFoundError(f"{plan.records} holds no records of model {model_digest[:12]}")


def _curves(kind: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the curves by name, each with its metric and its lines of (x, value, interval)."""
    out: dict[str, Any] = {}
    for name, candidates in (("forgetting", FORGETTING), ("utility", UTILITY)):
        metric = next((metric for metric in candidates if _everywhere(points, metric)), None)
        lines = {} if metric is None else _lines(kind, points, metric)
        out[name] = {"metric": metric, "lines": lines}
        if metric is None:
            out[name]["reason"] = f"none of {', '.join(candidates)} has a number at every step"
    if any("requests" in entry for entry in points):
        lines = {}
        for entry in points:
            for request, estimate in entry["requests"].items():
                label = f"{request}{_seed(points, entry)}"
                lines.setdefault(label, []).append(_place(entry["step"], estimate, entry))
        out["requests"] = {"metric": f"forget.{PER_REQUEST}", "lines": lines}
    return out


def _everywhere(points: Sequence[Mapping[str, Any]], metric: str) -> bool:
    return all(entry["after"].get(metric, {}).get("value") is not None for entry in points)


def _lines(kind: str, points: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of one metric: after each step by seed, before it, and the reference."""
    lines: dict[str, list[dict[str, Any]]] = {}
    first_seed = points[0]["seed"]
    for entry in points:
        label = f"{UNLEARNED}{_seed(points, entry)}"
        x = entry["examples"] if kind == "scalability" else entry["step"]
        if kind == "sustainability" and entry["step"] == 1:
            _add(lines, label, 0, entry["before"].get(metric), entry)
        _add(lines, label, x, entry["after"].get(metric), entry)
        if entry["seed"] == first_seed:
            if kind == "scalability":
                _add(lines, BEFORE, x, entry["before"].get(metric), entry)
            _add(lines, REFERENCE, x, entry.get("reference", {}).get(metric), entry)
    return lines


def _add(
    lines: dict[str, list[dict[str, Any]]], label: str, x: float, estimate: Mapping[str, Any] | None,
    entry: Mapping[str, Any],
) -> None:  # fmt: skip
    if estimate is not None and estimate["value"] is not None:
        lines.setdefault(label, []).append(_place(x, estimate, entry))


def _place(x: float, estimate: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: estimate.get(key) for key in ("value", "ci_low", "ci_high", "n")}
    return {"x": x, **kept, "seed": entry["seed"], "step": entry["step"]}


def _seed(points: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> str:
    """Say the seed of a line where there are several."""
    return f", seed {entry['seed']}" if len({other["seed"] for other in points}) > 1 else ""


def _drawn(name: str, curve: Mapping[str, Any]) -> Curve:
    lines = {
        label: [CurvePoint(budget=p["x"], value=p["value"], ci_low=p["ci_low"], ci_high=p["ci_high"]) for p in found
                if p["value"] is not None]
        for label, found in curve["lines"].items()
    }  # fmt: skip
    title = {"forgetting": "Forgetting", "utility": "Utility", "requests": "Request by request"}[name]
    about = f"{describe(curve['metric']).means} {_ABOUT[name]}" if curve["metric"] else str(curve["reason"])
    return Curve(title=title, about=about, metric=curve["metric"] or "", lines=lines)


def _lead(document: Mapping[str, Any]) -> list[str]:
    """Say how both curves run from before the first step to after the last, for the first seed."""
    out = [f"{_ASKED[document['kind']].format(n=document['steps']).capitalize()}."]
    points = [entry for entry in document["points"] if entry["seed"] == document["seeds"][0]]
    for name in ("forgetting", "utility"):
        metric = document["curves"][name]["metric"]
        if metric is None:
            continue
        start, steps = points[0]["before"][metric]["value"], [entry["after"][metric]["value"] for entry in points]
        opening = "" if start is None else f"{number(start)} before, "
        out.append(f"{describe(metric).title}: {opening}{', '.join(map(number, steps))} after each step.")
    return out


def _row(document: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    cells = [str(entry["seed"]), str(entry["step"]), str(entry["examples"]), str(entry["tokens"])]
    for name in ("forgetting", "utility"):
        metric = document["curves"][name]["metric"]
        cells += [_cell(entry.get(who, {}).get(metric)) for who in ("before", "after", "reference")]
    took = "" if entry["seconds"] is None else duration(entry["seconds"])
    return [*cells, str(entry["steps"]), took, str(entry["recipe_hash"])[:8]]


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "–"
    bounds = interval(estimate)
    return f"{number(estimate['value'])} [{bounds}]" if bounds else number(estimate["value"])


def read_study(folder: Path) -> dict[str, Any]:
    """Return the `study.json` of a folder."""
    return dict(json.loads((folder / "study.json").read_text("utf-8")))
