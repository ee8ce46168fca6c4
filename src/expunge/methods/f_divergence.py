# SPDX-License-Identifier: Apache-2.0
"""Maximise an f-divergence between a refusal and the forget answer, with forget data alone: flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientMethod
from expunge.methods.refusal import RefusalConfig, Refusals, refusals_for
from expunge.objectives.divergence import Divergence, flat
from expunge.objectives.reduction import per_sequence, reduce_sequences
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts, Row


class FLATConfig(RefusalConfig):
    """Loss adjustment with forget data alone."""

    name: Literal["flat"] = "flat"
    divergence: Divergence = Field("total_variation", description="which f-divergence is raised")
    retain: Literal["none", "nll", "kl"] = Field("none", description="retain term; the published method has none")


class FLATTerm(ForgetTerm):
    """Raises the mean token probability of a refusal and lowers that of the forget answer."""

    roles: ClassVar[tuple[str, ...]] = ("refusal", "forget")

    def __init__(self, forget: Sequence[Encoded], divergence: Divergence, refusals: Refusals) -> None:
        super().__init__(forget)
        self._divergence, self._refusals = divergence, refusals

    def rows(self, index: int, epoch: int) -> list[Row]:
        """Return the refusal row and the answer row."""
        return [self._refusals.row(index, epoch), *super().rows(index, epoch)]

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the variational form of the divergence, turned."""
        refusal_R, forget_R = (_probability(tokens[role]) for role in ("refusal", "forget"))
        loss_R = flat(forget_R, refusal_R, divergence=self._divergence)
        return reduce_sequences(loss_R, sequences=counts.sequences["forget"])


def _probability(answer: TokenValues) -> Tensor:
    return per_sequence(answer.values.exp(), answer.row, answer.lengths, "sequence_mean")


class FLAT(GradientMethod):
    """Forget-data-only loss adjustment."""

    Config = FLATConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}
    card = MethodCard(
        name="flat",
        title="Forget-data-only loss adjustment",
        paper="LLM Unlearning via Loss Adjustment with Only Forget Data (arXiv:2410.11143)",
        authors="Wang, Wei, Liu, Pang, Liu, Shah, Bao, Liu, Wei",
        year=2025,
        venue="ICLR",
        family="refusal",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget",),
        cost="6 F per forget example with its refusal",
        formula="L = E_f [f*(g(P(answer))) - g(P(refusal))], P the mean token probability",
        provenance="paper; g and f* from Nowozin et al. (arXiv:1606.00709)",
        differences=(
            "P is the mean over the labelled tokens of one sequence, and g is taken per sequence; the released code "
            "averages over the padded length and over the batch before g, so that padding lowers P.",
            "The refusal ends with an end-of-sequence token and is drawn anew each epoch.",
        ),
        defaults_source="released configuration: total variation, learning rate 1e-5, 5 epochs; batch as in TOFU (the "
        "file's loss name is not implemented there, so it is not known to be what the tables used)",
        notes="P moves little once an answer's tokens are unlikely: the gradient is that of probabilities, not of "
        "log-probabilities.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the divergence term."""
        return FLATTerm(forget, config.divergence, refusals_for(config, context))
