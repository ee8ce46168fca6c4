# SPDX-License-Identifier: Apache-2.0
"""Distillation from teachers that do not know, and UNDO's damage and phases."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.errors import Interrupted, RecipeError
from expunge.methods.base import MethodContext
from expunge.methods.registry import get_method, parse_method
from expunge.methods.teachers import DistillationTask, ModelTeacher, Pupil, UniformTeacher, random_model
from expunge.methods.undo import damage
from expunge.objectives.targets import bad_teacher
from expunge.signals.head import Head, body
from expunge.signals.likelihood import Scorer
from expunge.signals.reference import ReferenceCache
from expunge.training.callbacks import StepInfo
from expunge.training.config import TrainingConfig
from expunge.training.task import Counts, MicroBatch


@pytest.fixture
def context(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., MethodContext]:
    splits = archive.splits()

    def build(training: dict[str, Any] | None = None, **changes: Any) -> MethodContext:
        settings = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, **(training or {})}
        values: dict[str, Any] = {
            "model": copy.deepcopy(target), "encoder": encoder, "training": TrainingConfig(**settings), "seed": 0,
            "splits": Splits(splits.forget, splits.retain[:8]), "pad_id": encoder.pad_id,
            "load_base": lambda: copy.deepcopy(target),
        }  # fmt: skip
        return MethodContext(**(values | changes))

    return build


def run(name: str, context: MethodContext, **settings: Any) -> Any:
    return get_method(name).run(parse_method({"name": name, **settings}), context)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_two_parts_are_the_papers_loss(archive: Archive, encoder: Encoder, target: nn.Module, fresh: Any) -> None:
    """Against `bad_teacher` on full logits, with l = 1 on forget tokens and 0 on retain tokens."""
    splits, model = archive.splits(), fresh()
    forget, retain = ([encoder.encode(examples[0])] for examples in (splits.forget, splits.retain))
    task = DistillationTask(
        Pupil(forget, UniformTeacher(), 1.0), Pupil(retain, ModelTeacher(ReferenceCache("x")), 1.0), temperature=1.0,
        reduction="token_mean", epochs=1, batch_size=1, pad_id=0, seed=0,
    )  # fmt: skip
    task.prepare(target)
    step = task.steps(0)[0]
    found = task.losses(Scorer(model), MicroBatch.of(step, 0, torch.device("cpu")), Counts.of(step))
    for role, item, unlearn in (("forget", forget[0], 1.0), ("retain", retain[0], 0.0)):
        ids = torch.tensor([item.ids])
        labelled = [t - 1 for t, label in enumerate(item.labels) if label != -100]
        mine, good = (Head(m)(body(m, ids, torch.ones_like(ids))[0, labelled]) for m in (model, target))
        expected = bad_teacher(mine, good, torch.zeros(1, 512), torch.full((len(labelled),), unlearn)).mean()
        torch.testing.assert_close(found[role], expected)


def test_a_clean_teacher_that_is_the_original_teaches_nothing(context: Callable[..., MethodContext]) -> None:
    given = context({"max_steps": 1})
    outcome = run("clean_teacher", given, retain_teacher="clean")
    assert all(abs(value) < 1e-6 for value in outcome.training.losses.values())


def test_the_random_teacher_is_the_same_for_the_same_seed_and_touches_no_generator(target: nn.Module) -> None:
    state = torch.get_rng_state()
    first, again, other = random_model(target, 1), random_model(target, 1), random_model(target, 2)
    assert torch.equal(state, torch.get_rng_state())
    assert same(first, again)
    assert not same(first, other)
    assert not same(first, target)


def test_damage_shrinks_and_adds_noise_of_a_known_size(target: nn.Module) -> None:
    untouched, shrunk, noised = copy.deepcopy(target), copy.deepcopy(target), copy.deepcopy(target)
    frozen = "model.embed_tokens.weight"
    for model in (shrunk, noised):
        dict(model.named_parameters())[frozen].requires_grad_(False)
    damage(untouched, alpha=0.0, beta=5.0, seed=0)
    damage(shrunk, alpha=0.25, beta=0.0, seed=0)
    damage(noised, alpha=1.0, beta=0.5, seed=0)
    assert same(untouched, target)
    for name, p in target.named_parameters():
        kept, noise = dict(shrunk.named_parameters())[name], dict(noised.named_parameters())[name]
        if name == frozen:
            assert torch.equal(kept, p)
            assert torch.equal(noise, p)
            continue
        torch.testing.assert_close(kept, 0.75 * p)
        expected = 0.5 * (2.0 / sum(p.shape)) ** 0.5 if p.ndim == 2 else 0.0
        assert float(noise.std()) == pytest.approx(expected, rel=0.05)


def test_undo_follows_the_unlearned_model_and_not_the_original(context: Callable[..., MethodContext]) -> None:
    """Without damage the distillation starts at its own teacher: it has nothing to learn."""
    outcome = run("undo", context({"max_steps": 2, "optimizer": {"weight_decay": 0.0, "eps": 1.0}}), alpha=0.0)
    first = run("npo", context({"max_steps": 2, "optimizer": {"weight_decay": 0.0, "eps": 1.0}})).model
    for p, q in zip(outcome.model.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=1e-6)
    assert outcome.training.steps == 4
    assert outcome.notes["unlearn"]["steps"] == 2


class StopAt:
    """Interrupts in the phase whose run has that many steps."""

    def __init__(self, step: int, total: int) -> None:
        self._at = (step, total)

    def on_step(self, info: StepInfo) -> None:
        if (info.step, info.total) == self._at:
            os.kill(os.getpid(), signal.SIGINT)

    def on_probe(self, step: int, values: Mapping[str, float]) -> None: ...


def test_undo_goes_on_in_the_phase_where_it_was_interrupted(
    context: Callable[..., MethodContext], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"distil_epochs": 3, "beta": 0.1, "unlearn": {"name": "grad_diff"}}
    whole = run("undo", context(folder=tmp_path / "whole"), **settings)
    with pytest.raises(Interrupted, match="after step 3"):
        run("undo", context(folder=tmp_path / "cut", callbacks=[StopAt(3, 6)]), **settings)
    (tmp_path / "cut/unlearn/metrics.jsonl").unlink()
    resumed = run("undo", context(folder=tmp_path / "cut", resume=True), **settings)
    assert same(whole.model, resumed.model)
    assert not (tmp_path / "cut/unlearn/metrics.jsonl").exists()  # the first phase did not run again
    assert json.loads(json.dumps(whole.notes)) == json.loads(json.dumps(resumed.notes))


def test_what_undo_begins_with_is_checked(context: Callable[..., MethodContext]) -> None:
    with pytest.raises(RecipeError, match=r"method\.unlearn\.name: no such method.*'simnpo'"):
        parse_method({"name": "undo", "unlearn": {"name": "simpo"}})
    with pytest.raises(RecipeError, match=r"method\.unlearn\.bta: no such key"):
        parse_method({"name": "undo", "unlearn": {"name": "npo", "bta": 1}})
    for name in ("undo", "retrain"):
        with pytest.raises(RecipeError, match="cannot come first"):
            parse_method({"name": "undo", "unlearn": {"name": name}})
    settings = parse_method({"name": "undo", "unlearn": {"name": "clean_teacher"}})
    assert "base_model" in get_method("undo").needs(settings, TrainingConfig())
    with pytest.raises(RecipeError, match=r"training\.mask\.kind"):
        run("undo", context({"mask": {"kind": "random"}}))
