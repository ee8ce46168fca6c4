# SPDX-License-Identifier: Apache-2.0
"""Build the optimiser of a run over the parameters that may move."""

from __future__ import annotations

import torch
from torch import nn

from expunge.optim.config import OptimizerConfig


def build_optimizer(module: nn.Module, config: OptimizerConfig, *, learning_rate: float) -> torch.optim.Optimizer:
    """Return the optimiser over every parameter that requires a gradient; biases and norms are not decayed.

    Raises:
        ValueError: if no parameter requires a gradient.
    """
    moving = [p for p in module.parameters() if p.requires_grad]
    if not moving:
        raise ValueError("no parameter may move: check `training.trainable`")
    groups = [
        {"params": [p for p in moving if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in moving if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.is_cuda for p in moving)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate, betas=config.betas, eps=config.eps, fused=fused or None,
    )  # fmt: skip
