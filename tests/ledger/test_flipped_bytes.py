# SPDX-License-Identifier: Apache-2.0
"""One flipped bit, wherever: in a model, a certificate, a ledger or a key; verification fails and names the place."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from expunge.errors import VerificationFailed
from expunge.ledger.bodies import Approved, Moved, Note, Planned, Received, Scoped
from expunge.ledger.canonical import canonical
from expunge.ledger.export import check_export, export_ledger, read_head
from expunge.ledger.keys import generate_key, trusted_keys
from expunge.ledger.revocations import RevocationList, read_list, sign_list
from expunge.ledger.states import State
from expunge.ledger.store import Ledger

A = "a" * 64
DUE = datetime(2026, 4, 1, 12, tzinfo=UTC)
PLACES = {"place": st.floats(0, 1, exclude_max=True), "bit": st.integers(0, 7)}
COLUMNS = ("at", "actor", "request", "kind", "state", "once", "body", "previous", "hash")


class Evidence:
    """A ledger with its export and signed head, a key and a signed list, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.database = folder, folder / "ledger.db"
        self.key = generate_key(folder / "keys" / "desk")
        self.public = folder / "keys" / "desk.pub"
        ledger = Ledger(self.database)
        plan = Planned(plan_digest=A, route="approximate", method="npo", claim="approximate", policy="house-1",
                       policy_digest=A, predicted_seconds=1.5e-7, predicted_bytes=10**6)  # fmt: skip
        scope = Scoped(scope_digest=A, records=2, by_way={"id": 2}, artefacts=1, not_searched=0)
        received = Received(due=DUE, requester="case-1", subject_digest=A, basis="§ 17, Ärztekammer")
        for body, actor in ((received, "op"), (Moved(to=State.VERIFIED), "op"), (scope, "op"), (plan, "op"),
                            (Approved(plan_digest=A), "boss")):  # fmt: skip
            ledger.append(body, actor=actor, request="r1", once=f"r1:{body.kind}")
        ledger.append(Note(text="a remark"), actor="op")
        self.events = list(ledger.events())
        self.head = ledger.head()
        self.exported, head_file = folder / "ledger.jsonl", export_ledger(ledger, folder / "ledger.jsonl", key=self.key)
        assert head_file is not None
        self.head_file = head_file
        ledger.close()
        self.list = folder / "revoked.json"
        self.list.write_bytes(sign_list(RevocationList(entries=()), self.key).to_bytes())

    def trusted(self) -> Any:
        return trusted_keys(self.public)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return Evidence(tmp_path_factory.mktemp("evidence"))


def flip(raw: bytes, place: float, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[int(place * len(raw))] ^= 1 << bit
    return bytes(changed)


def flipped(evidence: Evidence, name: str, place: float, bit: int) -> Path:
    """Return a copy of one of the files with a bit flipped."""
    source = evidence.folder / name
    path = evidence.folder / f"flipped{''.join(source.suffixes)}"
    path.write_bytes(flip(source.read_bytes(), place, bit))
    return path


@given(**PLACES)
@settings(max_examples=100, deadline=None)
@example(place=0.999, bit=0)
def test_an_exported_ledger(evidence: Evidence, place: float, bit: int) -> None:
    path = flipped(evidence, "ledger.jsonl", place, bit)
    line = evidence.exported.read_bytes()[: int(place * path.stat().st_size)].count(b"\n") + 1
    problems = check_export(path, head=evidence.head)
    assert problems
    assert problems[0].seq in (line, line + 1)  # a changed hash shows where the next entry does not follow


@given(**PLACES)
@settings(max_examples=60, deadline=None)
def test_a_public_key(evidence: Evidence, place: float, bit: int) -> None:
    path = flipped(evidence, "keys/desk.pub", place, bit)
    with pytest.raises(VerificationFailed, match=rf"{path}|no trusted key signed it"):
        read_head(evidence.head_file, trusted_keys(path))


@given(**PLACES)
@settings(max_examples=50, deadline=None)
def test_a_signed_head_and_a_signed_list(evidence: Evidence, place: float, bit: int) -> None:
    with pytest.raises(VerificationFailed):
        read_head(flipped(evidence, "ledger.head.json", place, bit), evidence.trusted())
    with pytest.raises(VerificationFailed):
        read_list(flipped(evidence, "revoked.json", place, bit), evidence.trusted())


@given(column=st.sampled_from(COLUMNS), row=st.integers(0, 5), **PLACES)
@settings(max_examples=100, deadline=None)
def test_a_cell_of_the_ledgers_table(evidence: Evidence, column: str, row: int, place: float, bit: int) -> None:
    whole = asdict(evidence.events[row]) | {"body": canonical(evidence.events[row].body).decode()}
    if whole[column] is None:
        return
    path = evidence.folder / "cell.db"
    shutil.copy(evidence.database, path)
    value = flip(str(whole[column]).encode(), place, bit)
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER events_no_update")
        raw.execute(f"UPDATE events SET {column} = CAST(? AS TEXT) WHERE seq = ?", (value, row + 1))
    raw.close()
    problems = verified(path)
    assert problems
    assert problems[0].startswith((f"entry {row + 1} ", f"entry {row + 2} ", "entry 0 the database cannot be read"))


def verified(path: Path) -> list[str]:
    with closing(Ledger(path)) as ledger:
        return [f"entry {problem.seq} {problem.what}" for problem in ledger.verify()]


@given(**PLACES)
@settings(max_examples=100, deadline=None)
@example(place=0.0, bit=3)
def test_the_file_of_the_database(evidence: Evidence, place: float, bit: int) -> None:
    """Bytes that carry no entry may be anything; whatever is read and not complained about is what was written."""
    path = flipped(evidence, "ledger.db", place, bit)
    try:
        with suppress(VerificationFailed), closing(Ledger(path)) as ledger:
            assert ledger.verify() or list(ledger.events()) == evidence.events
    finally:
        for leftover in evidence.folder.glob("flipped.db-*"):
            leftover.unlink()
