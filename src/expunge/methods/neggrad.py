# SPDX-License-Identifier: Apache-2.0
"""NegGrad+: descent on the retain set and ascent on the forget set, mixed by one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.ascent import TOFU_TRAINING, AscentTerm
from expunge.methods.base import MethodContext, MethodOutcome
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod


class NegGradPlusConfig(GradientConfig):
    """NegGrad+."""

    name: Literal["neggrad_plus"] = "neggrad_plus"
    retain: Literal["nll", "kl"] = Field("nll", description="retain term; nll gives the method its name")
    beta: float = Field(0.5, ge=0, le=1, description="weight of the retain term; the forget term weighs 1 - beta")

    @model_validator(mode="after")
    def _weights_follow(self) -> NegGradPlusConfig:
        if self.forget_weight != 1.0 or self.retain_weight != 1.0:
            raise ValueError("the weights follow from beta: set that, or use grad_diff")
        return self


class NegGradPlus(GradientMethod):
    """Raise the loss on the forget set while lowering it on the retain set, with weights that add up to one."""

    Config = NegGradPlusConfig
    training_defaults = TOFU_TRAINING
    card = MethodCard(
        name="neggrad_plus",
        title="NegGrad+",
        paper="Towards Unbounded Machine Unlearning (arXiv:2302.09880), baseline",
        authors="Kurmanji, Triantafillou, Hayes, Triantafillou",
        year=2023,
        venue="NeurIPS",
        family="gradient",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner",
        formula="L = (1 - beta) E_f mean_t log p - beta E_r mean_t log p",
        provenance="paper and its released code, which agree",
        differences=("Retain partners cover the retain set before any repeats.",),
        defaults_source="our choice of beta; the configuration of gradient difference",
        notes="Gradient difference with weights that add up to one: under an optimiser that ignores the scale of the "
        "gradient, beta 0.5 is gradient difference.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the ascent term."""
        del context
        return AscentTerm(forget, config.reduction)

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Train on both terms; see `Method.run`."""
        weights = {"forget_weight": 1.0 - config.beta, "retain_weight": config.beta}
        return super().run(config.model_copy(update=weights), context)
