# SPDX-License-Identifier: Apache-2.0
"""Gradient ascent that fades token by token: wga (as a token becomes unlikely) and satimp (at both ends)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod, token_loss
from expunge.objectives.reduction import Reduction
from expunge.objectives.weighted import satimp, wga
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts

_TRAINING: Mapping[str, Any] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}


class WGAConfig(GradientConfig):
    """Weighted gradient ascent."""

    name: Literal["wga"] = "wga"
    beta: float = Field(1.0, ge=0, description="exponent of the weight p^beta; 0 is plain gradient ascent")


class SatImpConfig(GradientConfig):
    """Ascent weighted by saturation and importance."""

    name: Literal["satimp"] = "satimp"
    beta1: float = Field(5.0, ge=0, description="saturation: large values leave tokens alone that are unlikely already")
    beta2: float = Field(0.1, ge=0, description="importance: large values leave tokens alone that are nearly certain")
    retain_weight: float = Field(0.1, ge=0, description="weight of the retain term")


class WeightedTerm(ForgetTerm):
    """Minimises a weighted log-probability of each forget token."""

    def __init__(self, forget: Sequence[Encoded], reduction: Reduction, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__(forget)
        self._reduction, self._loss = reduction, loss

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the reduced token losses."""
        answer = tokens["forget"]
        return token_loss(self._loss(answer.values), answer, self._reduction, counts)


class WGA(GradientMethod):
    """Weighted gradient ascent."""

    Config = WGAConfig
    training_defaults = _TRAINING
    card = MethodCard(
        name="wga",
        title="Weighted gradient ascent",
        paper="Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond (arXiv:2502.19301)",
        authors="Wang, Zhou, Zhou, Shin, Han, Weinberger",
        year=2025,
        venue="ICLR",
        family="gradient",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner",
        formula="L = forget_weight * E_f mean_t sg(p_t^beta) log p_t - retain_weight * E_r mean_t log p",
        provenance="paper and released code, which agree",
        defaults_source="OpenUnlearning: beta 1, weights 1 and 1, learning rate 1e-5, 5 epochs (the authors' own code "
        "leaves beta to the user); batch as in TOFU",
        notes="A token's pull fades with its probability, so the ascent comes to rest where plain ascent does not.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the weighted ascent term."""
        del context
        return WeightedTerm(forget, config.reduction, partial(wga, beta=config.beta))


class SatImp(GradientMethod):
    """Ascent weighted by saturation and importance."""

    Config = SatImpConfig
    training_defaults = _TRAINING
    card = MethodCard(
        name="satimp",
        title="Ascent weighted by saturation and importance",
        paper="Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning (arXiv:2505.11953)",
        authors="Yang, Wang, Huang, Liu, Zhang, Han",
        year=2025,
        venue="ICML",
        family="gradient",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner",
        formula="L = forget_weight * E_f mean_t sg(p_t^beta1 (1 - p_t)^beta2) log p_t "
        "- retain_weight * E_r mean_t log p",
        provenance="paper and released code, which agree",
        defaults_source="the authors' code: beta1 5, beta2 0.1, weights 1 and 0.1. Learning rate 1e-5 and 5 epochs are "
        "OpenUnlearning's, whose file has beta2 1 and the weights the other way round (0.1 and 1); batch as in TOFU",
        notes="With beta1 5 a token below a probability of one half hardly pulls at all.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the weighted ascent term."""
        del context
        return WeightedTerm(forget, config.reduction, partial(satimp, beta1=config.beta1, beta2=config.beta2))
