# SPDX-License-Identifier: Apache-2.0
"""The two halves of a causal language model: the body that gives hidden states, the head that gives logits.

Scores need logits at labelled positions only. Calling the halves apart makes that possible without ever holding a
[B, T, V] tensor.

Shape suffixes: B batch rows, T tokens, D hidden width, V vocabulary, N selected positions, C one chunk of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expunge.signals.fused import Differentiated, Projection, fused
from expunge.signals.packing import Packing, mlp_at, no_mask, packing_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Elements of one float32 logits chunk (64 MiB).
CHUNK_ELEMENTS = 1 << 24

#: From a chunk of logits [C, V] float32, its labels [C] and extra per-position tensors, one value per position [C].
TokenFunction = Callable[..., Tensor]


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT wrapper, or the model itself (adapters stay active in both)."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return model
    inner = cast(Any, model).get_base_model()
    return cast("PreTrainedModel", inner)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder blocks.

    Raises:
        ValueError: if no `ModuleList` has as many entries as the config has layers.
    """
    base = unwrap(model)
    layers = base.config.get_text_config().num_hidden_layers
    for _, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise ValueError(f"no list of {layers} decoder blocks found in {type(base).__name__}")


def output_head(model: nn.Module) -> nn.Module:
    """Return the layer that gives the logits.

    Raises:
        ValueError: if the model has none.
    """
    base = unwrap(model)
    head = base.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(base).__name__} has no output embedding")
    return cast(nn.Module, head)


def body(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, read_BT: Tensor | None = None) -> Tensor:
    """Return the last hidden states after the final norm, [B, T, D]; inside `packed` those of padding are zeros.

    Args:
        model: a causal language model, with or without adapters.
        input_ids_BT: token ids.
        attention_mask_BT: 1 for real tokens.
        read_BT: which states will be read; others may then be anything. None means all.
    """
    packing = packing_of(unwrap(model).config, attention_mask_BT)
    hidden = run_body(model, input_ids_BT, attention_mask_BT, packing, read_BT)
    return hidden if packing is None else packing.unpack(hidden)


def run_body(
    model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, packing: Packing | None,
    read_BT: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the last hidden states after the final norm, [B, T, D], or [1, N, D] of the real tokens in a packed pass.

    `packing` is what `packing_of` returned for this model and mask; see `body` for the rest.
    """
    base = unwrap(model)
    inner = cast(nn.Module, base.base_model)
    if packing is None:
        out = inner(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False)
        return cast(Tensor, out.last_hidden_state)
    with ExitStack() as stack:
        if read_BT is not None:
            stack.enter_context(mlp_at(base.config, decoder_blocks(model)[-1], packing.among(read_BT)))
        out = inner(
            input_ids=packing.pack(input_ids_BT), attention_mask=no_mask(input_ids_BT.device),
            position_ids=packing.positions, use_cache=False, packing=packing,
        )  # fmt: skip
    return cast(Tensor, out.last_hidden_state)


class Head(nn.Module):
    """The output embedding with the model's own scaling or soft cap, giving float32 logits.

    Source: Gemma 2 caps logits as cap * tanh(z / cap); Cohere multiplies by `logit_scale`, Granite divides by
    `logits_scaling`.
    """

    def __init__(self, model: nn.Module, *, frozen: bool = False) -> None:
        super().__init__()
        projection: Any = output_head(model)
        if frozen:
            projection = copy.deepcopy(projection).float().requires_grad_(False)
        config = unwrap(model).config.get_text_config()
        self.projection = projection
        self.cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        self.scale = float(getattr(config, "logit_scale", None) or 1.0)
        self.scale /= float(getattr(config, "logits_scaling", None) or 1.0)

    def forward(self, hidden_CD: Tensor) -> Tensor:
        """Return logits [C, V] in float32."""
        logits = self.projection(hidden_CD.to(self.projection.weight.dtype)).float() * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def over_vocabulary(
    head: nn.Module, hidden_ND: Tensor, labels_N: Tensor, function: TokenFunction, extra: tuple[Tensor, ...] = ()
) -> Tensor:
    """Apply `function` to the logits of every position, a chunk at a time, and join the results, [N] or [N, K].

    With gradients on, at most one chunk of logits is alive at any moment: a `Differentiated` function over a plain
    linear head keeps no more than its derivative, for any other a chunk is recomputed in the backward pass.
    """
    inner = cast(Head, head)
    size = max(1, CHUNK_ELEMENTS // inner.projection.weight.shape[0])
    if isinstance(function, Differentiated) and _is_plain(inner.projection) and _wants_gradient(inner, hidden_ND):
        projection = Projection(inner.projection, inner.scale, inner.cap, size)
        return fused(function, hidden_ND, projection, labels_N, extra)

    def run(hidden: Tensor, labels: Tensor, *more: Tensor) -> Tensor:
        return function(head(hidden), labels, *more)

    pieces = list(zip(*(torch.split(tensor, size) for tensor in (hidden_ND, labels_N, *extra)), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        return torch.cat([run(*piece) for piece in pieces])
    return torch.cat([checkpoint(run, *piece, use_reentrant=False) for piece in pieces])


def _is_plain(projection: nn.Module) -> bool:
    """Return whether a head is no more than its weights: no adapter, no quantised or sharded weight, no hook."""
    hooks = projection._forward_hooks or projection._forward_pre_hooks or projection._backward_hooks
    return type(projection) is nn.Linear and type(projection.weight) is nn.Parameter and not hooks


def _wants_gradient(head: Head, hidden_ND: Tensor) -> bool:
    trains = hidden_ND.requires_grad or head.projection.weight.requires_grad
    return trains and torch.is_grad_enabled() and len(hidden_ND) > 0
