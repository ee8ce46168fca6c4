# SPDX-License-Identifier: Apache-2.0
"""Masks of weights that may move: chosen by score with an exact count, and kept to the last bit while training.

Shape suffixes: O output features, I input features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.errors import RecipeError

#: Scores are read this many at a time, so that no integer copy of a whole embedding is ever made.
_CHUNK = 1 << 24


def kept_count(ratio: float, total: int) -> int:
    """Return floor(ratio * total), exact for the decimal that `ratio` is written as.

    Raises:
        RecipeError: if `ratio` is outside 0..1.
    """
    if not 0.0 <= ratio <= 1.0:
        raise RecipeError("must be a share of the weights", field="ratio", value=ratio, remedy="Use 0 to 1")
    # In floating point 0.29 * 100 is 28.999...
    return int(Fraction(repr(float(ratio))) * total)


def global_masks(names: Sequence[str], score: Callable[[str], Tensor], ratio: float) -> dict[str, Tensor]:
    """Return, per name, True at the weights whose score is among the top `ratio` of all of them together.

    Exactly `kept_count(ratio, total)` are True; equal scores are taken in the order of `names` and of position. The
    threshold is found by two histograms over the bit patterns of the scores: three passes, no sort, no copy.

    Args:
        names: parameters, in order.
        score: gives the scores of one parameter, any shape, float32; called three times per name and must give the
            same values each time.
        ratio: share of all weights to keep, 0..1.

    Raises:
        ValueError: if a score is not a number.
        RecipeError: if `ratio` is outside 0..1.
    """
    upper = torch.zeros(1 << 16, dtype=torch.long)
    for name in names:
        for key in _ordered_keys(name, score(name)):
            upper += torch.bincount(_upper(key), minlength=1 << 16).cpu()
    wanted = kept_count(ratio, int(upper.sum()))
    bucket, wanted_inside = _bucket_from_the_top(upper, wanted)
    lower = torch.zeros(1 << 16, dtype=torch.long)
    for name in names:
        for key in _ordered_keys(name, score(name)):
            lower += torch.bincount(key[_upper(key) == bucket] & 0xFFFF, minlength=1 << 16).cpu()
    rest, ties = _bucket_from_the_top(lower, wanted_inside)
    threshold = ((bucket - (1 << 15)) << 16) | rest
    masks: dict[str, Tensor] = {}
    for name in names:
        values = score(name)
        pieces = []
        for key in _ordered_keys(name, values):
            equal = key == threshold
            taken = equal & (equal.cumsum(0) <= ties)
            ties -= int(taken.sum())
            pieces.append((key > threshold) | taken)
        masks[name] = torch.cat(pieces).reshape(values.shape)
    return masks


def row_masks(score_OI: Tensor, ratio: float) -> Tensor:
    """Return True at the top `ratio` of each row, [O, I] bool: `kept_count(ratio, I)` per row, ties by position."""
    kept = kept_count(ratio, score_OI.shape[1])
    order_OI = torch.sort(score_OI, dim=1, descending=True, stable=True).indices
    return torch.zeros_like(score_OI, dtype=torch.bool).scatter_(1, order_OI[:, :kept], True)


def _ordered_keys(name: str, scores: Tensor) -> Iterator[Tensor]:
    """Yield the scores, flat and in pieces, as int32 keys that compare as the scores do."""
    for piece in torch.split(scores.detach().reshape(-1), _CHUNK):
        values = piece.float() + 0.0  # makes -0 equal to 0
        if bool(torch.isnan(values).any()):
            raise ValueError(f"the scores of {name} hold values that are not numbers")
        bits = values.view(torch.int32)
        # The patterns of negative numbers grow as the numbers fall.
        yield torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _upper(key: Tensor) -> Tensor:
    return (key >> 16) + (1 << 15)


def _bucket_from_the_top(histogram: Tensor, wanted: int) -> tuple[int, int]:
    """Return the highest bucket down to which at least `wanted` lie, and how many of those are inside it."""
    from_top = histogram.flip(0).cumsum(0)
    position = int((from_top < wanted).sum())
    above = int(from_top[position - 1]) if position else 0
    return len(histogram) - 1 - position, wanted - above


class WeightMasks:
    """Keeps masked-out weights as they are, bit for bit, under any optimiser.

    Their gradients become 0 (`mask_gradients`, before the norm is taken, so that they neither use up the clipping nor
    enter a running average), and whatever a step does to them all the same, such as decay, is undone (`attach`).

    Args:
        module: the model; parameters without a mask move freely.
        masks: by parameter name, True where the weight may move, of the parameter's shape.

    Raises:
        RecipeError: if a name is not a parameter, or a mask is not boolean or of another shape.
    """

    def __init__(self, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(module.named_parameters())
        self._held: list[tuple[nn.Parameter, Tensor]] = []
        for name, mask in masks.items():
            if name not in parameters:
                remedy = "Build the masks for this model"
                raise RecipeError("not a parameter of this model", field="masks", value=name, remedy=remedy)
            parameter = parameters[name]
            if mask.dtype != torch.bool or mask.shape != parameter.shape:
                found = f"{name}: {mask.dtype} {tuple(mask.shape)}"
                remedy = f"It must be torch.bool {tuple(parameter.shape)}"
                raise RecipeError("a mask does not fit its parameter", field="masks", value=found, remedy=remedy)
            if not bool(mask.all()):
                self._held.append((parameter, ~mask.to(parameter.device)))

    def mask_gradients(self) -> None:
        """Set the gradients of masked-out weights to 0."""
        for parameter, stays in self._held:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(stays, 0.0)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let every step of `optimizer` leave the masked-out weights alone.

        Hooks run in the order they were registered: attach the masks after anything else that changes weights.
        """
        before: list[Tensor] = []

        def keep(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self.mask_gradients()
            before[:] = [parameter.detach()[stays] for parameter, stays in self._held]

        def restore(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            with torch.no_grad():
                for (parameter, stays), values in zip(self._held, before, strict=True):
                    parameter.masked_scatter_(stays, values)
            before.clear()

        optimizer.register_step_pre_hook(keep)
        optimizer.register_step_post_hook(restore)


def kept_share(masks: Mapping[str, Tensor]) -> float:
    """Return the share of weights that may move, 0..1, over all masks."""
    return sum(int(mask.sum()) for mask in masks.values()) / max(1, sum(mask.numel() for mask in masks.values()))


def save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Write masks to a safetensors file in one rename, one bit per weight."""
    from safetensors.torch import save_file

    bits = {name: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))) for name, mask in masks.items()}
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    partial = path.with_name(f".{path.name}.partial")
    save_file(bits, partial, metadata={"shapes": shapes})
    partial.replace(path)


def load_masks(path: Path) -> dict[str, Tensor]:
    """Return the masks that `save_masks` wrote."""
    from safetensors import safe_open

    masks: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name, shape in json.loads(file.metadata()["shapes"]).items():
            total = int(np.prod(shape))
            flat = np.unpackbits(file.get_tensor(name).numpy(), count=total).astype(np.bool_)
            masks[name] = torch.from_numpy(flat).reshape(shape)
    return masks
