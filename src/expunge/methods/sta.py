# SPDX-License-Identifier: Apache-2.0
"""Selective task arithmetic: only the entries of a task vector that the forget loss is sensitive to are subtracted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.methods.base import MethodContext
from expunge.methods.task_vector import Learned, TaskVectorConfig, TaskVectorMethod, spread
from expunge.models.arithmetic import Masked, TaskVector
from expunge.optim.masks import global_masks
from expunge.optim.scores import gradient_statistics
from expunge.signals.curvature import evaluating, sequence_nll
from expunge.signals.likelihood import Scorer


class STAConfig(TaskVectorConfig):
    """Selective task arithmetic."""

    name: Literal["sta"] = "sta"  # type: ignore[assignment]
    keep: float = Field(0.2, ge=0, le=1, description="share of the entries that are subtracted, the most important")
    scope: Literal["global", "tensor"] = Field("global", description="rank entries among all, or within each tensor")
    calibration: int = Field(64, ge=1, description="forget examples the gradient is taken on, evenly spaced")


def importance(gradient: Tensor, delta: Tensor) -> Tensor:
    """Return |gradient * delta| per entry, float32: the first-order change of the loss if the entry were taken out."""
    return (gradient.to(delta) * delta).abs().float()


def importance_masks(
    vector: TaskVector, gradients: Mapping[str, Tensor], *, keep: float, scope: Literal["global", "tensor"]
) -> dict[str, Tensor]:
    """Return, per parameter, True at the most important entries; equal ones are taken in order of name and position.

    Args:
        vector: the task vector.
        gradients: of the forget loss at the far end of the vector, by name.
        keep: share of entries, 0..1, rounded down.
        scope: of the ranking.
    """
    names = list(vector.names)

    def scores(name: str) -> Tensor:
        return importance(gradients[name], vector.delta(name))

    if scope == "global":
        return global_masks(names, scores, keep)
    return {name: mask for one in names for name, mask in global_masks([one], scores, keep).items()}


class STA(TaskVectorMethod):
    """Subtract the entries of a task vector that matter most to the forget loss."""

    Config = STAConfig
    card = MethodCard(
        name="sta",
        title="Selective task arithmetic (reconstruction)",
        paper="Beyond Task Vectors: Selective Task Arithmetic Based on Importance Metrics (arXiv:2411.16139)",
        authors="Tian, Lai, Wu, Shuai, Ge, Yue",
        year=2024,
        venue="arXiv preprint",
        family="arithmetic",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="that of task_vector, and one backward per calibration example",
        formula="theta = theta_0 - s (m * tau), tau = theta_forget - theta_0, m = 1 at the largest |g * tau|",
        provenance="our reconstruction from the abstract: neither code nor full text was at hand",
        differences=(
            "Everything beyond a first-order sensitivity of the loss that makes the vector sparse is our choice: the "
            "gradient's point (the far end), its data (the forget set), the share kept, the ranking.",
            "Conventions, strength and adapters as in task_vector; of an adapter the entries of its second factor are "
            "ranked.",
        ),
        defaults_source="that of task_vector; keep 0.2 is ours",
        notes="A reconstruction: do not compare its numbers with the paper's, which are on image classifiers.",
    )

    def select(self, config: Any, context: MethodContext, learned: Learned, forget: Sequence[Encoded]) -> TaskVector:
        """Return the vector without its less important entries."""
        del context
        gradients = _gradients(learned, spread(forget, config.calibration))
        masks = importance_masks(learned.vector, gradients, keep=config.keep, scope=config.scope)
        return Masked(learned.vector, masks)

    def notes(self, config: Any, vectors: Sequence[TaskVector]) -> dict[str, Any]:
        """Return the share that was kept."""
        del vectors
        return {"kept_share": config.keep, "ranked": config.scope, "reconstruction": True}


def _gradients(learned: Learned, items: Sequence[Encoded]) -> Mapping[str, Tensor]:
    """Return the gradient of the mean over sequences of the mean negative log-likelihood per token, by name."""
    parameters = {name: learned.parameters[name] for name in learned.vector.names}
    scorer = Scorer(learned.model)
    with evaluating(learned.model), _requiring(learned.model, parameters):
        return gradient_statistics(parameters, (sequence_nll(scorer, item, mean=True) for item in items)).mean


@contextmanager
def _requiring(model: nn.Module, wanted: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to the wanted parameters only, for a while."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = {id(parameter) for parameter in wanted.values()}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
