# SPDX-License-Identifier: Apache-2.0
"""Logs that the authors of MUSE wrote: generations, membership scores per chunk, and their means and AUCs.

A folder has four parts. `verbmem_f`, `knowmem_f` and `knowmem_r` hold the generations (`log.json`, a list) and their
means (`agg.json`); `privleak` holds the scores of every chunk (`log.json`, lists by set) and the AUCs (`auc.json`). In
these scores `PPL` is a mean loss, not a perplexity, and all of them are low for members. An AUC ranks by the negative
score with the second set as positive, so that `forget_holdout` is one minus the AUC of member-high scores.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from expunge.audit.protocol import Protocol
from expunge.audit.published_values import SOURCE, finite, refuse, text
from expunge.audit.records import GeneratedItem, Records, ScoredItem, Summary

MUSE_LOG = Protocol(
    "muse-log", SOURCE,
    {"verbmem": "forget", "knowmem_f": "forget", "knowmem_r": "retain", "forget": "forget", "holdout": "holdout"},
    members=("forget",),
)  # fmt: skip
PARTS = {"verbmem_f": "verbmem", "knowmem_f": "knowmem_f", "knowmem_r": "knowmem_r", "privleak": "privleak"}
"""Folder of each part, and the set it is about."""

_TEXTS = ("verbmem", "knowmem_f", "knowmem_r")
_CHUNKS = ("forget", "holdout")
_SAID = ("gt", "response")
_MIN_K = re.compile(r"Min-(\d+(?:\.\d+)?)%")
_AUC = re.compile(r"forget_holdout_(.+)")
_AGGREGATES = {"rouge_l_f1": "rougeL", "rouge_l": "rougeL_recall", "rouge_1": "rouge1_recall"}


def kind_of(value: Any) -> str | None:
    """Return what a JSON file of MUSE holds: `texts`, `chunks`, `aucs` or `means`; None if it is not one of them."""
    if isinstance(value, list):
        fine = bool(value) and all(isinstance(row, Mapping) and all(key in row for key in _SAID) for row in value)
        return "texts" if fine else None
    if not isinstance(value, Mapping) or not value:
        return None
    if any(key.startswith("mean_rouge") for key in value):
        return "means"
    if any(_AUC.fullmatch(key) for key in value):
        return "aucs"
    lists = all(isinstance(rows, list) for rows in value.values())
    return "chunks" if lists and _are_chunks([row for rows in value.values() for row in rows]) else None


def part_of(folder: str, value: Any) -> str | None:
    """Return the part a file belongs to, by the name of its folder, else by what is in it; None if neither tells."""
    if folder in PARTS:
        return PARTS[folder]
    return "privleak" if kind_of(value) in ("chunks", "aucs") else None


def muse_records(files: Sequence[tuple[str, str, Any]], *, source: str) -> Records:
    """Return the records of one model's logs.

    Args:
        files: part (a value of `PARTS`), name for errors, and content of every file.
        source: where the logs were read, kept with the records and named in errors.

    Raises:
        InputDataError: if a file does not fit its part, or a value is not a finite number; it names the item.
    """
    scored: list[ScoredItem] = []
    generated: list[GeneratedItem] = []
    published: dict[str, dict[str, Any]] = {}
    for part, name, value in files:
        where, kind = f"{source}: {name}", kind_of(value)
        if (kind in ("chunks", "aucs")) != (part == "privleak"):
            raise refuse(f"a file of part {part!r} does not hold what that part does", where=where)
        if kind == "texts":
            generated += _generations(part, value, where)
        elif kind == "chunks":
            scored += [item for which in _CHUNKS for item in _chunks(which, value.get(which, []), where)]
        elif kind == "means":
            published |= _means(part, value, name, where)
        else:
            published |= _aucs(value, name, where)
    seen = {(item.set, item.id) for item in scored} | {(item.set, item.id) for item in generated}
    counts = dict(Counter(name for name, _ in seen))
    meta = {
        "source": source, "format": "muse", "protocol": MUSE_LOG.to_dict(), "published": published,
        "absent": _absent(set(counts)), "counts": counts,
    }  # fmt: skip
    return Records(scored, generated, meta)


def _absent(found: set[str]) -> dict[str, str]:
    """Return why a set or a variant has no items."""
    parts = {name: part for part, name in PARTS.items()} | dict.fromkeys(_CHUNKS, "privleak")
    out = {name: f"the log has no items of part {parts[name]}" for name in MUSE_LOG.roles if name not in found}
    out |= {f"{name}/answer": "MUSE's log holds generations of this set, no scores" for name in _TEXTS if name in found}
    scored_only = "MUSE's log holds scores of this set, no generations"
    return out | {f"{name}/question": scored_only for name in _CHUNKS if name in found}


def _generations(name: str, rows: Sequence[Mapping[str, Any]], where: str) -> Iterator[GeneratedItem]:
    for number, row in enumerate(rows, start=1):
        target, said = (text(row[key], where=f"{where}, item {number}") for key in _SAID)
        yield GeneratedItem(
            set=name, id=f"{name}-{number}", subject="", prompt_variant="question", prediction=said, target=target,
            n_tokens=None, finished=None,
        )  # fmt: skip


def _chunks(name: str, rows: Sequence[Mapping[str, Any]], where: str) -> Iterator[ScoredItem]:
    """Yield each chunk, and the lowercased chunk where its ratio is known."""
    for number, row in enumerate(rows, start=1):
        place = f"{where}, {name} {number}"
        loss = finite(row["PPL"], where=f"{place}: PPL") if "PPL" in row else None
        summary = Summary(mean_logp=None if loss is None else -loss, scores=_min_k(row, place))
        yield _chunk(name, number, "answer", summary, _zlib_bytes(row, loss, place))
        ratio = finite(row["PPL/lower"], where=f"{place}: PPL/lower") if "PPL/lower" in row else 0.0
        if loss is not None and ratio > 0:
            yield _chunk(name, number, "lowercase", Summary(mean_logp=-loss / ratio), 0)


def _chunk(name: str, number: int, variant: str, summary: Summary, zlib_bytes: int) -> ScoredItem:
    return ScoredItem(
        set=name, id=f"{name}-{number}", subject="", variant=variant, variant_index=0, ids_hash="", logp=(),
        correct=(), mu=(), sigma2=(), ends_with_eos=False, zlib_bytes=zlib_bytes, summary=summary,
    )  # fmt: skip


def _min_k(row: Mapping[str, Any], place: str) -> dict[str, float]:
    """Return the Min-K% scores, member-high; NaN, which MUSE writes where int(k n) is 0, is left out."""
    out = {}
    for key, value in row.items():
        share = _MIN_K.fullmatch(key)
        undefined = isinstance(value, float) and math.isnan(value)
        if share and not undefined:
            out[f"min_k@{float(share[1]) / 100:g}"] = -finite(value, where=f"{place}: {key}")
    return out


def _zlib_bytes(row: Mapping[str, Any], loss: float | None, place: str) -> int:
    """Return the compressed length of a chunk, from its text or from the ratio that was taken with it; 0 if unknown."""
    if "text" in row:
        return len(zlib.compress(text(row["text"], where=place).encode()))
    ratio = finite(row["PPL/zlib"], where=f"{place}: PPL/zlib") if "PPL/zlib" in row else 0.0
    if not loss or not ratio:
        return 0
    size = loss / ratio
    return round(size) if abs(size - round(size)) < 1e-3 else 0


def _means(name: str, values: Mapping[str, Any], file: str, where: str) -> dict[str, dict[str, Any]]:
    """Return the means that MUSE printed, by our name for the metric."""
    out = {}
    for ours, theirs in _AGGREGATES.items():
        keys = {"value": f"mean_{theirs}", "ci_low": f"{theirs}_ci_lo", "ci_high": f"{theirs}_ci_hi"}
        kept = {key: finite(values[k], where=f"{where}: {k}") for key, k in keys.items() if k in values}
        if "value" in kept:
            out[f"{name}.{ours}"] = {**kept, "compat": "muse", "file": file}
    if f"{name}.rouge_l_f1" in out:
        out[name] = out[f"{name}.rouge_l_f1"]
    return out


def _aucs(values: Mapping[str, Any], file: str, where: str) -> dict[str, dict[str, Any]]:
    """Return the AUCs of forget against holdout, in the orientation of member-high scores."""
    names = {"PPL": "loss", "PPL/zlib": "zlib", "PPL/lower": "lowercase"}
    out = {}
    for key, value in values.items():
        found = _AUC.fullmatch(key)
        share = _MIN_K.fullmatch(found[1]) if found else None
        attack = f"min_k@{float(share[1]) / 100:g}" if share else names.get(found[1]) if found else None
        if attack:
            published = 1.0 - finite(value, where=f"{where}: {key}")
            out[f"membership.{attack}.auc"] = {"value": published, "compat": "muse", "file": file}
    return out


def _are_chunks(rows: Sequence[Any]) -> bool:
    return bool(rows) and all(isinstance(row, Mapping) and ("PPL" in row or _has_min_k(row)) for row in rows)


def _has_min_k(row: Mapping[str, Any]) -> bool:
    return any(_MIN_K.fullmatch(key) for key in row)
