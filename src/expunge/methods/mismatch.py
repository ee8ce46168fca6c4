# SPDX-License-Identifier: Apache-2.0
"""Ascent on the forget answers with random answers in their place and a divergence on the retain set: yao."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded, Encoder
from expunge.data.examples import Example
from expunge.errors import RecipeError
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod, token_loss
from expunge.objectives.likelihood import gradient_ascent, negative_log_likelihood
from expunge.objectives.reduction import Reduction
from expunge.signals.likelihood import TokenValues
from expunge.training.config import TrainingConfig
from expunge.training.task import Counts, Row


class YaoConfig(GradientConfig):
    """Ascent, random mismatch and divergence."""

    name: Literal["yao"] = "yao"
    forget_weight: float = Field(0.5, ge=0, description="weight of the forget term, its mismatch part included")
    mismatch_weight: float = Field(2.0, ge=0, description="weight of the random answers beside the ascent")
    mismatches: int = Field(5, ge=1, description="random answers per forget example and step")
    retain: Literal["none", "nll", "kl"] = Field("kl", description="retain term; kl is the published one")
    reduction: Reduction = Field("sequence_mean", description="how token losses of the forget term become one number")


class MismatchedAnswers:
    """Forget prompts with answers of randomly drawn retain examples, anew each epoch, from a private generator."""

    def __init__(self, examples: Sequence[Example], others: Sequence[Example], encoder: Encoder, seed: int) -> None:
        self._examples, self._others, self._encoder, self._seed = examples, others, encoder, seed
        self._encoded: dict[tuple[int, int], Encoded] = {}

    def rows(self, index: int, epoch: int, count: int) -> list[Row]:
        """Return `count` rows of different answers (fewer only if there are not as many)."""
        rng = np.random.default_rng([self._seed, 86028121, epoch, index])
        drawn = rng.permutation(len(self._others))[:count].tolist()
        return [Row(self._row(index, other), "mismatch", index) for other in drawn]

    def _row(self, index: int, other: int) -> Encoded:
        if (index, other) not in self._encoded:
            answer = self._others[other].answer
            self._encoded[index, other] = self._encoder.encode(self._examples[index], answer=answer)
        return self._encoded[index, other]


class YaoTerm(ForgetTerm):
    """Lowers the forget answers and raises random ones."""

    roles: ClassVar[tuple[str, ...]] = ("forget", "mismatch")

    def __init__(self, forget: Sequence[Encoded], config: YaoConfig, answers: MismatchedAnswers) -> None:
        super().__init__(forget)
        self._config, self._answers = config, answers

    def rows(self, index: int, epoch: int) -> list[Row]:
        """Return the forget row and its mismatched rows."""
        return [*super().rows(index, epoch), *self._answers.rows(index, epoch, self._config.mismatches)]

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return ascent plus the weighted likelihood of the random answers."""
        config, forget, other = self._config, tokens["forget"], tokens["mismatch"]
        down = token_loss(gradient_ascent(forget.values), forget, config.reduction, counts)
        up = token_loss(negative_log_likelihood(other.values), other, config.reduction, counts, role="mismatch")
        return down + config.mismatch_weight * up


class Yao(GradientMethod):
    """Gradient ascent, random mismatch and KL."""

    Config = YaoConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 2e-6, "epochs": 5, "batch_size": 2}
    card = MethodCard(
        name="yao",
        title="Gradient ascent with random mismatch and KL",
        paper="Large Language Model Unlearning (arXiv:2310.10683)",
        authors="Yao, Xu, Liu",
        year=2023,
        venue="NeurIPS 2024",
        family="gradient",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="(6 + 3 mismatches) F per forget sequence with its retain partner; one extra pass over the retain set "
        "beforehand",
        formula="L = forget_weight (E_f mean_t log p - mismatch_weight E mean_t log p(random answer)) "
        "+ retain_weight E_r mean_t KL(p_original || p)",
        provenance="paper and released code; weights 0.5, 1 and 1 as there",
        differences=(
            "Random answers come from the retain set; the released code takes them from TruthfulQA.",
            "The divergence is a divergence, at answer positions; the released code has a cross-entropy of the same "
            "gradient over all positions, padding included.",
            "The released stopping rule compares a negative number with a positive bound and never acts; "
            "training.stop takes its place.",
        ),
        defaults_source="released code: 5 random answers, learning rate 2e-6, batch 2, there for at most 1000 steps "
        "with AdaLoRA of rank 32 on OPT-1.3B; 5 epochs are ours",
    )

    def needs(self, config: Any, training: TrainingConfig) -> frozenset[str]:
        """Return the card's needs: the random answers come from the retain set."""
        return super().needs(config, training) | {"retain"}

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the term of ascent and mismatch."""
        examples, others = context.splits.forget, context.need_retain(self.card.name)
        running = [example.id for example in (*examples, *others) if example.kind == "text"]
        if running:
            raise RecipeError(
                "running text has no answer that could be exchanged", field="data", value=running[0],
                remedy="Use rows with a prompt and an answer, or a method such as ga_kl",
            )  # fmt: skip
        return YaoTerm(forget, config, MismatchedAnswers(examples, others, context.encoder, context.seed))
