# SPDX-License-Identifier: Apache-2.0
"""Logs that OpenUnlearning writes for TOFU (`TOFU_EVAL.json`): an aggregate and values per item for every metric.

The losses of answers, paraphrases and wrong answers, and the generations, are read as items, so that our own functions
compute the metrics from them. What holds no more than a score per item (extraction strength, membership) is kept as the
log states it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.audit.published_tofu import tofu_records
from expunge.audit.published_values import by_index, finite, refuse
from expunge.audit.records import Records

_SETS = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
#: Metric of the log, and the field of TOFU's own logs that holds the same.
_FIELDS = {
    "Q_A_Prob": "avg_gt_loss", "Q_A_PARA_Prob": "avg_paraphrased_loss", "Q_A_PERT_Prob": "average_perturb_loss",
    "Q_A_ROUGE": "generated_text",
}  # fmt: skip
#: What is kept as stated, by our name; their Min-K% takes the lowest 40 %.
_STATED = {
    "forget.extraction_strength": "extraction_strength", "forget.exact_memorization": "exact_memorization",
    "membership.loss.auc": "mia_loss", "membership.zlib.auc": "mia_zlib", "membership.min_k@0.4.auc": "mia_min_k",
    "membership.min_k_plus_plus@0.4.auc": "mia_min_k_plus_plus", "privleak": "privleak",
    "model_utility": "model_utility", "forget_quality": "forget_quality",
}  # fmt: skip


def is_open_log(value: Any) -> bool:
    """Return whether the content of a JSON file is such a log."""
    return isinstance(value, Mapping) and any(isinstance(e, Mapping) and "agg_value" in e for e in value.values())


def open_records(log: Mapping[str, Any], *, source: str) -> Records:
    """Return the records of a log.

    Items for which the log holds null are left out, as its authors' code does.

    Args:
        log: content of the file.
        source: where it was read, kept with the records and named in errors.

    Raises:
        InputDataError: if a value is not what that code writes; it names the metric and the item.
    """
    sections: dict[str, dict[str, Any]] = {}
    for prefix, which in _SETS.items():
        for theirs, field in _FIELDS.items():
            found = _items(log, f"{prefix}_{theirs}", source)
            if found:
                key = "generation" if field == "generated_text" else "avg_loss"
                values = {i: _value(one, key, f"{source}: {prefix}_{theirs}, item {i}") for i, one in found.items()}
                sections.setdefault(which, {})[field] = values
    records = tofu_records(sections, source=source)
    records.meta["format"] = "openunlearning"
    records.meta["published"] |= _stated(log, source)
    return records


def _items(log: Mapping[str, Any], metric: str, source: str) -> dict[str, Any]:
    """Return the values of a metric by item, without those that are null."""
    entry = log.get(metric)
    values = entry.get("value_by_index") if isinstance(entry, Mapping) else None
    if values is None:
        return {}
    found = by_index(values, where=f"{source}: {metric}")
    return {item: value for item, value in found.items() if value is not None}


def _value(one: Any, key: str, where: str) -> Any:
    if not isinstance(one, Mapping) or key not in one:
        raise refuse(f"holds no {key}", where=where)
    return [one.get("input", ""), one[key], one.get("ground_truth")] if key == "generation" else one[key]


def _stated(log: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    out = {}
    for ours, theirs in _STATED.items():
        entry = log.get(theirs)
        if isinstance(entry, Mapping) and entry.get("agg_value") is not None:
            value = finite(entry["agg_value"], where=f"{source}: {theirs}")
            out[ours] = {"value": value, "compat": "openunlearning", "file": theirs}
    return out
