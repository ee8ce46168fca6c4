# SPDX-License-Identifier: Apache-2.0
"""The one training loop: every method, and plain fine-tuning, runs through it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from expunge.errors import Interrupted, RecipeError, TrainingDiverged
from expunge.optim.factory import build_optimizer
from expunge.optim.masks import WeightMasks
from expunge.optim.proximal import ProximalL1, l1_weight
from expunge.optim.scores import linear_weights
from expunge.signals.head import output_head
from expunge.signals.likelihood import Scorer
from expunge.training.callbacks import Callback, JsonlLog, Probe, StepInfo, StopRule
from expunge.training.checkpoint import Checkpoint, checkpoints, load_checkpoint, save_checkpoint
from expunge.training.config import TrainingConfig
from expunge.training.interrupt import InterruptFlag, catch_interrupt
from expunge.training.precision import quiet_dropout
from expunge.training.schedule import learning_rate
from expunge.training.step import GradientRule, NotFinite, PlainGradient, Stepper
from expunge.training.task import Group, Task


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
        masks: weights that stay as they are, bit for bit.
        rule: how the gradient of a step is formed from its losses; default: their sum's.
        seed: of what the optimiser draws.
        keep_last: save a checkpoint after the last step too, for a procedure in which another run follows.

    Raises:
        RecipeError: if `config` asks for a mask and there is none, or for sparse layers and none may move.
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
        masks: WeightMasks | None = None,
        rule: GradientRule | None = None,
        seed: int = 0,
        keep_last: bool = False,
    ) -> None:
        from accelerate import Accelerator

        self._model, self._task, self._config, self._pad_id = model, task, config, pad_id
        self._folder, self._probe, self._callbacks = folder, probe, list(callbacks)
        device = next(model.parameters()).device
        self._accelerator = Accelerator(cpu=device.type == "cpu")
        self._stop = StopRule(config.stop)
        self._step, self._spent, self._last_saved = 0, 0.0, -1
        self._masks, self._rule, self._seed, self._keep_last = masks, rule or PlainGradient(), seed, keep_last
        if config.mask.kind != "none" and masks is None:
            raise RecipeError(
                "this procedure chooses no single weights", field="training.mask.kind", value=config.mask.kind,
                remedy="Use a method of gradient steps on forget and retain set, or kind: none",
            )  # fmt: skip
        self._proximal = _proximal(model, config)

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
        stepper = self._stepper(optimizer)
        with catch_interrupt() as flag, quiet_dropout(self._model, keep=config.dropout):
            result = self._loop(stepper, optimizer, int(total), per_epoch, flag)
        if self._keep_last:
            self._save(optimizer)
        return result

    def _stepper(self, raw: torch.optim.Optimizer) -> Stepper:
        # Hooks run in the order they were registered: the masks undo whatever else moved a weight that stays.
        if self._proximal is not None:
            self._proximal.attach(raw)
        if self._masks is not None:
            self._masks.attach(raw)
        scorer, optimizer = self._accelerator.prepare(Scorer(self._model), raw)
        return Stepper(
            self._task, self._config, scorer=scorer, optimizer=optimizer, raw=raw, accelerator=self._accelerator,
            rule=self._rule, masks=self._masks, pad_id=self._pad_id, seed=self._seed,
        )  # fmt: skip

    def _loop(
        self, stepper: Stepper, optimizer: torch.optim.Optimizer, total: int, per_epoch: int, flag: InterruptFlag
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
                steps = self._begin_epoch(epoch)
            rate = learning_rate(self._step, total, self._config)
            try:
                done = stepper.run(steps[self._step % per_epoch], step=self._step, rate=rate)
            except NotFinite as error:
                raise self._diverged(error) from None
            self._step += 1
            self._spent, losses = time.perf_counter() - started, done.losses
            info = StepInfo(self._step, total, epoch, losses, rate, done.grad_norm, self._spent, done.extra)
            for callback in self._callbacks:
                callback.on_step(info)
            if self._step % probe_every == 0 or self._step == total:
                stopped = self._measure(self._step) or ""
            if self._step % save_every == 0 and self._step < total:
                self._save(optimizer)
            if flag.requested and self._step < total:
                self._interrupt(optimizer)
        return TrainingResult(self._step, self._spent, stopped, losses)

    def _begin_epoch(self, epoch: int) -> Sequence[Sequence[Group]]:
        settings = self._config.proximal_l1
        if self._proximal is not None and settings is not None:
            self._proximal.weight = l1_weight(
                settings.weight, epoch, epochs=self._config.epochs, free_epochs=settings.free_epochs
            )
        return self._task.steps(epoch)

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

    def _diverged(self, error: NotFinite) -> TrainingDiverged:
        """Put the weights back to the last good checkpoint, if there is one, and return what to raise."""
        found = checkpoints(self._folder / "checkpoints") if self._folder is not None else []
        kept = "there was no checkpoint yet"
        if found:
            load_checkpoint(found[-1], self._model, None)
            kept = f"the last good checkpoint is {found[-1]}"
        return TrainingDiverged(
            f"{error} at step {self._step + 1}; {kept}", field="training.learning_rate",
            value=self._config.learning_rate, remedy="Lower it, or bound the forget objective (npo, simnpo)",
        )  # fmt: skip


def _proximal(model: nn.Module, config: TrainingConfig) -> ProximalL1 | None:
    if config.proximal_l1 is None:
        return None
    weights = [p for p in linear_weights(model, without=[output_head(model)]).values() if p.requires_grad]
    if not weights:
        raise RecipeError(
            "no linear layer may move", field="training.proximal_l1", remedy="Check training.trainable, or leave it out"
        )
    return ProximalL1(weights, config.proximal_l1.weight)
