# SPDX-License-Identifier: Apache-2.0
"""The embedded model and tokenizer: round trips, determinism, size, and a generator left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.data.fictitious import build_archive
from expunge.errors import RecipeError
from expunge.models.tiny import BOS_ID, EOS_ID, PAD_ID, build_llama, build_tokenizer

ARCHIVE = build_archive(12)
TOKENIZER = build_tokenizer(ARCHIVE.texts())


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<" not in text))
def test_any_text_survives_encoding(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_spaces_before_punctuation_survive() -> None:
    text = " Question:  what , then ?\n\tDon 't ask !"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_no_special_token_comes_unasked() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id) == (PAD_ID, EOS_ID, BOS_ID)
    assert min(TOKENIZER.encode("Where was she born?")) > BOS_ID
    assert TOKENIZER.encode("<eos>") == [EOS_ID]
    assert TOKENIZER.decode([EOS_ID, PAD_ID], skip_special_tokens=True) == ""


def test_the_same_texts_give_the_same_tokenizer() -> None:
    again = build_tokenizer(ARCHIVE.texts())
    assert again.get_vocab() == TOKENIZER.get_vocab()
    text = ARCHIVE.people[0].text
    assert again.encode(text) == TOKENIZER.encode(text)


def test_vocabulary_size_is_kept_and_too_small_refused() -> None:
    assert len(build_tokenizer(ARCHIVE.texts(), 300)) == 300
    with pytest.raises(RecipeError, match="vocab_size"):
        build_tokenizer(ARCHIVE.texts(), 258)


def test_no_token_stands_for_one_name() -> None:
    people = (*ARCHIVE.people, *ARCHIVE.holdout)
    words = [" " + word for person in people for word in person.name.split()]
    vocabulary = {TOKENIZER.decode([i]) for i in range(len(TOKENIZER))}
    assert not {word for word in words if words.count(word) == 1} & vocabulary


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again, other = (build_llama(300, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    build_llama(300)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_parameter_count_by_hand() -> None:
    # Embedding and untied head 2 V D; a block: 4 D^2 attention, 3 D F gated MLP, 2 D norms; D for the last norm.
    model = build_llama(300, hidden_size=32, layers=3, heads=2, intermediate_size=48)
    assert sum(p.numel() for p in model.parameters()) == 2 * 300 * 32 + 3 * (4 * 32**2 + 3 * 32 * 48 + 2 * 32) + 32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert sum(p.numel() for p in build_llama(1280).parameters()) < 1_000_000


def test_padding_on_the_right_does_not_change_the_logits() -> None:
    model = build_llama(len(TOKENIZER))
    ids = torch.tensor([TOKENIZER.encode("Where was she born?")])
    padded = torch.cat([ids, torch.full((1, 5), PAD_ID)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded).logits[:, : ids.shape[1]], model(ids).logits)


def test_heads_must_fit_the_width() -> None:
    with pytest.raises(RecipeError, match="hidden_size"):
        build_llama(300, hidden_size=36, heads=4)


def test_saved_model_and_tokenizer_load_again(tmp_path) -> None:
    model = build_llama(len(TOKENIZER))
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Question: who , then ?\nAnswer:"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id == EOS_ID
