# SPDX-License-Identifier: Apache-2.0
"""Check a certificate: who signed it, over which bytes, whether it still counts, and whether it agrees with itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from expunge.errors import RecipeError, VerificationFailed
from expunge.ledger.dsse import Envelope, check_signature, read_envelope
from expunge.ledger.keys import PublicKey
from expunge.ledger.revocations import RevocationList
from expunge.ledger.statement import PAYLOAD_TYPE, Held, Predicate, Statement, check_words, statement_from, verdicts
from expunge.ledger.store import Event, check_chain
from expunge.models.digests import folder_digest


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what, whether it holds, and what is wrong if not."""

    what: str
    holds: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """Everything that was looked at, in order, and the statement if it could be read."""

    checks: tuple[Check, ...]
    statement: Statement | None = None
    key: str = ""
    failed: tuple[Check, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Collect what failed."""
        object.__setattr__(self, "failed", tuple(check for check in self.checks if not check.holds))

    def raise_failed(self) -> None:
        """Raise what failed, if anything did.

        Raises:
            VerificationFailed: naming all of it.
        """
        if self.failed:
            raise VerificationFailed(
                "; ".join(f"{check.what}: {check.detail}" for check in self.failed), field="verify",
                remedy="Do not rely on this certificate for these files",
            )  # fmt: skip


def verify_certificate(
    raw: bytes, model: Path, trusted: Mapping[str, PublicKey], *, revoked: RevocationList | None = None,
    events: Iterator[Event] | None = None, head: tuple[int, str] | None = None,
) -> Verification:  # fmt: skip
    """Check a certificate against the files it is about.

    Args:
        raw: bytes of the certificate.
        model: folder of the model.
        trusted: public keys by id.
        revoked: what no longer counts.
        events: the ledger's entries, live or exported; the certificate must be among them, unrevoked.
        head: number and hash of an entry of the ledger that was kept elsewhere.
    """
    try:
        envelope = read_envelope(raw)
        key = check_signature(envelope, trusted, payload_type=PAYLOAD_TYPE)
    except VerificationFailed as error:
        return Verification((Check("certificate", False, str(error)),))
    checks = [Check("signature", True, f"key {key.id[:16]}")]
    try:
        entries = None if events is None else list(events)
    except VerificationFailed as error:
        return Verification((*checks, Check("ledger", False, str(error))), key=key.id)
    when = None if entries is None else _issued(entries, envelope.digest)
    if entries is not None:
        checks += _ledger(entries, envelope, head, when)
    if revoked is not None:
        checks.append(_revoked(revoked, envelope, key, when))
    try:
        statement = statement_from(envelope.value())
    except (ValidationError, VerificationFailed) as error:
        return Verification((*checks, Check("statement", False, f"is none: {error}")), key=key.id)
    checks += [*_files(statement, model), _policy(statement.predicate), _words(statement)]
    return Verification(tuple(checks), statement, key.id)


def _issued(entries: list[Event], digest: str) -> str | None:
    """Return when the ledger says that a certificate was issued."""
    found = [e.at for e in entries if e.kind in ("certificate", "partial") and e.body["certificate_digest"] == digest]
    return found[0] if found else None


def _ledger(entries: list[Event], envelope: Envelope, head: tuple[int, str] | None, when: str | None) -> list[Check]:
    problems = check_chain(iter(entries), head=head)
    detail = "; ".join(f"entry {p.seq} {p.what}" for p in problems[:3]) or f"{len(entries)} entries"
    gone = any(
        e.kind == "revocation" and e.body["what"] == "certificate" and e.body["digest"] == envelope.digest
        for e in entries
    )
    return [
        Check("ledger", not problems, detail),
        Check("ledger entry", when is not None, f"issued {when}" if when else "the ledger knows no such certificate"),
        *([Check("revocation", False, "the ledger says that the certificate was revoked")] if gone else []),
    ]


def _revoked(revoked: RevocationList, envelope: Envelope, key: PublicKey, when: str | None) -> Check:
    """A revoked key still counts for what a ledger shows to have been issued before."""
    certificate, signer = revoked.find("certificate", envelope.digest), revoked.find("key", key.id)
    if certificate:
        return Check("revocation", False, f"the certificate was revoked {certificate.since:%Y-%m-%d}")
    if signer and (when is None or datetime.fromisoformat(when) >= signer.since):
        known = "" if when else "; no ledger shows that it was issued before"
        return Check("revocation", False, f"its key was revoked {signer.since:%Y-%m-%d}{known}")
    return Check("revocation", True, "not on the list")


def _files(statement: Statement, model: Path) -> list[Check]:
    if not model.is_dir():
        return [Check("model", False, f"no such folder: {model}")]
    stated = {subject.name: subject.digest["sha256"] for subject in statement.subject}
    found = folder_digest(model)
    wrong = [Check(f"model file {name}", False, "is missing") for name in sorted(stated.keys() - found.keys())]
    wrong += [Check(f"model file {name}", False, "is not in the certificate")
              for name in sorted(found.keys() - stated.keys())]  # fmt: skip
    wrong += [Check(f"model file {name}", False, "is not the file that was certified: its digest differs")
              for name in sorted(stated.keys() & found.keys()) if stated[name] != found[name]]  # fmt: skip
    return wrong or [Check("model files", True, f"{len(stated)} files")]


def _policy(predicate: Predicate) -> Check:
    """The verdicts must be those that the policy gives on the stated results, in any order: JSON keeps none."""
    held = predicate.policy
    given = verdicts(held.policy, held.budget, predicate.results, predicate.compared_with.get("target", {}))
    if sorted(given, key=_rule) != sorted(held.verdicts, key=_rule) or held.met != (
        bool(given) and all(verdict.met for verdict in given)
    ):
        return Check("policy", False, "its verdicts do not follow from the stated results")
    return Check("policy", True, f"{held.policy.name} {held.policy.version}: {'met' if held.met else 'not met'}")


def _rule(verdict: Held) -> str:
    return verdict.rule


def _words(statement: Statement) -> Check:
    try:
        check_words(statement)
    except RecipeError as error:
        return Check("words", False, str(error))
    return Check("words", True, "nothing that may not be said")
