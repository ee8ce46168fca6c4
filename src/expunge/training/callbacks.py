# SPDX-License-Identifier: Apache-2.0
"""What watches a run: the JSONL log, the progress display, the stop rules."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from expunge.runs import write_text
from expunge.training.config import StopConfig

#: Measures the model while it trains; names are those of the audit, such as `retain.probability`.
Probe = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One finished optimiser step.

    Attributes:
        step: 1 is the first.
        total: steps of the whole run.
        epoch: 0 is the first.
        losses: the weighted parts, whose sum was minimised.
        learning_rate: of this step.
        grad_norm: L2 norm of the gradient before clipping.
        seconds: since the run began.
        extra: what else is worth a line, such as `clip_fraction` of an optimiser that cuts its steps.
    """

    step: int
    total: int
    epoch: int
    losses: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    seconds: float
    extra: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the line written to `metrics.jsonl`."""
        return {
            "step": self.step, "epoch": self.epoch, "seconds": round(self.seconds, 4),
            "loss": sum(self.losses.values()), **self.losses, "lr": self.learning_rate, "grad_norm": self.grad_norm,
            **self.extra,
        }  # fmt: skip


class Callback(Protocol):
    """Watches a run without changing it."""

    def on_step(self, info: StepInfo) -> None:
        """Called after every optimiser step."""

    def on_probe(self, step: int, values: Mapping[str, float]) -> None:
        """Called after every probe; step 0 is before anything moved."""


class JsonlLog:
    """Appends one line a step and one a probe to `metrics.jsonl`.

    On resume, lines past `start_step` belong to steps that will run again and are dropped.
    """

    def __init__(self, path: Path, *, start_step: int = 0) -> None:
        self._path = path
        kept = []
        if start_step and path.exists():
            kept = [line for line in path.read_text("utf-8").splitlines() if _step(line) <= start_step]
        write_text(path, "".join(f"{line}\n" for line in kept))

    def on_step(self, info: StepInfo) -> None:
        """Write one step."""
        self._write(info.to_dict())

    def on_probe(self, step: int, values: Mapping[str, float]) -> None:
        """Write one probe."""
        self._write({"step": step, "probe": dict(values)})

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _step(line: str) -> float:
    """Return the step of a line of the log; infinity for one that a kill cut off."""
    try:
        return int(json.loads(line)["step"])
    except json.JSONDecodeError:
        return math.inf


class StopRule:
    """Decides after each probe whether the run should end before its last step.

    `start` is the retain probability before anything moved; it must survive an interruption.
    """

    def __init__(self, config: StopConfig) -> None:
        self._config = config
        self.start: float | None = None

    def reason(self, values: Mapping[str, float]) -> str | None:
        """Return why to stop now, or None.

        Raises:
            KeyError: if the rule needs a retain set and the probe has none.
        """
        if self._config.rule != "utility_drop":
            return None
        now = values["retain.probability"]
        if self.start is None:
            self.start = now
        if now < (1.0 - self._config.max_drop) * self.start:
            return (
                f"retain probability fell from {self.start:.4f} to {now:.4f}, "
                f"more than {self._config.max_drop:.0%} of its start"
            )
        return None
