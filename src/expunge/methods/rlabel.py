# SPDX-License-Identifier: Apache-2.0
"""Random labels: train the forget prompts towards wrong answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.data.examples import Example
from expunge.data.sampling import derangement
from expunge.errors import RecipeError
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod
from expunge.objectives.likelihood import negative_log_likelihood
from expunge.objectives.reduction import Reduction, reduce_tokens
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts, Row


class RLabelConfig(GradientConfig):
    """Random labels."""

    name: Literal["rlabel"] = "rlabel"
    labels: Literal["uniform", "mismatch"] = Field(
        "uniform", description="uniform: each label an i.i.d. token; mismatch: the answer of another forget example"
    )


class _RandomTerm(ForgetTerm):
    """Negative log-likelihood of whatever the rows are labelled with."""

    def __init__(self, forget: Sequence[Encoded], reduction: Reduction, seed: int) -> None:
        super().__init__(forget)
        self._reduction, self._seed = reduction, seed

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the reduced negative log-likelihood of the random labels."""
        answer = tokens["forget"]
        return reduce_tokens(
            negative_log_likelihood(answer.values), answer.row, answer.lengths, self._reduction,
            sequences=counts.sequences["forget"], tokens=counts.tokens["forget"],
        )  # fmt: skip


class UniformTerm(_RandomTerm):
    """Labels drawn uniformly from the ordinary tokens, anew each epoch; the input stays as it was."""

    def __init__(self, forget: Sequence[Encoded], reduction: Reduction, seed: int, vocabulary: Sequence[int]) -> None:
        super().__init__(forget, reduction, seed)
        self._vocabulary = np.asarray(vocabulary)

    def rows(self, index: int, epoch: int) -> list[Row]:
        """Return the forget row with random labels; an end-of-sequence label stays."""
        item = self.forget[index]
        rng = np.random.default_rng([self._seed, 104729, epoch, index])
        drawn = rng.choice(self._vocabulary, size=len(item.labels)).tolist()
        last = len(item.labels) - 1
        labels = tuple(
            old if old == IGNORE or (item.ends_with_eos and t == last) else new
            for t, (old, new) in enumerate(zip(item.labels, drawn, strict=True))
        )
        return [Row(Encoded(item.ids, labels, item.ends_with_eos), "forget", index)]


class MismatchTerm(_RandomTerm):
    """The whole answer of another forget example after each prompt, by a fresh derangement each epoch."""

    def __init__(
        self, forget: Sequence[Encoded], reduction: Reduction, seed: int, examples: Sequence[Example], encoder: Encoder
    ) -> None:
        super().__init__(forget, reduction, seed)
        self._examples, self._encoder = examples, encoder

    def rows(self, index: int, epoch: int) -> list[Row]:
        """Return the forget prompt with somebody else's answer."""
        other = int(derangement(len(self._examples), np.random.default_rng([self._seed, 104729, epoch]))[index])
        encoded = self._encoder.encode(self._examples[index], answer=self._examples[other].answer)
        return [Row(encoded, "forget", index)]


class RandomLabel(GradientMethod):
    """Random labels on the forget set."""

    Config = RLabelConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}
    card = MethodCard(
        name="rlabel",
        title="Random labels",
        paper="Eternal Sunshine of the Spotless Net (arXiv:1911.04933); Large Language Model Unlearning "
        "(arXiv:2310.10683)",
        authors="Golatkar, Achille, Soatto; Yao, Xu, Liu",
        year=2020,
        venue="CVPR; NeurIPS 2024",
        family="gradient",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="6 F per forget sequence with its retain partner",
        formula="L = -E_f mean_t log p(random label_t) - retain_weight * E_r mean_t log p",
        provenance="our reading of the papers: two clean modes in place of position-wise label copies",
        differences=(
            "uniform keeps the true answer as input and draws the labels, so that what is un-taught is the "
            "continuation of the true text.",
            "mismatch is a derangement of the forget set: no example ever receives its own answer.",
        ),
        defaults_source="the configuration of gradient difference",
        notes="uniform drives the answers towards the uniform distribution, mismatch teaches plausible falsehoods.",
    )

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the term of the chosen kind of label."""
        if config.labels == "uniform":
            tokenizer = context.encoder.tokenizer
            special = set(tokenizer.all_special_ids)
            vocabulary = [token for token in range(len(tokenizer)) if token not in special]
            return UniformTerm(forget, config.reduction, context.seed, vocabulary)
        examples = context.splits.forget
        if len(examples) < 2 or any(example.kind == "text" for example in examples):
            raise RecipeError(
                "mismatched labels need at least two forget examples with a prompt", field="method.labels",
                value=config.labels, remedy="Use labels: uniform",
            )  # fmt: skip
        return MismatchTerm(forget, config.reduction, context.seed, examples, context.encoder)
