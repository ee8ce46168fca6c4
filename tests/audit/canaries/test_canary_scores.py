# SPDX-License-Identifier: Apache-2.0
"""Scores of canaries against a plain forward pass, and what is said about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from expunge.audit.canaries.counts import CanaryScores
from expunge.audit.canaries.document import canary_document
from expunge.audit.canaries.measure import CanarySettings, findings, score_canaries
from expunge.claims import lint
from expunge.data.canaries import THRESHOLDS, CanaryPlan, draw_canaries
from expunge.data.canary_manifest import CanaryManifest, entries, vocabulary_digest
from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.models.growth import add_tokens
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.report.canaries import canaries_section


@pytest.fixture(scope="module")
def manifest(archive: Archive, encoder: Encoder) -> CanaryManifest:
    plan = CanaryPlan(n=40, design="random", seed=1, secret_tokens=2)
    return CanaryManifest(
        plan=plan, template="question", template_id=encoder.template_id, answer_eos=True,
        tokenizer=vocabulary_digest(encoder.tokenizer), data="", planted="",
        canaries=entries(draw_canaries(archive.training_examples("full"), encoder, plan)),
    )  # fmt: skip


def test_the_score_is_the_mean_log_probability_of_the_secret(
    trained_model: nn.Module, encoder: Encoder, manifest: CanaryManifest
) -> None:
    found = score_canaries(trained_model, encoder, manifest)  # type: ignore[arg-type]
    naive: tuple[list[float], list[float]] = ([], [])
    for canary in manifest.opened():
        ids = encoder.encode(canary.example).ids[:-1]  # without the end of sequence
        logp = torch.log_softmax(trained_model(torch.tensor([ids])).logits[0].double(), dim=-1)
        value = (logp[-3, ids[-2]] + logp[-2, ids[-1]]).item() / 2
        naive[0 if canary.inserted else 1].append(value)
    assert found.inserted == pytest.approx(naive[0], abs=1e-5)
    assert found.held_out == pytest.approx(naive[1], abs=1e-5)


def document(manifest: CanaryManifest, shift: float, *, n: int = 120, role: str = "other", delta: float = 1e-6) -> dict:  # type: ignore[type-arg]
    rng, settings = np.random.default_rng(0), CanarySettings(bootstrap=200, delta=delta)
    scores = CanaryScores.of(rng.normal(-9 + shift, 1, n), rng.normal(-9, 1, n))
    made = findings(scores, THRESHOLDS, role, settings)  # type: ignore[arg-type]
    return canary_document(manifest, "m.json", {"model": made}, settings)


def test_what_is_said_of_a_model(manifest: CanaryManifest) -> None:
    shown, silent = document(manifest, 6), document(manifest, 0)
    assert "epsilon is at least" in shown["sentences"][1]
    assert "does not say that there is none" in silent["sentences"][1]
    assert shown["models"]["model"]["tpr_at_1_fpr"]["value"] == 1.0
    assert silent["models"]["model"]["epsilon"]["one_run"]["value"] == 0
    assert shown["power"] == silent["power"]
    assert "check that it is one" in document(manifest, 6, role="reference")["sentences"][1]
    assert "choose a smaller delta" in document(manifest, 6, delta=1e-4)["sentences"][1]
    assert "Too few canaries" in document(manifest, 6, n=4)["sentences"][0]
    for found in (shown, silent):
        assert not lint(" ".join([*found["sentences"], *found["assumptions"]]))
        assert "ε ≥" in canaries_section(found)
    assert canaries_section({}) == ""


def test_tied_tables_grow_together(archive: Archive) -> None:
    tokenizer = build_tokenizer(archive.texts(), vocab_size=300)
    model = build_llama(len(tokenizer), hidden_size=16, layers=1, heads=2, context=128)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    ids = add_tokens(model, tokenizer, ["<a>", "<b>"], seed=2)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert head.data_ptr() == table.data_ptr()
    assert head.shape[0] == len(tokenizer)
    assert not torch.equal(head[ids[0]], head[ids[1]])
