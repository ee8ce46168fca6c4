# SPDX-License-Identifier: Apache-2.0
"""The list of certificates and keys that no longer count, signed like a certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from expunge.errors import VerificationFailed
from expunge.ledger.bodies import Digest, Reason
from expunge.ledger.dsse import Envelope, check_signature, read_envelope, seal
from expunge.ledger.keys import PublicKey, SigningKey
from expunge.ledger.store import Event

LIST_TYPE = "application/vnd.expunge.revocations+json"


class Revocation(BaseModel):
    """One entry: what no longer counts, since when, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: Literal["certificate", "key"]
    digest: Digest
    since: AwareDatetime
    reason: Reason


class RevocationList(BaseModel):
    """All of them, as of some entry of the ledger."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    entries: tuple[Revocation, ...]

    def find(self, what: str, digest: str) -> Revocation | None:
        """Return the entry on a certificate or a key, or None."""
        return next((e for e in self.entries if e.what == what and e.digest == digest), None)


def revocation_list(events: Iterable[Event]) -> RevocationList:
    """Return the list that a ledger holds."""
    entries = [
        Revocation.model_validate({**event.body, "since": event.at}) for event in events if event.kind == "revocation"
    ]
    return RevocationList(entries=tuple(entries))


def sign_list(found: RevocationList, key: SigningKey) -> Envelope:
    """Return the signed list."""
    return seal(found.model_dump(mode="json"), LIST_TYPE, key)


def read_list(path: Path, trusted: Mapping[str, PublicKey]) -> RevocationList:
    """Return a signed list.

    Raises:
        VerificationFailed: if it cannot be read, is not signed by a trusted key, or is signed by one it revokes.
    """
    try:
        envelope = read_envelope(path.read_bytes())
        key = check_signature(envelope, trusted, payload_type=LIST_TYPE)
        found = RevocationList.model_validate(envelope.value())
    except OSError as error:
        raise VerificationFailed(f"cannot be read: {error.strerror}", field="revocations", value=str(path)) from error
    except ValidationError as error:
        raise VerificationFailed("is no list of revocations", field="revocations", value=str(path)) from error
    if found.find("key", key.id):
        raise VerificationFailed("is signed by a key that it revokes", field="revocations", value=key.id[:16],
                                 remedy="Sign it with a key that still counts")  # fmt: skip
    return found
