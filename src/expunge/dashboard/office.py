# SPDX-License-Identifier: Apache-2.0
"""What people do with the desk, each under their own name: pages and API call the same functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock, Thread

from pydantic import ValidationError

from expunge.dashboard.access import Person
from expunge.dashboard.refusals import Absent
from expunge.dashboard.roles import Role
from expunge.desk.advise.routes import Route
from expunge.desk.intake import RequestFile
from expunge.desk.locate.scope import Scope
from expunge.desk.service import Desk, PlanFile
from expunge.errors import ExpungeError, InputDataError, RecipeError, VerificationFailed
from expunge.ledger.canonical import digest
from expunge.ledger.dsse import read_envelope
from expunge.ledger.keys import trusted_keys
from expunge.ledger.revocations import revocation_list
from expunge.ledger.statement import PolicyHeld, statement_from
from expunge.ledger.states import State, allowed
from expunge.ledger.store import Event, RequestView
from expunge.ledger.verify import Verification, verify_certificate
from expunge.methods.registry import methods

#: Moves that an operator makes by hand; a request on hold may also go back to where it was.
BY_HAND = (State.VERIFIED, State.REFUSED, State.ON_HOLD, State.DUPLICATE, State.MONITORED)
#: Texts for people that are written with a certificate.
NOTICES = ("notice.md", "recipients.md", "model-card-section.md")


class Office:
    """The desk behind the dashboard.

    Args:
        desk: whose.
        clock: returns the time.
    """

    def __init__(self, desk: Desk, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.desk, self.clock = desk, clock
        self.searches = Searches(desk)
        self._verifying = Lock()

    def requests(self, person: Person) -> list[RequestView]:
        """Return the requests that a person may see, those due first first."""
        return [view for view in self.desk.ledger.requests() if _sees(person, view)]

    def request(self, person: Person, request: str) -> RequestView:
        """Return one request.

        Raises:
            Absent: if there is none of that id, or it is somebody else's.
        """
        try:
            view = self.desk.ledger.request(request)
        except RecipeError:
            view = None
        if view is None or not _sees(person, view):
            raise Absent("no such request", field="request", value=request, remedy="Look into the queue")
        return view

    def intake(self, person: Person, values: dict[str, object]) -> RequestView:
        """Take a request in; one who asks for oneself asks under one's own name, and now.

        Raises:
            InputDataError: if the values are no request.
        """
        if person.role is Role.REQUESTER:
            values = {key: value for key, value in values.items() if key not in ("id", "received")}
            values["requester"] = person.name
        try:
            file = RequestFile.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "request"
            raise InputDataError(str(first["msg"]).removeprefix("Value error, "), field=where,
                                 remedy="Correct it, then hand it in again") from None  # fmt: skip
        if file.received > self.clock() + timedelta(minutes=5):
            raise InputDataError("lies in the future", field="received", remedy="Give the day it came in")
        return self.desk.intake(file, actor=person.name)

    def withdraw(self, person: Person, request: str, reason: str) -> RequestView:
        """Withdraw one's own request."""
        return self._moved(person, request, State.WITHDRAWN, reason)

    def move(self, person: Person, request: str, to: State, reason: str) -> RequestView:
        """Verify, refuse, hold, release a request, mark it as duplicate or as monitored.

        Raises:
            RecipeError: for another move.
        """
        view = self.request(person, request)
        if to not in moves(view):
            named = ", ".join(moves(view)) or "none"
            raise RecipeError(f"a request that is {view.state} is not moved to {to} by hand", field="to", value=str(to),
                              remedy=f"By hand from here: {named}")  # fmt: skip
        return self._moved(person, request, to, reason)

    def extend(self, person: Person, request: str, reason: str) -> RequestView:
        """Extend a deadline."""
        self.request(person, request)
        self.desk.extend(request, actor=person.name, reason=reason)
        return self.request(person, request)

    def locate(self, person: Person, request: str) -> None:
        """Begin to search for the records of a request; what is found comes into the ledger.

        Raises:
            RecipeError: if the request is in no state for it, or a search is under way.
        """
        view = self.request(person, request)
        if State.LOCATED not in allowed(view.state, held_in=view.held_in):
            raise RecipeError(f"a request that is {view.state} is not located", field="state", value=str(view.state),
                              remedy="Verify it first")  # fmt: skip
        self.searches.begin(request, person.name)

    def advise(self, person: Person, request: str) -> list[Route]:
        """Return the routes that fit a request, best first.

        Raises:
            InputDataError: if the model in use is not there.
        """
        self.request(person, request)
        with _reading_models():
            return self.desk.advise(request)

    def plan(self, person: Person, request: str, *, method: str = "", route: str = "") -> PlanFile:
        """Plan a request by an advised route, or by a method with the settings of the desk.

        Raises:
            RecipeError: if neither or both are named, there is none of that name, or it cannot run.
        """
        self.request(person, request)
        if bool(method) == bool(route):
            raise RecipeError("name a method or a route", field="method", remedy="Choose one of them")
        if method:
            return self.desk.plan(request, method, actor=person.name, settings={})
        with _reading_models():
            return self.desk.plan_route(request, route, actor=person.name)

    def approve(self, person: Person, request: str, plan: str) -> RequestView:
        """Approve the plan of a request, by the digest of the plan that was looked at.

        Raises:
            RecipeError: if the plan was changed since, or it is one's own.
        """
        self.request(person, request)
        self.desk.approve(request, actor=person.name, seen=plan)
        return self.request(person, request)

    def plan_of(self, view: RequestView) -> PlanFile | None:
        """Return the plan of a request, or None where there is none that can be relied on."""
        if view.last("plan") is None:
            return None
        try:
            return self.desk.plan_file(view.id)
        except InputDataError:
            return None

    def scope_of(self, view: RequestView) -> Scope | None:
        """Return what was searched and found for a request; None if nothing is there that the ledger vouches for."""
        event, path = view.last("scope"), self.desk.path(view.id, "scope.json")
        if event is None or not path.is_file():
            return None
        try:
            values = json.loads(path.read_text("utf-8"))
            return Scope.model_validate(values) if digest(values) == event.body["scope_digest"] else None
        except ValueError:
            return None

    def held_of(self, view: RequestView) -> PolicyHeld | None:
        """Return the limits that the certificate of a request speaks of, and whether each is met; None without one."""
        path = self.desk.path(view.id, "certificate.dsse.json")
        if not path.is_file():
            return None
        try:
            return statement_from(read_envelope(path.read_bytes()).value()).predicate.policy
        except (VerificationFailed, ValueError):
            return None

    def certificate(self, person: Person, request: str) -> bytes:
        """Return the certificate of a request.

        Raises:
            Absent: if there is none.
        """
        return self._file(person, request, "certificate.dsse.json")

    def notice(self, person: Person, request: str, name: str) -> bytes:
        """Return a text that was written with the certificate; who asked sees only what is addressed to them.

        Raises:
            Absent: if there is none.
        """
        if name not in (NOTICES[:1] if person.role is Role.REQUESTER else NOTICES):
            raise Absent("no such notice", field="notice", remedy="Look at the page of the request")
        return self._file(person, request, name)

    def verify(self, raw: bytes) -> Verification:
        """Check a certificate against the keys that the desk trusts, its ledger, and the model it is about.

        The model is that of the run which the ledger names beside the certificate. One check at a time.
        """
        desk = self.desk
        with self._verifying:
            events = list(desk.ledger.events())
            trusted = trusted_keys(desk.folder / desk.config.trusted)
            model = self._model_of(raw, events)
            return verify_certificate(raw, model, trusted, revoked=revocation_list(events), events=iter(events))

    def _model_of(self, raw: bytes, events: Sequence[Event]) -> Path:
        nowhere = Path("unknown to the ledger")
        try:
            found = read_envelope(raw).digest
        except ExpungeError:
            return nowhere
        issued = [e for e in events if e.kind in ("certificate", "partial") and e.body["certificate_digest"] == found]
        if not issued:
            return nowhere
        runs = [e for e in events if e.kind == "run" and e.request == issued[0].request and e.seq < issued[0].seq]
        return self.desk.folder / "runs" / str(runs[-1].body["run"]) / "model" if runs else nowhere

    def _moved(self, person: Person, request: str, to: State, reason: str) -> RequestView:
        self.request(person, request)
        self.desk.move(request, to, actor=person.name, reason=reason.strip())
        return self.request(person, request)

    def _file(self, person: Person, request: str, name: str) -> bytes:
        self.request(person, request)
        path = self.desk.path(request, name)
        if not path.is_file():
            raise Absent("is not written yet", field=name, remedy="It comes with the result")
        return path.read_bytes()


class Searches:
    """Searches for records, which may take minutes: one at a time, in the background."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._lock, self._running = desk, Lock(), ""
        self._ended: dict[str, str] = {}

    def begin(self, request: str, actor: str) -> None:
        """Begin one.

        Raises:
            RecipeError: if one is under way.
        """
        with self._lock:
            if self._running:
                raise RecipeError("another search is under way", field="request", value=self._running,
                                  remedy="Wait for it")  # fmt: skip
            self._running = request
            self._ended.pop(request, None)
        Thread(target=self._search, args=(request, actor), daemon=True).start()

    def under_way(self, request: str) -> bool:
        """Return whether this request is searched for now."""
        return self._running == request

    def problem(self, request: str) -> str:
        """Return why the last search found nothing; "" if it did, or there was none."""
        return self._ended.get(request, "")

    def _search(self, request: str, actor: str) -> None:
        try:
            with _reading_models():
                self._desk.locate(request, actor=actor)
        except ExpungeError as error:
            self._ended[request] = f"{error.problem}. {error.remedy}".strip()
        finally:
            self._running = ""


def moves(view: RequestView) -> tuple[State, ...]:
    """Return the moves that an operator may make by hand from where a request is."""
    named = (*BY_HAND, view.held_in)
    return tuple(state for state in allowed(view.state, held_in=view.held_in) if state in named)


def method_names() -> list[tuple[str, str]]:
    """Return (name, title) of every method that a plan may name."""
    return [(name, method.card.title) for name, method in sorted(methods().items())]


@contextmanager
def _reading_models() -> Iterator[None]:
    """Say of a model that is neither here nor kept from the hub that it cannot be read.

    Raises:
        InputDataError: in place of what the library raises.
    """
    try:
        yield
    except OSError as error:
        raise InputDataError("a model or file of the desk cannot be read", field="desk", value=type(error).__name__,
                             remedy="Look at the paths in desk.yaml") from error  # fmt: skip


def _sees(person: Person, view: RequestView) -> bool:
    return person.role is not Role.REQUESTER or view.requester == person.name
