# SPDX-License-Identifier: Apache-2.0
"""How far one sequence alone would move the weights: the norm of the gradient of its loss, one backward a sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.signals.likelihood import Scorer, TokenRequest, label_logp


@dataclass(frozen=True, slots=True)
class GradientNorm:
    """Two sizes of one gradient, in float32.

    Attributes:
        total: L2 norm over all parameters together.
        tensor_mean: mean over parameter tensors of the L2 norm of each.
    """

    total: float
    tensor_mean: float


def gradient_norms(
    model: nn.Module, items: Sequence[Encoded], *, progress: Callable[[int], None] | None = None
) -> list[GradientNorm]:
    """Return the gradient norm of the mean loss over the labelled tokens of every sequence.

    Without dropout, one sequence at a time: the mean gradient of a batch says nothing of its members. Parameters that
    are frozen count too, so that a model gives the same number whichever part of it was trained. Each tensor's
    gradient is dropped as soon as it is measured; the whole gradient is never held, and gradients that were there
    before are left as they were.

    Args:
        model: a causal language model, with or without adapters.
        items: encoded sequences, each with at least one label that can be predicted.
        progress: called with 1 after every backward.

    Raises:
        ValueError: if a sequence has nothing to predict.

    Source: Dorna et al., OpenUnlearning, 2025 (the attack on the gradient norm).
    """
    if any(item.n_labels == 0 for item in items):
        raise ValueError("every sequence needs a label after its first token")
    scorer, out = Scorer(model), list[GradientNorm]()
    with _measuring(model) as norms:
        for item in items:
            norms.clear()
            _mean_loss(scorer, item).backward()  # type: ignore[no-untyped-call]
            found = torch.stack([norm.to(norms[0].device) for norm in norms])
            out.append(GradientNorm(float(torch.linalg.vector_norm(found)), float(found.mean())))
            if progress is not None:
                progress(1)
    return out


def _mean_loss(scorer: Scorer, item: Encoded) -> Tensor:
    device = next(scorer.parameters()).device
    ids = torch.tensor([item.ids], device=device)
    labels = torch.tensor([item.labels], device=device)
    request = TokenRequest(label_logp, torch.zeros(1, dtype=torch.long, device=device))
    with torch.enable_grad():
        values: Tensor = scorer(ids, torch.ones_like(ids), labels, [request])[0].values
        return -values.mean()


@contextmanager
def _measuring(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield the list that every backward adds one norm per parameter tensor to; leave the model as it was."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    before = [(p, p.requires_grad, p.grad) for p in parameters]
    was_training, norms = model.training, list[Tensor]()

    def measure(parameter: Tensor) -> None:
        if parameter.grad is not None:
            norms.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
            parameter.grad = None

    hooks = []
    try:
        model.eval()
        for parameter in parameters:
            parameter.grad = None
            parameter.requires_grad_(True)
            hooks.append(parameter.register_post_accumulate_grad_hook(measure))  # type: ignore[no-untyped-call]
        yield norms
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, wanted, gradient in before:
            parameter.requires_grad_(wanted)
            parameter.grad = gradient
        model.train(was_training)
