# SPDX-License-Identifier: Apache-2.0
"""Latent adversarial training: the forget loss is lowered where an attack on hidden states has just raised it.

Shape suffixes: B batch rows, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.optim.rules import FORGET, RETAIN, Backward, GradientRule, has


class LatentAttack(GradientRule):
    """Projected gradient ascent on the forget loss over additive changes of one block's output, then the step.

    Every position's change is bounded by `radius` times the norm of its hidden state, and each iteration moves it by
    `rate` times that norm along its own gradient, so that neither depends on the batch. Rows the forget loss does
    not reach stay unchanged, and the retain term is taken without any change.

    Args:
        body: the part of the model that runs once per forward pass; used to tell micro-batches apart.
        block: the decoder block whose output is changed.
        radius: bound on a change, as a share of the hidden state's norm.
        iterations: steps of the attack.
        rate: length of each, as a share of the hidden state's norm.

    Source: Sheshadri et al., 2024, "Latent Adversarial Training" (arXiv:2407.15549), untargeted form. Their attack
        follows Adam's direction in a ball of fixed radius; here both are relative to the hidden state.
    """

    def __init__(self, body: nn.Module, block: nn.Module, *, radius: float, iterations: int, rate: float) -> None:
        self._body, self._block = body, block
        self._radius, self._iterations, self._rate = radius, iterations, rate
        self._changes: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._current = -1

    def gradients(self, backward: Backward, parameters: Sequence[nn.Parameter], *, step: int) -> dict[str, float]:
        """See `GradientRule.gradients`; the forget loss reported is the one under attack."""
        del step
        self._changes, self._norms = [], []
        with self._attacked():
            for _ in range(self._iterations):
                if not has(self._run(backward), FORGET):
                    break
                for p in parameters:
                    p.grad = None
                self._ascend()
            losses = self._run(backward)
        if has(losses, RETAIN):
            backward(RETAIN)
        return losses

    def _run(self, backward: Backward) -> dict[str, float]:
        self._current = -1
        return backward(FORGET)

    @torch.no_grad()
    def _ascend(self) -> None:
        for change_BTD, norm_BT1 in zip(self._changes, self._norms, strict=True):
            gradient_BTD = change_BTD.grad
            change_BTD.grad = None
            if gradient_BTD is None:
                continue
            length_BT1 = gradient_BTD.norm(dim=-1, keepdim=True)
            unit_BTD = torch.where(length_BT1 > 0, gradient_BTD / length_BT1, torch.zeros_like(gradient_BTD))
            change_BTD += self._rate * norm_BT1 * unit_BTD
            size_BT1 = change_BTD.norm(dim=-1, keepdim=True).clamp(min=1e-30)
            change_BTD *= (self._radius * norm_BT1 / size_BT1).clamp(max=1.0)

    @contextmanager
    def _attacked(self) -> Iterator[None]:
        handles = [
            self._body.register_forward_pre_hook(self._next_batch),
            self._block.register_forward_hook(self._change),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _next_batch(self, _module: nn.Module, _inputs: Any) -> None:
        # Counted here and not at the block, which runs a second time where activations are recomputed.
        self._current += 1

    def _change(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        # Up to transformers 4 a block returned a tuple, from 5 on a tensor.
        hidden_BTD: Tensor = output[0] if isinstance(output, tuple) else output
        if self._current == len(self._changes):
            self._changes.append(torch.zeros_like(hidden_BTD, dtype=torch.float32).requires_grad_())
            self._norms.append(hidden_BTD.detach().float().norm(dim=-1, keepdim=True))
        changed_BTD = hidden_BTD + self._changes[self._current].to(hidden_BTD.dtype)
        return (changed_BTD, *output[1:]) if isinstance(output, tuple) else changed_BTD
