# SPDX-License-Identifier: Apache-2.0
"""How the weights moved: the size and the rank of the update, layer by layer.

Sources: Rudelson and Vershynin, "Sampling from large matrices", 2007 (stable rank, the squared Frobenius norm over the
squared spectral norm); Roy and Vetterli, "The effective rank", 2007, equation 5 (the exponential of the entropy of the
singular values).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expunge.errors import InputDataError

#: Shorter side up to which all singular values are computed; beyond it that takes minutes a matrix on a processor.
LARGEST_SIDE = 4096
TOO_LARGE = f"the shorter side of the matrix is above {LARGEST_SIDE}"
UNMOVED = "nothing moved"


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixUpdate:
    """How one weight matrix moved; the ranks are None where `reason` says why."""

    name: str
    norm: float
    relative: float
    stable_rank: float | None
    effective_rank: float | None
    full_rank: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUpdate:
    """How one layer moved.

    Attributes:
        layer: number of the block; -1 for what comes before the blocks, their number for what follows.
        norm: Frobenius norm of all changes together.
        relative: `norm` over the norm of the weights before.
        largest: largest change of one weight.
        moved: share of the weights that changed at all.
        stable_rank: median over its matrices; None where none of them has one.
        effective_rank: the same.
        full_rank: median of the largest rank they could have; None without matrices.
        matrices: those of its weights that are matrices.
    """

    layer: int
    norm: float
    relative: float
    largest: float
    moved: float
    stable_rank: float | None
    effective_rank: float | None
    full_rank: float | None
    matrices: tuple[MatrixUpdate, ...] = field(default=())


@torch.no_grad()  # parameters may be handed in as they are
def weight_updates(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], blocks: Mapping[str, int]
) -> list[LayerUpdate]:
    """Return how every layer moved from one model to the other, differences taken in float32.

    Args:
        before: weights by name.
        after: the same names and shapes.
        blocks: the layer of each name.

    Raises:
        InputDataError: if the models do not have the same weights.
    """
    if odd := sorted(before.keys() ^ after.keys()):
        raise _unlike("only one of the two models has this weight", odd[0])
    layers: dict[int, list[str]] = {}
    for name, weight in before.items():
        if weight.shape != after[name].shape:
            raise _unlike(f"has the shapes {tuple(weight.shape)} and {tuple(after[name].shape)}", name)
        layers.setdefault(blocks[name], []).append(name)
    return [_layer(layer, names, before, after) for layer, names in sorted(layers.items())]


def stable_rank(singular: Tensor) -> float:
    """Return the sum of squares of singular values over the largest square: 1 for a matrix of rank one."""
    return float(singular.square().sum() / singular.max().square())


def effective_rank(singular: Tensor) -> float:
    """Return exp of the entropy of the singular values as shares of their sum; their number where all are equal."""
    shares = singular[singular > 0] / singular.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def _layer(layer: int, names: list[str], before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> LayerUpdate:
    change = base = largest = 0.0
    moved = total = 0
    matrices = []
    for name in names:
        old = before[name].float()
        delta = after[name].float() - old
        change += float(delta.double().square().sum())
        base += float(old.double().square().sum())
        largest = max(largest, float(delta.abs().max()))
        moved, total = moved + int(delta.count_nonzero()), total + delta.numel()
        if delta.ndim == 2:
            matrices.append(_matrix(name, delta, float(old.norm())))
    size = math.sqrt(change)
    return LayerUpdate(
        layer=layer, norm=size, relative=size / math.sqrt(base) if base else 0.0, largest=largest, moved=moved / total,
        stable_rank=_median(matrix.stable_rank for matrix in matrices),
        effective_rank=_median(matrix.effective_rank for matrix in matrices),
        full_rank=_median(matrix.full_rank for matrix in matrices), matrices=tuple(matrices),
    )  # fmt: skip


def _matrix(name: str, delta: Tensor, base: float) -> MatrixUpdate:
    size, side = float(delta.norm()), min(delta.shape)
    reason = UNMOVED if size == 0 else TOO_LARGE if side > LARGEST_SIDE else ""
    stable = effective = None
    if not reason:
        singular = torch.linalg.svdvals(delta).double()
        stable, effective = stable_rank(singular), effective_rank(singular)
    return MatrixUpdate(
        name=name, norm=size, relative=size / base if base else 0.0, stable_rank=stable, effective_rank=effective,
        full_rank=side, reason=reason,
    )  # fmt: skip


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _unlike(problem: str, name: str) -> InputDataError:
    return InputDataError(problem, field="AFTER", value=name, remedy="Compare models of the same architecture")
