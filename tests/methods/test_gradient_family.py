# SPDX-License-Identifier: Apache-2.0
"""What the gradient family promises beyond the common suite: its terms, its reference answers, its rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encoding import IGNORE, Encoder
from expunge.data.fictitious import Archive
from expunge.methods.base import MethodContext
from expunge.methods.gradient import (
    GradientConfig,
    GradientMethod,
    UnlearningTask,
    choose_parameters,
    encode_forget,
)
from expunge.methods.registry import get_method, parse_method
from expunge.models.adapters import LoraSettings
from expunge.models.digests import model_digest
from expunge.signals.likelihood import Scorer
from expunge.signals.reference import ReferenceCache
from expunge.training.config import TrainingConfig
from expunge.training.task import Counts, MicroBatch

Losses = dict[str, torch.Tensor]


@pytest.fixture
def task_of(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., tuple[UnlearningTask, nn.Module]]:
    """Builds the prepared task of a method on the target model."""

    def build(name: str, *, lora: bool = False, **settings: Any) -> tuple[UnlearningTask, nn.Module]:
        training = TrainingConfig(batch_size=4, epochs=3, lora=LoraSettings(r=2) if lora else None)
        config = parse_method({"name": name, **settings})
        method = get_method(name)
        assert isinstance(method, GradientMethod)
        splits = archive.splits()
        context = MethodContext(
            model=target, encoder=encoder, splits=splits, training=training, seed=3, pad_id=encoder.pad_id
        )
        forget = [row.encoded for row in encoder.encode_many(splits.forget, where="forget")]
        retain = [row.encoded for row in encoder.encode_many(splits.retain, where="retain")]
        model = choose_parameters(target, training, seed=3)
        cache = ReferenceCache(model_digest(target))
        task = UnlearningTask(
            method.term(config, context, forget), config, retain,  # type: ignore[arg-type]
            training=training, pad_id=encoder.pad_id, seed=3, cache=cache,
        )  # fmt: skip
        task.prepare(model)
        return task, model

    return build


def losses(task: UnlearningTask, model: nn.Module, epoch: int = 0) -> Losses:
    groups = task.steps(epoch)[0]
    micro = MicroBatch.of(groups, 0, torch.device("cpu"))
    return task.losses(Scorer(model), micro, Counts.of(groups))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("positions", ["answer", "all"])
def test_kl_is_zero_with_zero_gradient_at_the_start(task_of: Any, lora: bool, direction: str, positions: str) -> None:
    task, model = task_of("ga_kl", lora=lora, kl_direction=direction, kl_positions=positions)
    part = losses(task, model)["retain"]
    assert float(part.detach()) == pytest.approx(0.0, abs=1e-6)
    part.backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert largest < 1e-5


def test_kl_compares_with_the_original_after_the_model_moved(task_of: Any) -> None:
    task, model = task_of("ga_kl")
    original = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    found = float(losses(task, model)["retain"].detach())
    groups = task.steps(0)[0]
    total, count = 0.0, 0
    for row in (row for group in groups for row in group if row.role == "retain"):
        ids = torch.tensor([row.encoded.ids])
        with torch.no_grad():
            now, before = (torch.log_softmax(m(ids).logits[0].double(), -1) for m in (model, original))
        for t in range(1, len(row.encoded.ids)):
            if row.encoded.labels[t] != IGNORE:
                total += float((before[t - 1].exp() * (before[t - 1] - now[t - 1])).sum())
                count += 1
    assert found == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_and_dpo_start_at_two_over_beta_log_two(task_of: Any, beta: float) -> None:
    for name in ("npo", "dpo"):
        task, model = task_of(name, beta=beta)
        assert float(losses(task, model)["forget"].detach()) == pytest.approx(2 / beta * math.log(2), rel=1e-5)


def test_forget_gradient_of_npo_at_the_start_is_that_of_summed_ascent(task_of: Any) -> None:
    def gradient(name: str, **settings: Any) -> torch.Tensor:
        task, model = task_of(name, **settings)
        model.zero_grad()
        losses(task, model)["forget"].backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient("npo"), gradient("ga", reduction="sum"), atol=1e-4, rtol=1e-3)


def test_idk_towards_the_true_answer_is_the_opposite_of_ascent(
    task_of: Any, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.methods import refusal

    task, model = task_of("ga")
    losses(task, model)["forget"].backward()
    ascent = torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])
    answers = {example.prompt: example.answer for example in archive.splits().forget}

    class Truth(refusal.Refusals):
        def row(self, index: int, epoch: int) -> Any:
            example = self._examples[index]
            return refusal.Row(self._encoder.encode(example, answer=answers[example.prompt]), "refusal", index)

    monkeypatch.setattr(refusal, "Refusals", Truth)
    task, model = task_of("idk", retain="none")
    model.zero_grad()
    losses(task, model)["forget"].backward()
    descent = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(descent, -ascent, atol=1e-6, rtol=1e-4)


def test_grad_diff_without_its_retain_term_is_ascent(task_of: Any) -> None:
    with_term, model = task_of("grad_diff")
    without, _ = task_of("ga")
    assert torch.equal(losses(with_term, model)["forget"], losses(without, model)["forget"])
    assert float(losses(task_of("grad_diff", retain_weight=0)[0], model)["retain"].detach()) == 0.0


def test_retain_partners_and_refusals_differ_between_epochs_and_repeat_with_the_seed(task_of: Any) -> None:
    task, _ = task_of("dpo")
    again, _ = task_of("dpo")

    def rows(task: UnlearningTask, epoch: int, role: str) -> list[Any]:
        return sorted(
            (row.index if role == "retain" else (row.index, row.encoded.ids))
            for step in task.steps(epoch) for group in step for row in group if row.role == role
        )  # fmt: skip

    for role in ("retain", "refusal"):
        assert rows(task, 0, role) != rows(task, 1, role)
        assert rows(task, 1, role) == rows(again, 1, role)


def test_uniform_labels_keep_input_length_and_specials_and_change_each_epoch(task_of: Any, encoder: Encoder) -> None:
    task, _ = task_of("rlabel", labels="uniform")
    plain, _ = task_of("ga")
    originals = {row.index: row.encoded for step in plain.steps(0) for group in step for row in group}
    special = set(encoder.tokenizer.all_special_ids)
    seen = []
    for epoch in (0, 1):
        rows = {row.index: row.encoded for s in task.steps(epoch) for g in s for row in g if row.role == "forget"}
        for index, row in rows.items():
            original = originals[index]
            assert row.ids == original.ids
            assert [label == IGNORE for label in row.labels] == [label == IGNORE for label in original.labels]
            assert row.labels[-1] == encoder.eos_id
            assert not special & set(row.labels[:-1])
        seen.append([rows[i].labels for i in sorted(rows)])
    assert seen[0] != seen[1]


def test_mismatch_never_gives_an_example_its_own_answer(task_of: Any, archive: Archive, encoder: Encoder) -> None:
    task, _ = task_of("rlabel", labels="mismatch")
    forget = archive.splits().forget
    answers = {encoder.encode(example).labels[encoder.encode(example).label_start :] for example in forget}
    for epoch in range(3):
        for row in (r for s in task.steps(epoch) for g in s for r in g if r.role == "forget"):
            answer = row.encoded.labels[row.encoded.label_start :]
            own = encoder.encode(forget[row.index])
            assert answer in answers
            assert answer != own.labels[own.label_start :]


def test_forget_eos_takes_one_label_off(archive: Archive, encoder: Encoder, target: nn.Module) -> None:
    context = MethodContext(
        model=target, encoder=encoder, splits=archive.splits(), training=TrainingConfig(), seed=0, pad_id=0
    )

    def labels(forget_eos: bool) -> list[int]:
        return [item.n_labels for item in encode_forget(GradientConfig(forget_eos=forget_eos), context)]

    assert labels(True) == [n + 1 for n in labels(False)]
