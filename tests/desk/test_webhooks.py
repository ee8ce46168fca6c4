# SPDX-License-Identifier: Apache-2.0
"""Notices to other systems: signed, in order, none lost, none sent elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from desk_world import MEETS

from expunge.desk.intake import RequestFile
from expunge.desk.service import Desk
from expunge.desk.webhooks import SIGNATURE, TOLERANCE, check_signature, deliver, sign, subscribe, subscriptions
from expunge.errors import RecipeError, VerificationFailed
from expunge.ledger.states import State

SECRET = "00ff" * 16


@dataclass
class Receiver:
    """A server of ours that keeps what it is sent and answers as it is told."""

    url: str = ""
    answer: int = 204
    got: list[tuple[str, bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            kept.got.append((self.headers[SIGNATURE], self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(kept.answer)
            if kept.answer == 302:
                self.send_header("Location", kept.url + "elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}/"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield kept
    server.shutdown()
    server.server_close()


def desk_for(folder: Path, *urls: str) -> Desk:
    return Desk.create(folder, {"model": "base", "corpora": {"a": "a.jsonl"}, "policy": MEETS, "webhooks": list(urls)})


def hand_in(desk: Desk, name: str) -> None:
    desk.intake(RequestFile(id=name, requester="case-1", identifiers=(f"Person {name}",)), actor="op")


def test_the_signature_is_the_one_worked_by_hand() -> None:
    body = b'{"id":1}'
    mark = hmac.new(bytes.fromhex(SECRET), b'1700000000.{"id":1}', hashlib.sha256).hexdigest()
    assert sign(SECRET, body, 1_700_000_000) == f"t=1700000000,v1={mark}"


def test_a_receiver_refuses_what_was_changed_forged_or_kept_for_later() -> None:
    body, then = b'{"id":1}', 1_700_000_000
    header = sign(SECRET, body, then)
    check_signature(SECRET, header, body, now=then + TOLERANCE)
    for bad_header, bad_body, secret in ((header, b'{"id":2}', SECRET), (header, body, "11" * 32),
                                         (header.replace("1700000000", "1700000001"), body, SECRET),
                                         ("", body, SECRET), ("t=x,v1=y", body, SECRET)):  # fmt: skip
        with pytest.raises(VerificationFailed, match="does not fit"):
            check_signature(secret, bad_header, bad_body, now=then)
    for moment in (then + TOLERANCE + 1, then - TOLERANCE - 1):
        with pytest.raises(VerificationFailed, match="replay"):
            check_signature(SECRET, header, body, now=moment)


def test_changes_of_state_arrive_in_order_and_hold_nothing_of_a_person(tmp_path: Path, receiver: Receiver) -> None:
    desk = desk_for(tmp_path / "desk", receiver.url)
    hand_in(desk, "before")
    made = subscribe(desk, receiver.url)
    hand_in(desk, "r1")
    desk.extend("r1", actor="op", reason="many systems")  # no change of state
    desk.move("r1", State.VERIFIED, actor="op", reason="seen")
    assert deliver(desk) == 2
    bodies = [json.loads(body) for _, body in receiver.got]
    assert [(b["request"], b["state"]) for b in bodies] == [("r1", "received"), ("r1", "verified")]
    assert {frozenset(b) for b in bodies} == {frozenset({"id", "at", "request", "state", "kind", "entry"})}
    for header, body in receiver.got:
        check_signature(made.secret, header, body)
        assert b"Person" not in body
    assert deliver(desk) == 0
    assert stat.S_IMODE((desk.folder / "webhooks.json").stat().st_mode) == 0o600


def test_what_was_not_taken_is_kept_over_a_restart_and_tried_again_later(tmp_path: Path, receiver: Receiver) -> None:
    desk = desk_for(tmp_path / "desk", receiver.url)
    subscribe(desk, receiver.url)
    receiver.answer = 503
    hand_in(desk, "r1")
    hand_in(desk, "r2")
    assert deliver(desk, now=1000) == 0
    assert len(receiver.got) == 1, "in order: the second waits for the first"
    assert subscriptions(desk)[0].problem != ""
    assert deliver(desk, now=1004) == 0
    assert len(receiver.got) == 1, "not before five seconds have passed"
    receiver.answer = 200
    again = Desk(desk.folder)
    assert deliver(again, now=1005) == 2
    assert [json.loads(body)["request"] for _, body in receiver.got] == ["r1", "r1", "r2"]
    assert subscriptions(again)[0].problem == ""


def test_waits_double_up_to_an_hour(tmp_path: Path, receiver: Receiver) -> None:
    desk = desk_for(tmp_path / "desk", receiver.url)
    subscribe(desk, receiver.url)
    receiver.answer = 500
    hand_in(desk, "r1")
    waits, now = [], 0.0
    for _ in range(12):
        deliver(desk, now=now)
        waits.append(subscriptions(desk)[0].next_try - now)
        now = subscriptions(desk)[0].next_try
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


def test_notices_go_to_urls_of_the_settings_only(tmp_path: Path, receiver: Receiver) -> None:
    desk = desk_for(tmp_path / "desk", receiver.url, "http://example.org/hook", "file:///etc/passwd")
    with pytest.raises(RecipeError, match="not in the settings"):
        subscribe(desk, receiver.url + "other")
    for url in ("http://example.org/hook", "file:///etc/passwd"):
        with pytest.raises(RecipeError, match="in the clear"):
            subscribe(desk, url)
    subscribe(desk, receiver.url)
    receiver.answer = 302
    hand_in(desk, "r1")
    assert deliver(desk) == 0
    assert len(receiver.got) == 1, "a redirect is not followed"
    settings = (desk.folder / "desk.yaml").read_text().replace(receiver.url, "https://gone.example/")
    (desk.folder / "desk.yaml").write_text(settings)
    receiver.answer = 200
    assert deliver(Desk(desk.folder), now=10**10) == 0
    assert len(receiver.got) == 1, "what is taken out of the settings is told nothing more"


def test_a_receiver_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/"
    desk = desk_for(tmp_path / "desk", url)
    assert deliver(desk) == 0, "without a secret nothing is sent"
    subscribe(desk, url)
    hand_in(desk, "r1")
    assert deliver(desk) == 0
    assert "refused" in subscriptions(desk)[0].problem
