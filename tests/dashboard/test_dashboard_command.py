# SPDX-License-Identifier: Apache-2.0
"""`expunge dashboard` as somebody types it: tokens, webhooks, and the server as a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("fastapi", reason="the dashboard needs the extra `serve`")

from dashboard_world import hand_in, light_desk
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.dashboard.roles import Role
from expunge.dashboard.tokens import TokenStore


def call(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["dashboard", *map(str, words)])
    return found.exit_code, " ".join(found.output.split())


def test_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    desk = light_desk(tmp_path / "desk")
    code, said = call("token", "add", "anna", "--role", "operator", "--desk", desk.folder, "--json")
    assert code == 0, said
    made = json.loads(said)
    found = TokenStore(desk.folder).shown(made["token"])
    assert found is not None
    assert (found.name, found.role) == ("anna", Role.OPERATOR)
    code, said = call("token", "list", "--desk", desk.folder)
    assert (code, "operator, until" in said, made["token"] in said) == (0, True, False)
    code, said = call("token", "revoke", "anna", "--desk", desk.folder)
    assert code == 0
    assert TokenStore(desk.folder).shown(made["token"]) is None
    code, said = call("token", "add", "ben", "--role", "boss", "--desk", desk.folder)
    assert (code, "no such role" in said) == (2, True)
    code, said = call("token", "add", "ben", "--role", "auditor", "--desk", tmp_path)
    assert (code, "is no desk" in said) == (2, True)


def test_webhooks_are_listed_with_what_is_missing(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/hook"
    desk = light_desk(tmp_path / "desk", webhooks=[url])
    code, said = call("webhook", "list", "--desk", desk.folder)
    assert (code, "no secret yet" in said) == (0, True)
    code, said = call("webhook", "secret", url, "--desk", desk.folder)
    assert (code, "Told from entry 1" in said) == (0, True)
    hand_in(desk, "r1")
    code, said = call("webhook", "deliver", "--desk", desk.folder)
    assert (code, "Sent 0" in said) == (0, True)
    code, said = call("webhook", "list", "--desk", desk.folder)
    assert (code, "told up to entry 0" in said, "refused" in said) == (0, True, True)
    code, said = call("webhook", "secret", "https://elsewhere.example/", "--desk", desk.folder)
    assert (code, "not in the settings" in said) == (2, True)


@pytest.mark.parametrize("urls", [[], ["http://127.0.0.1:9/hook"]])
def test_work_sends_what_is_outstanding(tmp_path: Path, urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    desk, sent = light_desk(tmp_path / "desk", webhooks=urls), []
    monkeypatch.setattr("expunge.desk.webhooks.deliver", lambda office: sent.append(office.folder))
    found = CliRunner().invoke(app, ["work", "--desk", str(desk.folder)])
    assert found.exit_code == 0, found.output
    assert sent == [desk.folder] * len(urls)


def test_beyond_this_machine_only_by_insisting(tmp_path: Path) -> None:
    desk = light_desk(tmp_path / "desk")
    code, said = call("--desk", desk.folder, "--host", "0.0.0.0")
    assert (code, "--open-to-network" in said) == (2, True)


@pytest.mark.slow
def test_the_server_listens_on_loopback_and_ends_on_request(tmp_path: Path) -> None:
    desk = light_desk(tmp_path / "desk")
    token, _ = TokenStore(desk.folder).add("cleo", Role.AUDITOR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "expunge", "dashboard", "--desk", str(desk.folder), "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ.copy())
    try:
        request = Request(f"http://127.0.0.1:{port}/api/me", headers={"Authorization": f"Bearer {token}"})
        assert json.loads(_when_up(request, process))["name"] == "cleo"
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{port:04X} 00000000:0000 0A" in listening
        assert f"00000000:{port:04X} 00000000:0000 0A" not in listening
    finally:
        process.terminate()
        process.wait(timeout=20)


def _when_up(request: Request, process: subprocess.Popen[bytes]) -> bytes:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urlopen(request, timeout=5) as answer:
                return bytes(answer.read())
        except URLError:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.1)
