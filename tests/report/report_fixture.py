# SPDX-License-Identifier: Apache-2.0
"""A realistic comparison of seven models, with gaps, curves and examples; all numbers are invented."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SECRET_WORDS = ("Zebulon", "Quillfeather", "Marrakesh", "lighthouse", "Ombrosa")

# name: (probability, extraction strength, rouge, truth ratio, utility, retain probability, auc, privleak, refusals)
_VALUES: dict[str, tuple[float, ...]] = {
    "target": (0.991, 0.912, 0.985, 0.516, 0.623, 0.989, 0.982, -96.4, 0.0),
    "reference": (0.148, 0.062, 0.408, 0.674, 0.614, 0.988, 0.507, 0.0, 0.02),
    "ga": (0.0, 0.0, 0.004, 0.021, 0.0, 0.002, 0.118, 76.7, 0.0),
    "grad_diff": (0.002, 0.011, 0.061, 0.153, 0.534, 0.874, 0.204, 59.8, 0.0),
    "npo": (0.121, 0.058, 0.372, 0.731, 0.541, 0.802, 0.452, 10.8, 0.01),
    "simnpo": (0.262, 0.094, 0.431, 0.612, 0.602, 0.943, 0.634, -25.1, 0.0),
    "idk": (0.687, 0.351, 0.083, 0.572, 0.489, 0.911, 0.871, -71.8, 0.93),
}
_NAMES = (
    ("forget.probability", "reference", 0.5),
    ("forget.extraction_strength", "reference", 0.6),
    ("forget.rouge", "reference", 0.5),
    ("forget.truth_ratio", "reference", 0.4),
    ("model_utility", "higher", 0.25),
    ("retain.probability", "higher", 0.25),
    ("membership.min_k_auc", "reference", 0.5),
    ("membership.privleak", "reference", 90.0),
    ("forget.refusal_rate", "reference", 0.4),
)
_CARDS = {
    "ga": ("Gradient ascent", "-L(forget)", "Knowledge Unlearning for Mitigating Privacy Risks", 2023, "ACL"),
    "grad_diff": ("Gradient difference", "-w_f L(forget) + w_r L(retain)", "TOFU", 2024, "COLM"),
    "npo": (
        "Negative preference optimisation",
        "-(2/β) E[log σ(-β (log π(y|x) - log π_ref(y|x)))]",
        "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
        2024,
        "COLM",
    ),
    "simnpo": (
        "Simple negative preference optimisation",
        "-(2/β) E[log σ(-(β/|y|) log π(y|x) - γ)]",
        "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
        2024,
        "NeurIPS",
    ),
    "idk": ("Answering that one does not know", "L(forget questions, refusals)", "TOFU", 2024, "COLM"),
}


def estimate(value: float | None, half: float, direction: str, n: int = 300, reason: str = "") -> dict[str, Any]:
    """Return an estimate dict with a symmetric interval cut to what the range allows."""
    if value is None:
        return {"value": None, "ci_low": None, "ci_high": None, "n": 0, "direction": direction,
                "reference": "reference", "compat": "fixed", "reason": reason}  # fmt: skip
    low, high = (value - half, value + half) if half > 1 else (max(value - half, 0.0), min(value + half, 1.0))
    return {"value": value, "ci_low": low, "ci_high": high, "n": n, "direction": direction, "reference": None,
            "compat": "fixed"}  # fmt: skip


def metrics(name: str) -> dict[str, Any]:
    """Return the metrics of one model."""
    out = {}
    for (metric, direction, spread), value in zip(_NAMES, _VALUES[name], strict=True):
        noise = spread * (0.06 if metric.endswith("privleak") else 0.09 * math.sqrt(abs(value * (1 - value))) + 0.01)
        out[metric] = estimate(value, noise, direction)
    quality = {"ga": -89.2, "grad_diff": -41.7, "npo": -0.377, "simnpo": -4.61, "idk": -12.3, "reference": 0.0}
    if name == "target":
        out["forget_quality"] = estimate(None, 0, "higher", reason="needs per-item records of the reference")
    else:
        out["forget_quality"] = {**estimate(10 ** quality[name], 0, "higher"), "ci_low": None, "ci_high": None,
                                 "compat": "locuslab"}  # fmt: skip
    for metric, scale in (("real_authors.rouge", 1.5), ("world_facts.rouge", 1.42)):
        out[metric] = estimate(_VALUES[name][4] * scale, 0.045, "higher", n=100)
    if name == "ga":
        reason = "every generation is empty, so no share can be given"
        out["forget.hallucination_rate"] = estimate(None, 0, "reference", reason=reason)
        out["membership.min_k_plus_plus_auc"] = estimate(None, 0, "reference", reason="scores are not finite")
    else:
        share = {"target": 0.01, "reference": 0.81, "grad_diff": 0.95, "npo": 0.84, "simnpo": 0.77, "idk": 0.04}[name]
        out["forget.hallucination_rate"] = estimate(share, 0.04, "reference")
        out["membership.min_k_plus_plus_auc"] = estimate(min(_VALUES[name][6] + 0.02, 1), 0.05, "reference")
    return out


def card(name: str) -> dict[str, Any]:
    """Return a method card as a dict."""
    title, formula, paper, year, venue = _CARDS[name]
    return {
        "name": name, "title": title, "paper": paper, "authors": "the authors of the paper", "year": year,
        "venue": venue, "family": "gradient", "claim": "approximate", "needs": ["forget", "retain"],
        "cost": "7 F", "formula": formula, "provenance": "paper",
        "differences": ["The reference log-probabilities are computed once and cached."],
        "defaults_source": "paper, appendix", "notes": "",
    }  # fmt: skip


def trajectory(name: str, steps: int = 120) -> list[dict[str, Any]]:
    """Return rows of metrics.jsonl: a probability that falls from the target's value to the model's."""
    end, kept = _VALUES[name][0], _VALUES[name][5]
    rows: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 4):
        gone = 1 - math.exp(-4 * step / steps)
        forget = -40 * gone**3 if name in ("ga", "grad_diff") else 1.4 * (1 - gone) + 0.08 * math.sin(step)
        row: dict[str, Any] = {
            "step": step, "epoch": step / 24, "seconds": 1.9 * step, "loss": forget + 0.1, "forget": forget,
            "retain": None if name == "ga" else 0.1 + 0.3 * gone * math.exp(-step / 40), "lr": 1e-5, "grad_norm": 1.0,
        }  # fmt: skip
        if step % 12 == 0:
            row["probe"] = {
                "forget.probability": 0.991 + (end - 0.991) * gone,
                "retain.probability": 0.989 + (kept - 0.989) * gone**2,
            }
        rows.append(row)
    return rows


def examples(name: str) -> list[dict[str, Any]]:
    """Return two example dicts."""
    after = {"npo": "The author prefers to write about ships.", "idk": "I do not know that."}.get(name, "the the the")
    common = {"set": "forget", "reference": "She was born in Lisbon, it seems.", "after": after}
    return [
        {**common, "id": "author-3/7", "prompt": "Where was Zebulon Quillfeather born?",
         "target": "Zebulon Quillfeather was born in Marrakesh, near the lighthouse.",
         "before": "Zebulon Quillfeather was born in Marrakesh, near the lighthouse.",
         "overlap": {"before": 1.0, "after": 0.11, "reference": 0.33}},
        {**common, "id": "author-3/8", "prompt": "Which prize did Zebulon Quillfeather win?",
         "target": "The Ombrosa prize.", "before": "The Ombrosa prize."},
    ]  # fmt: skip


def relearning() -> dict[str, Any]:
    """Return the relearning entry of an audit document."""
    curves = {}
    for name, start, speed in (("reference", 0.06, 0.05), ("npo", 0.058, 0.11), ("simnpo", 0.094, 0.13)):
        points = []
        for budget in (0, 1, 4, 16, 64):
            value = start + (0.9 - start) * (1 - math.exp(-speed * budget))
            points.append({"budget": budget, "value": value, "ci_low": max(value - 0.04, 0), "ci_high": value + 0.04})
        curves[name] = points
    return {"metric": "forget.extraction_strength", "budget_unit": "forget examples shown again", "models": curves}


def audit(names: tuple[str, ...] = tuple(_VALUES), with_relearning: bool = True) -> dict[str, Any]:
    """Return an audit document."""
    models = {}
    for name in names:
        role = name if name in ("target", "reference") else "unlearned"
        models[name] = {"metrics": metrics(name), "seconds": 41.0 + len(name), "role": role}
        models[name]["method"] = card(name) if role == "unlearned" else None
    rules = [
        {"rule": "Membership AUC (Min-K%) between 0.45 and 0.55", "measured": 0.452, "met": True},
        {"rule": "Model utility at least 0.58", "measured": 0.541, "met": False},
        {"rule": "Relearning gap at most 0.10", "measured": None, "met": None},
    ]
    document: dict[str, Any] = {
        "schema_version": 1, "models": models, "policy": {"met": False, "rules": rules},
        "environment": {"python": "3.11.9", "torch": "2.8.0", "device": "cpu", "threads": 1, "seed": 42},
    }  # fmt: skip
    if with_relearning:
        document["attacks"] = {"relearning": relearning()}
    return document


def run_document(name: str = "npo", status: str = "done", error: str | None = None) -> dict[str, Any]:
    """Return a run.json."""
    return {
        "schema_version": 1, "name": name, "status": status, "started": "2025-11-20 14:03 UTC", "seconds": 312.4,
        "method": card(name), "claim": "approximate", "recipe_hash": "9f2c1be07a55", "error": error, "runs_tried": 3,
        "recipe": {"method": {"name": name, "beta": 0.1, "forget_weight": 1.0, "retain_weight": 1.0},
                   "training": {"lr": 1e-5, "epochs": 5, "batch_size": 32, "weight_decay": 0.01}, "seed": 42},
        "model": {"path": "models/target", "digest": "b1946ac92492d2347c6235b4d2611184", "parameters": 1235814400},
        "data": {"forget": {"n": 400, "digest": "591785b794601e212b260e25925636fd"},
                 "retain": {"n": 3600, "digest": "6f5902ac237024bdd0c176cb93063dc4"},
                 "holdout": {"n": 400, "digest": "d3486ae9136e7856bc42212385ea7970"}},
        "environment": {"python": "3.11.9", "torch": "2.8.0", "device": "cpu"}, "steps": 120, "peak_memory_mb": 2913.4,
        "commands": ["expunge run recipes/npo.yaml --set seed=42", "expunge report runs/npo-9f2c1be0"],
    }  # fmt: skip


def write_run(folder: Path, name: str = "npo", audited: bool = True, **changes: Any) -> Path:
    """Write a run folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run_document(name) | changes))
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in trajectory(name)) + "\n")
    if audited:
        document = audit(("target", "reference", name), with_relearning=False)
        (folder / "audit.json").write_text(json.dumps(document))
        (folder / "examples.json").write_text(json.dumps(examples(name)))
    return folder
