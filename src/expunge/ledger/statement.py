# SPDX-License-Identifier: Apache-2.0
"""What a certificate says: a certificate of process and measurement, in the form of an in-toto statement.

Source of the form: in-toto Attestation Framework, Statement v1. The subjects are the files of the model, by digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from expunge.audit.document import AuditDocument, EstimateEntry, ModelEntry, estimates, read_audit
from expunge.audit.policy import Policy
from expunge.claims import ATTACKS, MISMATCHES, SENTENCES, ClaimKind, lint
from expunge.errors import InputDataError, RecipeError
from expunge.ledger.bodies import Digest
from expunge.models.digests import folder_digest
from expunge.runs import read_run

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:expunge:unlearning:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Subject(_Part):
    """One file of the model."""

    name: str
    digest: dict[Literal["sha256"], Digest]


class DataUsed(_Part):
    """One set of examples: how many, and the digest over them."""

    n: int
    digest: str


class Held(_Part):
    """One limit of the policy: its text, what was held against it, and whether it is met."""

    rule: str
    measured: float | None
    met: bool


class UtilityBudget(_Part):
    """How much of a metric one request may cost, relative to the model before."""

    metric: str = "model_utility"
    share: float = Field(0.05, ge=0, lt=1)

    def check(self, before: EstimateEntry | None, after: EstimateEntry | None) -> Held:
        """Return whether the value after is at least (1 - share) of the one before; a missing number is not."""
        rule = f"{self.metric} at least {1 - self.share:g} of what it was"
        if before is None or after is None or not before.value or after.value is None:
            return Held(rule=rule, measured=None, met=False)
        kept = after.value / before.value
        return Held(rule=rule, measured=kept, met=kept >= 1 - self.share)


class PolicyHeld(_Part):
    """The policy, fixed before the run, and what came of it."""

    policy: Policy
    budget: UtilityBudget | None
    verdicts: tuple[Held, ...]
    met: bool
    runs_tried: int = Field(ge=1)


class LedgerHead(_Part):
    """Where the ledger stood when the statement was signed."""

    seq: int
    hash: Digest


class Predicate(_Part):
    """What was done and measured, and what was not."""

    request: str
    what: str
    method: dict[str, Any]
    claim: ClaimKind
    sentence: str
    mismatches: tuple[str, ...]
    recipe_hash: Digest
    model_before: str
    data: dict[str, DataUsed]
    policy: PolicyHeld
    results: dict[str, EstimateEntry]
    compared_with: dict[str, dict[str, EstimateEntry]]
    attacks_run: dict[str, Any]
    attacks_not_tested: tuple[str, ...]
    not_shown: tuple[str, ...]
    environment: dict[str, Any]
    seed: int
    ledger: LedgerHead | None
    signed: AwareDatetime


class Statement(_Part):
    """The statement that is signed."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(STATEMENT_TYPE, alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=1)
    predicate_type: Literal["urn:expunge:unlearning:v1"] = Field(PREDICATE_TYPE, alias="predicateType")
    predicate: Predicate

    def to_dict(self) -> dict[str, Any]:
        """Return the statement as JSON values."""
        return self.model_dump(mode="json", by_alias=True)


def subjects(model: Path) -> tuple[Subject, ...]:
    """Return the files of a model folder as subjects.

    Raises:
        InputDataError: if there is none.
    """
    found = folder_digest(model)
    if not found:
        raise InputDataError("holds no file", field="model", value=str(model), remedy="Give the model's folder")
    return tuple(Subject(name=name, digest={"sha256": value}) for name, value in found.items())


def statement_of_run(
    folder: Path, *, request: str, what: str, policy: Policy, budget: UtilityBudget | None = None,
    head: tuple[int, str] | None = None, runs_tried: int | None = None, now: datetime | None = None,
) -> Statement:  # fmt: skip
    """Return what may be said of a finished run.

    Args:
        folder: the run folder, with its model and its audit.
        request: id of the request.
        what: kind of the request.
        policy: thresholds fixed before the run.
        budget: how much utility the request may cost.
        head: number and hash of the ledger's newest entry.
        runs_tried: runs made for this request, the chosen one among them; the run's own count by default.
        now: time of signing.

    Raises:
        InputDataError: if the run is not finished, or lacks its model or audit.
        RecipeError: if the policy differs from the one in the run's recipe.
    """
    run, document = _finished(folder)
    _check_policy(run, policy)
    name = str(run["method"]["name"])
    if name not in document.models:
        raise InputDataError("holds no measurement of the run's model", field="audit.json", value=name,
                             remedy="Audit the run again")  # fmt: skip
    claim = ClaimKind(run["claim"])
    found = Statement(
        subject=subjects(folder / "model"),
        predicate=Predicate(
            request=request, what=what, method=dict(run["method"]), claim=claim, sentence=SENTENCES[claim],
            mismatches=MISMATCHES, recipe_hash=run["recipe_hash"], model_before=run["model"]["digest"],
            data={key: DataUsed(n=value["n"], digest=value["digest"]) for key, value in run["data"].items()},
            policy=held(policy, budget, document, name, runs_tried=runs_tried or run.get("runs_tried") or 1),
            results=document.models[name].metrics,
            compared_with={key: entry.metrics for key, entry in document.models.items() if key != name},
            attacks_run={kind: document.attacks.get(kind) for kind in document.attacks_run},
            attacks_not_tested=tuple(kind for kind in ATTACKS if kind not in document.attacks_run),
            not_shown=tuple(document.not_shown), environment=document.environment,
            seed=int(run["recipe"]["seed"]), ledger=None if head is None else LedgerHead(seq=head[0], hash=head[1]),
            signed=now or datetime.now(UTC),
        ),
    )  # fmt: skip
    check_words(found)
    return found


def check_words(statement: Statement) -> None:
    """Refuse a statement that says what may not be said.

    Raises:
        RecipeError: naming the words.
    """
    for where, text in _texts(statement.to_dict()["predicate"], "predicate"):
        for problem in lint(text):
            raise RecipeError(f"says what may not be said: {problem}", field=where, remedy="Say what was measured")


def _finished(folder: Path) -> tuple[dict[str, Any], AuditDocument]:
    run = read_run(folder)
    if run.get("kind") != "run" or run.get("status") != "finished":
        raise InputDataError("is no finished run", field="run", value=str(folder), remedy="Run it to its end first")
    if not (folder / "audit.json").exists() or not (folder / "model").is_dir():
        raise InputDataError("lacks its audit or its model", field="run", value=str(folder),
                             remedy="Run it with an audit, and keep the model")  # fmt: skip
    return run, read_audit(folder / "audit.json")


def _check_policy(run: Mapping[str, Any], policy: Policy) -> None:
    """A policy that the run had is the one that counts; a later one would be chosen after the fact."""
    own = Policy.model_validate(run["recipe"].get("policy") or {})
    if own.bounds and own != policy:
        raise RecipeError("the run was made under another policy", field="policy", value=policy.name,
                          remedy="Use the policy of the run's recipe")  # fmt: skip


def held(
    policy: Policy, budget: UtilityBudget | None, document: AuditDocument, name: str, *, runs_tried: int = 1
) -> PolicyHeld:
    """Return which limits a measured model meets; without any limit nothing is met."""
    before = document.models["target"].metrics if "target" in document.models else {}
    found = verdicts(policy, budget, document.models[name].metrics, before)
    return PolicyHeld(policy=policy, budget=budget, verdicts=found, met=bool(found) and all(v.met for v in found),
                      runs_tried=runs_tried)  # fmt: skip


def verdicts(
    policy: Policy,
    budget: UtilityBudget | None,
    after: Mapping[str, EstimateEntry],
    before: Mapping[str, EstimateEntry],
) -> tuple[Held, ...]:
    """Return one verdict per limit of the policy, and that of the budget."""
    found = policy.check(estimates(ModelEntry(metrics=dict(after))))
    own = [Held(rule=v.rule, measured=v.measured, met=v.met) for v in found]
    if budget is not None:
        own.append(budget.check(before.get(budget.metric), after.get(budget.metric)))
    return tuple(own)


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield every text in a JSON value with where it stands."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(entry, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for k, entry in enumerate(value):
            yield from _texts(entry, f"{where}[{k}]")


def statement_from(value: Mapping[str, Any]) -> Statement:
    """Return the statement of a payload.

    Raises:
        ValueError: if it is none.
    """
    return Statement.model_validate_json(json.dumps(value))
