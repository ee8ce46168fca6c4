# SPDX-License-Identifier: Apache-2.0
"""Settings of relearning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from expunge.attacks.base import AttackConfig
from expunge.attacks.relearn_data import On
from expunge.models.adapters import LoraSettings

How = Literal["full", "lora"]


class RelearningConfig(AttackConfig):
    """How a model is trained again."""

    on: tuple[On, ...] | None = Field(
        None, description="what is shown: forget, related, unrelated; null: all there is data for"
    )
    how: tuple[How, ...] = Field(("full", "lora"), min_length=1, description="move all weights, or a LoRA adapter")
    unit: Literal["steps", "examples"] = Field(
        "steps", description="steps: one run, measured on its way; examples: one run per budget, on so many examples"
    )
    budgets: tuple[int, ...] = Field((1, 2, 4, 8, 16, 32), min_length=1, description="points of the curve beside 0")
    learning_rates: tuple[float, ...] | Literal["auto"] = Field(
        "auto",
        description="rates tried with all weights; at each budget the best for the attacker; auto: one, 2e-5 as "
        "published, or more where the model is narrower or its weights are larger than those of a model of 7 billion",
    )
    lora_learning_rates: tuple[float, ...] | Literal["auto"] = Field(
        "auto", description="rates tried with LoRA; auto: ten times that, 2e-4 as published"
    )
    lora: LoraSettings = Field(LoraSettings(r=128, alpha=16), description="the adapter")
    batch_size: int = Field(8, ge=1, description="examples per step")
    epochs: int = Field(3, ge=1, description="passes over the examples shown, where the unit is examples")
    folds: int = Field(5, ge=2, description="parts of the forget set under `related`: one tested, the others shown")
    rotations: int = Field(1, ge=1, description="how many parts take their turn as the tested one")
    power: float = Field(
        0.05, gt=0, lt=1, description="rise of the reference's probability on what it was shown, below which nothing "
        "that stayed away counts as a finding",
    )  # fmt: skip
    measure: Literal["probability", "extraction_strength"] = Field(
        "probability", description="verdict: what E counts, the answer's probability or its extraction strength"
    )
    forgotten: float = Field(
        0.1, gt=0, lt=1, description="verdict: share of E on the forget set beyond which it counts as lost"
    )
    collateral: float = Field(0.1, gt=0, lt=1, description="verdict: the same on the retain set, for catastrophic")
    residue: float = Field(
        0.1, gt=0, lt=1, description="verdict: share of the loss that may be left after relearning, for reversible"
    )

    @model_validator(mode="after")
    def _sensible(self) -> RelearningConfig:
        if min(self.budgets) < 1 or list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError("budgets must rise, from 1 on; 0 is always measured")
        for rates in (self.learning_rates, self.lora_learning_rates):
            if rates != "auto" and (not rates or min(rates) <= 0):
                raise ValueError("learning rates must be above 0, at least one, or auto")
        if self.rotations > self.folds:
            raise ValueError("rotations must not exceed folds")
        return self

    def rates(self, how: How) -> tuple[float, ...] | Literal["auto"]:
        """Return the learning rates tried, or that they follow from the model."""
        return self.learning_rates if how == "full" else self.lora_learning_rates
