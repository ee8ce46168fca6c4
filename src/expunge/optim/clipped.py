# SPDX-License-Identifier: Apache-2.0
"""What Sophia, SOUL and Signum share: decoupled decay, then a step in which no weight moves by more than the rate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

#: What an optimiser accepts: parameters, or groups of them.
Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class ClippedOptimizer(torch.optim.Optimizer):
    """Decays by 1 - lr * weight_decay, then moves by -lr * u with every entry of u in [-1, 1]."""

    #: Entries of the last step with |u| = 1, and with u != 0.
    _counts: Tensor | None = None

    @abstractmethod
    def _direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Take the gradient into the state and return u, in a tensor of its own."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        counts: list[Tensor] = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                u = self._direction(p.grad, self.state[p], group)
                p.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"])
                counts.append(torch.stack([(u.abs() >= 1.0).sum(), u.count_nonzero()]))
        # Summed on one device and read only when asked for: a step must not wait for the accelerator.
        self._counts = torch.stack([c.to(counts[0].device) for c in counts]).sum(0) if counts else None
        return loss

    @property
    def clip_fraction(self) -> float | None:
        """Share of the moving weights whose last step was cut to the full rate; None before the first step.

        Weights whose direction is exactly 0 (masked, or rows of tokens that never occurred) are not counted.
        """
        if self._counts is None or int(self._counts[1]) == 0:
            return None
        return int(self._counts[0]) / int(self._counts[1])


def moment(state: dict[str, Any], name: str, like: Tensor) -> Tensor:
    """Return the running average `name` of a parameter's state, starting at zeros."""
    if name not in state:
        state[name] = torch.zeros_like(like, memory_format=torch.preserve_format)
    value: Tensor = state[name]
    return value
