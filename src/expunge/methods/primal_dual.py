# SPDX-License-Identifier: Apache-2.0
"""Flatten the forget logits under a bound on the retain loss, whose multiplier is learned: pdu."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod, Parts, UnlearningTask, token_loss
from expunge.objectives.reduction import Reduction
from expunge.objectives.targets import pdu, pdu_multiplier
from expunge.signals.head import TokenFunction
from expunge.signals.likelihood import Scorer, TokenValues
from expunge.signals.reference import ReferenceCache
from expunge.training.task import Counts, Group, MicroBatch


class PDUConfig(GradientConfig):
    """Primal-dual unlearning."""

    name: Literal["pdu"] = "pdu"
    retain: Literal["nll", "kl"] = Field("nll", description="retain term, the one that is bounded")
    retain_weight: float = Field(100.0, ge=0, description="the multiplier at the start")
    tolerance: float = Field(0.3, ge=0, description="retain loss that is allowed, nats per token")
    dual_rate: float = Field(5.0, ge=0, description="step of the multiplier per nat above the tolerance")
    warmup_epochs: int = Field(5, ge=0, description="epochs before the multiplier moves")


class FlatLogitsTerm(ForgetTerm):
    """Minimises the squared gap between largest and mean logit at each forget token."""

    def __init__(self, forget: Sequence[Encoded], reduction: Reduction) -> None:
        super().__init__(forget)
        self._reduction = reduction

    def function(self, role: str) -> TokenFunction:
        """Return the squared gap."""
        del role
        return pdu

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the reduced squared gaps."""
        return token_loss(tokens["forget"].values, tokens["forget"], self._reduction, counts)


class PrimalDualTask(UnlearningTask):
    """Weighs the retain loss by a multiplier that moves once a step, after the weights did.

    Args:
        parts: term and retain set.
        config: settings of the method.
        context: of the run.
        cache: of reference answers.
    """

    def __init__(self, parts: Parts, config: PDUConfig, context: MethodContext, cache: ReferenceCache) -> None:
        unweighted = config.model_copy(update={"retain_weight": 1.0})
        super().__init__(
            parts.term, unweighted, parts.retain, training=context.training, pad_id=context.pad_id,
            seed=context.seed, cache=cache,
        )  # fmt: skip
        self._dual, self.multiplier = config, config.retain_weight
        self._epoch = 0

    def steps(self, epoch: int) -> list[list[Group]]:
        """Return the steps of the epoch that begins; see `Task.steps`."""
        self._epoch = epoch
        return super().steps(epoch)

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, Tensor]:
        """Return both parts, and the retain loss by itself to be watched."""
        parts = super().losses(scorer, micro, counts)
        retain = parts["retain"]
        return {**parts, "retain": self.multiplier * retain, "retain_loss": retain.detach()}

    def finish_step(self, watched: Mapping[str, float]) -> Mapping[str, float]:
        """Move the multiplier and return it."""
        if self._epoch >= self._dual.warmup_epochs:
            self.multiplier = pdu_multiplier(
                self.multiplier, watched["retain_loss"], rate=self._dual.dual_rate, tolerance=self._dual.tolerance
            )
        return {"multiplier": self.multiplier}

    def state_dict(self) -> dict[str, Any]:
        """Return the multiplier."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the multiplier."""
        self.multiplier = float(state["multiplier"])


class PDU(GradientMethod):
    """Primal-dual unlearning."""

    Config = PDUConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 10, "batch_size": 32}
    card = MethodCard(
        name="pdu",
        title="Primal-dual unlearning with flattened logits",
        paper="Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models (arXiv:2506.05314)",
        authors="Entesari, Hatami, Khaziev, Ramakrishna, Fazlyab",
        year=2025,
        venue="arXiv",
        family="constrained",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner",
        formula="L = E_f mean_t (max_v z_tv - mean_v z_tv)^2 + lambda L_r; "
        "lambda <- max(0, lambda + dual_rate (L_r - tolerance)) after each step",
        provenance="paper; constants of the code in OpenUnlearning",
        differences=(
            "Logits are flattened at answer tokens only; the released code does so at prompt and padding too.",
            "The multiplier moves once per optimiser step by the step's whole retain loss; the released code moves it "
            "at every micro-batch, so that there gradient accumulation multiplies the dual rate.",
        ),
        defaults_source="released TOFU configuration: multiplier 100 at the start, dual_rate 5, tolerance 0.3, "
        "warmup_epochs 5, learning rate 1e-5, 10 epochs (30 for 8B models), batch 32. MUSE: 50, 1, 1.5 (News) or 0.1 "
        "(Books), 3",
        notes="metrics.jsonl holds the multiplier and the bare retain loss of every step. If the retain loss stays "
        "above the tolerance the multiplier grows without end.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the flattening term."""
        del context
        return FlatLogitsTerm(forget, config.reduction)

    def task(self, config: Any, context: MethodContext, parts: Parts, cache: ReferenceCache) -> UnlearningTask:
        """Return the task with the multiplier."""
        return PrimalDualTask(parts, config, context, cache)
