# SPDX-License-Identifier: Apache-2.0
"""What stands at the door: tokens, sessions, foreign forms and hosts, large bodies, haste, odd names and scripts."""

from __future__ import annotations

import json
import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the dashboard needs the extra `serve`")

from dashboard_world import BASE, NAMES, Door, csrf_of, hand_in, light_desk, post

import expunge.dashboard
from expunge.claims import lint
from expunge.dashboard.guards import LARGEST_BODY, Limits, Pace
from expunge.dashboard.refusals import TooMany
from expunge.dashboard.roles import Role
from expunge.dashboard.server import check_address, is_loopback
from expunge.dashboard.sessions import COOKIE, HOURS
from expunge.dashboard.tokens import TokenStore
from expunge.errors import RecipeError
from expunge.ledger.states import State

PACKAGE = Path(expunge.dashboard.__file__).parent
SCRIPT = "<script>alert(1)</script>"


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def door(tmp_path: Path) -> Door:
    desk = light_desk(tmp_path / "desk")
    hand_in(desk, "r1")
    return Door(desk)


def test_tokens_are_random_kept_as_digests_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    store = TokenStore(tmp_path)
    first, made = store.add("anna", Role.OPERATOR)
    second, _ = store.add("ben", Role.AUDITOR)
    text = (tmp_path / "dashboard" / "tokens.json").read_text()
    assert first != second
    assert len(first) > 43
    assert not any(part in text for part in (first, first[12:], second[12:]))
    assert store.shown(first) == made
    assert stat.S_IMODE((tmp_path / "dashboard" / "tokens.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "dashboard").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", "worker", "two words", "../up", "ä", "x" * 65])
def test_names_that_cannot_stand_in_the_ledger_get_no_token(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="cannot be the name"):
        TokenStore(tmp_path).add(name, Role.OPERATOR)


def test_a_person_has_one_token_and_one_role(tmp_path: Path) -> None:
    store = TokenStore(tmp_path)
    old, _ = store.add("anna", Role.OPERATOR)
    with pytest.raises(RecipeError, match="has a token that counts"):
        store.add("anna", Role.OPERATOR)
    store.revoke("anna")
    assert store.shown(old) is None
    with pytest.raises(RecipeError, match="another role before"):  # else anna approves what anna planned
        store.add("anna", Role.APPROVER)
    new, _ = store.add("anna", Role.OPERATOR)
    assert store.shown(new) is not None
    with pytest.raises(RecipeError, match="no token that counts"):
        store.revoke("nobody")


def test_forged_ended_and_revoked_tokens_open_nothing(tmp_path: Path) -> None:
    clock = Clock()
    door = Door(light_desk(tmp_path / "desk"), clock=clock)
    good = door.tokens[Role.AUDITOR]
    forged = [good[:-1] + ("A" if good[-1] != "A" else "B"), good.upper(), "", "xp_", "x" * 10_000, "\u00e4"]
    for token in forged:
        assert door.anybody().get("/api/me", headers={"Authorization": f"Bearer {token}".encode()}).status_code == 401
        client = door.anybody()
        answer = client.post("/login", data={"csrf": csrf_of(client.get("/login").text), "token": token})
        assert answer.status_code == 401
        assert COOKIE not in answer.cookies
    assert door.api(Role.AUDITOR).get("/api/me").json()["name"] == NAMES[Role.AUDITOR]
    browser = door.page(Role.AUDITOR)
    clock.now += timedelta(days=91)
    assert door.api(Role.AUDITOR).get("/api/me").status_code == 401
    assert browser.get("/").headers["location"] == "/login"
    clock.now -= timedelta(days=91)
    assert browser.get("/").status_code == 200
    TokenStore(door.desk.folder, clock=clock).revoke(NAMES[Role.AUDITOR])
    assert browser.get("/").headers["location"] == "/login"
    assert door.api(Role.AUDITOR).get("/api/me").status_code == 401


def test_a_session_ends_by_itself_and_by_signing_out(tmp_path: Path) -> None:
    clock = Clock()
    door = Door(light_desk(tmp_path / "desk"), clock=clock)
    browser = door.page(Role.OPERATOR)
    stolen = browser.cookies[COOKIE]
    post(browser, "/logout")
    assert door.anybody().get("/", headers={"Cookie": f"{COOKIE}={stolen}"}).status_code == 303
    browser = door.page(Role.OPERATOR)
    clock.now += timedelta(hours=HOURS, seconds=1)
    assert browser.get("/").status_code == 303


def test_the_cookie_is_kept_from_scripts_and_other_sites(door: Door) -> None:
    client = door.anybody()
    answer = client.post(
        "/login", data={"csrf": csrf_of(client.get("/login").text), "token": door.tokens[Role.OPERATOR]}
    )
    cookie = next(line for line in answer.headers.get_list("set-cookie") if line.startswith(COOKIE))
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    secure = door.anybody()
    secure.base_url = BASE.replace("http:", "https:")
    answer = secure.post(
        "/login", data={"csrf": csrf_of(secure.get("/login").text), "token": door.tokens[Role.OPERATOR]}
    )
    assert "Secure" in answer.headers["set-cookie"]


def test_a_form_without_our_secret_is_refused(door: Door) -> None:
    browser, other = door.page(Role.OPERATOR), door.page(Role.AUDITOR)
    foreign = csrf_of(other.get("/").text)
    before = door.desk.ledger.head()
    mine = csrf_of(browser.get("/").text)
    for path in ("/intake", "/requests/r1/move", "/requests/r1/extend", "/requests/r1/plan", "/verify",
                 "/requests/r1/locate", "/logout"):  # fmt: skip
        for fields in ({}, {"csrf": ""}, {"csrf": "x"}, {"csrf": foreign}):
            assert browser.post(path, data={"to": "verified", "reason": "x", **fields}).status_code == 403, path
        answer = browser.post(path, data={"csrf": mine, "to": "verified"}, headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403
    assert door.desk.ledger.head() == before
    assert browser.get("/").status_code == 200


def test_the_sign_in_needs_its_own_secret(door: Door) -> None:
    client = door.anybody()
    client.get("/login")
    for secret in ("", "x"):
        assert client.post("/login", data={"csrf": secret, "token": door.tokens[Role.OPERATOR]}).status_code == 403
    assert door.anybody().post("/login", data={"csrf": "", "token": door.tokens[Role.OPERATOR]}).status_code == 403


def test_a_cookie_does_not_open_the_api_nor_a_bearer_the_pages(door: Door) -> None:
    assert door.page(Role.OPERATOR).get("/api/requests").status_code == 401
    assert door.api(Role.OPERATOR).get("/").status_code == 303


def test_every_answer_carries_the_headers(door: Door) -> None:
    for path in ("/", "/login", "/api/me", "/static/dashboard.js", "/nowhere", "/verify"):
        headers = door.anybody().get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("max-age=60" if path.startswith("/static") else "no-store")


def test_pages_hold_nothing_that_the_policy_would_stop(door: Door) -> None:
    hand_in(door.desk, "r2", upto=State.PLANNED)
    for path in ("/", "/intake", "/verify", "/runs", "/requests/r2", "/login", "/requests/none"):
        text = door.page(Role.OPERATOR).get(path).text
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]* src=)|javascript:|https?://", text), path


def test_no_template_says_what_may_not_be_said() -> None:
    files = [path for path in (PACKAGE / "templates").iterdir()]
    assert len(files) > 10
    for path in files:
        assert lint(path.read_text()) == [], path.name


def test_foreign_host_names_are_refused(door: Door) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8765", ""):
        assert door.api(Role.AUDITOR).get("/api/me", headers={"Host": host}).status_code == 421
    for host in ("localhost:8765", "127.0.0.1", "[::1]:9", "LOCALHOST"):
        assert door.api(Role.AUDITOR).get("/api/me", headers={"Host": host}).status_code == 200


def test_large_bodies_are_refused_whatever_they_say_of_their_length(door: Door) -> None:
    api, browser = door.api(Role.AUDITOR), door.page(Role.AUDITOR)
    large = b"x" * (LARGEST_BODY + 1)
    assert api.post("/api/verifications", content=large).status_code == 413

    def silent() -> object:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    assert api.post("/api/verifications", content=silent()).status_code == 413
    csrf = csrf_of(browser.get("/").text)
    assert browser.post("/verify", data={"csrf": csrf}, files={"certificate": ("c.json", large)}).status_code == 413
    assert api.post("/api/verifications", content=b"x", headers={"Content-Length": "-1"}).status_code in (400, 413)
    operator = door.api(Role.OPERATOR)
    assert operator.post("/api/requests", content=large).status_code == 413
    assert api.post("/api/verifications", content=large[:1000]).json()["verified"] is False


def test_haste_is_stopped_by_token_and_by_address(tmp_path: Path) -> None:
    door = Door(light_desk(tmp_path / "desk"), limits=Limits(read=5, change=2, verify=1, sign_in=3))
    api = door.api(Role.AUDITOR)
    answers = [api.get("/api/me") for _ in range(7)]
    assert [a.status_code for a in answers] == [200] * 5 + [429] * 2
    assert answers[-1].headers["retry-after"] == "60"
    assert door.api(Role.OPERATOR).get("/api/me").status_code == 200  # another person is not slowed
    assert [api.post("/api/verifications", content=b"{}").status_code for _ in range(2)] == [200, 429]
    wrong = door.anybody()
    tried = [wrong.get("/api/me", headers={"Authorization": "Bearer x"}).status_code for _ in range(5)]
    assert tried == [401, 401, 401, 429, 429]
    signing = [wrong.post("/login", data={}).status_code for _ in range(5)]
    assert signing == [403, 403, 403, 429, 429]


def test_a_bucket_refills_steadily() -> None:
    now = [0.0]
    pace = Pace(clock=lambda: now[0])
    for _ in range(6):
        pace.take("k", 6)
    with pytest.raises(TooMany):
        pace.take("k", 6)
    now[0] += 10  # six a minute is one in ten seconds
    pace.take("k", 6)
    with pytest.raises(TooMany):
        pace.take("k", 6)


def test_names_that_are_paths_lead_nowhere(door: Door) -> None:
    (door.desk.folder / "runs" / "x").mkdir(parents=True)
    operator, api = door.page(Role.OPERATOR), door.api(Role.OPERATOR)
    names = ["%2e%2e", "..%2f..%2fdesk.yaml", "%2e%2e%2f%2e%2e%2fdesk.yaml", "%00", "r1%0a", "\u202e", "-r", ".r1",
             "a" * 65, "keys%2fdesk", "..%5cdesk.yaml"]  # fmt: skip
    for name in names:
        for path in (f"/requests/{name}", f"/requests/{name}/certificate", f"/requests/r1/notices/{name}",
                     f"/runs/{name}/report", f"/runs/compare?run={name}"):  # fmt: skip
            assert operator.get(path).status_code == 404, path
        for path in (f"/api/requests/{name}", f"/api/requests/r1/notices/{name}"):
            assert api.get(path).status_code in (404, 422), path


def test_files_that_are_no_notice_are_not_sent(door: Door) -> None:
    for name in ("request.json", "forget.jsonl", "certificate.dsse.json"):
        assert door.page(Role.OPERATOR).get(f"/requests/r1/notices/{name}").status_code == 404
    (door.desk.path("r1") / "recipients.md").write_text("to recipients")
    (door.desk.path("r1") / "notice.md").write_text("to you")
    requester = door.page(Role.REQUESTER)
    assert requester.get("/requests/r1/notices/recipients.md").status_code == 404
    assert requester.get("/requests/r1/notices/notice.md").text == "to you"
    assert door.page(Role.AUDITOR).get("/requests/r1/notices/recipients.md").text == "to recipients"


def test_scripts_in_what_people_write_are_shown_as_text(door: Door) -> None:
    operator = door.page(Role.OPERATOR)
    answer = post(operator, "/intake", requester="case-9", identifiers=f"Eve {SCRIPT}\nMallory", what="erasure",
                  samples=f"One {SCRIPT}\r\n---\r\nTwo", record_ids="", basis=f"Art {SCRIPT}", received="")  # fmt: skip
    assert answer.status_code == 303
    path = answer.headers["location"].partition("?")[0]
    post(operator, f"{path}/move", to="on_hold", reason=f"because {SCRIPT}")
    text = operator.get(path).text
    assert SCRIPT not in text
    assert text.count("&lt;script&gt;alert(1)") == 4
    answer = post(operator, "/intake", requester=f'"><script>{SCRIPT}', identifiers="x", what="erasure")
    assert answer.status_code == 409
    assert "<script>" not in answer.text.replace('<script src="/static/dashboard.js" defer>', "")
    assert SCRIPT not in operator.get(f"/?show={SCRIPT}").text
    assert SCRIPT not in operator.get(f"/requests/r1?done={SCRIPT}").text
    auditor = door.page(Role.AUDITOR)
    files = {"certificate": (f"{SCRIPT}.json", b"{}")}
    answer = auditor.post("/verify", data={"csrf": csrf_of(auditor.get("/").text)}, files=files)
    assert SCRIPT not in answer.text
    assert SCRIPT not in auditor.get("/ledger").text


def test_what_a_person_gave_is_shown_to_who_needs_it_and_never_over_the_api(door: Door) -> None:
    hand_in(door.desk, "r7", identifiers=("Very Private Person",), samples=("a private text",))
    for role, sees in ((Role.OPERATOR, True), (Role.REQUESTER, True), (Role.APPROVER, False), (Role.AUDITOR, False)):
        assert ("Very Private Person" in door.page(role).get("/requests/r7").text) is sees
        assert "rivate" not in door.api(role).get("/api/requests/r7").text


def test_a_requester_cannot_speak_for_another_nor_date_a_request_back(door: Door) -> None:
    answer = door.api(Role.REQUESTER).post("/api/requests", json={
        "requester": "case-2", "identifiers": ["x"], "received": "2020-01-01T00:00:00Z"})  # fmt: skip
    assert answer.status_code == 201
    found = answer.json()
    assert found["requester"] == "case-1"
    assert found["days_left"] > 27
    assert door.desk.ledger.request(found["id"]).events[0].actor == "case-1"
    answer = door.api(Role.OPERATOR).post("/api/requests", json={
        "requester": "case-2", "identifiers": ["y"], "received": "2999-01-01T00:00:00Z"})  # fmt: skip
    assert (answer.status_code, answer.json()["field"]) == (409, "received")


def test_nobody_approves_their_own_plan_or_one_they_did_not_see(tmp_path: Path) -> None:
    door = Door(light_desk(tmp_path / "desk"))
    desk = door.desk
    hand_in(desk, "r1", upto=State.PLANNED)
    seen = door.api(Role.APPROVER).get("/api/requests/r1").json()["plan"]["digest"]
    desk.plan("r1", "npo", actor="op-anna", settings={})
    answer = door.api(Role.APPROVER).post("/api/requests/r1/approval", json={"plan": seen})
    assert (answer.status_code, "made anew" in answer.json()["problem"]) == (409, True)
    desk.plan("r1", "npo", actor=NAMES[Role.APPROVER], settings={})
    page = door.page(Role.APPROVER)
    assert "Another person approves it" in page.get("/requests/r1").text
    own = desk.plan_file("r1").digest
    answer = post(page, "/requests/r1/approve", plan=own)
    assert (answer.status_code, "somebody else" in answer.text) == (409, True)
    desk.plan("r1", "npo", actor="op-anna", settings={})
    shown = re.search(r'name="plan" value="(\w+)"', page.get("/requests/r1").text)
    assert shown is not None
    assert post(page, "/requests/r1/approve", plan=shown[1]).status_code == 303
    view = desk.ledger.request("r1")
    assert (view.state, view.last("approval").actor) == (State.APPROVED, NAMES[Role.APPROVER])


def test_words_that_may_not_be_said_do_not_enter_by_a_form(door: Door) -> None:
    answer = post(door.page(Role.OPERATOR), "/requests/r1/move", to="refused", reason="the data was deleted")
    assert answer.status_code == 409
    assert "may not be said" in answer.text
    assert door.desk.ledger.request("r1").state is State.RECEIVED


HOSTS = {"127.0.0.1": True, "127.9.9.9": True, "::1": True, "localhost": True,
         "0.0.0.0": False, "::": False, "10.0.0.5": False, "desk.example": False}  # fmt: skip


@pytest.mark.parametrize(("host", "alone"), HOSTS.items())
def test_only_loopback_is_listened_on_without_insisting(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone
    if alone:
        check_address(host, open_to_network=False)
    else:
        with pytest.raises(RecipeError, match="--open-to-network"):
            check_address(host, open_to_network=False)
        check_address(host, open_to_network=True)


def test_the_exported_ledger_is_what_the_command_writes(door: Door, tmp_path: Path) -> None:
    from expunge.ledger.export import check_export, export_ledger

    export_ledger(door.desk.ledger, tmp_path / "a.jsonl")
    raw = door.api(Role.AUDITOR).get("/api/ledger/export").content
    assert raw == (tmp_path / "a.jsonl").read_bytes() == door.page(Role.AUDITOR).get("/ledger/export").content
    (tmp_path / "b.jsonl").write_bytes(raw)
    assert check_export(tmp_path / "b.jsonl") == []
    state = door.api(Role.AUDITOR).get("/api/ledger").json()
    assert (state["seq"], state["hash"], state["problems"]) == (*door.desk.ledger.head(), [])
    assert json.loads(raw.splitlines()[-1])["hash"] == state["hash"]
