# SPDX-License-Identifier: Apache-2.0
"""Hidden states of decoder blocks: only the blocks in between run, from the embeddings or from stored states.

Shape suffixes: B batch rows, T tokens, D hidden width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.batching import length_buckets, pad
from expunge.data.encoding import Encoded
from expunge.signals.head import decoder_blocks, run_body, unwrap
from expunge.signals.likelihood import Reading
from expunge.signals.packing import packing_of


def hidden_states(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, layer: int) -> Tensor:
    """Return the output of decoder block `layer` (0 is the first), [B, T, D]; later blocks and the head never run.

    Raises:
        IndexError: if the model has no such block.
    """
    layers = len(decoder_blocks(model))
    if not -layers <= layer < layers:
        raise IndexError(f"layer must be in [0, {layers}), got {layer}")
    return block_outputs(model, input_ids_BT, attention_mask_BT, layers=[layer % layers])[layer % layers]


def block_outputs(
    model: nn.Module,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    *,
    layers: Collection[int],
    first: int = 0,
    start_BTD: Tensor | None = None,
) -> dict[int, Tensor]:
    """Return the outputs of some decoder blocks by number, each [B, T, D], before the final norm.

    Blocks outside `first`..max(layers) do not run; masks and positions are made by the model itself, for every family.

    Args:
        model: a causal language model, with or without adapters.
        input_ids_BT: token ids.
        attention_mask_BT: 1 for real tokens.
        layers: numbers from 0, at least one, none below `first`.
        first: the first block that runs.
        start_BTD: what enters block `first`: the output of the block before it. Needed unless `first` is 0.

    Raises:
        IndexError: if the model has no such block.
        ValueError: if `first` is above 0 and nothing is given to start from.
    """
    blocks = decoder_blocks(model)
    if not layers or min(layers) < first or max(layers) >= len(blocks) or first < 0:
        raise IndexError(f"blocks {sorted(layers)} from {first} on are not all in [0, {len(blocks)})")
    if (start_BTD is None) != (first == 0):
        raise ValueError(f"states to start from must be given if and only if first is above 0, got first={first}")
    found: dict[int, Tensor] = {}
    packing = packing_of(unwrap(model).config, attention_mask_BT)
    with ExitStack() as stack:
        for block in blocks[:first]:
            stack.enter_context(_skipped(block))
        if start_BTD is not None:
            stack.enter_context(_started(blocks[first], start_BTD if packing is None else packing.pack(start_BTD)))
        for layer in layers:
            stack.enter_context(_kept(blocks[layer], layer, found))
        if max(layers) + 1 < len(blocks):
            stack.enter_context(_left(blocks[max(layers) + 1]))
        run_body(model, input_ids_BT, attention_mask_BT, packing)
    return found if packing is None else {layer: packing.unpack(states) for layer, states in found.items()}


def continued(
    model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, *, first: int, start_BTD: Tensor,
    read_BT: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the last hidden states after the final norm, [B, T, D], as `body` does, from stored states on.

    Args:
        model: a causal language model, with or without adapters.
        input_ids_BT: token ids.
        attention_mask_BT: 1 for real tokens.
        first: the first block that runs; as many as there are blocks runs the final norm alone.
        start_BTD: the output of the block before it.
        read_BT: which states will be read; others may then be anything. None means all.
    """
    blocks = decoder_blocks(model)
    packing = packing_of(unwrap(model).config, attention_mask_BT)
    start = start_BTD if packing is None else packing.pack(start_BTD)
    with ExitStack() as stack:
        for block in blocks[:first]:
            stack.enter_context(_skipped(block))
        stack.enter_context(_started(blocks[min(first, len(blocks) - 1)], start))
        hidden = run_body(model, input_ids_BT, attention_mask_BT, packing, read_BT if first < len(blocks) else None)
    return hidden if packing is None else packing.unpack(hidden)


def final_states(model: nn.Module, states_BTD: Tensor) -> Tensor:
    """Return what the final norm makes of the output of any block, [B, T, D], as if no block followed.

    No block runs; the head can read the result. `states_BTD` is in the width of the residual stream.
    """
    ids_BT = torch.zeros(states_BTD.shape[:2], dtype=torch.long, device=states_BTD.device)
    return continued(model, ids_BT, torch.ones_like(ids_BT), first=len(decoder_blocks(model)), start_BTD=states_BTD)


class _Reached(BaseException):
    """Leaves the forward pass; not an error."""


@contextmanager
def _left(block: nn.Module) -> Iterator[None]:
    """Leave the forward pass where it would enter a block.

    Not from inside the last block that runs: that one may be under gradient checkpointing and must come to its end.
    """

    def leave(_block: nn.Module, _args: Any) -> None:
        raise _Reached

    handle = block.register_forward_pre_hook(leave)
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()


@contextmanager
def _skipped(block: nn.Module) -> Iterator[None]:
    """Let a block hand on what it is given."""
    earlier = block.__dict__.get("forward")  # tools that offload weights replace it too
    block.forward = _hand_on
    try:
        yield
    finally:
        if earlier is None:
            del block.forward
        else:
            block.forward = earlier


def _hand_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states


@contextmanager
def _started(block: nn.Module, start_BTD: Tensor) -> Iterator[None]:
    """Let a block work on other states than those that reach it."""

    def replace(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return (start_BTD.to(args[0].dtype), *args[1:]), kwargs

    handle = block.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _kept(block: nn.Module, number: int, found: dict[int, Tensor]) -> Iterator[None]:
    def keep(_block: nn.Module, _args: Any, output: Any) -> None:
        # Up to transformers 4 a block returned a tuple, from 5 on a tensor.
        found[number] = output[0] if isinstance(output, tuple) else output

    handle = block.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True)
class HiddenReading(Reading):
    """The output of one block inside a training step, see `block_outputs`."""

    layer: int
    first: int = 0
    start_BTD: Tensor | None = None

    def read(self, model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> list[Tensor]:
        """Return the output of block `layer`, [B, T, D]."""
        found = block_outputs(
            model, input_ids_BT, attention_mask_BT, layers=[self.layer], first=self.first, start_BTD=self.start_BTD
        )
        return [found[self.layer]]


class HiddenCache:
    """Hidden states of one frozen model for a set of sequences, in memory and optionally on disk.

    Args:
        model_digest: digest of the frozen model; part of the file name, so that a changed model never reuses it.
        folder: where files are kept; None keeps them in memory only.
        memory_mb: states of one `fill` that take more than this are mapped from their file instead of held, MiB.
    """

    def __init__(self, model_digest: str, folder: Path | None = None, *, memory_mb: int = 2048) -> None:
        self._digest, self._folder, self._limit = model_digest, folder, memory_mb << 20
        self._values: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def fill(
        self, model: nn.Module, items: Sequence[Encoded], *, layers: Collection[int], pad_id: int,
        batch_tokens: int = 2048,
    ) -> None:  # fmt: skip
        """Compute what is missing at `layers` for `items` with `model`, which must still be the frozen original."""
        wanted = {item.ids: item for item in items if any((layer, item.ids) not in self._values for layer in layers)}
        if not wanted:
            return
        width = int(unwrap(model).config.get_text_config().hidden_size)
        rows = sum(len(ids) for ids in wanted) * len(layers)
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        path = self._path(sorted(f"{layer}:{ids}" for ids in wanted for layer in layers), dtype)
        states_ND, ready = _buffer(path, (rows, width), dtype, mapped=rows * width * dtype.itemsize > self._limit)
        self._place(states_ND, wanted, layers)
        if ready:
            return
        for bucket, found in over_batches(
            model, list(wanted.values()), layers=layers, pad_id=pad_id, batch_tokens=batch_tokens
        ):
            for layer, states_BTD in found.items():
                for item, states_TD in zip(bucket, states_BTD, strict=True):
                    self._values[layer, item.ids].copy_(states_TD[: len(item.ids)])
        if path is not None:
            _finish(path, states_ND)

    def get(self, layer: int, item: Encoded) -> Tensor:
        """Return the output of block `layer` for one sequence, [T, D], on the CPU in the model's dtype.

        Raises:
            KeyError: if `fill` was never called for it.
        """
        return self._values[layer, item.ids]

    def padded(self, layer: int, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """Return the same for sequences given by their ids, [B, T, D], zeros after the end of the shorter ones."""
        return nn.utils.rnn.pad_sequence([self._values[layer, ids] for ids in rows], batch_first=True)

    def _place(self, states_ND: Tensor, wanted: Collection[tuple[int, ...]], layers: Collection[int]) -> None:
        """Give each sequence and layer its part of the rows."""
        start = 0
        for layer in sorted(layers):
            for ids in wanted:
                self._values[layer, ids] = states_ND[start : start + len(ids)]
                start += len(ids)

    def _path(self, keys: list[str], dtype: torch.dtype) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256("".join([self._digest, str(dtype), *keys]).encode()).hexdigest()[:16]
        return self._folder / f"hidden-{name}.bin"


def _buffer(path: Path | None, shape: tuple[int, int], dtype: torch.dtype, *, mapped: bool) -> tuple[Tensor, bool]:
    """Return room for states, mapped from a file if that is wanted and there is one, and whether they are in it."""
    size = shape[0] * shape[1]
    if path is None:
        return torch.empty(shape, dtype=dtype), False
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        states = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
        return (states if mapped else states.clone()), True
    _partial(path).unlink(missing_ok=True)  # of a process that was killed while it wrote
    if not mapped:
        return torch.empty(shape, dtype=dtype), False
    return torch.from_file(str(_partial(path)), shared=True, size=size, dtype=dtype).view(shape), False


def _finish(path: Path, states_ND: Tensor) -> None:
    """Give the file its name; states that were not mapped are written first."""
    if not _partial(path).exists():
        _partial(path).write_bytes(states_ND.view(torch.uint8).numpy().data)
    _partial(path).rename(path)


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


def over_batches(
    model: nn.Module, items: Sequence[Encoded], *, layers: Collection[int], pad_id: int, batch_tokens: int = 2048
) -> Iterator[tuple[list[Encoded], dict[int, Tensor]]]:
    """Yield batches of sequences of similar length with the outputs of some blocks, without gradients or dropout.

    Args:
        model: a causal language model.
        items: sequences; every one is in one batch.
        layers: see `block_outputs`.
        pad_id: id used to pad, on the right.
        batch_tokens: positions per forward, padding included.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for bucket in length_buckets([len(item.ids) for item in items], max_tokens=batch_tokens):
            chosen = [items[i] for i in bucket]
            batch = pad(chosen, pad_id).to(device)
            with torch.no_grad():
                found = block_outputs(model, batch.input_ids, batch.attention_mask, layers=layers)
            yield chosen, found
    finally:
        model.train(was_training)
