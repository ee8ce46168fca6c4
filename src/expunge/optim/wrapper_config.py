# SPDX-License-Identifier: Apache-2.0
"""Which wrapper turns loss parts into the gradient of a step, with which constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

WrapperName = Literal[
    "none", "sam", "randomised_smoothing", "gradient_penalty", "curvature", "weight_averaging", "gru", "blur", "lat"
]

#: What each wrapper may be given, and what it takes where nothing is given.
CONSTANTS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "sam": {"rho": 0.01},
    "randomised_smoothing": {"sigma": 1e-4, "samples": 3, "seed": 0},
    "gradient_penalty": {"rho": 0.01, "difference": 1e-2},
    "curvature": {"rho": 0.01, "radius": 0.1, "difference": 1e-2},
    "weight_averaging": {"start": 100, "every": 5},
    "gru": {"average": 0.0},
    "blur": {"gamma": 1.0},
    "lat": {"layer": None, "radius": 0.1, "iterations": 16, "rate": 0.02},
}


class WrapperConfig(BaseModel):
    """Settings of the wrapper: what is left out takes the constants of the one that `name` names.

    Once read, every constant of that wrapper has its value, and those it does not have are None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: WrapperName = Field(
        "none",
        description="none; sam: forget gradient at the worst point nearby; randomised_smoothing: its mean over noisy "
        "weights; gradient_penalty: plus rho |gradient|; curvature: plus rho |change of the gradient nearby|; "
        "weight_averaging: mean of the weights along the run; gru: without what raises the retain loss; blur: retain "
        "gradient with a fixed share of descent on the forget loss; lat: forget loss under attack on hidden states",
    )
    rho: float | None = Field(
        None, ge=0, description="sam: distance; gradient_penalty, curvature: weight of the penalty; 0.01"
    )
    sigma: float | None = Field(None, ge=0, description="randomised_smoothing: standard deviation of the noise; 1e-4")
    samples: int | None = Field(None, ge=1, description="randomised_smoothing: noisy gradients per step; 3")
    seed: int | None = Field(None, ge=0, description="randomised_smoothing: of the noise; 0")
    difference: float | None = Field(
        None, gt=0, description="gradient_penalty, curvature: length of the finite difference, in weight space; 0.01"
    )
    radius: float | None = Field(
        None, gt=0, description="curvature: how far away the gradient is compared, 0.1; lat: bound on the change of a "
        "hidden state, as a share of its norm, 0.1",
    )  # fmt: skip
    start: int | None = Field(None, ge=0, description="weight_averaging: steps before the first average; 100")
    every: int | None = Field(None, ge=1, description="weight_averaging: steps between averages; 5")
    average: float | None = Field(None, ge=0, lt=1, description="gru: decay of a running retain gradient; 0: none")
    gamma: float | None = Field(None, ge=0, description="blur: share of the forget loss's own descent kept; 1")
    layer: int | None = Field(None, ge=0, description="lat: decoder block whose output is attacked; default: middle")
    iterations: int | None = Field(None, ge=1, description="lat: steps of the attack; 16")
    rate: float | None = Field(None, gt=0, description="lat: length of a step of the attack, share of the norm; 0.02")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name = values.get("name", "none")
        constants = CONSTANTS.get(name) if isinstance(name, str) else None
        if constants is None:
            return values
        given = {key: value for key, value in values.items() if value is not None}
        known = {key for one in CONSTANTS.values() for key in one}
        for key in given:
            if key in known and key not in constants:
                has = f"which has {', '.join(sorted(constants))}" if constants else "which has none"
                raise ValueError(f"{key} is not a setting of {name}, {has}")
        return {**constants, **given}

    def constants(self) -> dict[str, Any]:
        """Return the constants of the named wrapper, by name."""
        return {key: getattr(self, key) for key in CONSTANTS[self.name]}
