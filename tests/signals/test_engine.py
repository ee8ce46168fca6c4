# SPDX-License-Identifier: Apache-2.0
"""Text from a completions server: the same as the local model's, asked politely, refused clearly."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from completions_server import CompletionsServer, serving
from expunge.errors import RecipeError
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.signals.engine import EngineConfig, generate_served, sendable
from expunge.signals.generation import generate

PROMPTS = [[number, 9, 40] for number in range(10, 19)]
LIMITS = [6 + number for number in range(9)]


@pytest.fixture(scope="module")
def machine() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(["the boat left the harbour at dawn, who knows?"] * 3, vocab_size=300)
    model = build_llama(len(tokenizer), hidden_size=32, layers=1, heads=2, context=128)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=draws)
        model.lm_head.weight[1] *= 3
        model.lm_head.weight[130:] *= 0.1  # no lone bytes: the texts are such as a tokenizer gives back
    return model, tokenizer


@pytest.fixture
def server(machine: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> Iterator[CompletionsServer]:
    with serving({"ours": machine[0]}, machine[1]) as running:
        yield running


def config(server: CompletionsServer, **options: object) -> EngineConfig:
    return EngineConfig(url=server.url, **({"backoff": 0.0, "concurrency": 4, "timeout": 20.0} | options))


def test_the_same_answers_as_the_local_model(
    machine: tuple[PreTrainedModel, PreTrainedTokenizerFast], server: CompletionsServer
) -> None:
    model, tokenizer = machine
    local = generate(model, tokenizer, PROMPTS, max_new_tokens=LIMITS)
    told: list[int] = []
    found = generate_served(
        config(server, token_ids=True), tokenizer, PROMPTS, model="ours", max_new_tokens=LIMITS,
        stop=[()] * len(PROMPTS), progress=told.append,
    )  # fmt: skip
    assert found == local
    assert {one.finished for one in found} == {True, False}
    assert sum(told) == len(PROMPTS)
    assert all(body["temperature"] == 0 and body["n"] == 1 and "stop" not in body for body in server.asked)
    assert sorted(body["max_tokens"] for body in server.asked) == LIMITS
    again = generate_served(
        config(server), tokenizer, PROMPTS, model="ours", max_new_tokens=LIMITS, stop=[()] * len(PROMPTS)
    )
    assert [one.text for one in again] == [one.text for one in local]
    assert all(one.text == tokenizer.decode(one.ids).strip() for one in again)


def test_prompts_as_text_lose_the_start_that_servers_add(
    machine: tuple[PreTrainedModel, PreTrainedTokenizerFast], server: CompletionsServer
) -> None:
    tokenizer = machine[1]
    ids = [2, *tokenizer("the boat <eos> left")["input_ids"]]
    generate_served(config(server, prompt="text"), tokenizer, [ids], model="ours", max_new_tokens=[3], stop=[()])
    assert server.asked[0]["prompt"] == "the boat <eos> left"


def test_stop_strings_are_sent_where_the_server_cuts_as_we_do(
    machine: tuple[PreTrainedModel, PreTrainedTokenizerFast], server: CompletionsServer
) -> None:
    model, tokenizer = machine
    whole = generate(model, tokenizer, PROMPTS[:1], max_new_tokens=12)[0]
    word = whole.text[4:6]
    stops = [(word,), (word, f"a{word}b")]
    found = generate_served(
        config(server, concurrency=1), tokenizer, PROMPTS[:1] * 2, model="ours", max_new_tokens=[12, 12], stop=stops
    )
    assert [body.get("stop") for body in server.asked] == [[word], None]
    assert found[0].text == whole.text.split(word)[0].strip()
    assert found[0].finished
    assert found[1].text == whole.text
    assert sendable(["\n\n", "\nQuestion", "Question:"])
    assert not sendable(["b", "abc"])  # "b" is complete first, and yet "abc" would begin before it
    assert sendable(["bc", "abc"])  # both are complete at once
    assert not sendable(list("abcde"))
    assert not sendable([""])


def test_what_may_pass_is_asked_again_and_the_key_goes_along(
    machine: tuple[PreTrainedModel, PreTrainedTokenizerFast],
    server: CompletionsServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = machine[1]
    monkeypatch.setenv("TEST_ENGINE_KEY", "secret")
    server.first = [(503, b"loading"), (429, b"too many")]
    asked = config(server, key_env="TEST_ENGINE_KEY")
    found = generate_served(asked, tokenizer, PROMPTS[:1], model="ours", max_new_tokens=[4], stop=[()])
    assert found[0] == generate(*machine, PROMPTS[:1], max_new_tokens=4)[0]
    assert server.keys == ["Bearer secret"] * 3
    assert "secret" not in asked.model_dump_json()


@pytest.mark.parametrize(
    ("first", "options", "message"),
    [
        ([(503, b"still loading")] * 3, {"retries": 2}, "answered 503: still loading"),
        ([(400, b"prompt too long")], {}, "answered 400: prompt too long"),
        ([(200, b"<html>")], {}, "no JSON"),
        ([(200, b'{"error": "x"}')], {}, "lacks 'choices'"),
        ([(200, b'{"choices": [{"text": "a", "finish_reason": "stop"}]}')], {"token_ids": True}, "lacks 'token_ids'"),
        ([(200, b'{"choices": [{"text": "a", "finish_reason": "abort"}]}')], {}, "reason 'abort'"),
        ([], {"key_env": "TEST_NO_SUCH_KEY"}, "is empty or not set"),
    ],
)
def test_what_does_not_pass_is_said(
    first: list[tuple[int, bytes]], options: dict, message: str,
    machine: tuple[PreTrainedModel, PreTrainedTokenizerFast], server: CompletionsServer,
) -> None:  # fmt: skip
    server.first = list(first)
    with pytest.raises(RecipeError, match=message):
        generate_served(config(server, **options), machine[1], PROMPTS[:1], model="ours", max_new_tokens=[4], stop=[()])
    assert len(server.asked) == len(first)


def test_another_model_and_no_server(
    machine: tuple[PreTrainedModel, PreTrainedTokenizerFast], server: CompletionsServer
) -> None:
    ask = {"prompts": PROMPTS, "max_new_tokens": LIMITS, "stop": [()] * len(PROMPTS)}
    with pytest.raises(RecipeError, match=r"404: no such model.*'theirs' runs there"):
        generate_served(config(server), machine[1], model="theirs", **ask)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = EngineConfig(url=f"http://127.0.0.1:{free.getsockname()[1]}", retries=1, backoff=0.0)
        with pytest.raises(RecipeError, match="cannot be reached"):
            generate_served(nobody, machine[1], model="ours", **ask)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "ftp://host/v1", "http:///v1", "http://me:word@host/v1", "http://host/v1?key=1"]
)
def test_addresses_that_are_none_or_hold_secrets(url: str) -> None:
    with pytest.raises(ValidationError):
        EngineConfig(url=url)


def test_an_address_may_end_in_a_slash() -> None:
    assert EngineConfig(url="http://127.0.0.1:8000/v1/").url == "http://127.0.0.1:8000/v1"
