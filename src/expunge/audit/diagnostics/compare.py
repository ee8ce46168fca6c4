# SPDX-License-Identifier: Apache-2.0
"""From states and diagonals of two models to the entries of a diagnosis, layer by layer, as JSON values.

Shape suffixes: L blocks, N texts, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from expunge.audit.diagnostics import published
from expunge.audit.diagnostics.cka import linear_cka
from expunge.audit.diagnostics.collect import (
    DiagonalStore,
    LayerDiagonal,
    Progress,
    fisher_diagonals,
    pooled_states,
    whole,
)
from expunge.audit.diagnostics.config import DiagnoseConfig
from expunge.audit.diagnostics.fisher import Histogram, compare
from expunge.audit.diagnostics.pca import components, mean_shift, pc1_similarity
from expunge.audit.statistics import Unavailable
from expunge.data.encoding import Encoded
from expunge.signals.head import decoder_blocks

#: Blocks that are drawn in detail, spread over the depth.
SHOWN = 3


class States(NamedTuple):
    """States of one set of texts in one model: those that CKA arranges and those whose directions PCA takes."""

    arranged_LND: Tensor
    directed_LND: Tensor


def read_states(
    model: nn.Module, items: Sequence[Encoded], config: DiagnoseConfig, *, pad_id: int, progress: Progress | None = None
) -> States:
    """Return the states that the diagnostics compare: one forward a text, two under `published`."""
    if config.compat == "published":
        arranged, directed = (
            published.padded_states(
                model, items, pad_id=pad_id, first_token=first, batch_tokens=config.batch_tokens
            )
            for first in (True, False)
        )  # fmt: skip
        return States(arranged, directed)
    found = pooled_states(
        model, items, pad_id=pad_id, pooling=config.pooling, batch_tokens=config.batch_tokens, progress=progress
    )
    return States(found, found)


def read_fisher(
    model: nn.Module, items: Sequence[Encoded], config: DiagnoseConfig, *, name: str, store: DiagonalStore, pad_id: int,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Put the Fisher diagonal of every block into the store, under the name of the set."""
    if config.compat == "published":
        for layer in range(len(decoder_blocks(model))):
            diagonal = published.batch_fisher(model, [whole(item) for item in items], layer, pad_id=pad_id)
            store.put(name, LayerDiagonal(layer, diagonal))
        return
    for found in fisher_diagonals(model, items, layers_per_pass=config.layers_per_pass, progress=progress):
        store.put(name, found)


def compare_states(before: States, after: States, config: DiagnoseConfig) -> list[dict[str, Any]]:
    """Return, for every layer, CKA, the similarity of the first directions and the shift of the mean.

    A number that does not exist is null with a reason.
    """
    ours = config.compat == "fixed"
    out = []
    for layer in range(len(before.arranged_LND)):
        x, y = before.arranged_LND[layer], after.arranged_LND[layer]
        u, v = before.directed_LND[layer], after.directed_LND[layer]
        out.append({
            "layer": layer,
            "cka": _or_reason(_cka if ours else _published_cka, x, y),
            "pc1": _or_reason(_pc1 if ours else _published_pc1, u, v),
            "shift": _or_reason(_shift if ours else _published_shift, u, v),
        })  # fmt: skip
    return out


def compare_fisher(before: DiagonalStore, after: DiagonalStore, name: str, layers: int) -> list[dict[str, Any]]:
    """Return, for every layer, how the Fisher diagonal of a set changed; one layer of both models at a time."""
    return [{"layer": layer, **_or_reason(_fisher, before.get(name, layer), after.get(name, layer))}
            for layer in range(layers)]  # fmt: skip


def scatter(states: Mapping[str, States], layers: Sequence[int], texts: int) -> list[dict[str, Any]]:
    """Return where texts lie in the plane of the first two components of the model before, and the mean of all.

    Args:
        states: of one set by model; the model before comes first and gives the plane.
        layers: blocks to draw.
        texts: how many texts of each model are given as points.
    """
    out = []
    first = next(iter(states.values()))
    for layer in layers:
        try:
            plane = components(first.directed_LND[layer])
        except Unavailable as reason:
            out.append({"layer": layer, "models": {}, "reason": str(reason)})
            continue
        models = {}
        for name, found in states.items():
            points = plane.project(found.directed_LND[layer])
            models[name] = {"points": _rounded(points[:texts]), "mean": _rounded(points.mean(0, keepdim=True))[0]}
        explained = plane.variances_N / plane.variances_N.sum()
        out.append({"layer": layer, "models": models, "explained": [float(share) for share in explained[:2]]})
    return out


def shown_layers(layers: int, most: int = SHOWN) -> list[int]:
    """Return a few blocks spread over the depth, the first and the last among them."""
    return sorted({round(float(place)) for place in np.linspace(0, layers - 1, min(most, layers))})


def _or_reason(function: Callable[[Tensor, Tensor], dict[str, Any]], x: Tensor, y: Tensor) -> dict[str, Any]:
    try:
        return function(x, y)
    except Unavailable as reason:
        return {"value": None, "reason": str(reason)}


def _cka(x: Tensor, y: Tensor) -> dict[str, Any]:
    return linear_cka(x, y)._asdict()


def _published_cka(x: Tensor, y: Tensor) -> dict[str, Any]:
    return {"value": published.cka(x, y), "estimator": "published"}


def _pc1(x: Tensor, y: Tensor) -> dict[str, Any]:
    return pc1_similarity(x, y)._asdict()


def _published_pc1(x: Tensor, y: Tensor) -> dict[str, Any]:
    return {"value": published.pc1_cosine(x, y), "gap_before": components(x).gap, "gap_after": components(y).gap}


def _shift(x: Tensor, y: Tensor) -> dict[str, Any]:
    found = mean_shift(x, y)
    return {"value": found.norm, **found._asdict(), "along": list(found.along)}


def _published_shift(x: Tensor, y: Tensor) -> dict[str, Any]:
    # The released code has no length; that of the first coordinate stands in for it.
    along = published.shift(x, y)
    return {"value": abs(along[0]), "along": list(along)}


def _fisher(x: Tensor, y: Tensor) -> dict[str, Any]:
    found = compare(x, y)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(found).items()}
    return {"value": found.ratio, **plain, "before": _counts(found.before), "after": _counts(found.after)}


def _counts(found: Histogram) -> dict[str, Any]:
    """Return a histogram without the empty bins at both ends; `start` numbers the first bin that is kept."""
    used = np.flatnonzero(found.counts)
    first, last = (int(used[0]), int(used[-1])) if used.size else (0, -1)
    return {"start": first, "counts": found.counts[first : last + 1].tolist(), "zeros": found.zeros}


def _rounded(points: Tensor) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in points.tolist()]
