# SPDX-License-Identifier: Apache-2.0
"""Which optimiser, with which constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Decay of a running average per step.
Decay = Annotated[float, Field(ge=0, lt=1)]

#: What each optimiser may be given, and what it takes where nothing is given.
CONSTANTS: Mapping[str, Mapping[str, Any]] = {
    "adamw": {"weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8},
    "sophia": {"weight_decay": 0.1, "betas": (0.965, 0.99), "eps": 1e-12, "rho": 0.04, "hessian_every": 10},
    "soul": {"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-15, "rho": 0.04, "curvature_batch": 5120},
    "signum": {"weight_decay": 0.1, "momentum": 0.9},
}


class OptimizerConfig(BaseModel):
    """Settings of the optimiser: what is left out takes the constants of the one that `name` names.

    Once read, every constant of that optimiser has its value, and those it does not have are None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["adamw", "sophia", "soul", "signum"] = Field(
        "adamw",
        description="adamw: Adam with decoupled weight decay; sophia: momentum over a sampled-label curvature, "
        "clipped; soul: as in the released code of SOUL; signum: sign of the momentum. The last three move weights "
        "by up to the learning rate per step: begin near 1e-6",
    )
    weight_decay: float | None = Field(
        None, ge=0, description="decoupled decay, on matrices only; adamw 0.01, others 0.1"
    )
    betas: tuple[Decay, Decay] | None = Field(
        None, description="decay of the two running averages; adamw 0.9, 0.999; sophia 0.965, 0.99; soul 0.9, 0.95"
    )
    eps: float | None = Field(
        None, gt=0, description="adamw, soul: added to the denominator (1e-8, 1e-15); sophia: its floor (1e-12)"
    )
    rho: float | None = Field(None, gt=0, description="sophia, soul: scale of the curvature; 0.04")
    hessian_every: int | None = Field(None, ge=1, description="sophia: steps between curvature estimates; 10")
    curvature_batch: int | None = Field(None, ge=1, description="soul: constant in front of the curvature; 5120")
    momentum: Decay | None = Field(None, description="signum: decay of the running average; 0.9")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name = values.get("name", "adamw")
        constants = CONSTANTS.get(name) if isinstance(name, str) else None
        if constants is None:
            return values
        given = {key: value for key, value in values.items() if value is not None}
        known = {key for one in CONSTANTS.values() for key in one}
        for key in given:
            if key in known and key not in constants:
                raise ValueError(f"{key} is not a setting of {name}, which has {', '.join(sorted(constants))}")
        return {**constants, **given}

    def constants(self) -> dict[str, Any]:
        """Return the constants of the named optimiser, by name."""
        return {key: getattr(self, key) for key in CONSTANTS[self.name]}
