# SPDX-License-Identifier: Apache-2.0
"""Likelihoods against the plain full-logits computation, and against a real model's known values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import expunge.signals.head as head_module
from expunge.data.batching import pad
from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.data.fictitious import Archive
from expunge.signals.generation import generate
from expunge.signals.head import Head, body, over_vocabulary
from expunge.signals.hidden import hidden_states
from expunge.signals.likelihood import Scorer, TokenRequest, label_logp, score
from expunge.signals.reference import ReferenceCache


@pytest.fixture(scope="module")
def items(archive: Archive, encoder: Encoder) -> list[Encoded]:
    return [row.encoded for row in encoder.encode_many(archive.splits().forget, where="forget")]


def naive(model: nn.Module, item: Encoded) -> tuple[torch.Tensor, ...]:
    """One sequence, full logits, no padding: log p, hits, mean and variance of log p at labelled positions."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([item.ids])).logits[0].double()
    logp = torch.log_softmax(logits, -1)
    positions = [t for t in range(1, len(item.ids)) if item.labels[t] != IGNORE]
    rows = logp[[t - 1 for t in positions]]
    labels = torch.tensor([item.labels[t] for t in positions])
    mean = (rows.exp() * rows).sum(-1)
    variance = (rows.exp() * rows**2).sum(-1) - mean**2
    return rows.gather(1, labels[:, None])[:, 0], rows.argmax(-1) == labels, mean, variance


@pytest.mark.parametrize("batch_tokens", [100, 8192])
def test_scores_equal_the_naive_computation(target: nn.Module, items: list[Encoded], batch_tokens: int) -> None:
    found = score(target, items, pad_id=0, batch_tokens=batch_tokens)
    for item, scores in zip(items, found, strict=True):
        logp, hits, mean, variance = naive(target, item)
        assert len(scores.logp) == item.n_labels
        np.testing.assert_allclose(scores.logp, logp, atol=2e-5)
        assert scores.correct.tolist() == hits.tolist()
        np.testing.assert_allclose(scores.mu, mean, atol=2e-5)
        np.testing.assert_allclose(scores.sigma2, variance, atol=2e-4)


def test_chunks_of_the_head_change_neither_value_nor_gradient(
    target: nn.Module, items: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[torch.Tensor, torch.Tensor]:
        target.zero_grad()
        batch = pad(items[:3], 0)
        request = TokenRequest(label_logp, torch.arange(3))
        answer = Scorer(target)(batch.input_ids, batch.attention_mask, batch.labels, [request])[0]
        answer.row_sums().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in target.parameters() if p.grad is not None])
        return answer.values.detach(), gradient

    whole = run()
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 7 * len(target.get_output_embeddings().weight))  # type: ignore[operator]
    chunked = run()
    assert torch.allclose(whole[0], chunked[0], atol=1e-6)
    assert torch.allclose(whole[1], chunked[1], atol=1e-5)


@pytest.mark.parametrize("written_out", [True, False])
def test_peak_logits_stay_within_one_chunk(written_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class SmallHead(Head):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.projection, self.cap, self.scale = nn.Linear(4, 50, bias=False), 0.0, 1.0

    linear = nn.functional.linear

    def spy(hidden_CD: torch.Tensor, *more: torch.Tensor | None) -> torch.Tensor:
        sizes.append(hidden_CD.shape[0] * 50)
        return linear(hidden_CD, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 500)
    monkeypatch.setattr(nn.functional, "linear", spy)
    function = label_logp if written_out else lambda logits, labels: label_logp(logits, labels)
    values = over_vocabulary(SmallHead(), torch.randn(95, 4), torch.zeros(95, dtype=torch.long), function)
    values.sum().backward()
    assert values.shape == (95,)
    assert len(sizes) == 20  # ten forward, ten anew in the backward pass
    assert max(sizes) <= 500


def test_requests_for_some_rows_only(target: nn.Module, items: list[Encoded]) -> None:
    batch = pad(items[:4], 0)
    rows = torch.tensor([3, 1])
    with torch.no_grad():
        answer = Scorer(target)(batch.input_ids, batch.attention_mask, batch.labels, [TokenRequest(label_logp, rows)])[
            0
        ]
    assert answer.lengths.tolist() == [items[3].n_labels, items[1].n_labels]
    sums = [float(naive(target, items[i])[0].sum()) for i in (3, 1)]
    np.testing.assert_allclose(answer.row_sums(), sums, rtol=1e-5)


def test_padding_changes_nothing(target: nn.Module, items: list[Encoded]) -> None:
    alone = score(target, [items[0]], pad_id=0)[0]
    longer = Encoded(items[0].ids * 2, (IGNORE,) * (2 * len(items[0].ids) - 1) + items[0].ids[-1:], False)
    padded = score(target, [items[0], longer], pad_id=0)[0]
    np.testing.assert_allclose(alone.logp, padded.logp, atol=1e-5)


def test_early_exit_equals_the_layer_of_a_full_pass_and_skips_the_rest(target: nn.Module, items: list[Encoded]) -> None:
    batch = pad(items[:2], 0)
    ran = []
    target.model.layers[1].register_forward_hook(lambda *_: ran.append(1))  # type: ignore[union-attr, index]
    with torch.no_grad():
        early = hidden_states(target, batch.input_ids, batch.attention_mask, layer=0)
        assert not ran
        full = target(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    assert torch.allclose(early, full.hidden_states[1], atol=1e-6)
    with pytest.raises(IndexError, match="layer must be in"):
        hidden_states(target, batch.input_ids, batch.attention_mask, layer=2)


@pytest.mark.parametrize("kind", ["tokens", "hidden"])
def test_cached_reference_equals_recomputed(
    target: nn.Module, fresh: Callable[[], nn.Module], items: list[Encoded], tmp_path: Path, kind: str
) -> None:
    cache = ReferenceCache("digest", tmp_path)
    cache.fill(target, items, kind=kind, pad_id=0)  # type: ignore[arg-type]
    again = ReferenceCache("digest", tmp_path)
    again.fill(fresh(), items, kind=kind, pad_id=0)  # type: ignore[arg-type]  # read from disk, the model is not asked
    for item in items:
        assert torch.equal(cache.get(kind, item), again.get(kind, item))  # type: ignore[arg-type]
        if kind == "tokens":
            np.testing.assert_allclose(cache.get("tokens", item), naive(target, item)[0], atol=2e-5)
        else:
            hidden = body(target, torch.tensor([item.ids]), torch.ones(1, len(item.ids), dtype=torch.long))[0]
            assert torch.allclose(cache.get("hidden", item), hidden[-1 - item.n_labels : -1], atol=1e-5)
    other = ReferenceCache("another model", tmp_path)
    other.fill(fresh(), items, kind=kind, pad_id=0)  # type: ignore[arg-type]
    assert not torch.allclose(cache.get(kind, items[0]), other.get(kind, items[0]))  # type: ignore[arg-type]


def test_soft_cap_and_scales_match_the_models_own_logits() -> None:
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
    )

    size = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    models = [
        Gemma2ForCausalLM(Gemma2Config(**size, final_logit_softcapping=0.5)),
        CohereForCausalLM(CohereConfig(**size, logit_scale=0.25)),
        GraniteForCausalLM(GraniteConfig(**size, logits_scaling=3.0)),
    ]
    ids = torch.tensor([[3, 9, 4, 7]])
    for model in models:
        model.eval()
        with torch.no_grad():
            expected = model(ids).logits
            found = Head(model)(body(model, ids, torch.ones_like(ids)))
        assert torch.allclose(expected, found, atol=1e-5), type(model).__name__


def test_generation_equals_greedy_decoding_one_by_one(target: nn.Module, encoder: Encoder, archive: Archive) -> None:
    examples = archive.splits().forget[:5]
    prompts = [encoder.prompt_ids(example) for example in examples]
    batched = generate(target, encoder.tokenizer, prompts, max_new_tokens=12)
    for prompt, generation in zip(prompts, batched, strict=True):
        ids = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                step = int(target(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if step == encoder.eos_id:
                break
            ids.append(step)
        assert list(generation.ids) == ids[len(prompt) :]
        assert generation.finished == (len(ids) - len(prompt) < 12)


@pytest.mark.real
def test_real_model_has_its_published_scores(shared: Path) -> None:
    """Scores of stories260K on two sentences, checked once against the original C program's greedy text."""
    from expunge.data.examples import Example
    from expunge.models.loading import load_model

    model, tokenizer = load_model(shared / "weights/stories260K/hf")
    real = Encoder(tokenizer, template="raw", max_length=512)
    cases = [
        ("Once upon a time, there was a little girl named Lily.", 16, 0.10014, 1.0),
        ("To be, or not to be, that is the question.", 24, 3.59719, 0.26087),
    ]
    for text, n_ids, nll, hits in cases:
        item = real.encode(Example(id="w", prompt="", answer=text, kind="text"))
        scores = score(model, [item], pad_id=real.pad_id)[0]
        assert len(item.ids) == n_ids
        assert -scores.logp.mean() == pytest.approx(nll, abs=1e-3)
        assert scores.correct.mean() == pytest.approx(hits, abs=1e-3)
