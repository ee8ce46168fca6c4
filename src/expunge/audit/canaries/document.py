# SPDX-License-Identifier: Apache-2.0
"""What canaries show about several models, as one JSON document, and in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.audit.canaries.bounds import EpsilonBound, EpsilonEstimate, Kind
from expunge.audit.canaries.measure import CanaryFindings, CanarySettings
from expunge.data.canary_manifest import CanaryManifest

#: Bounds in the order of preference; the first is the one that sentences name.
BOUNDS: tuple[Kind, ...] = ("one_run", "clopper_pearson")
_MOST_DELTA = 1e-3


def canary_document(
    manifest: CanaryManifest, path: str | Path, found: Mapping[str, CanaryFindings], settings: CanarySettings
) -> dict[str, Any]:
    """Return the document of an audit of canaries; it holds neither secrets nor single coins."""
    inserted = sum(entry.inserted for entry in manifest.canaries)
    plan = manifest.plan
    first = next(iter(found.values())).epsilon
    return {
        "kind": "canaries", "schema_version": 1,
        "manifest": {
            "path": str(path), "seal": manifest.seal, "design": plan.design, "n": plan.n, "inserted": inserted,
            "held_out": plan.n - inserted, "secret_tokens": plan.secret_tokens, "repeats": plan.repeats,
            "template": manifest.template,
        },
        "delta": settings.delta, "confidence": settings.confidence, "thresholds": list(manifest.thresholds),
        "models": {name: one.to_dict() for name, one in found.items()},
        "power": {name: one.power for name, one in first.items()},
        "assumptions": list(dict.fromkeys(text for one in first.values() for text in one.assumptions)),
        "sentences": [*_power(first, plan.n, settings), *(_model(name, one) for name, one in found.items())],
    }  # fmt: skip


def _power(found: Mapping[str, EpsilonBound | EpsilonEstimate], n: int, settings: CanarySettings) -> list[str]:
    """Say what so many canaries could have shown at most, had they been told apart without error."""
    most = found["one_run"].power
    if most == 0:
        return [f"Too few canaries for a bound: {n} could not have shown any epsilon above 0."]
    at = f"delta {settings.delta:g}, confidence {settings.confidence:g}"
    said = [f"{n} canaries could have shown epsilon up to {most:.2f} ({at}); more than that cannot be seen with them."]
    if n * settings.delta > _MOST_DELTA:
        said.append(
            f"{n} canaries times delta {settings.delta:g} exceed {_MOST_DELTA:g}, which weakens the bound of one run: "
            "choose a smaller delta."
        )
    return said


def _model(name: str, found: CanaryFindings) -> str:
    """Say what the bound of one run is, or that there is none."""
    bound = found.epsilon["one_run"]
    if bound.value > 0:
        text = (
            f"{name}: epsilon is at least {bound.value:.2f} (delta {bound.delta:g}, confidence {bound.confidence:g}, "
            "an empirical lower bound)."
        )
        if found.role == "reference":
            text += " A model trained without the canaries should show none: check that it is one."
        return text
    return f"{name}: the canaries show no epsilon above 0, which does not say that there is none."
