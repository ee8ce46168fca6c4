# SPDX-License-Identifier: Apache-2.0
"""Audit what was measured already: records folders and published logs, without a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.audit.config import AuditConfig
from expunge.audit.document import AuditDocument, ModelEntry, ModelRole, environment, model_entry
from expunge.audit.estimate import Estimate
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import Protocol, SetRole
from expunge.audit.published import load_records
from expunge.audit.published_values import SOURCE
from expunge.audit.quality import privleak
from expunge.audit.records import Records
from expunge.audit.statistics import Unavailable
from expunge.errors import InputDataError, RecipeError

REFERENCE = "reference"
#: Parts of a path that tell nothing of the model.
_GENERIC = re.compile(
    r"\w*eval_log_aggregated|eval_results|ds_size\d+|records|model|privleak|log|log_scores_only|auc|agg"
)
_KEPT = ("source", "format", "notes", "template", "max_length", "dtype", "settings", "counts", "data", "engine")


def audit_records(
    paths: Mapping[str, Path], *, reference: Path | None = None, config: AuditConfig, protocol: Protocol | None = None
) -> AuditDocument:
    """Return the audit of models whose records, or published logs, are at the given paths.

    Args:
        paths: records folders or published logs (see `load_records`), by the name of the model.
        reference: the same of a model retrained without the forget set.
        config: metrics, intervals and the variant (`compat`).
        protocol: the part each set plays; by default what the records state.

    Returns:
        The document of every model and the reference. What a log lacks is there without a value and with the reason;
        numbers that a log states without the items behind them carry a caveat. `meta["published"]` of a model holds
        what its log states beside what was computed here.

    Raises:
        InputDataError: if a path holds no records, or the models were measured under different protocols.
        RecipeError: if there is no model, or an unknown metric.
    """
    if not paths or REFERENCE in paths:
        raise RecipeError(
            "name at least one model, none of them 'reference'", field="--from-records", value=list(paths),
            remedy="Give the reference with --reference",
        )  # fmt: skip
    models = {name: load_records(path) for name, path in paths.items()}
    held = None if reference is None else load_records(reference)
    known = models if held is None else {**models, REFERENCE: held}
    shared = protocol or _shared_protocol(known)
    their_auc = None if held is None else _member_high_auc(held, _metrics(held, shared, config, held), config)
    entries = {name: _entry(name, found, shared, config, held, their_auc) for name, found in known.items()}
    return AuditDocument(environment=environment(), protocol=shared.to_dict(), models=entries)


def name_records(paths: Sequence[Path]) -> dict[str, Path]:
    """Return paths by a name for the model of each: the last part of the path that tells something, or several.

    Raises:
        InputDataError: if a path is given twice.
    """
    if len({path.absolute() for path in paths}) < len(paths):
        raise InputDataError("a path is given twice", field="--from-records", remedy="Give each once")
    parts = {path: _telling_parts(path) for path in paths}
    names = {path: one[-1] for path, one in parts.items()}
    for depth in range(2, 1 + max((len(one) for one in parts.values()), default=0)):
        taken = [*names.values(), REFERENCE]
        names = {path: "-".join(parts[path][-depth:]) if taken.count(n) > 1 else n for path, n in names.items()}
    return {name: path for path, name in names.items()}


def _telling_parts(path: Path) -> list[str]:
    """Return the parts of a path without those that every model's path has; equal ones are kept apart by the others."""
    whole = path.absolute()
    parts = [*whole.parts[1:-1], whole.stem if path.is_file() else whole.name]
    return [part for part in parts if not _GENERIC.fullmatch(part)] or parts


def _shared_protocol(records: Mapping[str, Records]) -> Protocol:
    """Return the protocol that all records were made under; a log's gives way to a benchmark's own."""
    found: dict[str, Protocol] = {}
    for name, one in records.items():
        if "protocol" not in one.meta:
            raise InputDataError("the records state no protocol", field=name, remedy="Audit the model again")
        found[name] = Protocol.from_dict(one.meta["protocol"])
    families = {name: protocol.name.partition("-")[0] for name, protocol in found.items()}
    if len(set(families.values())) > 1:
        listed = ", ".join(f"{name}: {family}" for name, family in families.items())
        raise InputDataError(
            "measured under different protocols", field="--from-records", value=listed,
            remedy="Audit those of one benchmark together",
        )  # fmt: skip
    roles: dict[str, SetRole] = {}
    for name, protocol in found.items():
        for which, role in protocol.roles.items():
            if roles.setdefault(which, role) != role:
                raise InputDataError(f"gives the set {which!r} another part than the others do", field=name)
    first = next((one for one in found.values() if one.version != SOURCE), next(iter(found.values())))
    return replace(first, roles=roles)


def _entry(
    name: str, records: Records, protocol: Protocol, config: AuditConfig, held: Records | None, their_auc: float | None
) -> ModelEntry:
    metrics = _metrics(records, protocol, config, held)
    checks = _checks(records, metrics)
    metrics = _completed(records, metrics, config, their_auc)
    if held is not None:
        metrics = _with_size_caveat(records, held, metrics, protocol)
    role: ModelRole = "reference" if records is held else "other"
    seconds = records.meta.get("seconds")
    made = model_entry(metrics, role=role, seconds=sum(seconds.values()) if seconds else None)
    meta: dict[str, Any] = {key: records.meta[key] for key in _KEPT if records.meta.get(key)}
    meta |= {"published": checks} if checks else {}
    return made.model_copy(update={"meta": meta, "digest": records.meta.get("model_digest")})


def _metrics(records: Records, protocol: Protocol, config: AuditConfig, held: Records | None) -> dict[str, Estimate]:
    who = None if held is None else str(held.meta.get("name", REFERENCE))
    return compute_metrics(records, protocol=protocol, config=config, reference=held, reference_name=who)


def _checks(records: Records, metrics: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Return what the log states beside what was computed from its items, where both are there."""
    stated = records.meta.get("published", {})
    return {
        name: {"stated": value["value"], "computed": computed}
        for name, value in stated.items()
        if name in metrics and (computed := metrics[name].value) is not None
    }


def _completed(
    records: Records, metrics: Mapping[str, Estimate], config: AuditConfig, their_auc: float | None
) -> dict[str, Estimate]:
    """Return the metrics with the numbers that the log only states put where nothing could be computed."""
    out = dict(metrics)
    for name, found in metrics.items():
        stated = _stated(records, name, config)
        if found.value is None and stated is not None:
            out[name] = _as_stated(found, stated)
    ours = _member_high_auc(records, out, config)
    if "privleak" in out and out["privleak"].value is None and ours is not None and their_auc is not None:
        out["privleak"] = _privleak(out["privleak"], ours, their_auc, config)
    return out


def _stated(records: Records, name: str, config: AuditConfig) -> Mapping[str, Any] | None:
    """Return what the log states for a metric, in the orientation of the variant asked for."""
    published: Mapping[str, Mapping[str, Any]] = records.meta.get("published", {})
    keys = {
        "membership.min_k.auc": f"membership.min_k@{config.min_k:g}.auc",
        "membership.min_k_plus_plus.auc": f"membership.min_k_plus_plus@{config.min_k:g}.auc",
        "privleak_auc": f"membership.min_k@{config.privleak_k:g}.auc",
    }
    found = published.get(keys.get(name, name))
    if found is not None and name == "privleak_auc" and config.compat == "muse":
        return {**found, "value": 1.0 - found["value"]}
    return found


def _as_stated(found: Estimate, stated: Mapping[str, Any]) -> Estimate:
    low, high = stated.get("ci_low"), stated.get("ci_high")
    return Estimate(
        value=stated["value"], ci_low=low, ci_high=high, n=stated.get("n", 0), direction=found.direction,
        compat=stated.get("compat", found.compat), reason="" if low is not None else "the log states no interval",
        caveat=f"as {stated['file']} states it; the items behind it are not in the log",
    )  # fmt: skip


def _member_high_auc(records: Records, metrics: Mapping[str, Estimate], config: AuditConfig) -> float | None:
    """Return the AUC behind PrivLeak in the orientation of member-high scores, computed or stated."""
    found = metrics.get("privleak_auc")
    if found is not None and found.value is not None:
        return 1.0 - found.value if config.compat == "muse" else found.value
    stated = records.meta.get("published", {}).get(f"membership.min_k@{config.privleak_k:g}.auc")
    return None if stated is None else float(stated["value"])


def _privleak(found: Estimate, ours: float, theirs: float, config: AuditConfig) -> Estimate:
    try:
        value = float(privleak(ours, theirs, compat=config.compat))
    except Unavailable as reason:
        return Estimate.missing(str(reason), direction=found.direction, compat=found.compat)
    return Estimate(
        value=value, n=0, direction=found.direction, reference=REFERENCE, compat=found.compat,
        reason="the logs state no interval", caveat="from AUCs that a log states without the items behind them",
    )  # fmt: skip


def _with_size_caveat(
    records: Records, held: Records, metrics: Mapping[str, Estimate], protocol: Protocol
) -> dict[str, Estimate]:
    """Return the metrics, those that need the reference marked where it was asked about other forget items."""
    ours, theirs = (_targets(one, protocol) for one in (records, held))
    if not ours or not theirs or ours == theirs:
        return dict(metrics)
    text = f"the reference was asked {len(theirs)} forget questions, this model {len(ours)}"
    if len(ours) == len(theirs):
        shared = len(set(ours.items()) & set(theirs.items()))
        text = f"the reference was asked other forget questions: {shared} of {len(ours)} are the same"
    return {
        name: replace(found, caveat=found.caveat or text) if found.reference and found.value is not None else found
        for name, found in metrics.items()
    }


def _targets(records: Records, protocol: Protocol) -> dict[str, str]:
    """Return the true answer of every forget question by its name, up to white space."""
    forget = protocol.sets("forget")
    asked = (item for item in records.generated if item.set in forget and item.prompt_variant == "question")
    return {f"{item.set}/{item.id}": " ".join(item.target.split()) for item in asked}
