# SPDX-License-Identifier: Apache-2.0
"""What a user may set about differentially private training, and what it cannot be combined with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from expunge.training.accounting import AccountantName

if TYPE_CHECKING:
    from expunge.training.config import TrainingConfig


class PrivacyConfig(BaseModel):
    """Differentially private steps: clipped gradients of units drawn at random, summed, with noise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float | None = Field(None, gt=0, description="wanted epsilon; the noise is found for it")
    noise_multiplier: float | None = Field(
        None, ge=0, description="noise over `max_grad_norm`, instead of `epsilon`; 0 gives no statement"
    )
    delta: float = Field(gt=0, lt=1, description="probability beside epsilon; below one over the number of units")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="the L2 norm each unit's gradient is clipped to; null: never, without noise only"
    )
    unit: Literal["sequence", "subject"] = Field(
        "sequence",
        description="what the statement is about: one training sequence, or all sequences of one subject together",
    )
    accountant: AccountantName = Field("pld", description="whose epsilon is wanted and stated; all three are printed")
    clipping: Literal["per_sample", "ghost"] = Field(
        "per_sample", description="per_sample: one backward a unit, any model; ghost: norms of a batch in one backward"
    )
    sampling: Literal["poisson"] = Field("poisson", description="each step draws each unit by a coin of its own")
    noise: Literal["seeded", "secure"] = Field(
        "seeded", description="seeded: repeatable, and void for who knows the seed; secure: from the operating system"
    )

    @field_validator("sampling", mode="before")
    @classmethod
    def _only_what_is_accounted(cls, value: Any) -> Any:
        if value != "poisson":
            raise ValueError("no accountant here bounds batches that are shuffled or of fixed size: use poisson")
        return value

    @model_validator(mode="after")
    def _one_way_to_say_how_much(self) -> PrivacyConfig:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give either epsilon or noise_multiplier")
        if self.max_grad_norm is None and self.noise_multiplier != 0:
            raise ValueError("max_grad_norm null bounds no gradient, so no noise hides one: give a norm")
        return self


def check_private(config: TrainingConfig) -> None:
    """Raise what cannot be combined with private steps: whatever else looks at the data or at exact gradients.

    Raises:
        ValueError: naming the key and the remedy.
    """
    if config.privacy is None:
        return
    refused = {
        f"wrapper {config.wrapper.name}": (config.wrapper.name != "none", "it reads gradients the accountant does not "
                                           "count; use none"),
        f"optimizer {config.optimizer.name}": (config.optimizer.name == "sophia", "its curvature is read from the data "
                                               "beside the accountant; use adamw or signum"),
        f"stop.rule {config.stop.rule}": (config.stop.rule != "steps", "it chooses by the data; use steps"),
        f"mask.kind {config.mask.kind}": (config.mask.kind != "none", "it may choose by the data; use none"),
        f"precision {config.precision}": (config.precision not in ("auto", "fp32"), "rounding would let a clipped "
                                          "gradient pass its bound; use fp32"),
    }  # fmt: skip
    if config.privacy.clipping == "ghost":
        drops = config.dropout or (config.lora is not None and config.lora.dropout > 0)
        refused["privacy.clipping ghost"] = (
            drops or config.gradient_checkpointing,
            "norm and gradient come from two passes, which dropout and gradient checkpointing make differ; use "
            "per_sample, or leave them out",
        )
    for name, (wrong, why) in refused.items():
        if wrong:
            raise ValueError(f"{name} and privacy exclude each other: {why}")
