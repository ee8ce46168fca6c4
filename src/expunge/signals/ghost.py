# SPDX-License-Identifier: Apache-2.0
"""Gradient norms of every sequence of a batch from one backward, without forming any gradient of a weight.

The gradient of a weight matrix for one sequence is a sum of outer products g_t x_t^T over its tokens, so its squared
norm is the sum over pairs of tokens of (x_t . x_s)(g_t . g_s). Autograd gives the g alone: no parameter asks for one.

Shape suffixes: B sequences, T tokens, I and O widths of a layer, N labelled tokens of a sequence, D hidden width,
V vocabulary.

Source: Goodfellow, Efficient Per-Example Gradient Computations, 2015 (arXiv:1510.01799), for one token a row; Li et
al., Large Language Models Can Be Strong Differentially Private Learners, 2022 (arXiv:2110.05679), section 4, for
sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.data.batching import PaddedBatch
from expunge.data.encoding import IGNORE
from expunge.signals.head import CHUNK_ELEMENTS, Head, output_head, unwrap
from expunge.signals.prefix import FAMILIES

_NORMS = ("RMSNorm", "LayerNorm")


def known(model: nn.Module) -> bool:
    """Return whether norms can be had this way: a known family, and parameters in layers of known kinds only.

    Known are linear layers, embeddings, and norms with one weight per feature; adapters made of them are too.
    """
    head = output_head(model)
    if unwrap(model).config.model_type not in FAMILIES or type(head) is not nn.Linear:
        return False
    return all(_is_known(module) for module in model.modules() if any(True for _ in module.parameters(recurse=False)))


def _is_known(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Conv1D, nn.Embedding) or _is_norm(module) or _is_scaled(module)


def _is_scaled(module: nn.Module) -> bool:
    """Return whether this is an embedding of the Gemma family, times a constant."""
    return isinstance(module, nn.Embedding) and type(module).__name__.endswith("TextScaledWordEmbedding")


def _is_norm(module: nn.Module) -> bool:
    names = {name for name, _ in module.named_parameters(recurse=False)}
    return type(module).__name__.endswith(_NORMS) and {"weight"} <= names <= {"weight", "bias"}


def squared_norms(model: nn.Module, batch: PaddedBatch) -> Tensor:
    """Return the squared gradient norm of each parameter for each sequence's mean loss, [parameters, B], float32.

    Args:
        model: one that is `known`, without dropout.
        batch: padded on the right; every row has a label after its first token.
    """
    found = _Squares(batch.input_ids)
    with _frozen(model), torch.enable_grad():
        head = Head(model)
        with found.watching(model, skip=head.projection):
            states_BTD = _states(model, batch)
        gradient_BTD = torch.zeros_like(states_BTD)
        for row, labels_T in enumerate(batch.labels):
            place_N = (labels_T[1:] != IGNORE).nonzero()[:, 0]
            part = found.read_head(head, states_BTD[row, place_N].detach(), labels_T[1:][place_N], row)
            gradient_BTD[row, place_N] = part
        below = torch.autograd.grad(states_BTD, [output for _, _, output in found.embedded], gradient_BTD)
        for (module, ids_BT, _), g_BTD in zip(found.embedded, below, strict=True):
            found.embedding(module, ids_BT, g_BTD)
    return torch.stack(list(found.squares.values())).clamp_min(0.0)


def _states(model: nn.Module, batch: PaddedBatch) -> Tensor:
    """Return the last hidden states, [B, T, D]; positions are given, so that those learned have a row a sequence."""
    inner = cast(nn.Module, unwrap(model).base_model)
    place_BT = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)
    out = inner(input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=place_BT, use_cache=False)
    return cast(Tensor, out.last_hidden_state)


class _Squares:
    """Squared norms by parameter, [B] each, gathered while gradients pass by."""

    def __init__(self, ids_BT: Tensor) -> None:
        self.squares: dict[Tensor, Tensor] = {}
        self.embedded: list[tuple[nn.Embedding, Tensor, Tensor]] = []
        self._ids_BT = ids_BT
        self._head: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # by row: states [N, D], gradients at the row's own ids [N, T]
        self._tied: Tensor | None = None
        self._grams: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @contextmanager
    def watching(self, model: nn.Module, *, skip: nn.Module) -> Iterator[None]:
        """Follow every known layer but `skip` through one forward."""
        modules = [m for m in model.modules() if m is not skip and _is_known(m)]
        hooks = [m.register_forward_hook(self._embed if isinstance(m, nn.Embedding) else self._follow) for m in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _embed(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_(True)
        self.embedded.append((cast(nn.Embedding, module), args[0], leaf))
        return leaf

    def _follow(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad:
            x, take = args[0].detach(), self.norm if _is_norm(module) else self.linear
            output.register_hook(lambda g: take(module, x, g))  # type: ignore[no-untyped-call]

    def linear(self, module: nn.Module, x_BTI: Tensor, g_BTO: Tensor) -> None:
        """Take the weight and the bias of a linear layer."""
        layer, size = cast(Any, module), len(x_BTI)
        x, g = x_BTI.reshape(size, -1, x_BTI.shape[-1]).float(), g_BTO.reshape(size, -1, g_BTO.shape[-1]).float()
        self._add(layer.weight, _outer(x, g, self._gram))
        if layer.bias is not None:
            self._add(layer.bias, g.sum(1).square().sum(1))

    def norm(self, module: nn.Module, x: Tensor, g: Tensor) -> None:
        """Take the weight and the bias of a norm, whose output is affine in both, feature by feature."""
        own = dict(module.named_parameters(recurse=False))
        weight, zeros = own["weight"], {name: torch.zeros_like(value) for name, value in own.items()}
        with torch.no_grad():
            one = torch.func.functional_call(module, zeros | {"weight": torch.ones_like(weight)}, (x,))
            unit = (one - torch.func.functional_call(module, zeros, (x,))).float()
        for name, per_token in (("weight", g.float() * unit), ("bias", g.float())):
            if name in own:
                shape = own[name].shape
                self._add(own[name], per_token.reshape(len(g), -1, *shape).sum(1).flatten(1).square().sum(1))

    def embedding(self, module: nn.Embedding, ids_BT: Tensor, g_BTD: Tensor) -> None:
        """Take an embedding: only the pairs of positions with the same token count."""
        g = g_BTD.float() * (float(cast(Any, module).embed_scale) if _is_scaled(module) else 1.0)
        if module.padding_idx is not None:
            g = g * (ids_BT != module.padding_idx)[..., None]
        same_BTT = (ids_BT[:, :, None] == ids_BT[:, None, :]).float()
        square_B = (_pairs(g) * same_BTT).sum((1, 2))
        if module.weight is self._tied:
            # The head's gradient H and the embedding's E are one: |H + E|^2 = |H|^2 + |E|^2 + 2 <H, E>.
            for row, (states_ND, at_NT) in self._head.items():
                square_B[row] += 2 * (states_ND @ g[row].T * at_NT).sum()
        self._add(module.weight, square_B)

    def read_head(self, head: Head, states_ND: Tensor, labels_N: Tensor, row: int) -> Tensor:
        """Take the head for one sequence and return the gradient of its mean loss by its states, [N, D]."""
        layer = cast(nn.Linear, head.projection)
        size = max(1, CHUNK_ELEMENTS // layer.weight.shape[0])
        starts, x_ND = range(0, len(labels_N), size), states_ND.float()
        by_state, at, total_V = [], [], x_ND.new_zeros(layer.weight.shape[0])
        square, whole_VD = x_ND.new_zeros(()), x_ND.new_zeros(layer.weight.shape if len(starts) > 1 else ())
        for start in starts:
            x_CD = x_ND[start : start + size]
            down, g_CV = _through(head, states_ND[start : start + size], labels_N[start : start + size], len(labels_N))
            by_state.append(down)
            at.append(g_CV[:, self._ids_BT[row]])
            total_V += g_CV.sum(0)
            if len(starts) > 1:
                whole_VD += g_CV.T @ x_CD
            else:
                square = _outer(x_CD[None], g_CV[None])[0]
        self._tied = layer.weight
        self._head[row] = x_ND, torch.cat(at)
        self._put(layer.weight, row, square + whole_VD.square().sum())
        if layer.bias is not None:
            self._put(layer.bias, row, total_V.square().sum())
        return torch.cat(by_state)

    def _gram(self, x_BTI: Tensor) -> Tensor:
        """Return the products of all pairs of tokens, [B, T, T]; layers that read the same states share them."""
        key = (x_BTI.data_ptr(), x_BTI.shape[2])
        if key not in self._grams:  # the states are kept with them, so that no other tensor takes their place
            self._grams[key] = x_BTI, _pairs(x_BTI)
        return self._grams[key][1]

    def _add(self, parameter: Tensor, square_B: Tensor) -> None:
        earlier = self.squares.get(parameter)
        self.squares[parameter] = square_B if earlier is None else earlier + square_B

    def _put(self, parameter: Tensor, row: int, square: Tensor) -> None:
        found = self.squares.setdefault(parameter, torch.zeros(len(self._ids_BT), device=square.device))
        found[row] = square


def _through(head: Head, states_ND: Tensor, labels_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of the summed loss over `count` by the states and by what the projection gives, float32."""
    kept: list[Tensor] = []
    hook = head.projection.register_forward_hook(lambda _module, _args, output: kept.append(output))
    try:
        states = states_ND.requires_grad_(True)
        loss = nn.functional.cross_entropy(head(states), labels_N, reduction="sum") / count
    finally:
        hook.remove()
    by_state, by_logit = torch.autograd.grad(loss, [states, kept[0]])
    return by_state, by_logit.float()


def _pairs(x_BTI: Tensor) -> Tensor:
    return torch.bmm(x_BTI, x_BTI.mT)


def _outer(x_BTI: Tensor, g_BTO: Tensor, gram: Callable[[Tensor], Tensor] = _pairs) -> Tensor:
    """Return the squared norm of sum_t g_t x_t^T of each sequence, [B], the way that multiplies less."""
    tokens, inner, outer = x_BTI.shape[1], x_BTI.shape[2], g_BTO.shape[2]
    if tokens * (inner + outer) < inner * outer:
        return (gram(x_BTI) * _pairs(g_BTO)).sum((1, 2))
    return torch.bmm(g_BTO.mT, x_BTI).square().sum((1, 2))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for its gradient."""
    before: Sequence[tuple[nn.Parameter, bool]] = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
