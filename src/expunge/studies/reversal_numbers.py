# SPDX-License-Identifier: Apache-2.0
"""What the reversal study keeps of attacks and diagnoses, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.attacks.base import REFERENCE
from expunge.attacks.probing import CHOICE, RANDOM
from expunge.studies.reversal_rule import Number, Rule, powerful, steps_to_half, verdict

#: What each attack is called on the page, by task and setting; only what teaches the reference nothing is evidence.
ATTACKS: Mapping[str, str] = {
    "relearn-related-full": "related facts, all weights", "relearn-related-lora": "related facts, LoRA",
    "relearn-unrelated-full": "unrelated facts, all weights", "relearn-unrelated-lora": "unrelated facts, LoRA",
    "relearn-forget-full": "the forget set for a few steps, all weights",
    "relearn-forget-lora": "the forget set for a few steps, LoRA",
    "int8": "int8", "int4": "int4", "nf4": "NF4", "lens": "the logit lens",
}  # fmt: skip
LENS = f"lens.{CHOICE}"
#: Numbers of a regime that are kept.
REGIME = ("forget_drop", "retain_drop", "residue", "recovery", "control", "excess_recovery")
_SETS = ("forget", "retain", "unrelated")


def condensed(path: Path, measure: str) -> dict[str, Any]:
    """Return the numbers of one attack folder: findings beside their reference, curves, regimes, probes by block.

    Args:
        path: the folder.
        measure: the metric whose curves are kept.
    """
    found = json.loads((path / "attacks.json").read_text("utf-8"))["attacks"]
    out: dict[str, Any] = {"findings": [], "curves": {}, "regimes": {}, "by_block": {}}
    for name, entry in found.items():
        out["findings"] += [_finding(name, one) for one in entry["findings"]]
        notes = entry["notes"]
        if "by_block" in notes:
            out["by_block"][name] = {"chance": notes["chance"], "fitted_on": notes.get("fitted_on"),
                                     "models": notes["by_block"]}  # fmt: skip
        for model, ways in notes.get("regimes", {}).items():
            out["regimes"][model] = _regime(next(iter(ways.values())))
        out["curves"] |= {curve["metric"]: _points(curve) for curve in _curves(entry) if curve["metric"] == measure}
    return out


def _finding(attack: str, found: Mapping[str, Any]) -> dict[str, Any]:
    differences = {name: _number(value) for name, value in found["differences"].items()}
    return {
        "attack": attack, "model": found["model"], "setting": found["setting"], "metric": found["metric"],
        "value": _number(found["value"]), "reference": _number(found["controls"][REFERENCE]),
        "excess": differences[REFERENCE], "over_random": differences.get(RANDOM),
    }  # fmt: skip


def _regime(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a regime without the directions and counts of its numbers; the reason alone where there is none."""
    if found["label"] is None:
        return {"label": None, "reason": found["reason"]}
    parts = ("label", "measure", "forgotten", "catastrophic", "reversible", "thresholds")
    return {key: found[key] for key in parts} | {key: _number(found[key]) for key in REGIME}


def _number(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: _short(found[key]) for key in ("value", "ci_low", "ci_high")}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _curves(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [entry, *entry["others"]] if "models" in entry else []


def _points(curve: Mapping[str, Any]) -> dict[str, list[list[float | None]]]:
    keys = ("budget", "value", "ci_low", "ci_high")
    return {name: [[_short(point[key]) for key in keys] for point in points]
            for name, points in curve["models"].items()}  # fmt: skip


def curves_of(path: Path, metric: str) -> dict[str, list[tuple[float, float]]]:
    """Return the relearning curves of one metric in an attack folder, without intervals."""
    entry = json.loads((path / "attacks.json").read_text("utf-8"))["attacks"]["relearning"]
    (curve,) = [curve for curve in _curves(entry) if curve["metric"] == metric]
    return {name: [(p["budget"], p["value"]) for p in points] for name, points in curve["models"].items()}


def inside(path: Path) -> dict[str, Any]:
    """Return what a diagnosis found of the model after, by layer: CKA, first direction, shift, Fisher mass, update."""
    document = json.loads((path / "diagnostics.json").read_text("utf-8"))
    found = document["changes"]["after"]
    states = {
        name: {key: [_short(layer[key]["value"]) for layer in found["states"][name]] for key in ("cka", "pc1", "shift")}
        for name in _SETS
    }
    fisher = {name: [_short(layer["value"]) for layer in found["fisher"][name]] for name in _SETS}
    updates = [{key: _short(layer[key]) for key in ("relative", "stable_rank", "full_rank")} | {"layer": layer["layer"]}
               for layer in found["updates"]]  # fmt: skip
    return {"layers": document["layers"], "states": states, "fisher": fisher, "updates": updates}


def excesses(document: Mapping[str, Any], model: str, measure: str) -> dict[str, list[Number]]:
    """Return, by attack that teaches the reference nothing, the excess of a model over it on every archive."""
    out: dict[str, list[Number]] = {}
    for tasks in document["attacks"].values():
        for task, found in tasks.items():
            for one in found["findings"]:
                if one["model"] == model and one["metric"] in (measure, LENS):
                    attack = {"quantisation": one["setting"], "logit_lens": "lens"}.get(one["attack"], task)
                    out.setdefault(attack, []).append(one["excess"])
    return out


def judged(document: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    """Return the verdict on every row and whether the linear probe has any power, by the rule."""
    known = [name for name, row in document["rows"].items()]
    extra = [document["second_reference"]]
    verdicts = {name: _judged(document, name, rule) for name in ("target", *known, *extra)}
    over = [one["over_random"] for tasks in document["attacks"].values()
            for one in tasks.get("probing", {}).get("findings", ())
            if one["attack"] == "linear_probe" and one["model"] == "target"]  # fmt: skip
    return {"verdicts": verdicts, "probe_has_power": powerful(over, rule)}


def _judged(document: Mapping[str, Any], name: str, rule: Rule) -> dict[str, Any]:
    tasks = document["attacks"].values()
    # The curve that relearning starts from holds every model as it is, on the same items and with the same draws.
    starts = [found["curves"][rule.measure] for found in (each["relearn-related-full"] for each in tasks)]
    outputs = [(_start(curves[name]), _start(curves[REFERENCE])) for curves in starts if name in curves]
    out = verdict(outputs, excesses(document, name, rule.measure), rule)
    utility = _kept(document, name)
    halves = {way: _halves(document, name, way, rule.measure) for way in ("related-full", "forget-full")}
    return out | {"utility_kept": utility, "steps_to_half": halves}


def _start(points: Sequence[Sequence[float]]) -> Number:
    _, value, low, high = points[0]
    return {"value": value, "ci_low": low, "ci_high": high}


def _kept(document: Mapping[str, Any], name: str) -> list[float]:
    """Return the utility of a method as a share of the target's, on every archive where both have one."""
    row = document["rows"].get(name, {"seeds": {}})["seeds"]
    target = document["anchors"]["target"]
    pairs = [(entry["metrics"]["model_utility"]["value"], target[seed]["metrics"]["model_utility"]["value"])
             for seed, entry in row.items() if "metrics" in entry]  # fmt: skip
    return [float(f"{own / before:.5g}") for own, before in pairs if own is not None and before]


def _halves(document: Mapping[str, Any], name: str, way: str, measure: str) -> list[float | None]:
    """Return, per archive, the steps after which relearning gives half of what the target knew."""
    out = []
    for tasks in document["attacks"].values():
        curves = tasks.get(f"relearn-{way}", {"curves": {}})["curves"].get(measure, {})
        if name in curves:
            own, full = curves[name], curves["target"][0][1]
            out.append(steps_to_half([(p[0], p[1]) for p in own], full))
    return out
