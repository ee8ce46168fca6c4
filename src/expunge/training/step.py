# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: the gradient of the whole step from its micro-batches, the mask, the clipping, the move."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from expunge.objectives.targets import sampled_label_nll
from expunge.optim.clipped import ClippedOptimizer
from expunge.optim.masks import WeightMasks
from expunge.optim.rules import GradientRule
from expunge.optim.sophia import Sophia
from expunge.signals.likelihood import Scorer, TokenRequest
from expunge.training.config import TrainingConfig
from expunge.training.precision import autocast_dtype
from expunge.training.task import Counts, Group, MicroBatch, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


#: Tokens of one forward on a CPU: over a model of 14 million parameters a step takes 3 % longer than with 1,024 and
#: peaks at three quarters of the memory of one forward of 1,600; with 512 it takes 4 % longer again.
CPU_TOKENS = 768


class NotFinite(ArithmeticError):
    """A loss or a gradient norm stopped being a finite number."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(f"the {what} became {value}")
        self.what, self.value = what, value


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """Loss parts, the gradient's norm before clipping, and what else the step has to tell."""

    losses: dict[str, float]
    grad_norm: float
    extra: dict[str, float]


class Stepper:
    """Takes the steps of one run.

    Args:
        task: losses.
        config: settings of the loop.
        scorer: the model as prepared by `accelerator`.
        optimizer: the optimiser as prepared by `accelerator`.
        raw: the optimiser itself.
        accelerator: of the run.
        rule: how gradients are formed.
        masks: weights that stay as they are; already attached to `raw`.
        pad_id: id used to pad.
        seed: of labels drawn for curvature estimates.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        *,
        scorer: Scorer,
        optimizer: torch.optim.Optimizer,
        raw: torch.optim.Optimizer,
        accelerator: Accelerator,
        rule: GradientRule,
        masks: WeightMasks | None,
        pad_id: int,
        seed: int,
    ) -> None:
        self._task, self._config, self._scorer, self._accelerator = task, config, scorer, accelerator
        self._optimizer, self._raw, self.rule, self._masks = optimizer, raw, rule, masks
        self._pad_id, self._seed = pad_id, seed
        self.moving = [p for p in scorer.parameters() if p.requires_grad]
        self._watched: dict[str, float] = {}

    def run(self, groups: Sequence[Group], *, step: int, rate: float) -> StepOutcome:
        """Move the weights once.

        Args:
            groups: rows of the step.
            step: steps done before this one.
            rate: learning rate.

        Raises:
            NotFinite: before anything moves.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        every = self._config.optimizer.hessian_every
        if isinstance(self._raw, Sophia) and every is not None and step % every == 0:
            self._estimate_curvature(self._raw, groups, step)
        self._optimizer.zero_grad(set_to_none=True)
        self._watched = {}
        losses = self.rule.gradients(partial(self._backward, groups), self.moving, step=step)
        limit = self._config.max_grad_norm if self._config.max_grad_norm is not None else math.inf
        norm = float(self._accelerator.clip_grad_norm_(self.moving, limit))
        if not math.isfinite(norm):
            raise NotFinite("gradient norm", norm)
        self._optimizer.step()
        self.rule.after_step(self.moving, step=step + 1)
        return StepOutcome(losses, norm, self._extra())

    def _extra(self) -> dict[str, float]:
        extra = {**self._watched, **self._task.finish_step(self._watched)}
        if isinstance(self._raw, ClippedOptimizer) and (share := self._raw.clip_fraction) is not None:
            extra["clip_fraction"] = share
        return extra

    def _backward(self, groups: Sequence[Group], parts: Container[str] | None) -> dict[str, float]:
        """See `optim.rules.Backward`."""
        counts, world = Counts.of(groups), self._accelerator.num_processes
        minimised: dict[str, Tensor] = {}
        watched: dict[str, Tensor] = {}
        for micro, wait in self._micro_batches(groups):
            with wait, self._autocast():
                found = self._task.losses(self._scorer, micro, counts)
                chosen = [p for name, p in found.items() if p.requires_grad and (parts is None or name in parts)]
                loss = torch.stack(chosen).sum() if chosen else None
            if loss is not None:
                # Distributed wrappers average gradients over processes; the shares must be summed.
                self._accelerator.backward(loss * world)
            for name, part in found.items():
                into = minimised if part.requires_grad else watched
                into[name] = into[name] + part.detach() if name in into else part.detach()
        if self._masks is not None:
            self._masks.mask_gradients()
        # Read once a pass: every reading makes the host wait for the accelerator.
        values = self._summed(_read({**minimised, **watched}))
        for name in minimised:
            if not math.isfinite(values[name]):
                raise NotFinite("loss", values[name])
        # A rule's first pass is at the weights the step began with.
        self._watched = self._watched or {name: values[name] for name in watched}
        return {name: values[name] for name in minimised}

    def _summed(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over all processes of values that each has its share of."""
        if self._accelerator.num_processes == 1 or not values:
            return dict(values)
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=self._accelerator.device)
        return dict(zip(values, self._accelerator.reduce(mine, reduction="sum").tolist(), strict=True))

    def _estimate_curvature(self, optimizer: Sophia, groups: Sequence[Group], step: int) -> None:
        """Feed the optimiser the gradient of the mean cross-entropy on labels drawn from the model, on every row."""
        optimizer.zero_grad(set_to_none=True)
        tokens = sum(Counts.of(groups).tokens.values())
        rng = np.random.default_rng([self._seed, 15485863, step, self._accelerator.process_index])
        for micro, wait in self._micro_batches(groups):
            # Numbers come from one stream in the order of the rows, so any split into micro-batches draws the same.
            drawn = rng.random(sum(row.encoded.n_labels for row in micro.rows), dtype=np.float32)
            with wait, self._autocast():
                loss = sampled_label_loss(self._scorer, micro, torch.from_numpy(drawn)) / tokens
            self._accelerator.backward(loss * self._accelerator.num_processes)
        if self._masks is not None:
            self._masks.mask_gradients()
        optimizer.update_hessian(tokens=tokens)

    def _micro_batches(self, groups: Sequence[Group]) -> Iterator[tuple[MicroBatch, AbstractContextManager[object]]]:
        """Yield this process's micro-batches, each with the context that delays its synchronisation."""
        mine = groups[self._accelerator.process_index :: self._accelerator.num_processes]
        pieces = split_groups(mine, self._config, self._accelerator.device)
        for number, piece in enumerate(pieces, start=1):
            micro = MicroBatch.of(piece, self._pad_id, self._accelerator.device)
            yield micro, nullcontext() if number == len(pieces) else self._accelerator.no_sync(self._scorer)

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = autocast_dtype(self._config.precision, self._accelerator.device)
        if dtype is None:
            return nullcontext()
        return torch.autocast(self._accelerator.device.type, dtype=dtype)


def _read(values: Mapping[str, Tensor]) -> dict[str, float]:
    if not values:
        return {}
    return dict(zip(values, torch.stack([value.double() for value in values.values()]).tolist(), strict=True))


def split_groups(groups: Sequence[Group], config: TrainingConfig, device: torch.device) -> list[Sequence[Group]]:
    """Return the groups of a step as micro-batches, in order.

    Each has `micro_batch_size` groups; where that is not set, as many as fit into `CPU_TOKENS` on a CPU, and all of
    them elsewhere.
    """
    size = config.micro_batch_size or (None if device.type == "cpu" else config.batch_size)
    if size is not None:
        return [groups[start : start + size] for start in range(0, len(groups), size)]
    pieces: list[list[Group]] = []
    room = 0
    for group in groups:
        tokens = sum(len(row.encoded.ids) for row in group)
        if tokens > room:
            pieces.append([])
            room = CPU_TOKENS
        pieces[-1].append(group)
        room -= tokens
    return list(pieces)


def sampled_label_loss(scorer: Scorer, micro: MicroBatch, uniform: Tensor) -> Tensor:
    """Return the sum over all labelled tokens of -log p of a label drawn from the model.

    Args:
        scorer: the model.
        micro: rows; all of them take part.
        uniform: one number from [0, 1) per labelled token, in row order.
    """
    batch = micro.batch
    rows = torch.arange(len(micro.rows), device=batch.input_ids.device)
    request = TokenRequest(sampled_label_nll, rows, (uniform.to(rows.device),))
    total: Tensor = scorer(batch.input_ids, batch.attention_mask, batch.labels, [request])[0].values.sum()
    return total
