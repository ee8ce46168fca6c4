# SPDX-License-Identifier: Apache-2.0
"""The optimiser of SOUL as its released code runs it, which is close to steps of a fixed size by sign."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from expunge.optim.clipped import ClippedOptimizer, Parameters, moment


class Soul(ClippedOptimizer):
    """Moves by -lr * clip(m / (rho * B * h + eps), 1), h being the running average of the gradient's own square.

    What sets it apart from Sophia: h takes the unlearning gradient of every step instead of a sampled-label gradient
    now and then; m takes each gradient twice; B stays 5120 whatever the batch. With clipped gradients nearly every
    weight is cut to the full rate, so the learning rate is the distance each weight goes per step.

    Args:
        params: parameters or groups of them.
        lr: learning rate; published runs use 5e-6 on bfloat16 weights, where most such steps round away.
        betas: decay of m (applied twice) and of h.
        rho: scale of the curvature.
        curvature_batch: B.
        eps: added to the denominator.
        weight_decay: decoupled decay.

    Source: released code of Jia et al., EMNLP 2024, "SOUL" (arXiv:2404.18239).
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        rho: float = 0.04,
        curvature_batch: int = 5120,
        eps: float = 1e-15,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "rho": rho, "curvature_batch": curvature_batch, "eps": eps,
            "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def _direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        beta1, beta2 = group["betas"]
        # Two updates with the same gradient are one with the squared decay.
        average = moment(state, "exp_avg", gradient).mul_(beta1**2).add_(gradient, alpha=1.0 - beta1**2)
        hessian = moment(state, "hessian", gradient).mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        denominator: Tensor = (hessian * (group["rho"] * group["curvature_batch"])).add_(group["eps"])
        return (average / denominator).clamp_(-1.0, 1.0)
