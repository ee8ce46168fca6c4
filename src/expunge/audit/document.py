# SPDX-License-Identifier: Apache-2.0
"""The audit document `audit.json`: its fields, its schema, and how it is written."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.audit.estimate import Direction, Estimate
from expunge.runs import write_text

ModelRole = Literal["target", "reference", "method", "other"]
_PACKAGES = ("expunge", "torch", "transformers", "peft", "accelerate", "numpy", "scipy")


class EstimateEntry(BaseModel):
    """One number with its uncertainty; `reason` says what is missing."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    value: float | None = Field(description="Point estimate, null when there is none.")
    ci_low: float | None = Field(None, description="Lower end of the interval.")
    ci_high: float | None = Field(None, description="Upper end of the interval.")
    n: int = Field(description="Number of items behind the value.")
    direction: Direction = Field(description="Whether higher or lower is better, or closer to the reference.")
    reference: str | None = Field(None, description="Model the number was compared with.")
    compat: str = Field("fixed", description="Whose variant of the metric this is.")
    reason: str = Field("", description="Why the value or the interval is missing.")
    caveat: str = Field("", description="Why the value is no evidence of what the metric is meant to show.")
    most: float | None = Field(None, description="Largest value that so many items could have shown, where bounded.")


class ModelEntry(BaseModel):
    """One measured model."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    role: ModelRole = Field("other", description="What the model is to the comparison.")
    metrics: dict[str, EstimateEntry] = Field(default_factory=dict, description="Estimates by metric name.")
    seconds: float | None = Field(None, description="Seconds the measurement took.")
    method: str | dict[str, Any] | None = Field(None, description="Method that made the model: its name or its card.")
    digest: str | None = Field(None, description="SHA-256 over the weights.")
    path: str | None = Field(None, description="Where the model was loaded from.")
    records: str | None = Field(None, description="Folder of the per-item records, relative to the document.")
    meta: dict[str, Any] = Field(default_factory=dict, description="Template, dtype, settings and counts of the pass.")


class AuditDocument(BaseModel):
    """Everything one audit found."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    environment: dict[str, Any] = Field(default_factory=dict, description="Versions and machine; see `environment`.")
    protocol: dict[str, Any] = Field(default_factory=dict, description="Name, version and the role of every set.")
    models: dict[str, ModelEntry] = Field(default_factory=dict, description="Measured models by name.")
    attacks_run: list[str] = Field(default_factory=list, description="Attacks that were run; others are not tested.")
    attacks: dict[str, Any] = Field(default_factory=dict, description="What each attack found.")
    canaries: dict[str, Any] | None = Field(None, description="What planted canaries show about each model.")
    policy: dict[str, Any] | None = Field(None, description="Thresholds and whether they are met.")
    not_shown: list[str] = Field(default_factory=list, description="What this audit cannot show.")


def model_entry(
    metrics: Mapping[str, Estimate], *, role: ModelRole = "other", seconds: float | None = None
) -> ModelEntry:
    """Return the entry of a model from its estimates."""
    entries = {name: EstimateEntry(**estimate.to_dict()) for name, estimate in metrics.items()}
    return ModelEntry(role=role, metrics=entries, seconds=seconds)


def estimates(entry: ModelEntry) -> dict[str, Estimate]:
    """Return the estimates of a model that was read back."""
    return {name: Estimate(**found.model_dump()) for name, found in entry.metrics.items()}


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return where a measurement ran: Python, packages, platform, number of processors, device; imports nothing."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": device,
    }


def to_json(document: BaseModel | Mapping[str, Any]) -> str:
    """Return a document as JSON text; a number that is not finite becomes null."""
    plain = _plain(document) if isinstance(document, BaseModel) else dict(document)
    return json.dumps(_finite(plain), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(document: BaseModel | Mapping[str, Any], path: str | Path) -> Path:
    """Write a document so that a reader sees the old file or the new one, never half of it; return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(document))
    return path


def read_audit(path: str | Path) -> AuditDocument:
    """Return the audit document of a file, checked against its schema."""
    return AuditDocument.model_validate_json(Path(path).read_text(encoding="utf-8"))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of `audit.json`."""
    return AuditDocument.model_json_schema()


def _plain(document: BaseModel) -> dict[str, Any]:
    """Return the fields as JSON values; an estimate carries `reason`, `caveat` and `most` only if it has them."""
    plain = document.model_dump(mode="json")
    for model in plain.get("models", {}).values():
        for found in model["metrics"].values():
            for key in ("reason", "caveat", "most"):
                if found[key] in ("", None):
                    del found[key]
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
