# SPDX-License-Identifier: Apache-2.0
"""Canaries as they are drawn, planted, written down and read back."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from expunge.data.canaries import Canary, CanaryPlan, coins, draw_canaries, new_tokens, planted, secret_labels
from expunge.data.canary_manifest import CanaryManifest, entries, read_manifest, vocabulary_digest, write_manifest
from expunge.data.encoding import IGNORE, Encoder
from expunge.data.examples import Example, Turn
from expunge.data.fictitious import Archive
from expunge.errors import InputDataError, VerificationFailed
from expunge.models.growth import add_tokens
from expunge.models.tiny import build_llama, build_tokenizer


def plan(design: str = "random", n: int = 30, **more: int) -> CanaryPlan:
    return CanaryPlan.model_validate({"n": n, "design": design, "seed": 4, **more})


def examples(archive: Archive) -> list[Example]:
    return archive.training_examples("full")


def manifest_of(encoder: Encoder, canaries: list[Canary], made: CanaryPlan) -> CanaryManifest:
    return CanaryManifest(
        plan=made, template=encoder.template.name, template_id=encoder.template_id, answer_eos=True,
        tokenizer=vocabulary_digest(encoder.tokenizer), data="0" * 64, planted="1" * 64, canaries=entries(canaries),
    )  # fmt: skip


def test_coins_are_fair_private_and_recorded() -> None:
    flips = coins(4000, 9)
    assert flips == coins(4000, 9) != coins(4000, 10)
    assert abs(sum(flips) - 2000) < 4 * 31.7  # four standard deviations


@pytest.mark.parametrize("design", ["random", "unigram", "bigram"])
@pytest.mark.parametrize("size", [1, 3])
def test_secrets_are_whole_tokens_after_texts_of_the_data(
    archive: Archive, encoder: Encoder, design: str, size: int
) -> None:
    made = plan(design, secret_tokens=size)
    drawn = draw_canaries(examples(archive), encoder, made)
    texts = {(example.prompt, example.answer) for example in examples(archive)}
    assert drawn == draw_canaries(examples(archive), encoder, made)
    assert [canary.inserted for canary in drawn] == coins(30, 4)
    for canary in drawn:
        encoded = encoder.encode(canary.example)
        assert encoded.ids[-1 - size : -1] == canary.secret_ids  # the end of sequence follows
        before = canary.example.answer.rsplit(" ", size)[0]
        assert any(prompt == canary.example.prompt and answer.startswith(before) for prompt, answer in texts)
        labels = secret_labels(encoded, canary.secret_ids, "it").labels
        assert [label for label in labels if label != IGNORE] == list(canary.secret_ids)
        assert labels[-1] == IGNORE


def test_unigrams_are_rare_and_bigrams_are_unheard_of(archive: Archive, encoder: Encoder) -> None:
    rows = [row.encoded.ids for row in encoder.encode_many(examples(archive), where="train")]
    single = Counter(token for ids in rows for token in ids)
    pairs = Counter(pair for ids in rows for pair in pairwise(ids))
    rare = draw_canaries(examples(archive), encoder, plan("unigram"))
    plain = draw_canaries(examples(archive), encoder, plan("random"))
    most = max(single[canary.secret_ids[0]] for canary in rare)
    assert len({canary.secret_ids for canary in rare}) == 30
    assert most < max(single[canary.secret_ids[0]] for canary in plain)
    for canary in draw_canaries(examples(archive), encoder, plan("bigram")):
        ids = encoder.encode(canary.example).ids
        assert pairs[ids[-3], ids[-2]] == 0


def test_new_tokens_are_each_canarys_own(archive: Archive) -> None:
    tokenizer = build_tokenizer(archive.texts(), vocab_size=300)
    model = build_llama(len(tokenizer), hidden_size=16, layers=1, heads=2, context=128)
    before, made = model.get_input_embeddings().weight.clone(), plan("new-token")
    ids = add_tokens(model, tokenizer, new_tokens(made), seed=2)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == len(before) + 30
    assert (model.get_input_embeddings().weight[: len(before)] == before).all()
    assert len({tuple(row.tolist()) for row in model.get_output_embeddings().weight[ids]}) == 30
    canaries = draw_canaries(examples(archive), Encoder(tokenizer, template="question", max_length=128), made)
    assert [canary.secret_ids for canary in canaries] == [(token,) for token in ids]
    with pytest.raises(InputDataError, match="token already"):
        add_tokens(model, tokenizer, new_tokens(made), seed=2)


def test_growing_keeps_the_global_generator_and_is_repeatable(archive: Archive) -> None:
    import torch

    rows = []
    for _ in range(2):
        tokenizer = build_tokenizer(archive.texts(), vocab_size=300)
        model = build_llama(len(tokenizer), hidden_size=16, layers=1, heads=2, context=128)
        state = torch.get_rng_state()
        ids = add_tokens(model, tokenizer, ["<a>", "<b>"], seed=2)
        assert torch.equal(torch.get_rng_state(), state)
        rows.append(model.get_output_embeddings().weight[ids])
    assert torch.equal(*rows)


@pytest.mark.parametrize("kind", ["question", "completion", "chat", "text"])
def test_every_kind_of_example_carries_canaries(archive: Archive, encoder: Encoder, kind: str, tmp_path: Path) -> None:
    source = [
        replace(
            example, kind=kind, prompt="" if kind == "text" else example.prompt,
            turns=(Turn("user", example.prompt),) if kind == "chat" else (),
            answer=f" {example.answer}" if kind == "completion" else example.answer,
        )
        for example in examples(archive)
    ]  # fmt: skip
    drawn = draw_canaries(source, encoder, plan())
    assert {canary.example.kind for canary in drawn} == {kind}
    read = read_manifest(write_manifest(manifest_of(encoder, drawn, plan()), tmp_path / "m" / "manifest.json"))
    assert read.opened() == drawn


def test_half_is_planted_among_the_data(archive: Archive, encoder: Encoder) -> None:
    made = plan(repeats=2)
    drawn = draw_canaries(examples(archive), encoder, made)
    rows = planted(examples(archive), drawn, made)
    inserted = [canary for canary in drawn if canary.inserted]
    assert len(rows) == len(examples(archive)) + 2 * len(inserted)
    assert len({row.id for row in rows}) == len(rows)
    answers = Counter(row.answer for row in rows)
    for canary in drawn:
        assert answers[canary.example.answer] == (2 if canary.inserted else 0)
    places = [place for place, row in enumerate(rows) if row.id.startswith("canary")]
    assert min(places) < len(rows) / 4 < 3 * len(rows) / 4 < max(places)


def test_too_few_texts(archive: Archive, encoder: Encoder) -> None:
    with pytest.raises(InputDataError, match="beginnings"):
        draw_canaries(examples(archive)[:2], encoder, plan(n=200))


def test_tampering_is_noticed(archive: Archive, encoder: Encoder, tmp_path: Path) -> None:
    manifest = manifest_of(encoder, draw_canaries(examples(archive), encoder, plan()), plan())
    path = write_manifest(manifest, tmp_path / "manifest.json")
    assert (path.stat().st_mode & 0o777) == 0o600
    assert read_manifest(path, seal=manifest.seal) == manifest
    document = json.loads(path.read_text("utf-8"))
    document["canaries"][3]["inserted"] ^= True
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(VerificationFailed, match="seal is broken"):
        read_manifest(path)
    del document["seal"]
    resealed = CanaryManifest.model_validate(document)
    write_manifest(resealed, path)  # whoever can write the file can seal it again,
    read_manifest(path)
    with pytest.raises(VerificationFailed, match="the noted"):  # but not so that the noted seal fits
        read_manifest(path, seal=manifest.seal)
    del document["plan"]
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(InputDataError, match="plan"):
        read_manifest(path)
    for text in ("[1]", "{", "{}"):
        path.write_text(text, "utf-8")
        with pytest.raises(InputDataError, match="manifest"):
            read_manifest(path)
    with pytest.raises(InputDataError, match="cannot be read"):
        read_manifest(tmp_path / "none.json")


def test_another_vocabulary_or_template_is_refused(archive: Archive, encoder: Encoder) -> None:
    manifest = manifest_of(encoder, draw_canaries(examples(archive), encoder, plan()), plan())
    manifest.check_encoder(encoder)
    other = Encoder(build_tokenizer(archive.texts(), vocab_size=400), template="question", max_length=128)
    with pytest.raises(InputDataError, match="another vocabulary"):
        manifest.check_encoder(other)
    with pytest.raises(InputDataError, match=r"data\.template"):
        manifest.check_encoder(Encoder(encoder.tokenizer, template="raw", max_length=128))
    canary = manifest.opened()[0]
    with pytest.raises(InputDataError, match="does not end"):
        secret_labels(other.encode(canary.example), (1, 2, 3), "it")
