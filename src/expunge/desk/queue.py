# SPDX-License-Identifier: Apache-2.0
"""The queue: approved requests are unlearned one after the other, each from the model the last one left.

Killed at any moment, the next `work` goes on where it was: what is in hand stands in a unit file before the ledger
says that it was begun, all its requests are begun in one transaction, every entry is written once by name, the
training loop goes on from its checkpoint to the same bytes, and a certificate is a function of the run and the ledger.
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
from expunge.attacks.registry import choose
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
from expunge.ledger.store import Entry, RequestView
from expunge.models.digests import file_digest, folder_digest
from expunge.recipe import Recipe, build_recipe, merge
from expunge.report.folder import view_from_run
from expunge.report.render import write_report
from expunge.runs import write_json

WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Unit:
    """What is unlearned in one run: some requests under one plan, from one model."""

    name: str
    requests: tuple[str, ...]
    plan: str
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
    """Return the unit that was begun and not finished, or None; one that was only written down was not begun."""
    for view in desk.ledger.requests(State.RUNNING, State.AUDITED):
        name = _begun(view)
        if name is not None:
            return _read_unit(desk.folder / "units" / f"{name}.json")
    return None


def _begun(view: RequestView) -> str | None:
    """Return the unit that a request is in the hands of, or None."""
    event = next((e for e in reversed(view.events) if e.kind in ("run", "certificate", "partial", "failure")), None)
    return str(event.body["run"]) if event is not None and event.kind == "run" else None


def _next(desk: Desk, batch: int) -> Unit | None:
    """Write down what is done next, before anything of it is done."""
    approved = desk.ledger.requests(State.APPROVED)
    if not approved:
        return None
    plan = _plan_of(approved[0])
    names = tuple(view.id for view in approved if _plan_of(view) == plan)[: max(1, batch)]
    model = current_model(desk)
    number = len({event.body["run"] for event in desk.ledger.events(kind="run")}) + 1
    unit = Unit(f"u{number:04d}-{digest([plan, *names])[:8]}", names, plan, model, _model_digest(model))
    (desk.folder / "units").mkdir(exist_ok=True)
    write_json(desk.folder / "units" / f"{unit.name}.json", asdict(unit))
    return unit


def current_model(desk: Desk) -> str:
    """Return the folder of the model in use: of the last request that was certified, else the one of the settings.

    A partial result is not built upon: its model stays as it is until somebody plans again or deploys it.
    """
    certified = list(desk.ledger.events(kind="certificate"))
    if not certified:
        return located(desk.folder, desk.config.model)
    newest = certified[-1]
    began = [e for e in desk.ledger.events(newest.request, kind="run") if e.seq < newest.seq]
    return str(desk.folder / "runs" / began[-1].body["run"] / "model")


def _carry_out(desk: Desk, unit: Unit, watcher: Watcher) -> None:
    recipe = recipe_of(desk, unit)
    folder = desk.folder / "runs" / unit.name
    body = Started(plan_digest=unit.plan, run=unit.name, recipe_hash=recipe.hash, model_before=unit.model_digest)
    desk.ledger.append_all([Entry(body, name, _name(unit, name, "start")) for name in unit.requests], actor=WORKER)
    write_suppression(desk)  # before any end is written: the next `work` comes back to what has no end
    watcher.heading(f"{unit.name}: {', '.join(unit.requests)}")
    resumed = folder.exists()
    if resumed and not (folder / "run.json").exists():
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
    if resumed:
        write_report(view_from_run(folder), folder / "report.html")  # its writer may have died before the last one
    for name in unit.requests:
        if _begun(desk.ledger.request(name)) == unit.name:
            _audited(desk, unit, name, folder, document)
            _certified(desk, unit, name, folder)


def recipe_of(desk: Desk, unit: Unit) -> Recipe:
    """Return the recipe of a unit: the plan's settings on the model in use, its data written to the unit's folder.

    The retain set is all training data without the records of these requests and of those worked off before.
    """
    folder = desk.folder / "units" / unit.name
    folder.mkdir(parents=True, exist_ok=True)
    forget = [example for name in unit.requests for example in forget_set(desk, name)]
    gone = {_key(example) for example in forget}
    gone |= {_key(example) for name in _before(desk, unit) for example in forget_set(desk, name)}
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
    wanted = [attack.card.name for attack in choose(desk.config.attacks)] if desk.config.attacks else []
    missing = [name for name in wanted if name not in document.attacks]
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
    """Write digests of every record of every request that was begun, for the next training to leave out.

    Once the salt of the list is shredded, it stays as it is.
    """
    if desk.ledger.salts.shredded(SUPPRESSION):
        return
    names = dict.fromkeys(str(event.request) for event in desk.ledger.events(kind="run"))
    salt = desk.ledger.salts.of(SUPPRESSION)
    digests = sorted({salted_digest(salt, text_of(example)) for name in names for example in forget_set(desk, name)})
    write_json(desk.folder / "suppression.json", {"schema_version": 1, "digests": digests})


def _once(desk: Desk, unit: Unit, request: str, body: Body, step: str) -> None:
    desk.ledger.append(body, actor=WORKER, request=request, once=_name(unit, request, step))


def _name(unit: Unit, request: str, step: str) -> str:
    return f"{unit.name}:{request}:{step}"


def _before(desk: Desk, unit: Unit) -> list[str]:
    """Return the requests of other units than the one in hand: no unit is begun before the last one is finished."""
    began = (event for event in desk.ledger.events(kind="run") if event.body["run"] != unit.name)
    return sorted({str(event.request) for event in began} - set(unit.requests))


def _tried(desk: Desk, request: str) -> int:
    return len(list(desk.ledger.events(request, kind="run")))


def _plan_of(view: RequestView) -> str:
    event = view.last("plan")
    return "" if event is None else str(event.body["plan_digest"])


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
    return Unit(**{**values, "requests": tuple(values["requests"])})
