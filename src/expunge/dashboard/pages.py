# SPDX-License-Identifier: Apache-2.0
"""The pages that only look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, Response, StreamingResponse

from expunge.dashboard.access import Person, house, page_gate, person
from expunge.dashboard.charts import MOST_COMPARED, comparison, curves_of, result_of, run_facts
from expunge.dashboard.facts import WAY, RequestFact, counted, event_fact, request_detail, request_fact
from expunge.dashboard.office import NOTICES, Office, method_names, moves
from expunge.dashboard.progress import progress_of
from expunge.dashboard.refusals import Absent
from expunge.dashboard.rendering import page
from expunge.dashboard.roles import Role
from expunge.desk.intake import RequestFile
from expunge.ledger.canonical import canonical
from expunge.ledger.states import State, allowed
from expunge.ledger.store import RequestView

router = APIRouter(dependencies=[Depends(page_gate)], include_in_schema=False)

#: What a request, a run or a notice may be called in an address; anything else is not found there.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
Name = Annotated[str, Path(pattern=NAME)]
#: What was just done, by the word that the address carries: an address cannot put words into our mouth.
DONE = {
    "received": "The request came in.", "withdrawn": "The request is withdrawn.", "moved": "Moved.",
    "extended": "The deadline is extended.", "planned": "The plan is made. Now another person approves it.",
    "approved": "Approved. A worker takes it from here: expunge work.", "searching": "The search began.",
}  # fmt: skip
#: Fields of the form for a new request.
FIELDS = ("what", "requester", "basis", "received", "identifiers", "record_ids", "samples")
_SHOWS = {"late": "Late", "soon": "Due within a week", "mine": "Waiting for you", "work": "In the hands of a worker"}
_ENTRIES = 100
_CLOSED = 100


@router.get("/", name="queue")
def queue(request: Request, show: str = "") -> HTMLResponse:
    """Show requests, those due first first."""
    at, who = house(request).office, person(request)
    rows = [request_fact(view, at.clock()) for view in at.requests(who)]
    groups = {name: [row for row in rows if _in_group(row, name, who)] for name in _SHOWS}
    chosen = groups.get(show, rows)
    open_rows = [row for row in chosen if row.days_left is not None]
    closed_rows = [row for row in chosen if row.days_left is None][::-1]
    return page(request, "queue.html", who, groups={name: len(found) for name, found in groups.items()}, titles=_SHOWS,
                show=show if show in groups else "", open_rows=open_rows, closed_rows=closed_rows, most=_CLOSED,
                total=len(rows))  # fmt: skip


def _in_group(row: RequestFact, group: str, who: Person) -> bool:
    if group in ("late", "soon"):
        return row.urgency == group
    if group == "mine":
        return row.next_role is who.role and row.days_left is not None
    return row.state in (State.APPROVED, State.RUNNING, State.AUDITED)


@router.get("/requests/{request_id}", name="request_page")
def request_page(request: Request, request_id: Name, done: str = "") -> HTMLResponse:
    """Show one request."""
    return show_request(request, request_id, note=DONE.get(done, ""))


def show_request(request: Request, request_id: str, *, note: str = "", problem: str = "", status: int = 200
                 ) -> HTMLResponse:  # fmt: skip
    """Return the page of a request, with a note on what was done or why it was not."""
    at, who = house(request).office, person(request)
    view = at.request(who, request_id)
    return page(request, "request.html", who, status=status, note=note, problem=problem, **_about(at, who, view))


def _about(at: Office, who: Person, view: RequestView) -> dict[str, Any]:
    """Return what the page of a request shows to a person."""
    now, folder = at.clock(), at.desk.path(view.id)
    detail = request_detail(view, at.plan_of(view), now, moves(view), certificate=_certificate(at, view))
    tried = [str(event.body["run"]) for event in view.events if event.kind == "run"]
    measured = [name for name in tried if (at.desk.folder / "runs" / name / "audit.json").exists()]
    staff = who.role is not Role.REQUESTER
    names = NOTICES if staff else NOTICES[:1]
    runs = at.desk.folder / "runs"
    options = allowed(view.state, held_in=view.held_in)
    wanted = at.desk.request_file(view.id) if who.role in (Role.OPERATOR, Role.REQUESTER) else None
    return {
        "row": detail, "way": WAY, "reached": _reached(view), **_live(at, who, view),
        "scope": at.scope_of(view) if staff else None, "held": at.held_of(view),
        "wanted": wanted, "meant": "" if wanted is None else _meant(wanted),
        "result": result_of(runs / measured[-1]) if staff and measured and measured[-1] == tried[-1] else None,
        "measured": measured if staff else [], "notices": [name for name in names if (folder / name).is_file()],
        "own_plan": detail.plan is not None and at.desk.config.four_eyes and detail.plan.by == who.name,
        "can_plan": State.PLANNED in options, "can_locate": State.LOCATED in options,
        "can_withdraw": State.WITHDRAWN in options, "can_approve": view.state is State.PLANNED,
        "can_extend": detail.days_left is not None and not detail.extended,
        "methods": method_names() if who.can("plan") and State.PLANNED in options else [],
    }  # fmt: skip


def _meant(file: RequestFile) -> str:
    """Say how many names, ids and texts a request gives."""
    given = ((file.identifiers, "name"), (file.record_ids, "record id"), (file.samples, "text"))
    return ", ".join(counted(len(found), noun) for found, noun in given if found)


def _certificate(at: Office, view: RequestView) -> bool:
    return at.desk.path(view.id, "certificate.dsse.json").is_file()


def _reached(view: RequestView) -> set[State]:
    return {event.state for event in view.events if event.state is not None}


@router.get("/requests/{request_id}/live", name="live")
def live(request: Request, request_id: Name) -> HTMLResponse:
    """Return the part of a request's page that changes by itself."""
    at, who = house(request).office, person(request)
    return page(request, "live.html", who, **_live(at, who, at.request(who, request_id)))


def _live(at: Office, who: Person, view: RequestView) -> dict[str, Any]:
    """Return how far a request is with a worker or a search; the page comes back as long as that goes on."""
    started, folder = view.last("run"), at.desk.folder / "runs"
    shown = started is not None and view.state in (State.RUNNING, State.AUDITED, State.FAILED)
    progress = progress_of(folder, str(started.body["run"]), at.clock()) if started is not None and shown else None
    searching = at.searches.under_way(view.id)
    return {
        "request_id": view.id, "state": view.state, "progress": progress, "searching": searching,
        "search_problem": at.searches.problem(view.id),
        "curves": curves_of(folder / progress.run) if progress and who.role is not Role.REQUESTER else "",
        "poll": searching or view.state in (State.APPROVED, State.RUNNING, State.AUDITED),
    }  # fmt: skip


@router.get("/requests/{request_id}/routes", name="routes")
def routes(request: Request, request_id: Name) -> HTMLResponse:
    """Show the routes that fit a request, best first."""
    at, who = house(request).office, person(request)
    view = at.request(who, request_id)
    found = at.advise(who, view.id)
    return page(request, "routes.html", who, row=request_fact(view, at.clock()),
                routes=[one for one in found if one.possible], others=[one for one in found if not one.possible],
                can_plan=State.PLANNED in allowed(view.state, held_in=view.held_in))  # fmt: skip


@router.get("/requests/{request_id}/certificate", name="certificate")
def certificate(request: Request, request_id: Name) -> Response:
    """Send the certificate."""
    raw = house(request).office.certificate(person(request), request_id)
    return download(raw, f"{request_id}.certificate.dsse.json", "application/json")


@router.get("/requests/{request_id}/notices/{name}", name="notice")
def notice(request: Request, request_id: Name, name: Name) -> Response:
    """Send a text that was written with the certificate."""
    raw = house(request).office.notice(person(request), request_id, name)
    return download(raw, f"{request_id}.{name}", "text/markdown; charset=utf-8")


def download(raw: bytes, name: str, kind: str) -> Response:
    """Return a file that a browser saves and does not show."""
    return Response(raw, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


@router.get("/intake", name="intake_form")
def intake_form(request: Request) -> HTMLResponse:
    """Show the form for a new request."""
    return page(request, "intake.html", person(request), problem="", values=dict.fromkeys(FIELDS, ""))


@router.get("/runs", name="runs")
def runs(request: Request) -> HTMLResponse:
    """Show every run of the desk."""
    at = house(request).office
    found = run_facts(at.desk.folder / "runs", requests_by_run(at))
    return page(request, "runs.html", person(request), runs=found, most=MOST_COMPARED)


def requests_by_run(at: Office) -> dict[str, list[str]]:
    """Return the requests that each run was made for."""
    found: dict[str, list[str]] = {}
    for event in at.desk.ledger.events():
        if event.kind == "run":
            found.setdefault(str(event.body["run"]), []).append(str(event.request))
    return found


@router.get("/runs/compare", name="compare")
def compare(request: Request, run: Annotated[list[Annotated[str, Query(pattern=NAME)]], Query(max_length=20)]
            ) -> HTMLResponse:  # fmt: skip
    """Show several runs beside each other."""
    chosen = list(dict.fromkeys(run))[:MOST_COMPARED]
    shown: dict[str, Any] = {**comparison(house(request).office.desk.folder / "runs", chosen)}
    return page(request, "compare.html", person(request), names=chosen, **shown)


@router.get("/runs/{name}/report", name="run_report")
def run_report(request: Request, name: Name) -> Response:
    """Send the report of a run, one file that needs nothing else."""
    path = house(request).office.desk.folder / "runs" / name / "report.html"
    if not path.is_file():
        raise Absent("no report", field="run", value=name, remedy="It is written when the run ends")
    return FileResponse(path, filename=f"{name}.report.html", media_type="text/html")


@router.get("/verify", name="verify_form")
def verify_form(request: Request) -> HTMLResponse:
    """Show the form to which a certificate is given."""
    return page(request, "verify.html", person(request), found=None, problem="", file="")


@router.get("/ledger", name="ledger")
def ledger(request: Request, check: bool = False) -> HTMLResponse:
    """Show the newest entries of the ledger; with `check`, whether the chain holds."""
    book = house(request).office.desk.ledger
    seq, digest = book.head()
    entries = [(event.request, event_fact(event)) for event in book.events(after=max(0, seq - _ENTRIES))]
    problems = book.verify() if check else None
    return page(request, "ledger.html", person(request), head=(seq, digest), entries=entries[::-1], problems=problems)


@router.get("/ledger/export", name="ledger_export")
def ledger_export(request: Request) -> StreamingResponse:
    """Send every entry, one canonical line each."""
    return StreamingResponse(export_lines(house(request).office), media_type="application/jsonl",
                             headers={"Content-Disposition": 'attachment; filename="ledger.jsonl"'})  # fmt: skip


def export_lines(at: Office) -> Iterator[bytes]:
    """Yield the entries as `expunge ledger export` writes them."""
    for event in at.desk.ledger.events():
        yield canonical(asdict(event)) + b"\n"
