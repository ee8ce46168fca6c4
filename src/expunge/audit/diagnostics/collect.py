# SPDX-License-Identifier: Apache-2.0
"""What the diagnostics read from a model: one forward a text for the states of every block, one backward for Fisher.

Shape suffixes: B batch rows, T tokens, D width, N texts, L blocks, P weights of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from expunge.audit.diagnostics.config import Pooling
from expunge.audit.diagnostics.fisher import mean_square
from expunge.data.batching import pad
from expunge.data.encoding import Encoded
from expunge.errors import InputDataError
from expunge.models.families import parameter_blocks
from expunge.signals.curvature import evaluating, gradient, sequence_nll
from expunge.signals.head import decoder_blocks
from expunge.signals.hidden import over_batches
from expunge.signals.likelihood import Scorer

Progress = Callable[[int], None]


def whole(item: Encoded) -> Encoded:
    """Return a sequence with every token as a label: the diagnostics look at texts, not at answers.

    Raises:
        InputDataError: if the text has one token, which nothing predicts.
    """
    if len(item.ids) < 2:
        raise InputDataError("a text of one token has nothing to predict", field="data", remedy="Leave it out")
    return Encoded(item.ids, item.ids, item.ends_with_eos)


def pooled_states(
    model: nn.Module, items: Sequence[Encoded], *, pad_id: int, pooling: Pooling = "mean", batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> Tensor:  # fmt: skip
    """Return one state a text and block, from one forward a text, [L, N, D] float32 on the CPU.

    States are block outputs, before the final norm.

    Args:
        model: a causal language model; put into eval mode for the pass.
        items: the texts.
        pad_id: id used to pad; padding is in no state.
        pooling: `mean` over the real tokens, the `last` of them, or the `first`.
        batch_tokens: positions per forward, padding included.
        progress: called with the number of texts done after each forward.
    """
    layers = range(len(decoder_blocks(model)))
    places: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        places.setdefault(id(item), []).append(number)
    out: Tensor | None = None
    batches = over_batches(model, items, layers=layers, pad_id=pad_id, batch_tokens=batch_tokens)
    for chosen, found in batches:
        mask_BT = pad(chosen, pad_id).attention_mask.to(found[0].device)
        rows = [places[id(item)].pop() for item in chosen]
        for layer, states_BTD in found.items():
            pooled_BD = pool(states_BTD, mask_BT, pooling).cpu()
            if out is None:
                out = torch.empty(len(layers), len(items), pooled_BD.shape[1])
            out[layer, rows] = pooled_BD
        if progress is not None:
            progress(len(chosen))
    if out is None:
        raise ValueError("no texts to read states from")
    return out


def pool(states_BTD: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """Return one state a row, [B, D] float32.

    Args:
        states_BTD: outputs of one block, rows padded on the right.
        mask_BT: 1 for real tokens.
        pooling: see `pooled_states`.
    """
    states = states_BTD.float()
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        last_B = mask_BT.sum(1) - 1
        return states[torch.arange(len(states), device=states.device), last_B]
    weights = mask_BT.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1)


class LayerDiagonal(NamedTuple):
    """The diagonal of one block, its weights in the order of the model's names, [P] float32 on the CPU."""

    layer: int
    diagonal_P: Tensor


def fisher_diagonals(
    model: nn.Module, items: Sequence[Encoded], *, layers_per_pass: int = 0, progress: Progress | None = None
) -> Iterator[LayerDiagonal]:
    """Yield the empirical Fisher diagonal of every block, E[g^2] over texts, g the gradient of a text's mean loss.

    One text at a time, so that nothing is padded and no gradient is averaged before it is squared; sums are float32
    whatever the weights are. Each pass holds the gradients and sums of its blocks only, and goes back no further.

    Args:
        model: a causal language model without adapters.
        items: the texts; every token but the first is predicted.
        layers_per_pass: blocks whose sums are held at once; 0 for all of them. Each further pass reads the texts again.
        progress: called with 1 after every backward.
    """
    blocks = parameter_blocks(model)
    parameters = dict(model.named_parameters())
    last = len(decoder_blocks(model))
    step, texts = layers_per_pass or last, [whole(item) for item in items]
    for first in range(0, last, step):
        group = range(first, min(first + step, last))
        names = {layer: [name for name in parameters if blocks[name] == layer] for layer in group}
        wanted = [parameters[name] for layer in group for name in names[layer]]
        with evaluating(model), _only(model, wanted):
            found = mean_square(_gradients(model, texts, wanted, progress))
        for layer in group:
            own, found = found[: len(names[layer])], found[len(names[layer]) :]
            yield LayerDiagonal(layer, torch.cat([part.flatten().cpu() for part in own]))


def _gradients(
    model: nn.Module, texts: Sequence[Encoded], wanted: Sequence[nn.Parameter], progress: Progress | None
) -> Iterator[list[Tensor]]:
    scorer = Scorer(model)
    for item in texts:
        with torch.enable_grad():
            yield gradient(sequence_nll(scorer, item, mean=True), wanted)
        if progress is not None:
            progress(1)


@contextmanager
def _only(model: nn.Module, wanted: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let only these parameters have gradients for a while, so that a backward stops at the first of them."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    chosen = {id(p) for p in wanted}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, had in before:
            parameter.requires_grad_(had)


class DiagonalStore:
    """Diagonals on disk, a file a set and layer: those of a whole model can be larger than the model.

    Args:
        folder: where to; created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def put(self, name: str, found: LayerDiagonal) -> None:
        """Keep one diagonal under the name of its set."""
        from safetensors.torch import save_file

        save_file({"diagonal": found.diagonal_P}, self._file(name, found.layer))

    def get(self, name: str, layer: int) -> Tensor:
        """Return a diagonal that was kept, [P] float32."""
        from safetensors.torch import load_file

        diagonal: Tensor = load_file(self._file(name, layer))["diagonal"]
        return diagonal

    def _file(self, name: str, layer: int) -> Path:
        return self._folder / f"{name}-{layer}.safetensors"
