# SPDX-License-Identifier: Apache-2.0
"""Serve the dashboard, and send notices of changes of state as long as it runs."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from threading import Event, Thread

import uvicorn

from expunge.dashboard.app import create_app
from expunge.dashboard.guards import LOOPBACK
from expunge.desk.service import Desk
from expunge.desk.webhooks import deliver
from expunge.errors import ExpungeError, RecipeError

_EVERY_SECONDS = 2.0


def check_address(host: str, *, open_to_network: bool) -> None:
    """Refuse to listen beyond this machine unless that was asked for.

    Raises:
        RecipeError: naming the flag.
    """
    if not is_loopback(host) and not open_to_network:
        raise RecipeError(
            "is reached from other machines, without encryption", field="--host", value=host,
            remedy="Listen on 127.0.0.1 behind a server with TLS, or insist: --open-to-network",
        )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def serve(desk: Desk, *, host: str, port: int, names: Sequence[str] = ()) -> None:
    """Serve until interrupted.

    Args:
        desk: whose.
        host: address to listen on.
        port: to listen on.
        names: further host names under which the server may be called.
    """
    bound = f"[{host}]" if ":" in host else host
    app = create_app(desk, hosts=(*LOOPBACK, bound, *names))
    ended = Event()
    sender = Thread(target=_send, args=(desk, ended), daemon=True)
    sender.start()
    try:
        uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False, proxy_headers=False,
                    timeout_keep_alive=5, limit_concurrency=200)  # fmt: skip
    finally:
        ended.set()
        sender.join(timeout=5)


def _send(desk: Desk, ended: Event) -> None:
    """Send what is outstanding, every few seconds."""
    log = logging.getLogger("expunge")
    while not ended.wait(_EVERY_SECONDS):
        try:
            deliver(desk)
        except (ExpungeError, OSError) as error:
            log.warning("notices cannot be sent: %s", error)
