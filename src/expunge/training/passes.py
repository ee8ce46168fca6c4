# SPDX-License-Identifier: Apache-2.0
"""How the passes of a run are made: packed or compiled, with activations kept or recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from expunge.signals.head import decoder_blocks, unwrap
from expunge.signals.packing import packed
from expunge.training.config import TrainingConfig

#: The version of transformers whose name for it is known to have changed; earlier ones know the old name.
_RENAMED = (5, 23)


@contextmanager
def prepared_passes(model: nn.Module, config: TrainingConfig) -> Iterator[None]:
    """Set a model up for the passes of a run; at the end it is as it was, but for recomputed activations.

    Compiled blocks stay padded: the lengths of a packed pass would have them compiled anew for every batch.
    """
    if config.gradient_checkpointing:
        recompute_activations(model)
    if not config.compile:
        with packed(unwrap(model)):
            yield
        return
    blocks = list(decoder_blocks(model))
    for block in blocks:
        block.compile(dynamic=True)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def recompute_activations(model: nn.Module) -> None:
    """Let every decoder block recompute its activations in the backward pass.

    The inputs of the first block are not made to require gradients, which transformers does on the way: below the
    lowest weight that trains no backward shall run.
    """
    import transformers

    base = unwrap(model)
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version >= _RENAMED:
        base.activation_checkpointing_enable({"use_reentrant": False})
        base.disable_input_require_grads()
    else:
        base.gradient_checkpointing_enable({"use_reentrant": False})
