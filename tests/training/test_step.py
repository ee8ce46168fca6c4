# SPDX-License-Identifier: Apache-2.0
"""One optimiser step: curvature estimates, masks, thresholds, gradient rules, and what a step logs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.errors import Interrupted, RecipeError
from expunge.optim.masks import WeightMasks
from expunge.optim.rules import Backward, GradientRule
from expunge.optim.scores import linear_weights
from expunge.signals.head import output_head
from expunge.signals.likelihood import Scorer
from expunge.training.callbacks import StepInfo
from expunge.training.checkpoint import checkpoints
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer
from expunge.training.task import Counts, MicroBatch

OPTIMIZERS = ("adamw", "sophia", "soul", "signum")


@pytest.fixture
def task(archive: Archive, encoder: Encoder) -> FineTuneTask:
    rows = encoder.encode_many(archive.splits().retain, where="train")[:12]
    return FineTuneTask([row.encoded for row in rows], batch_size=4, seed=0)


class Watch:
    """Keeps what every step says."""

    def __init__(self) -> None:
        self.steps: list[StepInfo] = []

    def on_step(self, info: StepInfo) -> None:
        self.steps.append(info)

    def on_probe(self, step: int, values: Mapping[str, float]) -> None: ...


def train(model: nn.Module, task: Any, *, folder: Path | None = None, **settings: Any) -> Watch:
    watch = Watch()
    keys = ("masks", "rule", "keep_last", "seed", "callbacks", "resume")
    given = {key: settings.pop(key) for key in keys if key in settings}
    resume, more = given.pop("resume", False), given.pop("callbacks", [])
    config = TrainingConfig(**{"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, **settings})
    Trainer(model, task, config, pad_id=0, folder=folder, callbacks=[watch, *more], **given).run(resume=resume)
    return watch


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def half_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_keep_every_bit_and_the_others_move(
    name: str, fresh: Callable[[], nn.Module], task: FineTuneTask
) -> None:
    model = fresh()
    start, masks = weights(model), half_masks(model)
    train(model, task, optimizer={"name": name, "weight_decay": 0.5}, masks=WeightMasks(model, masks))
    end = weights(model)
    for key, mask in masks.items():
        assert torch.equal(end[key][~mask], start[key][~mask])
    assert all(not torch.equal(end[key], start[key]) for key in masks)


def test_the_norm_is_taken_after_masking(fresh: Callable[[], nn.Module], task: FineTuneTask) -> None:
    dense, masked, none = fresh(), fresh(), fresh()
    settings = {"max_steps": 1, "max_grad_norm": None}
    whole = train(dense, task, **settings).steps[0].grad_norm
    masks = half_masks(masked)
    part = train(masked, task, masks=WeightMasks(masked, masks), **settings).steps[0].grad_norm
    complement = {name: ~mask for name, mask in masks.items()}
    rest = train(none, task, masks=WeightMasks(none, complement), **settings).steps[0].grad_norm
    assert 0 < part < whole
    assert part**2 + rest**2 == pytest.approx(whole**2, rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_rows_give_the_weights_of_one_batch(
    name: str, fresh: Callable[[], nn.Module], task: FineTuneTask
) -> None:
    """Sign-like steps turn rounding noise into full steps, so almost all weights must agree, not all."""
    whole, split = fresh(), fresh()
    constants = {"eps": 1.0} if name in ("adamw", "sophia") else {}
    settings = {"max_steps": 2, "learning_rate": 1e-4, "optimizer": {"name": name, **constants}}
    train(whole, task, micro_batch_size=4, **settings)
    train(split, task, micro_batch_size=1, **settings)
    pairs = list(zip(weights(whole).values(), weights(split).values(), strict=True))
    apart = sum(int(((a - b).abs() > 1e-7).sum()) for a, b in pairs)
    assert apart < 0.002 * sum(a.numel() for a, _ in pairs)


class _StopAt:
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, info: StepInfo) -> None:
        import os
        import signal

        if info.step == self._step:
            os.kill(os.getpid(), signal.SIGINT)

    def on_probe(self, step: int, values: Any) -> None: ...


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_draws_the_same_labels_and_ends_in_the_same_bytes(
    name: str, fresh: Callable[[], nn.Module], task: FineTuneTask, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "optimizer": {"name": name, **({"hessian_every": 2} if name == "sophia" else {})},
        "proximal_l1": {"weight": 0.3}, "seed": 5,
    }  # fmt: skip
    whole, cut, resumed = fresh(), fresh(), fresh()
    masks = half_masks(whole)
    train(whole, task, folder=tmp_path / "whole", masks=WeightMasks(whole, masks), **settings)
    with pytest.raises(Interrupted):
        train(
            cut, task, folder=tmp_path / "cut", masks=WeightMasks(cut, masks), callbacks=[_StopAt(3)], **settings
        )  # fmt: skip
    train(resumed, task, folder=tmp_path / "cut", masks=WeightMasks(resumed, masks), resume=True, **settings)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_sophia_draws_other_labels_with_another_seed_and_leaves_the_global_generator_alone(
    fresh: Callable[[], nn.Module], task: FineTuneTask
) -> None:
    first, again, other = fresh(), fresh(), fresh()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        train(model, task, optimizer={"name": "sophia", "rho": 1e4}, max_steps=2, seed=seed)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clip_fraction_is_logged_by_optimisers_that_cut(
    name: str, fresh: Callable[[], nn.Module], task: FineTuneTask, tmp_path: Path
) -> None:
    train(fresh(), task, folder=tmp_path, optimizer={"name": name}, max_steps=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    if name == "adamw":
        assert not any("clip_fraction" in line for line in lines)
    else:
        assert all(0 < line["clip_fraction"] <= 1 for line in lines)


def test_threshold_makes_exact_zeros_in_linear_layers_only(fresh: Callable[[], nn.Module], task: FineTuneTask) -> None:
    model, plain = fresh(), fresh()
    train(model, task, proximal_l1={"weight": 2.0})
    train(plain, task)
    linear = linear_weights(model, without=[output_head(model)])
    zeros = {name: int((p == 0).sum()) for name, p in model.named_parameters()}
    assert all(zeros[name] > 0 for name in linear)
    assert not any(zeros[name] for name in zeros.keys() - linear.keys() - {"model.embed_tokens.weight"})
    assert sum(int((p == 0).sum()) for p in linear_weights(plain).values()) == 0


def test_threshold_falls_over_the_epochs(fresh: Callable[[], nn.Module], task: FineTuneTask) -> None:
    """Weight 1, rate 1e-3, 3 steps an epoch, constant schedule: 3e-3 in the first epoch, half of it in the second."""
    model, frozen = fresh(), fresh()
    settings: dict[str, Any] = {"schedule": "constant", "warmup_ratio": 0.0, "max_grad_norm": 1e-20}
    # A gradient clipped to nothing and an enormous eps leave only the threshold to move anything.
    train(
        model, task, proximal_l1={"weight": 1.0}, optimizer={"eps": 1e20, "weight_decay": 0.0}, **settings
    )  # fmt: skip
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = weights(frozen)[name], weights(model)[name]
    expected = before.sign() * (before.abs() - 3 * 1e-3 * (1.0 + 0.5)).clamp(min=0)
    torch.testing.assert_close(after, expected, atol=1e-6, rtol=0)


def test_a_mask_in_the_settings_without_masks_is_refused(fresh: Callable[[], nn.Module], task: FineTuneTask) -> None:
    with pytest.raises(RecipeError, match=r"training\.mask\.kind"):
        train(fresh(), task, mask={"kind": "random"})
    model = fresh()
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name)
    with pytest.raises(RecipeError, match=r"training\.proximal_l1: no linear layer may move"):
        train(model, task, proximal_l1={"weight": 0.1})


class TwoParts(FineTuneTask):
    """The token mean in two weighted parts, and a third that is only watched."""

    multiplier = 0.0

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, torch.Tensor]:
        whole = super().losses(scorer, micro, counts)["train"]
        return {"first": 0.25 * whole, "second": 0.75 * whole, "bare": whole.detach()}

    def finish_step(self, watched: Mapping[str, float]) -> Mapping[str, float]:
        self.multiplier += watched["bare"]
        return {"multiplier": self.multiplier}


def two_parts(task: FineTuneTask) -> TwoParts:
    return TwoParts(task._items, batch_size=4, seed=0)


def test_watched_parts_are_summed_over_the_step_and_not_minimised(
    fresh: Callable[[], nn.Module], task: FineTuneTask
) -> None:
    whole, parts = fresh(), fresh()
    plain = train(whole, task).steps
    watched = train(parts, two_parts(task), micro_batch_size=1).steps
    for a, b in zip(plain, watched, strict=True):
        assert set(b.losses) == {"first", "second"}
        assert sum(b.losses.values()) == pytest.approx(a.losses["train"], rel=1e-3)
        assert b.extra["bare"] == pytest.approx(a.losses["train"], rel=1e-3)
    assert watched[-1].extra["multiplier"] == pytest.approx(sum(s.extra["bare"] for s in watched), rel=1e-6)


class PartByPart(GradientRule):
    """Takes the gradient of each part by itself, and adds them up by hand."""

    def __init__(self) -> None:
        self.seen: list[list[torch.Tensor]] = []

    def gradients(self, backward: Backward, parameters: Sequence[nn.Parameter], *, step: int) -> dict[str, float]:
        found = []
        losses: dict[str, float] = {}
        for name in ("first", "second"):
            losses = backward((name,))
            found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
            for p in parameters:
                p.grad = None
        for p, first, second in zip(parameters, *found, strict=True):
            p.grad = first + second
        self.seen += found
        return losses


def test_a_rule_may_take_gradients_part_by_part(fresh: Callable[[], nn.Module], task: FineTuneTask) -> None:
    plain, ruled = fresh(), fresh()
    masks = half_masks(plain)
    settings: dict[str, Any] = {"max_steps": 1, "micro_batch_size": 2, "optimizer": {"eps": 1.0}}
    train(plain, two_parts(task), masks=WeightMasks(plain, masks), **settings)
    rule = PartByPart()
    watch = train(ruled, two_parts(task), masks=WeightMasks(ruled, masks), rule=rule, **settings)
    for a, b in zip(plain.parameters(), ruled.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)
    assert set(watch.steps[0].losses) == {"first", "second"}
    # A rule sees gradients that are masked already, so that weights it moves along them stay where they must.
    for gradients in rule.seen:
        assert all(not bool(g[~m].any()) for g, m in zip(gradients, masks.values(), strict=True))
    # Two passes, but the watched part counts once.
    assert watch.steps[0].extra["bare"] == pytest.approx(sum(watch.steps[0].losses.values()), rel=1e-6)


def test_the_last_step_can_be_kept_for_what_follows(
    fresh: Callable[[], nn.Module], task: FineTuneTask, tmp_path: Path
) -> None:
    model, again = fresh(), fresh()
    train(model, task, folder=tmp_path, keep_last=True)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step-00000006"]
    untouched = copy.deepcopy(again)
    watch = train(again, task, folder=tmp_path, keep_last=True, resume=True)
    assert watch.steps == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(untouched.parameters(), again.parameters(), strict=True))
