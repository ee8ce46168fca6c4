# SPDX-License-Identifier: Apache-2.0
"""Which optimiser, with which constants."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OptimizerConfig(BaseModel):
    """Settings of the optimiser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["adamw"] = Field("adamw", description="adamw: Adam with decoupled weight decay")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay, on matrices only")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the first and second moment")
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
