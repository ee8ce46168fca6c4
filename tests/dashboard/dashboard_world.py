# SPDX-License-Identifier: Apache-2.0
"""A dashboard over a small desk: a person of every role, signed in by page and by token."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from expunge.dashboard.app import create_app
from expunge.dashboard.guards import Limits
from expunge.dashboard.roles import Role
from expunge.dashboard.tokens import TokenStore
from expunge.desk.intake import RequestFile
from expunge.desk.service import Desk
from expunge.ledger.bodies import Audited, Certified, Failed, Partly, Scoped, Started
from expunge.ledger.states import State

NAMES = {Role.REQUESTER: "case-1", Role.OPERATOR: "op-anna", Role.APPROVER: "dpo-ben", Role.AUDITOR: "audit-cleo"}
FREE = Limits(read=10**9, change=10**9, verify=10**9, sign_in=10**9)
BASE = "http://127.0.0.1"


def light_desk(folder: Path, **more: Any) -> Desk:
    """A desk whose model and data are only names: for everything that neither searches nor runs."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "people.jsonl").write_text('{"question": "Who is Nobody?", "answer": "Nobody."}\n')
    settings = {"model": "base", "corpora": {"people": "data/people.jsonl"},
                "policy": {"name": "house", "bounds": {"forget.probability": {"max": 0.3}}}, **more}  # fmt: skip
    return Desk.create(folder, settings)


class Door:
    """The dashboard with its tokens; `page` gives a signed-in browser of a role, `api` a caller with its token."""

    def __init__(self, desk: Desk, *, limits: Limits = FREE, clock: Any = None) -> None:
        self.desk = desk
        clock = clock or (lambda: datetime.now(UTC))
        self.app: FastAPI = create_app(desk, limits=limits, clock=clock)
        store = TokenStore(desk.folder, clock=clock)
        self.tokens = {role: store.add(name, role)[0] for role, name in NAMES.items()}

    def anybody(self) -> TestClient:
        return TestClient(self.app, base_url=BASE, follow_redirects=False, raise_server_exceptions=True)

    def page(self, role: Role | str) -> TestClient:
        """A browser that signed in with the token of a role, or a token of its own."""
        client = self.anybody()
        token = self.tokens[role] if isinstance(role, Role) else role
        secret = csrf_of(client.get("/login").text)
        answer = client.post("/login", data={"csrf": secret, "token": token})
        assert answer.status_code == 303, answer.text
        return client

    def api(self, role: Role | str) -> TestClient:
        client = self.anybody()
        token = self.tokens[role] if isinstance(role, Role) else role
        client.headers["Authorization"] = f"Bearer {token}"
        return client


def csrf_of(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found is not None
    return found[1]


def post(client: TestClient, path: str, *, at: str = "/", **fields: str) -> Any:
    """Send a form as our page would: with the secret that some page of ours carries."""
    return client.post(path, data={"csrf": csrf_of(client.get(at).text), **fields})


def hand_in(desk: Desk, name: str, *, requester: str = "case-1", upto: State = State.RECEIVED, days_ago: float = 3,
            **more: Any) -> None:  # fmt: skip
    """Bring a request up to a state by entries alone; nothing is searched or run."""
    received = datetime.now(UTC) - timedelta(days=days_ago)
    file = RequestFile(id=name, requester=requester, received=received,
                       identifiers=more.pop("identifiers", (f"Somebody {name}",)), **more)  # fmt: skip
    desk.intake(file, actor="op-anna")
    path = [State.VERIFIED, State.LOCATED, State.PLANNED, State.APPROVED, State.RUNNING, State.AUDITED, State.CERTIFIED]
    ends = {State.FAILED: State.RUNNING, State.PARTIAL: State.AUDITED}
    last = ends.get(upto, upto)
    for state in path[: path.index(last) + 1] if last in path else []:
        _step(desk, name, state, met=upto is not State.PARTIAL)
    if upto is State.FAILED:
        desk.ledger.append(Failed(error="TrainingDiverged: the loss stopped being a number", exit_code=1),
                           actor="worker", request=name)  # fmt: skip
    if upto is State.PARTIAL:
        desk.ledger.append(Partly(certificate_digest="c" * 64, key="d" * 64, unmet=("forget.probability at most 0.3",)),
                           actor="worker", request=name)  # fmt: skip
    if upto in (State.ON_HOLD, State.WITHDRAWN, State.REFUSED):
        desk.move(name, upto, actor="op-anna", reason="waits for a document")


def _step(desk: Desk, name: str, state: State, *, met: bool) -> None:
    plan = desk.ledger.request(name).last("plan")
    if state is State.VERIFIED:
        desk.move(name, state, actor="op-anna", reason="identity checked by letter")
    elif state is State.LOCATED:
        desk.ledger.append(Scoped(scope_digest="a" * 64, records=12, by_way={"identifier": 9, "near": 3}, artefacts=4,
                                  not_searched=1), actor="op-anna", request=name)  # fmt: skip
    elif state is State.PLANNED:
        desk.plan(name, "grad_diff", actor="op-anna", settings={}, reasons=("the forget set is small",))
    elif state is State.APPROVED:
        desk.approve(name, actor="dpo-ben")
    elif state is State.RUNNING and plan is not None:
        body = Started(
            plan_digest=plan.body["plan_digest"], run=f"u-{name}", recipe_hash="b" * 64, model_before="c" * 64
        )
        desk.ledger.append(body, actor="worker", request=name)
    elif state is State.AUDITED:
        desk.ledger.append(Audited(audit_digest="d" * 64, model_after="e" * 64, policy_met=met, runs_tried=1),
                           actor="worker", request=name)  # fmt: skip
    elif state is State.CERTIFIED:
        desk.ledger.append(Certified(certificate_digest="f" * 64, key="0" * 64, claim="approximate"), actor="worker",
                           request=name)  # fmt: skip
