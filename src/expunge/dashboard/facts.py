# SPDX-License-Identifier: Apache-2.0
"""What pages and API say of requests, as typed values; the text of a person is in none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from expunge.claims import SENTENCES, ClaimKind
from expunge.dashboard.roles import Role
from expunge.desk.service import PlanFile
from expunge.ledger.states import CLOSED, State
from expunge.ledger.store import Event, RequestView

#: The way of a request when nothing stops it.
WAY = (State.RECEIVED, State.VERIFIED, State.LOCATED, State.PLANNED, State.APPROVED, State.RUNNING, State.AUDITED,
       State.CERTIFIED)  # fmt: skip
#: Who acts next, and what they do.
NEXT: Mapping[State, tuple[Role | None, str]] = {
    State.RECEIVED: (Role.OPERATOR, "Verify who asks"),
    State.VERIFIED: (Role.OPERATOR, "Locate the records"),
    State.LOCATED: (Role.OPERATOR, "Make a plan"),
    State.PLANNED: (Role.APPROVER, "Approve the plan"),
    State.APPROVED: (None, "Waits for a worker: expunge work"),
    State.RUNNING: (None, "A worker is at it"),
    State.AUDITED: (None, "A worker is at it"),
    State.CERTIFIED: (Role.OPERATOR, "Deploy the model"),
    State.PARTIAL: (Role.OPERATOR, "Limits were not met: plan again, or deploy and say so"),
    State.FAILED: (Role.OPERATOR, "The run failed: plan again, or refuse"),
    State.DEPLOYED: (Role.OPERATOR, "Watch the model in use"),
    State.ON_HOLD: (Role.OPERATOR, "On hold: release it"),
}
_SOON_DAYS = 7


class Fact(BaseModel):
    """Base of what is said: frozen, and nothing beside what is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RequestFact(Fact):
    """A request in one line; `days_left` is negative when it is late, and None when nothing is to be done any more."""

    id: str
    what: str
    state: State
    requester: str
    received: datetime
    due: datetime
    days_left: float | None
    extended: bool
    next: str
    next_role: Role | None

    @property
    def urgency(self) -> str:
        """One of late, soon, open, closed."""
        if self.days_left is None:
            return "closed"
        return "late" if self.days_left < 0 else "soon" if self.days_left <= _SOON_DAYS else "open"


class EventFact(Fact):
    """An entry of the ledger, and what it says in words."""

    seq: int
    at: datetime
    actor: str
    kind: str
    state: State | None
    said: str
    reason: str
    body: dict[str, Any]
    hash: str


class PlanFact(Fact):
    """A plan: what will be done, and the sentence that may be said afterwards."""

    digest: str
    by: str
    route: str
    method: str
    claim: ClaimKind
    sentence: str
    reasons: tuple[str, ...]
    settings: dict[str, Any]
    policy: str
    predicted_seconds: float | None
    predicted_bytes: int | None


class RequestDetail(RequestFact):
    """A request with everything that happened; `run` is the newest one."""

    basis: str
    moves: tuple[State, ...]
    plan: PlanFact | None
    run: str | None
    has_certificate: bool
    events: tuple[EventFact, ...]


def request_fact(view: RequestView, now: datetime) -> RequestFact:
    """Return a request in one line."""
    return RequestFact(**_line(view, now))


def request_detail(
    view: RequestView, plan: PlanFile | None, now: datetime, moves: tuple[State, ...], *, certificate: bool
) -> RequestDetail:
    """Return a request with everything that happened."""
    started = view.last("run")
    return RequestDetail(
        **_line(view, now), basis=view.events[0].body["basis"], moves=moves, plan=_plan(view, plan),
        run=None if started is None else str(started.body["run"]), has_certificate=certificate,
        events=tuple(event_fact(event) for event in view.events),
    )  # fmt: skip


def _line(view: RequestView, now: datetime) -> dict[str, Any]:
    role, words = NEXT.get(view.state, (None, ""))
    done = view.state in CLOSED or view.state in (State.CERTIFIED,)
    return {
        "id": view.id, "what": view.what, "state": view.state, "requester": view.requester,
        "received": datetime.fromisoformat(view.received), "due": view.due,
        "days_left": None if done else round(view.days_left(now), 2),
        "extended": view.last("extension") is not None, "next": words, "next_role": role,
    }  # fmt: skip


def _plan(view: RequestView, plan: PlanFile | None) -> PlanFact | None:
    event = view.last("plan")
    if plan is None or event is None:
        return None
    return PlanFact(
        digest=plan.digest, by=event.actor, route=plan.route, method=plan.method, claim=plan.claim,
        sentence=plan.sentence or SENTENCES[plan.claim], reasons=plan.reasons, settings=dict(plan.settings),
        policy=event.body["policy"], predicted_seconds=event.body["predicted_seconds"],
        predicted_bytes=event.body["predicted_bytes"],
    )  # fmt: skip


def event_fact(event: Event) -> EventFact:
    """Return an entry with its words."""
    return EventFact(seq=event.seq, at=datetime.fromisoformat(event.at), actor=event.actor, kind=event.kind,
                     state=event.state, said=said(event), reason=str(event.body.get("reason") or ""), body=event.body,
                     hash=event.hash)  # fmt: skip


def said(event: Event) -> str:
    """Say what an entry says, in a few words of ours."""
    words = _WORDS.get(event.kind)
    return event.kind if words is None else words(event.body)


def _scope(body: Mapping[str, Any]) -> str:
    ways = ", ".join(f"{name} {count}" for name, count in body["by_way"].items())
    return (f"Located {counted(body['records'], 'record')}{f' ({ways})' if ways else ''}; "
            f"{counted(body['artefacts'], 'artefact')} saw them; "
            f"{counted(body['not_searched'], 'place')} could not be searched")  # fmt: skip


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "request": lambda body: f"Came in: {body['what']}",
    "move": lambda body: f"Moved to {str(body['to']).replace('_', ' ')}",
    "extension": lambda body: f"Deadline extended to {body['due'][:10]}",
    "scope": _scope,
    "plan": lambda body: f"Planned: {body['method']} ({body['claim']}), under policy {body['policy']}",
    "approval": lambda body: f"Approved plan {body['plan_digest'][:12]}",
    "run": lambda body: f"Run {body['run']} began",
    "audit": lambda body: f"Measured: policy {'met' if body['policy_met'] else 'not met'}; "
                          f"{counted(body['runs_tried'], 'run')} tried",
    "certificate": lambda body: f"Certificate signed ({body['claim']})",
    "partial": lambda body: f"Partial result signed; not met: {'; '.join(body['unmet'])}",
    "failure": lambda body: f"The run failed: {body['error']}",
    "deployment": lambda body: f"Model in use: {body['where']}",
    "destruction": lambda body: f"Destroyed: {body['what']}",
    "salt_shredded": lambda body: "Salt shredded: its digests match nothing any more",
    "revocation": lambda body: f"Revoked: {body['what']} {body['digest'][:12]}",
    "note": lambda body: f"Note: {body['text']}",
}  # fmt: skip
