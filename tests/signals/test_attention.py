# SPDX-License-Identifier: Apache-2.0
"""Attention maps against a plain full pass, and important tokens by word class and by entropy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, Qwen3Config

from expunge.data.batching import pad
from expunge.data.content_words import content_spans
from expunge.data.encoding import Encoded, Encoder
from expunge.data.fictitious import Archive
from expunge.signals.attention import (
    AttentionReading,
    answer_queries,
    attention_maps,
    content_tokens,
    entropy_gains,
    entropy_tokens,
    materialised_attention,
)
from expunge.signals.likelihood import Scorer

COMMON = {"vocab_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
          "intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}  # fmt: skip
FAMILIES = {
    "qwen3": lambda: Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=8),
    "gemma2": lambda: Gemma2Config(**COMMON, num_key_value_heads=2, head_dim=8, sliding_window=8),
    "gpt_neox": lambda: GPTNeoXConfig(**COMMON),
    "gpt2": lambda: GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=128),
}


@pytest.fixture(scope="module")
def items(archive: Archive, encoder: Encoder) -> list[Encoded]:
    return [row.encoded for row in encoder.encode_many(archive.splits().retain[:3], where="retain")]


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_those_of_a_full_pass_one_per_query_head_and_the_kernel_comes_back(
    family: str, items: list[Encoded]
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()  # with fused kernels where it has them
    implementation = model.config._attn_implementation
    batch = pad(items, 0)
    queries = answer_queries(batch.labels)
    assert len(queries[0]) == sum(item.n_labels for item in items)
    with torch.no_grad():
        plain = model(batch.input_ids, attention_mask=batch.attention_mask).logits
        with materialised_attention(model):
            maps = attention_maps(model, batch.input_ids, batch.attention_mask, queries)
            full = model(batch.input_ids, attention_mask=batch.attention_mask, output_attentions=True).attentions
        again = model(batch.input_ids, attention_mask=batch.attention_mask).logits
    assert len(maps) == 2
    assert model.config._attn_implementation == implementation
    assert torch.equal(plain, again)
    for found, expected in zip(maps, full, strict=True):
        assert found.shape == (len(queries[0]), 4, batch.input_ids.shape[1])
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:2]))
        for n, (b, t) in enumerate(zip(*(q.tolist() for q in queries), strict=True)):
            assert torch.equal(found[n], expected[b, :, t])
            assert float(found[n, :, t + 1 :].sum()) == 0.0  # later tokens and padding


def test_a_reading_gives_the_original_and_leaves_the_model_as_it_was(target: nn.Module, items: list[Encoded]) -> None:
    batch = pad(items, 0)
    queries = answer_queries(batch.labels)
    start = copy.deepcopy(target)
    moving = [p for name, p in target.named_parameters() if "q_proj" in name]
    original = {p: p.detach().clone() for p in moving}
    with torch.no_grad():
        for p in moving:
            p.add_(0.3)
    moved = [p.detach().clone() for p in moving]
    with materialised_attention(target), materialised_attention(start):
        found = Scorer(target)(batch.input_ids, batch.attention_mask, batch.labels, AttentionReading(queries, original))
        before = attention_maps(start, batch.input_ids, batch.attention_mask, queries)
        now = attention_maps(target, batch.input_ids, batch.attention_mask, queries)
    assert len(found) == 4
    for a, b in zip(found, [*before, *now], strict=True):
        assert torch.equal(a.detach(), b.detach())
    assert not any(tensor.requires_grad for tensor in found[:2])
    assert all(tensor.requires_grad for tensor in found[2:])
    assert not torch.equal(found[1], found[3])
    assert all(torch.equal(p, value) for p, value in zip(moving, moved, strict=True))


def test_content_words_by_hand() -> None:
    text = "Who is the author that Ann O'Hara-Smith didn't meet in 1984? It isn't a US citizen; she'll not paint."
    words = [text[start:end] for start, end in content_spans(text)]
    assert words == ["author", "Ann", "O'Hara-Smith", "meet", "1984", "US", "citizen", "paint"]
    assert [text[a:b] for text in ["Her mother’s name"] for a, b in content_spans(text)] == ["mother’s", "name"]
    assert content_spans("and of the, which are not!") == []


def test_content_tokens_cover_whole_words_of_several_tokens_and_no_special_token(encoder: Encoder) -> None:
    tokenizer = encoder.tokenizer
    text = "Where was Zöe Skerestow born? She was born in Žilina."
    ids = tuple(tokenizer(text)["input_ids"])
    item = Encoded((2, *ids, 1), (-100, *ids, 1), True)
    marks = content_tokens(tokenizer, item)
    assert not marks[0]
    assert not marks[-1]
    important = tokenizer.decode([token for token, mark in zip(item.ids, marks, strict=True) if mark])
    for word in ("Zöe", "Skerestow", "born", "Žilina"):
        assert word in important
    for word in ("Where", "was", "She", " in ", "?"):
        assert word not in important


def test_entropy_gain_is_that_of_a_naive_pass_with_the_token_hidden(target: nn.Module, items: list[Encoded]) -> None:
    item, place = items[0], 5
    ids = torch.tensor([item.ids])
    mask = torch.ones_like(ids)
    hidden = mask.clone()
    hidden[0, place] = 0

    def entropies(mask: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.distributions.Categorical(logits=target(ids, attention_mask=mask).logits[0]).entropy()

    later = [t - 1 for t, label in enumerate(item.labels) if t and label != -100 and t - 1 > place]
    expected = float((entropies(hidden) - entropies(mask))[later].mean())
    found = entropy_gains(target, item, [3, place], batch_tokens=len(item.ids))
    assert found[1] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_entropy_marks_the_tokens_of_largest_gain_in_the_stated_share(
    target: nn.Module, archive: Archive, encoder: Encoder
) -> None:
    special: Any = frozenset(encoder.tokenizer.all_special_ids)
    item = encoder.encode(archive.splits().retain[0])
    gains_of = [t for t in range(1, len(item.ids)) if item.ids[t] not in special]
    last = max(t for t, label in enumerate(item.labels) if label != -100) - 1
    candidates = [t for t in gains_of if t < last]
    gains = entropy_gains(target, item, candidates)
    assert max(gains) > 0.0
    for keep in (0.25, 0.6):
        marks = entropy_tokens(target, item, keep=keep, special=special)
        assert sum(marks) == round(keep * len(candidates))
        assert not any(marks[t] for t in range(len(marks)) if t not in candidates)
        worst = min(gain for gain, t in zip(gains, candidates, strict=True) if marks[t])
        assert worst >= max(gain for gain, t in zip(gains, candidates, strict=True) if not marks[t])
