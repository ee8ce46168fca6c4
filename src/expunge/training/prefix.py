# SPDX-License-Identifier: Apache-2.0
"""Passes that begin at the lowest block that trains: what the blocks below it give is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.models.digests import tensors_digest
from expunge.models.families import parameter_blocks
from expunge.signals.head import unwrap
from expunge.signals.hidden import HiddenCache, continued
from expunge.signals.packing import PACKED_TYPES
from expunge.training.config import TrainingConfig
from expunge.training.task import Task


def first_moving_block(model: nn.Module, config: TrainingConfig) -> int:
    """Return the lowest block in which anything moves, below which every pass gives the same; 0 if that is unknown.

    As many as there are blocks means that only what follows them moves. 0 too for embeddings that move, for a model
    that trains with its dropout, for an attack on hidden states in between, and for architectures outside
    `PACKED_TYPES`, where a block might be handed more than the output of the one before it.
    """
    if unwrap(model).config.model_type not in PACKED_TYPES or config.dropout or config.wrapper.name == "lat":
        return 0
    blocks = parameter_blocks(model)
    return max(0, min(blocks[name] for name, p in model.named_parameters() if p.requires_grad))


class FrozenPrefix:
    """The body of a model whose lower blocks stand still; called as `signals.head.body` is.

    All sequences of a run are read in one go when the first is asked for, in the order of the run, so that one that is
    resumed stores the same bits. A sequence that is none of them is read as it comes.

    Args:
        model: the model as it will train.
        first: see `first_moving_block`, above 0.
        items: sequences of the run.
        pad_id: id used to pad.
        folder: see `HiddenCache`.
        memory_mb: see `HiddenCache`.
    """

    def __init__(
        self, model: nn.Module, first: int, items: Sequence[Encoded], *, pad_id: int, folder: Path | None,
        memory_mb: int,
    ) -> None:  # fmt: skip
        self._first, self._items, self._pad_id = first, items, pad_id
        blocks = parameter_blocks(model)
        below = {name: p for name, p in model.named_parameters() if blocks[name] < first}
        self._cache = HiddenCache(tensors_digest(below) if folder else "", folder, memory_mb=memory_mb)

    def __call__(
        self, model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, read_BT: Tensor | None = None
    ) -> Tensor:
        """Return the last hidden states after the final norm, [B, T, D]; rows are padded on the right."""
        lengths = attention_mask_BT.sum(1).tolist()
        rows = [tuple(ids[:n]) for ids, n in zip(input_ids_BT.tolist(), lengths, strict=True)]
        layer = self._first - 1
        if self._items:
            self._cache.fill(model, self._items, layers=[layer], pad_id=self._pad_id)
            self._items = ()
        self._cache.fill(model, [Encoded(ids, ids, False) for ids in rows], layers=[layer], pad_id=self._pad_id)
        start_BTD = self._cache.padded(layer, rows).to(input_ids_BT.device, non_blocking=True)
        return continued(
            model, input_ids_BT, attention_mask_BT, first=self._first, start_BTD=start_BTD, read_BT=read_BT
        )


def sequences_of(task: Task, *, epochs: int, steps: int) -> Iterator[Encoded]:
    """Yield the sequences of a run in order, those of an epoch it does not reach left out."""
    done = 0
    for epoch in range(epochs):
        if done >= steps:
            return
        for step in task.steps(epoch):
            done += 1
            yield from (row.encoded for group in step for row in group)
