# SPDX-License-Identifier: Apache-2.0
"""Records on disk: `scored.parquet`, `generated.parquet` and `meta.json` in one folder, read back exactly.

`choices.parquet` is there too where multiple-choice questions were asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.audit.records import RECORDS_VERSION, ChoiceItem, Floats, GeneratedItem, Records, ScoredItem, Summary
from expunge.errors import InputDataError

_PER_TOKEN = ("logp", "mu", "sigma2")
_SCORED = ("set", "id", "subject", "variant", "variant_index", "ids_hash", "ends_with_eos", "zlib_bytes")
_GENERATED = ("set", "id", "subject", "prompt_variant", "prediction", "target", "n_tokens", "finished")
#: Columns that are there only if some item has them.
_MEASURED = ("gradient_norm", "gradient_norm_mean", "text_score")
_TOKEN_IDS = ("ids", "target_ids")


def write_records(records: Records, folder: str | Path) -> Path:
    """Write records into a folder, created if need be, and return it.

    Per-token numbers are kept as float32 where that loses nothing, else as float64.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scored: dict[str, Any] = {name: _strings(records.scored, name) for name in _SCORED}
    scored["correct"] = _lists([np.asarray(item.correct, dtype=np.uint8) for item in records.scored])
    for name in _PER_TOKEN:
        scored[name] = _lists(_floats([getattr(item, name) for item in records.scored]))
    if any(item.summary is not None for item in records.scored):
        scored["summary"] = pa.array([_summary_text(item.summary) for item in records.scored], type=pa.string())
    for name in _MEASURED:
        if any(getattr(item, name) is not None for item in records.scored):
            scored[name] = pa.array([getattr(item, name) for item in records.scored], type=pa.float64())
    pq.write_table(pa.table(scored), folder / "scored.parquet", compression="zstd")
    generated = {name: _strings(records.generated, name) for name in _GENERATED}
    if any(item.ids or item.target_ids for item in records.generated):
        ids = {name: [getattr(item, name) for item in records.generated] for name in _TOKEN_IDS}
        generated |= {name: pa.array(rows, type=pa.list_(pa.int32())) for name, rows in ids.items()}
    pq.write_table(pa.table(generated), folder / "generated.parquet", compression="zstd")
    _write_choices(records.choices, folder / "choices.parquet")
    meta = {"records_version": RECORDS_VERSION, "meta": records.meta}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return folder


def read_records(folder: str | Path) -> Records:
    """Return the records of a folder; per-token fields are numpy arrays.

    Raises:
        InputDataError: if a file is missing or was written by another version.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    for name in ("meta.json", "scored.parquet", "generated.parquet"):
        if not (folder / name).is_file():
            remedy = "Run the audit again, or give the folder that holds meta.json"
            raise InputDataError(f"the records lack {name}", field="records", value=str(folder), remedy=remedy)
    head = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    if head.get("records_version") != RECORDS_VERSION:
        raise InputDataError(
            f"records of another version, this one reads {RECORDS_VERSION}", field="records_version",
            value=head.get("records_version"), remedy="Run the audit again",
        )  # fmt: skip
    scored = pq.read_table(folder / "scored.parquet")
    generated = [
        row | {name: tuple(row[name]) for name in _TOKEN_IDS if name in row}
        for row in pq.read_table(folder / "generated.parquet").to_pylist()
    ]
    arrays = {name: _arrays(scored.column(name)) for name in (*_PER_TOKEN, "correct")}
    rows = scored.select([*_SCORED, *(name for name in _MEASURED if name in scored.column_names)]).to_pylist()
    per_token = zip(*(arrays[name] for name in (*_PER_TOKEN, "correct")), strict=True)
    summaries = scored.column("summary").to_pylist() if "summary" in scored.column_names else [None] * len(rows)
    items = [
        ScoredItem(**row, logp=logp, mu=mu, sigma2=sigma2, correct=correct, summary=_summary(summary))
        for row, (logp, mu, sigma2, correct), summary in zip(rows, per_token, summaries, strict=True)
    ]
    choices = _read_choices(folder / "choices.parquet")
    return Records(items, [GeneratedItem(**row) for row in generated], head["meta"], choices)


def _write_choices(items: Sequence[ChoiceItem], path: Path) -> None:
    """Write the choice items; where there are none, no file stands for them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not items:
        path.unlink(missing_ok=True)
        return
    names = ("set", "id", "subject", "cluster", "style", "ids_hash")
    table: dict[str, Any] = {
        name: pa.array([getattr(item, name) for item in items], type=pa.string()) for name in names
    }
    for name in ("best", "cut"):
        table[name] = pa.array([getattr(item, name) for item in items], type=pa.int32())
    for name, kind in (("scores", np.float64), ("correct", np.uint8), ("lengths", np.int32), ("n_tokens", np.int32)):
        table[name] = _lists([np.asarray(getattr(item, name), dtype=kind) for item in items])
    pq.write_table(pa.table(table), path, compression="zstd")


def _read_choices(path: Path) -> list[ChoiceItem]:
    import pyarrow.parquet as pq

    if not path.is_file():
        return []
    table = pq.read_table(path)
    lists = ("scores", "correct", "lengths", "n_tokens")
    arrays = [_arrays(table.column(name)) for name in lists]
    rows = table.drop_columns(list(lists)).to_pylist()
    return [
        ChoiceItem(**row, **dict(zip(lists, per_row, strict=True))) for row, *per_row in zip(rows, *arrays, strict=True)
    ]


def _strings(items: Sequence[ScoredItem] | Sequence[GeneratedItem], name: str) -> Any:
    """Return one plain field as a column; the type is given so that an empty column has one too."""
    import pyarrow as pa

    kinds = {"variant_index": pa.int32(), "zlib_bytes": pa.int64(), "n_tokens": pa.int32()}
    kinds |= {"ends_with_eos": pa.bool_(), "finished": pa.bool_()}
    return pa.array([getattr(item, name) for item in items], type=kinds.get(name, pa.string()))


def _summary_text(summary: Summary | None) -> str | None:
    return None if summary is None else json.dumps(asdict(summary), allow_nan=False)


def _summary(text: str | None) -> Summary | None:
    return None if text is None else Summary(**json.loads(text))


def _floats(values: Sequence[Floats]) -> list[NDArray[Any]]:
    """Return float32 arrays if every number survives that, else float64 arrays."""
    wide = [np.asarray(row, dtype=np.float64) for row in values]
    with np.errstate(over="ignore"):
        narrow = [row.astype(np.float32) for row in wide]
    exact = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(wide, narrow, strict=True))
    return list(narrow) if exact else list(wide)


def _lists(rows: Sequence[NDArray[Any]]) -> Any:
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum([row.size for row in rows])]).astype(np.int64)
    flat = np.concatenate(rows) if rows else np.zeros(0, dtype=np.float32)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _arrays(column: Any) -> list[NDArray[Any]]:
    """Return one array per row of a list column."""
    out: list[NDArray[Any]] = []
    for chunk in column.chunks:
        flat = chunk.values.to_numpy(zero_copy_only=False)
        offsets = chunk.offsets.to_numpy()
        out += [flat[start:end] for start, end in pairwise(offsets)]
    return out
