# SPDX-License-Identifier: Apache-2.0
"""Two hundred writers at once, in threads and in processes, on SQLite and on PostgreSQL: one chain, nothing lost.

`make test-postgres` starts a throw-away server on loopback, names it in EXPUNGE_TEST_POSTGRES and runs these tests.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from expunge.errors import RecipeError
from expunge.ledger.bodies import Moved, Note, Received
from expunge.ledger.states import State
from expunge.ledger.store import Entry, Ledger
from expunge.ledger.tables import open_engine

WRITERS = 200
EACH = 2
DUE = datetime(2026, 4, 1, 12, tzinfo=UTC)
SERVER = "EXPUNGE_TEST_POSTGRES"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A ledger that is empty."""
    if request.param == "sqlite":
        yield str(tmp_path / "ledger.db")
        return
    if SERVER not in os.environ:
        pytest.skip(f"{SERVER} names no server: make test-postgres")
    server = os.environ[SERVER]
    engine = sa.create_engine(sa.make_url(server).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS events, salts")
    yield server
    engine.dispose()


def write_notes(ledger: Ledger, name: str, gate: Callable[[], Any]) -> None:
    gate()
    for k in range(EACH):
        ledger.append(Note(text=f"{name} {k}"), actor=name)


def write_in_threads(url: str, names: list[str], barrier: Any) -> None:
    """One process: a thread for each writer, each with a connection of its own."""
    gate = threading.Barrier(len(names), action=lambda: barrier.wait(120))

    def write(name: str) -> None:
        ledger = Ledger(url)
        write_notes(ledger, name, gate.wait)
        ledger.close()

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(write, names))


def check_complete(url: str, names: list[str]) -> None:
    ledger = Ledger(url)
    found = list(ledger.events())
    assert ledger.verify() == []
    assert [event.seq for event in found] == list(range(1, len(names) * EACH + 1))
    assert Counter(event.body["text"] for event in found) == Counter(f"{n} {k}" for n in names for k in range(EACH))
    ledger.close()


def test_two_hundred_threads_on_one_ledger(url: str) -> None:
    names, gate, ledger = [f"w{k}" for k in range(WRITERS)], threading.Barrier(WRITERS), Ledger(url)
    started = time.perf_counter()
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda name: write_notes(ledger, name, gate.wait), names))
    print(f"{WRITERS * EACH} entries of {WRITERS} threads in {time.perf_counter() - started:.1f} s")
    ledger.close()
    check_complete(url, names)


@pytest.mark.parametrize(
    ("count", "writers"), [(2, 10), pytest.param(4, WRITERS, marks=pytest.mark.slow)], ids=["two", "four"]
)
def test_writers_in_several_processes(url: str, count: int, writers: int) -> None:
    Ledger(url).close()
    names = [f"w{k}" for k in range(writers)]
    context = get_context("spawn")
    barrier = context.Barrier(count)
    processes = [context.Process(target=write_in_threads, args=(url, names[k::count], barrier)) for k in range(count)]
    started = time.perf_counter()
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    print(f"{writers * EACH} entries of {count} processes in {time.perf_counter() - started:.1f} s")
    assert [process.exitcode for process in processes] == [0] * count
    check_complete(url, names)


def test_the_database_refuses_to_change_or_delete_entries(url: str) -> None:
    ledger = Ledger(url)
    ledger.append(Note(text="stays"), actor="op")
    engine = open_engine(url)
    tries = ["DELETE FROM events", "DELETE FROM events WHERE seq = 1", "UPDATE events SET actor = 'x' WHERE seq = 1"]
    tries += ["TRUNCATE events"] if engine.dialect.name == "postgresql" else []
    for statement in tries:
        with pytest.raises(sa.exc.DatabaseError, match="append-only"), engine.begin() as connection:
            connection.exec_driver_sql(statement)
    engine.dispose()
    assert [event.body["text"] for event in ledger.events()] == ["stays"]
    ledger.close()


def test_racing_writers_write_what_is_written_once_once(url: str) -> None:
    ledger, gate = Ledger(url), threading.Barrier(20)

    def write(k: int) -> int:
        gate.wait()
        return ledger.append(Note(text="one"), actor=f"w{k}", once="the only one").seq

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(write, range(20))) == {1}
    assert ledger.head()[0] == 1
    ledger.close()


def test_racing_moves_are_made_once(url: str) -> None:
    ledger, gate = Ledger(url), threading.Barrier(10)
    ledger.append(Received(due=DUE, requester="case-1", subject_digest="a" * 64), actor="op", request="r1")

    def verify(k: int) -> bool:
        gate.wait()
        try:
            ledger.append(Moved(to=State.VERIFIED), actor=f"w{k}", request="r1")
        except RecipeError:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(verify, range(10))) == 1
    assert ledger.verify() == []
    ledger.close()


def test_entries_that_belong_together_are_written_together_or_not_at_all(url: str) -> None:
    ledger = Ledger(url)
    for name in ("r1", "r2"):
        ledger.append(Received(due=DUE, requester="c", subject_digest="a" * 64), actor="op", request=name)
    ledger.append(Moved(to=State.WITHDRAWN), actor="op", request="r2")
    both = [Entry(Moved(to=State.VERIFIED), name, f"{name}:verified") for name in ("r1", "r2")]
    with pytest.raises(RecipeError, match="withdrawn cannot become verified"):
        ledger.append_all(both, actor="op")
    assert ledger.request("r1").state is State.RECEIVED
    written = ledger.append_all(both[:1], actor="op")
    assert ledger.append_all(both[:1], actor="op") == written
    assert ledger.head() == (written[0].seq, written[0].hash)
    assert [view.state for view in ledger.requests()] == [State.VERIFIED, State.WITHDRAWN]
    ledger.close()


def test_a_shredded_salt_is_gone(url: str) -> None:
    ledger = Ledger(url)
    assert ledger.salts.of("r1") == ledger.salts.of("r1") != ledger.salts.of("r2")
    ledger.salts.shred("r1")
    with pytest.raises(RecipeError, match="shredded"):
        ledger.salts.of("r1")
    ledger.close()
