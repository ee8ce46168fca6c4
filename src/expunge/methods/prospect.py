# SPDX-License-Identifier: Apache-2.0
"""Prospect-theoretic unlearning: the answer is pushed down only as far as a refusal has not yet overtaken it: kto."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientMethod
from expunge.methods.refusal import RefusalConfig, Refusals, refusals_for, row_sums
from expunge.objectives.preference import kto
from expunge.objectives.reduction import reduce_sequences
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts, Row


class KTOConfig(RefusalConfig):
    """Kahneman-Tversky optimisation with the forget answers as undesired."""

    name: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, description="inverse temperature")


class KTOTerm(ForgetTerm):
    """Lowers the forget answer relative to how much a refusal to the same prompt has gained."""

    roles: ClassVar[tuple[str, ...]] = ("refusal", "forget")
    reference_roles: ClassVar[tuple[str, ...]] = ("refusal", "forget")

    def __init__(self, forget: Sequence[Encoded], beta: float, refusals: Refusals) -> None:
        super().__init__(forget)
        self._beta, self._refusals = beta, refusals

    def rows(self, index: int, epoch: int) -> list[Row]:
        """Return the refusal row and the answer row."""
        return [self._refusals.row(index, epoch), *super().rows(index, epoch)]

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the prospect loss; the refusal only sets the point of comparison."""
        refusal, answer = tokens["refusal"], tokens["forget"]
        point_R = refusal.row_sums() - row_sums(reference["refusal"], refusal)
        before_R = row_sums(reference["forget"], answer)
        loss_R = kto(answer.row_sums(), before_R, point_R, beta=self._beta)
        return reduce_sequences(loss_R, sequences=counts.sequences["forget"])


class KTO(GradientMethod):
    """Kahneman-Tversky optimisation of undesired answers."""

    Config = KTOConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 10, "batch_size": 32}
    card = MethodCard(
        name="kto",
        title="Kahneman-Tversky optimisation with refusals",
        paper="KTO: Model Alignment as Prospect Theoretic Optimization (arXiv:2402.01306); for unlearning in "
        "Negative Preference Optimization (arXiv:2404.05868)",
        authors="Ethayarajh, Xu, Muennighoff, Jurafsky, Kiela; Zhang, Lin, Bai, Mei",
        year=2024,
        venue="ICML; COLM",
        family="preference",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="9 F per forget example with refusal and retain partner; the original's answers are cached in one pass",
        formula="L = -(2/beta) E_f log sigma(beta [z0 - (log p - log p0)]) - retain term, "
        "z0 = log p(refusal) - log p0(refusal), held constant",
        provenance="the adaptation to unlearning of the NPO paper",
        differences=(
            "z0 is the log-ratio of the refusal to the same prompt, not the mean over the batch, so that the loss of "
            "an example does not depend on which others share its batch.",
            "z0 stands inside beta as in the paper; the released code leaves beta out and adds 1 to the loss.",
        ),
        defaults_source="released NPO configuration for TOFU: beta 0.1, learning rate 1e-5, 10 epochs, batch 32",
        notes="The refusal itself is not trained: without its gain the loss is that of npo.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the prospect term."""
        return KTOTerm(forget, config.beta, refusals_for(config, context))
