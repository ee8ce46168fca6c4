# SPDX-License-Identifier: Apache-2.0
"""Gradients of single sequences, and products with the Gauss-Newton matrix of the token likelihood.

Shape suffixes: N labelled tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.data.batching import pad
from expunge.data.encoding import Encoded
from expunge.signals.head import Head, body
from expunge.signals.likelihood import Scorer, TokenRequest, label_logp, labelled_hidden


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def sequence_nll(scorer: Scorer, item: Encoded, *, mean: bool) -> Tensor:
    """Return the negative log-likelihood of one sequence's labels, summed or per token, a scalar with a graph."""
    batch = pad([item], 0).to(next(scorer.parameters()).device)  # one row needs no padding
    request = TokenRequest(label_logp, torch.zeros(1, dtype=torch.long, device=batch.input_ids.device))
    values: Tensor = scorer(batch.input_ids, batch.attention_mask, batch.labels, [request])[0].values
    return -(values.mean() if mean else values.sum())


def gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of a scalar in float32, zeros where it does not depend on a parameter."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [
        torch.zeros_like(p, dtype=torch.float32) if g is None else g.float()
        for g, p in zip(found, parameters, strict=True)
    ]


class _LabelledLogits(nn.Module):
    """Logits at the labelled positions of one sequence."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._head = [Head(model)]  # shares its projection with the model: not registered a second time

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Return logits [N, V]."""
        hidden = labelled_hidden(body(self.model, input_ids, attention_mask), labels)[0]
        logits: Tensor = self._head[0](hidden)
        return logits


def labelled_logits(model: nn.Module) -> nn.Module:
    """Return the model as a module from ids, mask and labels of one sequence, each [1, T], to its logits [N, V].

    Its parameters are those of the model, under `model.`.
    """
    return _LabelledLogits(model)


def gauss_newton_product(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], vector: Sequence[Tensor], items: Sequence[Encoded], *,
    mean: bool,
) -> list[Tensor]:  # fmt: skip
    """Return G v, averaged over sequences, G = J^T (diag(p) - p p^T) J summed or averaged over a sequence's tokens.

    Args:
        model: in eval mode.
        parameters: those of v, by name.
        vector: v, one tensor per parameter.
        items: sequences, one at a time.
        mean: average over tokens instead of summing, as the loss does.

    Source: Martens, JMLR 2020, "New Insights and Perspectives on the Natural Gradient Method" (arXiv:1412.1193),
        section 8: for a softmax likelihood G is the Fisher matrix under the model's own labels.
    """
    module = labelled_logits(model)
    names = [f"model.{name}" for name in parameters]
    tangents = dict(zip(names, vector, strict=True))
    values = dict(zip(names, (p.detach() for p in parameters.values()), strict=True))
    total = [torch.zeros_like(v) for v in vector]
    for item in items:
        batch = pad([item], 0).to(next(model.parameters()).device)
        inputs = (batch.input_ids, batch.attention_mask, batch.labels)

        def logits_of(weights: dict[str, Tensor], inputs: tuple[Tensor, ...] = inputs) -> Tensor:
            out: Tensor = functional_call(module, weights, inputs)
            return out

        with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel with a forward derivative
            with torch.no_grad():
                logits_NV, change_NV = jvp(logits_of, (values,), (tangents,))  # type: ignore[misc]
            logits_with_graph_NV = module(*inputs)
        p_NV = torch.softmax(logits_NV, dim=1)
        curved_NV = p_NV * (change_NV - (p_NV * change_NV).sum(1, keepdim=True))
        scale = 1.0 / len(items) / (len(p_NV) if mean else 1)
        found = torch.autograd.grad(
            logits_with_graph_NV, list(parameters.values()), grad_outputs=curved_NV * scale, allow_unused=True
        )
        for sum_, g in zip(total, found, strict=True):
            if g is not None:
                sum_.add_(g)
    return total
