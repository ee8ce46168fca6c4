# SPDX-License-Identifier: Apache-2.0
"""Gradient ascent on the forget set, alone or balanced by a retain term: ga, grad_diff, ga_kl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod
from expunge.objectives.likelihood import gradient_ascent
from expunge.objectives.reduction import Reduction, reduce_tokens
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts

#: Settings of the loop in TOFU's released configuration (Llama-2-7B): Maini et al., 2024.
TOFU_TRAINING: Mapping[str, Any] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}


class AscentTerm(ForgetTerm):
    """Minimises log p of the forget answers."""

    def __init__(self, forget: Sequence[Encoded], reduction: Reduction) -> None:
        super().__init__(forget)
        self._reduction = reduction

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the reduced log-likelihood of the forget answers."""
        answer = tokens["forget"]
        return reduce_tokens(
            gradient_ascent(answer.values), answer.row, answer.lengths, self._reduction,
            sequences=counts.sequences["forget"], tokens=counts.tokens["forget"],
        )  # fmt: skip


class GAConfig(GradientConfig):
    """Gradient ascent."""

    name: Literal["ga"] = "ga"
    retain: Literal["none", "nll", "kl"] = Field("none", description="retain term; plain gradient ascent has none")


class GradDiffConfig(GradientConfig):
    """Gradient difference."""

    name: Literal["grad_diff"] = "grad_diff"


class GAKLConfig(GradientConfig):
    """Gradient ascent with a divergence on the retain set."""

    name: Literal["ga_kl"] = "ga_kl"
    retain: Literal["none", "nll", "kl"] = Field("kl", description="retain term; kl gives the method its name")


class _Ascent(GradientMethod):
    training_defaults = TOFU_TRAINING

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the ascent term."""
        del context
        return AscentTerm(forget, config.reduction)


class GradientAscent(_Ascent):
    """Raise the loss on the forget set."""

    Config = GAConfig
    card = MethodCard(
        name="ga",
        title="Gradient ascent",
        paper="Knowledge Unlearning for Mitigating Privacy Risks in Language Models (arXiv:2210.01504)",
        authors="Jang, Yoon, Yang, Cha, Lee, Logeswaran, Seo",
        year=2023,
        venue="ACL",
        family="gradient",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget",),
        cost="3 F per forget sequence",
        formula="L = E_f mean_t log p(y_t | x, y_<t)",
        provenance="paper; token mean over the batch as in the released code of TOFU",
        differences=(
            "The paper sums tokens per sequence; the default here is the token mean of the released benchmarks "
            "(reduction: sum restores the paper's form).",
        ),
        defaults_source="TOFU configuration: learning rate 1e-5, 5 epochs, batch 32",
        notes="Unbounded below: it destroys the model within an epoch or two unless stopped.",
    )


class GradientDifference(_Ascent):
    """Raise the loss on the forget set while lowering it on the retain set."""

    Config = GradDiffConfig
    card = MethodCard(
        name="grad_diff",
        title="Gradient difference",
        paper="Continual Learning and Private Unlearning (arXiv:2203.12817); TOFU (arXiv:2401.06121)",
        authors="Liu, Liu, Stone; Maini, Feng, Schwarzschild, Lipton, Kolter",
        year=2022,
        venue="CoLLAs",
        family="gradient",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner",
        formula="L = forget_weight * E_f mean_t log p - retain_weight * E_r mean_t log p",
        provenance="paper and TOFU's released code, which agree up to normalisation",
        differences=("Retain partners cover the retain set before any repeats, instead of uniform draws.",),
        defaults_source="TOFU configuration: weights 1 and 1, learning rate 1e-5, 5 epochs, batch 32",
        notes="The forget term is unbounded, the retain term is not: late in training only clipping balances them.",
    )


class GradientAscentKL(_Ascent):
    """Raise the loss on the forget set while staying close to the original model on the retain set."""

    Config = GAKLConfig
    card = MethodCard(
        name="ga_kl",
        title="Gradient ascent with KL minimisation",
        paper="TOFU: A Task of Fictitious Unlearning for LLMs (arXiv:2401.06121)",
        authors="Maini, Feng, Schwarzschild, Lipton, Kolter",
        year=2024,
        venue="COLM",
        family="gradient",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner; one extra pass over the retain set beforehand",
        formula="L = E_f mean_t log p + retain_weight * E_r mean_t KL(p_original || p)",
        provenance="paper; direction as in TOFU's released code (forward)",
        differences=(
            "The divergence is taken at answer positions; the released code averages over prompt and padding too "
            "(kl_positions: all keeps the prompt, never the padding).",
            "The original model's last hidden states are cached once instead of keeping a second model.",
        ),
        defaults_source="TOFU configuration: learning rate 1e-5, 5 epochs, batch 32",
    )
