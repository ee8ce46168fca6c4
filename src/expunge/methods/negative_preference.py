# SPDX-License-Identifier: Apache-2.0
"""Preference losses without a preferred answer: npo and simnpo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod
from expunge.objectives.preference import npo, simnpo
from expunge.objectives.reduction import Reduction, per_sequence, reduce_sequences
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts


class _SequenceConfig(GradientConfig):
    @model_validator(mode="after")
    def _per_sequence(self) -> _SequenceConfig:
        if self.reduction == "token_mean":
            raise ValueError("reduction must be sum or sequence_mean: the loss is taken per sequence")
        return self


class NPOConfig(_SequenceConfig):
    """Negative preference optimisation."""

    name: Literal["npo"] = "npo"
    beta: float = Field(0.1, gt=0, description="inverse temperature; towards 0 the loss becomes gradient ascent")
    reduction: Reduction = Field("sum", description="log-probability of a sequence: sum (paper) or sequence_mean")


class SimNPOConfig(_SequenceConfig):
    """Simple negative preference optimisation."""

    name: Literal["simnpo"] = "simnpo"
    beta: float = Field(4.5, gt=0, description="inverse temperature")
    gamma: float = Field(0.0, ge=0, description="margin, outside beta as in the paper")
    forget_weight: float = Field(0.125, ge=0, description="weight of the forget term")
    reduction: Reduction = Field("sequence_mean", description="log-probability of a sequence: its mean (paper)")


class NPOTerm(ForgetTerm):
    """Pushes each forget answer below its probability under the original model, less and less as it falls."""

    reference_roles: ClassVar[tuple[str, ...]] = ("forget",)

    def __init__(self, forget: Sequence[Encoded], config: NPOConfig) -> None:
        super().__init__(forget)
        self._config = config

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the negative-preference loss."""
        answer, reduction = tokens["forget"], self._config.reduction
        now_R = per_sequence(answer.values, answer.row, answer.lengths, reduction)
        before_R = per_sequence(reference["forget"], answer.row, answer.lengths, reduction)
        loss_R = npo(now_R, before_R, beta=self._config.beta)
        return reduce_sequences(loss_R, sequences=counts.sequences["forget"])


class SimNPOTerm(ForgetTerm):
    """The same without a reference, on length-normalised log-probabilities."""

    def __init__(self, forget: Sequence[Encoded], config: SimNPOConfig) -> None:
        super().__init__(forget)
        self._config = config

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the reference-free loss."""
        answer = tokens["forget"]
        logp_R = per_sequence(answer.values, answer.row, answer.lengths, self._config.reduction)
        loss_R = simnpo(logp_R, beta=self._config.beta, gamma=self._config.gamma)
        return reduce_sequences(loss_R, sequences=counts.sequences["forget"])


class NPO(GradientMethod):
    """Negative preference optimisation."""

    Config = NPOConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 10, "batch_size": 32}
    card = MethodCard(
        name="npo",
        title="Negative preference optimisation",
        paper="Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning (arXiv:2404.05868)",
        authors="Zhang, Lin, Bai, Mei",
        year=2024,
        venue="COLM",
        family="preference",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner; the original's answers are cached in one pass",
        formula="L = (2/beta) E_f log(1 + (p / p_original)^beta) - retain_weight * E_r mean_t log p",
        provenance="paper, which the released code follows on TOFU",
        differences=(
            "The original model's sequence log-probabilities are cached once instead of keeping a second model.",
            "Retain partners are drawn anew each epoch; the released code repeats the same pairs every epoch.",
        ),
        defaults_source="released TOFU configuration: beta 0.1, learning rate 1e-5, 10 epochs, batch 32",
        notes="retain: none gives the paper's plain NPO.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the NPO term."""
        del context
        return NPOTerm(forget, config)


class SimNPO(GradientMethod):
    """Simple negative preference optimisation."""

    Config = SimNPOConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 10, "batch_size": 32}
    card = MethodCard(
        name="simnpo",
        title="Simple negative preference optimisation",
        paper="Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning (arXiv:2410.07163)",
        authors="Fan, Liu, Lin, Jia, Zhang, Mei, Liu",
        year=2025,
        venue="NeurIPS",
        family="preference",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner",
        formula="L = -(2/beta) E_f log sigma(-beta * mean_t log p - gamma) - retain_weight * E_r mean_t log p",
        provenance="paper; the released code for TOFU differs only in where it puts the margin",
        differences=(
            "gamma stands outside beta as in the paper; the released code's margin is gamma / beta.",
            "The released code for MUSE works on raw logits and ignores the labels; this form is not offered.",
        ),
        defaults_source="released TOFU forget10 configuration: beta 4.5, gamma 0, forget weight 0.125, 10 epochs",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the SimNPO term."""
        del context
        return SimNPOTerm(forget, config)
