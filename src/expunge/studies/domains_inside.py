# SPDX-License-Identifier: Apache-2.0
"""Relearning models of one request beside its reference, and what unlearning changed inside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.api.attack import attack_folders
from expunge.api.diagnose import diagnose_folders
from expunge.audit.config import AuditConfig
from expunge.audit.diagnostics.config import DiagnoseConfig
from expunge.data.config import DataConfig
from expunge.runs import read_run
from expunge.studies.domains_world import World

#: Relearned on the forget set itself, and on some items of each subject with others tested.
KINDS = ("forget", "related")
RELEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
#: Optimiser steps of four items: eight are two passes over sixteen.
BATCH, BUDGETS = 4, (1, 2, 4, 8)
#: Share of the way to the target that the reference may go when it is relearned.
HALFWAY = 0.5


@dataclass(frozen=True, slots=True)
class Look:
    """The unlearned models of one request, by method, and the rate at which they are relearned."""

    world: World
    domain: str
    models: Mapping[str, str]
    folder: Path
    rate: float

    @property
    def reference(self) -> str:
        """The model that never saw the forget set."""
        return self.world.model(f"reference-{self.domain}")

    def data(self, **extra: str) -> DataConfig:
        """Return the forget set and the rest of the domain."""
        forget, retain = (self.world.file(self.domain, name) for name in ("forget", "retain"))
        return DataConfig(forget=forget, retain=retain, template="question", extra=extra)

    def place(self, what: str, *more: object) -> Path:
        """Return a folder that is the same only for the same models and settings."""
        key = json.dumps([self.domain, dict(self.models), self.rate, BATCH, BUDGETS, *more], default=str)
        return self.folder / f"{what}-{self.domain}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def relearn(look: Look) -> dict[str, Any]:
    """Return, by model, kind of relearning and metric, what was found; a finished attack is read again."""
    path = look.place("relearn", KINDS)
    if read_run(path).get("status") != "finished":
        settings = {
            "on": KINDS,
            "how": ["full"],
            "batch_size": BATCH,
            "budgets": BUDGETS,
            "learning_rates": [look.rate],
        }
        attack_folders(
            look.models, attacks=["relearning"], data=look.data(), reference=look.reference,
            original=look.world.model("target"), settings={"relearning": settings}, audit=AuditConfig(bootstrap=500),
            device="cpu", seed=look.world.seed, output_dir=path, overwrite=True,
        )  # fmt: skip
    found = json.loads((path / "attacks.json").read_text("utf-8"))["attacks"]["relearning"]
    out: dict[str, Any] = {name: {"curves": {}} for name in (*look.models, "reference")}
    for curve in (found, *found.get("others", [])):
        kind = next(kind for kind in KINDS if _TITLES[kind] in curve["title"])
        for name, points in curve["models"].items():
            out[name]["curves"].setdefault(kind, {})[curve["metric"]] = points
    for finding in found["findings"]:
        kind = finding["setting"].partition(",")[0]
        own = out[finding["model"]].setdefault("beyond_reference", {}).setdefault(kind, {})
        own[finding["metric"]] = {k: finding["differences"]["reference"][k] for k in ("value", "ci_low", "ci_high")}
    for name, regimes in found["notes"]["regimes"].items():
        out[name]["regime"] = {title.partition(",")[0]: _verdict(found) for title, found in regimes.items()}
    return out


_TITLES = {"forget": "trained again on the forget set", "related": "trained on some facts"}


def _verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    numbers = ("forget_drop", "retain_drop", "recovery")
    ends = ("value", "ci_low", "ci_high")
    return {"label": found["label"], "means": found["means"]} | {n: {e: found[n][e] for e in ends} for n in numbers}


def strongest(tried: Mapping[float, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the largest rate at which the reference goes at most half of the way to the target, and all that was seen.

    Args:
        tried: what `relearn` found at each rate.
    """
    seen: dict[float, dict[str, float]] = {}
    for rate, found in sorted(tried.items()):
        ends = {name: [p["value"] for p in entry["curves"]["forget"]["forget.probability"]]
                for name, entry in found.items()}  # fmt: skip
        before, *_, after = ends.pop("reference")
        original = next(e["regime"]["forget"]["means"]["forget"]["before"] for e in found.values() if "regime" in e)
        seen[rate] = {"target": original, "reference_before": before, "reference_after": after,
                      **{name: values[-1] for name, values in ends.items()}}  # fmt: skip

    def halfway(s: Mapping[str, float]) -> bool:
        gained, way = (s[end] - s["reference_before"] for end in ("reference_after", "target"))
        return gained <= HALFWAY * way

    allowed = [rate for rate, found in seen.items() if halfway(found)]
    return {"chosen": max(allowed, default=min(seen)), "seen": {f"{rate:g}": found for rate, found in seen.items()}}


def look_inside(look: Look) -> dict[str, Any]:
    """Return, by model, what unlearning changed inside, averaged over blocks; a finished diagnosis is read again."""
    config = DiagnoseConfig(texts=60, fisher_texts=12, measure="probability", bootstrap=100, scatter_texts=0)
    out = {}
    for name, model in look.models.items():
        path = look.place(f"inside-{name}", config.model_dump_json())
        if read_run(path).get("status") != "finished":
            data = look.data(unrelated=look.world.file(look.domain, "unrelated"))
            diagnose_folders(look.world.model("target"), model, data=data, output_dir=path, config=config,
                             overwrite=True)  # fmt: skip
        found = json.loads((path / "diagnostics.json").read_text("utf-8"))["changes"]["after"]
        out[name] = {dataset: _inside(layers, found["fisher"][dataset]) for dataset, layers in found["states"].items()}
    return out


def _inside(layers: list[dict[str, Any]], fisher: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Return, by block: CKA, |cos| of the first directions, shift of the mean in standard deviations, Fisher mass."""
    return {
        "cka": [layer["cka"]["value"] for layer in layers], "pc1": [layer["pc1"]["value"] for layer in layers],
        "shift": [layer["shift"].get("relative") for layer in layers], "fisher": [layer["value"] for layer in fisher],
    }  # fmt: skip
