# SPDX-License-Identifier: Apache-2.0
"""Training towards a distribution in which the true token lost its place: undial (the original's) and ceu (its own)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.data.labels import without_first_labels
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod, token_loss
from expunge.objectives.reduction import Reduction
from expunge.objectives.targets import ceu, undial
from expunge.signals.head import TokenFunction
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts


class UNDIALConfig(GradientConfig):
    """Self-distillation with adjusted logits."""

    name: Literal["undial"] = "undial"
    beta: float = Field(10.0, ge=0, description="how much the true token's logit is lowered in the target")
    retain: Literal["none", "nll", "kl"] = Field("none", description="retain term; the published method has none")


class CEUConfig(GradientConfig):
    """Cross-entropy unlearning."""

    name: Literal["ceu"] = "ceu"
    skip_first: int = Field(1, ge=0, description="tokens at the start of each answer that are left as they are")
    retain: Literal["none", "nll", "kl"] = Field("none", description="retain term; the published method has none")


class _TargetTerm(ForgetTerm):
    """Minimises what its function gives at each forget token."""

    def __init__(self, forget: Sequence[Encoded], reduction: Reduction) -> None:
        super().__init__(forget)
        self._reduction = reduction

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the reduced cross-entropies with the targets."""
        return token_loss(tokens["forget"].values, tokens["forget"], self._reduction, counts)


class UNDIALTerm(_TargetTerm):
    """Imitates the original model with the true token's logit lowered."""

    teacher_roles: ClassVar[tuple[str, ...]] = ("forget",)

    def __init__(self, forget: Sequence[Encoded], reduction: Reduction, beta: float) -> None:
        super().__init__(forget, reduction)
        self._beta = beta

    def function(self, role: str) -> TokenFunction:
        """Return the cross-entropy with the lowered distribution."""
        del role
        return partial(undial, beta=self._beta)


class CEUTerm(_TargetTerm):
    """Imitates the model itself with the true token left out."""

    def function(self, role: str) -> TokenFunction:
        """Return the cross-entropy with the model's own other tokens."""
        del role
        return ceu


class UNDIAL(GradientMethod):
    """Self-distillation with adjusted logits."""

    Config = UNDIALConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "epochs": 10, "batch_size": 32}
    card = MethodCard(
        name="undial",
        title="Self-distillation with adjusted logits",
        paper="UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in LLMs (arXiv:2402.10052)",
        authors="Dong, Lin, Belkin, Huerta, Vulic",
        year=2025,
        venue="NAACL",
        family="distillation",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget",),
        cost="3 F per forget sequence; one extra pass over the forget set beforehand",
        formula="L = E_f mean_t CE(softmax(z0_t - beta onehot(y_t)), softmax(z_t))",
        provenance="paper; targets at answer tokens only",
        differences=(
            "The released code takes prompt tokens as targets too; here the labelled tokens, as in every other method.",
            "OpenUnlearning's port does not mask labels: at prompt and padding positions the label -100 lowers the "
            "hundredth token from the end of the vocabulary. Here such positions take no part.",
            "The original's logits are made anew from its cached last hidden states instead of keeping a second model.",
        ),
        defaults_source="OpenUnlearning: beta 10, no retain term, learning rate 1e-4, 10 epochs; the authors use beta "
        "3 to 10, learning rates from 1e-6 to 6e-4 and LoRA of rank 8",
        notes="Its minimum is reached: at the target the loss is the target's entropy and the gradient is zero.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the term with the original's lowered logits as target."""
        del context
        return UNDIALTerm(forget, config.reduction, config.beta)


class CEU(GradientMethod):
    """Cross-entropy unlearning."""

    Config = CEUConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}
    card = MethodCard(
        name="ceu",
        title="Cross-entropy unlearning",
        paper="CE-U: Cross Entropy Unlearning (arXiv:2503.01224)",
        authors="Yang",
        year=2025,
        venue="arXiv",
        family="distillation",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget",),
        cost="3 F per forget sequence",
        formula="L = E_f mean_{t > skip_first} CE(sg softmax(z_t without y_t), softmax(z_t))",
        provenance="paper and OpenUnlearning's port, which agree",
        defaults_source="skip_first 1 from the paper; learning rate, epochs and batch of TOFU's configuration",
        notes="Has no retain term and reacts strongly to learning rate and epochs; the gradient on the true token's "
        "logit is its probability, so it fades as the answer becomes unlikely. An answer of no more labelled tokens "
        "than skip_first takes no part.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the term with the model's own other tokens as target."""
        del context
        return CEUTerm([without_first_labels(item, config.skip_first) for item in forget], config.reduction)
