# SPDX-License-Identifier: Apache-2.0
"""A completions server for tests, on the loopback only: it runs a model of the test itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.signals.generation import generate
from expunge.signals.stopping import cut_before, decoded


class CompletionsServer(ThreadingHTTPServer):
    """Holds models by name, what it was asked, and the answers to give before it begins to work."""

    def __init__(self, models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models, self.tokenizer = models, tokenizer
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.first: list[tuple[int, bytes]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, stop = body["prompt"], body.get("stop", [])
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        one = generate(self.models[body["model"]], self.tokenizer, [ids], max_new_tokens=body["max_tokens"])[0]
        text, stopped = cut_before(decoded(self.tokenizer, one.ids), stop)
        choice = {"index": 0, "text": text, "finish_reason": "stop" if one.finished or stopped else "length"}
        if body.get("return_token_ids"):
            choice["token_ids"] = [*one.ids, *([self.tokenizer.eos_token_id] if one.finished else [])]
        return {"object": "text_completion", "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    server: CompletionsServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers["Authorization"])
            status, answer = self.server.first.pop(0) if self.server.first else (200, b"")
            if self.path != "/v1/completions":
                status, answer = 404, b"no such path"
            elif not answer and body["model"] not in self.server.models:
                status, answer = 404, b"no such model"
            answer = answer or json.dumps(self.server.complete(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def serving(models: dict[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> Iterator[CompletionsServer]:
    server = CompletionsServer(models, tokenizer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
