# SPDX-License-Identifier: Apache-2.0
"""Sequences that start alike, computed together: every shared beginning goes through the model once.

A tree of sequences is one row. A mask lets every token see its own past only, and positions start again at every
branch, so that the hidden states are those of each sequence alone.

Shape suffixes: B rows, T nodes of the longest row, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.data.prefix_trees import PrefixTree, chains, prefix_trees
from expunge.signals.head import body, decoder_blocks, unwrap

#: Model families (`config.model_type`) known to take a mask of all pairs and positions as they are told.
FAMILIES = frozenset({
    "cohere", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo",
    "olmo2", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2",
})  # fmt: skip
_IMPLEMENTATIONS = ("eager", "sdpa")  # the others take no mask of floats
_STRETCHED = ("dynamic", "longrope")  # rotary angles that depend on the longest row of the batch


def longest_shared(model: nn.Module) -> int | None:
    """Return how long sequences may be to be computed together, in tokens: 0 for not at all, None for any length.

    Not at all: families outside `FAMILIES` (recurrent ones keep a state that no mask can branch, others place tokens
    by counting them), attention kernels without a free mask, rotary angles that depend on the batch. Where attention
    has a sliding window, sequences that fit into it.
    """
    config: Any = unwrap(model).config
    if config.model_type not in FAMILIES or config._attn_implementation not in _IMPLEMENTATIONS:
        return 0
    if getattr(config, "use_bidirectional_attention", None) or _rope_types(config) & set(_STRETCHED):
        return 0
    return getattr(config, "sliding_window", None) or None


def _rope_types(config: Any) -> set[str]:
    """Return the kinds of rotary positions, of which some families have one per kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    each = [rope] if "rope_type" in rope else [value for value in rope.values() if isinstance(value, dict)]
    return {str(value.get("rope_type", "default")) for value in each}


def pair_cost(model: nn.Module) -> float:
    """Return the multiplications of one query with one key, and of its weight with one value, per weight of a block."""
    config: Any = unwrap(model).config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return float(2 * width / sum(p.numel() for p in decoder_blocks(model)[0].parameters()))


def trees_of(model: nn.Module, items: Sequence[Encoded], *, max_nodes: int) -> list[PrefixTree]:
    """Return the sequences as trees, as far as the model can compute them together; the others stand alone."""
    ids = [item.ids for item in items]
    longest = longest_shared(model)
    if longest == 0 or (longest is not None and max(map(len, ids), default=0) > longest):
        return chains(ids)
    return prefix_trees(ids, pair_cost=pair_cost(model), max_nodes=max_nodes)


def tree_states(model: nn.Module, trees: Sequence[PrefixTree], pad_id: int) -> Tensor:
    """Return the last hidden states of all nodes after the final norm, [B, T, D], from one forward.

    Args:
        model: a causal language model, with or without adapters.
        trees: either of one sequence each, or all of a model of which `longest_shared` allows it.
        pad_id: id used to pad.
    """
    device = next(model.parameters()).device
    sizes, width = [len(tree) for tree in trees], max(len(tree) for tree in trees)
    ids_BT = _padded([tree.ids for tree in trees], np.full(width, pad_id), device)
    if all(len(tree.members) == 1 for tree in trees):
        size_B = torch.tensor(sizes, device=device)
        return body(model, ids_BT, (torch.arange(width, device=device) < size_B[:, None]).long())
    depth_BT = _padded([tree.depth for tree in trees], np.zeros(width, dtype=np.int64), device)
    # Padding sees itself, so that no row of the softmax is empty.
    end_BT = _padded([tree.end for tree in trees], np.arange(1, width + 1), device)
    base: Any = unwrap(model)
    mask_B1TT = _mask(end_BT, base.dtype)
    out = base.base_model(input_ids=ids_BT, attention_mask=mask_B1TT, position_ids=depth_BT, use_cache=False)
    return cast(Tensor, out.last_hidden_state)


def _padded(rows: Sequence[np.ndarray[Any, np.dtype[np.int64]]], fill: Any, device: torch.device) -> Tensor:
    """Return rows of unlike length as one tensor, [B, T]; where a row has ended it goes on as `fill`, [T]."""
    return torch.from_numpy(np.stack([np.concatenate([row, fill[len(row) :]]) for row in rows])).to(device)


def _mask(end_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention scores: 0 where key is the query itself or in its past, [B, 1, T, T]."""
    place_T = torch.arange(end_BT.shape[1], device=end_BT.device)
    seen_BTT = (place_T[None, :] <= place_T[:, None]) & (place_T[:, None] < end_BT[:, None, :])
    mask_BTT = torch.zeros(seen_BTT.shape, dtype=dtype, device=end_BT.device)
    return mask_BTT.masked_fill_(~seen_BTT, torch.finfo(dtype).min)[:, None]
