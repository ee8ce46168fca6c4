# SPDX-License-Identifier: Apache-2.0
"""Forward passes without padding: the real tokens of a batch in one row, attention within each sequence alone.

Everything but attention works on tokens one by one, so that leaving the padding out changes no number. Attention is
asked for one sequence at a time (on a CPU, whose kernels gain nothing from a batch) or on queries, keys and values
padded for that moment only (elsewhere); both need no mask, which would take the kernels' short way round half of the
products from them.

Shape suffixes: B batch rows, T tokens, N real tokens, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

#: What the attention of a packed pass is registered as.
NAME = "expunge_packed"

#: Architectures in which tokens meet in attention alone, and positions are what they are told to be. Each is tested
#: against padded passes; every other architecture stays padded.
PACKED_TYPES = frozenset({
    "cohere", "gemma", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo", "olmo2",
    "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
})  # fmt: skip


#: Those of them whose blocks end in `x + mlp(...)`, or in a norm of it, with one MLP for all tokens.
_DENSE_TYPES = PACKED_TYPES - {"mixtral", "qwen3_moe"}


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the real tokens of a padded batch are.

    Attributes:
        index: of each real token among the B x T positions, row after row, [N] int64.
        lengths: real tokens of each row.
        width: T.
    """

    index: Tensor
    lengths: list[int]
    width: int

    @classmethod
    def of(cls, attention_mask_BT: Tensor) -> Packing:
        """Return the packing of a batch, whichever positions its mask leaves out."""
        real_BT = attention_mask_BT.bool()
        index_N = real_BT.reshape(-1).nonzero().squeeze(1)
        return cls(index_N, real_BT.sum(1).tolist(), attention_mask_BT.shape[1])

    @property
    def positions(self) -> Tensor:
        """Position of each token in its row, [1, N] int64."""
        return (self.index % self.width)[None]

    def pack(self, values_BT: Tensor) -> Tensor:
        """Return the values of the real tokens in one row, [1, N, ...]."""
        return values_BT.flatten(0, 1).index_select(0, self.index)[None]

    def among(self, chosen_BT: Tensor) -> Tensor:
        """Return which of the real tokens are chosen, numbers from 0, int64."""
        return chosen_BT.reshape(-1)[self.index].nonzero().squeeze(1)

    def unpack(self, values_1N: Tensor) -> Tensor:
        """Return the values back in their places, [B, T, ...], zeros elsewhere."""
        values_N, rows = values_1N[0], len(self.lengths)
        flat = values_N.new_zeros((rows * self.width, *values_N.shape[1:]))
        return flat.index_copy(0, self.index, values_N).reshape(rows, self.width, *values_N.shape[1:])


@contextmanager
def packed(model: PreTrainedModel) -> Iterator[None]:
    """Let passes of a model leave their padding out for a while, where its architecture is known to allow it.

    That is one of `PACKED_TYPES` with its `sdpa` attention. Outside passes made for it, such as generation, the model
    behaves as before.
    """
    before: str = model.config._attn_implementation
    if model.config.model_type not in PACKED_TYPES or before != "sdpa":
        yield
        return
    _register()
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def packing_of(config: PretrainedConfig, attention_mask_BT: Tensor) -> Packing | None:
    """Return how a pass of a model leaves its padding out; None if it has none, or outside `packed`.

    Also None for a sequence longer than the window that some block attends to.
    """
    if config._attn_implementation != NAME or bool(attention_mask_BT.all()):
        return None
    packing = Packing.of(attention_mask_BT)
    window = getattr(config, "sliding_window", None)  # a setting of some architectures only
    return None if window is not None and max(packing.lengths) > window else packing


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def mlp_at(config: PretrainedConfig, block: nn.Module, index_N: Tensor) -> Iterator[None]:
    """Let the MLP of a block run on some tokens of a packed pass only and give zeros at the others.

    For the last block: tokens meet in attention alone, so that what it makes of one is read by nobody else.
    """
    if config.model_type not in _DENSE_TYPES:
        yield
        return
    mlp: Any = block.mlp
    earlier, inner = mlp.__dict__.get("forward"), mlp.forward

    def forward(states_1ND: Tensor) -> Tensor:
        found = inner(states_1ND.index_select(1, index_N))
        return torch.zeros_like(states_1ND, dtype=found.dtype).index_copy(1, index_N, found)

    mlp.forward = forward
    try:
        yield
    finally:
        if earlier is None:
            del mlp.forward
        else:
            mlp.forward = earlier


def no_mask(device: torch.device) -> Tensor:
    """Return the mask to give to a packed pass: four dimensions keep the model from making its own."""
    return torch.empty((1, 1, 1, 1), device=device)


def _attend(
    module: nn.Module, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, attention_mask: Tensor | None,
    packing: Packing | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attend as `sdpa` does, within each sequence of a packed pass; returns [B, T, H, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
        return out

    states = (query_BHTD, key_BHTD, value_BHTD)
    if packing is None:
        return attend(*states, attention_mask), None
    return (_one_by_one if query_BHTD.device.type == "cpu" else _together)(attend, states, packing), None


def _one_by_one(attend: Any, states: tuple[Tensor, ...], packing: Packing) -> Tensor:
    """Attend in one sequence after the other, [1, N, H, D]."""
    pieces = (torch.split(state, packing.lengths, dim=2) for state in states)
    return torch.cat([attend(*piece) for piece in zip(*pieces, strict=True)], dim=1)


def _together(attend: Any, states: tuple[Tensor, ...], packing: Packing) -> Tensor:
    """Attend in all sequences at once; what follows the end of one never reaches it, [1, N, H, D].

    Rows are aligned at their start for that, whatever positions the batch's own mask leaves out.
    """
    length_B = torch.tensor(packing.lengths, device=packing.index.device)
    width = max(packing.lengths)
    index_N = (torch.arange(width, device=length_B.device) < length_B[:, None]).reshape(-1).nonzero().squeeze(1)
    aligned = Packing(index_N, packing.lengths, width)
    padded = (aligned.unpack(state.transpose(1, 2)).transpose(1, 2) for state in states)
    return aligned.pack(attend(*padded))
