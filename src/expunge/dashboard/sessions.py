# SPDX-License-Identifier: Apache-2.0
"""Sessions of browsers: kept in memory, named by a cookie that scripts cannot read, gone when the server stops."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock

COOKIE = "expunge_session"
#: How long a browser stays signed in.
HOURS = 8
_AT_MOST = 1000


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that showed a token: the token's id, what its forms must carry, and when it ends."""

    token: str
    csrf: str
    ends: datetime


class Sessions:
    """All of them, by the value of their cookie.

    Args:
        clock: returns the time.
    """

    def __init__(self, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock, self._known, self._lock = clock, dict[str, Session](), Lock()

    def open(self, token: str) -> str:
        """Begin a session for a token id; return the value of its cookie."""
        name, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._known = {key: held for key, held in self._known.items() if held.ends > now}
            while len(self._known) >= _AT_MOST:
                self._known.pop(next(iter(self._known)))
            self._known[name] = Session(token, secrets.token_urlsafe(32), now + timedelta(hours=HOURS))
        return name

    def find(self, name: str) -> Session | None:
        """Return the session of a cookie, if it has not ended."""
        with self._lock:
            found = self._known.get(name)
        return found if found is not None and found.ends > self._clock() else None

    def close(self, name: str) -> None:
        """End a session."""
        with self._lock:
            self._known.pop(name, None)


def same(given: str, wanted: str) -> bool:
    """Return whether two secrets are equal, in a time that does not tell where they differ."""
    return bool(wanted) and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())
