# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters, through PEFT."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from expunge.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraSettings(BaseModel):
    """Shape of a low-rank adapter.

    Source: Hu et al. 2022, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    r: int = Field(8, ge=1, description="Rank of the update.")
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the adapter, while training.")
    target_modules: str | tuple[str, ...] = Field(
        "all-linear", description="`all-linear` (all but the head), one regular expression, or ends of module names."
    )


def add_lora(model: PreTrainedModel, config: LoraSettings) -> PreTrainedModel:
    """Return the model with a fresh adapter, the only part that trains; the model itself is wrapped, not copied.

    The adapter starts as the identity. Its first factor is drawn from torch's global generator: seed that first.

    Raises:
        RecipeError: if the model has an adapter already, or no module has the wanted name.
    """
    from peft import LoraConfig, get_peft_model

    if is_lora(model):
        raise RecipeError("the model has an adapter already", field="lora", remedy="Merge it first with merge_lora")
    targets = config.target_modules
    settings = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        remedy = "Use all-linear, or the ends of module names such as q_proj"
        raise RecipeError(str(error), field="lora.target_modules", value=targets, remedy=remedy) from error


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Return the plain model with the adapter added into its weights.

    Raises:
        RecipeError: if the model has no adapter.
    """
    if not is_lora(model):
        raise RecipeError("the model has no adapter to merge", field="lora", remedy="Leave the merge out")
    return model.merge_and_unload()


def is_lora(model: nn.Module) -> bool:
    """Return whether the model is wrapped by PEFT."""
    peft = sys.modules.get("peft")  # slow to import, and no model is wrapped by what was never imported
    return peft is not None and isinstance(model, peft.PeftModel)
