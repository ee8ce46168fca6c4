# SPDX-License-Identifier: Apache-2.0
"""`expunge dashboard`: the request desk in a browser, its tokens, and notices to other systems."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli import options as opt
from expunge.cli.streams import guarded, limit_threads, out, print_json, quiet_libraries, say
from expunge.cli.tables import print_facts
from expunge.errors import require

if TYPE_CHECKING:
    from expunge.dashboard.tokens import Token, TokenStore

dashboard_app = typer.Typer(help="The desk in a browser: pages, API, tokens, webhooks.")
token_app = typer.Typer(no_args_is_help=True, help="Tokens: one a person, shown once, kept as digests.")
webhook_app = typer.Typer(no_args_is_help=True, help="Signed notices to the URLs of desk.yaml.")
dashboard_app.add_typer(token_app, name="token")
dashboard_app.add_typer(webhook_app, name="webhook")

DeskFolder = Annotated[Path, typer.Option("--desk", envvar="EXPUNGE_DESK", help="Folder of the desk.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Pseudonym; stands in the ledger.")]
Url = Annotated[str, typer.Argument(metavar="URL", help="One of `webhooks` in desk.yaml.")]
_HERE = Path("desk")


@dashboard_app.callback(invoke_without_command=True)
@guarded
def dashboard(
    context: typer.Context,
    desk: DeskFolder = _HERE,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8765,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Further host name under which it is called; may be repeated.")
    ] = None,
    open_to_network: Annotated[
        bool, typer.Option("--open-to-network", help="Listen beyond this machine, without encryption.")
    ] = False,
) -> None:
    """Serve the desk in a browser, on this machine; `expunge work` stays a command of its own."""
    if context.invoked_subcommand is not None:
        return
    for module in ("fastapi", "uvicorn", "jinja2", "multipart"):
        require(module, "serve")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a server opens nothing on the network, also for a model's name
    quiet_libraries()
    limit_threads(None)
    from expunge.dashboard import server
    from expunge.desk.service import Desk

    server.check_address(host, open_to_network=open_to_network)
    office = Desk(desk)
    if not server.is_loopback(host):
        say("warning:", "bold yellow", f"anybody who reaches {host}:{port} reads tokens and requests on the way",
            "Put a server with TLS in front")  # fmt: skip
    if not any(token.counts(datetime.now(UTC)) for token in _store(desk).all()):
        say("note:", "bold", "nobody has a token yet",
            f"expunge dashboard token add NAME --role operator --desk {desk}")  # fmt: skip
    print_facts(out(), [("Dashboard", f"http://{f'[{host}]' if ':' in host else host}:{port}/"), ("Stop", "Ctrl+C")])
    server.serve(office, host=host, port=port, names=names or ())


@token_app.command("add", no_args_is_help=True)
@guarded
def add(
    name: Name,
    role: Annotated[str, typer.Option("--role", help="requester, operator, approver or auditor.")],
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Days until it ends.")] = 90,
    desk: DeskFolder = _HERE,
    as_json: opt.Json = False,
) -> None:
    """Make a token; it is shown now and never again."""
    from expunge.dashboard.roles import DUTIES, Role
    from expunge.errors import RecipeError, nearest

    if role not in list(Role):
        raise RecipeError("no such role", field="--role", value=role, remedy=nearest(role, list(Role)))
    shown, made = _store(desk).add(name, Role(role), days=days)
    if as_json:
        print_json(json.dumps({"token": shown, "name": made.name, "role": str(made.role), "ends": made.ends}, indent=1))
        return
    print_facts(out(), [("Token", shown), ("Name", made.name), ("Role", f"{made.role}: {DUTIES[made.role]}"),
                        ("Ends", made.ends[:10]), ("Keep it", "it is shown this once")])  # fmt: skip


@token_app.command("list")
@guarded
def list_tokens(desk: DeskFolder = _HERE, as_json: opt.Json = False) -> None:
    """List who has a token, in which role, and until when."""
    now, found = datetime.now(UTC), _store(desk).all()
    if as_json:
        facts = [{"name": token.name, "role": str(token.role), "ends": token.ends, "counts": token.counts(now)}
                 for token in found]  # fmt: skip
        print_json(json.dumps(facts, indent=1))
        return
    print_facts(out(), [(token.name, f"{token.role}, {_stands(token, now)}") for token in found]
                or [("Tokens", "none: expunge dashboard token add NAME --role ROLE")])  # fmt: skip


@token_app.command("revoke", no_args_is_help=True)
@guarded
def revoke(name: Name, desk: DeskFolder = _HERE) -> None:
    """End the token of a person, and what is signed in with it, at once."""
    ended = _store(desk).revoke(name)
    print_facts(out(), [("Revoked", f"{token.name}, {token.role}") for token in ended])


@webhook_app.command("secret", no_args_is_help=True)
@guarded
def secret(url: Url, desk: DeskFolder = _HERE) -> None:
    """Make the secret that notices to a URL are signed with, anew if there was one."""
    from expunge.desk.service import Desk
    from expunge.desk.webhooks import subscribe

    made = subscribe(Desk(desk), url)
    print_facts(out(), [("URL", made.url), ("Secret", made.secret), ("Told from", f"entry {made.told + 1}")])


@webhook_app.command("list")
@guarded
def list_webhooks(desk: DeskFolder = _HERE) -> None:
    """List the URLs, how far each was told, and what went wrong last."""
    from expunge.desk.service import Desk
    from expunge.desk.webhooks import subscriptions

    office = Desk(desk)
    known = {found.url: found for found in subscriptions(office)}
    rows = [(url, f"told up to entry {known[url].told} {known[url].problem}".strip() if url in known else
             f"no secret yet: expunge dashboard webhook secret {url}") for url in office.config.webhooks]  # fmt: skip
    print_facts(out(), rows or [("Webhooks", "none in desk.yaml")])


@webhook_app.command("deliver")
@guarded
def deliver(desk: DeskFolder = _HERE) -> None:
    """Send what is outstanding now; a running dashboard does so by itself."""
    from expunge.desk.service import Desk
    from expunge.desk.webhooks import deliver as send

    print_facts(out(), [("Sent", str(send(Desk(desk))))])


def _store(folder: Path) -> TokenStore:
    from expunge.dashboard.tokens import TokenStore
    from expunge.desk.config import read_config

    read_config(folder)  # a wrong folder is said to be none
    return TokenStore(folder)


def _stands(token: Token, now: datetime) -> str:
    if token.revoked:
        return f"revoked {token.revoked[:10]}"
    return f"{'until' if token.counts(now) else 'ended'} {token.ends[:10]}"
