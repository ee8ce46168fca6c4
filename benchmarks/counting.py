# SPDX-License-Identifier: Apache-2.0
"""What a piece of work costs, counted instead of timed.

A block counts where its MLP runs, since a skipped block is still called. Padding counts: it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from expunge.signals.head import decoder_blocks, output_head


@dataclass(slots=True)
class Work:
    """Counted work.

    Attributes:
        forwarded: positions x decoder blocks without gradients.
        trained: positions x decoder blocks with gradients, forward and backward.
        logits: positions whose logits were computed without gradients.
        trained_logits: the same with gradients.
        forwards: calls of the first block that ran, about the number of forward passes.
        updated: parameters moved, summed over optimiser steps.
        graded: parameters that a backward pass wrote a gradient of, summed over passes.
    """

    forwarded: int = 0
    trained: int = 0
    logits: int = 0
    trained_logits: int = 0
    forwards: int = 0
    updated: int = 0
    graded: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the counts as JSON values."""
        return asdict(self)

    @property
    def blocks(self) -> int:
        """Positions x decoder blocks, a backward counted as two forwards."""
        return self.forwarded + 3 * self.trained


@contextmanager
def counted(model: nn.Module) -> Iterator[Work]:
    """Count the work of `model`, and of every model of its kind that is made meanwhile from it, such as a deep copy."""
    work, counts = Work(), dict[int, int]()

    def block(module: nn.Module, _args: Any, output: Tensor) -> None:
        positions = output.numel() // output.shape[-1]
        counts[id(module)] = counts.get(id(module), 0) + 1
        if output.requires_grad:
            work.trained += positions
        else:
            work.forwarded += positions
        work.forwards = max(counts.values())

    def head(_module: nn.Module, _args: Any, output: Tensor) -> None:
        positions = output.numel() // output.shape[-1]
        if output.requires_grad:
            work.trained_logits += positions
        else:
            work.logits += positions

    def moved(optimizer: torch.optim.Optimizer, *_rest: Any) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        work.updated += sum(p.numel() for p in held)

    def graded(parameter: Tensor) -> None:
        work.graded += parameter.numel()

    with ExitStack() as stack:
        # Deep copies share these hooks, so that a second model counts too.
        handles = [b.get_submodule("mlp").register_forward_hook(block) for b in decoder_blocks(model)]
        handles.append(output_head(model).register_forward_hook(head))
        handles.append(register_optimizer_step_pre_hook(moved))
        handles += [p.register_post_accumulate_grad_hook(graded) for p in model.parameters()]  # type: ignore[no-untyped-call]
        for handle in handles:
            stack.callback(handle.remove)
        yield work
