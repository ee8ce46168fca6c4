# SPDX-License-Identifier: Apache-2.0
"""Rewinding: of the weights at the end of every epoch, keep those whose forget error looks like held-out error.

Source: Kurmanji et al., NeurIPS 2023, "Towards Unbounded Machine Unlearning" (arXiv:2302.09880), SCRUB+R.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.signals.likelihood import score


class ErrorProbe:
    """Mean loss of the forget set and of held-out examples like it, nats per token, each example weighing the same.

    Args:
        forget: the whole forget set.
        holdout: examples of the same kind that no model was ever trained on.
        pad_id: id used to pad.
    """

    def __init__(self, forget: Sequence[Encoded], holdout: Sequence[Encoded], *, pad_id: int) -> None:
        self._items = [*forget, *holdout]
        self._forgotten, self._pad_id = len(forget), pad_id

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Return `forget.nll` and `holdout.nll`."""
        loss = [-float(entry.logp.mean()) for entry in score(model, self._items, pad_id=self._pad_id, stats=False)]
        cut = self._forgotten
        return {"forget.nll": float(np.mean(loss[:cut])), "holdout.nll": float(np.mean(loss[cut:]))}


@dataclass(frozen=True, slots=True)
class RewindPoint:
    """Errors of the weights after a step, nats per token."""

    step: int
    forget_nll: float
    holdout_nll: float


@dataclass(frozen=True, slots=True)
class RewindChoice:
    """The step whose weights were taken, the held-out error they were to match, and all there was to choose from."""

    step: int
    target_nll: float
    trajectory: tuple[RewindPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as plain JSON values."""
        return asdict(self)


def closest(errors: Sequence[float], target: float) -> int:
    """Return the position of the error closest to `target`, the first of equals; what is not finite is passed over."""
    return min(range(len(errors)), key=lambda i: abs(errors[i] - target) if math.isfinite(errors[i]) else math.inf)


class Rewinder:
    """Keeps the moving weights of every epoch's end, and at the end of the run puts the chosen ones back.

    The reference is the held-out error of the weights the run ends with. The weights it began with are measured by
    whoever likes to, but cannot be chosen: a run that ends with them has not unlearned anything.

    Args:
        probe: gives both errors.
        folder: where the snapshots go; they stay there. None keeps them in memory.
    """

    def __init__(self, probe: ErrorProbe, folder: Path | None) -> None:
        self._probe, self._folder = probe, folder
        self._points: list[RewindPoint] = []
        self._snapshots: dict[int, dict[str, Tensor]] = {}

    def begin(self, step: int) -> None:
        """Forget what belongs to steps that will run (again): those after `step`."""
        self._snapshots = {known: weights for known, weights in self._snapshots.items() if known <= step}
        self._points = [point for point in self._points if point.step <= step]
        if self._folder is None:
            return
        if step == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._points = [point for point in _stored(self._folder) if point.step <= step]

    def on_epoch(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Keep the weights after `step` and return their errors."""
        errors = self._probe(model)
        point = RewindPoint(step, errors["forget.nll"], errors["holdout.nll"])
        weights = {name: p.detach().cpu().clone() for name, p in _moving(model).items()}
        if self._folder is None:
            self._snapshots[step] = weights
        else:
            _write(self._folder, point, weights)
        self._points = [*(known for known in self._points if known.step < step), point]
        return errors

    def restore(self, model: nn.Module) -> RewindChoice:
        """Put the chosen weights into the model.

        Raises:
            ValueError: if no epoch ended.
        """
        if not self._points:
            raise ValueError("there is nothing to rewind to: no epoch ended")
        target = self._points[-1].holdout_nll
        chosen = self._points[closest([point.forget_nll for point in self._points], target)]
        weights = self._snapshots[chosen.step] if self._folder is None else _read(self._folder, chosen.step)
        with torch.no_grad():
            for name, p in _moving(model).items():
                p.copy_(weights[name])
        return RewindChoice(chosen.step, target, tuple(self._points))


def _moving(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def _write(folder: Path, point: RewindPoint, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    final = _path(folder, point.step)
    partial = final.with_suffix(".partial")
    # The repr of a float gives the same float back.
    save_file(weights, partial, metadata={name: repr(value) for name, value in asdict(point).items()})
    partial.rename(final)


def _read(folder: Path, step: int) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = load_file(_path(folder, step))
    return weights


def _stored(folder: Path) -> list[RewindPoint]:
    """Return the errors of the snapshots in a folder, by step."""
    from safetensors import safe_open

    points = []
    for path in sorted(folder.glob("step-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found = file.metadata()
        points.append(RewindPoint(int(found["step"]), float(found["forget_nll"]), float(found["holdout_nll"])))
    return points
