# SPDX-License-Identifier: Apache-2.0
"""Gradient norms against one plain backward at a time; the model stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_families import answers, tiny
from torch import nn

from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.data.fictitious import Archive
from expunge.signals import ghost
from expunge.signals.ghost import known
from expunge.signals.gradients import gradient_norms


@pytest.fixture(scope="module")
def items(archive: Archive, encoder: Encoder) -> list[Encoded]:
    return [row.encoded for row in encoder.encode_many(archive.splits().forget[:4], where="forget")]


def naive(model: nn.Module, item: Encoded) -> tuple[float, float]:
    """Full logits, cross-entropy over the labels, all gradients at once."""
    parameters = [p.requires_grad_(True) for p in model.parameters()]
    logits = model(input_ids=torch.tensor([item.ids])).logits[0, :-1].float()
    loss = nn.functional.cross_entropy(logits, torch.tensor(item.labels[1:]), ignore_index=IGNORE)
    gradients = [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
    whole = torch.cat([g.flatten() for g in gradients]).norm()
    return float(whole), float(torch.stack([g.norm() for g in gradients]).mean())


def test_norms_equal_the_naive_computation(target: nn.Module, items: list[Encoded]) -> None:
    told: list[int] = []
    found = gradient_norms(target, items, progress=told.append)
    assert sum(told) == len(items)
    target.eval()
    for item, norm in zip(items, found, strict=True):
        assert (norm.total, norm.tensor_mean) == pytest.approx(naive(target, item), rel=1e-4)
        assert norm.tensor_mean < norm.total


@pytest.mark.parametrize("family", ["cohere", "gemma", "gpt2", "gpt_neox", "llama", "mixtral", "phi", "qwen2", "qwen3"])
def test_families_batched_equal_one_by_one(family: str) -> None:
    model, items = tiny(family), [item for item in answers() if item.n_labels]
    assert known(model) == (family != "mixtral")  # experts are no linear layers
    for item, norm in zip(items, gradient_norms(model, items, batch_tokens=100), strict=True):
        assert (norm.total, norm.tensor_mean) == pytest.approx(naive(model, item), rel=1e-5)


@pytest.mark.parametrize("settings", [{"tie_word_embeddings": True}, {"pad_token_id": 5}, {"attention_bias": True}])
def test_tied_heads_padding_tokens_and_biases(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = tiny("llama", **settings), answers()
    for chunk in (1 << 24, 4 * 97):  # a head in one chunk, and in chunks of four tokens
        monkeypatch.setattr(ghost, "CHUNK_ELEMENTS", chunk)
        for item, norm in zip(items, gradient_norms(model, items), strict=True):
            assert (norm.total, norm.tensor_mean) == pytest.approx(naive(model, item), rel=1e-5)


def test_adapters_batched_equal_one_by_one() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    assert known(model)
    for item, norm in zip(answers()[:4], gradient_norms(model, answers()[:4]), strict=True):
        assert (norm.total, norm.tensor_mean) == pytest.approx(naive(model, item), rel=1e-5)


def test_long_layers_pick_the_cheaper_product() -> None:
    draw = torch.Generator().manual_seed(0)
    for tokens, wide in ((3, 40), (40, 3)):
        x, g = torch.randn(2, tokens, wide, generator=draw), torch.randn(2, tokens, wide + 1, generator=draw)
        whole = torch.einsum("bto,bti->boi", g.double(), x.double()).square().sum((1, 2))
        assert ghost._outer(x, g).tolist() == pytest.approx(whole.tolist(), rel=1e-5)


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
