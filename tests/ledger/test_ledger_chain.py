# SPDX-License-Identifier: Apache-2.0
"""The chain: what it holds, what it refuses, and what it notices."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from expunge.claims import ClaimKind
from expunge.errors import RecipeError
from expunge.ledger.bodies import (
    Approved,
    Audited,
    Certified,
    Extended,
    Failed,
    Moved,
    Note,
    Partly,
    Planned,
    Received,
    Scoped,
    Started,
)  # fmt: skip
from expunge.ledger.states import MOVES, State, allowed
from expunge.ledger.store import GENESIS, Ledger
from expunge.ledger.tables import metadata

A, B, C = "a" * 64, "b" * 64, "c" * 64
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DUE = datetime(2026, 4, 1, 12, tzinfo=UTC)
PLAN = Planned(plan_digest=A, route="approximate", method="npo", claim=ClaimKind.APPROXIMATE,
               policy="house-1", policy_digest=C)  # fmt: skip


def received(due: datetime = DUE) -> Received:
    return Received(due=due, requester="case-17", subject_digest=A)


def opened(path: Path, **more: bool) -> Ledger:
    return Ledger(path / "ledger.db", clock=lambda: NOW, **more)


def planned(ledger: Ledger, name: str = "r1", actor: str = "op") -> None:
    ledger.append(received(), actor="op", request=name)
    ledger.append(Moved(to=State.VERIFIED), actor="op", request=name)
    ledger.append(Scoped(scope_digest=B, records=3, artefacts=1, not_searched=2), actor="op", request=name)
    ledger.append(PLAN, actor=actor, request=name)


def running(ledger: Ledger, name: str = "r1") -> None:
    planned(ledger, name)
    ledger.append(Approved(plan_digest=A), actor="boss", request=name)
    ledger.append(Started(plan_digest=A, run="run-1", recipe_hash=B, model_before=B), actor="worker", request=name)


def test_every_entry_is_sealed_over_the_one_before(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.head() == (0, GENESIS)
    running(ledger)
    entries = list(ledger.events())
    assert [e.seq for e in entries] == [1, 2, 3, 4, 5, 6]
    assert [e.previous for e in entries] == [GENESIS, *(e.hash for e in entries[:-1])]
    assert all(e.hash == e.sealed() for e in entries)
    assert ledger.head() == (6, entries[-1].hash)
    assert ledger.verify() == []
    assert [e.seq for e in ledger.events(after=4)] == [5, 6]


def test_what_comes_back_is_what_was_said(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    running(ledger)
    view = ledger.request("r1")
    assert (view.state, view.what, view.requester, view.due) == (State.RUNNING, "erasure", "case-17", DUE)
    assert view.days_left(datetime(2026, 3, 31, 12, tzinfo=UTC)) == 1
    assert view.days_left(datetime(2026, 4, 2, 12, tzinfo=UTC)) == -1
    assert view.last("plan").body["claim"] == "approximate"
    assert view.last("audit") is None


def test_requests_are_listed_by_what_is_due_first(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for name, month in (("late", 6), ("soon", 4), ("mid", 5)):
        ledger.append(received(DUE.replace(month=month)), actor="op", request=name)
    ledger.append(Moved(to=State.REFUSED, reason="identity not shown"), actor="op", request="mid")
    assert [view.id for view in ledger.requests()] == ["soon", "mid", "late"]
    assert [view.id for view in ledger.requests(State.RECEIVED)] == ["soon", "late"]
    assert ledger.requests(State.CERTIFIED) == []


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE events SET actor = 'somebody' WHERE seq = 2", "was changed after it was written"),
        ("UPDATE events SET body = replace(body, 'case-17', 'case-18') WHERE seq = 1", "was changed"),
        ("DELETE FROM events WHERE seq = 2", "missing"),
        ("UPDATE events SET seq = 99 WHERE seq = 4", "missing"),
    ],
)
def test_tampering_is_noticed_and_placed(tmp_path: Path, statement: str, told: str) -> None:
    ledger = opened(tmp_path)
    planned(ledger)
    with sqlite3.connect(tmp_path / "ledger.db") as raw:
        raw.execute("DROP TRIGGER events_no_update")
        raw.execute("DROP TRIGGER events_no_delete")
        raw.execute(statement)
    found = opened(tmp_path).verify()
    assert found
    assert told in found[0].what


def test_a_cut_end_is_noticed_by_a_head_kept_elsewhere(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    planned(ledger)
    kept = ledger.head()
    assert ledger.verify(head=kept) == []
    with sqlite3.connect(tmp_path / "ledger.db") as raw:
        raw.execute("DROP TRIGGER events_no_delete")
        raw.execute("DELETE FROM events WHERE seq = 4")
    shorter = opened(tmp_path)
    assert shorter.verify() == []
    assert "ends at 3" in shorter.verify(head=kept)[0].what
    assert "kept elsewhere" in shorter.verify(head=(3, "f" * 64))[0].what


def test_a_forged_move_is_noticed_even_with_a_right_seal(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.append(received(), actor="op", request="r1")
    last = list(ledger.events())[-1]
    from dataclasses import asdict, replace

    from expunge.ledger.canonical import canonical

    forged = replace(last, seq=2, previous=last.hash, kind="move", state=State.MONITORED,
                     body={"to": "monitored", "reason": ""})  # fmt: skip
    row = asdict(forged) | {"hash": forged.sealed(), "body": canonical(forged.body).decode()}
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    with engine.begin() as connection:
        connection.execute(metadata.tables["events"].insert().values(**row))
    assert "cannot become monitored" in opened(tmp_path).verify()[0].what


def test_moves_that_are_not_allowed_are_refused(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.append(received(), actor="op", request="r1")
    for body in (PLAN, Approved(plan_digest=A), Moved(to=State.CERTIFIED)):
        with pytest.raises(RecipeError):
            ledger.append(body, actor="boss", request="r1")
    assert ledger.head()[0] == 1


@pytest.mark.parametrize("state", list(State))
def test_every_state_but_the_last_ones_leads_on(state: State) -> None:
    final = {State.REFUSED, State.DUPLICATE, State.WITHDRAWN}
    assert bool(allowed(state, held_in=State.VERIFIED)) is (state not in final)
    assert all(isinstance(to, State) for to in MOVES[state])


def test_a_request_on_hold_goes_back_to_where_it_was(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.append(received(), actor="op", request="r1")
    ledger.append(Moved(to=State.VERIFIED), actor="op", request="r1")
    ledger.append(Moved(to=State.ON_HOLD, reason="identity in doubt"), actor="op", request="r1")
    with pytest.raises(RecipeError, match="withdrawn, verified"):
        ledger.append(Moved(to=State.RECEIVED), actor="op", request="r1")
    ledger.append(Moved(to=State.VERIFIED), actor="op", request="r1")
    assert ledger.request("r1").state is State.VERIFIED
    assert ledger.verify() == []


def test_four_eyes(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    planned(ledger, actor="op")
    with pytest.raises(RecipeError, match="somebody else"):
        ledger.append(Approved(plan_digest=A), actor="op", request="r1")
    with pytest.raises(RecipeError, match="not the plan"):
        ledger.append(Approved(plan_digest=B), actor="boss", request="r1")
    ledger.append(Approved(plan_digest=A), actor="boss", request="r1")
    alone = opened(tmp_path, four_eyes=False)
    planned(alone, "r2", actor="op")
    alone.append(Approved(plan_digest=A), actor="op", request="r2")


def test_no_certificate_where_the_policy_was_not_met(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    running(ledger)
    ledger.append(Audited(audit_digest=A, model_after=B, policy_met=False, runs_tried=1), actor="w", request="r1")
    with pytest.raises(RecipeError, match="did not meet"):
        ledger.append(Certified(certificate_digest=A, key=B, claim=ClaimKind.APPROXIMATE), actor="w", request="r1")
    ledger.append(Partly(certificate_digest=A, key=B, unmet=("forget_quality",)), actor="w", request="r1")
    assert ledger.request("r1").state is State.PARTIAL


def test_a_deadline_is_extended_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.append(received(), actor="op", request="r1")
    later = Extended(due=DUE.replace(month=6), reason="many systems")
    ledger.append(later, actor="op", request="r1")
    assert ledger.request("r1").due == DUE.replace(month=6)
    with pytest.raises(RecipeError, match="extended before"):
        ledger.append(later, actor="op", request="r1")


def test_once_writes_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    running(ledger)
    first = ledger.append(Failed(error="out of memory", exit_code=1), actor="w", request="r1", once="r1:end")
    again = ledger.append(Failed(error="out of memory", exit_code=1), actor="w", request="r1", once="r1:end")
    assert first == again
    assert ledger.head()[0] == first.seq


def test_words_and_unknown_fields_are_refused(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.append(received(), actor="op", request="r1")
    with pytest.raises(RecipeError, match="claims removal"):
        ledger.append(Note(text="the data is deleted"), actor="op", request="r1")
    with pytest.raises(ValueError, match="Extra inputs"):
        Scoped(scope_digest=A, records=1, artefacts=1, not_searched=0, text="Ada Lovelace")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="requester"):
        Received(due=DUE, requester="Ada Lovelace <ada@example.org>", subject_digest=A)


@pytest.mark.parametrize("name", ["Ada Lovelace", "ada@example.org", "", "x" * 65])
def test_people_are_named_by_pseudonyms(tmp_path: Path, name: str) -> None:
    ledger = opened(tmp_path)
    for who, request in ((name, "r1"), ("op", name)):
        with pytest.raises(RecipeError, match="no pseudonym"):
            ledger.append(received(), actor=who, request=request)
    assert ledger.head() == (0, GENESIS)


def test_a_request_id_is_taken_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.append(received(), actor="op", request="r1")
    with pytest.raises(RecipeError, match="there is a request"):
        ledger.append(received(), actor="op", request="r1")
    with pytest.raises(RecipeError, match="no such request"):
        ledger.append(Note(text="hm"), actor="op", request="r2")
    with pytest.raises(RecipeError, match="no such request"):
        ledger.request("r2")


def test_shredding_a_salt_ends_matching_and_leaves_no_bytes(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    salt = ledger.salts.of("r1")
    assert ledger.salts.digest("r1", "Ada  LOVELACE") == ledger.salts.digest("r1", "ada lovelace")
    assert ledger.salts.digest("r1", "ada") != ledger.salts.digest("r2", "ada")
    ledger.salts.shred("r1")
    with pytest.raises(RecipeError, match="shredded"):
        ledger.salts.of("r1")
    ledger.close()
    assert not any(salt in path.read_bytes() for path in tmp_path.iterdir())


def test_other_databases_are_refused() -> None:
    with pytest.raises(RecipeError, match="unknown database"):
        Ledger("mysql://somewhere/x")
