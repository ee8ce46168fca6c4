# SPDX-License-Identifier: Apache-2.0
"""Losses on token log-probabilities and on token distributions.

Shape suffixes: N labelled tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def negative_log_likelihood(logp_N: Tensor) -> Tensor:
    """Return -log p of each labelled token, [N], nats."""
    return -logp_N


def gradient_ascent(logp_N: Tensor) -> Tensor:
    """Return +log p of each labelled token, [N]: minimising it raises the forget loss.

    Unbounded below; its gradient on the label logit tends to 1 as p tends to 0 and never saturates.

    Source: Jang et al., ACL 2023, "Knowledge Unlearning for Mitigating Privacy Risks", eq. 1; Yao et al., 2023.
    """
    return logp_N


def kl_divergence(
    logits_NV: Tensor, reference_logits_NV: Tensor, *, direction: Literal["forward", "reverse"] = "forward"
) -> Tensor:
    """Return the divergence between the reference's and the model's next-token distributions, [N], nats.

    `forward` is KL(reference || model), `reverse` KL(model || reference). Both inputs are logits; both are
    normalised here in float32, so adding a constant to either changes nothing.

    Source: Maini et al., 2024, "TOFU", section 4 (KL minimisation); their code takes the forward direction.
    """
    logp = torch.log_softmax(logits_NV.float(), dim=-1)
    reference_logp = torch.log_softmax(reference_logits_NV.float(), dim=-1)
    left, right = (reference_logp, logp) if direction == "forward" else (logp, reference_logp)
    return (left.exp() * (left - right)).sum(-1)
