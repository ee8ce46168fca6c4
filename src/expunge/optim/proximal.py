# SPDX-License-Identifier: Apache-2.0
"""An l1 penalty as a step of its own: soft thresholding after the optimiser moved the weights.

Through Adam, a penalty's subgradient becomes a step of constant size that circles 0 without reaching it; the proximal
step puts small weights at exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def soft_threshold(values: Tensor, amount: float) -> Tensor:
    """Return values moved towards 0 by `amount`, and 0 where they would pass it: the proximal map of amount * |x|."""
    return values.sign() * (values.abs() - amount).clamp(min=0.0)


def l1_weight(start: float, epoch: int, *, epochs: int, free_epochs: int = 0) -> float:
    """Return the penalty's weight in an epoch: it falls linearly and is 0 in the last `free_epochs`.

    Args:
        start: weight in the first epoch.
        epoch: 0 is the first.
        epochs: T, of the whole run.
        free_epochs: F, at the end of the run, without penalty; if equal to `epochs` the weight is constant.

    Source: released code of Jia et al., NeurIPS 2023, "Model Sparsity Can Simplify Machine Unlearning"
        (arXiv:2304.04934): start * (1 - epoch / (T - F)) for epoch < T - F.
    """
    if free_epochs == epochs:
        return start
    falling = epochs - free_epochs
    return start * (1.0 - epoch / falling) if epoch < falling else 0.0


class ProximalL1:
    """Soft-thresholds parameters by learning rate times `weight` after each step of an optimiser.

    Args:
        parameters: which ones; as a rule the linear layers, not embeddings, head, norms and biases.
        weight: of the penalty; may be set again at any time.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight: float) -> None:
        self._parameters = list(parameters)
        self.weight = weight

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let every step of `optimizer` end with the threshold, at its group's learning rate."""
        optimizer.register_step_post_hook(self._threshold)

    @torch.no_grad()
    def _threshold(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        chosen = {id(p) for p in self._parameters}
        for group in optimizer.param_groups:
            amount = group["lr"] * self.weight
            if amount == 0.0:
                continue
            for p in group["params"]:
                if id(p) in chosen:
                    p.copy_(soft_threshold(p, amount))
