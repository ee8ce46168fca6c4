# SPDX-License-Identifier: Apache-2.0
"""The queue: approved requests are unlearned one after the other, each from the model the last one left.

Killed at any moment, the next `work` goes on where it was: what is in hand stands in a unit file before the first
ledger entry of it, every entry is written once by name, the training loop goes on from its checkpoint to the same
bytes, and a certificate is a function of the run and the ledger.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from expunge.api.attack import attack_folders
from expunge.api.job import run
from expunge.api.workspace import Silent, Watcher
from expunge.audit.document import AuditDocument, read_audit
from expunge.data.examples import Example
from expunge.data.loaders import load_examples
from expunge.data.writing import write_examples
from expunge.desk.config import located
from expunge.desk.locate.scope import text_of
from expunge.desk.notices import write_notices
from expunge.desk.service import SUPPRESSION, Desk
from expunge.errors import ExpungeError, Interrupted, RecipeError
from expunge.ledger.bodies import Audited, Body, Certified, Failed, Partly, Started
from expunge.ledger.canonical import digest
from expunge.ledger.dsse import seal
from expunge.ledger.keys import load_key
from expunge.ledger.salts import salted_digest
from expunge.ledger.statement import PAYLOAD_TYPE, held, statement_of_run
from expunge.ledger.states import State
from expunge.ledger.store import RequestView
from expunge.models.digests import file_digest, folder_digest
from expunge.recipe import Recipe, build_recipe, merge
from expunge.runs import write_json

WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Unit:
    """What is unlearned in one run: some requests under one plan, from one model.

    `planned` holds the number of each request's plan entry: planned anew, even alike, a request is another unit's.
    """

    name: str
    requests: tuple[str, ...]
    plan: str
    planned: tuple[int, ...]
    model: str
    model_digest: str


def work(desk: Desk, *, limit: int | None = None, batch: int = 1, watcher: Watcher | None = None) -> list[Unit]:
    """Work off approved requests, those due first first; return the units that were finished.

    Args:
        desk: whose.
        limit: units at most; all by default.
        batch: requests at most that are unlearned in one run; only those with equal plans share one.
        watcher: follows the runs.

    Raises:
        RecipeError: if another worker is at it.
        Interrupted: by the user; the next `work` goes on.
    """
    done: list[Unit] = []
    with _alone(desk):
        while limit is None or len(done) < limit:
            unit = _in_hand(desk) or _next(desk, batch)
            if unit is None:
                return done
            _carry_out(desk, unit, watcher or Silent())
            done.append(unit)
    return done


@contextmanager
def _alone(desk: Desk) -> Iterator[None]:
    """Hold the desk's lock; the system lets go of it when the process dies, however it dies."""
    with (desk.folder / "work.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecipeError("another worker is at it", field="desk", value=str(desk.folder),
                              remedy="Wait for it, or stop it") from error  # fmt: skip
        yield


def _in_hand(desk: Desk) -> Unit | None:
    """Return the unit that was begun and not finished, or None."""
    for path in sorted((desk.folder / "units").glob("*.json")):
        unit = _read_unit(path)
        states = {desk.ledger.request(name).state for name in unit.requests}
        if states & {State.APPROVED, State.RUNNING, State.AUDITED} and not _superseded(desk, unit):
            return unit
    return None


def _superseded(desk: Desk, unit: Unit) -> bool:
    """A unit whose requests were planned anew since is history."""
    return any(_planned(desk, name) != seq for name, seq in zip(unit.requests, unit.planned, strict=True))


def _next(desk: Desk, batch: int) -> Unit | None:
    """Write down what is done next, before anything of it is done."""
    approved = desk.ledger.requests(State.APPROVED)
    if not approved:
        return None
    plan = _plan_of(approved[0])
    names = tuple(view.id for view in approved if _plan_of(view) == plan)[: max(1, batch)]
    model = current_model(desk)
    planned = tuple(_planned(desk, name) for name in names)
    name = f"u{_count(desk):04d}-{digest([plan, *names])[:8]}"
    unit = Unit(name, names, plan, planned, model, _model_digest(model))
    (desk.folder / "units").mkdir(exist_ok=True)
    write_json(desk.folder / "units" / f"{unit.name}.json", asdict(unit))
    return unit


def current_model(desk: Desk) -> str:
    """Return the folder of the model in use: of the last request that was certified, else the one of the settings.

    A partial result is not built upon: its model stays as it is until somebody plans again or deploys it.
    """
    for event in reversed(list(desk.ledger.events())):
        if event.kind == "certificate":
            started = desk.ledger.request(str(event.request)).last("run")
            if started is not None:
                return str(desk.folder / "runs" / started.body["run"] / "model")
    return located(desk.folder, desk.config.model)


def _carry_out(desk: Desk, unit: Unit, watcher: Watcher) -> None:
    recipe = recipe_of(desk, unit)
    folder = desk.folder / "runs" / unit.name
    for name in unit.requests:
        body = Started(plan_digest=unit.plan, run=unit.name, recipe_hash=recipe.hash, model_before=unit.model_digest)
        _once(desk, unit, name, body, "start")
    watcher.heading(f"{unit.name}: {', '.join(unit.requests)}")
    if folder.exists() and not (folder / "run.json").exists():
        shutil.rmtree(folder)  # it died before it was a run
    try:
        run(recipe, output_dir=folder, resume=True, watcher=watcher)
        document = _attacked(desk, folder, watcher)
    except Interrupted:
        raise
    except ExpungeError as error:
        for name in unit.requests:
            failure = Failed(error=f"{type(error).__name__}: {error.problem}"[:120], exit_code=error.exit_code)
            _once(desk, unit, name, failure, "failure")
        return
    for name in unit.requests:
        _audited(desk, unit, name, folder, document)
        _certified(desk, unit, name, folder)
    write_suppression(desk)


def recipe_of(desk: Desk, unit: Unit) -> Recipe:
    """Return the recipe of a unit: the plan's settings on the model in use, its data written to the unit's folder.

    The retain set is all training data without the records of these requests and of those worked off before.
    """
    folder = desk.folder / "units" / unit.name
    folder.mkdir(parents=True, exist_ok=True)
    forget = [example for name in unit.requests for example in forget_set(desk, name)]
    gone = {_key(example) for name in (*_before(desk, unit), *unit.requests) for example in forget_set(desk, name)}
    corpora = desk.corpora()
    retain = [example for examples in corpora.values() for example in examples if _key(example) not in gone]
    forget_file, retain_file = folder / "forget.jsonl", folder / "retain.jsonl"
    write_examples(_unique(forget), forget_file)
    if retain:
        write_examples(_unique(retain), retain_file)
    config, plan = desk.config, desk.plan_file(unit.requests[0])
    data: dict[str, Any] = {"forget": str(forget_file), "retain": str(retain_file) if retain else None}
    if config.holdout:
        data["holdout"] = located(desk.folder, config.holdout)
    model: dict[str, Any] = {"path": unit.model}
    if config.reference:
        model["reference"] = located(desk.folder, config.reference)
    own = {"name": unit.name, "model": model, "data": data, "policy": config.policy.model_dump(mode="json")}
    return build_recipe(merge(plan.settings, own))


def forget_set(desk: Desk, request: str) -> list[Example]:
    """Return the records of a request."""
    return load_examples(str(desk.path(request, "forget.jsonl")), name="forget")


def _attacked(desk: Desk, folder: Path, watcher: Watcher) -> AuditDocument:
    """Run the attacks of the settings that were not run yet, and return the audit that holds them."""
    document = read_audit(folder / "audit.json")
    missing = [name for name in desk.config.attacks if name not in document.attacks]
    if not missing:
        return document
    return attack_folders(str(folder / "model"), attacks=missing, watcher=watcher).document


def _audited(desk: Desk, unit: Unit, request: str, folder: Path, document: AuditDocument) -> None:
    met = held(desk.config.policy, desk.config.budget, document, _method(folder))
    body = Audited(
        audit_digest=file_digest(folder / "audit.json"), model_after=_model_digest(str(folder / "model")),
        policy_met=met.met, runs_tried=_tried(desk, request), attacks_run=tuple(document.attacks_run),
    )  # fmt: skip
    _once(desk, unit, request, body, "audit")


def _certified(desk: Desk, unit: Unit, request: str, folder: Path) -> None:
    """Sign what was measured. The time of signing is that of the audit's entry, so that signing twice is the same."""
    view = desk.ledger.request(request)
    audit = view.last("audit")
    if audit is None:
        raise RecipeError("was not audited", field="request", value=request, remedy="Work it off first")
    statement = statement_of_run(
        folder, request=request, what=view.what, policy=desk.config.policy, budget=desk.config.budget,
        head=(audit.seq, audit.hash), runs_tried=audit.body["runs_tried"], now=datetime.fromisoformat(audit.at),
    )  # fmt: skip
    key = load_key(desk.key)
    envelope = seal(statement.to_dict(), PAYLOAD_TYPE, key)
    partial = desk.path(request, ".certificate.partial")
    partial.write_bytes(envelope.to_bytes())
    partial.replace(desk.path(request, "certificate.dsse.json"))
    policy = statement.predicate.policy
    unmet = tuple(verdict.rule[:120] for verdict in policy.verdicts if not verdict.met) or ("the policy has no limit",)
    body: Body = (
        Certified(certificate_digest=envelope.digest, key=key.public.id, claim=statement.predicate.claim)
        if policy.met
        else Partly(certificate_digest=envelope.digest, key=key.public.id, unmet=unmet)
    )
    write_notices(desk, view, statement, envelope.digest)
    _once(desk, unit, request, body, "end")


def write_suppression(desk: Desk) -> None:
    """Write digests of every record of every request that was worked off, for the next training to leave out."""
    names = [view.id for view in desk.ledger.requests() if view.last("run") is not None]
    salt = desk.ledger.salts.of(SUPPRESSION)
    digests = sorted({salted_digest(salt, text_of(example)) for name in names for example in forget_set(desk, name)})
    write_json(desk.folder / "suppression.json", {"schema_version": 1, "digests": digests})


def _once(desk: Desk, unit: Unit, request: str, body: Body, step: str) -> None:
    desk.ledger.append(body, actor=WORKER, request=request, once=f"{unit.name}:{request}:{step}")


def _before(desk: Desk, unit: Unit) -> list[str]:
    """Return the requests that were worked off in earlier units."""
    return sorted({view.id for view in desk.ledger.requests()
                   if (started := view.last("run")) is not None and started.body["run"] < unit.name})  # fmt: skip


def _tried(desk: Desk, request: str) -> int:
    return sum(1 for event in desk.ledger.request(request).events if event.kind == "run")


def _plan_of(view: RequestView) -> str:
    event = view.last("plan")
    return "" if event is None else str(event.body["plan_digest"])


def _planned(desk: Desk, request: str) -> int:
    """Return the number of a request's newest plan entry; 0 without one."""
    event = desk.ledger.request(request).last("plan")
    return 0 if event is None else event.seq


def _count(desk: Desk) -> int:
    return len(list((desk.folder / "units").glob("*.json"))) + 1


def _method(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text("utf-8"))["method"]["name"])


def _model_digest(model: str) -> str:
    return digest(folder_digest(model))


def _key(example: Example) -> tuple[str, str]:
    return example.prompt, example.answer


def _unique(examples: Sequence[Example]) -> list[Example]:
    """Return examples by different ids; the same record found for two requests comes once."""
    found: dict[tuple[str, str], Example] = {}
    for example in examples:
        found.setdefault(_key(example), example)
    return list(found.values())


def _read_unit(path: Path) -> Unit:
    values: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    return Unit(**{**values, "requests": tuple(values["requests"]), "planned": tuple(values["planned"])})
