# SPDX-License-Identifier: Apache-2.0
"""Gradient norms against one plain backward at a time; the model stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.data.fictitious import Archive
from expunge.signals.gradients import gradient_norms


@pytest.fixture(scope="module")
def items(archive: Archive, encoder: Encoder) -> list[Encoded]:
    return [row.encoded for row in encoder.encode_many(archive.splits().forget[:4], where="forget")]


def naive(model: nn.Module, item: Encoded) -> tuple[float, float]:
    """Full logits, cross-entropy over the labels, all gradients at once."""
    logits = model(input_ids=torch.tensor([item.ids])).logits[0, :-1].float()
    loss = nn.functional.cross_entropy(logits, torch.tensor(item.labels[1:]), ignore_index=IGNORE)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    whole = torch.cat([g.flatten() for g in gradients]).norm()
    return float(whole), float(torch.stack([g.norm() for g in gradients]).mean())


def test_norms_equal_the_naive_computation(target: nn.Module, items: list[Encoded]) -> None:
    told: list[int] = []
    found = gradient_norms(target, items, progress=told.append)
    assert told == [1] * len(items)
    target.eval()
    for item, norm in zip(items, found, strict=True):
        assert (norm.total, norm.tensor_mean) == pytest.approx(naive(target, item), rel=1e-4)
        assert norm.tensor_mean < norm.total


def test_a_learned_answer_pulls_less_than_an_unknown_one(
    target: nn.Module, fresh: Callable[[], nn.Module], items: list[Encoded]
) -> None:
    known, unknown = gradient_norms(target, items), gradient_norms(fresh(), items)
    assert max(n.total for n in known) < min(n.total for n in unknown)


def test_the_model_is_left_as_it_was_even_after_an_error(target: nn.Module, items: list[Encoded]) -> None:
    target.train()
    parameters = list(target.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    weights = [p.detach().clone() for p in parameters]
    before = gradient_norms(target, items[:1])
    with pytest.raises(RuntimeError, match="stop"):
        gradient_norms(target, items, progress=_stop)
    assert target.training
    assert [p.requires_grad for p in parameters[:2]] == [False, True]
    assert torch.equal(parameters[1].grad, torch.ones_like(parameters[1]))
    assert all(p.grad is None for p in parameters[2:])
    assert all(torch.equal(p, w) for p, w in zip(parameters, weights, strict=True))
    assert gradient_norms(target, items[:1]) == before
    assert not any(p._post_accumulate_grad_hooks for p in parameters)


def _stop(done: int) -> None:
    raise RuntimeError("stop")


def test_frozen_parameters_count_and_dropout_does_not_act(target: nn.Module, items: list[Encoded]) -> None:
    free = gradient_norms(target, items)
    target.requires_grad_(False)
    target.config.attention_dropout = 0.9  # type: ignore[union-attr]
    target.train()
    assert gradient_norms(target, items) == free


def test_adapters_change_nothing_while_they_add_nothing(target: nn.Module, items: list[Encoded]) -> None:
    from peft import LoraConfig, get_peft_model

    alone = gradient_norms(target, items[:1])[0]
    wrapped = get_peft_model(target, LoraConfig(r=2, target_modules=["q_proj"]))  # type: ignore[arg-type]
    inside = gradient_norms(wrapped, items[:1])[0]
    assert inside.total >= alone.total  # the adapter's own gradient comes on top of that of the frozen weights
    assert inside.total == pytest.approx(alone.total, rel=0.1)


def test_one_token_and_nothing_to_predict(target: nn.Module, items: list[Encoded]) -> None:
    one = Encoded((5, 6), (IGNORE, 6), False)
    target.eval()
    assert gradient_norms(target, [one])[0].total == pytest.approx(naive(target, one)[0], rel=1e-4)
    assert gradient_norms(target, []) == []
    for empty in (Encoded((5,), (5,), False), Encoded((5, 6), (5, IGNORE), False)):
        with pytest.raises(ValueError, match="needs a label"):
            gradient_norms(target, [one, empty])


def test_half_precision_weights_give_float32_norms(target: nn.Module, items: list[Encoded]) -> None:
    full = gradient_norms(target, items)
    half = gradient_norms(target.to(torch.bfloat16), items)
    for a, b in zip(full, half, strict=True):
        assert b.total == pytest.approx(a.total, rel=0.15)
