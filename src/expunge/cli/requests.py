# SPDX-License-Identifier: Apache-2.0
"""`expunge desk`, `request` and `work`: requests from intake to evidence."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli import options as opt
from expunge.cli.progress import display
from expunge.cli.streams import guarded, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts
from expunge.errors import RecipeError

if TYPE_CHECKING:
    from expunge.desk.service import Desk
    from expunge.ledger.store import RequestView

desk_app = typer.Typer(no_args_is_help=True, help="The request desk: its folder, its settings, its key.")
request_app = typer.Typer(no_args_is_help=True, help="Requests: taken in, verified, planned, approved, or stopped.")

DeskFolder = Annotated[Path, typer.Option("--desk", envvar="EXPUNGE_DESK", help="Folder of the desk.")]
Actor = Annotated[str, typer.Option("--as", envvar="EXPUNGE_ACTOR", help="Who does it: a pseudonym.")]
RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="Id of the request.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; goes into the ledger, so nothing of the person in it.")]
_HERE = Path("desk")


@desk_app.command("init", no_args_is_help=True)
@guarded
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the desk is opened.")],
    settings: Annotated[Path, typer.Option("--settings", help="YAML: model, corpora, policy, and more.")],
) -> None:
    """Open a desk: its settings, its ledger and its signing key."""
    import yaml

    from expunge.desk.service import Desk

    try:
        values = yaml.safe_load(settings.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot be read: {error}", field="--settings", value=str(settings),
                          remedy="Give a YAML file") from error  # fmt: skip
    if not isinstance(values, dict):
        raise RecipeError("holds no settings", field="--settings", value=str(settings), remedy="Give a YAML mapping")
    desk = Desk.create(folder, values)
    print_facts(out(), [("Desk", str(folder)), ("Ledger", str(desk.config.ledger)), ("Key", f"{desk.key}.pub"),
                        ("Next", f"expunge request add FILE --desk {folder} --as NAME")])  # fmt: skip


@request_app.command("add", no_args_is_help=True)
@guarded
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON, JSON Lines, CSV or Parquet; one request a row.")],
    actor: Actor,
    desk: DeskFolder = _HERE,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="Such as samples=biography; may be repeated."),
    ] = None,
    defaults: Annotated[
        list[str] | None,
        typer.Option("--default", metavar="COLUMN=VALUE", help="For a column that no row has, such as what=copyright."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Take requests in."""
    from expunge.desk.intake import read_requests

    found = read_requests(file, columns=opt.pairs(columns, "--column"), defaults=opt.pairs(defaults, "--default"))
    office = _open(desk)
    _show([office.intake(request, actor=actor) for request in found], as_json)


@request_app.command("list")
@guarded
def list_requests(
    states: Annotated[list[str] | None, typer.Option("--state", help="Only these; may be repeated.")] = None,
    desk: DeskFolder = _HERE,
    as_json: opt.Json = False,
) -> None:
    """List requests, those due first first."""
    _show(_open(desk).ledger.requests(*(_state(name) for name in states or [])), as_json)


@request_app.command("show", no_args_is_help=True)
@guarded
def show(request: RequestId, desk: DeskFolder = _HERE, as_json: opt.Json = False) -> None:
    """Show the timeline of one request."""
    view = _open(desk).ledger.request(request)
    if as_json:
        print_json(json.dumps(_facts(view) | {"events": [_event(event) for event in view.events]}, indent=1))
        return
    print_facts(out(), [("Request", view.id), ("Kind", view.what), ("State", view.state), ("Due", _due(view))])
    print_facts(out(), [(event.at[:16].replace("T", " "), f"{event.kind} by {event.actor}: {_said(event.body)}")
                        for event in view.events])  # fmt: skip


@request_app.command("plan", no_args_is_help=True)
@guarded
def plan(
    request: RequestId,
    actor: Actor,
    method: Annotated[str | None, typer.Option("--method", help="Name of a method; see `expunge methods`.")] = None,
    route: Annotated[str | None, typer.Option("--route", help="As advised; see `expunge request advise`.")] = None,
    desk: DeskFolder = _HERE,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of the recipe, as in `expunge run`.")
    ] = None,
) -> None:
    """Plan a request that was located: by a route that was advised, or by a method."""
    quiet_libraries()
    office, settings = _open(desk), opt.settings_of(None, {}, sets, needed=())
    if route is not None and method is None:
        made = office.plan_route(request, route, actor=actor, settings=settings)
    elif method is not None and route is None:
        made = office.plan(request, method, actor=actor, settings=settings)
    else:
        raise RecipeError("one of the two is needed", field="--route, --method", remedy="Give a route, or a method")
    print_facts(out(), [("Request", request), ("Route", made.route), ("Method", made.method),
                        ("Claim", str(made.claim)), ("May be said", made.sentence), ("Plan", made.digest),
                        ("Next", "another person: expunge request approve")])  # fmt: skip


@request_app.command("approve", no_args_is_help=True)
@guarded
def approve(request: RequestId, actor: Actor, desk: DeskFolder = _HERE) -> None:
    """Approve the plan of a request."""
    office = _open(desk)
    office.approve(request, actor=actor)
    _show([office.ledger.request(request)], False)


@request_app.command("move", no_args_is_help=True)
@guarded
def move(
    request: RequestId,
    to: Annotated[str, typer.Argument(metavar="STATE", help="verified, refused, on_hold, withdrawn, duplicate...")],
    actor: Actor,
    reason: Reason = "",
    desk: DeskFolder = _HERE,
) -> None:
    """Verify, refuse, hold, release or withdraw a request."""
    office = _open(desk)
    office.move(request, _state(to), actor=actor, reason=reason)
    _show([office.ledger.request(request)], False)


@request_app.command("extend", no_args_is_help=True)
@guarded
def extend(request: RequestId, actor: Actor, reason: Reason, desk: DeskFolder = _HERE) -> None:
    """Extend the deadline of a request, once, as its rule allows."""
    office = _open(desk)
    office.extend(request, actor=actor, reason=reason)
    _show([office.ledger.request(request)], False)


@request_app.command("shred", no_args_is_help=True)
@guarded
def shred(request: RequestId, actor: Actor, desk: DeskFolder = _HERE) -> None:
    """Destroy the salt of a request: its digests match nothing any more."""
    from expunge.ledger.bodies import Shredded

    office = _open(desk)
    office.ledger.request(request)
    office.ledger.salts.shred(request)
    office.ledger.append(Shredded(), actor=actor, request=request, once=f"{request}:shredded")
    print_facts(out(), [("Request", request), ("Salt", "shredded; back-ups of the ledger may still hold it")])


@guarded
def work(
    desk: DeskFolder = _HERE,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Runs at most.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Requests at most that share one run.")] = 1,
    as_json: opt.Json = False,
) -> None:
    """Work off approved requests: unlearn, audit, attack, certify; goes on where it was stopped."""
    quiet_libraries()
    limit_threads(None)
    from expunge.desk import queue

    office = _open(desk)
    with display() as watcher:
        units = queue.work(office, limit=limit, batch=batch, watcher=watcher)
    if office.config.webhooks:
        from expunge.desk.webhooks import deliver

        deliver(office)
    _show([office.ledger.request(name) for unit in units for name in unit.requests], as_json)


def _open(folder: Path) -> Desk:
    from expunge.desk.service import Desk

    return Desk(folder)


def _state(name: str) -> Any:
    from expunge.errors import nearest
    from expunge.ledger.states import State

    try:
        return State(name)
    except ValueError:
        raise RecipeError("no such state", field="state", value=name, remedy=nearest(name, list(State))) from None


def _show(views: list[RequestView], as_json: bool) -> None:
    if as_json:
        print_json(json.dumps([_facts(view) for view in views], indent=1))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("request", "kind", "state", "requester", "due"):
        table.add_column(column, overflow="fold")
    for view in views:
        table.add_row(view.id, view.what, str(view.state), view.requester, _due(view))
    out().print(table if views else "no requests")


def _due(view: RequestView) -> str:
    from expunge.ledger.states import CLOSED

    if view.state in CLOSED:
        return f"{view.due:%Y-%m-%d}"
    days = view.days_left(datetime.now(UTC))
    return f"{view.due:%Y-%m-%d}, {'late by' if days < 0 else 'in'} {abs(days):.0f} days"


def _facts(view: RequestView) -> dict[str, Any]:
    return {
        "id": view.id, "what": view.what, "state": str(view.state), "requester": view.requester,
        "received": view.received, "due": view.due.isoformat(),
    }  # fmt: skip


def _event(event: Any) -> dict[str, Any]:
    return {"seq": event.seq, "at": event.at, "actor": event.actor, "kind": event.kind, "body": event.body,
            "hash": event.hash}  # fmt: skip


def _said(body: dict[str, Any]) -> str:
    """Return the short fields of an entry in one line."""
    shown = {key: value for key, value in body.items() if value not in ("", None, [], {})}
    return ", ".join(f"{key} {value[:12] if isinstance(value, str) and len(value) == 64 else value}"
                     for key, value in shown.items())  # fmt: skip
