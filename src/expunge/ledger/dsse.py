# SPDX-License-Identifier: Apache-2.0
"""Signed envelopes. Source: DSSE v1.0.2 (secure-systems-lab/dsse), envelope and protocol.

Stricter than the standard in one thing: a file must be the canonical form of its envelope, so that a change of any
byte of it, even of a blank, is a change.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.errors import VerificationFailed
from expunge.ledger.canonical import canonical
from expunge.ledger.keys import PublicKey, SigningKey


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: type and payload, each with its length before it."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with its signatures, (key id, signature)."""

    payload: bytes
    payload_type: str
    signatures: tuple[tuple[str, bytes], ...]

    def to_bytes(self) -> bytes:
        """Return the envelope as it is written to a file."""
        value = {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [{"keyid": key, "sig": base64.b64encode(sig).decode()} for key, sig in self.signatures],
        }
        return canonical(value) + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def value(self) -> dict[str, Any]:
        """Return the payload as JSON.

        Raises:
            VerificationFailed: if it is no JSON object.
        """
        try:
            found = json.loads(self.payload)
        except ValueError as error:
            raise VerificationFailed(f"the payload is no JSON: {error}", field="certificate") from error
        if not isinstance(found, dict):
            raise VerificationFailed("the payload is no JSON object", field="certificate")
        return found


def seal(value: Mapping[str, Any], payload_type: str, key: SigningKey) -> Envelope:
    """Return the signed envelope of a JSON object."""
    payload = canonical(value)
    signature = key.sign(pre_authentication(payload_type, payload))
    return Envelope(payload, payload_type, ((key.public.id, signature),))


def read_envelope(raw: bytes) -> Envelope:
    """Return the envelope of a file; its signatures are not verified yet.

    Raises:
        VerificationFailed: if it is none, or not in the form in which it was written.
    """
    try:
        value = json.loads(raw)
        envelope = Envelope(
            _decoded(value["payload"]), str(value["payloadType"]),
            tuple((str(s["keyid"]), _decoded(s["sig"])) for s in value["signatures"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationFailed(f"is no signed envelope: {error}", field="certificate",
                                 remedy="Get the file again from who issued it") from error  # fmt: skip
    if envelope.to_bytes() != raw:
        raise VerificationFailed("is not in the form in which it was written: bytes were changed", field="certificate",
                                 remedy="Get the file again from who issued it")  # fmt: skip
    return envelope


def check_signature(envelope: Envelope, trusted: Mapping[str, PublicKey], *, payload_type: str) -> PublicKey:
    """Return the trusted key that signed an envelope.

    Raises:
        VerificationFailed: if the payload is of another type, or no trusted key signed it.
    """
    if envelope.payload_type != payload_type:
        raise VerificationFailed("is of another type", field="payloadType", value=envelope.payload_type,
                                 remedy=f"Expected {payload_type}")  # fmt: skip
    message = pre_authentication(envelope.payload_type, envelope.payload)
    for name, signature in envelope.signatures:
        key = trusted.get(name)
        if key is not None and key.verify(signature, message):
            return key
    known = [name for name, _ in envelope.signatures if name in trusted]
    problem = "the signature does not fit what was signed" if known else "no trusted key signed it"
    raise VerificationFailed(problem, field="signature", value=[name[:16] for name, _ in envelope.signatures],
                             remedy="Check who issued it, and which keys you trust")  # fmt: skip


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(str(text).encode(), validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error
