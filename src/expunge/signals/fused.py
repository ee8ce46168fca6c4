# SPDX-License-Identifier: Apache-2.0
"""Token quantities with their derivative on the logits written out, so that no logits wait for the backward pass.

Autograd keeps the logits of a chunk and makes two more tensors of their size on the way back. Here one tensor of that
size is kept at most, the derivative itself: where the head does not train it is multiplied by the head at once and
kept as [N, D]; where many positions are asked for, it is computed anew in the backward pass, a chunk at a time.

Shape suffixes: N positions, C one chunk of them, D hidden width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from expunge.objectives.likelihood import kl_divergence


class Differentiated(ABC):
    """One value per position, from its logits, its label and whatever else, with its derivative on the logits."""

    @abstractmethod
    def __call__(self, logits_CV: Tensor, labels_C: Tensor, *extra: Tensor) -> Tensor:
        """Return the values, [C] float32, in operations that autograd follows."""

    @abstractmethod
    def derivative(self, logits_CV: Tensor, labels_C: Tensor, *extra: Tensor) -> tuple[Tensor, Tensor]:
        """Return values [C] and their derivatives on the logits [C, V]; may overwrite `logits_CV`, has no graph."""


class LabelLogp(Differentiated):
    """log p(label), nats; its derivative is 1 at the label minus p."""

    def __call__(self, logits_CV: Tensor, labels_C: Tensor, *extra: Tensor) -> Tensor:
        """See `Differentiated`."""
        return logits_CV.gather(1, labels_C[:, None]).squeeze(1) - torch.logsumexp(logits_CV, dim=1)

    def derivative(self, logits_CV: Tensor, labels_C: Tensor, *extra: Tensor) -> tuple[Tensor, Tensor]:
        """See `Differentiated`."""
        label_C1 = labels_C[:, None]
        logp_CV = logits_CV.log_softmax(1)
        value_C1 = logp_CV.gather(1, label_C1)
        minus_p_CV = logp_CV.exp_().neg_()
        return value_C1.squeeze(1), minus_p_CV.scatter_add_(1, label_C1, torch.ones_like(value_C1))


@dataclass(frozen=True, slots=True)
class TeacherKL(Differentiated):
    """KL between a frozen teacher and the model, nats, at the teacher's last hidden states, [C, D].

    Attributes:
        head: the teacher's; its logits are made anew a chunk at a time.
        direction: `forward` is KL(teacher || model).
    """

    head: nn.Module
    direction: Literal["forward", "reverse"]

    def __call__(self, logits_CV: Tensor, labels_C: Tensor, *extra: Tensor) -> Tensor:
        """See `Differentiated`."""
        with torch.no_grad():
            teacher_CV = self.head(extra[0])
        return kl_divergence(logits_CV, teacher_CV, direction=self.direction)

    def derivative(self, logits_CV: Tensor, labels_C: Tensor, *extra: Tensor) -> tuple[Tensor, Tensor]:
        """See `Differentiated`: p - q forward, p (log p - log q - KL) reverse; p is the model's, q the teacher's."""
        logp_CV, logq_CV = logits_CV.log_softmax(1), self.head(extra[0]).log_softmax(1)
        if self.direction == "reverse":
            p_CV, gap_CV = logp_CV.exp(), logp_CV.sub_(logq_CV)
            value_C = (p_CV * gap_CV).sum(1)
            return value_C, gap_CV.sub_(value_C[:, None]).mul_(p_CV)
        q_CV = logq_CV.exp()
        value_C = logq_CV.sub_(logp_CV).mul_(q_CV).sum(1)
        return value_C, logp_CV.exp_().sub_(q_CV)


@dataclass(frozen=True, slots=True)
class Projection:
    """A head as this module reads it: its layer, the scale and cap of its logits (0: none), and rows of a chunk."""

    layer: nn.Linear
    scale: float
    cap: float
    chunk: int

    def logits(self, hidden_CD: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits [C, V] in float32, and the slope of the cap where there is one."""
        bias = None if self.layer.bias is None else self.layer.bias.to(weight_VD.dtype)
        logits_CV = nn.functional.linear(hidden_CD.to(weight_VD.dtype), weight_VD, bias).float()
        if self.scale != 1.0:
            logits_CV = logits_CV.mul_(self.scale)
        if not self.cap:
            return logits_CV, None
        bent_CV = logits_CV.div_(self.cap).tanh_()
        return bent_CV * self.cap, 1.0 - bent_CV.square()

    def back(self, derivative_CV: Tensor, slope_CV: Tensor | None) -> Tensor:
        """Carry derivatives back through cap and scale, in place."""
        if slope_CV is not None:
            derivative_CV.mul_(slope_CV)
        return derivative_CV if self.scale == 1.0 else derivative_CV.mul_(self.scale)


def fused(
    function: Differentiated, hidden_ND: Tensor, projection: Projection, labels_N: Tensor, extra: tuple[Tensor, ...]
) -> Tensor:
    """Return `function` of the logits at every position, [N] float32, with gradients for hidden states and head.

    Args:
        function: what is taken from the logits.
        hidden_ND: states before the head, at least one.
        projection: the head.
        labels_N: int64.
        extra: more tensors with one entry per position; they get no gradient.
    """
    layer, device = projection.layer, hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype
    values: Tensor = _Fused.apply(  # type: ignore[no-untyped-call]
        function, projection, dtype, labels_N, extra, hidden_ND, layer.weight, layer.bias
    )
    return values


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Differentiated, projection: Projection, dtype: torch.dtype, labels_N: Tensor,
        extra: tuple[Tensor, ...], hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Take the values, and what of the derivatives is kept."""
        ctx.trains = weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad)
        ctx.function, ctx.projection, ctx.dtype, ctx.extra = function, projection, dtype, extra
        narrow_VD = weight_VD.to(dtype)
        values, kept = [], []
        for hidden, labels, more in _chunks(hidden_ND, labels_N, extra, projection.chunk):
            logits, slope = projection.logits(hidden, narrow_VD)
            if ctx.trains and len(labels_N) > projection.chunk:
                values.append(function(logits, labels, *more))
                continue
            value, derivative = function.derivative(logits, labels, *more)
            del logits
            derivative = projection.back(derivative, slope).to(dtype)
            values.append(value)
            kept.append(derivative if ctx.trains else derivative @ narrow_VD)
        ctx.save_for_backward(labels_N, hidden_ND, weight_VD, bias_V, _joined(kept) if kept else None)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> Any:
        """Multiply the derivatives by the gradient of each value."""
        labels_N, hidden_ND, weight_VD, bias_V, kept = ctx.saved_tensors
        none, grad_N1 = (None,) * 5, grad_N[:, None]
        if not ctx.trains:
            return *none, (kept * grad_N1).to(hidden_ND.dtype), None, None
        narrow_VD, size = weight_VD.to(ctx.dtype), ctx.projection.chunk
        grad_ND, grad_V = torch.empty_like(hidden_ND), None if bias_V is None else torch.zeros_like(bias_V)
        grad_VD: Tensor | None = None
        for start, (hidden, labels, more) in zip(
            range(0, len(labels_N), size), _chunks(hidden_ND, labels_N, ctx.extra, size), strict=True
        ):
            grad_C1, derivative = grad_N1[start : start + size], kept
            if derivative is None:
                logits, slope = ctx.projection.logits(hidden, narrow_VD)
                derivative = ctx.projection.back(ctx.function.derivative(logits, labels, *more)[1], slope)
                derivative = derivative.to(ctx.dtype)
            grad_ND[start : start + size] = (derivative @ narrow_VD) * grad_C1
            part_VD = (derivative.T @ (hidden * grad_C1).to(ctx.dtype)).to(weight_VD.dtype)
            grad_VD = part_VD if grad_VD is None else grad_VD.add_(part_VD)
            if grad_V is not None:
                grad_V += (derivative * grad_C1).sum(0)
        return *none, grad_ND, grad_VD, grad_V


def _joined(parts: list[Tensor]) -> Tensor:
    """Return the parts as one tensor, without a copy of what is one already."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _chunks(
    hidden_ND: Tensor, labels_N: Tensor, extra: tuple[Tensor, ...], size: int
) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
    for start in range(0, len(labels_N), size):
        part = slice(start, start + size)
        yield hidden_ND[part], labels_N[part], tuple(tensor[part] for tensor in extra)
