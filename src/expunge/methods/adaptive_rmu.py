# SPDX-License-Identifier: Apache-2.0
"""Adaptive representation misdirection: how far forget states are sent follows from how long they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.base import MethodContext
from expunge.methods.reading import Plan
from expunge.methods.representation import WMDP_TRAINING, RepresentationConfig, RepresentationMethod, Sets, Steering
from expunge.methods.topics import Topics, control_vectors
from expunge.objectives.representation import Distribution, NormMode, adaptive_coefficient
from expunge.signals.head import unwrap
from expunge.signals.hidden import HiddenCache
from expunge.training.task import Row


class AdaptiveRMUConfig(RepresentationConfig):
    """Adaptive representation misdirection."""

    name: Literal["adaptive_rmu"] = "adaptive_rmu"
    beta: float = Field(5.0, ge=0, description="length of the target over the length of the original state")
    variant: NormMode = Field(
        "paper",
        description="paper: a length per forget sequence, that of its mean state; official: one per topic, the mean "
        "over its sequences of the mean length of their states",
    )
    control: Distribution = Field("uniform", description="entries of the control vector before scaling")


class ScaledDirection(Steering):
    """beta times a length of the original states, along the topic's direction."""

    reads_original: ClassVar[bool] = True

    def __init__(self, topics: Topics, controls: Mapping[str, Tensor], *, beta: float, mode: NormMode) -> None:
        self._topics, self._controls, self._beta, self._mode = topics, controls, beta, mode
        self._coefficients: list[float] = []

    def prepare(self, forget: Sequence[Encoded], cache: HiddenCache, layer: int) -> None:
        """Take the coefficient of every forget sequence from the original's states."""
        found = [
            adaptive_coefficient(cache.get(layer, item), beta=self._beta, mode=self._mode) for item in forget
        ]  # fmt: skip
        if self._mode == "official":
            for topic in self._topics.names():
                members = self._topics.members(topic)
                mean = float(np.mean([found[i] for i in members]))
                for i in members:
                    found[i] = mean
        self._coefficients = found

    def target(self, row: Row, original_ND: Tensor | None) -> Tensor:
        """Return the row's coefficient times its topic's direction, [D]."""
        del original_ND
        return self._coefficients[row.index] * self._controls[self._topics.of[row.index]]

    def notes(self) -> dict[str, Any]:
        """Return the variant and the range of the coefficients."""
        found = self._coefficients
        return {"variant": self._mode, "topics": len(self._controls), "coefficient_min": min(found),
                "coefficient_mean": float(np.mean(found)), "coefficient_max": max(found)}  # fmt: skip


class AdaptiveRMU(RepresentationMethod):
    """Send forget states along a random direction, by a multiple of their own length."""

    Config = AdaptiveRMUConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {**WMDP_TRAINING, "max_steps": 500}
    card = MethodCard(
        name="adaptive_rmu",
        title="Adaptive representation misdirection",
        paper="On Effects of Steering Latent Representation for Large Language Model Unlearning (arXiv:2408.06223)",
        authors="Dang Huu-Tien, Pham, Thanh-Tung, Inoue",
        year=2025,
        venue="AAAI",
        family="representation",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="forward and backward of the blocks that train only (3 of the model's by default) per forget and retain "
        "sequence; one pass up to the block read beforehand",
        formula="L = forget_weight * E_f mean_t ||h_l - beta ||h_l^0(x_f)|| u||^2 + retain_weight * "
        "E_r mean_t ||h_l - h_l^0||^2",
        provenance="paper (variant: paper, the default) and released code (variant: official)",
        differences=(
            "The paper writes h_l(x) for the mean state of a text; the length is taken of that mean, the loss is per "
            "token as in the released code.",
            "official: the length is the original model's mean over a topic's whole forget set; the released code "
            "takes the first batch of each topic, padding included, the second topic's after one step of training.",
            "Tensors, means, topics, stored states and the weight of the retain term as in rmu; the paper's weight is "
            "1200.",
        ),
        defaults_source="paper: beta 5, learning rate 5e-5, batch 4, 500 steps (Zephyr-7B)",
        notes="Works at later blocks than rmu at a higher cost in utility. What rmu's notes say of probes and "
        "relearning holds here too; a vanishing gradient towards the input is no resistance to attacks.",
    )

    def steering(self, config: Any, context: MethodContext, sets: Sets, plan: Plan) -> Steering:
        """Return the scaled targets."""
        del plan
        width = unwrap(context.model).config.get_text_config().hidden_size
        controls = control_vectors(sets.topics, width, distribution=config.control, seed=context.seed)
        return ScaledDirection(sets.topics, controls, beta=config.beta, mode=config.variant)
