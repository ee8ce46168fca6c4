# SPDX-License-Identifier: Apache-2.0
"""From loss parts to the gradient of one optimiser step: what a wrapper is, and the arithmetic wrappers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.errors import RecipeError

#: Adds to `.grad` the gradients of the named loss parts (None: all), summed over ALL micro-batches of the step, at
#: the present weights, and returns the values of all parts the step has. Where it has none of the named ones nothing
#: is added. The gradients of weights that a mask holds still are 0 afterwards.
Backward = Callable[[Container[str] | None], dict[str, float]]

#: One tensor per parameter; None where a parameter has no gradient.
Gradients = list[Tensor | None]


class Except:
    """The loss parts other than those named."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name not in self._names


#: What protects: every retain term carries this name.
RETAIN: Container[str] = ("retain",)
#: What unlearns: everything that is not a retain term.
FORGET: Container[str] = Except("retain")


class GradientRule:
    """Turns loss parts into the gradient of one step; this one is their plain sum.

    A rule only ever asks for gradients of the whole step, so it gives the same under any split into micro-batches.
    """

    def gradients(self, backward: Backward, parameters: Sequence[nn.Parameter], *, step: int) -> dict[str, float]:
        """Leave the step's gradient in `.grad`, which is empty before, and every weight as it was.

        Args:
            backward: see `Backward`.
            parameters: those that may move.
            step: optimiser steps done before this one.

        Returns:
            The loss parts, as values, at the weights the step began with unless the rule says otherwise.
        """
        del parameters, step
        return backward(None)

    def after_step(self, parameters: Sequence[nn.Parameter], *, step: int) -> None:
        """Called when the weights have moved; `step` counts this step too."""

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Called once after the last step."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what must survive an interruption."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""


def has(losses: Mapping[str, float], parts: Container[str]) -> bool:
    """Return whether a step has any of the named parts."""
    return any(name in parts for name in losses)


def take(parameters: Sequence[nn.Parameter]) -> Gradients:
    """Return the gradients and leave `.grad` empty."""
    taken: Gradients = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return taken


def put(parameters: Sequence[nn.Parameter], gradients: Gradients) -> None:
    """Set `.grad`."""
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient


def dot(left: Gradients, right: Gradients) -> float:
    """Return the inner product over all parameters."""
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    return sum(float((a.float() * b.float()).sum()) for a, b in pairs)


def norm(gradients: Gradients) -> float:
    """Return the L2 norm over all parameters."""
    return math.sqrt(dot(gradients, gradients))


def combine(left: Gradients, right: Gradients, *, alpha: float) -> Gradients:
    """Return left + alpha * right; a missing gradient counts as zeros."""
    out: Gradients = []
    for a, b in zip(left, right, strict=True):
        if b is None:
            out.append(a)
        else:
            # What was read from a checkpoint is on the CPU.
            out.append(b * alpha if a is None else a + alpha * b.to(a.device))
    return out


@contextmanager
def moved_weights(parameters: Sequence[nn.Parameter]) -> Iterator[Callable[[Gradients, float], None]]:
    """Lend a function that puts the weights at start + alpha * direction; at the end they are back, bit for bit.

    Adding and then subtracting would not give them back: in floating point (w + e) - e is not w.

    Raises:
        RecipeError: for 16-bit weights, where such a move rounds away on most of them.
    """
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters):
        raise RecipeError(
            "moves weights by less than a 16-bit weight can hold", field="training.wrapper",
            remedy="Use training.precision: fp32",
        )  # fmt: skip
    start = [p.detach().clone() for p in parameters]

    def move(direction: Gradients, alpha: float) -> None:
        with torch.no_grad():
            for p, before, d in zip(parameters, start, direction, strict=True):
                p.copy_(before if d is None else before + alpha * d)

    try:
        yield move
    finally:
        with torch.no_grad():
            for p, before in zip(parameters, start, strict=True):
                p.copy_(before)
