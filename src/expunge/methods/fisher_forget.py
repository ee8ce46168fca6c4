# SPDX-License-Identifier: Apache-2.0
"""Fisher forgetting: noise on the weights that the retain set does not hold in place."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.methods.base import Method, MethodContext, MethodOutcome
from expunge.methods.influence import fisher_diagonal
from expunge.methods.oneshot import OneShotConfig, OneShotRun


class FisherForgetConfig(OneShotConfig):
    """Fisher forgetting."""

    name: Literal["fisher_forget"] = "fisher_forget"
    retain_rise: float = Field(0.2, gt=0, description="line search: largest rise of the retain loss, nats per token")
    max_noise: float = Field(
        100.0, gt=0, description="largest standard deviation of a weight's noise, as a multiple of that of a weight "
        "whose Fisher information is the mean of its tensor",
    )  # fmt: skip


class FisherForget(Method):
    """Add Gaussian noise with variance inverse to the retain set's Fisher information."""

    Config = FisherForgetConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"batch_size": 32, "epochs": 1}
    card = MethodCard(
        name="fisher_forget",
        title="Fisher forgetting",
        paper="Eternal Sunshine of the Spotless Net (arXiv:1911.04933)",
        authors="Golatkar, Achille, Soatto",
        year=2020,
        venue="CVPR",
        family="influence",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="3 F per retain sample, and some 20 forwards of the search's sequences; no training loop",
        formula="theta + a N(0, 1) / sqrt(F_retain), a by line search on the retain loss",
        provenance="paper, with the diagonal empirical Fisher of the released re-implementations",
        differences=(
            "The scale of the noise is the largest one that keeps the retain loss within `retain_rise`, instead of a "
            "constant for image classifiers with an absolute bound of 1e-3 (`step` restores a constant).",
            "A weight's noise is bounded relative to its tensor; no layer gets ten times the noise of the others.",
        ),
        defaults_source="our choice; no published setting exists for language models",
        notes="Hardly aims at the forget set: a negative control that useful methods must beat. Learning rate, "
        "epochs, max_steps and the optimiser play no part; masks, wrappers and stop rules are refused.",
    )

    def examples_per_epoch(self, config: Any, *, forget: int, retain: int) -> int:
        """Return the number of retain samples."""
        del forget
        return int(min(config.samples, retain))

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Measure the Fisher information, draw the noise, move; see `Method.run`."""
        run = OneShotRun(config, context, self.card.name)
        with run.running([len(run.retain)]):
            squares = fisher_diagonal(run, mean=True)
            direction = [
                _noise(name, square, config.max_noise, context.seed)
                for name, square in zip(run.parameters, squares, strict=True)
            ]
            search = run.move(direction)
        return run.outcome(search, {})


def _noise(name: str, fisher: Tensor, bound: float, seed: int) -> Tensor:
    """Return N(0, 1) / sqrt(F), with the factor bounded; zeros where no retain gradient ever reached the tensor."""
    mean = float(fisher.mean())
    if mean == 0.0:
        return torch.zeros_like(fisher)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    noise = torch.randn(fisher.shape, generator=generator).to(fisher)
    scale: Tensor = (fisher / mean).clamp(min=bound**-2).rsqrt() / math.sqrt(mean)
    return noise * scale
