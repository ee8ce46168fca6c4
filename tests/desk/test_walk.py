# SPDX-License-Identifier: Apache-2.0
"""One request through the whole desk: what `expunge demo --request` does, on a model that learned nothing."""

from __future__ import annotations

import json
import socket
import statistics
from pathlib import Path
from typing import Any, NoReturn

import pytest
from desk_world import FAILS, MEETS, open_desk
from typer.testing import CliRunner

from expunge.api.workspace import Silent
from expunge.claims import lint
from expunge.cli.main import app
from expunge.desk.demo import BUDGET, POLICY, RECIPE, Moment, Timeline, Walked, walk
from expunge.desk.intake import RequestFile
from expunge.desk.service import Desk
from expunge.ledger.states import State

STUDY = Path(__file__).parents[2] / "results" / "archive-study.json"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> NoReturn:
        raise AssertionError(f"the network was asked for: {given}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def walked(folder: Path, policy: dict[str, Any]) -> tuple[Desk, Walked, list[Moment]]:
    desk, told = open_desk(folder, policy=policy, attacks=["quantisation"]), list[Moment]()
    person = next(e.answer for e in desk.corpora()["archive"] if e.subject == "p009")
    file = RequestFile(id="demo-1", requester="case-1", samples=(person,), record_ids=("p009-f0",))
    return desk, walk(desk, file, timeline=Timeline(told.append), watcher=Silent()), told


@pytest.mark.parametrize(("policy", "state"), [(MEETS, State.CERTIFIED), (FAILS, State.PARTIAL)])
def test_a_request_is_walked_from_intake_to_a_verified_certificate(
    tmp_path: Path, policy: dict[str, Any], state: State
) -> None:
    desk, found, told = walked(tmp_path / "desk", policy)
    assert [moment.what for moment in told] == [
        "received", "verified", "located", "planned", "approved", "worked off", str(state), "verified",
    ]  # fmt: skip
    assert [moment.seconds for moment in told] == sorted(moment.seconds for moment in told)
    assert tuple(told) == found.timeline
    assert found.state is desk.ledger.request("demo-1").state is state
    assert found.unmet == ([] if state is State.CERTIFIED else ["forget.probability at least 0.999"])
    assert not any(lint(f"{moment.what}: {moment.detail}") for moment in told)
    assert "quantisation" in found.statement.predicate.attacks_run
    actors = {event.kind: event.actor for event in desk.ledger.request("demo-1").events}
    assert actors["plan"] != actors["approval"]


def test_the_demos_limits_are_those_of_the_published_study() -> None:
    study = json.loads(STUDY.read_text())

    def median(anchor: str, metric: str) -> float:
        return statistics.median(entry["metrics"][metric]["value"] for entry in study["anchors"][anchor].values())

    for metric, bound in POLICY["bounds"].items():
        reference, target = median("reference", metric), median("target", metric)
        assert bound["max"] == pytest.approx(reference + (target - reference) / 4, abs=1e-3)
    assert 1 - BUDGET["share"] == study["rule"]["keep_share"]
    assert {study["rows"][name]["chosen"]["learning_rate"] for name in ("npo", "wga")} == {
        RECIPE["training"]["learning_rate"]
    }


@pytest.mark.slow
def test_the_demo_prints_the_timeline_and_what_may_be_said(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["demo", "--request", "--people", "10", "-o", str(tmp_path / "demo")])
    text = " ".join(said.stdout.split())
    assert said.exit_code == 0, text
    for word in ("received", "located", "approved", "verified", "May be said approximate", "Not tested", "Came back"):
        assert word in text
    again = text.partition("Check again expunge ")[2].split()
    assert CliRunner().invoke(app, again).exit_code == 0
