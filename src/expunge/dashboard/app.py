# SPDX-License-Identifier: Apache-2.0
"""The application: guard, gate, pages, forms, API, and what is said when something is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from expunge import __version__
from expunge.dashboard import api, forms, pages
from expunge.dashboard.access import SAFE, House, Person, session_of
from expunge.dashboard.guards import LOOPBACK, Guard, Limits, Pace
from expunge.dashboard.office import Office
from expunge.dashboard.refusals import Unknown, status_of
from expunge.dashboard.rendering import page, static, style
from expunge.dashboard.sessions import Sessions
from expunge.dashboard.tokens import TokenStore
from expunge.desk.service import Desk
from expunge.errors import ExpungeError


def create_app(
    desk: Desk, *, hosts: Iterable[str] = LOOPBACK, limits: Limits | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> FastAPI:  # fmt: skip
    """Return the dashboard of a desk as an ASGI application.

    Args:
        desk: whose.
        hosts: names under which it may be called.
        limits: how often somebody may come.
        clock: returns the time.
    """
    app = FastAPI(title="Expunge", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
                  description="The request desk: requests come in with a deadline, evidence goes out.")  # fmt: skip
    app.state.house = House(Office(desk, clock=clock), TokenStore(desk.folder, clock=clock), Sessions(clock=clock),
                            Pace(), limits or Limits())  # fmt: skip
    app.include_router(forms.door)
    for router in (api.router, pages.router, forms.router):
        app.include_router(router)
    app.add_api_route("/static/dashboard.css", _style, name="style", include_in_schema=False)
    app.add_api_route("/static/dashboard.js", _script, name="script", include_in_schema=False)
    app.add_api_route("/static/icon.svg", _icon, name="icon", include_in_schema=False)
    app.add_exception_handler(ExpungeError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(Guard, hosts=tuple(hosts))
    return app


def _style() -> Response:
    return _static(style(), "text/css")


def _script() -> Response:
    return _static(static("dashboard.js"), "text/javascript")


def _icon() -> Response:
    return _static(static("icon.svg"), "image/svg+xml")


def _static(text: str, kind: str) -> Response:
    return Response(text, media_type=kind, headers={"Cache-Control": "max-age=60"})


def _refused(request: Request, error: Exception) -> Response:
    """Answer an error of ours; whoever is not signed in is led to the sign-in."""
    if not isinstance(error, ExpungeError):
        raise error
    if isinstance(error, Unknown) and not _is_api(request) and request.method in SAFE:
        return RedirectResponse("/login", 303)
    return _answer(request, status_of(error), error.field, error.problem, error.remedy)


def _invalid(request: Request, error: Exception) -> Response:
    """Answer values that are not what is expected; a page under such an address does not exist."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
    where = ".".join(str(part) for part in first["loc"])
    if _is_api(request):
        return _answer(request, 422, where, str(first["msg"]), "See /api/openapi.json")
    return _answer(request, 404, "", "no such page", "Look into the queue")


def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    problem = {404: "no such page", 405: "not meant for this"}.get(error.status_code, str(error.detail))
    remedy = "See /api/openapi.json" if _is_api(request) else "Look into the queue"
    return _answer(request, error.status_code, "", problem, remedy, dict(error.headers or {}))


def _answer(request: Request, status: int, field: str, problem: str, remedy: str, headers: dict[str, str] | None = None
            ) -> Response:  # fmt: skip
    headers = {**(headers or {}), **({"WWW-Authenticate": "Bearer"} if status == 401 else {}),
               **({"Retry-After": "60"} if status == 429 else {})}  # fmt: skip
    if _is_api(request):
        problem_said = api.Problem(field=field, problem=problem, remedy=remedy).model_dump()
        return JSONResponse(problem_said, status, headers=headers)
    found = session_of(request)
    who = None if found is None else Person(found[1].name, found[1].role, found[1].id, found[0].csrf)
    answer = page(request, "refused.html", who, status=status, code=status, problem=problem, remedy=remedy)
    answer.headers.update(headers)
    return answer


def _is_api(request: Request) -> bool:
    return request.url.path == "/api" or request.url.path.startswith("/api/")
