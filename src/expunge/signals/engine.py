# SPDX-License-Identifier: Apache-2.0
"""Greedy text from a server that speaks the OpenAI completions protocol, such as vLLM, instead of the local model.

Nothing here runs unless a user names a server, and nothing but prompts, limits and stop strings is sent to it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import permutations
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from expunge.errors import RecipeError
from expunge.signals.stopping import Generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIELD = "audit.engine"
#: Answers after which asking again may help: too early, too many requests, and trouble on the server's side.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
#: Stop strings that the protocol allows in one request.
_MOST_STOPS = 4


class EngineConfig(BaseModel):
    """A server that writes the text of an audit; likelihoods are always those of the local model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="Address up to and with the version, such as http://127.0.0.1:8000/v1.")
    model: str | None = Field(None, description="Name of the model on the server; its name in the audit if not given.")
    prompt: Literal["ids", "text"] = Field("ids", description="Send prompts as token ids, or as text without the BOS.")
    token_ids: bool = Field(
        False, description="Ask for the ids of the text (vLLM); otherwise the text is tokenised again."
    )
    concurrency: int = Field(32, ge=1, le=1024, description="Requests under way at once.")
    timeout: float = Field(300.0, gt=0, description="Seconds to wait for one answer.")
    retries: int = Field(4, ge=0, description="Further attempts after an answer that may pass, or none.")
    backoff: float = Field(0.5, ge=0, description="Seconds before the second attempt; doubled each time.")
    key_env: str | None = Field(None, description="Environment variable that holds the server's key.")
    agreement: float = Field(
        0.9, ge=0, le=1, description="Least share of the served tokens that the local model finds most likely too."
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must begin with http:// or https:// and name a host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password, query or fragment; a key goes into key_env")
        return value.rstrip("/")


def generate_served(
    config: EngineConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    model: str,
    max_new_tokens: Sequence[int],
    stop: Sequence[Sequence[str]],
    progress: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Have every prompt continued greedily by the server, as `generation.generate` does locally.

    A text that the server ended at a stop string comes without that string and counts as finished: the protocol does
    not tell the two ends apart.

    Args:
        config: which server, and how it is asked.
        tokenizer: the local tokenizer, which must be the served model's.
        prompts: token ids of each prompt.
        model: name of the model on the server.
        max_new_tokens: the most tokens added, for each prompt.
        stop: strings for each prompt.
        progress: told how many more prompts are done.

    Returns:
        One `Generation` per prompt, in the order given.

    Raises:
        RecipeError: if the server cannot be reached, refuses, or answers in another form.
    """
    client = _Client(config, tokenizer, model)
    out: list[Generation | None] = [None] * len(prompts)
    pool = ThreadPoolExecutor(config.concurrency)
    try:
        asked = {
            pool.submit(client.ask, ids, limit, words): i
            for i, (ids, limit, words) in enumerate(zip(prompts, max_new_tokens, stop, strict=True))
        }
        for done in as_completed(asked):
            out[asked[done]] = done.result()
            if progress is not None:
                progress(1)
    finally:
        pool.shutdown(cancel_futures=True)
    return [one for one in out if one is not None]


class _Client:
    """Asks one server for one model's continuations."""

    def __init__(self, config: EngineConfig, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        self._config, self._tokenizer, self._model = config, tokenizer, model
        self._address = f"{config.url}/completions"
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if config.key_env is not None:
            key = os.environ.get(config.key_env)
            if not key:
                remedy = "Set this environment variable to the server's key"
                raise RecipeError("is empty or not set", field=f"{_FIELD}.key_env", value=config.key_env, remedy=remedy)
            self._headers["Authorization"] = f"Bearer {key}"
        proxies: dict[str, str] | None = {} if _is_loopback(cast(str, urlsplit(config.url).hostname)) else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))

    def ask(self, ids: Sequence[int], limit: int, stop: Sequence[str]) -> Generation:
        """Return the continuation of one prompt."""
        body: dict[str, Any] = {
            "model": self._model, "prompt": self._prompt(ids), "max_tokens": limit, "temperature": 0, "n": 1,
        }  # fmt: skip
        body |= {"stop": list(stop)} if stop and sendable(stop) else {}
        body |= {"return_token_ids": True} if self._config.token_ids else {}
        return self._read(self._post(json.dumps(body).encode()))

    def _prompt(self, ids: Sequence[int]) -> list[int] | str:
        if self._config.prompt == "ids":
            return list(ids)
        bos = self._tokenizer.bos_token_id  # servers put it before a text themselves
        return cast(str, self._tokenizer.decode(list(ids[1:] if ids[0] == bos else ids), skip_special_tokens=False))

    def _post(self, body: bytes) -> Any:
        """Return the answer to a request, asked again while what went wrong may pass."""
        for attempt in range(self._config.retries + 1):
            last = attempt == self._config.retries
            pause = self._config.backoff * 2**attempt
            try:
                request = urllib.request.Request(self._address, body, self._headers, method="POST")
                with self._opener.open(request, timeout=self._config.timeout) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                said = error.read(300).decode("utf-8", "replace")
                if last or error.code not in _PASSING:
                    raise self._refusal(f"the server answered {error.code}: {said}") from None
            except (OSError, TimeoutError) as error:
                if last:
                    raise self._refusal(f"the server cannot be reached: {error}") from None
            except json.JSONDecodeError as error:
                raise self._refusal(f"the answer is no JSON: {error}") from None
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _read(self, answer: Any) -> Generation:
        try:
            choice = answer["choices"][0]
            text, reason = str(choice["text"]), choice["finish_reason"]
            ids = choice["token_ids"] if self._config.token_ids else None
        except (KeyError, IndexError, TypeError) as error:
            raise self._refusal(f"the answer lacks {error}") from None
        if reason not in ("stop", "length"):
            raise self._refusal(f"a text ended for the reason {reason!r}")
        if ids is None:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        kept = [int(token) for token in ids if token != self._tokenizer.eos_token_id]
        return Generation(tuple(kept), text.strip(), reason == "stop")

    def _refusal(self, problem: str) -> RecipeError:
        remedy = f"Check that a completions server with the model {self._model!r} runs there, or leave audit.engine out"
        return RecipeError(problem, field=f"{_FIELD}.url", value=self._config.url, remedy=remedy)


def sendable(stop: Sequence[str]) -> bool:
    """Return whether ending a text at the first stop string completed leaves what `cut_before` keeps.

    It does not where one string may be complete inside another that began before it.
    """
    inside = any(short and short in long[1:-1] for short, long in permutations(stop, 2))
    return len(stop) <= _MOST_STOPS and all(stop) and not inside


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
