# SPDX-License-Identifier: Apache-2.0
"""Targets for attention maps: less, or a little more, weight on the tokens that carry facts.

Shape suffixes: N queries, H heads, T keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Below this a probability counts as zero in a logarithm: keys that the causal mask hides have exactly none.
_EPS = 1e-12


def suppressed(attention_NHT: Tensor, important_NT: Tensor, *, strength: float) -> Tensor:
    """Return a_j (1 - strength I_j) / sum_k a_k (1 - strength I_k), [N, H, T] float32.

    Important keys that held mass m keep (1 - strength) m / (1 - strength m); a row without any stays as it is.

    Args:
        attention_NHT: rows that sum to 1.
        important_NT: bool.
        strength: 0..1; 1 is possible only where each row leaves mass on other keys.

    Raises:
        ValueError: if a row would be left without any mass.

    Source: Tan et al., NeurIPS 2025 (arXiv:2510.17210), the suppressed target.
    """
    return _rescaled(attention_NHT, 1.0 - strength * important_NT.float())


def reinforced(attention_NHT: Tensor, important_NT: Tensor, *, strength: float) -> Tensor:
    """Return a_j (1 + strength I_j) / sum_k a_k (1 + strength I_k), [N, H, T] float32.

    Source: Tan et al., NeurIPS 2025 (arXiv:2510.17210) describe a target with mildly raised attention to important
        tokens; this form of it is ours.
    """
    return _rescaled(attention_NHT, 1.0 + strength * important_NT.float())


def _rescaled(attention_NHT: Tensor, factor_NT: Tensor) -> Tensor:
    scaled_NHT = attention_NHT.float() * factor_NT[:, None, :]
    mass_NH1 = scaled_NHT.sum(-1, keepdim=True)
    if bool((mass_NH1 <= 0).any()):
        raise ValueError("a row of the target is left without mass: use a strength below 1")
    return scaled_NHT / mass_NH1


def attention_kl(attention_NHT: Tensor, target_NHT: Tensor) -> Tensor:
    """Return the mean over heads of KL(attention || target) per query, [N] float32, nats; the target is fixed.

    Source: Tan et al., NeurIPS 2025 (arXiv:2510.17210): model first, as the gradient log(a / target) + 1 in its
        appendix shows.
    """
    a_NHT, target = attention_NHT.float(), target_NHT.detach().float()
    ratio_NHT = torch.log(a_NHT.clamp_min(_EPS)) - torch.log(target.clamp_min(_EPS))
    return (a_NHT * ratio_NHT).sum(-1).mean(-1)


def dynamic_balance(forget_loss: float, retain_loss: float, *, low: float = 0.2, high: float = 0.8) -> float:
    """Return the forget loss's share of both, within bounds: high while it dominates, lower as it settles.

    Source: Tan et al., NeurIPS 2025 (arXiv:2510.17210) name a dynamic weight without its rule; this rule is ours,
        its bounds are the range of their fixed weights.
    """
    total = forget_loss + retain_loss
    return high if total <= 0 else min(high, max(low, forget_loss / total))
