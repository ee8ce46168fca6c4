# SPDX-License-Identifier: Apache-2.0
"""Build the optimiser of a run over the parameters that may move."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from expunge.optim.config import OptimizerConfig
from expunge.optim.signum import Signum
from expunge.optim.sophia import Sophia
from expunge.optim.soul import Soul


def build_optimizer(module: nn.Module, config: OptimizerConfig, *, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimiser over every parameter that requires a gradient; biases and norms are not decayed.

    Raises:
        ValueError: if no parameter requires a gradient.
    """
    moving = [p for p in module.parameters() if p.requires_grad]
    if not moving:
        raise ValueError("no parameter may move: check `training.trainable`")
    constants = config.constants()
    decay = constants.pop("weight_decay")
    constants.pop("hessian_every", None)  # kept by whoever calls update_hessian
    groups: list[dict[str, Any]] = [
        {"params": [p for p in moving if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in moving if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sophia":
        return Sophia(groups, learning_rate, **constants)
    if config.name == "soul":
        return Soul(groups, learning_rate, **constants)
    if config.name == "signum":
        return Signum(groups, learning_rate, **constants)
    fused = all(p.device.type in ("cpu", "cuda") for p in moving)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=fused, **constants)
