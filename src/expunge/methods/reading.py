# SPDX-License-Identifier: Apache-2.0
"""Which block is read, which blocks train, and the measured states that this is chosen from.

Shape suffixes: T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.errors import RecipeError
from expunge.methods.weights import choose_parameters
from expunge.models.adapters import is_lora
from expunge.models.families import mlp_outputs, parameter_blocks
from expunge.models.selection import freeze_except, select_parameters
from expunge.signals.head import decoder_blocks, unwrap
from expunge.signals.hidden import over_batches
from expunge.training.config import TrainingConfig

TensorChoice = Literal["auto", "mlp_output", "block"]

#: Hidden width from which the output projections of a few MLPs are enough to steer a block's output.
WIDE = 1024

#: Sequences of each set that block and coefficient are chosen from, evenly spaced through it.
SAMPLE = 32


@dataclass(frozen=True, slots=True)
class BlockStates:
    """What one block of the original model gives on a sample of both sets.

    Attributes:
        forget_norm: median length of a forget token's state.
        retain_norm: median length of a retain token's state.
        separation: length of the difference of the two mean states over `forget_norm`.
    """

    forget_norm: float
    retain_norm: float
    separation: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The block that is read, the first block that runs, the blocks that train, and what was measured."""

    layer: int
    first: int
    trained: tuple[int, ...]
    measured: Mapping[int, BlockStates]
    why: str

    def notes(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        states = {
            str(block): {"forget_norm": s.forget_norm, "retain_norm": s.retain_norm, "separation": s.separation}
            for block, s in self.measured.items()
        }
        return {"layer": self.layer, "layer_chosen_by": self.why, "blocks_that_run": [self.first, self.layer],
                "measured_states": states}  # fmt: skip


def measure(
    model: nn.Module, forget: Sequence[Encoded], retain: Sequence[Encoded], *, layers: Sequence[int], pad_id: int
) -> dict[int, BlockStates]:
    """Measure the states that samples of forget and retain texts have at some blocks."""
    sides = [_states(model, _spread(items), layers, pad_id) for items in (forget, retain)]
    return {block: _compare(*(side[block] for side in sides)) for block in layers}


def candidates(depth: int) -> list[int]:
    """Return the blocks one may be chosen from: a quarter to half of the depth, where all published settings lie."""
    lowest = min(depth - 1, max(1, -(-depth // 4) - 1))
    return list(range(lowest, max(lowest, depth // 2 - 1) + 1))


def _states(model: nn.Module, items: Sequence[Encoded], layers: Sequence[int], pad_id: int) -> dict[int, Tensor]:
    """Return all token states at each block, [T, D] float32 on the CPU."""
    pieces: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for bucket, found in over_batches(model, items, layers=layers, pad_id=pad_id):
        for layer in layers:
            states = found[layer].float().cpu()
            pieces[layer] += [state_TD[: len(item.ids)] for item, state_TD in zip(bucket, states, strict=True)]
    return {layer: torch.cat(states) for layer, states in pieces.items()}


def _compare(forget_TD: Tensor, retain_TD: Tensor) -> BlockStates:
    forget_norm = float(forget_TD.norm(dim=-1).median())
    apart = float((forget_TD.double().mean(0) - retain_TD.double().mean(0)).norm())
    return BlockStates(forget_norm, float(retain_TD.norm(dim=-1).median()), apart / forget_norm)


def _spread(items: Sequence[Encoded]) -> list[Encoded]:
    if len(items) <= SAMPLE:
        return list(items)
    return [items[i * len(items) // SAMPLE] for i in range(SAMPLE)]


def plan_reading(
    model: nn.Module,
    training: TrainingConfig,
    measured: Callable[[Sequence[int]], Mapping[int, BlockStates]],
    *,
    layer: int | None,
    trained_blocks: int,
) -> Plan:
    """Choose the block to read and the blocks that train.

    Args:
        model: the original.
        training: its `trainable`, if given, decides which blocks train.
        measured: gives the states at some blocks.
        layer: the block wanted; None takes the highest that `trainable` names, or else the one among `candidates`
            where mean forget and retain state are furthest apart for their length.
        trained_blocks: how many train without `trainable`, up to the one that is read.

    Raises:
        RecipeError: if there is no such block, or nothing that may move comes before its output.
    """
    depth, states = len(decoder_blocks(model)), dict[int, BlockStates]()
    moving = _moving_blocks(model, training)
    if layer is not None:
        why = "given"
    elif inside := [block for block in moving if 0 <= block < depth]:
        layer, why = max(inside), "the highest block that training.trainable lets move"
    else:
        states.update(measured(candidates(depth)))
        layer = max(states, key=lambda block: (states[block].separation, -block))
        why = "largest separation of mean forget and retain state between a quarter and half of the depth"
    if layer >= depth:
        remedy = f"Use 0 to {depth - 1}"
        raise RecipeError("the model has no such block", field="method.layer", value=layer, remedy=remedy)
    trained = moving or set(range(max(0, layer - trained_blocks + 1), layer + 1))
    trained = {block for block in trained if block <= layer}
    if not trained:
        raise RecipeError(
            f"nothing that may move comes before the output of block {layer}", field="training.trainable",
            value=list(training.trainable), remedy="Read a later block (method.layer) or let earlier ones move",
        )  # fmt: skip
    if layer not in states:
        states.update(measured([layer]))
    return Plan(layer, max(0, min(trained)), tuple(sorted(trained)), states, why)


def _moving_blocks(model: nn.Module, training: TrainingConfig) -> set[int]:
    """Return the blocks that `trainable` names, -1 for what comes before them; none if it is not given."""
    if not training.trainable:
        return set()
    blocks = parameter_blocks(model)
    return {blocks[name] for name in select_parameters(model, training.trainable)}


def restrict(
    model: nn.Module, training: TrainingConfig, plan: Plan, *, tensors: TensorChoice, seed: int
) -> tuple[nn.Module, list[str]]:
    """Return the model with exactly the tensors that may move requiring gradients, and their names.

    These are adapters in the blocks that train; or what `training.trainable` names up to the block that is read; or
    what `tensors` says of the blocks that train.
    """
    if training.lora is not None or is_lora(model):
        model = choose_parameters(model, training, seed)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    elif training.trainable:
        names = select_parameters(model, training.trainable)
    else:
        width = int(unwrap(model).config.get_text_config().hidden_size)
        narrow = tensors == "auto" and width < WIDE
        whole = narrow or tensors == "block"
        names = list(parameter_blocks(model)) if whole else mlp_outputs(model, plan.trained, width=width)
    blocks = parameter_blocks(model)
    names = [name for name in names if blocks[name] in plan.trained]
    freeze_except(model, names)
    return model, names


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A length, and where it comes from."""

    value: float
    why: str

    def notes(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        return {"coefficient": self.value, "coefficient_chosen_by": self.why}


def choose_coefficient(plan: Plan, given: float | Literal["auto"], multiple: float) -> Coefficient:
    """Return the length given, or for `auto` a multiple of the median length of a forget state at the block read."""
    if given != "auto":
        return Coefficient(given, "given")
    return Coefficient(multiple * plan.measured[plan.layer].forget_norm, f"{multiple:g} x median forget norm")
