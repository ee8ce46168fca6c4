# SPDX-License-Identifier: Apache-2.0
"""The same desk as JSON, under `/api`: bearer tokens, typed answers, the rules of the pages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from expunge.claims import ClaimKind
from expunge.dashboard.access import api_gate, house, person
from expunge.dashboard.charts import RunFact, run_facts
from expunge.dashboard.facts import Fact, PlanFact, RequestDetail, RequestFact, request_detail, request_fact
from expunge.dashboard.office import NOTICES, Office, moves
from expunge.dashboard.pages import NAME, download, export_lines, requests_by_run
from expunge.dashboard.progress import Progress, progress_of
from expunge.dashboard.refusals import Absent
from expunge.dashboard.roles import DUTIES, Role
from expunge.ledger.states import State
from expunge.ledger.store import RequestView


class Problem(Fact):
    """Why something was refused, and what to do."""

    field: str
    problem: str
    remedy: str


class Me(Fact):
    """Who the token belongs to."""

    name: str
    role: Role
    duty: str


class NewRequest(BaseModel):
    """A request to hand in; who asks for oneself leaves out `requester` and `received`."""

    model_config = ConfigDict(extra="forbid")

    what: Literal["erasure", "rectification", "copyright", "contract", "safety"] = "erasure"
    requester: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")
    basis: str = Field("", max_length=500)
    received: AwareDatetime | None = None
    identifiers: list[str] = Field(default_factory=list, max_length=1000)
    record_ids: list[str] = Field(default_factory=list, max_length=10_000)
    samples: list[str] = Field(default_factory=list, max_length=1000)


class Why(BaseModel):
    """A reason, which goes into the ledger: nothing of a person in it."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=500)


class Move(Why):
    """Where a request is moved."""

    to: State


class PlanBy(BaseModel):
    """What a request is planned by: a method, or an advised route."""

    model_config = ConfigDict(extra="forbid")

    method: str = ""
    route: str = ""


class Approval(BaseModel):
    """The plan that was looked at, by its digest."""

    model_config = ConfigDict(extra="forbid")

    plan: str = Field(pattern=r"^[0-9a-f]{64}$")


class RouteFact(Fact):
    """A route that was advised; `sentence` is what may be said afterwards."""

    name: str
    title: str
    method: str | None
    claim: ClaimKind | None
    possible: bool
    why_not: str
    reasons: tuple[str, ...]
    sentence: str
    how: str
    besides: tuple[str, ...]
    settings: dict[str, Any]
    predicted_seconds: float | None
    predicted_bytes: int | None


class Live(Fact):
    """How far a request is: whether records are searched for now, and its run if there is one."""

    state: State
    searching: bool
    search_problem: str
    progress: Progress | None


class CheckFact(Fact):
    """One thing that was looked at."""

    what: str
    holds: bool
    detail: str


class Verified(Fact):
    """What a certificate was held against, and what it says."""

    verified: bool
    key: str
    checks: tuple[CheckFact, ...]
    request: str | None
    claim: ClaimKind | None
    sentence: str | None
    not_tested: tuple[str, ...]


class LedgerState(Fact):
    """The newest entry, to keep where the ledger is not, and what is wrong with the chain."""

    seq: int
    hash: str
    problems: tuple[str, ...]


_REFUSED: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body cannot be read"},
    401: {"model": Problem, "description": "No token that counts"},
    403: {"model": Problem, "description": "Not for this role"},
    404: {"model": Problem, "description": "No such thing, or somebody else's"},
    409: {"model": Problem, "description": "The desk refuses"},
    413: {"model": Problem, "description": "The body is too large"},
    422: {"model": Problem, "description": "Not what is expected"},
    429: {"model": Problem, "description": "Too many requests"},
}
router = APIRouter(prefix="/api", dependencies=[Depends(api_gate)], responses=_REFUSED)
Name = Annotated[str, Path(pattern=NAME)]


@router.get("/me", name="api_me")
def me(request: Request) -> Me:
    """Say whose token this is."""
    who = person(request)
    return Me(name=who.name, role=who.role, duty=DUTIES[who.role])


@router.get("/openapi.json", name="api_schema", include_in_schema=False)
def schema(request: Request) -> dict[str, Any]:
    """Return the OpenAPI description."""
    found: dict[str, Any] = request.app.openapi()
    return found


@router.get("/requests", name="api_queue")
def queue(request: Request, state: Annotated[list[State] | None, Query(max_length=20)] = None) -> list[RequestFact]:
    """Return requests, those due first first."""
    at = house(request).office
    return [request_fact(view, at.clock()) for view in at.requests(person(request))
            if not state or view.state in state]  # fmt: skip


@router.post("/requests", name="api_intake", status_code=201)
def intake(request: Request, body: NewRequest) -> RequestFact:
    """Hand a request in."""
    at = house(request).office
    view = at.intake(person(request), body.model_dump(exclude_none=True))
    return request_fact(view, at.clock())


@router.get("/requests/{request_id}", name="api_request_page")
def one(request: Request, request_id: Name) -> RequestDetail:
    """Return a request with everything that happened."""
    at = house(request).office
    return _detail(at, at.request(person(request), request_id))


@router.get("/requests/{request_id}/live", name="api_live")
def live(request: Request, request_id: Name) -> Live:
    """Return how far a request is."""
    at = house(request).office
    view = at.request(person(request), request_id)
    started = view.last("run")
    progress = None
    if started is not None:
        progress = progress_of(at.desk.folder / "runs", str(started.body["run"]), at.clock())
    return Live(state=view.state, searching=at.searches.under_way(view.id),
                search_problem=at.searches.problem(view.id), progress=progress)  # fmt: skip


@router.post("/requests/{request_id}/withdrawal", name="api_withdraw")
def withdraw(request: Request, request_id: Name, body: Why) -> RequestDetail:
    """Withdraw one's own request."""
    at = house(request).office
    return _detail(at, at.withdraw(person(request), request_id, body.reason))


@router.post("/requests/{request_id}/moves", name="api_move")
def move(request: Request, request_id: Name, body: Move) -> RequestDetail:
    """Verify, refuse, hold or release a request."""
    at = house(request).office
    return _detail(at, at.move(person(request), request_id, body.to, body.reason))


@router.post("/requests/{request_id}/extension", name="api_extend")
def extend(request: Request, request_id: Name, body: Why) -> RequestDetail:
    """Extend a deadline."""
    at = house(request).office
    return _detail(at, at.extend(person(request), request_id, body.reason))


@router.post("/requests/{request_id}/location", name="api_locate", status_code=202)
def locate(request: Request, request_id: Name) -> RequestFact:
    """Begin to search for the records of a request; `live` says when that has ended."""
    at = house(request).office
    at.locate(person(request), request_id)
    return request_fact(at.request(person(request), request_id), at.clock())


@router.get("/requests/{request_id}/routes", name="api_routes")
def routes(request: Request, request_id: Name) -> list[RouteFact]:
    """Return the routes that fit a request, best first."""
    found = house(request).office.advise(person(request), request_id)
    return [RouteFact(**{name: getattr(route, name) for name in RouteFact.model_fields}) for route in found]


@router.post("/requests/{request_id}/plan", name="api_plan", status_code=201)
def plan(request: Request, request_id: Name, body: PlanBy) -> PlanFact:
    """Plan a request."""
    at, who = house(request).office, person(request)
    at.plan(who, request_id, method=body.method, route=body.route)
    made = _detail(at, at.request(who, request_id)).plan
    if made is None:
        raise Absent("the plan is gone", field="plan", remedy="Plan it again")
    return made


@router.post("/requests/{request_id}/approval", name="api_approve")
def approve(request: Request, request_id: Name, body: Approval) -> RequestDetail:
    """Approve the plan that was looked at."""
    at = house(request).office
    return _detail(at, at.approve(person(request), request_id, body.plan))


@router.get("/requests/{request_id}/certificate", name="api_certificate", response_class=Response,
            responses={200: {"content": {"application/json": {}}}})  # fmt: skip
def certificate(request: Request, request_id: Name) -> Response:
    """Return the certificate, byte for byte."""
    raw = house(request).office.certificate(person(request), request_id)
    return download(raw, f"{request_id}.certificate.dsse.json", "application/json")


@router.get("/requests/{request_id}/notices/{name}", name="api_notice", response_class=Response,
            responses={200: {"content": {"text/markdown": {}}}})  # fmt: skip
def notice(request: Request, request_id: Name, name: Literal[NOTICES]) -> Response:  # type: ignore[valid-type]
    """Return a text that was written with the certificate."""
    raw = house(request).office.notice(person(request), request_id, str(name))
    return download(raw, f"{request_id}.{name}", "text/markdown; charset=utf-8")


@router.get("/runs", name="api_runs")
def runs(request: Request) -> list[RunFact]:
    """Return every run of the desk, newest first."""
    at = house(request).office
    return run_facts(at.desk.folder / "runs", requests_by_run(at))


_CERTIFICATE = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


@router.post("/verifications", name="api_verify", openapi_extra=_CERTIFICATE)
async def verify(request: Request) -> Verified:
    """Check a certificate, sent byte for byte, against the desk's keys, its ledger and the model it is about."""
    found = await run_in_threadpool(house(request).office.verify, await request.body())
    said = None if found.statement is None else found.statement.predicate
    return Verified(
        verified=not found.failed, key=found.key,
        checks=tuple(CheckFact(what=c.what, holds=c.holds, detail=c.detail) for c in found.checks),
        request=None if said is None else said.request, claim=None if said is None else said.claim,
        sentence=None if said is None else said.sentence,
        not_tested=() if said is None else said.attacks_not_tested,
    )  # fmt: skip


@router.get("/ledger", name="api_ledger")
def ledger(request: Request) -> LedgerState:
    """Return the newest entry, and whether the chain holds."""
    book = house(request).office.desk.ledger
    (seq, digest), problems = book.head(), book.verify()
    return LedgerState(seq=seq, hash=digest, problems=tuple(f"entry {p.seq} {p.what}" for p in problems))


@router.get("/ledger/export", name="api_ledger_export", response_class=StreamingResponse,
            responses={200: {"content": {"application/jsonl": {}}}})  # fmt: skip
def ledger_export(request: Request) -> StreamingResponse:
    """Return every entry, one canonical line each."""
    return StreamingResponse(export_lines(house(request).office), media_type="application/jsonl")


def _detail(at: Office, view: RequestView) -> RequestDetail:
    signed = at.desk.path(view.id, "certificate.dsse.json").is_file()
    return request_detail(view, at.plan_of(view), at.clock(), moves(view), certificate=signed)
