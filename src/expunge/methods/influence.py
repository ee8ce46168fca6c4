# SPDX-License-Identifier: Apache-2.0
"""Unlearning in one step: how the optimum would shift if the forget set lost its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.claims import ClaimKind, MethodCard
from expunge.methods.base import Method, MethodContext, MethodOutcome
from expunge.methods.oneshot import OneShotConfig, OneShotRun
from expunge.optim.fisher import Vector, blocks_of, conjugate_gradient, inner, woodbury_weights
from expunge.signals.curvature import gauss_newton_product, gradient


class InfluenceConfig(OneShotConfig):
    """One-shot influence unlearning."""

    name: Literal["influence"] = "influence"
    curvature: Literal["woodbury", "diagonal", "gauss_newton"] = Field(
        "woodbury",
        description="woodbury: empirical Fisher of `samples` retain sequences; diagonal: its diagonal; gauss_newton: "
        "conjugate gradient on products with the Gauss-Newton matrix",
    )
    damping: float = Field(
        1.0, gt=0, description="added to the curvature, as a multiple of the curvature along the gradient difference"
    )
    reduction: Literal["sum", "sequence_mean"] = Field(
        "sequence_mean", description="loss of a sequence: sum or mean over its tokens"
    )
    iterations: int = Field(20, ge=1, description="gauss_newton: the most products")
    tolerance: float = Field(1e-3, gt=0, lt=1, description="gauss_newton: relative residual that ends the iteration")
    block_elements: int = Field(
        1 << 28, ge=1, description="woodbury: numbers held at once, samples x parameters; where they do not fit, the "
        "samples are read again for each block of parameters",
    )  # fmt: skip


class Influence(Method):
    """Move once along the inverse curvature times the forget-minus-retain gradient."""

    Config = InfluenceConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"batch_size": 32, "epochs": 1}
    card = MethodCard(
        name="influence",
        title="One-shot influence unlearning",
        paper="Understanding Black-box Predictions via Influence Functions (arXiv:1703.04730); WoodFisher "
        "(arXiv:2004.14340); Model Sparsity Can Simplify Machine Unlearning (arXiv:2304.04934)",
        authors="Koh, Liang; Singh, Alistarh; Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu",
        year=2023,
        venue="ICML 2017; NeurIPS 2020; NeurIPS",
        family="influence",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="3 F per forget sequence and per retain sample (6 F more, and 3 F for each block, if the gradients of all "
        "samples do not fit; diagonal: 3 F more; gauss_newton: 6 F per sample and product), and some 20 forwards of "
        "the search's sequences; no training loop",
        formula="theta + a (damping I + F_retain)^-1 (grad L_f - grad L_r), a by line search on the retain loss",
        provenance="influence function of the papers; the solve by Woodbury's identity is ours",
        differences=(
            "The recurrence in circulation rescales one sample's gradient and returns the gradient difference plus a "
            "multiple of it; here the damped matrix is really inverted.",
            "The step length is the longest one that keeps the retain loss within `retain_rise`, instead of a "
            "constant between 1 and 100.",
            "Damping is relative to the curvature along the gradient difference.",
        ),
        defaults_source="our choice; published step lengths were for image classifiers",
        notes="The number of steps follows from the data: learning rate, epochs, max_steps and the optimiser play no "
        "part, and batch_size only sets how often progress is reported. Masks, wrappers and stop rules are refused.",
    )

    def examples_per_epoch(self, config: Any, *, forget: int, retain: int) -> int:
        """Return the sequences of the one pass, as far as that is known before the model is."""
        passes = {"woodbury": 1, "diagonal": 2, "gauss_newton": config.iterations + 2}[config.curvature]
        return int(forget + passes * min(config.samples, retain))

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Gather gradients, solve, move; see `Method.run`."""
        run = OneShotRun(config, context, self.card.name)
        solver = _SOLVERS[config.curvature](run, config)
        with run.running([len(run.forget), *solver.passes()]):
            forget = run.mean_gradient(run.forget, "forget", mean=solver.mean)
            difference: Vector = [f - r for f, r in zip(forget, solver.retain_gradient(), strict=True)]
            direction, notes = solver.solve(difference)
            search = run.move(direction)
        return run.outcome(search, {"curvature": config.curvature, **notes})


class _Solver:
    """Multiplies by an inverse damped curvature of the retain loss."""

    def __init__(self, run: OneShotRun, config: InfluenceConfig) -> None:
        self.run, self.config = run, config
        self.mean = config.reduction == "sequence_mean"
        self.names = list(run.parameters)
        self.moving: list[nn.Parameter] = list(run.parameters.values())

    def passes(self) -> list[int]:
        """Return how many sequences each pass over the retain samples reads, as far as that is known beforehand."""
        return [len(self.run.retain)] * 2

    def retain_gradient(self) -> Vector:
        """Return the mean gradient of the retain samples."""
        return self.run.mean_gradient(self.run.retain, "retain", mean=self.mean)

    def solve(self, v: Vector) -> tuple[Vector, dict[str, Any]]:
        """Return the direction and what to note."""
        raise NotImplementedError

    def damping(self, along: float, v: Vector) -> float:
        """Return the damping for v^T F v = `along`; if that is zero, 1: then only the direction v itself is left."""
        return self.config.damping * along / inner(v, v) or 1.0


class _Woodbury(_Solver):
    """Holds the gradients of all samples for one block of parameters at a time.

    If all parameters fit into one block, every sample is read once and its gradient kept; otherwise once for the
    mean, once for each block's inner products, and once for the weighted sum.
    """

    def __init__(self, run: OneShotRun, config: InfluenceConfig) -> None:
        super().__init__(run, config)
        self._blocks = blocks_of([p.numel() for p in self.moving], max(1, config.block_elements // len(run.retain)))
        self._rows_NP: Tensor | None = None

    def passes(self) -> list[int]:
        """See `_Solver.passes`."""
        return [len(self.run.retain)] * (1 if len(self._blocks) == 1 else len(self._blocks) + 2)

    def retain_gradient(self) -> Vector:
        """Return the mean gradient, and keep the gradients if they fit."""
        if len(self._blocks) > 1:
            return super().retain_gradient()
        self._rows_NP = self._read(self._blocks[0])
        return self._split(self._rows_NP.mean(0))

    def solve(self, v: Vector) -> tuple[Vector, dict[str, Any]]:
        """Return F^-1 v."""
        n = len(self.run.retain)
        gram_NN = torch.zeros(n, n, dtype=torch.float64)
        products_N = torch.zeros(n, dtype=torch.float64)
        for block in self._blocks:
            rows_NP = self._read(block) if self._rows_NP is None else self._rows_NP
            gram_NN += (rows_NP @ rows_NP.T).double().cpu()
            products_N += (rows_NP @ torch.cat([v[i].reshape(-1) for i in block])).double().cpu()
        damping = self.damping(float(products_N.square().mean()), v)
        weights_N = woodbury_weights(gram_NN, products_N, damping=damping)
        weighted = self._weighted_sum(weights_N)
        return [(x - y) / damping for x, y in zip(v, weighted, strict=True)], {"damping": damping}

    def _read(self, block: range) -> Tensor:
        part = [self.moving[i] for i in block]
        rows_NP = torch.empty(len(self.run.retain), sum(p.numel() for p in part), device=part[0].device)
        for row_P, item in zip(rows_NP, self.run.read(self.run.retain, "retain"), strict=True):
            found = gradient(self.run.loss(item, "retain", mean=self.mean), part)
            torch.cat([g.reshape(-1) for g in found], out=row_P)
        return rows_NP

    def _weighted_sum(self, weights_N: Tensor) -> Vector:
        """Return sum_i a_i g_i."""
        if self._rows_NP is not None:
            return self._split(weights_N.to(self._rows_NP) @ self._rows_NP)
        out = [torch.zeros_like(p, dtype=torch.float32) for p in self.moving]
        for weight, item in zip(weights_N.tolist(), self.run.read(self.run.retain, "retain"), strict=True):
            for value, g in zip(out, gradient(self.run.loss(item, "retain", mean=self.mean), self.moving), strict=True):
                value.add_(g, alpha=weight)
        return out

    def _split(self, flat_P: Tensor) -> Vector:
        pieces = torch.split(flat_P, [p.numel() for p in self.moving])
        return [piece.reshape(p.shape) for piece, p in zip(pieces, self.moving, strict=True)]


class _Diagonal(_Solver):
    def solve(self, v: Vector) -> tuple[Vector, dict[str, Any]]:
        """Return v over the damped mean square of the retain gradients."""
        squares = fisher_diagonal(self.run, mean=self.mean)
        damping = self.damping(inner([value.square() for value in v], squares), v)
        return [value / (damping + s) for value, s in zip(v, squares, strict=True)], {"damping": damping}


class _GaussNewton(_Solver):
    def passes(self) -> list[int]:
        """One pass for the mean, one for the damping, one for each product; the iteration may need fewer."""
        return [len(self.run.retain)] * (self.config.iterations + 2)

    def solve(self, v: Vector) -> tuple[Vector, dict[str, Any]]:
        """Return an approximate (damping I + G)^-1 v."""
        damping = self.damping(inner(v, self._product(v)), v)

        def damped(vector: Vector) -> Vector:
            return [g + damping * x for g, x in zip(self._product(vector), vector, strict=True)]

        found = conjugate_gradient(damped, v, iterations=self.config.iterations, tolerance=self.config.tolerance)
        return found.vector, {"damping": damping, "products": found.products, "residual": found.residual}

    def _product(self, vector: Vector) -> Vector:
        total = [torch.zeros_like(value) for value in vector]
        items = self.run.retain
        for item in self.run.read(items, "retain"):
            found = gauss_newton_product(self.run.model, self.run.parameters, vector, [item], mean=self.mean)
            for sum_, value in zip(total, found, strict=True):
                sum_.add_(value, alpha=1.0 / len(items))
        return total


def fisher_diagonal(run: OneShotRun, *, mean: bool) -> Vector:
    """Return the mean over the retain samples of their squared gradients, one tensor per parameter."""
    moving = list(run.parameters.values())
    squares = [torch.zeros_like(p, dtype=torch.float32) for p in moving]
    for item in run.read(run.retain, "retain"):
        for value, g in zip(squares, gradient(run.loss(item, "retain", mean=mean), moving), strict=True):
            value.addcmul_(g, g, value=1.0 / len(run.retain))
    return squares


_SOLVERS: Mapping[str, Callable[[OneShotRun, InfluenceConfig], _Solver]] = {
    "woodbury": _Woodbury,
    "diagonal": _Diagonal,
    "gauss_newton": _GaussNewton,
}
