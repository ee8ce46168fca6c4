# SPDX-License-Identifier: Apache-2.0
"""Prefer plausible other answers, written by the original model itself, to the true one: altpo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoded
from expunge.data.examples import Example
from expunge.errors import InputDataError, RecipeError
from expunge.methods.base import MethodContext
from expunge.methods.gradient import ForgetTerm, GradientConfig, GradientMethod
from expunge.methods.refusal import preference_loss
from expunge.objectives.reduction import reduce_sequences
from expunge.runs import write_text
from expunge.signals.generation import sample
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts, Row

#: Rounds of sampling for questions whose samples were all empty, too long or the true answer.
ROUNDS = 6
#: What the temperature is multiplied by from round to round.
WARMER = 1.5


class AltPOConfig(GradientConfig):
    """Alternate preference optimisation."""

    name: Literal["altpo"] = "altpo"
    beta: float = Field(0.1, gt=0, description="inverse temperature")
    alternatives: int = Field(5, ge=1, description="other answers per question; an epoch shows each question with each")
    temperature: float = Field(1.0, gt=0, description="of the sampling")
    max_new_tokens: int = Field(200, ge=1, description="longest other answer, in tokens")
    instruction: str = Field(
        "Question: {question}\nAnswer: {answer}\nAnother plausible answer with other facts:",
        description="what the model is asked; {question} and {answer} are filled in",
    )

    @field_validator("instruction")
    @classmethod
    def _asks_the_question(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("must contain {question}")
        return value


class Alternatives:
    """Sampled answers to every forget question that differ from the true one.

    Args:
        config: how they are sampled.
        context: the model and the forget set.
    """

    def __init__(self, config: AltPOConfig, context: MethodContext) -> None:
        self._config, self._context = config, context
        self._examples = context.splits.forget

    def texts(self) -> list[list[str]]:
        """Return `config.alternatives` texts per forget example, from the run folder if they were sampled before.

        Raises:
            RecipeError: if the model has no other answer to some question.
        """
        path = self._path()
        if path is not None and path.exists():
            found: list[list[str]] = json.loads(path.read_text("utf-8"))
            return found
        texts = self._sampled()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(texts, ensure_ascii=False))
        return texts

    def _path(self) -> Path | None:
        context, config = self._context, self._config
        if context.folder is None:
            return None
        settings = [config.alternatives, config.temperature, config.max_new_tokens, config.instruction]
        key = repr(
            [context.model_digest, data_digest(self._examples), context.encoder.template_id, context.seed, settings]
        )
        return context.folder / "cache" / f"alternatives-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def _sampled(self) -> list[list[str]]:
        wanted = self._config.alternatives
        found: list[list[str]] = [[] for _ in self._examples]
        for number in range(ROUNDS):
            lacking = [i for i, texts in enumerate(found) for _ in range(wanted - len(texts))]
            for i, text in zip(lacking, self._round(number, lacking), strict=True):
                if self._usable(self._examples[i], text):
                    found[i].append(text)
        for example, texts in zip(self._examples, found, strict=True):
            if not texts:
                raise RecipeError(
                    f"the model gave no usable other answer to example {example.id!r} in {ROUNDS} rounds",
                    field="method.instruction", remedy="Change it, or raise method.temperature",
                )  # fmt: skip
        return [[texts[k % len(texts)] for k in range(wanted)] for texts in found]

    def _round(self, number: int, indices: Sequence[int]) -> list[str]:
        if not indices:
            return []
        config, context = self._config, self._context
        prompts = [context.encoder.prompt_ids(e, prompt=self._asked(e)) for e in (self._examples[i] for i in indices)]
        seed = np.random.SeedSequence([context.seed, 49979687, number]).generate_state(1)[0]
        room = context.encoder.max_length - max(len(prompt) for prompt in prompts)
        drawn = sample(
            context.model, context.encoder.tokenizer, prompts, max_new_tokens=min(config.max_new_tokens, room),
            temperature=config.temperature * WARMER**number, seed=int(seed),
        )  # fmt: skip
        return [one.text for one in drawn]

    def _asked(self, example: Example) -> str:
        # Not `format`: a question may hold braces of its own.
        return self._config.instruction.replace("{question}", example.prompt).replace("{answer}", example.answer)

    def _usable(self, example: Example, text: str) -> bool:
        if not text or text.casefold().split() == example.answer.casefold().split():
            return False
        try:
            encoded = self._context.encoder.encode(example, answer=text)
        except InputDataError:  # longer than the context
            return False
        return encoded.n_labels > 0


class AltPOTerm(ForgetTerm):
    """Prefers each alternative to the true answer, both measured against the original model."""

    roles: ClassVar[tuple[str, ...]] = ("alternative", "forget")
    reference_roles: ClassVar[tuple[str, ...]] = ("alternative", "forget")

    def __init__(self, forget: Sequence[Encoded], beta: float, alternatives: Sequence[Sequence[Encoded]]) -> None:
        paired = list(zip(forget, alternatives, strict=True))
        self._pairs = [(item, others[k]) for k in range(len(alternatives[0])) for item, others in paired]
        super().__init__([item for item, _ in self._pairs])
        self._beta = beta

    def rows(self, index: int, epoch: int) -> list[Row]:
        """Return the row of the alternative and that of the true answer."""
        return [Row(self._pairs[index][1], "alternative", index), *super().rows(index, epoch)]

    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return the preference loss on summed log-probabilities."""
        loss_R = preference_loss(tokens, reference, chosen="alternative", beta=self._beta)
        return reduce_sequences(loss_R, sequences=counts.sequences["forget"])


class AltPO(GradientMethod):
    """Alternate preference optimisation."""

    Config = AltPOConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 5e-5, "epochs": 2, "batch_size": 35}
    card = MethodCard(
        name="altpo",
        title="Alternate preference optimisation",
        paper="Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language Models "
        "(arXiv:2409.13474)",
        authors="Mekala, Dorna, Dubey, Lalwani, Koleczek, Rungta, Hasan, Lobo",
        year=2025,
        venue="COLING",
        family="preference",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="9 F per pair of answers with its retain partner, and five pairs per forget example and epoch; beforehand "
        "the original samples five answers per question and scores all answers once",
        formula="L = -(2/beta) E log sigma(beta [(log p_alt - log p0_alt) - (log p - log p0)]) - retain term",
        provenance="paper and released code",
        differences=(
            "The instruction is our own wording, put into the recipe's prompt template; the released one is longer "
            "and made for Llama chat models.",
            "A sampled answer that is empty, too long or the true one is drawn again at a temperature raised by half "
            "each round; the released code keeps whatever it drew.",
        ),
        defaults_source="released TOFU configuration for Llama-2-7B: beta 0.1, retain weight 1, 5 alternatives at "
        "temperature 1, learning rate 5e-5, batch 5 times 7 pairs; 2 epochs from the paper",
        notes="Alternatives are as plausible as the model can write: read a few in cache/alternatives-*.json.",
    )

    def examples_per_epoch(self, config: Any, *, forget: int, retain: int) -> int:
        """Return one per forget example and alternative."""
        del retain
        return forget * int(config.alternatives)

    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Sample the alternatives and return the preference term."""
        examples = context.splits.forget
        running = [example.id for example in examples if example.kind == "text"]
        if running or len(forget) != len(examples):
            raise RecipeError(
                "every forget example needs one question with an answer", field="data.forget",
                value=running[0] if running else None, remedy="Use a method such as npo, or data.too_long: truncate",
            )  # fmt: skip
        encode = context.encoder.encode
        texts = Alternatives(config, context).texts()
        encoded = [[encode(e, answer=text) for text in row] for e, row in zip(examples, texts, strict=True)]
        return AltPOTerm(forget, config.beta, encoded)
