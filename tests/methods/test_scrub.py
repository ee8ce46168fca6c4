# SPDX-License-Identifier: Apache-2.0
"""SCRUB's schedule, its zero-gradient start, its cap; NegGrad+'s weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.methods.base import MethodContext
from expunge.methods.registry import get_method, parse_method
from expunge.methods.scrub import ScrubConfig, ScrubTask
from expunge.methods.teachers import ModelTeacher
from expunge.models.digests import model_digest
from expunge.signals.likelihood import Scorer
from expunge.signals.reference import ReferenceCache
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.task import Counts, MicroBatch

CPU = torch.device("cpu")


@pytest.fixture
def task_of(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., ScrubTask]:
    splits = archive.splits()
    forget, retain = (
        [row.encoded for row in encoder.encode_many(examples, where="test")]
        for examples in (splits.forget, splits.retain[:6])
    )

    def build(**settings: Any) -> ScrubTask:
        training = TrainingConfig(batch_size=4, epochs=3)
        teacher = ModelTeacher(ReferenceCache(model_digest(target)))
        task = ScrubTask(
            ScrubConfig(**settings), forget, retain, teacher, training=training, pad_id=encoder.pad_id, seed=1
        )
        task.prepare(target)
        return task

    return build


def roles(task: ScrubTask, epoch: int) -> list[str]:
    return [step[0][0].role for step in task.steps(epoch)]


def loss_of(task: Any, model: nn.Module, step: Any, role: str) -> torch.Tensor:
    micro = MicroBatch.of(step, 0, CPU)
    return task.losses(Scorer(model), micro, Counts.of(step))[role]


def test_max_steps_come_first_in_the_first_epochs_and_one_min_step_before_all(
    task_of: Callable[..., ScrubTask],
) -> None:
    task = task_of(max_epochs=2)
    assert roles(task, 0) == ["retain", "forget", "forget", "retain"]
    assert roles(task, 1) == ["forget", "forget", "retain", "retain"]
    assert roles(task, 2) == ["retain", "retain"]
    forgotten = [row.index for step in task.steps(1)[:2] for group in step for row in group]
    assert sorted(forgotten) == list(range(8))
    assert [len(step) for step in task_of(retain_per_epoch=7, max_epochs=0).steps(0)] == [4, 3]


def test_every_retain_row_comes_before_any_comes_again(task_of: Callable[..., ScrubTask]) -> None:
    drawn = [row.index for step in task_of(max_epochs=0).steps(0) for group in step for row in group]
    assert len(drawn) == 8
    assert sorted(drawn[:6]) == list(range(6))
    other = [row.index for step in task_of(max_epochs=0).steps(1) for group in step for row in group]
    assert drawn != other


def test_at_the_originals_weights_a_max_step_has_no_gradient_and_a_min_step_has(
    task_of: Callable[..., ScrubTask], target: nn.Module
) -> None:
    task = task_of()
    lower, upper = task.steps(0)[:2]
    for step, role in ((upper, "forget"), (lower, "retain")):
        target.zero_grad()
        loss_of(task, target, step, role).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in target.parameters() if p.grad is not None))
        assert (norm < 1e-5) if role == "forget" else (norm > 1e-2)


def test_without_divergences_it_is_fine_tuning_on_the_retain_set(
    task_of: Callable[..., ScrubTask], target: nn.Module, archive: Archive, encoder: Encoder
) -> None:
    task = task_of(max_epochs=0, alpha=0.0)
    step = task.steps(0)[0]
    items = [row.encoded for group in step for row in group]
    tuned = FineTuneTask(items, batch_size=4, seed=0)
    expected = loss_of(tuned, target, tuned.steps(0)[0], "train")
    torch.testing.assert_close(loss_of(task, target, step, "retain"), expected)


def test_alpha_and_gamma_weigh_the_min_step(task_of: Callable[..., ScrubTask], fresh: Callable[[], nn.Module]) -> None:
    settings = ({"alpha": 0.0, "gamma": 1.0}, {"alpha": 1.0, "gamma": 0.0}, {"alpha": 0.3, "gamma": 2.0})
    tasks = [task_of(max_epochs=0, **given) for given in settings]
    found = [float(loss_of(task, fresh(), task.steps(2)[0], "retain").detach()) for task in tasks]
    assert found[2] == pytest.approx(2.0 * found[0] + 0.3 * found[1], rel=1e-5)


def test_a_max_step_goes_no_further_than_its_cap(
    task_of: Callable[..., ScrubTask], fresh: Callable[[], nn.Module]
) -> None:
    model = fresh()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # type: ignore[union-attr]
    for settings, cap in (({}, math.log(512)), ({"cap": 0.5}, 0.5)):
        task = task_of(**settings)
        step = task.steps(1)[0]
        loss = loss_of(task, model, step, "forget")
        assert -cap - 1e-5 <= float(loss.detach()) < 0
        model.zero_grad()
        loss.backward()
        norm = sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
        assert (norm == 0.0) is (cap == 0.5)


@pytest.fixture
def context(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., MethodContext]:
    splits = archive.splits()

    def build(**training: Any) -> MethodContext:
        settings = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 4, **training}
        return MethodContext(
            model=copy.deepcopy(target), encoder=encoder, splits=Splits(splits.forget, splits.retain, splits.holdout),
            training=TrainingConfig(**settings), seed=0, pad_id=encoder.pad_id,
        )  # fmt: skip

    return build


def run(name: str, context: MethodContext, **settings: Any) -> Any:
    return get_method(name).run(parse_method({"name": name, **settings}), context)


def test_max_steps_accumulate(context: Callable[..., MethodContext]) -> None:
    training = {"max_steps": 3, "optimizer": {"eps": 1.0}}
    whole, split = (run("scrub", context(micro_batch_size=size, **training)).model for size in (4, 1))
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-8, rtol=1e-6)


def test_neggrad_plus_is_gradient_difference_with_weights_that_add_up_to_one(
    context: Callable[..., MethodContext],
) -> None:
    mixed = run("neggrad_plus", context(max_steps=2), beta=0.8).model
    apart = run("grad_diff", context(max_steps=2), forget_weight=0.2, retain_weight=0.8).model
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(mixed.parameters(), apart.parameters(), strict=True))
    with pytest.raises(ValidationError, match="follow from beta"):
        get_method("neggrad_plus").Config(forget_weight=2.0)  # type: ignore[call-arg]
