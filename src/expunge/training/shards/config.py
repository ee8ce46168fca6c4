# SPDX-License-Identifier: Apache-2.0
"""How a training set is split so that a part of it can leave."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.errors import RecipeError
from expunge.signals.ensemble import Aggregation
from expunge.training.config import TrainingConfig


class ShardConfig(BaseModel):
    """Shards, slices, and how the answers of the shard models are joined.

    Source: Bourtoule et al. 2021, Machine Unlearning, IEEE S&P, section IV.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: int = Field(4, ge=1, description="models, each trained on its own part of the data")
    slices: int = Field(1, ge=1, description="steps in which a shard's data is added, with a checkpoint after each")
    unit: Literal["subject", "example"] = Field(
        "subject", description="what leaves together and is therefore kept in one shard; examples without a subject "
        "are units of their own"
    )  # fmt: skip
    near_duplicates: float | None = Field(
        0.7, gt=0, le=1, description="units with texts of at least this word 3-gram overlap (Jaccard) share a shard; "
        "null: only equal texts do"
    )  # fmt: skip
    split: Literal["balanced", "subject"] = Field(
        "balanced", description="balanced: units in drawn order, into `shards` of equal size; subject: one shard for "
        "each subject, however many there are"
    )  # fmt: skip
    reserve: bool = Field(
        False, description="every shard moves only a share of the linear weights that is reserved for it"
    )
    aggregation: Aggregation = Field("mean_probability", description="how the shard models answer together")


def check_training(training: TrainingConfig, sisa: ShardConfig) -> None:
    """Raise for settings under which a stage would not follow from its plan alone.

    Raises:
        RecipeError: naming the setting.
    """
    remedies = {
        "training.max_steps": (training.max_steps, None, "Set training.epochs"),
        "training.stop.rule": (training.stop.rule, "steps", "Use steps: a stage ends where its plan says"),
        "training.mask.kind": (training.mask.kind, "none", "Use none: masks are chosen from data"),
    }
    for field, (value, wanted, remedy) in remedies.items():
        if value != wanted:
            raise RecipeError("does not go with shards", field=field, value=value, remedy=remedy)
    if sisa.aggregation == "average" and training.lora is None:
        raise RecipeError(
            "needs adapters on one frozen base", field="sisa.aggregation", value=sisa.aggregation,
            remedy="Set training.lora, or join answers with mean_probability",
        )  # fmt: skip
    if sisa.aggregation == "union" and not sisa.reserve:
        raise RecipeError("needs weights of their own for every shard", field="sisa.aggregation", value="union",
                          remedy="Set sisa.reserve, or join answers with mean_probability")  # fmt: skip
    if sisa.reserve and (training.lora is not None or training.trainable):
        raise RecipeError("excludes training.lora and training.trainable", field="sisa.reserve", value=True,
                          remedy="Reserve weights, or train adapters")  # fmt: skip
    slices = sisa.slices
    if 2 * training.epochs < slices + 1:
        raise RecipeError(
            f"with {slices} slices some stage would have no epoch (each has 2 epochs / (slices + 1))",
            field="training.epochs", value=training.epochs,
            remedy=f"Use at least {-(-(slices + 1) // 2)}, or fewer slices",
        )  # fmt: skip
