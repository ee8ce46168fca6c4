# SPDX-License-Identifier: Apache-2.0
"""Fit linear models that rows can be taken out of, take rows out, and say what that proves."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from expunge.api.workspace import open_model
from expunge.audit.diagnostics.collect import pooled_states, whole
from expunge.data.config import DataConfig
from expunge.data.examples import Example
from expunge.data.sources import Source, read_rows
from expunge.errors import InputDataError, RecipeError
from expunge.methods.linear.artefact import Artefact, load_artefact, save_artefact, targets
from expunge.methods.linear.convex import Floats
from expunge.methods.linear.removal import Guarantee, remove_from_head, train_head
from expunge.methods.linear.ridge import Ridge, fit_ridge, remove_rows
from expunge.models.config import ModelConfig
from expunge.runs import check_output, write_json

Kind = Literal["ridge", "logistic"]
GUARANTEE = Guarantee(epsilon=1.0, delta=1e-4)


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows with an id, features [N, D] and a label, and where the features come from."""

    ids: tuple[str, ...]
    x: Floats
    labels: tuple[str, ...]
    source: str

    def split(self, leave: Collection[str]) -> tuple[LabelledRows, LabelledRows]:
        """Return the rows that stay and those that leave.

        Raises:
            InputDataError: for an id that no row has.
        """
        unknown = sorted(set(leave) - set(self.ids))
        if unknown:
            raise InputDataError("no row has this id", field="ids", value=unknown[0], remedy="Check the ids")
        gone = np.array([name in leave for name in self.ids], dtype=bool)
        return self._where(~gone), self._where(gone)

    def _where(self, mask: Any) -> LabelledRows:
        def of(values: Sequence[str]) -> tuple[str, ...]:
            return tuple(value for value, kept in zip(values, mask, strict=True) if kept)

        return LabelledRows(of(self.ids), self.x[mask], of(self.labels), self.source)


def read_labelled(source: Source, *, model: str | None = None, layer: int = -1) -> LabelledRows:
    """Return rows {id, label, features} or, with a language model, {id, label, text}.

    Args:
        source: JSONL, Parquet, CSV or rows in memory.
        model: a language model whose mean state over each text is the feature; rows are scaled to norm 1.
        layer: its block, from the front or, negative, from the back.

    Raises:
        InputDataError: for rows that cannot be used.
    """
    rows = list(read_rows(source, field="data"))
    values = [_mapping(row.value, row.place) for row in rows]
    if not values:
        raise InputDataError("holds no rows", field="data", remedy="Give at least two classes")
    ids = tuple(str(value.get("id", k)) for k, value in enumerate(values))
    if len(set(ids)) < len(ids):
        raise InputDataError("ids come twice", field="data.id", remedy="Make them unique")
    labels = tuple(_cell(value, "label", row.place) for value, row in zip(values, rows, strict=True))
    if model is None:
        x = _features([_cell(value, "features", row.place) for value, row in zip(values, rows, strict=True)])
        return LabelledRows(ids, x, labels, "given")
    texts = [_cell(value, "text", row.place) for value, row in zip(values, rows, strict=True)]
    x, digest = _states(model, ids, texts, layer)
    return LabelledRows(ids, x, labels, f"block {layer} of the model with weights {digest}")


def fit_linear(
    rows: LabelledRows, folder: Path, *, kind: Kind = "logistic", ridge: float = 1e-3,
    guarantee: Guarantee = GUARANTEE, noise_std: float = 10.0, seed: int | None = None, registry: Path | None = None,
    overwrite: bool = False,
) -> Artefact:  # fmt: skip
    """Fit a model on labelled rows and write it to a folder.

    Args:
        rows: what it learns.
        folder: where it goes.
        kind: ridge (exact removal) or logistic (certified removal).
        ridge: penalty; for logistic a row.
        guarantee: over all removals; logistic only.
        noise_std: of the noise that pays for it; logistic only.
        seed: of the noise; None, which a guarantee needs, draws it from the system.
        registry: file with the digests of all noise ever used; `noise-used.json` beside the folder by default.
        overwrite: replace a linear model that is there.

    Raises:
        RecipeError: for settings that give no guarantee, noise used before, or a folder that may not be written.
        InputDataError: for rows that cannot be used.
    """
    _check_folder(folder, overwrite)
    classes = tuple(sorted(set(rows.labels)))
    if len(classes) < 2:
        raise InputDataError("has one class", field="data.label", value=classes[0], remedy="Give at least two")
    y_NK = targets(rows.labels, classes)
    if kind == "ridge":
        artefact = Artefact(fit_ridge(rows.x, y_NK, ridge=ridge), classes, rows.source)
    else:
        known = registry or folder.parent / "noise-used.json"
        used = _used(known)
        head = train_head(rows.x, y_NK, guarantee=guarantee, noise_std=noise_std, ridge=ridge,
                          seed=seed, used=frozenset(used))  # fmt: skip
        known.parent.mkdir(parents=True, exist_ok=True)
        write_json(known, sorted({*used, head.noise_digest}))  # before the head: noise that may be out is used
        artefact = Artefact(head, classes, rows.source)
    save_artefact(artefact, folder)
    return artefact


def remove_linear(
    model: Path, rows: LabelledRows, leave: Collection[str], folder: Path, *, overwrite: bool = False
) -> Artefact:
    """Take rows out of a model; write the new one to a folder of its own.

    Args:
        model: folder of the model.
        rows: all rows that are in it.
        leave: ids of those that leave.
        folder: where the new model goes.
        overwrite: replace a linear model that is there.

    Raises:
        InputDataError: for ids or rows that are not the model's.
        BudgetSpent: if the guarantee does not cover these removals any more; nothing is written.
    """
    _check_folder(folder, overwrite)
    before = load_artefact(model)
    if rows.source != before.features:
        raise InputDataError("come from other features than the model's", field="data", value=rows.source,
                             remedy=f"The model's: {before.features}")  # fmt: skip
    stay, gone = rows.split(leave)
    y_MK = before.targets(gone.labels)
    if isinstance(before.fitted, Ridge):
        if before.fitted.n != len(rows.ids):
            raise InputDataError(f"the model holds {before.fitted.n} rows", field="data", value=len(rows.ids),
                                 remedy="Give all of its rows")  # fmt: skip
        after: Ridge | Any = remove_rows(before.fitted, gone.x, y_MK)
    else:
        after = remove_from_head(before.fitted, stay.x, before.targets(stay.labels), gone.x, y_MK)
    artefact = replace(before, fitted=after, requests=before.requests + 1)
    save_artefact(artefact, folder)
    return artefact


def _check_folder(folder: Path, overwrite: bool) -> None:
    if (folder / "linear.json").exists():
        if not overwrite:
            raise RecipeError("already holds a linear model", field="output_dir", value=str(folder),
                              remedy="Choose another folder, or --overwrite")  # fmt: skip
        return
    check_output(folder)


def _used(registry: Path) -> list[str]:
    if not registry.exists():
        return []
    try:
        return [str(entry) for entry in json.loads(registry.read_text("utf-8"))]
    except ValueError as error:
        raise InputDataError("is no list of digests", field="registry", value=str(registry),
                             remedy="Restore it: without it noise may come twice") from error  # fmt: skip


def _mapping(value: object, place: str) -> dict[str, Any]:
    if isinstance(value, Example):
        raise InputDataError(f"{place} is an example, not a labelled row", field="data", remedy="Give mappings")
    return dict(value)  # type: ignore[call-overload, no-any-return]


def _cell(value: dict[str, Any], column: str, place: str) -> Any:
    found = value.get(column)
    if found is None or found == "":
        raise InputDataError(f"{place}, column {column!r} is missing", field="data", remedy="Every row needs it")
    return str(found) if column == "label" else found


def _features(cells: Sequence[Any]) -> Floats:
    try:
        x = np.array([np.asarray(cell, dtype=np.float64) for cell in cells])
    except (TypeError, ValueError) as error:
        raise InputDataError("features are no lists of numbers of one length", field="data.features",
                             remedy="Give each row the same number of them") from error  # fmt: skip
    if x.ndim != 2 or not np.isfinite(x).all():
        raise InputDataError("features are no lists of finite numbers of one length", field="data.features",
                             remedy="Give each row the same number of them")  # fmt: skip
    return x


def _states(model: str, ids: Sequence[str], texts: Sequence[str], layer: int) -> tuple[Floats, str]:
    examples = [Example(id=name, prompt="", answer=text, kind="text") for name, text in zip(ids, texts, strict=True)]
    opened = open_model(ModelConfig(path=model), DataConfig(too_long="truncate"), {"data": examples}, dtype="float32")
    items = [whole(row.encoded) for row in opened.encoder.encode_many(examples, where="data")]
    if len(items) != len(examples):
        raise InputDataError("texts are longer than the context", field="data.text", remedy="Shorten or split them")
    states_LND = pooled_states(opened.model, items, pad_id=opened.encoder.pad_id)
    if not -len(states_LND) <= layer < len(states_LND):
        raise RecipeError("no such block", field="layer", value=layer, remedy=f"There are {len(states_LND)}")
    x_ND = states_LND[layer].double().numpy()
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12), opened.digest
