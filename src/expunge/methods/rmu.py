# SPDX-License-Identifier: Apache-2.0
"""Representation misdirection: forget states are sent along one random direction."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from expunge.claims import ClaimKind, MethodCard
from expunge.methods.base import MethodContext
from expunge.methods.reading import Coefficient, Plan, choose_coefficient
from expunge.methods.representation import RepresentationConfig, RepresentationMethod, Sets, Steering
from expunge.methods.topics import Topics, control_vectors
from expunge.objectives.representation import Distribution
from expunge.signals.head import unwrap
from expunge.training.task import Row


class RMUConfig(RepresentationConfig):
    """Representation misdirection for unlearning."""

    name: Literal["rmu"] = "rmu"
    coefficient: float | Literal["auto"] = Field(
        "auto", description="length c the states are sent to; auto: a multiple of their median length"
    )
    multiple: float = Field(2.5, gt=0, description="auto: c over the median length of a forget state at the block")
    control: Distribution = Field("uniform", description="entries of the control vector before scaling")


class RandomDirection(Steering):
    """One constant target per topic: c u."""

    def __init__(self, topics: Topics, controls: dict[str, Tensor], coefficient: Coefficient) -> None:
        self._topics, self._controls, self._coefficient = topics, controls, coefficient

    def target(self, row: Row, original_ND: Tensor | None) -> Tensor:
        """Return c u of the row's topic, [D]."""
        del original_ND
        return self._coefficient.value * self._controls[self._topics.of[row.index]]

    def notes(self) -> dict[str, Any]:
        """Return the coefficient and where it comes from."""
        return {**self._coefficient.notes(), "topics": len(self._controls)}


class RMU(RepresentationMethod):
    """Send forget states along a random direction while retain states stay."""

    Config = RMUConfig
    card = MethodCard(
        name="rmu",
        title="Representation misdirection (RMU)",
        paper="The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning (arXiv:2403.03218)",
        authors="Li et al.",
        year=2024,
        venue="ICML",
        family="representation",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="forward and backward of the blocks that train only (3 of the model's by default) per forget and retain "
        "sequence; one pass up to the block read beforehand",
        formula="L = forget_weight * E_f mean_t ||h_l - c u||^2 + retain_weight * E_r mean_t ||h_l - h_l^0||^2, "
        "u a random direction of length 1",
        provenance="paper; loop and defaults as in the released code of the WMDP benchmark",
        differences=(
            "Means run over real tokens; the released code averages over padding too.",
            "distance: mean divides by the width as the released code does, sum is the paper's squared norm; the "
            "ratio of the two terms is the same.",
            "Trained tensors are the output projections of the MLPs, found by name: position 6 in the block's list, "
            "as in the released code, is another tensor in Qwen, Phi, GPT-2 and GPT-NeoX. In models narrower than "
            "1024 whole blocks train (tensors).",
            "retain_weight is 10: a request has tens of steps, in which the published weights (100 to 1600 over "
            "hundreds of steps) would hold everything still.",
            "Block and coefficient are chosen from the model's own states unless given (released: block 7 and "
            "c = 6.5 for Zephyr-7B, which is 2 to 3 times the length of its forget states there).",
            "Batches mix topics, and any number of topics; the released code alternates between two.",
            "Stored states of the original take the place of a second model, and blocks below the lowest that "
            "trains run once.",
        ),
        defaults_source="released code: learning rate 5e-5, batch 4, no weight decay; 150 steps as for Zephyr-7B",
        notes="Changes few weights at a moderate depth: outputs look forgotten while probes, relearning and removing "
        "the one direction bring much back. Controls from U[0,1) share their direction (cosine 3/4 between topics); "
        "gaussian ones do not.",
    )

    def steering(self, config: Any, context: MethodContext, sets: Sets, plan: Plan) -> Steering:
        """Return the constant targets."""
        width = unwrap(context.model).config.get_text_config().hidden_size
        controls = control_vectors(sets.topics, width, distribution=config.control, seed=context.seed)
        return RandomDirection(sets.topics, controls, choose_coefficient(plan, config.coefficient, config.multiple))
