# SPDX-License-Identifier: Apache-2.0
"""Sophia-G: momentum divided by a diagonal curvature estimate, clipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from expunge.optim.clipped import ClippedOptimizer, Parameters, moment


class Sophia(ClippedOptimizer):
    """Moves by -lr * clip(m / max(rho * h, eps), 1) with m and h running averages of gradient and curvature.

    Whoever trains calls `update_hessian` before the first step and every `hessian_every` steps after it, with the
    gradient of the mean cross-entropy on labels drawn from the model (`objectives.targets.sampled_label_nll`) in
    `.grad`, neither clipped nor kept for the step that follows.

    Neither average is corrected for its start at 0: with decay 0.99 the curvature reaches a tenth of its size after
    ten estimates, so a short run is clipped more than a long one. Read `clip_fraction`.

    Args:
        params: parameters or groups of them.
        lr: learning rate; a fully clipped step moves every weight by this much.
        betas: decay of m and of h.
        rho: scale of the curvature; tuned so that half to nine tenths of the weights are clipped.
        eps: floor of the denominator.
        weight_decay: decoupled decay.

    Source: Liu et al., ICLR 2024, "Sophia" (arXiv:2305.14342), algorithms 2 and 3. The number of tokens is part of h,
        as in the paper; the released code keeps it out of h and multiplies by it in each step.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        *,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "rho": rho, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def update_hessian(self, *, tokens: int) -> None:
        """Take B g^2 into the curvature, g being the gradients now in `.grad`.

        Args:
            tokens: B, the tokens over which the sampled-label loss was averaged.

        Raises:
            ValueError: if `tokens` is not positive.
        """
        if tokens < 1:
            raise ValueError(f"the sampled-label loss must average over at least one token, got {tokens}")
        for group in self.param_groups:
            beta2 = group["betas"][1]
            for p in group["params"]:
                if p.grad is not None:
                    hessian = moment(self.state[p], "hessian", p)
                    hessian.mul_(beta2).addcmul_(p.grad, p.grad, value=(1.0 - beta2) * tokens)

    def _direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if "hessian" not in state:
            raise RuntimeError("Sophia has no curvature yet: call update_hessian before the first step")
        average = moment(state, "exp_avg", gradient).lerp_(gradient, 1.0 - group["betas"][0])
        denominator: Tensor = (state["hessian"] * group["rho"]).clamp_(min=group["eps"])
        return (average / denominator).clamp_(-1.0, 1.0)
