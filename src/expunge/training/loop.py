# SPDX-License-Identifier: Apache-2.0
"""The one training loop: every method, and plain fine-tuning, runs through it."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.errors import Interrupted, RecipeError, TrainingDiverged
from expunge.optim.factory import build_optimizer
from expunge.optim.masks import WeightMasks
from expunge.optim.proximal import ProximalL1, l1_weight
from expunge.optim.rules import GradientRule
from expunge.optim.scores import linear_weights
from expunge.signals.head import output_head
from expunge.signals.likelihood import Scorer
from expunge.training.callbacks import Callback, JsonlLog, Probe, StepInfo, StopRule
from expunge.training.checkpoint import Checkpoint, checkpoints, load_checkpoint, save_checkpoint
from expunge.training.config import TrainingConfig
from expunge.training.interrupt import InterruptFlag, catch_interrupt
from expunge.training.passes import prepared_passes
from expunge.training.precision import autocast_dtype, quiet_dropout
from expunge.training.prefix import FrozenPrefix, first_moving_block, sequences_of
from expunge.training.private import PrivateStepper
from expunge.training.rewind import ErrorProbe, Rewinder
from expunge.training.schedule import learning_rate
from expunge.training.step import NotFinite, Stepper
from expunge.training.task import Group, Task
from expunge.training.wrapping import build_rule


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        steps: optimiser steps done.
        seconds: spent on them.
        stopped: why it ended early; "" if it did not.
        losses: parts of the last step.
        notes: what else the report shall print, such as the epoch a run was rewound to.
    """

    steps: int
    seconds: float
    stopped: str
    losses: Mapping[str, float]
    notes: Mapping[str, Any] = field(default_factory=dict)


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
        rule: how the gradient of a step is formed from its losses; default: what `config.wrapper` names.
        errors: measures what rewinding compares; needed if `config` asks for it.
        seed: of what the optimiser draws.
        keep_last: save a checkpoint after the last step too, for a procedure in which another run follows.

    Raises:
        RecipeError: if `config` asks for a mask and there is none, for sparse layers and none may move, or for
            rewinding and nothing is given to measure.
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
        errors: ErrorProbe | None = None,
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
        self._masks, self._given_rule, self._seed, self._keep_last = masks, rule, seed, keep_last
        self._rewinder = _rewinder(config, errors, folder)
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
        with prepared_passes(self._model, self._config):
            return self._run(resume=resume)

    def _run(self, *, resume: bool) -> TrainingResult:
        config, task = self._config, self._task
        task.prepare(self._model)
        optimizer = build_optimizer(self._model, config.optimizer, learning_rate=config.learning_rate)
        ends = list(accumulate(len(task.steps(epoch)) for epoch in range(config.epochs)))
        total = min(config.max_steps or ends[-1], ends[-1])
        half = autocast_dtype(config.precision, self._accelerator.device) is not None
        rule = self._given_rule or build_rule(config.wrapper, self._model, steps=total, half_precision=half)
        if resume:
            self._restore(optimizer, rule)
        if self._rewinder is not None:
            self._rewinder.begin(self._step)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._callbacks.append(JsonlLog(self._folder / "metrics.jsonl", start_step=self._step))
        stepper = self._stepper(optimizer, rule, total)
        with catch_interrupt() as flag, quiet_dropout(self._model, keep=config.dropout):
            result = self._loop(stepper, optimizer, total, ends, flag)
        if self._rewinder is not None:
            result = self._rewind(self._rewinder, result)
        if self._keep_last:
            self._save(optimizer, rule)
        return result

    def _scorer(self, total: int) -> Scorer:
        config, model = self._config, self._model
        first = first_moving_block(model, config)
        if first == 0:
            return Scorer(model, only_read=not config.gradient_checkpointing)
        items = list(sequences_of(self._task, epochs=config.epochs, steps=total))
        folder = None if self._folder is None else self._folder / "cache"
        prefix = FrozenPrefix(model, first, items, pad_id=self._pad_id, folder=folder, memory_mb=config.cache_mb)
        return Scorer(model, prefix, only_read=not config.gradient_checkpointing)

    def _stepper(self, raw: torch.optim.Optimizer, rule: GradientRule, total: int) -> Stepper:
        # Hooks run in the order they were registered: the masks undo whatever else moved a weight that stays.
        if self._proximal is not None:
            self._proximal.attach(raw)
        if self._masks is not None:
            self._masks.attach(raw)
        scorer, optimizer = self._accelerator.prepare(self._scorer(total), raw)
        make = Stepper if self._config.privacy is None else PrivateStepper
        return make(
            self._task, self._config, scorer=scorer, optimizer=optimizer, raw=raw, accelerator=self._accelerator,
            rule=rule, masks=self._masks, pad_id=self._pad_id, seed=self._seed,
        )  # fmt: skip

    def _loop(
        self, stepper: Stepper, optimizer: torch.optim.Optimizer, total: int, ends: Sequence[int], flag: InterruptFlag
    ) -> TrainingResult:
        started, losses, stopped = time.perf_counter() - self._spent, dict[str, float](), ""
        if self._step == 0:
            self._measure(0)
        steps: Sequence[Sequence[Group]] = ()
        epoch = -1
        while self._step < total and not stopped:
            if bisect_right(ends, self._step) != epoch:
                epoch = bisect_right(ends, self._step)
                steps = self._begin_epoch(epoch)
            rate = learning_rate(self._step, total, self._config)
            try:
                done = stepper.run(steps[self._step - ends[epoch] + len(steps)], step=self._step, rate=rate)
            except NotFinite as error:
                raise self._diverged(error) from None
            self._step += 1
            self._spent, losses = time.perf_counter() - started, done.losses
            info = StepInfo(self._step, total, epoch, losses, rate, done.grad_norm, self._spent, done.extra)
            for callback in self._callbacks:
                callback.on_step(info)
            optimizer.zero_grad(set_to_none=True)  # a probe shall find their room
            if self._step == total:
                stepper.rule.finish(stepper.moving)
            if self._due(self._config.probe_every, ends) or self._step == total:
                stopped = self._measure(self._step) or ""
            if self._rewinder is not None and (self._step in ends or self._step == total):
                self._tell(self._step, self._rewinder.on_epoch(self._model, self._step))
            if self._due(self._config.save_every, ends) and self._step < total:
                self._save(optimizer, stepper.rule)
            if flag.requested and self._step < total:
                self._interrupt(optimizer, stepper.rule)
        if stopped and self._step < total:
            stepper.rule.finish(stepper.moving)
        return TrainingResult(self._step, self._spent, stopped, losses)

    def _due(self, every: int, ends: Sequence[int]) -> bool:
        """Return whether something that happens every so many steps (0: at the end of each epoch) happens now."""
        return self._step % every == 0 if every else self._step in ends

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
        self._tell(step, values)
        return self._stop.reason(values)

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        for callback in self._callbacks:
            callback.on_probe(step, values)

    def _rewind(self, rewinder: Rewinder, result: TrainingResult) -> TrainingResult:
        """Put the chosen epoch's weights back and say so."""
        choice = rewinder.restore(self._model)
        seen = {} if self._probe is None else self._probe(self._model)
        self._tell(self._step, {"rewind.step": choice.step, "rewind.target_nll": choice.target_nll, **seen})
        return replace(result, notes={**result.notes, "rewind": choice.to_dict()})

    def _save(self, optimizer: torch.optim.Optimizer, rule: GradientRule) -> None:
        if self._folder is None or self._last_saved == self._step or not self._accelerator.is_main_process:
            return
        state = Checkpoint(self._step, self._spent, self._task.state_dict(), self._stop.start)
        keep = self._config.keep_checkpoints
        save_checkpoint(self._folder / "checkpoints", self._model, optimizer, rule, state, keep=keep)
        self._last_saved = self._step

    def _restore(self, optimizer: torch.optim.Optimizer, rule: GradientRule) -> None:
        found = checkpoints(self._folder / "checkpoints") if self._folder is not None else []
        if found:
            state = load_checkpoint(found[-1], self._model, optimizer, rule)
            self._step, self._spent, self._last_saved = state.step, state.seconds, state.step
            self._stop.start = state.stop_start
            self._task.load_state_dict(state.task)

    def _interrupt(self, optimizer: torch.optim.Optimizer, rule: GradientRule) -> None:
        self._save(optimizer, rule)
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


def _rewinder(config: TrainingConfig, errors: ErrorProbe | None, folder: Path | None) -> Rewinder | None:
    if config.stop.rule != "rewind":
        return None
    if errors is None:
        raise RecipeError(
            "this procedure has no forget set and holdout to compare", field="training.stop.rule", value="rewind",
            remedy="Use steps, or a method of gradient steps on a forget set",
        )  # fmt: skip
    return Rewinder(errors, None if folder is None else folder / "rewind")


def _proximal(model: nn.Module, config: TrainingConfig) -> ProximalL1 | None:
    if config.proximal_l1 is None:
        return None
    weights = [p for p in linear_weights(model, without=[output_head(model)]).values() if p.requires_grad]
    if not weights:
        raise RecipeError(
            "no linear layer may move", field="training.proximal_l1", remedy="Check training.trainable, or leave it out"
        )
    return ProximalL1(weights, config.proximal_l1.weight)
