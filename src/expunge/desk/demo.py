# SPDX-License-Identifier: Apache-2.0
"""One request from intake to a verified certificate: the whole desk, once, on data that is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.api.workspace import Watcher
from expunge.claims import ClaimKind
from expunge.desk.advise.routes import Route
from expunge.desk.intake import RequestFile
from expunge.desk.queue import work
from expunge.desk.service import Desk
from expunge.errors import RecipeError
from expunge.ledger.export import export_ledger, exported_events, read_head
from expunge.ledger.keys import load_key, trusted_keys
from expunge.ledger.statement import Statement
from expunge.ledger.states import State
from expunge.ledger.verify import verify_certificate

#: A quarter of the way from the reference to the target, medians over the archives of the published study
#: (results/archive-study.json): extraction strength .121 and .993, exact memorisation .430 and .998. Written down
#: before the demo was first run.
POLICY: Mapping[str, Any] = {
    "name": "demo-request",
    "version": "1",
    "bounds": {"forget.extraction_strength": {"max": 0.339}, "forget.exact_memorization": {"max": 0.572}},
}
#: What the study's rule lets a method cost.
BUDGET: Mapping[str, Any] = {"metric": "model_utility", "share": 0.15}
ATTACKS = ("relearning", "quantisation")


#: The settings of the study's runs; a learning rate of .003 is what its rule chose for NPO and for WGA.
RECIPE: Mapping[str, Any] = {
    "data": {"template": "question"},
    "training": {"learning_rate": 3e-3, "epochs": 15, "batch_size": 16, "optimizer": {"weight_decay": 0.0}},
    "audit": {"max_new_tokens": 32},
}


def demo_settings(
    *, model: str, reference: str, corpus: str, holdout: str, evaluate: Mapping[str, str], extra: Mapping[str, str]
) -> dict[str, Any]:
    """Return the settings of the demo's desk.

    Args:
        model: in use.
        reference: a model that never saw the records.
        corpus: what the model was trained on.
        holdout: examples that no model was trained on.
        evaluate: what audits ask instead of the records, by set; the study asked the same.
        extra: further sets that audits look at.
    """
    data = {**RECIPE["data"], "evaluate": dict(evaluate), "extra": dict(extra)}
    return {
        "model": model, "reference": reference, "corpora": {"archive": corpus}, "holdout": holdout,
        "recipe": {**RECIPE, "data": data}, "policy": dict(POLICY), "budget": dict(BUDGET), "attacks": list(ATTACKS),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of the timeline: seconds since the start, what happened, and what is known since."""

    seconds: float
    what: str
    detail: str


@dataclass(slots=True)
class Timeline:
    """What happened when; `tell` hears of each moment."""

    tell: Callable[[Moment], None]
    moments: list[Moment] = field(default_factory=list)
    _start: float = field(default_factory=time.perf_counter)

    def add(self, what: str, detail: str) -> None:
        """Add what has just happened."""
        self.moments.append(Moment(time.perf_counter() - self._start, what, detail))
        self.tell(self.moments[-1])


@dataclass(frozen=True, slots=True)
class Walked:
    """What came of a request: its timeline, the routes that were advised, what was certified, and where."""

    request: str
    state: State
    timeline: tuple[Moment, ...]
    routes: tuple[Route, ...]
    statement: Statement
    certificate: Path
    model: Path
    ledger: Path

    @property
    def unmet(self) -> list[str]:
        """Limits, fixed beforehand, that were not met."""
        return [verdict.rule for verdict in self.statement.predicate.policy.verdicts if not verdict.met]


def walk(desk: Desk, file: RequestFile, *, timeline: Timeline, watcher: Watcher) -> Walked:
    """Bring one request from intake to a verified certificate, by four actors.

    The plan is the first advised route of the approximate kind: what is left where a model is too large to train again.

    Args:
        desk: with a policy, attacks, a corpus and a model.
        file: the request, with an id.
        timeline: gets a moment for each step.
        watcher: follows the run.

    Raises:
        RecipeError: if no approximate route is possible.
        VerificationFailed: if the certificate does not verify.
    """
    view = desk.intake(file, actor="clerk")
    request, days = view.id, view.days_left(desk.now())
    timeline.add("received", f"by {file.requester}, {file.basis}; due {view.due:%Y-%m-%d}, in {days:.0f} days")
    desk.move(request, State.VERIFIED, actor="clerk", reason="identity shown")
    timeline.add("verified", "who asks is whom it is about")
    scope = desk.locate(request, actor="engineer").scope
    ways = ", ".join(f"{way} {count}" for way, count in scope.by_way.items())
    timeline.add("located", f"{len(scope.records)} records ({ways}); not searched: {len(scope.not_searched)} things, "
                            "each with its reason in scope.json")  # fmt: skip
    routes = desk.advise(request)
    route = _approximate(routes)
    plan = desk.plan_route(request, route.name, actor="engineer")
    timeline.add("planned", f"{route.title}; advised first: {routes[0].title}")
    desk.approve(request, actor="approver")
    timeline.add("approved", f"by somebody else; plan {plan.digest[:12]}, policy {desk.config.policy.name} "
                             f"{desk.config.policy.version}")  # fmt: skip
    units = work(desk, watcher=watcher)
    return _checked(desk, request, units[0].name, tuple(routes), timeline)


def _approximate(routes: list[Route]) -> Route:
    wanted = (r for r in routes if r.possible and r.method is not None and r.claim is ClaimKind.APPROXIMATE)
    found = next(wanted, None)
    if found is None:
        raise RecipeError("no approximate route is possible", field="route", remedy="See expunge request advise")
    return found


def _checked(desk: Desk, request: str, unit: str, routes: tuple[Route, ...], timeline: Timeline) -> Walked:
    """Verify what `work` left, as another engineer would: from files, the exported ledger and its signed head."""
    view, model = desk.ledger.request(request), desk.folder / "runs" / unit / "model"
    failure = view.last("failure")
    if failure is not None:
        raise RecipeError(f"the run failed: {failure.body['error']}", field="request", value=request,
                          remedy=f"See {model.parent / 'report.html'}")  # fmt: skip
    path, exported = desk.path(request, "certificate.dsse.json"), desk.folder / "ledger.jsonl"
    timeline.add("worked off", f"run {unit}: unlearned, audited, attacked ({', '.join(desk.config.attacks)})")
    timeline.add(str(view.state), f"{path.name}, signed; {_policy_words(view.state)}")
    export_ledger(desk.ledger, exported, key=load_key(desk.key))
    trusted = trusted_keys(desk.folder / desk.config.trusted)
    found = verify_certificate(path.read_bytes(), model, trusted, events=exported_events(exported),
                               head=read_head(exported.with_suffix(".head.json"), trusted))  # fmt: skip
    found.raise_failed()
    assert found.statement is not None  # nothing failed, so there is one
    timeline.add("verified", "; ".join(f"{check.what}: {check.detail}" for check in found.checks))
    return Walked(request, view.state, tuple(timeline.moments), routes, found.statement, path, model, exported)


def _policy_words(state: State) -> str:
    return "every limit was met" if state is State.CERTIFIED else "limits were not met, and the certificate says so"
