# SPDX-License-Identifier: Apache-2.0
"""Tokens by which people come in: random, shown once, kept as digests, each with a name, a role and an end."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from expunge.dashboard.roles import Role
from expunge.desk.queue import WORKER
from expunge.errors import RecipeError
from expunge.ledger.bodies import HANDLE
from expunge.runs import write_json

#: Days after which a token no longer counts, unless chosen otherwise.
DAYS = 90
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token: whose it is, and the SHA-256 (hex) of what its owner shows. Times are ISO 8601, UTC."""

    id: str
    name: str
    role: Role
    digest: str
    created: str
    ends: str
    revoked: str = ""

    def counts(self, now: datetime) -> bool:
        """Return whether the token opens the door now."""
        return not self.revoked and now < datetime.fromisoformat(self.ends)


class TokenStore:
    """The tokens of a desk, in a file that its owner alone can read.

    Args:
        folder: of the desk.
        clock: returns the time.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path, self._clock = folder / "dashboard" / "tokens.json", clock

    def add(self, name: str, role: Role, *, days: int = DAYS) -> tuple[str, Token]:
        """Make a token; return what its owner is shown, which is kept nowhere, and what is kept.

        Raises:
            RecipeError: if the name is no pseudonym, is the worker's, or has a token that counts.
        """
        if not re.fullmatch(HANDLE, name) or name == WORKER:
            raise RecipeError("cannot be the name of a person", field="name", value=name,
                              remedy="Letters, digits and ._:-, at most 64; it stands in the ledger")  # fmt: skip
        now = self._clock()
        with self._changing() as known:
            if any(token.name == name and token.counts(now) for token in known):
                raise RecipeError("has a token that counts", field="name", value=name,
                                  remedy=f"Revoke it first: expunge dashboard token revoke {name}")  # fmt: skip
            if any(token.name == name and token.role is not role for token in known):
                raise RecipeError("had another role before, and the ledger knows people by name", field="name",
                                  value=name, remedy="Choose another name for the new role")  # fmt: skip
            name_of = secrets.token_hex(4)
            shown = f"xp_{name_of}_{secrets.token_urlsafe(_SECRET_BYTES)}"
            made = Token(name_of, name, role, _digest(shown), now.isoformat(timespec="seconds"),
                         (now + timedelta(days=days)).isoformat(timespec="seconds"))  # fmt: skip
            known.append(made)
        return shown, made

    def revoke(self, name: str) -> list[Token]:
        """End the tokens of a person; return them.

        Raises:
            RecipeError: if none of that name counts.
        """
        now, ended = self._clock(), []
        with self._changing() as known:
            for place, token in enumerate(known):
                if token.name == name and token.counts(now):
                    known[place] = replace(token, revoked=now.isoformat(timespec="seconds"))
                    ended.append(known[place])
        if not ended:
            raise RecipeError("has no token that counts", field="name", value=name,
                              remedy="See `expunge dashboard token list`")  # fmt: skip
        return ended

    def all(self) -> list[Token]:
        """Return every token there ever was, in order."""
        if not self._path.exists():
            return []
        return [Token(**{**entry, "role": Role(entry["role"])}) for entry in json.loads(self._path.read_text("utf-8"))]

    def shown(self, text: str) -> Token | None:
        """Return the token that somebody shows, if it counts."""
        digest, now = _digest(text), self._clock()
        found = [token for token in self.all() if hmac.compare_digest(token.digest, digest)]
        return next((token for token in found if token.counts(now)), None)

    def by_id(self, name: str) -> Token | None:
        """Return a token by its id, if it counts."""
        return next((token for token in self.all() if token.id == name and token.counts(self._clock())), None)

    @contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        """Hold the file for one change; who writes at the same time waits."""
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        with (self._path.parent / "tokens.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.all()
            yield known
            before = os.umask(0o077)
            try:
                write_json(self._path, [asdict(token) for token in known])
            finally:
                os.umask(before)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
