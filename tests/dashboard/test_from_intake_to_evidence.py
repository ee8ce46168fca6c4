# SPDX-License-Identifier: Apache-2.0
"""One request through the pages: handed in, verified, located, planned, approved, worked off, checked by upload."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the dashboard needs the extra `serve`")

sys.path.insert(0, str(Path(__file__).parents[1] / "desk"))

from dashboard_world import NAMES, Door, csrf_of, post
from desk_world import open_desk

from expunge.dashboard.progress import SILENCE, progress_of
from expunge.dashboard.roles import Role
from expunge.desk.queue import work
from expunge.ledger.states import State


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    return Door(open_desk(tmp_path_factory.mktemp("flow") / "desk"))


@pytest.fixture(scope="module")
def request_id(door: Door) -> str:
    """A request that four people brought to its certificate."""
    person = next(example.subject for example in door.desk.corpora()["archive"])
    requester, operator, approver = (door.page(role) for role in (Role.REQUESTER, Role.OPERATOR, Role.APPROVER))
    answer = post(requester, "/intake", what="erasure", identifiers=str(person))
    found = re.match(r"/requests/([\w-]+)\?done=received", answer.headers["location"])
    assert found is not None
    name, path = found[1], f"/requests/{found[1]}"
    assert post(operator, f"{path}/move", to="verified").status_code == 303
    assert post(operator, f"{path}/locate").status_code == 303
    deadline = time.monotonic() + 60
    while door.desk.ledger.request(name).state is not State.LOCATED:
        assert time.monotonic() < deadline, operator.get(path).text
        time.sleep(0.05)
    assert "routes" in operator.get(path).text
    routes = operator.get(f"{path}/routes").text
    assert 'name="route"' in routes
    route = re.search(r'name="route" value="([^"]+)"', routes)
    assert route is not None
    listed = door.api(Role.OPERATOR).get(f"/api{path}/routes").json()
    assert listed[0]["name"] == route[1]
    assert post(operator, f"{path}/plan", method="grad_diff").status_code == 303
    plan = re.search(r'name="plan" value="(\w+)"', approver.get(path).text)
    assert plan is not None
    assert post(approver, f"{path}/approve", plan=plan[1]).status_code == 303
    assert "waiting for a worker" in requester.get(path).text
    work(door.desk)
    return name


def test_every_entry_stands_under_the_name_of_who_made_it(door: Door, request_id: str) -> None:
    view = door.desk.ledger.request(request_id)
    assert view.state is State.CERTIFIED
    assert [(event.kind, event.actor) for event in view.events[:5]] == [
        ("request", NAMES[Role.REQUESTER]), ("move", NAMES[Role.OPERATOR]), ("scope", NAMES[Role.OPERATOR]),
        ("plan", NAMES[Role.OPERATOR]), ("approval", NAMES[Role.APPROVER]),
    ]  # fmt: skip
    assert door.desk.ledger.verify() == []


def test_the_page_shows_what_was_measured_and_no_example(door: Door, request_id: str) -> None:
    text = door.page(Role.AUDITOR).get(f"/requests/{request_id}").text
    assert "What was measured" in text
    assert "Not tested:" in text
    assert "forget.probability at most 1" in text
    assert "✓ met" in text
    assert "<svg" in text
    for line in (door.desk.path(request_id) / "forget.jsonl").read_text().splitlines():
        assert json.loads(line)["answer"] not in text
    requester = door.page(Role.REQUESTER).get(f"/requests/{request_id}").text
    assert "What was measured" not in requester
    assert f"/requests/{request_id}/certificate" in requester


def test_what_was_found_and_not_searched_is_shown_to_staff(door: Door, request_id: str) -> None:
    text = door.page(Role.APPROVER).get(f"/requests/{request_id}").text
    assert "What was found" in text
    assert "Not searched" in text
    assert "What was found" not in door.page(Role.REQUESTER).get(f"/requests/{request_id}").text
    path = door.desk.path(request_id, "scope.json")
    whole = path.read_text()
    path.write_text(whole.replace('"found": ', '"found": 1'))
    assert "What was found" not in door.page(Role.APPROVER).get(f"/requests/{request_id}").text
    path.write_text(whole)


def test_the_certificate_and_the_report_are_sent_as_files(door: Door, request_id: str) -> None:
    raw = (door.desk.path(request_id) / "certificate.dsse.json").read_bytes()
    answer = door.page(Role.REQUESTER).get(f"/requests/{request_id}/certificate")
    assert answer.content == raw == door.api(Role.AUDITOR).get(f"/api/requests/{request_id}/certificate").content
    assert answer.headers["content-disposition"].startswith("attachment")
    run = door.api(Role.AUDITOR).get("/api/runs").json()[0]
    assert run["requests"] == [request_id]
    report = door.page(Role.AUDITOR).get(f"/runs/{run['name']}/report")
    assert report.headers["content-disposition"].startswith("attachment")
    compared = door.page(Role.AUDITOR).get(f"/runs/compare?run={run['name']}&run={run['name']}")
    assert run["name"] in compared.text
    assert door.page(Role.AUDITOR).get("/runs/compare?run=unknown").status_code == 404


def upload(door: Door, raw: bytes) -> Any:
    client = door.page(Role.AUDITOR)
    csrf = csrf_of(client.get("/verify").text)
    return client.post("/verify", data={"csrf": csrf}, files={"certificate": ("c.dsse.json", raw)})


@pytest.fixture
def flipped(door: Door, request_id: str) -> Iterator[Path]:
    """The model of the run with one bit turned."""
    run = door.desk.ledger.request(request_id).last("run").body["run"]
    path = door.desk.folder / "runs" / run / "model" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    yield path
    path.write_bytes(whole)


def test_an_upload_is_verified_and_what_fails_is_named(door: Door, request_id: str) -> None:
    raw = (door.desk.path(request_id) / "certificate.dsse.json").read_bytes()
    answer = upload(door, raw)
    assert "It holds" in answer.text
    said = door.api(Role.OPERATOR).post("/api/verifications", content=raw).json()
    assert (said["verified"], said["request"], said["claim"]) == (True, request_id, "approximate")
    assert "relearning" in said["not_tested"]
    place = raw.index(b'"payload":"') + 40
    changed = raw[:place] + (b"A" if raw[place : place + 1] != b"A" else b"B") + raw[place + 1 :]
    for bad in (changed, raw[:-1], raw + b" ", b"{}", b"\xff\x00"):
        text = upload(door, bad).text
        assert "Do not rely on it" in text
        assert not door.api(Role.OPERATOR).post("/api/verifications", content=bad).json()["verified"]
    assert "signature does not fit" in upload(door, changed).text


def test_an_upload_names_the_file_of_the_model_that_was_changed(door: Door, request_id: str, flipped: Path) -> None:
    raw = (door.desk.path(request_id) / "certificate.dsse.json").read_bytes()
    text = upload(door, raw).text
    assert "Do not rely on it" in text
    assert f"model file {flipped.name}" in text


def test_progress_is_read_while_the_run_is_written(door: Door, tmp_path: Path) -> None:
    run = tmp_path / "u1"
    now = door.app.state.house.office.clock()
    assert progress_of(tmp_path, "u1", now).status == "preparing"
    run.mkdir()
    facts = {"status": "running", "recipe": {"training": {"max_steps": 8}}}
    (run / "run.json").write_text(json.dumps(facts))
    lines = [{"step": 0, "probe": {"forget.probability": 0.5}}, {"step": 3, "loss": 1.25}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "lo')
    now = door.app.state.house.office.clock()
    found = progress_of(tmp_path, "u1", now)
    assert (found.stage, found.step, found.total, found.loss, found.running) == ("Unlearning", 3, 8, 1.25, True)
    assert found.probe == {"forget.probability": 0.5}
    import datetime

    later = progress_of(tmp_path, "u1", now + datetime.timedelta(seconds=SILENCE + 60))
    assert not later.running
    (run / "model").mkdir()
    assert progress_of(tmp_path, "u1", now).stage == "Measuring the changed model"
    (run / "run.json").write_text(json.dumps({**facts, "status": "failed", "error": "OSError: /secret/path is full"}))
    ended = progress_of(tmp_path, "u1", now)
    assert (ended.stage, ended.error, ended.running) == ("Failed", "OSError", False)


def test_a_search_that_finds_nothing_says_so(door: Door) -> None:
    operator = door.page(Role.OPERATOR)
    answer = post(operator, "/intake", requester="case-5", identifiers="Nobody Of That Name", what="erasure")
    path = answer.headers["location"].partition("?")[0]
    post(operator, f"{path}/move", to="verified")
    assert post(operator, f"{path}/locate").status_code == 303
    deadline = time.monotonic() + 60
    while "nothing was found" not in (text := operator.get(f"{path}/live").text):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    assert "data-poll" not in text
