# SPDX-License-Identifier: Apache-2.0
"""Scores by which weights are chosen to move or to be pruned, and what they are computed from.

Shape suffixes: B batch rows, T tokens, O output features, I input features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def wagle(
    weight: Tensor, forget_gradient: Tensor, retain_gradient: Tensor, *, mu: float, signed: bool = False
) -> Tensor:
    """Return how much each weight serves the forget loss at the retain loss's optimum, same shape, float32.

    (theta - g_r / mu) g_f, or its magnitude. For large mu it is the saliency |theta g_f|; for small mu it ranks by
    |g_r g_f|.

    Args:
        weight: theta.
        forget_gradient: g_f, mean over batches of the gradient of the forget loss.
        retain_gradient: g_r, the same of the retain loss.
        mu: curvature of the retain loss, taken equal for all weights; its estimate is
            `GradientStatistics.mean_square` of the retain gradients.
        signed: keep the sign, as the paper does; the released code ranks by magnitude.

    Source: Jia et al., NeurIPS 2024, "WAGLE" (arXiv:2410.17509).
    """
    values = (weight.float() - retain_gradient.float() / mu) * forget_gradient.float()
    return values if signed else values.abs()


def magnitude(weight: Tensor) -> Tensor:
    """Return |theta|, same shape, float32."""
    return weight.detach().float().abs()


def wanda(weight_OI: Tensor, input_norm_I: Tensor) -> Tensor:
    """Return |W| times the L2 norm of the input each weight multiplies, [O, I] float32; compared within a row.

    Source: Sun et al., ICLR 2024, "A Simple and Effective Pruning Approach" (arXiv:2306.11695), eq. 1.
    """
    return weight_OI.detach().float().abs() * input_norm_I.float()


def random_scores(name: str, shape: Sequence[int], *, seed: int) -> Tensor:
    """Return uniform scores in [0, 1) that depend on the parameter's name and the seed only, float32."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(tuple(shape), generator=generator)


@dataclass(frozen=True, slots=True)
class GradientStatistics:
    """Gradients of some batches.

    Attributes:
        mean: by parameter name, mean over batches, float32 on the CPU.
        mean_square: mean over batches and weights of the squared gradient; with batches of one sequence, the mean
            diagonal of the empirical Fisher matrix.
        batches: how many there were.
    """

    mean: Mapping[str, Tensor]
    mean_square: float
    batches: int


def gradient_statistics(parameters: Mapping[str, nn.Parameter], losses: Iterable[Tensor]) -> GradientStatistics:
    """Return the gradient statistics of scalar losses, one per batch; `.grad` is not touched.

    Args:
        parameters: by name; all must require gradients.
        losses: best a generator that computes each loss when asked for, so that one graph is alive at a time.

    Raises:
        ValueError: if there is no loss.
    """
    sums = {name: torch.zeros(p.shape, dtype=torch.float32) for name, p in parameters.items()}
    squares, batches = 0.0, 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                value = gradient.detach().float().cpu()
                sums[name] += value
                squares += float(value.square().sum(dtype=torch.float64))
        batches += 1
    if batches == 0:
        raise ValueError("gradient statistics need at least one batch")
    total = sum(value.numel() for value in sums.values())
    mean = {name: value.div_(batches) for name, value in sums.items()}
    return GradientStatistics(mean, squares / (batches * max(1, total)), batches)


def linear_layers(module: nn.Module, *, without: Collection[nn.Module] = ()) -> dict[str, nn.Linear]:
    """Return the linear layers by name, except those in `without` (as a rule the output head)."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not any(layer is other for other in without)
    }


def linear_weights(module: nn.Module, *, without: Collection[nn.Module] = ()) -> dict[str, nn.Parameter]:
    """Return the weights of the linear layers by parameter name; see `linear_layers`."""
    wanted = {f"{name}.weight" for name in linear_layers(module, without=without)}
    return {name: parameter for name, parameter in module.named_parameters() if name in wanted}


class InputNorms:
    """Measures the L2 norm of every input feature of linear layers over the real tokens of some forward passes.

    Use it as a context manager, and call `observe` before each forward.

    Args:
        layers: by name; their inputs must be [B, T, I].
    """

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        self._layers = layers
        self._squares = {name: torch.zeros(layer.in_features) for name, layer in layers.items()}
        self._mask: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def observe(self, attention_mask_BT: Tensor) -> None:
        """Say which positions of the next forward are real tokens (1) and which are padding (0)."""
        self._mask = attention_mask_BT.bool()

    def norms(self) -> dict[str, Tensor]:
        """Return the norms so far by layer, [I] float32."""
        return {name: value.sqrt() for name, value in self._squares.items()}

    def __enter__(self) -> InputNorms:
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x_BTI = inputs[0].detach()
            if self._mask is None or x_BTI.shape[:-1] != self._mask.shape:
                raise ValueError(
                    f"{name} reads {tuple(x_BTI.shape)}: call observe() with a mask of its batch and length"
                )
            self._squares[name] += x_BTI[self._mask].float().square().sum(0).cpu()

        return hook
