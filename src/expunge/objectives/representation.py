# SPDX-License-Identifier: Apache-2.0
"""Losses on the hidden states of one decoder block: misdirect those of forget texts, hold those of retain texts.

Every loss is per token, float32; `reduction.reduce_tokens` takes the mean over real tokens.

Shape suffixes: N tokens of one role, T tokens of one sequence, D hidden width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: Entries of a control vector before it is scaled to length 1. Two `uniform` ones have an expected cosine of 3/4, for
#: all their entries are positive; two `gaussian` ones are nearly orthogonal.
Distribution = Literal["uniform", "gaussian"]

#: `sum`: the squared Euclidean norm, as papers write it; `mean`: its mean over the D entries, as in released code.
Distance = Literal["sum", "mean"]

#: `paper`: length of the mean state of a sequence; `official`: mean of the lengths of its states.
NormMode = Literal["paper", "official"]


def control_vector(width: int, *, distribution: Distribution, generator: torch.Generator) -> Tensor:
    """Return a random direction of length 1, [D] float32.

    Args:
        width: D.
        distribution: of its entries, before scaling.
        generator: the only source of randomness.

    Source: Li et al., ICML 2024, "The WMDP Benchmark" (arXiv:2403.03218), section 4: u with entries from U[0, 1).
    """
    draw = torch.rand if distribution == "uniform" else torch.randn
    vector_D = draw(width, generator=generator, dtype=torch.float64)
    unit_D: Tensor = vector_D / vector_D.norm()
    return unit_D.float()


def squared_distance(states_ND: Tensor, targets_ND: Tensor, *, distance: Distance) -> Tensor:
    """Return the squared distance of every state from its target, [N] float32; the targets take no gradient."""
    square_ND = (states_ND.float() - targets_ND.detach().float()).square()
    return square_ND.sum(-1) if distance == "sum" else square_ND.mean(-1)


def rmu_forget(states_ND: Tensor, control_ND: Tensor, coefficient_N: Tensor, *, distance: Distance) -> Tensor:
    """Return ||h - c u||^2 per token of the forget set, [N].

    Args:
        states_ND: hidden states of the model.
        control_ND: the unit direction u for each token.
        coefficient_N: c for each token: the length the state is steered to.
        distance: squared norm, or its mean over the width.

    Source: Li et al., ICML 2024 (arXiv:2403.03218), equation of the forget loss.
    """
    return squared_distance(states_ND, coefficient_N[:, None] * control_ND, distance=distance)


def rmu_retain(states_ND: Tensor, original_ND: Tensor, *, distance: Distance) -> Tensor:
    """Return ||h - h_original||^2 per token of the retain set, [N].

    Source: Li et al., ICML 2024 (arXiv:2403.03218), equation of the retain loss.
    """
    return squared_distance(states_ND, original_ND, distance=distance)


def adaptive_coefficient(original_TD: Tensor, *, beta: float, mode: NormMode) -> float:
    """Return the length a sequence's states are steered to: beta times a length of its original states.

    Args:
        original_TD: hidden states of the original model on the sequence, without padding.
        beta: factor.
        mode: which length; they differ as soon as two states point in different directions.

    Source: Dang et al., AAAI 2025, "On Effects of Steering Latent Representation for Large Language Model Unlearning"
        (arXiv:2408.06223), the adaptive coefficient.
    """
    states = original_TD.double()
    length = states.mean(0).norm() if mode == "paper" else states.norm(dim=-1).mean()
    return beta * float(length)


def expert_direction(novice_D: Tensor, expert_D: Tensor) -> Tensor:
    """Return the direction of length 1 from an expert's state to a novice's, [D] float32.

    Raises:
        ValueError: if the two states are the same.
    """
    difference = novice_D.double() - expert_D.double()
    length = difference.norm()
    if not float(length) > 0:
        raise ValueError("the two prompts give the same state: there is no direction between them")
    unit_D: Tensor = difference / length
    return unit_D.float()


def cut_target(original_ND: Tensor, direction_D: Tensor, coefficient: float) -> Tensor:
    """Return h_original + c v per token of the forget set, [N, D].

    Source: first release of the WMDP benchmark's code, the method named CUT, replaced by RMU in April 2024.
    """
    return original_ND.float() + coefficient * direction_D.float()
