# SPDX-License-Identifier: Apache-2.0
"""How far one sequence alone would move the weights: the norm of the gradient of its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.data.batching import length_buckets, pad
from expunge.data.encoding import Encoded
from expunge.signals.ghost import known, squared_norms
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
    model: nn.Module,
    items: Sequence[Encoded],
    *,
    batch_tokens: int = 1024,
    progress: Callable[[int], None] | None = None,
) -> list[GradientNorm]:
    """Return the gradient norm of the mean loss over the labelled tokens of every sequence.

    Without dropout. Parameters that are frozen count too, so that a model gives the same number whichever part of it
    was trained. Models made of known layers are measured a batch at a time (`signals.ghost`), others one sequence at
    a time; the numbers are the same, and a whole gradient is never held. Gradients that were there before are left as
    they were.

    Args:
        model: a causal language model, with or without adapters.
        items: encoded sequences, each with at least one label that can be predicted.
        batch_tokens: positions of one backward, padding included.
        progress: called with the number of sequences done after every backward.

    Raises:
        ValueError: if a sequence has nothing to predict.

    Source: Dorna et al., OpenUnlearning, 2025 (the attack on the gradient norm).
    """
    if any(item.n_labels == 0 for item in items):
        raise ValueError("every sequence needs a label after its first token")
    together = known(model)
    out: list[GradientNorm | None] = [None] * len(items)
    for bucket in _buckets(items, batch_tokens if together else 1):
        part = [items[i] for i in bucket]
        for i, norm in zip(bucket, _batched(model, part) if together else _one_by_one(model, part), strict=True):
            out[i] = norm
        if progress is not None:
            progress(len(bucket))
    return [norm for norm in out if norm is not None]


def _buckets(items: Sequence[Encoded], batch_tokens: int) -> list[list[int]]:
    return length_buckets([len(item.ids) for item in items], batch_tokens)


def _batched(model: nn.Module, items: Sequence[Encoded]) -> list[GradientNorm]:
    was_training = model.training
    model.eval()
    try:
        norms_PB = squared_norms(model, pad(items, 0).to(next(model.parameters()).device)).sqrt()
    finally:
        model.train(was_training)
    both = zip(torch.linalg.vector_norm(norms_PB, dim=0).tolist(), norms_PB.mean(0).tolist(), strict=True)
    return [GradientNorm(total, mean) for total, mean in both]


def _one_by_one(model: nn.Module, items: Sequence[Encoded]) -> list[GradientNorm]:
    scorer, out = Scorer(model), list[GradientNorm]()
    with _measuring(model) as norms:
        for item in items:
            norms.clear()
            _mean_loss(scorer, item).backward()  # type: ignore[no-untyped-call]
            found = torch.stack([norm.to(norms[0].device) for norm in norms])
            out.append(GradientNorm(float(torch.linalg.vector_norm(found)), float(found.mean())))
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
            # A sum in pairs: the norm of millions of entries in one running sum is off in its fifth digit.
            norms.append(parameter.grad.float().square().sum().sqrt())
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
