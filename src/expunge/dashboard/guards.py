# SPDX-License-Identifier: Apache-2.0
"""What stands before every route: the host that is meant, the size of a body, the pace, the headers sent back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from expunge.dashboard.refusals import TooMany

#: Bytes of a body at most; certificates and requests are far smaller.
LARGEST_BODY = 2_000_000
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """How often somebody may come, per minute: reading, changing and verifying by token, signing in by address."""

    read: int = 300
    change: int = 60
    verify: int = 12
    sign_in: int = 12


class Pace:
    """Buckets of tokens by key: each holds a minute's worth and refills steadily.

    Args:
        clock: returns seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock, self._held = clock, Lock(), dict[str, tuple[float, float]]()

    def take(self, key: str, a_minute: int) -> None:
        """Take one from a bucket.

        Raises:
            TooMany: if it is empty.
        """
        now = self._clock()
        with self._lock:
            if len(self._held) > 10_000:  # those untouched for a minute are full, which is what a missing one is
                self._held = {name: held for name, held in self._held.items() if now - held[1] < 60}
            left, since = self._held.get(key, (float(a_minute), now))
            left = min(float(a_minute), left + (now - since) * a_minute / 60)
            self._held[key] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise TooMany("too many requests in a short time", remedy="Wait a minute, then try again")


class Guard:
    """Refuses foreign host names and large bodies, and puts the security headers on every answer.

    A foreign host name on a loopback address is how a web page elsewhere reaches a server here (DNS rebinding).

    Args:
        app: what is guarded.
        hosts: names under which the server may be called, without port; all if it holds `*`.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = LOOPBACK) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        answer = _with_headers(send, scope["path"])
        if "*" not in self._hosts and _host(headers.get("host", "")) not in self._hosts:
            return await PlainTextResponse("unknown host name\n", 421)(scope, receive, answer)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            problem = {"field": "body", "problem": "is too large", "remedy": f"At most {LARGEST_BODY:,} bytes"}
            return await JSONResponse(problem, 413)(scope, receive, answer)
        return await self._app(scope, _counted(receive), answer)


def _host(text: str) -> str:
    """Return a host name without its port; an IPv6 address keeps its brackets."""
    if text.startswith("["):
        return text.partition("]")[0] + "]"
    return text.partition(":")[0].lower()


def _counted(receive: Receive) -> Receive:
    """Stop reading where a body without an honest length grows too large."""
    seen = 0

    async def inner() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > LARGEST_BODY:
            raise HTTPException(413, "the body is too large")
        return message

    return inner


def _with_headers(send: Send, path: str) -> Send:
    async def inner(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if not path.startswith("/static/"):
                headers["Cache-Control"] = "no-store"
        await send(message)

    return inner
