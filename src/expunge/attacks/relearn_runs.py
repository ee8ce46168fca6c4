# SPDX-License-Identifier: Apache-2.0
"""The training runs of relearning: every model by the same examples in the same order, measured on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from expunge.attacks.base import REFERENCE, AttackContext, Subject
from expunge.attacks.gauge import PROBABILITY, Gauge, joined
from expunge.attacks.relearn_config import How, RelearningConfig
from expunge.attacks.relearn_data import Round
from expunge.attacks.relearn_power import SHOWN, shown_examples
from expunge.audit.columns import Column
from expunge.data.encoding import Encoded, EncodedRow
from expunge.errors import TrainingDiverged
from expunge.models.adapters import add_lora
from expunge.training.callbacks import StepInfo
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer

#: Scores by budget of one model, one learning rate; the reference also has those on what it was shown, at both ends.
Track: TypeAlias = dict[int, dict[str, Column]]


def by_rate(
    config: RelearningConfig, context: AttackContext, subject: Subject, plan: Sequence[Round], how: How,
    rates: Sequence[float], diverged: list[str],
) -> dict[float, Track]:  # fmt: skip
    """Return the track of one model under every learning rate that did not diverge."""
    out: dict[float, Track] = {}
    for rate in rates:
        try:
            tracks = [_track(config, context, subject, part, how, rate) for part in plan]
        except TrainingDiverged:
            diverged.append(f"{subject.name}, {how}, learning rate {rate:g}")
            continue
        out[rate] = {b: {m: joined([t[b][m] for t in tracks]) for m in tracks[0][b]} for b in tracks[0]}
    if not out:
        raise TrainingDiverged(
            f"relearning {subject.name} diverged at every rate", field="relearning.learning_rates",
            value=list(rates), remedy="Lower them",
        )  # fmt: skip
    return out


def _track(
    config: RelearningConfig, context: AttackContext, subject: Subject, part: Round, how: How, rate: float
) -> Track:
    """Train one model on what one round shows and return the scores on what it tests, by budget."""
    rows = context.encoder.encode_many(part.shown, where="relearning")
    items = [row.encoded for row in rows]
    gauge, last = context.gauge(part.tested), max(config.budgets)
    shown = _shown_gauge(config, context, part, rows) if subject.name == REFERENCE else None
    if config.unit == "steps":
        probe = BudgetProbe(gauge, (0, *config.budgets), shown=shown, ends=(0, last))
        relearn(subject.load(), items, config, context, how=how, rate=rate, steps=last, probe=probe)
        return probe.found
    start = BudgetProbe(gauge, (0,), shown=shown, ends=(0,))
    start(subject.load())
    out = start.found
    for budget in config.budgets:
        some = items[:budget]
        steps = config.epochs * math.ceil(len(some) / config.batch_size)
        probe = BudgetProbe(gauge, (steps,), shown=shown, ends=(steps,) if budget == last else ())
        relearn(subject.load(), some, config, context, how=how, rate=rate, steps=steps, probe=probe)
        out[budget] = probe.found[steps]
    return out


def _shown_gauge(config: RelearningConfig, context: AttackContext, part: Round, rows: Sequence[EncodedRow]) -> Gauge:
    """Return what scores a model on the examples that the longest run trains on."""
    most, batch = max(config.budgets), _batch(config, rows)
    if config.unit == "examples":
        rows = rows[:most]
    steps = most if config.unit == "steps" else math.ceil(len(rows) / batch)
    used = shown_examples(rows, steps=steps, batch_size=batch, seed=context.seed)
    return context.gauge([part.shown[i] for i in used])


def _batch(config: RelearningConfig, items: Sequence[object]) -> int:
    return min(config.batch_size, len(items))


class BudgetProbe:
    """Measures a model while it trains at some numbers of steps; called before the first step and after each.

    Args:
        gauge: scores on what is tested.
        budgets: steps at which they are taken.
        shown: scores on what is trained on.
        ends: steps, out of `budgets`, at which those are taken.
    """

    def __init__(
        self, gauge: Gauge, budgets: Sequence[int], *, shown: Gauge | None = None, ends: Sequence[int] = ()
    ) -> None:
        self._gauge, self._budgets, self._step = gauge, frozenset(budgets), -1
        self._shown, self._ends = shown, frozenset(ends)
        self.found: Track = {}

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Measure if the budget is one of those wanted; a training loop needs none of the numbers."""
        self._step += 1
        if self._step in self._budgets:
            self.found[self._step] = dict(self._gauge(cast(PreTrainedModel, model)))
            if self._shown is not None and self._step in self._ends:
                self.found[self._step][SHOWN] = self._shown(cast(PreTrainedModel, model))[PROBABILITY]
        return {}


def relearn(
    model: PreTrainedModel,
    items: Sequence[Encoded],
    config: RelearningConfig,
    context: AttackContext,
    *,
    how: How,
    rate: float,
    steps: int,
    probe: BudgetProbe,
) -> nn.Module:
    """Return the model after training it on `items` with the loop that unlearning uses; changed in place.

    Args:
        model: a copy that may change.
        items: what it is trained on, each once an epoch, in an order that is the same for every model.
        config: batch size and adapter.
        context: padding, seed and callbacks.
        how: all weights or an adapter.
        rate: learning rate, constant.
        steps: optimiser steps.
        probe: called before the first step and after each.
    """
    batch = _batch(config, items)
    training = TrainingConfig(
        learning_rate=rate, epochs=math.ceil(steps / math.ceil(len(items) / batch)), max_steps=steps, batch_size=batch,
        schedule="constant", warmup_ratio=0.0, probe_every=1,
    )  # fmt: skip
    model.requires_grad_(True)
    trained: nn.Module = model
    if how == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            trained = add_lora(model, config.lora)
    task = FineTuneTask(items, batch_size=batch, seed=context.seed)
    callbacks = [_Steps(callback.on_step) for callback in context.callbacks]
    Trainer(
        trained, task, training, pad_id=context.encoder.pad_id, probe=probe, callbacks=callbacks, seed=context.seed
    ).run()  # fmt: skip
    return trained


class _Steps:
    """Hands on steps; the probes of an attack are none of the display's business."""

    def __init__(self, on_step: Callable[[StepInfo], None]) -> None:
        self._on_step = on_step

    def on_step(self, info: StepInfo) -> None:
        """Hand it on."""
        self._on_step(info)

    def on_probe(self, step: int, values: Mapping[str, float]) -> None:
        """Keep it."""
