# SPDX-License-Identifier: Apache-2.0
"""Which optimiser, with which constants; which weights it may move; and the penalty that makes weights sparse."""

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
        return _filled(values, "name", "adamw", CONSTANTS)

    def constants(self) -> dict[str, Any]:
        """Return the constants of the named optimiser, by name."""
        return {key: getattr(self, key) for key in CONSTANTS[self.name]}


#: What each kind of mask may be given, and what it takes where nothing is given.
MASK_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "wagle": {"ratio": 0.95, "mu": "fisher", "signed": False, "examples": 400},
    "magnitude": {"ratio": 0.95},
    "wanda": {"ratio": 0.95, "examples": 400},
    "random": {"ratio": 0.95},
}


class MaskConfig(BaseModel):
    """Which single weights may move: those with the best scores, chosen once before the first step.

    What is left out takes the setting of the mask that `kind` names; the others are None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none", "wagle", "magnitude", "wanda", "random"] = Field(
        "none",
        description="none: all that training.trainable or a LoRA adapter lets move; wagle: by the gradients of forget "
        "and retain likelihood; magnitude: the largest; wanda: the largest times the norm of their input on the forget "
        "set, per row of each linear layer, all other weights stay; random: the control every other mask must beat",
    )
    ratio: float | None = Field(None, ge=0, le=1, description="share of the weights that may move; 0.95")
    mu: Annotated[float, Field(gt=0)] | Literal["fisher"] | None = Field(
        None,
        description="wagle: curvature of the retain loss, the same for all weights; fisher: the mean diagonal of its "
        "empirical Fisher matrix. Released configurations use 1e-6",
    )
    signed: bool | None = Field(
        None, description="wagle: rank by the signed score, as the paper does, not by its magnitude; false"
    )
    examples: int | None = Field(
        None, ge=1, description="wagle, wanda: at most this many sequences of each set are read for the scores; 400"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return _filled(values, "kind", "none", MASK_SETTINGS)


class ProximalConfig(BaseModel):
    """An l1 penalty on the linear layers (head left out), as soft thresholding after every optimiser step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(gt=0, description="a step moves every weight towards 0 by this share of the learning rate")
    free_epochs: int = Field(
        0, ge=0, description="epochs at the end without penalty; until then it falls linearly, if all: it is constant"
    )


def _filled(values: Any, key: str, default: str, settings: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return raw settings with what the chosen kind takes for those not given.

    Raises:
        ValueError: if a setting of another kind is given.
    """
    if not isinstance(values, Mapping):
        return values
    kind = values.get(key, default)
    own = settings.get(kind) if isinstance(kind, str) else None
    if own is None:
        return values
    given = {name: value for name, value in values.items() if value is not None}
    known = {name for one in settings.values() for name in one}
    for name in given:
        if name in known and name not in own:
            has = f"which has {', '.join(sorted(own))}" if own else "which has none"
            raise ValueError(f"{name} is not a setting of {kind}, {has}")
    return {**own, **given}
