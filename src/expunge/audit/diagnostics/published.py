# SPDX-License-Identifier: Apache-2.0
"""The diagnostics as the study's released code takes them, each with what is wrong about it.

Kept so that published figures can be told apart from what the models do. Shape suffixes: B batch rows, T tokens,
D width, N texts, L blocks, P weights.

Source: the code released with Xu et al., 2025 (arXiv:2505.16831).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from expunge.audit.diagnostics.pca import components
from expunge.data.batching import PaddedBatch, pad
from expunge.data.encoding import Encoded
from expunge.signals.curvature import evaluating, gradient
from expunge.signals.head import decoder_blocks
from expunge.signals.hidden import block_outputs

#: What is wrong about each of them.
REASONS = {
    "cka": "Taken on the first token of each text. Where that is the same token everywhere, such as a beginning-of-"
    "sequence token or padding, all states are equal and the number is 0 / 0.000001 = 0 whatever the models do.",
    "pca_similarity": "The mean state runs over padding too, so it depends on what else is in the batch, and the sign "
    "of the cosine is that of an arbitrary axis: -1 can mean that nothing changed.",
    "pca_shift": "The mean state runs over padding too, and the sign of both coordinates is that of an arbitrary axis.",
    "fisher": "The gradient is averaged over batches of four before it is squared, which is smaller than the mean of "
    "squares, and padding counts as text to be predicted. Weights are chosen by a part of their name, so that block 1 "
    "takes in blocks 10 to 19.",
}
BATCH = 4
MOST_BATCHES = 10
_EPSILON = 1e-12


def cka(x_ND: Tensor, y_ND: Tensor) -> float:
    """Return the released formula: tr(KL) / sqrt(tr(KK) tr(LL) + 1e-12), which is 0 where all states are equal."""
    x, y = x_ND.double() - x_ND.double().mean(0), y_ND.double() - y_ND.double().mean(0)
    k, m = x @ x.T, y @ y.T
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum() + _EPSILON).sqrt())


def pc1_cosine(before_ND: Tensor, after_ND: Tensor) -> float:
    """Return the cosine of two first principal directions with the signs that the decomposition happened to give."""
    axes = []
    for states_ND in (before_ND, after_ND):
        x = states_ND.double()
        axes.append(torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][0])
    return float(axes[0] @ axes[1])


def shift(before_ND: Tensor, after_ND: Tensor) -> tuple[float, float]:
    """Return how far the mean moved along the first axis, and where it lies on the second, not centred."""
    axes = components(before_ND).axes_KD
    moved = (after_ND.double() - before_ND.double()) @ axes[0]
    return float(moved.mean()), float((after_ND.double() @ axes[1]).mean())


def padded_states(
    model: nn.Module, items: Sequence[Encoded], *, pad_id: int, first_token: bool, batch_tokens: int = 8192
) -> Tensor:
    """Return the state of the first token, or the mean over all positions with padding, [L, N, D] float32.

    Every text is padded to the longest of the set.
    """
    layers = range(len(decoder_blocks(model)))
    width = max(len(item.ids) for item in items)
    rows = max(1, batch_tokens // width)
    device = next(model.parameters()).device
    parts = []
    with evaluating(model), torch.no_grad():
        for start in range(0, len(items), rows):
            batch = _padded_to(items[start : start + rows], pad_id, width).to(device)
            found = block_outputs(model, batch.input_ids, batch.attention_mask, layers=layers)
            states = torch.stack([found[layer].float().cpu() for layer in layers])
            parts.append(states[:, :, 0] if first_token else states.mean(2))
    return torch.cat(parts, dim=1)


def batch_fisher(model: nn.Module, items: Sequence[Encoded], layer: int, *, pad_id: int) -> Tensor:
    """Return the square of batch-mean gradients, averaged over at most ten batches of four, [P] float32 on the CPU."""
    named = [(name, p) for name, p in model.named_parameters() if in_layer(name, layer)]
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)][:MOST_BATCHES]
    total: list[Tensor] | None = None
    with evaluating(model):
        for found in _batch_gradients(model, batches, [p for _, p in named], pad_id):
            squares = [g.square() for g in found]
            total = squares if total is None else [a + b for a, b in zip(total, squares, strict=True)]
    if total is None:
        raise ValueError("a mean over no batches does not exist")
    return torch.cat([part.flatten().cpu() for part in total]) / len(batches)


def in_layer(name: str, layer: int) -> bool:
    """Return whether a weight is taken for one of a block: by a part of its name, so 1 also takes 10 to 19."""
    return any(f".{stack}.{layer}" in f".{name}" for stack in ("layers", "h", "blocks", "block"))


def _batch_gradients(
    model: nn.Module, batches: Sequence[Sequence[Encoded]], wanted: Sequence[nn.Parameter], pad_id: int
) -> Iterator[list[Tensor]]:
    device = next(model.parameters()).device
    for items in batches:
        batch = pad(items, pad_id).to(device)
        with torch.enable_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].float()
            loss = functional.cross_entropy(logits.flatten(0, 1), batch.input_ids[:, 1:].flatten())
            yield gradient(loss, wanted)


def _padded_to(items: Sequence[Encoded], pad_id: int, width: int) -> PaddedBatch:
    filler = Encoded((pad_id,) * width, (pad_id,) * width, ends_with_eos=False)
    batch = pad([*items, filler], pad_id)  # the filler makes the batch as wide as the longest of the set
    n = len(items)
    return PaddedBatch(batch.input_ids[:n], batch.attention_mask[:n], batch.labels[:n])
