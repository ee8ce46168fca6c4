# SPDX-License-Identifier: Apache-2.0
"""What each kind of entry says. There is no field for text of a person: digests, counts, names of ours, and reasons.

Every body is strict: an unknown key is refused, so that no text slips in beside what is meant.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from expunge.claims import ClaimKind, lint
from expunge.errors import RecipeError
from expunge.ledger.states import State

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^\r\n]*$")]
#: What names people and requests in the ledger: no blanks, no addresses.
HANDLE = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"
Handle = Annotated[str, StringConstraints(pattern=HANDLE)]
Reason = Annotated[str, StringConstraints(max_length=500)]


class Body(BaseModel):
    """What an entry says; `kind` names it, `moves_to` the state it brings a request into (None: none of its own)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str] = ""
    moves_to: ClassVar[State | None] = None


class Received(Body):
    """A request came in."""

    kind: ClassVar[str] = "request"
    moves_to: ClassVar[State | None] = State.RECEIVED
    what: Literal["erasure", "rectification", "copyright", "contract", "safety"] = "erasure"
    deadline: Word = "gdpr"
    due: AwareDatetime
    basis: Reason = Field("", description="reference of the legal basis, not its text")
    requester: Handle = Field(description="a pseudonym; who stands behind it is kept elsewhere")
    subject_digest: Digest = Field(description="salted digest of the identifiers, to find duplicates")
    file_digest: Digest | None = Field(None, description="digest of the request file, which stays with the desk")


class Moved(Body):
    """A request was moved by a person or a rule, for a reason."""

    kind: ClassVar[str] = "move"
    to: State
    reason: Reason = ""


class Extended(Body):
    """The deadline was extended, once, for a reason that the requester was told."""

    kind: ClassVar[str] = "extension"
    due: AwareDatetime
    reason: Reason


class Scoped(Body):
    """What was found, by digests and counts, and how many places could not be searched."""

    kind: ClassVar[str] = "scope"
    moves_to: ClassVar[State | None] = State.LOCATED
    scope_digest: Digest
    records: int = Field(ge=0)
    by_way: dict[Word, int] = Field(default_factory=dict)
    artefacts: int = Field(ge=0)
    not_searched: int = Field(ge=0)


class Planned(Body):
    """What is going to be done, by which route, under which policy fixed beforehand."""

    kind: ClassVar[str] = "plan"
    moves_to: ClassVar[State | None] = State.PLANNED
    plan_digest: Digest
    route: Word
    method: Word
    claim: ClaimKind
    policy: Word
    policy_digest: Digest
    predicted_seconds: float | None = Field(None, ge=0)
    predicted_bytes: int | None = Field(None, ge=0)


class Approved(Body):
    """A second person approved the plan as it is."""

    kind: ClassVar[str] = "approval"
    moves_to: ClassVar[State | None] = State.APPROVED
    plan_digest: Digest


class Started(Body):
    """The run of a plan began."""

    kind: ClassVar[str] = "run"
    moves_to: ClassVar[State | None] = State.RUNNING
    plan_digest: Digest
    run: Word
    recipe_hash: Digest
    model_before: Digest


class Audited(Body):
    """The changed model was measured."""

    kind: ClassVar[str] = "audit"
    moves_to: ClassVar[State | None] = State.AUDITED
    audit_digest: Digest
    model_after: Digest
    policy_met: bool
    runs_tried: int = Field(ge=1)
    attacks_run: tuple[Word, ...] = ()


class Certified(Body):
    """A certificate was signed over what was measured, with the policy met."""

    kind: ClassVar[str] = "certificate"
    moves_to: ClassVar[State | None] = State.CERTIFIED
    certificate_digest: Digest
    key: Digest
    claim: ClaimKind


class Partly(Body):
    """A statement was signed over what was measured, with the policy not met."""

    kind: ClassVar[str] = "partial"
    moves_to: ClassVar[State | None] = State.PARTIAL
    certificate_digest: Digest
    key: Digest
    unmet: tuple[Word, ...] = Field(min_length=1)


class Failed(Body):
    """The run or its audit ended without a result."""

    kind: ClassVar[str] = "failure"
    moves_to: ClassVar[State | None] = State.FAILED
    error: Word
    exit_code: int = Field(ge=1)


class Deployed(Body):
    """A model is in use since now."""

    kind: ClassVar[str] = "deployment"
    moves_to: ClassVar[State | None] = State.DEPLOYED
    model: Digest
    where: Word


class Destroyed(Body):
    """Files were destroyed: an earlier model, a scope, an adapter."""

    kind: ClassVar[str] = "destruction"
    what: Word
    digest: Digest


class Shredded(Body):
    """The salt of a request was destroyed: its digests can no longer be matched to anything."""

    kind: ClassVar[str] = "salt_shredded"


class Revoked(Body):
    """A certificate or a key no longer counts."""

    kind: ClassVar[str] = "revocation"
    what: Literal["certificate", "key"]
    digest: Digest
    reason: Reason


class Note(Body):
    """A remark of a person."""

    kind: ClassVar[str] = "note"
    text: Reason


BODIES: dict[str, type[Body]] = {
    body.kind: body
    for body in (Received, Moved, Extended, Scoped, Planned, Approved, Started, Audited, Certified, Partly, Failed,
                 Deployed, Destroyed, Shredded, Revoked, Note)
}  # fmt: skip


def written(body: Body) -> dict[str, Any]:
    """Return a body as JSON values, its free text checked for what may not be said.

    Raises:
        RecipeError: if a reason or note holds a sentence that is never written.
    """
    values = body.model_dump(mode="json")
    for field in ("reason", "text"):
        found = lint(values.get(field) or "")
        if found:
            raise RecipeError(f"holds what may not be said: {found[0]}", field=field, value=values[field],
                              remedy="Say what was done and measured")  # fmt: skip
    return values


def parsed(kind: str, values: dict[str, Any]) -> Body:
    """Return the body of an entry.

    Raises:
        RecipeError: if there is no such kind, or the values are none of it.
    """
    if kind not in BODIES:
        raise RecipeError("no such kind of entry", field="kind", value=kind, remedy=f"Valid: {', '.join(BODIES)}")
    try:
        return BODIES[kind].model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"is not a {kind} entry: {first['msg']}", field=".".join(map(str, first["loc"])) or "body",
                          value=first["input"] if not isinstance(first["input"], dict) else None,
                          remedy=f"Fields: {', '.join(BODIES[kind].model_fields)}") from error  # fmt: skip
