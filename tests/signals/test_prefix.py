# SPDX-License-Identifier: Apache-2.0
"""Sequences computed together give the numbers of each alone, in every family of models that may do so."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import answers, tiny
from torch import nn

from expunge.data.encoding import IGNORE, Encoded
from expunge.signals import sweep
from expunge.signals.head import Head
from expunge.signals.likelihood import score
from expunge.signals.prefix import FAMILIES, longest_shared, pair_cost, trees_of


def alone(model: nn.Module, item: Encoded) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log p, hit, mean and variance of one unpadded sequence from its full logits in float64, [n, 4]."""
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=torch.tensor([item.ids])).logits[0].double(), -1)
    rows = []
    for t in range(1, len(item.ids)):
        if item.labels[t] != IGNORE:
            row = logp[t - 1]
            mean = float((row.exp() * row).sum())
            variance = float((row.exp() * (row - mean) ** 2).sum())
            rows.append([float(row[item.labels[t]]), float(row.argmax() == item.labels[t]), mean, variance])
    return np.array(rows)


def assert_alone(model: nn.Module, items: list[Encoded], rtol: float = 1e-5, **settings: Any) -> None:
    for item, found in zip(items, score(model, items, pad_id=0, **settings), strict=True):
        wanted = alone(model, item)
        np.testing.assert_allclose(found.logp, wanted[:, 0], rtol=rtol, atol=rtol)
        np.testing.assert_array_equal(found.correct, wanted[:, 1] == 1)
        np.testing.assert_allclose(found.mu, wanted[:, 2], rtol=rtol, atol=rtol)
        np.testing.assert_allclose(found.sigma2, wanted[:, 3], rtol=10 * rtol, atol=rtol)


def nodes(model: nn.Module, items: list[Encoded]) -> int:
    return sum(map(len, trees_of(model, items, max_nodes=2048)))


def tokens(items: list[Encoded]) -> int:
    return sum(len(item.ids) for item in items)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_shared_prompts_change_no_number(family: str) -> None:
    model, items = tiny(family), answers()
    assert nodes(model, items) < 0.8 * tokens(items)
    assert_alone(model, items)


@pytest.mark.parametrize("batch_tokens", [1, 30, 90])
def test_small_batches_change_no_number(batch_tokens: int) -> None:
    model, items, told = tiny("llama"), answers(), list[int]()
    assert_alone(model, items, batch_tokens=batch_tokens, progress=told.append)
    assert sum(told) == len(items)
    sizes: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: sizes.append(args[0].numel()))  # type: ignore[operator]
    score(model, items, pad_id=0, batch_tokens=batch_tokens)
    hook.remove()
    assert max(sizes) <= max(batch_tokens, *(len(item.ids) for item in items))


def test_rows_of_a_batch_are_of_similar_length() -> None:
    draw = random.Random(2)
    prompts = [tuple(draw.choices(range(3, 97), k=n)) for n in range(8, 40) for _ in range(8)]
    ends = [tuple(draw.choices(range(3, 97), k=8)) for _ in range(3)]
    texts = [Encoded(p + a, (IGNORE,) * len(p) + a, False) for p in prompts for a in ends]
    model, computed = tiny("llama"), list[torch.Tensor]()
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: computed.append(args[0]))  # type: ignore[operator]
    score(model, texts, pad_id=0)
    hook.remove()
    lengths = [ids.shape[1] for ids in computed]
    assert lengths == sorted(lengths, reverse=True)
    padding = sum(int((ids == 0).sum()) for ids in computed)
    assert padding < sum(ids.numel() for ids in computed) / 16


def test_materialised_attention_and_adapters_share_too() -> None:
    from peft import LoraConfig, get_peft_model

    model, items = tiny("llama"), answers()
    model.set_attn_implementation("eager")  # type: ignore[operator]
    assert nodes(model, items) < tokens(items)
    assert_alone(model, items)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))  # type: ignore[arg-type]
    plain = score(wrapped, items, pad_id=0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    assert nodes(wrapped, items) < tokens(items)
    assert_alone(wrapped, items)
    assert not np.allclose(score(wrapped, items, pad_id=0)[0].logp, plain[0].logp, atol=1e-2)


def test_half_precision_is_as_close_to_the_truth_as_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, items = tiny("llama"), answers()
    wanted = np.concatenate([alone(exact, item)[:, 0] for item in items])
    half = tiny("llama").to(torch.bfloat16)

    def error() -> float:
        return float(np.abs(np.concatenate([s.logp for s in score(half, items, pad_id=0)]) - wanted).mean())

    shared = error()
    monkeypatch.setattr("expunge.signals.prefix.longest_shared", lambda model: 0)
    assert nodes(half, items) == tokens(items)
    assert shared == pytest.approx(error(), rel=0.2)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("gemma3_text", {"sliding_window": 8}),
        ("mamba", {"state_size": 4}),
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    ],
)
def test_what_cannot_share_takes_the_plain_way(family: str, settings: dict[str, Any]) -> None:
    model, items = tiny(family, **settings), answers()
    assert longest_shared(model) == settings.get("sliding_window", 0)
    assert nodes(model, items) == tokens(items)
    assert_alone(model, items)


def test_a_window_that_all_texts_fit_into_is_none_and_other_kernels_do_not_share() -> None:
    model, items = tiny("mistral", sliding_window=32), answers()
    assert longest_shared(model) == 32
    assert nodes(model, items) < tokens(items)
    assert_alone(model, items)
    model.config._attn_implementation = "flash_attention_2"
    assert longest_shared(model) == 0


def test_cost_of_a_pair() -> None:
    model = tiny("llama")  # 4 heads of 8: 64 multiplications; q, k, v, o and the MLP: 1,024 + 2 x 512 + 1,024 + 4,608
    assert pair_cost(model) == pytest.approx(64 / (7680 + 2 * 32), rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 30.0])
def test_statistics_against_float64(scale: float) -> None:
    draw = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(50, 3000, generator=draw) + 20.0
    logits[:5, 7] += 15.0  # all but certain, and a lone peak over a plain
    row, label = torch.arange(50), torch.randint(0, 3000, (50,), generator=draw)
    label[:25] = logits[:25].argmax(1)
    logp = torch.log_softmax(logits.double(), 1)
    mean = (logp.exp() * logp).sum(1)
    variance = (logp.exp() * (logp - mean[:, None]) ** 2).sum(1)
    hit = logits.argmax(1) == label
    found = sweep.statistics(logits.clone(), row, label)
    assert torch.equal(found[:, 1], hit.float())
    for column, wanted in ((0, logp[row, label]), (2, mean), (3, variance)):
        torch.testing.assert_close(found[:, column].double(), wanted, rtol=2e-6, atol=4e-6)


def test_only_one_chunk_of_logits_is_alive_and_states_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Spy(Head):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.projection, self.cap, self.scale = nn.Linear(4, 50, bias=False), 0.0, 1.0

        def forward(self, hidden_CD: torch.Tensor) -> torch.Tensor:
            sizes.append(len(hidden_CD))
            return super().forward(hidden_CD)

    monkeypatch.setattr(sweep, "CPU_ELEMENTS", 500)
    monkeypatch.setattr(sweep, "_FEWEST", 1)
    draw, head = random.Random(0), Spy()
    query = np.array([draw.randrange(95) for _ in range(300)])
    labels = np.array([draw.randrange(50) for _ in range(300)])
    states = torch.randn(95, 4)
    with torch.no_grad():
        logp = torch.log_softmax(head(states), 1)[query, labels]
        sizes.clear()
        for stats in (True, False):
            found = sweep.label_scores(head, states, query, labels, stats=stats)
            torch.testing.assert_close(found[:, 0], logp)
            assert found.shape == (300, 4 if stats else 1)
    assert max(sizes) == 10
    assert sum(sizes) == 2 * 95
    assert sweep.label_scores(head, states[:0], query[:0], labels[:0], stats=True).shape == (0, 4)
