# SPDX-License-Identifier: Apache-2.0
"""The ledger as a file: one canonical line an entry, and the head signed, to keep where the ledger is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.errors import VerificationFailed
from expunge.ledger.canonical import canonical
from expunge.ledger.dsse import Envelope, check_signature, read_envelope, seal
from expunge.ledger.keys import PublicKey, SigningKey
from expunge.ledger.states import State
from expunge.ledger.store import Event, Ledger, Problem, check_chain

HEAD_TYPE = "application/vnd.expunge.ledger-head+json"
_FIELDS = {field.name for field in fields(Event)}


def export_ledger(ledger: Ledger, path: Path, *, key: SigningKey | None = None) -> Path | None:
    """Write every entry as JSON Lines; with a key, the signed head beside it (`.head.json`), and return its path.

    Args:
        ledger: to be written.
        path: of the file.
        key: signs the head.
    """
    last: Event | None = None
    with path.open("wb") as file:
        for last in ledger.events():
            file.write(canonical(asdict(last)) + b"\n")
    if key is None or last is None:
        return None
    envelope = seal(
        {"seq": last.seq, "hash": last.hash, "signed": datetime.now(UTC).isoformat(timespec="seconds")}, HEAD_TYPE, key
    )
    head = path.with_suffix(".head.json")
    head.write_bytes(envelope.to_bytes())
    return head


def read_head(path: Path, trusted: Mapping[str, PublicKey]) -> tuple[int, str]:
    """Return number and hash of a signed head.

    Raises:
        VerificationFailed: if no trusted key signed it.
    """
    envelope: Envelope = read_envelope(path.read_bytes())
    check_signature(envelope, trusted, payload_type=HEAD_TYPE)
    value = envelope.value()
    return int(value["seq"]), str(value["hash"])


def exported_events(path: Path) -> Iterator[Event]:
    """Yield the entries of an exported file.

    Raises:
        VerificationFailed: for a line that is no entry, or not in the form in which it was written.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _entry(line, number)


def check_export(path: Path, *, head: tuple[int, str] | None = None) -> list[Problem]:
    """Return what is wrong with an exported ledger; empty if nothing is."""
    try:
        return check_chain(exported_events(path), head=head)
    except VerificationFailed as error:
        return [Problem(int(str(error.value)), error.problem)]


def _entry(line: bytes, number: int) -> Event:
    try:
        value: dict[str, Any] = json.loads(line)
        if set(value) != _FIELDS or canonical(value) + b"\n" != line:
            raise ValueError("bytes of the line were changed")
        return Event(**{**value, "state": None if value["state"] is None else State(value["state"])})
    except (ValueError, TypeError) as error:
        raise VerificationFailed(f"is no entry: {error}", field="line", value=number) from error
