# SPDX-License-Identifier: Apache-2.0
"""Wrappers that combine the forget gradient and the retain gradient otherwise than by adding them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from expunge.errors import RecipeError
from expunge.optim.rules import FORGET, RETAIN, Backward, GradientRule, Gradients, combine, dot, has, put, take


def gru(forget: Gradients, retain: Gradients) -> Gradients:
    """Return the forget gradient without what would raise the retain loss: nearest to it with <., retain> >= 0.

    Source: Wang et al., ICML 2025, "GRU: Mitigating the Trade-off between Unlearning and Retention"
        (arXiv:2503.09117): g_u - min(0, <g_u, g_r>) g_r / |g_r|^2.
    """
    inner = dot(forget, retain)
    return combine(forget, retain, alpha=-inner / dot(retain, retain)) if inner < 0.0 else forget


def blur(forget: Gradients, retain: Gradients, *, gamma: float) -> Gradients:
    """Return the direction nearest to the retain gradient whose product with the forget gradient is gamma |g_f|^2.

    Unlearning is the inner problem: each step lowers the forget loss by a fixed share of what its own gradient step
    would, and otherwise serves the retain loss.

    Source: Reisizadeh et al., EACL 2026, "BLUR" (arXiv:2506.08164): g_r + (gamma - <g_r, g_f> / |g_f|^2) g_f.
    """
    square = dot(forget, forget)
    return retain if square == 0.0 else combine(retain, forget, alpha=gamma - dot(retain, forget) / square)


class _Surgery(GradientRule):
    """A rule that needs the two gradients apart, each over the whole step."""

    #: Its name in a recipe.
    name: str

    def gradients(self, backward: Backward, parameters: Sequence[nn.Parameter], *, step: int) -> dict[str, float]:
        """See `GradientRule.gradients`.

        Raises:
            RecipeError: if a step has only one of the two terms.
        """
        del step
        losses = backward(FORGET)
        forget = take(parameters)
        for missing, parts in (("forget", FORGET), ("retain", RETAIN)):
            if has(losses, parts):
                continue
            raise RecipeError(
                f"the wrapper {self.name} needs a forget term and a retain term in every step, and a step has no "
                f"{missing} term", field="training.wrapper.name", value=self.name,
                remedy="Set method.retain to nll or kl, or choose a method whose steps hold both",
            )  # fmt: skip
        backward(RETAIN)
        put(parameters, self.combined(forget, take(parameters)))
        return losses

    def combined(self, forget: Gradients, retain: Gradients) -> Gradients:
        """Return the step's gradient."""
        raise NotImplementedError


class Gru(_Surgery):
    """Moves along the forget gradient, rectified by the retain gradient, which adds nothing of its own.

    Args:
        average: decay of a running average that takes the retain gradient's place; 0 uses each step's own.
    """

    name = "gru"

    def __init__(self, *, average: float) -> None:
        self._average = average
        self._running: Gradients = []

    def combined(self, forget: Gradients, retain: Gradients) -> Gradients:
        """Return the rectified gradient."""
        if self._average:
            fresh: Gradients = [None if g is None else (1.0 - self._average) * g for g in retain]
            self._running = combine(fresh, self._running, alpha=self._average) if self._running else retain
            retain = self._running
        return gru(forget, retain)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running retain gradient."""
        return {str(i): g for i, g in enumerate(self._running) if g is not None} | {
            "length": torch.tensor(len(self._running))
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore it."""
        self._running = [state.get(str(i)) for i in range(int(state["length"]))]


class Blur(_Surgery):
    """Moves along the retain gradient, corrected so that the forget loss falls at a fixed rate.

    Args:
        gamma: share of the forget gradient's own descent.
    """

    name = "blur"

    def __init__(self, *, gamma: float) -> None:
        self._gamma = gamma

    def combined(self, forget: Gradients, retain: Gradients) -> Gradients:
        """Return the corrected retain gradient."""
        return blur(forget, retain, gamma=self._gamma)
