# SPDX-License-Identifier: Apache-2.0
"""The forms that change something, and the sign-in."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import Response

from expunge.dashboard.access import address, check_form, form_of, house, page_gate, person, session_of
from expunge.dashboard.pages import FIELDS, NAME, show_request
from expunge.dashboard.refusals import Refusal
from expunge.dashboard.rendering import page
from expunge.dashboard.roles import Role
from expunge.dashboard.sessions import COOKIE, HOURS
from expunge.errors import ExpungeError, InputDataError, RecipeError
from expunge.ledger.states import State

router = APIRouter(dependencies=[Depends(page_gate)], include_in_schema=False)
door = APIRouter(include_in_schema=False)

Name = Annotated[str, Path(pattern=NAME)]
_LOGIN = "expunge_sign_in"


@door.get("/login", name="login_form")
def login_form(request: Request) -> Response:
    """Show the sign-in."""
    return RedirectResponse("/", 303) if session_of(request) else _sign_in(request)


@door.post("/login", name="login")
async def login(request: Request) -> Response:
    """Open a session for a token that counts."""
    at = house(request)
    at.pace.take(f"sign in {address(request)}", at.limits.sign_in)
    await check_form(request, request.cookies.get(_LOGIN, ""))
    token = at.tokens.shown(_text(request, "token").strip())
    if token is None:
        return _sign_in(request, problem="This token does not count: mistyped, ended or revoked.", status=401)
    answer = RedirectResponse("/", 303)
    _set_cookie(request, answer, COOKIE, at.sessions.open(token.id), HOURS * 3600)
    answer.delete_cookie(_LOGIN, path="/login")
    return answer


def _sign_in(request: Request, *, problem: str = "", status: int = 200) -> HTMLResponse:
    """Return the sign-in with a secret of its own, which the form must bring back beside the cookie."""
    csrf = secrets.token_urlsafe(32)
    answer = page(request, "login.html", None, status=status, problem=problem, csrf_value=csrf)
    _set_cookie(request, answer, _LOGIN, csrf, 3600, path="/login")
    return answer


def _set_cookie(request: Request, answer: Response, name: str, value: str, seconds: int, path: str = "/") -> None:
    secure = request.url.scheme == "https"
    answer.set_cookie(name, value, max_age=seconds, path=path, httponly=True, samesite="strict", secure=secure)


@router.post("/logout", name="logout")
def logout(request: Request) -> RedirectResponse:
    """End the session."""
    house(request).sessions.close(request.cookies.get(COOKIE, ""))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


@router.post("/intake", name="intake")
def intake(request: Request) -> Response:
    """Take a request in."""
    at, who = house(request).office, person(request)
    given = {name: _text(request, name) for name in FIELDS}
    try:
        view = at.intake(who, _request_values(given))
    except (InputDataError, RecipeError) as error:
        return page(request, "intake.html", who, status=409, problem=_said(error, who.role), values=given)
    return RedirectResponse(f"/requests/{view.id}?done=received", 303)


def _request_values(given: dict[str, str]) -> dict[str, object]:
    """Return a request from the fields of the form; empty ones are left out."""
    lines: dict[str, object] = {name: [line.strip() for line in given[name].splitlines() if line.strip()]
                                for name in ("identifiers", "record_ids")}  # fmt: skip
    lines["samples"] = [part.strip() for part in given["samples"].replace("\r\n", "\n").split("\n---\n")]
    lines |= {name: given[name].strip() for name in ("what", "requester", "basis")}
    if given["received"]:
        try:
            lines["received"] = datetime.strptime(given["received"], "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            raise InputDataError("is no day", field="received", remedy="Such as 2026-01-31") from None
    return {name: value for name, value in lines.items() if value not in ("", [], [""])}


@router.post("/requests/{request_id}/withdraw", name="withdraw")
def withdraw(request: Request, request_id: Name) -> Response:
    """Withdraw one's own request."""
    at, who = house(request).office, person(request)
    return _then(request, request_id, "withdrawn", lambda: at.withdraw(who, request_id, _text(request, "reason")))


@router.post("/requests/{request_id}/move", name="move")
def move(request: Request, request_id: Name) -> Response:
    """Verify, refuse, hold or release a request."""
    at, who = house(request).office, person(request)

    def act() -> object:
        to = _text(request, "to")
        if to not in list(State):
            raise RecipeError("no such state", field="to", remedy="Use the buttons of the page")
        return at.move(who, request_id, State(to), _text(request, "reason"))

    return _then(request, request_id, "moved", act)


@router.post("/requests/{request_id}/extend", name="extend")
def extend(request: Request, request_id: Name) -> Response:
    """Extend a deadline."""
    at, who = house(request).office, person(request)
    return _then(request, request_id, "extended", lambda: at.extend(who, request_id, _text(request, "reason")))


@router.post("/requests/{request_id}/locate", name="locate")
def locate(request: Request, request_id: Name) -> Response:
    """Begin to search for the records of a request."""
    at, who = house(request).office, person(request)
    return _then(request, request_id, "searching", lambda: at.locate(who, request_id))


@router.post("/requests/{request_id}/plan", name="plan")
def plan(request: Request, request_id: Name) -> Response:
    """Plan a request by a method or an advised route."""
    at, who = house(request).office, person(request)
    method, route = _text(request, "method"), _text(request, "route")
    return _then(request, request_id, "planned", lambda: at.plan(who, request_id, method=method, route=route))


@router.post("/requests/{request_id}/approve", name="approve")
def approve(request: Request, request_id: Name) -> Response:
    """Approve the plan that was looked at."""
    at, who = house(request).office, person(request)
    return _then(request, request_id, "approved", lambda: at.approve(who, request_id, _text(request, "plan")))


def _then(request: Request, request_id: str, done: str, act: Callable[[], object]) -> Response:
    """Act; then show the page again: by a redirect if it was done, with the reason if it was refused."""
    try:
        act()
    except Refusal:
        raise
    except ExpungeError as error:
        return show_request(request, request_id, problem=_said(error, person(request).role), status=409)
    return RedirectResponse(f"/requests/{request_id}?done={done}", 303)


@router.post("/verify", name="verify")
async def verify(request: Request) -> Response:
    """Check a certificate that somebody uploads."""
    at, who = house(request).office, person(request)
    given = form_of(request).get("certificate")
    raw = await given.read() if isinstance(given, UploadFile) else b""
    if not raw:
        return page(request, "verify.html", who, status=409, found=None, file="", problem="Choose a file first.")
    values: dict[str, Any] = {"problem": "", "file": str(getattr(given, "filename", "") or "")[:200]}
    try:
        values["found"] = await run_in_threadpool(at.verify, raw)
    except ExpungeError as error:
        values |= {"found": None, "problem": _said(error, who.role)}
    return page(request, "verify.html", who, status=409 if values["problem"] else 200, **values)


def _text(request: Request, name: str) -> str:
    """Return a field of the form as text; "" if it is missing."""
    value = form_of(request).get(name)
    return value if isinstance(value, str) else ""


def _said(error: ExpungeError, role: Role) -> str:
    """Say why something was refused; remedies may name files of the desk, which are not a requester's business."""
    said = f"{error.field}: {error.problem}" if error.field else error.problem
    return said if role is Role.REQUESTER or not error.remedy else f"{said}. {error.remedy}."
