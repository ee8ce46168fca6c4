# SPDX-License-Identifier: Apache-2.0
"""Activations of one decoder block, leaving the forward pass as soon as that block is done."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from expunge.signals.head import body, decoder_blocks


class _Reached(BaseException):
    """Carries the activations out of the forward pass; not an error."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
    # Up to transformers 4 a block returned a tuple, from 5 on a tensor.
    raise _Reached(output[0] if isinstance(output, tuple) else output)


def hidden_states(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, layer: int) -> Tensor:
    """Return the output of decoder block `layer` (0 is the first), [B, T, D]; later blocks and the head never run.

    Raises:
        IndexError: if the model has no such block.
    """
    blocks = decoder_blocks(model)
    if not -len(blocks) <= layer < len(blocks):
        raise IndexError(f"layer must be in [0, {len(blocks)}), got {layer}")
    handle = blocks[layer].register_forward_hook(_leave)
    try:
        body(model, input_ids_BT, attention_mask_BT)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise RuntimeError(f"block {layer} was never reached")
