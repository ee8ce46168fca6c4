# SPDX-License-Identifier: Apache-2.0
"""The one training loop: every method, and plain fine-tuning, runs through it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from expunge.errors import Interrupted, TrainingDiverged
from expunge.optim.factory import build_optimizer
from expunge.signals.likelihood import Scorer
from expunge.training.callbacks import Callback, JsonlLog, Probe, StepInfo, StopRule
from expunge.training.checkpoint import Checkpoint, checkpoints, load_checkpoint, save_checkpoint
from expunge.training.config import TrainingConfig
from expunge.training.interrupt import InterruptFlag, catch_interrupt
from expunge.training.precision import autocast_dtype, quiet_dropout
from expunge.training.schedule import learning_rate
from expunge.training.task import Counts, Group, MicroBatch, Task


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended: optimiser steps done, seconds, why it stopped early ("" if it did not), last loss parts."""

    steps: int
    seconds: float
    stopped: str
    losses: Mapping[str, float]


class Trainer:
    """Runs a task on a model: accumulation, precision, clipping, logging, probes, checkpoints, resume.

    Args:
        model: a causal language model whose moving parameters require gradients; changed in place.
        task: rows and losses.
        config: settings of the loop.
        pad_id: id used to pad.
        folder: where `metrics.jsonl` and `checkpoints/` go; None writes nothing (and cannot resume).
        probe: measures the model before the first step, on a schedule, and after the last step.
        callbacks: watch the run.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: TrainingConfig,
        *,
        pad_id: int,
        folder: Path | None = None,
        probe: Probe | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        from accelerate import Accelerator

        self._model, self._task, self._config, self._pad_id = model, task, config, pad_id
        self._folder, self._probe, self._callbacks = folder, probe, list(callbacks)
        device = next(model.parameters()).device
        self._accelerator = Accelerator(cpu=device.type == "cpu")
        self._stop = StopRule(config.stop)
        self._step, self._spent, self._last_saved = 0, 0.0, -1

    def run(self, *, resume: bool = False) -> TrainingResult:
        """Train to the end, or to the stop rule.

        Raises:
            TrainingDiverged: if a loss stops being finite; the model is put back to the last good checkpoint.
            Interrupted: if the user interrupted; a checkpoint is saved first.
        """
        config, task = self._config, self._task
        task.prepare(self._model)
        if config.gradient_checkpointing:
            self._model.gradient_checkpointing_enable()  # type: ignore[operator]
        optimizer = build_optimizer(self._model, config.optimizer, learning_rate=config.learning_rate)
        per_epoch = len(task.steps(0))
        total = min(config.max_steps or math.inf, config.epochs * per_epoch)
        if resume:
            self._restore(optimizer)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._callbacks.append(JsonlLog(self._folder / "metrics.jsonl", start_step=self._step))
        scorer, optimizer = self._accelerator.prepare(Scorer(self._model), optimizer)
        with catch_interrupt() as flag, quiet_dropout(self._model, keep=config.dropout):
            return self._loop(scorer, optimizer, int(total), per_epoch, flag)

    def _loop(
        self, scorer: Scorer, optimizer: torch.optim.Optimizer, total: int, per_epoch: int, flag: InterruptFlag
    ) -> TrainingResult:
        started, losses, stopped = time.perf_counter() - self._spent, dict[str, float](), ""
        probe_every = self._config.probe_every or per_epoch
        save_every = self._config.save_every or per_epoch
        if self._step == 0:
            self._measure(0)
        steps: Sequence[Sequence[Group]] = ()
        epoch = -1
        while self._step < total and not stopped:
            if self._step // per_epoch != epoch:
                epoch = self._step // per_epoch
                steps = self._task.steps(epoch)
            rate = learning_rate(self._step, total, self._config)
            losses, norm = self._one_step(scorer, optimizer, steps[self._step % per_epoch], rate)
            self._step += 1
            self._spent = time.perf_counter() - started
            for callback in self._callbacks:
                callback.on_step(StepInfo(self._step, total, epoch, losses, rate, norm, self._spent))
            if self._step % probe_every == 0 or self._step == total:
                stopped = self._measure(self._step) or ""
            if self._step % save_every == 0 and self._step < total:
                self._save(optimizer)
            if flag.requested and self._step < total:
                self._interrupt(optimizer)
        return TrainingResult(self._step, self._spent, stopped, losses)

    def _one_step(
        self, scorer: Scorer, optimizer: torch.optim.Optimizer, groups: Sequence[Group], rate: float
    ) -> tuple[dict[str, float], float]:
        """Accumulate gradients over the step's micro-batches and move the weights once."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        losses = self._backward(scorer, groups)
        moving = [p for p in self._model.parameters() if p.requires_grad]
        limit = self._config.max_grad_norm if self._config.max_grad_norm is not None else math.inf
        norm = float(self._accelerator.clip_grad_norm_(moving, limit))
        if not math.isfinite(norm):
            self._diverge("gradient norm", norm)
        optimizer.step()
        return losses, norm

    def _backward(self, scorer: Scorer, groups: Sequence[Group]) -> dict[str, float]:
        """Backpropagate every micro-batch of this process; return the summed loss parts."""
        counts = Counts.of(groups)
        world, rank = self._accelerator.num_processes, self._accelerator.process_index
        mine = groups[rank::world]
        size = self._config.micro_batch_size or self._config.batch_size
        chunks = [mine[i : i + size] for i in range(0, len(mine), size)]
        totals: dict[str, float] = {}
        for i, chunk in enumerate(chunks):
            micro = MicroBatch.of(chunk, self._pad_id, self._accelerator.device)
            wait = nullcontext() if i == len(chunks) - 1 else self._accelerator.no_sync(scorer)
            with wait, self._autocast():
                parts = self._task.losses(scorer, micro, counts)
                loss: Tensor = torch.stack(list(parts.values())).sum()
            if not bool(torch.isfinite(loss)):
                self._diverge("loss", float(loss.detach()))
            # Distributed wrappers average gradients over processes; the shares must be summed.
            self._accelerator.backward(loss * world)
            for name, part in parts.items():
                totals[name] = totals.get(name, 0.0) + float(part.detach())
        return totals

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = autocast_dtype(self._config.precision, self._accelerator.device)
        if dtype is None:
            return nullcontext()
        return torch.autocast(self._accelerator.device.type, dtype=dtype)

    def _measure(self, step: int) -> str | None:
        if self._probe is None:
            return None
        values = self._probe(self._model)
        for callback in self._callbacks:
            callback.on_probe(step, values)
        return self._stop.reason(values)

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        if self._folder is None or self._last_saved == self._step or not self._accelerator.is_main_process:
            return
        state = Checkpoint(self._step, self._spent, self._task.state_dict(), self._stop.start)
        keep = self._config.keep_checkpoints
        save_checkpoint(self._folder / "checkpoints", self._model, optimizer, state, keep=keep)
        self._last_saved = self._step

    def _restore(self, optimizer: torch.optim.Optimizer) -> None:
        found = checkpoints(self._folder / "checkpoints") if self._folder is not None else []
        if found:
            state = load_checkpoint(found[-1], self._model, optimizer)
            self._step, self._spent, self._last_saved = state.step, state.seconds, state.step
            self._stop.start = state.stop_start
            self._task.load_state_dict(state.task)

    def _interrupt(self, optimizer: torch.optim.Optimizer) -> None:
        self._save(optimizer)
        where = "its state is saved" if self._folder is not None else "nothing was written"
        raise Interrupted(f"interrupted after step {self._step}; {where}", remedy="Go on with --resume")

    def _diverge(self, what: str, value: float) -> None:
        """Put the weights back to the last good checkpoint, if there is one, and stop."""
        found = checkpoints(self._folder / "checkpoints") if self._folder is not None else []
        kept = "there was no checkpoint yet"
        if found:
            load_checkpoint(found[-1], self._model, None)
            kept = f"the last good checkpoint is {found[-1]}"
        raise TrainingDiverged(
            f"the {what} became {value} at step {self._step + 1}; {kept}", field="training.learning_rate",
            value=self._config.learning_rate, remedy="Lower it, or bound the forget objective (npo, simnpo)",
        )  # fmt: skip
