# SPDX-License-Identifier: Apache-2.0
"""Token-weighted gradient ascents: each token's ascent fades by a weight that is held constant in the backward pass.

Shape suffixes: N labelled tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def wga(logp_N: Tensor, *, beta: float) -> Tensor:
    """Return weighted gradient ascent, [N]: sg(p^beta) log p.

    Its gradient on the label logit is p^beta (1 - p), which vanishes as the token becomes unlikely.

    Args:
        logp_N: log-probability of each labelled token, nats.
        beta: exponent of the weight; 0 is plain gradient ascent.

    Source: Wang et al., ICLR 2025, "Rethinking LLM Unlearning Objectives" (arXiv:2502.19301), WGA.
    """
    return (beta * logp_N.detach()).exp() * logp_N


def satimp(logp_N: Tensor, *, beta1: float, beta2: float) -> Tensor:
    """Return ascent weighted by saturation and importance, [N]: sg(p^beta1 (1 - p)^beta2) log p.

    Args:
        logp_N: log-probability of each labelled token, nats.
        beta1: saturation exponent; large values leave tokens alone that are already unlikely.
        beta2: importance exponent; large values leave tokens alone that are nearly certain.

    Source: Yang et al., ICML 2025, "Exploring Criteria of Loss Reweighting" (arXiv:2505.11953), SatImp.
    """
    frozen_N = logp_N.detach()
    # Rounding can put log p a hair above 0, and a negative number has no fractional power.
    rest_N = (-torch.expm1(frozen_N)).clamp(min=0.0)
    return (beta1 * frozen_N).exp() * rest_N.pow(beta2) * logp_N


def tnpo(logp_N: Tensor, reference_logp_N: Tensor, *, beta: float) -> Tensor:
    """Return the negative-preference loss of each token by itself, [N]: (2/beta) log(1 + (p / p_ref)^beta).

    Its gradient is that of the published form sg(w) log p with w = 2 p^beta / (p^beta + p_ref^beta); unlike that form
    the loss is a function of the model alone, is positive and falls whenever p falls.

    Args:
        logp_N: log-probability of each labelled token, nats.
        reference_logp_N: the same under the frozen original.
        beta: inverse temperature; the published setting is 4.

    Source: Wang et al., ICLR 2025 (arXiv:2502.19301), token-wise NPO; the released code adds 1e-5 to w's denominator.
    """
    return -(2.0 / beta) * logsigmoid(-beta * (logp_N - reference_logp_N))


def wtnpo(logp_N: Tensor, reference_logp_N: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Return ascent under both weights, [N]: sg(p^alpha w) log p with the w of `tnpo`.

    Args:
        logp_N: log-probability of each labelled token, nats.
        reference_logp_N: the same under the frozen original.
        alpha: exponent of the confidence weight; 0 leaves the gradient of `tnpo`.
        beta: inverse temperature of w; the released code fixes it at 0.1.

    Source: Wang et al., ICLR 2025 (arXiv:2502.19301), weighted token-wise NPO.
    """
    frozen_N = logp_N.detach()
    weight_N = 2.0 * torch.sigmoid(beta * (frozen_N - reference_logp_N))
    return (alpha * frozen_N).exp() * weight_N * logp_N
