# SPDX-License-Identifier: Apache-2.0
"""The ledger: append-only entries, each sealed over the one before, and the state of every request read from them.

The chain shows that entries were changed, left out or put in between; it cannot show that the newest ones were cut
off. For that, keep the head (`Ledger.head`) somewhere else from time to time: `expunge ledger export` signs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from expunge.errors import RecipeError, VerificationFailed
from expunge.ledger.bodies import (
    HANDLE,
    Approved,
    Body,
    Certified,
    Extended,
    Moved,
    Received,
    Started,
    parsed,
    written,
)  # fmt: skip
from expunge.ledger.canonical import canonical, digest
from expunge.ledger.salts import Salts
from expunge.ledger.states import State, check_move
from expunge.ledger.tables import UNREADABLE, damaged, events, integrity, open_engine, writing

#: What the first entry is sealed over.
GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class Event:
    """One entry.

    Attributes:
        seq: its number, from 1, without gaps.
        at: when it was written, ISO 8601, UTC.
        actor: who wrote it, a pseudonym.
        request: the request it belongs to; None for entries about the ledger itself.
        kind: of the body.
        state: the state it brings the request into; None if it moves none.
        once: a name under which it may be written one time only.
        body: what it says.
        previous: hash of the entry before.
        hash: SHA-256 over all of the above, canonical JSON, hex.
    """

    seq: int
    at: str
    actor: str
    request: str | None
    kind: str
    state: State | None
    once: str | None
    body: dict[str, Any]
    previous: str
    hash: str

    def sealed(self) -> str:
        """Return the hash that the entry should have."""
        return digest({key: value for key, value in asdict(self).items() if key != "hash"})


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry to be written: what it says, the request it belongs to, the name under which it is written once."""

    body: Body
    request: str | None = None
    once: str | None = None


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request as its entries tell it: `held_in` is the state it was put on hold in."""

    id: str
    state: State
    received: str
    due: datetime
    what: str
    requester: str
    held_in: State | None
    events: tuple[Event, ...]

    def days_left(self, now: datetime) -> float:
        """Return days until it is due; negative when it is late."""
        return (self.due - now).total_seconds() / 86400

    def last(self, kind: str) -> Event | None:
        """Return the newest entry of a kind, or None."""
        return next((event for event in reversed(self.events) if event.kind == kind), None)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the chain, at an entry."""

    seq: int
    what: str


class Ledger:
    """The log of one organisation.

    Args:
        url: a file of SQLite, or a URL of PostgreSQL.
        four_eyes: the actor who approves a plan must be another than the one who made it.
        clock: returns the time; the real one by default.

    Raises:
        RecipeError: if the database cannot be opened.
    """

    def __init__(
        self, url: str | Path, *, four_eyes: bool = True, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._engine, self._four_eyes, self._clock = open_engine(url), four_eyes, clock
        self.salts = Salts(self._engine)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def append(self, body: Body, *, actor: str, request: str | None = None, once: str | None = None) -> Event:
        """Write one entry after the last; all writers take turns.

        Args:
            body: what it says; brings the request into the state it stands for.
            actor: a pseudonym.
            request: the request it belongs to.
            once: if an entry of this name is there already, nothing is written and that one is returned.

        Raises:
            RecipeError: for a name that is no pseudonym, a move that is not allowed, a request that is not there or
                there twice, an approval of one's own plan or of another plan than the last, the start of another plan
                than the approved one, a second extension, or words that may not be written.
        """
        return self.append_all([Entry(body, request, once)], actor=actor)[0]

    def append_all(self, entries: Sequence[Entry], *, actor: str) -> list[Event]:
        """Write several entries, all of them or, if one is refused or the process dies, none; see `append`.

        Raises:
            RecipeError: as `append` does.
        """
        for entry in entries:
            for field, name in (("actor", actor), ("request", entry.request)):
                if name is not None and not re.fullmatch(HANDLE, name):
                    raise RecipeError("is no pseudonym", field=field, remedy="Letters, digits and ._:-, at most 64")
        bodies = [written(entry.body) for entry in entries]
        with writing(self._engine) as connection:
            return [self._append(connection, entry, values, actor)
                    for entry, values in zip(entries, bodies, strict=True)]  # fmt: skip

    def _append(self, connection: sa.Connection, entry: Entry, values: dict[str, Any], actor: str) -> Event:
        if entry.once is not None:
            found = connection.execute(sa.select(events).where(events.c.once == entry.once)).first()
            if found is not None:
                return _event(found)
        to = self._next_state(connection, entry.body, actor, entry.request)
        last = connection.execute(sa.select(events.c.seq, events.c.hash).order_by(events.c.seq.desc())).first()
        seq, previous = (1, GENESIS) if last is None else (last.seq + 1, last.hash)
        at = self._clock().astimezone(UTC).isoformat(timespec="microseconds")
        draft = Event(seq, at, actor, entry.request, entry.body.kind, to, entry.once, values, previous, "")
        event = replace(draft, hash=draft.sealed())
        connection.execute(events.insert().values(**asdict(event) | {"body": canonical(values).decode()}))
        return event

    def head(self) -> tuple[int, str]:
        """Return number and hash of the newest entry; (0, GENESIS) of an empty ledger."""
        with self._engine.connect() as connection:
            last = connection.execute(sa.select(events.c.seq, events.c.hash).order_by(events.c.seq.desc())).first()
        return (0, GENESIS) if last is None else (last.seq, last.hash)

    def events(self, request: str | None = None, *, after: int = 0, kind: str | None = None) -> Iterator[Event]:
        """Yield entries in order, of one request or of all, of one kind or of all, from the one after `after`.

        Raises:
            VerificationFailed: for an entry that cannot be read.
        """
        wanted = sa.select(events).where(events.c.seq > after).order_by(events.c.seq)
        if request is not None:
            wanted = wanted.where(events.c.request == request)
        if kind is not None:
            wanted = wanted.where(events.c.kind == kind)
        with self._engine.connect() as connection:
            try:
                for row in connection.execution_options(yield_per=1000).execute(wanted):
                    yield _event(row)
            except UNREADABLE as error:
                raise damaged(self._engine, error) or error from error

    def request(self, request: str) -> RequestView:
        """Return one request.

        Raises:
            RecipeError: if there is none of that id.
        """
        with self._engine.connect() as connection:
            found = _view(connection, request)
        if found is None:
            raise RecipeError("no such request", field="request", value=request, remedy="See `expunge request list`")
        return found

    def requests(self, *states: State) -> list[RequestView]:
        """Return the requests in some states (all by default), those due first first."""
        newest = sa.select(sa.func.max(events.c.seq)).where(events.c.state.is_not(None)).group_by(events.c.request)
        wanted = sa.select(events.c.request).where(events.c.seq.in_(newest))
        if states:
            wanted = wanted.where(events.c.state.in_([str(state) for state in states]))
        theirs = sa.select(events).where(events.c.request.in_(wanted)).order_by(events.c.request, events.c.seq)
        with self._engine.connect() as connection:
            rows = connection.execute(theirs).all()
        views = [_viewed(list(own)) for _, own in groupby(rows, key=lambda row: row.request)]
        return sorted(views, key=lambda view: (view.due, view.id))

    def verify(self, *, head: tuple[int, str] | None = None) -> list[Problem]:
        """Return what is wrong with the chain, and with the moves it holds; empty if nothing is.

        Args:
            head: number and hash of an entry that was kept elsewhere, which must still be there.
        """
        try:
            problems = check_chain(self.events(), head=head)
            found = integrity(self._engine)
        except VerificationFailed as error:
            return [Problem(error.value if isinstance(error.value, int) else 0, error.problem)]
        return problems + ([Problem(0, f"the database is damaged: {found}")] if found else [])

    def _next_state(self, connection: sa.Connection, body: Body, actor: str, request: str | None) -> State | None:
        if request is None:
            if body.moves_to is not None or isinstance(body, Moved | Extended):
                raise RecipeError(f"a {body.kind} entry belongs to a request", field="request", remedy="Name it")
            return None
        view = _view(connection, request)
        if isinstance(body, Received):
            if view is not None:
                raise RecipeError("there is a request of that id", field="request", value=request,
                                  remedy="Choose another id")  # fmt: skip
            return State.RECEIVED
        if view is None:
            raise RecipeError("no such request", field="request", value=request, remedy="Add it first")
        self._check(view, body, actor)
        to = body.to if isinstance(body, Moved) else body.moves_to
        if to is not None:
            check_move(view.state, to, held_in=view.held_in)
        return to

    def _check(self, view: RequestView, body: Body, actor: str) -> None:
        if isinstance(body, Approved):
            plan = view.last("plan")
            if plan is None or plan.body["plan_digest"] != body.plan_digest:
                raise RecipeError("is not the plan of the request", field="plan_digest", value=body.plan_digest,
                                  remedy="Look at the plan again, then approve that one")  # fmt: skip
            if self._four_eyes and plan.actor == actor:
                raise RecipeError("a plan is approved by somebody else than who made it", field="actor", value=actor,
                                  remedy="Let another person approve it")  # fmt: skip
        if isinstance(body, Started):
            approval = view.last("approval")
            if approval is None or approval.body["plan_digest"] != body.plan_digest:
                raise RecipeError("is not the plan that was approved", field="plan_digest", value=body.plan_digest,
                                  remedy="Have the plan approved as it is")  # fmt: skip
        if isinstance(body, Extended) and view.last("extension") is not None:
            raise RecipeError("was extended before", field="due", value=body.due, remedy="Once is all there is")
        audit = view.last("audit")
        if isinstance(body, Certified) and (audit is None or not audit.body["policy_met"]):
            raise RecipeError("the last audit did not meet the policy", field="state", value="certified",
                              remedy="Mark it partial, with what was not met")  # fmt: skip


def check_chain(chain: Iterator[Event], *, head: tuple[int, str] | None = None) -> list[Problem]:
    """Return what is wrong with a chain of entries; see `Ledger.verify`."""
    problems: list[Problem] = []
    previous, number = GENESIS, 0
    states: dict[str, tuple[State | None, State | None]] = {}
    for event in chain:
        number += 1
        if event.seq != number:
            problems.append(Problem(number, f"missing: the next entry is {event.seq}"))
            number = event.seq
        if event.previous != previous:
            problems.append(Problem(event.seq, "does not follow the entry before it"))
        if event.sealed() != event.hash:
            problems.append(Problem(event.seq, "was changed after it was written"))
        problems += [Problem(event.seq, what) for what in _wrong_move(event, states)]
        if head is not None and event.seq == head[0] and event.hash != head[1]:
            problems.append(Problem(event.seq, "is not the entry that was kept elsewhere"))
        previous = event.hash
    if head is not None and head[0] > number:
        problems.append(Problem(head[0], f"is missing: the ledger ends at {number}"))
    return problems


def _wrong_move(event: Event, states: dict[str, tuple[State | None, State | None]]) -> list[str]:
    """Return why an entry may not stand where it stands; keeps book of the states."""
    try:
        parsed(event.kind, event.body)
        if event.request is None or event.state is None:
            return []
        state, held_in = states.get(event.request, (None, None))
        states[event.request] = (event.state, state if event.state is State.ON_HOLD else None)
        if state is None:
            return [] if event.state is State.RECEIVED else ["the request was never received"]
        check_move(state, event.state, held_in=held_in)
    except RecipeError as error:
        return [str(error)]
    return []


def _view(connection: sa.Connection, request: str) -> RequestView | None:
    rows = connection.execute(sa.select(events).where(events.c.request == request).order_by(events.c.seq)).all()
    return _viewed(rows) if rows else None


def _viewed(rows: Sequence[Any]) -> RequestView:
    """Return the request that its entries, at least one, tell of."""
    found = tuple(_event(row) for row in rows)
    state, held_in = State.RECEIVED, None
    for event in found:
        if event.state is not None:
            state, held_in = event.state, state if event.state is State.ON_HOLD else None
    first, extension = found[0], next((e for e in found if e.kind == "extension"), None)
    due = datetime.fromisoformat((extension or first).body["due"])
    return RequestView(
        str(first.request), state, first.at, due, first.body["what"], first.body["requester"], held_in, found
    )


def _event(row: Any) -> Event:
    try:
        if [type(cell) for cell in row if cell is not None] != [int] + [str] * (len(row) - 1 - row.count(None)):
            raise TypeError("a cell is of another type")
        state, body = None if row.state is None else State(row.state), json.loads(row.body)
        if canonical(body).decode() != row.body:
            raise ValueError("the body is not in the form in which it was written")
    except (ValueError, TypeError) as error:
        raise VerificationFailed(f"was changed after it was written: {error}", field="entry", value=row.seq,
                                 remedy="Keep this copy, and compare it with an export") from error  # fmt: skip
    return Event(row.seq, row.at, row.actor, row.request, row.kind, state, row.once, body,
                 row.previous, row.hash)  # fmt: skip
