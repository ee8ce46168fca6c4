# SPDX-License-Identifier: Apache-2.0
"""Every role can do its part and nothing else: a table over all routes and roles. A new route needs a new row here."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the dashboard needs the extra `serve`")

from dashboard_world import Door, csrf_of, hand_in, light_desk
from fastapi.routing import APIRoute

from expunge.dashboard.roles import RULES, Role, may
from expunge.ledger.states import State

R, O, A, D = Role.REQUESTER, Role.OPERATOR, Role.APPROVER, Role.AUDITOR  # noqa: E741
#: Who may come through; everybody else is refused with 403. Written by hand, apart from the rules of the code.
PAGES = {
    ("GET", "/"): {R, O, A, D},
    ("GET", "/requests/{request_id}"): {R, O, A, D},
    ("GET", "/requests/{request_id}/live"): {R, O, A, D},
    ("GET", "/requests/{request_id}/certificate"): {R, O, A, D},
    ("GET", "/requests/{request_id}/notices/{name}"): {R, O, A, D},
    ("GET", "/requests/{request_id}/routes"): {O},
    ("GET", "/intake"): {R, O},
    ("GET", "/runs"): {O, A, D},
    ("GET", "/runs/compare"): {O, A, D},
    ("GET", "/runs/{name}/report"): {O, A, D},
    ("GET", "/verify"): {O, A, D},
    ("GET", "/ledger"): {D},
    ("GET", "/ledger/export"): {D},
    ("POST", "/logout"): {R, O, A, D},
    ("POST", "/intake"): {R, O},
    ("POST", "/verify"): {O, A, D},
    ("POST", "/requests/{request_id}/withdraw"): {R},
    ("POST", "/requests/{request_id}/move"): {O},
    ("POST", "/requests/{request_id}/extend"): {O},
    ("POST", "/requests/{request_id}/locate"): {O},
    ("POST", "/requests/{request_id}/plan"): {O},
    ("POST", "/requests/{request_id}/approve"): {A},
}
API = {
    ("GET", "/api/me"): {R, O, A, D},
    ("GET", "/api/openapi.json"): {R, O, A, D},
    ("GET", "/api/requests"): {R, O, A, D},
    ("GET", "/api/requests/{request_id}"): {R, O, A, D},
    ("GET", "/api/requests/{request_id}/live"): {R, O, A, D},
    ("GET", "/api/requests/{request_id}/certificate"): {R, O, A, D},
    ("GET", "/api/requests/{request_id}/notices/{name}"): {R, O, A, D},
    ("GET", "/api/requests/{request_id}/routes"): {O},
    ("GET", "/api/runs"): {O, A, D},
    ("GET", "/api/ledger"): {D},
    ("GET", "/api/ledger/export"): {D},
    ("POST", "/api/requests"): {R, O},
    ("POST", "/api/verifications"): {O, A, D},
    ("POST", "/api/requests/{request_id}/withdrawal"): {R},
    ("POST", "/api/requests/{request_id}/moves"): {O},
    ("POST", "/api/requests/{request_id}/extension"): {O},
    ("POST", "/api/requests/{request_id}/location"): {O},
    ("POST", "/api/requests/{request_id}/plan"): {O},
    ("POST", "/api/requests/{request_id}/approval"): {A},
}
#: What anybody sees who has no token.
OPEN = {
    ("GET", "/login"),
    ("POST", "/login"),
    ("GET", "/static/dashboard.css"),
    ("GET", "/static/dashboard.js"),
    ("GET", "/static/icon.svg"),
}
ROWS = [*PAGES.items(), *API.items()]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    desk = light_desk(tmp_path_factory.mktemp("roles") / "desk")
    hand_in(desk, "mine", upto=State.ON_HOLD)  # where no move that the table tries goes through
    hand_in(desk, "other", requester="case-2")
    return Door(desk)


@pytest.fixture(scope="module")
def pages(door: Door) -> dict[Role, Any]:
    return {role: door.page(role) for role in Role}


def found_routes(app: Any) -> set[tuple[str, str]]:
    """Every method and path that the application answers, taken from what it was built of."""
    found, waiting = set(), list(app.routes)
    while waiting:
        route = waiting.pop()
        if isinstance(route, APIRoute):
            found |= {(method, route.path) for method in route.methods}
        else:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            assert inner is not None, f"a route of an unknown kind: {route}"
            waiting += inner.routes
    return found


def test_every_route_has_its_row(door: Door) -> None:
    assert found_routes(door.app) == set(PAGES) | set(API) | OPEN


def test_a_route_without_a_rule_is_open_to_nobody() -> None:
    assert not any(may(role, "a_new_route") for role in Role)
    assert all(roles for roles in RULES.values())


def filled(path: str, request: str = "mine") -> str:
    return path.replace("{request_id}", request).replace("{name}", "notice.md")


def call(door: Door, pages: dict[Role, Any], role: Role, method: str, path: str) -> Any:
    if path.startswith("/api"):
        return door.api(role).request(method, path, json={} if method == "POST" else None)
    if path == "/logout":
        pages = {role: door.page(role)}
    client = pages[role]
    data = {"csrf": csrf_of(client.get("/").text)} if method == "POST" else None
    return client.request(method, path, data=data)


@pytest.mark.parametrize(("row", "allowed"), ROWS, ids=[f"{method} {path}" for (method, path), _ in ROWS])
def test_a_role_does_its_part_and_nothing_else(
    door: Door, pages: dict[Role, Any], row: tuple[str, str], allowed: set[Role], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(door.desk), "advise", lambda self, request: [], raising=False)
    for role in Role:
        before = door.desk.ledger.head()[0]
        answer = call(door, pages, role, row[0], filled(row[1]))
        refused = answer.status_code == 403
        assert refused is (role not in allowed), f"{role}: {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500
        if refused:
            assert door.desk.ledger.head()[0] == before, "a refused call left an entry"


@pytest.mark.parametrize("row", [row for row in [*PAGES, *API] if "{request_id}" in row[1]], ids=" ".join)
def test_requests_of_others_do_not_exist_for_a_requester(
    door: Door, pages: dict[Role, Any], row: tuple[str, str]
) -> None:
    allowed = {**PAGES, **API}[row]
    if R not in allowed:
        return
    answer = call(door, pages, R, row[0], filled(row[1], "other"))
    missing = call(door, pages, R, row[0], filled(row[1], "no-such-request"))
    assert answer.status_code == missing.status_code == 404
    assert answer.text.replace("other", "") == missing.text.replace("no-such-request", "")


@pytest.mark.parametrize("row", [*PAGES, *API], ids=" ".join)
def test_nobody_comes_in_without_a_token(door: Door, row: tuple[str, str]) -> None:
    method, path = row
    answer = door.anybody().request(method, filled(path), json={} if path.startswith("/api") else None)
    if path.startswith("/api") or method == "POST":
        assert answer.status_code == 401
    else:
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def test_a_requester_sees_own_requests_only(door: Door, pages: dict[Role, Any]) -> None:
    assert [row["id"] for row in door.api(R).get("/api/requests").json()] == ["mine"]
    text = pages[R].get("/").text
    assert "/requests/mine" in text
    assert "other" not in text
    assert {row["id"] for row in door.api(D).get("/api/requests").json()} == {"mine", "other"}
