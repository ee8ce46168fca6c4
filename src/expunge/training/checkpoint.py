# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that let a killed run end in the same bytes as one that was never killed."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.optim.rules import GradientRule


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run stands: optimiser steps done, seconds spent, the task's own state and the stop rule's start."""

    step: int
    seconds: float
    task: dict[str, Any]
    stop_start: float | None = None


def save_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, rule: GradientRule, state: Checkpoint, *,
    keep: int,
) -> Path:  # fmt: skip
    """Write a checkpoint under `folder` in one rename, then delete all but the newest `keep`."""
    final = folder / f"step-{state.step:08d}"
    partial = folder / f".partial-{state.step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write(partial, module, optimizer, rule, state)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def _write(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, rule: GradientRule, state: Checkpoint
) -> None:
    from safetensors.torch import save_file

    moving = {name: p.detach().cpu().clone() for name, p in module.named_parameters() if p.requires_grad}
    save_file(moving, folder / "weights.safetensors")
    with (folder / "optimizer.pt").open("wb") as file:  # opened here, so that a full disk is reported as one
        saved = {"optimizer": optimizer.state_dict(), "rule": rule.state_dict(), "rng": torch.get_rng_state()}
        torch.save(saved, file)
    (folder / "state.json").write_text(json.dumps(asdict(state)), "utf-8")


def checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints under `folder`, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None, rule: GradientRule | None = None
) -> Checkpoint:
    """Restore weights, optimiser, gradient rule and random state in place and return where the run stood.

    Raises:
        ValueError: if the checkpoint holds other parameters than those that may move now.
    """
    from safetensors.torch import load_file

    weights = load_file(path / "weights.safetensors")
    moving = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if set(weights) != set(moving):
        raise ValueError(f"{path} was written by a run in which other parameters moved")
    with torch.no_grad():
        for name, parameter in moving.items():
            parameter.copy_(weights[name])
    if optimizer is not None:
        saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        if rule is not None:
            rule.load_state_dict(saved["rule"])
        torch.set_rng_state(saved["rng"])
    return Checkpoint(**json.loads((path / "state.json").read_text("utf-8")))
