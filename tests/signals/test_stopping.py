# SPDX-License-Identifier: Apache-2.0
"""Stop strings found token by token give the text that decoding everything and cutting gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from expunge.models.tiny import build_llama, build_tokenizer
from expunge.signals.continuous import Row
from expunge.signals.generation import generate
from expunge.signals.stopping import StopStrings, Watch, cut_before, decoded, generation, grows_steadily

STORIES = Path(__file__).parents[2] / "../shared/weights/stories260K/hf"
TEXTS = ["Question: who?\nAnswer: it is Zoë, naïve 日本.\n\nQuestion: where? \n\n in the boat 's  Answer:"] * 4


def byte_level() -> PreTrainedTokenizerFast:
    return build_tokenizer(TEXTS, vocab_size=320)


def metaspace() -> PreTrainedTokenizerFast:
    """Spaces are marked at the start of words, the first one is dropped, and rare characters are bytes."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    plain = [text.replace("日本", "") for text in TEXTS]
    inner.train_from_iterator(
        plain, trainers.BpeTrainer(vocab_size=360, special_tokens=specials, show_progress=False)
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", clean_up_tokenization_spaces=False)


def word_piece() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    inner.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="[SEP]", clean_up_tokenization_spaces=False)


TOKENIZERS = {"byte_level": byte_level(), "metaspace": metaspace(), "word_piece": word_piece()}
WORDS = ["\n\n", "\nQuestion", "Question:", " ", "e", "ë,", "日", "本.", "it is", "Answer: it", "a", "abab", "ba", ":"]


def naive_end(tokenizer: PreTrainedTokenizerFast, ids: list[int], stop: list[str]) -> int:
    """Decode everything after every token; end once no stop string can still begin before the first one found.

    Half a character at the end can become any.
    """
    for n in range(1, len(ids) + 1):
        text = decoded(tokenizer, ids[:n])
        before, found = cut_before(text, stop)
        if found and not any(w.startswith(text[s:].rstrip("\ufffd")) for w in stop for s in range(len(before))):
            return n
    return len(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_found_where_decoding_everything_finds_it(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=40))
    text = decoded(tokenizer, ids)
    start, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(1, 12))
    own = [text[start : start + length]] if text[start : start + length] else []
    stop = own + data.draw(st.lists(st.sampled_from(WORDS), max_size=3))
    if any("\ufffd" in word for word in stop):
        assert StopStrings(tokenizer, stop).first_end(ids) == len(ids)
        return
    end = StopStrings(tokenizer, stop).first_end(ids) if stop else len(ids)
    assert end == naive_end(tokenizer, ids, stop)
    assert cut_before(decoded(tokenizer, ids[:end]), stop) == cut_before(text, stop)


def test_by_hand() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = [token for letter in "it is Zoë\n\nQuestion: who?" for token in tokenizer(letter)["input_ids"]]
    assert len(ids) == 25  # one token a letter

    def text_of(stop: list[str]) -> str:
        return decoded(tokenizer, ids[: StopStrings(tokenizer, stop).first_end(ids)])

    assert text_of(["ë"]) == "it is Zoë"
    assert text_of(["\n\n", "Question"]) == "it is Zoë\n\n"
    # "s Z" is complete first, but while "is Zoë" may still begin before it the text goes on.
    both = ["s Z", "is Zoë"]
    assert text_of(["s Z"]) == "it is Z"
    assert text_of(both) == "it is Zoë"
    assert cut_before(text_of(both), both) == ("it ", True)
    assert text_of(["no such"]) == "it is Zoë\n\nQuestion: who?"


def test_half_a_character_may_still_complete_an_earlier_stop_string() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    first, *rest = tokenizer("日")["input_ids"]
    assert rest
    ids = [*tokenizer("a")["input_ids"], *tokenizer(" ")["input_ids"], first, *rest]
    strings = StopStrings(tokenizer, [" ", "a 日"])
    assert strings.first_end(ids) == len(ids)
    assert cut_before(decoded(tokenizer, ids), [" ", "a 日"]) == ("", True)
    other = [*ids[:3], *tokenizer("a")["input_ids"]]
    assert strings.first_end([*other, *ids]) == len(other)


def test_tokens_that_cannot_complete_a_stop_string_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    strings = StopStrings(tokenizer, ["\n\n", "\nQuestion"])
    ids = tokenizer("the boat is here: who is it?")["input_ids"]
    assert not any(strings.may_complete(i) for i in ids)
    assert strings.may_complete(tokenizer("\n")["input_ids"][0])
    calls = []
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, *args, **options: calls.append(args))
    assert strings.first_end(ids) == len(ids)
    assert calls == []


def test_long_texts_are_decoded_at_their_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    end = tokenizer("\n")["input_ids"]
    ids = (tokenizer("the boat. ")["input_ids"] * 200 + end) * 2 + end
    strings = StopStrings(tokenizer, ["\n\n"])
    sizes = []
    real = type(tokenizer).decode
    monkeypatch.setattr(
        type(tokenizer), "decode", lambda self, ids, **options: sizes.append(len(ids)) or real(self, ids, **options)
    )
    watch = Watch(strings)
    assert [n for n in range(1, len(ids) + 1) if watch.ends(ids[:n])] == [len(ids)]
    assert sorted(sizes)[-2] < 40  # the whole text once, when the stop string was there


def test_a_tokenizer_that_rewrites_what_it_gave_never_stops_early() -> None:
    tidy = word_piece()
    tidy.clean_up_tokenization_spaces = True
    assert not grows_steadily(tidy)
    assert grows_steadily(TOKENIZERS["word_piece"])
    bpe = byte_level()
    bpe.clean_up_tokenization_spaces = True  # transformers leaves byte-pair texts alone
    assert grows_steadily(bpe)
    ids = tidy("it is here ?")["input_ids"]
    assert StopStrings(tidy, ["is"]).first_end(ids) == len(ids)


@pytest.fixture(scope="module")
def machine() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    torch.set_num_threads(1)
    tokenizer = TOKENIZERS["byte_level"]
    model = build_llama(len(tokenizer), hidden_size=32, layers=1, heads=2, context=128)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=draws)
    return model, tokenizer


def test_generation_ends_at_the_stop_string_of_its_prompt(
    machine: tuple[PreTrainedModel, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = machine
    prompts = [[number, 7, 9] for number in range(20, 32)]
    whole = generate(model, tokenizer, prompts, max_new_tokens=40)
    stop = [(one.text[8:10], one.text[20:21]) if i % 3 else () for i, one in enumerate(whole)]
    stop = [tuple(word for word in words if word and "\ufffd" not in word) for words in stop]
    found = generate(model, tokenizer, prompts, max_new_tokens=40, stop=stop)
    shorter = 0
    for one, full, words in zip(found, whole, stop, strict=True):
        end = naive_end(tokenizer, list(full.ids), list(words)) if words else len(full.ids)
        assert one == generation(tokenizer, full.ids[:end], finished=full.finished and end == len(full.ids))
        shorter += end < len(full.ids)
    assert shorter > 4


def test_a_row_ends_by_limit_by_end_of_sequence_or_by_stop_string() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer("it is\n\n!")["input_ids"]
    row = Row((3,), 100, Watch(StopStrings(tokenizer, ("\n\n",))))
    ended = [row.take(token, eos=1) for token in ids]
    assert decoded(tokenizer, ids[: ended.index(True) + 1]) == "it is\n\n"
    assert not row.finished
    row = Row((3,), 2)
    assert [row.take(9, eos=1), row.take(9, eos=1)] == [False, True]
    assert (row.ids, row.finished, row.place, row.need) == ([9, 9], False, 2, 2)
    row = Row((3,), 2)
    assert row.take(1, eos=1)
    assert (row.ids, row.finished) == ([], True)


@pytest.mark.real
@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K weights are not beside the checkout")
def test_a_published_tokenizer_of_the_other_kind() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    text = "Once upon a time, there was a little girl named Lily. She loved to play.\n\nOne day, she saw a cat."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for stop in (["\n\n"], [" play", "to play."], ["Lily"], [". She", "girl named Lily. She l"], ["upon"], ["O"]):
        end = StopStrings(tokenizer, stop).first_end(ids)
        assert end == naive_end(tokenizer, ids, stop) < len(ids)
        assert cut_before(decoded(tokenizer, ids[:end]), stop) == cut_before(decoded(tokenizer, ids), stop)
