# SPDX-License-Identifier: Apache-2.0
"""What procedures share that gather gradients first and then move the weights once, as far as the retain loss allows.

They read one sequence at a time, so the split into micro-batches plays no part; an interrupted run begins again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.errors import Interrupted, RecipeError, TrainingDiverged
from expunge.methods.base import MethodConfig, MethodContext, MethodOutcome
from expunge.methods.weights import choose_parameters
from expunge.optim.fisher import Vector, inner
from expunge.signals.curvature import evaluating, gradient, sequence_nll
from expunge.signals.likelihood import Scorer, score
from expunge.training.callbacks import JsonlLog, StepInfo
from expunge.training.interrupt import InterruptFlag, catch_interrupt
from expunge.training.loop import TrainingResult

#: Halvings between the last step length that kept the retain loss and the first that did not.
_REFINEMENTS = 4
#: Doublings of the step length before the search gives up on reaching the limit.
_DOUBLINGS = 40


class OneShotConfig(MethodConfig):
    """Settings shared by one-shot procedures."""

    samples: int = Field(128, ge=1, description="retain sequences whose gradients are read")
    search_samples: int = Field(64, ge=1, description="further retain sequences on which the step length is chosen")
    retain_rise: float = Field(0.1, gt=0, description="line search: largest rise of the retain loss, nats per token")
    step: float | None = Field(None, ge=0, description="step length; default: found by the line search")


@dataclass(frozen=True, slots=True)
class LineSearch:
    """The chosen step length, the retain loss before and after it (nats per token), and the lengths tried."""

    step: float
    before: float
    after: float
    tried: int

    def notes(self) -> dict[str, Any]:
        """Return what the run prints."""
        return {
            "step_length": self.step, "retain_nll_before": self.before, "retain_nll_after": self.after,
            "lengths_tried": self.tried,
        }  # fmt: skip


class OneShotRun:
    """One run of such a procedure: its data, its moving parameters, its bookkeeping.

    Args:
        config: settings.
        context: inputs.
        method: name, for errors.

    Raises:
        RecipeError: if there is no retain set, or the recipe asks for what only the training loop does.
    """

    def __init__(self, config: OneShotConfig, context: MethodContext, method: str) -> None:
        _refuse_the_loop(context, method)
        encode = context.encoder.encode_many
        retain = [row.encoded for row in encode(context.need_retain(method), where="retain")]
        self.forget = [row.encoded for row in encode(context.splits.forget, where="forget")]
        order = np.random.default_rng([context.seed, 49979687]).permutation(len(retain)).tolist()
        self.retain = [retain[i] for i in order[: config.samples]]
        # Without enough sequences for both, the search looks at those whose gradients were read.
        self.search = [retain[i] for i in order[config.samples :][: config.search_samples]] or self.retain
        self.config, self.context = config, context
        self.model = choose_parameters(context.model, context.training, context.seed)
        self.parameters: Mapping[str, nn.Parameter] = {
            name: p for name, p in self.model.named_parameters() if p.requires_grad
        }
        self.scorer = Scorer(self.model)
        self._callbacks = list(context.callbacks)
        self._step, self._total, self._started = 0, 0, time.perf_counter()
        self._flag: InterruptFlag | None = None
        self._losses: dict[str, float] = {}

    @contextmanager
    def running(self, passes: Sequence[int]) -> Iterator[None]:
        """Log, probe and catch interruptions around the procedure, which reads that many sequences in each pass."""
        size, folder = self.context.training.batch_size, self.context.folder
        self._total = sum(-(-n // size) for n in passes)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._callbacks.append(JsonlLog(folder / "metrics.jsonl"))
        self._probe()
        with catch_interrupt() as self._flag, evaluating(self.model):
            yield
        self._probe()

    def read(self, items: Sequence[Encoded], part: str) -> Iterator[Encoded]:
        """Yield sequences, and count a step after each batch of them.

        Raises:
            Interrupted: after the step in which the user asked for it.
        """
        size = self.context.training.batch_size
        for start in range(0, len(items), size):
            yield from items[start : start + size]
            self._step += 1
            spent = time.perf_counter() - self._started
            info = StepInfo(self._step, self._total, 0, {part: self._losses.get(part, 0.0)}, 0.0, 0.0, spent)
            for callback in self._callbacks:
                callback.on_step(info)
            if self._flag is not None and self._flag.requested:
                raise Interrupted(
                    f"interrupted after step {self._step}; no weight has moved",
                    remedy="With --resume it begins again: a procedure of one step has nothing to go on from",
                )

    def loss(self, item: Encoded, part: str, *, mean: bool) -> Tensor:
        """Return one sequence's negative log-likelihood, with its graph."""
        loss = sequence_nll(self.scorer, item, mean=mean)
        self._losses[part] = float(loss.detach())
        return loss

    def mean_gradient(self, items: Sequence[Encoded], part: str, *, mean: bool) -> Vector:
        """Return the mean over sequences of their gradients, float32."""
        moving = list(self.parameters.values())
        total = [torch.zeros_like(p, dtype=torch.float32) for p in moving]
        for item in self.read(items, part):
            for value, g in zip(total, gradient(self.loss(item, part, mean=mean), moving), strict=True):
                value.add_(g)
        for value in total:
            value.div_(len(items))
        return total

    def retain_nll(self) -> float:
        """Return the mean retain loss of the search's sequences, nats per token."""
        scores = score(self.model, self.search, pad_id=self.context.pad_id, stats=False)
        return float(np.mean([-entry.logp.mean() for entry in scores]))

    def move(self, direction: Vector) -> LineSearch:
        """Move along `direction` by the given step, or by the longest that keeps the retain loss within its limit.

        Lengths are doubled from a thousandth of the weights' norm until the limit is passed, then refined between
        the last that kept it and the first that did not.

        Raises:
            TrainingDiverged: if the direction is not finite or zero.
        """
        size = inner(direction, direction) ** 0.5
        if not np.isfinite(size) or size == 0.0:
            raise TrainingDiverged(
                f"the direction has norm {size}", field="method.damping",
                remedy="Raise the damping; if all gradients are zero, no moving parameter matters",
            )  # fmt: skip
        moving = list(self.parameters.values())
        start = [p.detach().clone() for p in moving]

        def place(length: float) -> float:
            with torch.no_grad():
                for p, before, d in zip(moving, start, direction, strict=True):
                    p.copy_(before + length * d.to(p.dtype))
            return self.retain_nll()

        before = self.retain_nll()
        if self.config.step is not None:
            return LineSearch(self.config.step, before, place(self.config.step), 1)
        limit, tried = before + self.config.retain_rise, 0
        low, high = 0.0, 1e-3 * max(inner(start, start) ** 0.5, 1e-12) / size
        while tried < _DOUBLINGS and place(high) <= limit:
            low, high, tried = high, 2.0 * high, tried + 1
        for _ in range(_REFINEMENTS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if place(middle) <= limit else (low, middle)
        return LineSearch(low, before, place(low), tried + 1 + _REFINEMENTS)

    def outcome(self, search: LineSearch, notes: Mapping[str, Any]) -> MethodOutcome:
        """Return the changed model with what was chosen."""
        spent = time.perf_counter() - self._started
        return MethodOutcome(
            self.model, TrainingResult(self._step, spent, "", dict(self._losses)), {**search.notes(), **notes}
        )

    def _probe(self) -> None:
        if self.context.probe is not None:
            values = self.context.probe(self.model)
            for callback in self._callbacks:
                callback.on_probe(self._step, values)


def _refuse_the_loop(context: MethodContext, method: str) -> None:
    """Raise if the recipe asks for something that exists only where there is a training loop."""
    training = context.training
    asked = {
        "training.mask.kind": (training.mask.kind, "none"),
        "training.wrapper.name": (training.wrapper.name, "none"),
        "training.stop.rule": (training.stop.rule, "steps"),
        "training.proximal_l1": (training.proximal_l1, None),
    }
    for field, (value, neutral) in asked.items():
        if value != neutral:
            raise RecipeError(
                f"{method} moves all chosen parameters in one step and has no training loop", field=field,
                value=value, remedy=f"Set it to {neutral or 'null'}",
            )  # fmt: skip
