# SPDX-License-Identifier: Apache-2.0
"""Token ids and label masks under byte-level and SentencePiece-like tokenizers, plain and chat templates."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from expunge.data import Example, Turn
from expunge.data.encoding import IGNORE, Encoded, Encoder, Variant, ids_hash
from expunge.data.templates import NAMES, resolve_template
from expunge.errors import InputDataError, RecipeError
from expunge.models.tiny import build_tokenizer

STORIES = Path(__file__).parents[2] / "../shared/weights/stories260K/hf"
TEXTS = [
    "Question: Where was Jane Roe born?\nAnswer: Jane Roe was born in Zanzibar.",
    "Question: Who is her father?\nAnswer: Her father is a baker in the old town.",
    "[INST] Where was Jane Roe born? [/INST] Jane Roe was born in Zanzibar.",
]
QUESTION = Example(id="q", prompt="Where was Jane Roe born?", answer="Jane Roe was born in Zanzibar.")
QUESTION_SHORT = Example(id="s", prompt="a", answer="b", kind="completion")
CHAT = Example(
    id="c", prompt="Where?", answer="There.", kind="chat", turns=(Turn("system", "Be brief."), Turn("user", "Where?"))
)
TEXT = Example(id="t", prompt="", answer="Her father is a baker in the old town.", kind="text")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level(*, bos: bool = False, eos: bool = False, chat: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(TEXTS, vocab_size=340)
    pieces = ["<bos>"] * bos + ["$A"] + ["<eos>"] * eos
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(pieces), special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.chat_template = chat
    return tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    words = [word for text in TEXTS for word in text.replace(" ", "\n ").split("\n")]
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def labelled_text(encoder: Encoder, encoded: Encoded) -> str:
    return encoder.tokenizer.decode([label for label in encoded.labels if label != IGNORE])


@pytest.mark.parametrize("template", ["question", "llama2", "raw"])
@pytest.mark.parametrize("bos", [False, True])
def test_labels_are_the_answer_and_one_eos(template: str, bos: bool) -> None:
    encoder = Encoder(byte_level(bos=bos), template=template, max_length=200)
    encoded = encoder.encode(QUESTION)
    space = "" if template == "raw" else " "
    assert labelled_text(encoder, encoded) == space + QUESTION.answer + "<eos>"
    assert encoded.ends_with_eos
    assert encoded.ids.count(1) == 1
    assert encoded.ids.count(2) == int(bos)
    assert encoded.ids[: encoded.label_start] == encoder.prompt_ids(QUESTION)
    assert encoded.labels[encoded.label_start :] == encoded.ids[encoded.label_start :]


def test_question_template_spelled_out() -> None:
    encoder = Encoder(byte_level(), max_length=200)
    text = encoder.tokenizer.decode(encoder.encode(QUESTION).ids)
    assert text == "Question: Where was Jane Roe born?\nAnswer: Jane Roe was born in Zanzibar.<eos>"
    assert encoder.template.name == "question"


def test_prompt_tokens_do_not_depend_on_the_answer() -> None:
    encoder = Encoder(byte_level(bos=True), max_length=200)
    prefix = encoder.prompt_ids(QUESTION)
    for answer in ("Jane", "born in Zanzibar", "42", "?", "\u00e9t\u00e9"):
        encoded = encoder.encode(QUESTION, answer=answer)
        assert encoded.ids[: encoded.label_start] == prefix
        assert labelled_text(encoder, encoded) == f" {answer}<eos>"


def test_an_appended_eos_is_not_doubled() -> None:
    plain = Encoder(byte_level(bos=True), max_length=200)
    appending = Encoder(byte_level(bos=True, eos=True), max_length=200)
    for example in (QUESTION, CHAT, TEXT):
        assert appending.encode(example) == plain.encode(example)
        assert appending.prompt_ids(example) == plain.prompt_ids(example)
    spelled = plain.encode(QUESTION, answer=QUESTION.answer + "<eos>")
    assert spelled == plain.encode(QUESTION)


def test_a_token_across_the_boundary_is_labelled() -> None:
    encoder = Encoder(byte_level(), max_length=50)
    joined = Example(id="x", prompt="Jane Roe was bo", answer="rn in Zanzibar.", kind="completion")
    encoded = encoder.encode(joined)
    assert encoder.tokenizer.decode(encoded.ids) == "Jane Roe was born in Zanzibar.<eos>"
    # " born" is one token, so the part of it that stands in the prompt is scored with the answer.
    assert labelled_text(encoder, encoded) == " born in Zanzibar.<eos>"
    assert encoder.tokenizer.decode(encoder.prompt_ids(joined)) == joined.prompt


def test_overrides_give_paraphrases_and_refusals() -> None:
    encoder = Encoder(byte_level(), max_length=200)
    encoded = encoder.encode(QUESTION, prompt="Who is {q}?", answer="I do not know.")
    assert encoder.tokenizer.decode(encoded.ids) == "Question: Who is {q}?\nAnswer: I do not know.<eos>"
    rows = encoder.encode_variants([Variant(QUESTION), Variant(QUESTION, answer="Other.")], where="forget")
    assert [row.index for row in rows] == [0, 1]
    assert rows[1].encoded == encoder.encode(QUESTION, answer="Other.")


def test_chat_template_holds_bos_itself() -> None:
    encoder = Encoder(byte_level(bos=True, chat=CHAT_TEMPLATE), max_length=200)
    decode = encoder.tokenizer.decode
    assert encoder.template.name == "chat"
    assert (
        decode(encoder.encode(QUESTION).ids) == f"<bos><|user|>{QUESTION.prompt}\n<|assistant|>{QUESTION.answer}<eos>"
    )
    chat = encoder.encode(CHAT, prompt="When?")
    assert decode(chat.ids) == "<bos><|system|>Be brief.\n<|user|>When?\n<|assistant|>There.<eos>"
    assert labelled_text(encoder, chat) == "There.<eos>"
    assert chat.ids.count(2) == 1


def test_chat_separator_is_the_one_of_the_template() -> None:
    inst = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}{% endif %}{% endfor %}"
    )
    encoder = Encoder(byte_level(chat=inst), max_length=200)
    assert labelled_text(encoder, encoder.encode(QUESTION)) == " " + QUESTION.answer + "<eos>"
    llama2 = Encoder(byte_level(), template="llama2", max_length=200)
    assert encoder.encode(QUESTION) == llama2.encode(QUESTION)


def test_a_dated_chat_template_is_the_same_every_day() -> None:
    dated = "{{ date_string if date_string is defined else strftime_now('%f') }}" + CHAT_TEMPLATE
    encoder = Encoder(byte_level(chat=dated), max_length=200)
    assert encoder.tokenizer.decode(encoder.prompt_ids(QUESTION)).startswith("26 Jul 2024<bos>")


def test_chat_without_template_and_completion_and_text() -> None:
    encoder = Encoder(byte_level(), max_length=200)
    chat = encoder.encode(CHAT)
    assert encoder.tokenizer.decode(chat.ids) == "System: Be brief.\nUser: Where?\nAssistant: There.<eos>"
    text = encoder.encode(TEXT)
    assert encoder.tokenizer.decode(text.ids) == TEXT.answer
    assert text.labels == text.ids
    assert not text.ends_with_eos


def test_refused_and_unknown_templates() -> None:
    picky = Encoder(byte_level(chat=CHAT_TEMPLATE), max_length=200)
    picky.tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(InputDataError, match=r"'c': no system turn"):
        picky.encode(CHAT)
    with pytest.raises(RecipeError, match=r"Did you mean 'llama2'"):
        resolve_template("llama", byte_level())
    with pytest.raises(RecipeError, match="no chat template"):
        resolve_template("chat", byte_level())
    no_eos = byte_level()
    no_eos.eos_token = None
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        Encoder(no_eos, max_length=9)


def test_template_ids_differ_with_the_text() -> None:
    chats = [byte_level(chat=CHAT_TEMPLATE), byte_level(chat=CHAT_TEMPLATE + " ")]
    ids = {Encoder(tokenizer, max_length=9).template_id for tokenizer in chats}
    ids |= {resolve_template(name, byte_level()).template_id for name in NAMES if name != "chat"}
    assert len(ids) == 7  # two chats, raw, llama2, the two of TOFU, and auto = question
    assert resolve_template("auto", byte_level()) == resolve_template("question", byte_level())


def test_running_text_is_cut_into_chunks_and_a_lone_token_left_out() -> None:
    whole = Encoder(byte_level(bos=True), max_length=200).encode(TEXT)
    size = (len(whole.ids) - 1) // 2  # two full chunks, then one or two tokens
    short = Encoder(byte_level(bos=True), max_length=size)
    rows = short.encode_many([QUESTION_SHORT, TEXT], where="forget")
    chunks = [row.encoded for row in rows if row.index == 1]
    assert [row.chunk for row in rows if row.index == 1] == list(range(len(chunks)))
    kept = len(whole.ids) - (len(whole.ids) % size == 1)
    assert sum((chunk.ids for chunk in chunks), ()) == whole.ids[:kept]
    assert all(chunk.labels == chunk.ids and len(chunk.ids) <= size for chunk in chunks)


def test_too_long_answers_follow_the_option(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_level()
    whole = Encoder(tokenizer, max_length=200).encode(QUESTION)
    size = len(whole.ids) - 3

    def encoder(too_long: str, length: int = size) -> Encoder:
        return Encoder(tokenizer, max_length=length, too_long=too_long)  # type: ignore[arg-type]

    with pytest.raises(InputDataError, match=rf"forget, example 'q' has {len(whole.ids)} tokens, max_length is {size}"):
        encoder("error").encode_many([QUESTION], where="forget")
    cut = encoder("truncate").encode(QUESTION)
    assert (cut.ids, cut.labels, cut.ends_with_eos) == (whole.ids[:size], whole.labels[:size], False)
    for length in (whole.label_start, whole.label_start - 1):
        with pytest.raises(InputDataError, match="its prompt of"):
            encoder("truncate", length).encode(QUESTION)
        with pytest.raises(InputDataError, match="its prompt of"):
            encoder("truncate", length).prompt_ids(QUESTION)
    with caplog.at_level(logging.WARNING):
        rows = encoder("drop").encode_many([QUESTION, QUESTION_SHORT], where="forget")
    assert [row.index for row in rows] == [1]
    assert "forget: left out 1 of 2" in caplog.text
    with pytest.raises(InputDataError, match="all 1 examples are longer"):
        encoder("drop").encode_many([QUESTION], where="forget")


def test_nothing_to_score_is_an_error() -> None:
    encoder = Encoder(byte_level(), max_length=20, answer_eos=False)
    with pytest.raises(InputDataError, match="no token that can be scored"):
        encoder.encode(Example(id="t", prompt="", answer="a", kind="text"))
    with pytest.raises(InputDataError, match="no token that can be scored"):
        encoder.encode(QUESTION_SHORT, answer="")


def test_batch_and_single_agree_and_hash_sees_the_mask() -> None:
    encoder = Encoder(byte_level(bos=True), max_length=200)
    examples = [QUESTION, CHAT, TEXT, QUESTION_SHORT, QUESTION]
    rows = encoder.encode_many(examples, where="retain")
    assert [row.encoded for row in rows] == [encoder.encode(example) for example in examples]
    ids = rows[0].encoded.ids
    hashes = {ids_hash(Encoded(ids, (IGNORE,) * n + ids[n:], True)) for n in (1, 2)}
    assert len(hashes) == 2
    assert ids_hash(rows[0].encoded) == ids_hash(rows[4].encoded)


def test_padding_token_falls_back_to_eos() -> None:
    tokenizer = byte_level()
    assert Encoder(tokenizer, max_length=9).pad_id == 0
    tokenizer.pad_token = None
    assert Encoder(tokenizer, max_length=9).pad_id == 1


@pytest.mark.parametrize("template", ["question", "llama2"])
def test_sentencepiece_like_prefix(template: str) -> None:
    check_prefix(Encoder(sentencepiece_like(), template=template, max_length=300))


@pytest.mark.real
@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared stories260K folder is absent")
def test_stories_tokenizer_prefix() -> None:
    check_prefix(Encoder(AutoTokenizer.from_pretrained(STORIES), template="question", max_length=300))


def check_prefix(encoder: Encoder) -> None:
    for answer in ("Jane Roe was born.", "42", "\u00e9t\u00e9", "(a baker)"):
        encoded = encoder.encode(QUESTION, answer=answer)
        prefix = encoded.ids[: encoded.label_start]
        assert prefix == encoder.prompt_ids(QUESTION)
        assert prefix[0] == encoder.tokenizer.bos_token_id
        assert encoded.ids.count(encoder.tokenizer.bos_token_id) == 1
        assert encoded.ids[-1] == encoder.eos_id
        assert encoder.tokenizer.decode(encoded.ids[encoded.label_start : -1]).strip() == answer
