# SPDX-License-Identifier: Apache-2.0
"""Signed notices of changes of state, sent to the URLs of the settings and to no others.

The ledger itself is the outbox: per URL the number of the last entry that was taken is kept, so that nothing is lost
when a process dies, and a notice may come twice but never not at all. A receiver knows it again by its `id`, and checks
it with `check_signature`.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from expunge.desk.service import Desk
from expunge.errors import RecipeError, VerificationFailed
from expunge.ledger.canonical import canonical
from expunge.ledger.store import Event
from expunge.runs import write_json

SIGNATURE = "Expunge-Signature"
#: Seconds by which the clocks of sender and receiver may differ; an older notice is a replay.
TOLERANCE = 300
_TIMEOUT = 10
_FIRST_WAIT, _LONGEST_WAIT = 5, 3600
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Subscription:
    """A URL with its secret, how far it was told, and how it went last.

    Attributes:
        url: where notices go.
        secret: key of the signatures, hex.
        told: number of the last entry that was taken.
        failures: attempts in a row that failed.
        next_try: seconds of Unix time before which nothing is sent.
        problem: why the last attempt failed.
    """

    url: str
    secret: str
    told: int
    failures: int = 0
    next_try: float = 0.0
    problem: str = ""


def subscribe(desk: Desk, url: str) -> Subscription:
    """Make the secret of a URL, anew if it had one; it is told of what happens from now on.

    Raises:
        RecipeError: if the URL is not in the settings, or would send notices in the clear over a network.
    """
    _check(desk, url)
    with _held(desk) as known:
        told = known[url].told if url in known else desk.ledger.head()[0]
        known[url] = Subscription(url, secrets.token_hex(32), told)
        return known[url]


def subscriptions(desk: Desk) -> list[Subscription]:
    """Return what stands of every URL of the settings; one without a secret is not there."""
    known = _read(desk)
    return [known[url] for url in desk.config.webhooks if url in known]


def deliver(desk: Desk, *, now: float | None = None) -> int:
    """Send what is outstanding, in order, and return how many notices were taken; failures are kept for later.

    Args:
        desk: whose.
        now: seconds of Unix time; the real one by default.
    """
    moment, taken = time.time() if now is None else now, 0
    if not desk.config.webhooks or not _outstanding(desk, moment):
        return 0
    with _held(desk) as known:
        for url in desk.config.webhooks:
            if url in known and known[url].next_try <= moment:
                known[url], count = _deliver_to(desk, known[url], moment)
                taken += count
    return taken


def _outstanding(desk: Desk, moment: float) -> bool:
    """Return whether some URL is to be told something now."""
    newest = desk.ledger.head()[0]
    return any(known.told < newest and known.next_try <= moment for known in subscriptions(desk))


def notice_of(event: Event) -> dict[str, Any]:
    """Return what a receiver is told: which request, in which state now; nothing of a person."""
    return {"id": event.seq, "at": event.at, "request": event.request, "state": str(event.state), "kind": event.kind,
            "entry": event.hash}  # fmt: skip


def sign(secret: str, body: bytes, moment: int) -> str:
    """Return the signature header of a body: HMAC-SHA-256 over the time, a full stop and the body."""
    mark = hmac.new(bytes.fromhex(secret), b"%d." % moment + body, hashlib.sha256).hexdigest()
    return f"t={moment},v1={mark}"


def check_signature(secret: str, header: str, body: bytes, *, now: float | None = None) -> None:
    """Check a notice as its receiver.

    Args:
        secret: of the URL, hex.
        header: value of `Expunge-Signature`.
        body: as it came.
        now: seconds of Unix time; the real one by default.

    Raises:
        VerificationFailed: if it was not signed with the secret, or at another time than now.
    """
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    moment = int(parts["t"]) if parts.get("t", "").isdecimal() else 0
    if not hmac.compare_digest(sign(secret, body, moment).encode(), header.encode("utf-8", "surrogatepass")):
        raise VerificationFailed("the signature does not fit the body", field=SIGNATURE, remedy="Do not act on it")
    if abs((time.time() if now is None else now) - moment) > TOLERANCE:
        raise VerificationFailed("was signed at another time: a replay?", field=SIGNATURE, value=moment,
                                 remedy="Check the clock, and do not act on it")  # fmt: skip


def _deliver_to(desk: Desk, to: Subscription, moment: float) -> tuple[Subscription, int]:
    count = 0
    for event in list(desk.ledger.events(after=to.told)):
        if event.state is not None:
            problem = _send(to, canonical(notice_of(event)), int(moment))
            if problem:
                wait = min(_FIRST_WAIT * 2**to.failures, _LONGEST_WAIT)
                return replace(to, failures=to.failures + 1, next_try=moment + wait, problem=problem), count
            count += 1
        to = replace(to, told=event.seq, failures=0, next_try=0.0, problem="")
    return to, count


class _NoRedirect(HTTPRedirectHandler):
    """A notice goes where the settings say, not where an answer says."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


def _send(to: Subscription, body: bytes, moment: int) -> str:
    """Send one notice; return why it was not taken, "" if it was."""
    headers = {"Content-Type": "application/json", SIGNATURE: sign(to.secret, body, moment)}
    request = Request(to.url, data=body, headers=headers, method="POST")  # http and https only: see `_check`
    try:
        with build_opener(_NoRedirect, ProxyHandler({})).open(request, timeout=_TIMEOUT) as answer:
            return "" if 200 <= answer.status < 300 else f"answered {answer.status}"
    except (URLError, HTTPException, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:200]


def _check(desk: Desk, url: str) -> None:
    if url not in desk.config.webhooks:
        raise RecipeError("is not in the settings", field="webhooks", value=url, remedy="Write it into desk.yaml first")
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise RecipeError("would send notices in the clear", field="webhooks", value=url, remedy="Use https")


def _read(desk: Desk) -> dict[str, Subscription]:
    path = desk.folder / "webhooks.json"
    values: list[Mapping[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else []
    return {str(value["url"]): Subscription(**value) for value in values}


@contextmanager
def _held(desk: Desk) -> Iterator[dict[str, Subscription]]:
    """Hold the list for one change; the system lets go of it when the process dies."""
    with (desk.folder / "webhooks.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _read(desk)
        try:
            yield known
        finally:
            before = os.umask(0o077)
            write_json(desk.folder / "webhooks.json", [asdict(held) for held in known.values()])
            os.umask(before)
