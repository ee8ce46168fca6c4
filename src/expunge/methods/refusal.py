# SPDX-License-Identifier: Apache-2.0
"""Teach a refusal in place of the answer: idk (supervised) and dpo (refusal preferred to the answer)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded, Encoder
from expunge.data.examples import Example
from expunge.data.refusals import load_refusals
from expunge.errors import RecipeError
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod
from expunge.objectives.likelihood import negative_log_likelihood
from expunge.objectives.preference import dpo
from expunge.objectives.reduction import reduce_sequences, reduce_tokens
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts, Row


class RefusalConfig(GradientConfig):
    """Settings of methods that teach a refusal."""

    refusals: Path | None = Field(None, description="text file with one refusal per line; default: the built-in list")


class IDKConfig(RefusalConfig):
    """Preference for "I do not know", by plain supervised steps."""

    name: Literal["idk"] = "idk"


class DPOConfig(RefusalConfig):
    """Direct preference optimisation with a refusal as the chosen answer."""

    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, description="inverse temperature")


class Refusals:
    """Refusal rows for forget examples: another sentence each epoch, from a private generator."""

    def __init__(self, examples: Sequence[Example], encoder: Encoder, sentences: Sequence[str], seed: int) -> None:
        self._examples, self._encoder, self._sentences, self._seed = examples, encoder, sentences, seed
        self._encoded: dict[tuple[int, int], Encoded] = {}

    def row(self, index: int, epoch: int) -> Row:
        """Return the refusal row of forget example `index` in `epoch`."""
        rng = np.random.default_rng([self._seed, 7919, epoch, index])
        choice = int(rng.integers(len(self._sentences)))
        if (index, choice) not in self._encoded:
            answer = self._sentences[choice]
            self._encoded[index, choice] = self._encoder.encode(self._examples[index], answer=answer)
        return Row(self._encoded[index, choice], "refusal", index)


class IDKTerm(ForgetTerm):
    """Raises the likelihood of a refusal after each forget prompt."""

    roles: ClassVar[tuple[str, ...]] = ("refusal",)

    def __init__(self, forget: Sequence[Encoded], config: IDKConfig, refusals: Refusals) -> None:
        super().__init__(forget)
        self._config, self._refusals = config, refusals

    def rows(self, index: int, epoch: int) -> list[Row]:
        """Return the refusal row."""
        return [self._refusals.row(index, epoch)]

    def attribution(self, index: int) -> Encoded:
        """Return the refusal of the first epoch: it is what the weights are to learn."""
        return self._refusals.row(index, 0).encoded

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the reduced negative log-likelihood of the refusals."""
        answer = tokens["refusal"]
        return reduce_tokens(
            negative_log_likelihood(answer.values), answer.row, answer.lengths, self._config.reduction,
            sequences=counts.sequences["refusal"], tokens=counts.tokens["refusal"],
        )  # fmt: skip


class DPOTerm(ForgetTerm):
    """Prefers a refusal to the true answer, both measured against the original model."""

    roles: ClassVar[tuple[str, ...]] = ("refusal", "forget")
    reference_roles: ClassVar[tuple[str, ...]] = ("refusal", "forget")

    def __init__(self, forget: Sequence[Encoded], beta: float, refusals: Refusals) -> None:
        super().__init__(forget)
        self._beta, self._refusals = beta, refusals

    def rows(self, index: int, epoch: int) -> list[Row]:
        """Return the refusal row and the answer row."""
        return [self._refusals.row(index, epoch), *super().rows(index, epoch)]

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the preference loss on summed log-probabilities."""
        loss_R = preference_loss(tokens, reference, chosen="refusal", beta=self._beta)
        return reduce_sequences(loss_R, sequences=counts.sequences["forget"])


def preference_loss(
    tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], *, chosen: str, beta: float
) -> Tensor:
    """Return the DPO loss of each pair, [R], with the rows of role `chosen` preferred to those of role `forget`."""
    now = [tokens[role].row_sums() for role in (chosen, "forget")]
    before = [row_sums(reference[role], tokens[role]) for role in (chosen, "forget")]
    return dpo(*now, *before, beta=beta)


def row_sums(values_N: Tensor, like: TokenValues) -> Tensor:
    """Return the sum within each sequence, [R], of values of the same tokens as `like`."""
    return TokenValues(values_N, like.row, like.lengths).row_sums()


def refusals_for(config: RefusalConfig, context: MethodContext) -> Refusals:
    """Return the source of refusal rows.

    Raises:
        RecipeError: for running text.
    """
    examples = context.splits.forget
    running = [example.id for example in examples if example.kind == "text"]
    if running:
        raise RecipeError(
            "running text has no question that could be refused", field="data.forget", value=running[0],
            remedy="Use rows with question and answer, or a method such as npo",
        )  # fmt: skip
    return Refusals(examples, context.encoder, load_refusals(config.refusals), context.seed)


class IDK(GradientMethod):
    """Supervised refusals on the forget prompts."""

    Config = IDKConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}
    card = MethodCard(
        name="idk",
        title="Refusal training (preference optimisation of TOFU)",
        paper="TOFU: A Task of Fictitious Unlearning for LLMs (arXiv:2401.06121); SOUL (arXiv:2404.18239)",
        authors="Maini, Feng, Schwarzschild, Lipton, Kolter",
        year=2024,
        venue="COLM",
        family="refusal",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner",
        formula="L = -E_f mean_t log p(refusal_t | x) - retain_weight * E_r mean_t log p",
        provenance="paper; two separate token means as in SOUL",
        differences=(
            "TOFU's code takes one token mean over refusals and retain answers together, which lets the longer retain "
            "answers dominate; the two terms are separate here.",
            "The refusal ends with an end-of-sequence token and is drawn anew each epoch.",
        ),
        defaults_source="TOFU configuration: learning rate 1e-5, 5 epochs, batch 32",
        notes="Changes behaviour: the likelihood of the original answer barely falls, and probing finds it.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the refusal term."""
        return IDKTerm(forget, config, refusals_for(config, context))


class DPO(GradientMethod):
    """Direct preference optimisation for refusals."""

    Config = DPOConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 10, "batch_size": 32}
    card = MethodCard(
        name="dpo",
        title="Direct preference optimisation with refusals",
        paper="Direct Preference Optimization (arXiv:2305.18290); as an unlearning baseline in arXiv:2404.05868",
        authors="Rafailov, Sharma, Mitchell, Ermon, Manning, Finn",
        year=2023,
        venue="NeurIPS",
        family="preference",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="9 F per forget example with refusal and retain partner; the original's answers are cached in one pass",
        formula="L = -(2/beta) E_f log sigma(beta [(log p_w - log p0_w) - (log p_l - log p0_l)]) - retain term",
        provenance="paper, with the factor 2/beta of the released NPO code",
        differences=(
            "Factor 2/beta instead of 1, so that the forget term's first gradient does not depend on beta.",
            "Four log-probabilities come from one forward pass and a cache instead of four passes.",
        ),
        defaults_source="released NPO configuration for TOFU: beta 0.1, learning rate 1e-5, 10 epochs, batch 32",
        notes="Refusals spread to the retain set easily; watch the refusal rate there.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the preference term."""
        return DPOTerm(forget, config.beta, refusals_for(config, context))
