# SPDX-License-Identifier: Apache-2.0
"""Unlearning by an f-divergence between a refusal and the forget answer, in its variational form.

For a convex f, D_f(P || Q) = sup_g E_P[g] - E_Q[f*(g)], where f*(t) = sup_u (u t - f(u)). The loss puts the mean
probability v that the model gives to an answer through g, an increasing map onto the domain of f*:

=================  =========================================  =======================  =====================
divergence         f(u)                                       g(v)                     f*(t)
=================  =========================================  =======================  =====================
total_variation    |u - 1| / 2                                tanh(v) / 2              t
kl                 u log u                                    v                        exp(t - 1)
jensen_shannon     u log u - (u + 1) log((u + 1) / 2)         log 2 - log(1 + e^-v)    -log(2 - e^t)
pearson            (u - 1)^2                                  v                        t^2 / 4 + t
=================  =========================================  =======================  =====================

g and f* are those of Nowozin et al., NeurIPS 2016, "f-GAN" (arXiv:1606.00709), checked against f by
the tests. Shape suffixes: R sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Divergence = Literal["total_variation", "kl", "jensen_shannon", "pearson"]

_ACTIVATION: Mapping[str, Callable[[Tensor], Tensor]] = {
    "total_variation": lambda v: torch.tanh(v) / 2,
    "kl": lambda v: v,
    "jensen_shannon": lambda v: math.log(2) - softplus(-v),
    "pearson": lambda v: v,
}
_CONJUGATE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "total_variation": lambda t: t,
    "kl": lambda t: torch.exp(t - 1),
    "jensen_shannon": lambda t: -torch.log(2 - torch.exp(t)),
    "pearson": lambda t: t.square() / 4 + t,
}


def activation(values: Tensor, divergence: Divergence) -> Tensor:
    """Return g of the table above, of the same shape."""
    return _ACTIVATION[divergence](values)


def conjugate(values: Tensor, divergence: Divergence) -> Tensor:
    """Return f* of the table above, of the same shape; `values` must lie in its domain."""
    return _CONJUGATE[divergence](values)


def flat(forget_probability_R: Tensor, refusal_probability_R: Tensor, *, divergence: Divergence) -> Tensor:
    """Return f*(g(P forget)) - g(P refusal), [R]: it falls as the refusal gains and the forget answer loses.

    Args:
        forget_probability_R: mean probability of the tokens of each forget answer, 0..1.
        refusal_probability_R: the same of the refusal to the same prompt.
        divergence: which f.

    Source: Wang et al., ICLR 2025, "LLM Unlearning via Loss Adjustment with Only Forget Data" (arXiv:2410.11143).
        Their code takes the mean over the padded length and over the batch before g; here it is per sequence, over
        its labelled tokens.
    """
    refusal_R = activation(refusal_probability_R, divergence)
    return conjugate(activation(forget_probability_R, divergence), divergence) - refusal_R
