# SPDX-License-Identifier: Apache-2.0
"""Weight arithmetic: task vectors, taken and applied one precision above the weights and rounded once.

In the weights' own precision a vector is rounded before it is used, and adding and taking it away again changes some
weights in every few thousand; one precision up the round trip is exact to the last bit.

Shape suffixes: O output features, I input features, K rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from expunge.errors import InputDataError

_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
_PREFIX = "base_model.model."


class TaskVector(Protocol):
    """What a training changed, by parameter name; parameters that are not named did not change."""

    @property
    def names(self) -> Sequence[str]:
        """The parameters it has an entry for."""

    def delta(self, name: str) -> Tensor:
        """Return the change of one parameter, in the wider dtype."""


class Difference:
    """after - before, kept as the two states so that the difference is taken one precision up.

    Args:
        before: tensors by name.
        after: the same names and shapes; what both lack did not change.

    Raises:
        InputDataError: if names or shapes differ, or nothing changed at all.
    """

    def __init__(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        if odd := sorted(before.keys() ^ after.keys()):
            raise _unlike("only one of two models has it", odd[0])
        for name, tensor in before.items():
            if tensor.shape != after[name].shape:
                raise _unlike(f"shapes {tuple(tensor.shape)} and {tuple(after[name].shape)}", name)
        self._before, self._after = before, after
        self.names: Sequence[str] = [
            name for name in before if not torch.equal(before[name], after[name].to(before[name]))
        ]
        if not self.names:
            raise InputDataError(
                "the two models are the same: there is no task vector", field="method.vectors",
                remedy="Train longer, or name another model",
            )  # fmt: skip

    def delta(self, name: str) -> Tensor:
        """Return after - before of one parameter, in the wider dtype."""
        before, after = self._before[name], self._after[name]
        wide = wider(before.dtype)
        return after.to(before.device).to(wide) - before.to(wide)


class AdapterVector:
    """The change that a low-rank adapter makes to the weights it is on: scale B A, by the plain model's names.

    Args:
        model: a model wrapped by PEFT, with an adapter on linear layers only.

    Raises:
        InputDataError: if another kind of module has an adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        from peft.tuners.lora import LoraLayer

        self._layers: dict[str, Any] = {}
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                if not module.lora_A:
                    raise InputDataError(
                        "this adapter is not on a linear layer", field="method.vectors", value=name,
                        remedy="Merge it into its model first",
                    )  # fmt: skip
                self._layers[f"{name.removeprefix(_PREFIX)}.weight"] = module
        self.names: Sequence[str] = list(self._layers)

    def delta(self, name: str) -> Tensor:
        """Return scale B A of one weight, [O, I] or as the layer stores it, in the wider dtype."""
        layer, total = self._layers[name], None
        for adapter in layer.active_adapters:
            a_KI, b_OK = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            wide = wider(a_KI.dtype)
            product = layer.scaling[adapter] * (b_OK.to(wide) @ a_KI.to(wide))
            total = product if total is None else total + product
        assert isinstance(total, torch.Tensor), "an adapter is active"
        return total.T if layer.fan_in_fan_out else total

    def parameter(self, name: str) -> nn.Parameter:
        """Return the weight that the adapter is on; its gradient is that of the sum of both."""
        weight: nn.Parameter = self._layers[name].get_base_layer().weight
        return weight


class Masked:
    """A task vector without the entries where a mask is False.

    Args:
        vector: any.
        masks: bool, of the shape of each delta; a parameter without a mask loses all its entries.
    """

    def __init__(self, vector: TaskVector, masks: Mapping[str, Tensor]) -> None:
        self._vector, self._masks = vector, masks
        self.names: Sequence[str] = [name for name in vector.names if name in masks]

    def delta(self, name: str) -> Tensor:
        """Return the change of one parameter, zero where the mask is False."""
        delta = self._vector.delta(name)
        return delta.where(self._masks[name].to(delta.device), torch.zeros((), dtype=delta.dtype, device=delta.device))


def wider(dtype: torch.dtype) -> torch.dtype:
    """Return the floating type one precision above; float64 stays."""
    return _WIDER.get(dtype, torch.float64)


def shifted(start: Mapping[str, Tensor], vectors: Iterable[tuple[float, TaskVector]]) -> dict[str, Tensor]:
    """Return start + sum of coefficient times vector, for the parameters that any vector names, each rounded once.

    Args:
        start: tensors by name.
        vectors: coefficient and vector, each with names out of `start`.

    Raises:
        InputDataError: if a vector names a parameter that `start` lacks, or one of another shape.
    """
    pairs = list(vectors)
    names = dict.fromkeys(name for _, vector in pairs for name in vector.names)
    out: dict[str, Tensor] = {}
    for name in names:
        if name not in start:
            raise _unlike("a task vector names a parameter that the model lacks", name)
        total = start[name].detach().to(wider(start[name].dtype), copy=True)
        for coefficient, vector in pairs:
            if name in vector.names and coefficient != 0.0:
                delta = vector.delta(name).to(total)
                if delta.shape != total.shape:
                    raise _unlike(f"shapes {tuple(total.shape)} and {tuple(delta.shape)}", name)
                total += coefficient * delta
        out[name] = total.to(start[name].dtype)
    return out


def snapshot(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of the named parameters; a tied weight is one parameter and is copied once."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in names}


def write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set parameters by name, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _unlike(problem: str, name: str) -> InputDataError:
    return InputDataError(
        problem, field="method.vectors", value=name, remedy="Take models of the same architecture and vocabulary"
    )
