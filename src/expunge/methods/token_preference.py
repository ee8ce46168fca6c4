# SPDX-License-Identifier: Apache-2.0
"""Negative preference token by token instead of sequence by sequence: tnpo and wtnpo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod, token_loss
from expunge.objectives.reduction import Reduction
from expunge.objectives.weighted import tnpo, wtnpo
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts

_PAPER = "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond (arXiv:2502.19301)"
_AUTHORS = "Wang, Zhou, Zhou, Shin, Han, Weinberger"
_TRAINING: Mapping[str, Any] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}


class TNPOConfig(GradientConfig):
    """Token-wise negative preference optimisation."""

    name: Literal["tnpo"] = "tnpo"
    beta: float = Field(4.0, gt=0, description="inverse temperature, per token")


class WTNPOConfig(GradientConfig):
    """Token-wise negative preference under a weight of confidence."""

    name: Literal["wtnpo"] = "wtnpo"
    beta: float = Field(0.1, gt=0, description="inverse temperature, per token")
    alpha: float = Field(1.0, ge=0, description="exponent of the confidence weight p^alpha; 0 leaves tnpo's gradient")


class TokenPreferenceTerm(ForgetTerm):
    """Minimises a function of each forget token's log-probability under the model and under the original."""

    reference_roles: ClassVar[tuple[str, ...]] = ("forget",)

    def __init__(
        self, forget: Sequence[Encoded], reduction: Reduction, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(forget)
        self._reduction, self._loss = reduction, loss

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the reduced token losses."""
        answer = tokens["forget"]
        return token_loss(self._loss(answer.values, reference["forget"]), answer, self._reduction, counts)


class TNPO(GradientMethod):
    """Token-wise negative preference optimisation."""

    Config = TNPOConfig
    training_defaults = _TRAINING
    card = MethodCard(
        name="tnpo",
        title="Token-wise negative preference optimisation",
        paper=_PAPER,
        authors=_AUTHORS,
        year=2025,
        venue="ICLR",
        family="preference",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner; the original's answers are cached in one pass",
        formula="L = (2/beta) E_f mean_t log(1 + (p_t / p0_t)^beta) - retain_weight * E_r mean_t log p",
        provenance="paper; gradient as in its released code",
        differences=(
            "Written as a loss whose gradient is the published one: the released code multiplies log p by the "
            "detached weight 2 p^beta / (p^beta + p0^beta + 1e-5).",
            "The 1e-5 in the denominator is left out: computed through log sigma the weight needs none.",
        ),
        defaults_source="released code: beta 4, learning rate 1e-5, 5 epochs; batch as in TOFU",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the token-wise preference term."""
        del context
        return TokenPreferenceTerm(forget, config.reduction, partial(tnpo, beta=config.beta))


class WTNPO(GradientMethod):
    """Weighted token-wise negative preference optimisation."""

    Config = WTNPOConfig
    training_defaults = _TRAINING
    card = MethodCard(
        name="wtnpo",
        title="Weighted token-wise negative preference optimisation",
        paper=_PAPER,
        authors=_AUTHORS,
        year=2025,
        venue="ICLR",
        family="preference",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner; the original's answers are cached in one pass",
        formula="L = E_f mean_t sg(p_t^alpha w_t) log p_t - retain_weight * E_r mean_t log p, "
        "w_t = 2 p_t^beta / (p_t^beta + p0_t^beta)",
        provenance="released code, which fixes beta at 0.1",
        differences=("The 1e-5 in the denominator of w is left out, as in tnpo.",),
        defaults_source="released code: beta 0.1, learning rate 1e-5, 5 epochs; alpha is its free setting, 1 is ours",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the weighted token-wise preference term."""
        del context
        return TokenPreferenceTerm(forget, config.reduction, partial(wtnpo, alpha=config.alpha, beta=config.beta))
