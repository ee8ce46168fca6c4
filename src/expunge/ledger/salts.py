# SPDX-License-Identifier: Apache-2.0
"""Salted digests: what a request is about, recognisable as long as its salt is kept, and to nobody afterwards."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata

import sqlalchemy as sa

from expunge.errors import RecipeError
from expunge.ledger.tables import salts, writing

_BYTES = 32
#: The salt under which identifiers of all requests are compared, to find duplicates.
WHOLE_LEDGER = "*"


def normalised(text: str) -> str:
    """Return a text as it is compared: Unicode NFKC, case folded, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def salted_digest(salt: bytes, text: str) -> str:
    """Return HMAC-SHA-256 (hex) of a normalised text under a salt."""
    return hmac.new(salt, normalised(text).encode(), hashlib.sha256).hexdigest()


class Salts:
    """The salts of a ledger's requests, made at first use.

    Shredding overwrites the salt in an SQLite file and its log. On PostgreSQL the row is gone for every reader, but
    its bytes stay on disk until VACUUM; and back-ups of either keep what they have.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def of(self, request: str) -> bytes:
        """Return the salt of a request, made now if it has none.

        Raises:
            RecipeError: if it was shredded.
        """
        wanted = sa.select(salts.c.salt).where(salts.c.request == request)
        with self._engine.connect() as connection:
            found = connection.execute(wanted).scalar()
        if found is None:
            with writing(self._engine) as connection:
                found = connection.execute(wanted).scalar()
                if found is None:
                    found = secrets.token_bytes(_BYTES)
                    connection.execute(salts.insert().values(request=request, salt=found))
        if not found:
            raise RecipeError("its salt was shredded: its digests match nothing any more", field="request",
                              value=request, remedy="Locate again under a new request")  # fmt: skip
        return bytes(found)

    def shredded(self, request: str) -> bool:
        """Return whether the salt of a request was destroyed."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(salts.c.salt).where(salts.c.request == request)).scalar() == b""

    def digest(self, request: str, text: str) -> str:
        """Return the salted digest of a text for a request.

        Raises:
            RecipeError: if the salt was shredded.
        """
        return salted_digest(self.of(request), text)

    def shred(self, request: str) -> None:
        """Destroy the salt of a request for good; write a `Shredded` entry beside it."""
        with writing(self._engine) as connection:
            connection.execute(salts.delete().where(salts.c.request == request))
            connection.execute(salts.insert().values(request=request, salt=b""))
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                raw = connection.connection.dbapi_connection
                if raw is not None:
                    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
