# SPDX-License-Identifier: Apache-2.0
"""Build the wrapper a recipe names, around the model of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from expunge.errors import RecipeError
from expunge.optim.latent import LatentAttack
from expunge.optim.rules import GradientRule
from expunge.optim.smoothing import Curvature, GradientPenalty, RandomisedSmoothing, Sam, WeightAveraging
from expunge.optim.surgery import Blur, Gru
from expunge.optim.wrapper_config import WrapperConfig
from expunge.signals.head import decoder_blocks, unwrap

_RULES: Mapping[str, Callable[..., GradientRule]] = {
    "none": GradientRule,
    "sam": Sam,
    "randomised_smoothing": RandomisedSmoothing,
    "gradient_penalty": GradientPenalty,
    "curvature": Curvature,
    "weight_averaging": WeightAveraging,
    "gru": Gru,
    "blur": Blur,
}


#: Those that look at the loss a little way off, by less than a 16-bit weight can tell.
_LOOK_NEARBY = ("sam", "randomised_smoothing", "gradient_penalty", "curvature")


def build_rule(config: WrapperConfig, model: nn.Module, *, steps: int, half_precision: bool = False) -> GradientRule:
    """Return how the gradient of a step is formed.

    Args:
        config: name and constants.
        model: what is trained.
        steps: of the whole run.
        half_precision: matrices are rounded to 16 bits before they are multiplied.

    Raises:
        RecipeError: if that would round away what the wrapper looks at, the averaging would begin after the last step,
            or the model has no such decoder block.
    """
    constants = config.constants()
    if half_precision and config.name in _LOOK_NEARBY:
        raise RecipeError(
            f"{config.name} moves weights by less than 16-bit arithmetic can tell", field="training.precision",
            value="bf16", remedy="Use fp32",
        )  # fmt: skip
    if config.name == "lat":
        return _latent(model, **constants)
    if config.name == "weight_averaging" and constants["start"] > steps:
        raise RecipeError(
            f"the averaging would begin after the last of {steps} steps", field="training.wrapper.start",
            value=constants["start"], remedy=f"Use at most {steps}",
        )  # fmt: skip
    return _RULES[config.name](**constants)


def _latent(model: nn.Module, *, layer: int | None, radius: float, iterations: int, rate: float) -> LatentAttack:
    blocks = decoder_blocks(model)
    chosen = len(blocks) // 2 if layer is None else layer
    if chosen >= len(blocks):
        raise RecipeError(
            "the model has no such decoder block", field="training.wrapper.layer", value=layer,
            remedy=f"Use 0 to {len(blocks) - 1}",
        )  # fmt: skip
    return LatentAttack(unwrap(model).base_model, blocks[chosen], radius=radius, iterations=iterations, rate=rate)
