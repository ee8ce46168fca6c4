# SPDX-License-Identifier: Apache-2.0
"""Signum: steps by the sign of the momentum, the control against which clipped second-order steps are judged."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from expunge.optim.clipped import ClippedOptimizer, Parameters, moment


class Signum(ClippedOptimizer):
    """Moves every weight by -lr * sign(m), m being the running average of the gradient.

    Args:
        params: parameters or groups of them.
        lr: learning rate, the distance each weight goes per step.
        momentum: decay of m.
        weight_decay: decoupled decay.

    Source: Bernstein et al., ICML 2018, "signSGD" (arXiv:1802.04434), algorithm 2, with decoupled decay.
    """

    def __init__(self, params: Parameters, lr: float, *, momentum: float = 0.9, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return moment(state, "exp_avg", gradient).lerp_(gradient, 1.0 - group["momentum"]).sign()
