# SPDX-License-Identifier: Apache-2.0
"""The tables of the ledger and the engine they live in; SQLite by default, PostgreSQL by URL.

The database itself refuses to change or delete an entry: triggers stand in front of the table. They stop accidents;
against someone who owns the database stands the hash chain.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from expunge.errors import RecipeError, VerificationFailed, require

metadata = sa.MetaData()

events = sa.Table(
    "events", metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=True),
    sa.Column("once", sa.Text, nullable=True, unique=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Index("events_by_request", "request", "seq"),
)  # fmt: skip

#: The only table whose rows may go away: without its salt, a request's digests match nothing any more.
salts = sa.Table(
    "salts", metadata,
    sa.Column("request", sa.Text, primary_key=True),
    sa.Column("salt", sa.LargeBinary, nullable=False),
)  # fmt: skip

_SQLITE_GUARD = """CREATE TRIGGER IF NOT EXISTS events_no_{verb} BEFORE {VERB} ON events
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"""
_POSTGRES_GUARD = (
    """CREATE OR REPLACE FUNCTION expunge_append_only() RETURNS trigger AS
    $$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$ LANGUAGE plpgsql""",
    """CREATE OR REPLACE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION expunge_append_only()""",
)
#: Taken by every writer of a PostgreSQL ledger until its transaction ends.
POSTGRES_LOCK = 0x657870756E6765  # "expunge"
_BUSY_SECONDS = 60
#: What SQLite says of a file that it may not or cannot open, which tells nothing of what is in it.
_NOT_OPENED = ("locked", "unable to open", "readonly")

#: What reading a damaged file may raise.
UNREADABLE = (sa.exc.DatabaseError, sqlite3.DatabaseError, UnicodeDecodeError)


def open_engine(url: str | Path) -> sa.Engine:
    """Return an engine on a database that has the ledger's tables and guards.

    Args:
        url: a file of SQLite, or a URL of SQLAlchemy (`sqlite:///...`, `postgresql+psycopg://...`).

    Raises:
        RecipeError: for other databases, or one that cannot be opened.
        MissingDependency: for PostgreSQL without its driver.
        VerificationFailed: for a file that is no database, or one of something else.
    """
    text = str(url) if "://" in str(url) else f"sqlite:///{Path(url).absolute()}"
    try:
        parsed = sa.make_url(text)
    except sa.exc.ArgumentError as error:
        raise RecipeError("is no database URL", field="ledger", value=text,
                          remedy="Give a file, or postgresql+psycopg://user@host/name") from error  # fmt: skip
    name = parsed.get_backend_name()
    if name not in ("sqlite", "postgresql"):
        raise RecipeError("unknown database", field="ledger", value=name, remedy="Use SQLite or PostgreSQL")
    if name == "postgresql":
        require("psycopg", "postgres")
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(parsed, connect_args={"timeout": _BUSY_SECONDS} if name == "sqlite" else {})
    if name == "sqlite":
        _prepare_sqlite(engine)
    where = parsed.render_as_string()
    try:
        if not _complete(engine):
            _create(engine)
    except UNREADABLE as error:
        told = damaged(engine, error)
        if told is not None:
            raise told from error
        raise RecipeError(f"cannot be opened: {_cause(error)}", field="ledger", value=where,
                          remedy="Check the path or the server") from error  # fmt: skip
    return engine


def damaged(engine: sa.Engine, error: Exception) -> VerificationFailed | None:
    """Return what to raise when SQLite cannot make sense of its own file; None if the error is about something else."""
    cause = _cause(error)
    if engine.dialect.name != "sqlite" or any(words in cause for words in _NOT_OPENED):
        return None
    return VerificationFailed(f"the database cannot be read: {cause}", field="ledger", value=engine.url.database,
                              remedy="Keep this copy, and go on with a back-up or an export")  # fmt: skip


def _cause(error: Exception) -> str:
    return str(error.orig) if isinstance(error, sa.exc.DatabaseError) else str(error)


def integrity(engine: sa.Engine) -> str:
    """Return what the database finds wrong with its own file, entries and indices; empty if nothing."""
    if engine.dialect.name != "sqlite":
        return ""
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check(3)").scalars().all()
    except UNREADABLE as error:
        return _cause(error)
    return "" if found == ["ok"] else "; ".join(" ".join(str(line).split()) for line in found)


def _prepare_sqlite(engine: sa.Engine) -> None:
    """Let our own statements begin transactions: a writer takes the lock at once, a reader takes none."""

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, record: Any) -> None:
        del record
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("expunge_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


_PARTS = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE name IN ('events', 'salts', 'events_no_update', "
    "'events_no_delete')",
    "postgresql": "SELECT (SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename IN "
    "('events', 'salts')) + (SELECT 2 * count(*) FROM pg_trigger WHERE tgname = 'events_append_only' "
    "AND tgrelid = to_regclass('events') AND tgenabled <> 'D')",
}


def _complete(engine: sa.Engine) -> bool:
    """Return whether both tables and their guards are there: who only reads then needs no right to write."""
    with engine.connect() as connection:
        found = connection.exec_driver_sql(_PARTS[engine.dialect.name]).scalar()
        if engine.dialect.name == "sqlite":
            names = set(connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars())
            if names and not {"events", "salts"} <= names:
                raise VerificationFailed("the file holds another database than a ledger, or was damaged",
                                         field="ledger", remedy="Check the path; keep this copy")  # fmt: skip
    return bool(found == 4)


def _create(engine: sa.Engine) -> None:
    with writing(engine) as connection:
        metadata.create_all(connection)
        if engine.dialect.name == "sqlite":
            guards = [_SQLITE_GUARD.format(verb=verb, VERB=verb.upper()) for verb in ("update", "delete")]
        else:
            guards = list(_POSTGRES_GUARD)
        for guard in guards:
            connection.exec_driver_sql(guard)


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that no other writer shares: what it reads stays true until it commits."""
    with engine.connect().execution_options(expunge_writes=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(POSTGRES_LOCK)))
        yield connection
