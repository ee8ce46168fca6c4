# SPDX-License-Identifier: Apache-2.0
"""The gate before every route but the sign-in: who is it, may the role do this, was it sent from our own page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import FormData

from expunge.dashboard.guards import Limits, Pace
from expunge.dashboard.refusals import Forbidden, Unknown
from expunge.dashboard.roles import Role, may
from expunge.dashboard.sessions import COOKIE, Session, Sessions, same
from expunge.dashboard.tokens import Token, TokenStore

if TYPE_CHECKING:
    from expunge.dashboard.office import Office

SAFE = ("GET", "HEAD")
#: Routes that cost more than others have a pace of their own.
_COSTLY = ("verify", "locate", "routes")
_bearer = HTTPBearer(auto_error=False, description="A token: expunge dashboard token add NAME --role ROLE")


@dataclass(frozen=True, slots=True)
class Person:
    """Who is at the door; `csrf` is what forms of a browser must carry, "" over the API."""

    name: str
    role: Role
    token: str
    csrf: str = ""

    def can(self, route: str) -> bool:
        """Return whether this person may use a route."""
        return may(self.role, route)


@dataclass(frozen=True, slots=True)
class House:
    """What all routes share."""

    office: Office
    tokens: TokenStore
    sessions: Sessions
    pace: Pace
    limits: Limits


def house(request: Request) -> House:
    """Return what all routes share."""
    found = request.app.state.house
    if not isinstance(found, House):
        raise TypeError("the application has no house")
    return found


def person(request: Request) -> Person:
    """Return who passed the gate."""
    found = request.state.person
    if not isinstance(found, Person):
        raise TypeError("nobody passed the gate")
    return found


def form_of(request: Request) -> FormData:
    """Return the form that passed the gate."""
    found = request.state.form
    if not isinstance(found, FormData):
        raise TypeError("no form passed the gate")
    return found


async def page_gate(request: Request) -> None:
    """Let a signed-in browser pass; what changes something must be a form of ours.

    Raises:
        Refusal: 401 to nobody, 403 to the wrong role or a foreign form, 429 to the hasty.
    """
    found = session_of(request)
    if found is None:
        raise Unknown("nobody is signed in", remedy="Sign in with your token")
    session, token = found
    _admit(request, token, session.csrf)
    if request.method not in SAFE:
        await check_form(request, session.csrf)


def api_gate(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
    """Let a caller of the API pass who shows a token that counts; cookies are not looked at here.

    Raises:
        Refusal: 401 without a token that counts, 403 to the wrong role, 429 to the hasty.
    """
    at = house(request)
    token = None if given is None else at.tokens.shown(given.credentials)
    if token is None:
        at.pace.take(f"failed {address(request)}", at.limits.sign_in)
        raise Unknown("no token that counts", field="Authorization", remedy="Send: Authorization: Bearer TOKEN")
    _admit(request, token, "")


def _admit(request: Request, token: Token, csrf: str) -> None:
    at, route = house(request), request.scope["route"].name
    name = route.removeprefix("api_")
    kind = "verify" if name in _COSTLY else "read" if request.method in SAFE else "change"
    allowed = {"verify": at.limits.verify, "read": at.limits.read, "change": at.limits.change}[kind]
    at.pace.take(f"{kind} {token.id}", allowed)
    if not may(token.role, route):
        raise Forbidden(f"not for the role {token.role}", remedy="Ask somebody whose part this is")
    request.state.person = Person(token.name, token.role, token.id, csrf)


def session_of(request: Request) -> tuple[Session, Token] | None:
    """Return the session of a browser with its token, if both count."""
    at = house(request)
    session = at.sessions.find(request.cookies.get(COOKIE, ""))
    token = None if session is None else at.tokens.by_id(session.token)
    return None if session is None or token is None else (session, token)


async def check_form(request: Request, wanted: str) -> None:
    """Read a form and refuse it unless it carries what our page put into it.

    Raises:
        Forbidden: if it does not.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("the form was sent from another site", field="csrf", remedy="Use the form of this dashboard")
    form = await request.form(max_files=1, max_fields=40)
    given = form.get("csrf")
    if not isinstance(given, str) or not same(given, wanted):
        raise Forbidden("the form does not come from your session", field="csrf", remedy="Open the page again")
    request.state.form = form


def address(request: Request) -> str:
    """Return where a request comes from; headers of proxies are not believed."""
    return request.client.host if request.client else "unknown"
