# SPDX-License-Identifier: Apache-2.0
"""The request desk: everything that can be done with a request, by whom, in which order, and written down where.

The desk's folder holds what the ledger must not: request files, the records that were found, plans, runs. It is
readable by its owner alone. `Desk` is what commands and the dashboard call.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from expunge.claims import ClaimKind
from expunge.data.examples import Example
from expunge.data.loaders import load_examples
from expunge.data.writing import write_examples
from expunge.desk.config import located, read_config
from expunge.desk.intake import RequestFile
from expunge.errors import InputDataError, RecipeError
from expunge.ledger.bodies import Approved, Extended, Moved, Planned, Received, Scoped
from expunge.ledger.canonical import digest
from expunge.ledger.deadlines import deadline
from expunge.ledger.keys import generate_key
from expunge.ledger.salts import WHOLE_LEDGER, salted_digest
from expunge.ledger.states import CLOSED, State, check_move
from expunge.ledger.store import Event, Ledger, RequestView
from expunge.methods.registry import get_method, parse_method
from expunge.runs import write_json, write_text

if TYPE_CHECKING:
    from expunge.desk.advise.routes import Route
    from expunge.desk.locate.scope import Located

#: Name of the salt under which records are remembered for the next training.
SUPPRESSION = "suppression"


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A plan as it is approved; `settings` are a recipe's, without model and data, which are known when it runs."""

    route: str
    method: str
    claim: ClaimKind
    settings: Mapping[str, Any]
    reasons: tuple[str, ...]
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "route": self.route, "method": self.method, "claim": str(self.claim), "settings": dict(self.settings),
            "reasons": list(self.reasons), "sentence": self.sentence,
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over all of it."""
        return digest(self.to_dict())


class Desk:
    """One desk.

    Args:
        folder: with `desk.yaml`.
        clock: returns the time.

    Raises:
        RecipeError: if it is no desk.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        # Absolute: recipes hold paths, and a run that was stopped may be taken up from another place.
        folder = folder.absolute()
        self.folder, self.config, self._clock = folder, read_config(folder), clock
        url = self.config.ledger if "://" in self.config.ledger else folder / self.config.ledger
        self.ledger = Ledger(url, four_eyes=self.config.four_eyes, clock=clock)

    @classmethod
    def create(cls, folder: Path, settings: Mapping[str, Any]) -> Desk:
        """Open a new desk: its settings, its ledger and its signing key.

        Raises:
            RecipeError: if there is one already, or the settings cannot be meant.
        """
        path = folder / "desk.yaml"
        if path.exists():
            raise RecipeError("is a desk already", field="desk", value=str(folder), remedy="Choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        write_text(path, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
        try:
            desk = cls(folder)
        except RecipeError:
            path.unlink()
            raise
        if not desk.key.exists():
            generate_key(desk.key)
        return desk

    @property
    def key(self) -> Path:
        """File of the signing key."""
        return self.folder / self.config.key

    def path(self, request: str, name: str = "") -> Path:
        """Return a file of a request, or its folder."""
        folder = self.folder / "requests" / request
        return folder / name if name else folder

    def intake(self, file: RequestFile, *, actor: str) -> RequestView:
        """Take a request in; one about a subject that another open request is about is marked as duplicate.

        Raises:
            RecipeError: if its id is taken.
        """
        name = file.id or f"{file.received:%Y%m%d}-{secrets.token_hex(3)}"
        subject = salted_digest(self.ledger.salts.of(WHOLE_LEDGER), file.subject())
        views = self.ledger.requests()
        same = [view.id for view in views if view.state not in CLOSED
                and view.events[0].body["subject_digest"] == subject]  # fmt: skip
        due = deadline(self.config.deadline).due(file.received)
        body = file.model_dump(mode="json") | {"id": name}
        received = Received(
            what=file.what, deadline=self.config.deadline, due=due, basis=file.basis, requester=file.requester,
            subject_digest=subject, file_digest=digest(body),
        )  # fmt: skip
        if any(view.id == name for view in views):
            raise RecipeError("there is a request of that id", field="id", value=name, remedy="Choose another")
        self.path(name).mkdir(parents=True, mode=0o700, exist_ok=True)
        write_json(self.path(name, "request.json"), body)  # before the entry: a request in the ledger has its file
        self.ledger.append(received, actor=actor, request=name)
        if same:
            reason = f"about the same subject as {same[0]}"
            self.ledger.append(Moved(to=State.DUPLICATE, reason=reason), actor=actor, request=name)
        return self.ledger.request(name)

    def request_file(self, request: str) -> RequestFile:
        """Return the file of a request, checked against the digest in the ledger.

        Raises:
            InputDataError: if it is missing or was changed.
        """
        view, path = self.ledger.request(request), self.path(request, "request.json")
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputDataError("the request's file cannot be read", field="request", value=request,
                                 remedy=f"Restore {path}") from error  # fmt: skip
        if digest(values) != view.events[0].body["file_digest"]:
            raise InputDataError("the request's file was changed after it came in", field="request", value=request,
                                 remedy="Take the request in again under another id")  # fmt: skip
        return RequestFile.model_validate(values)

    def move(self, request: str, to: State, *, actor: str, reason: str = "") -> Event:
        """Verify, refuse, hold, release or withdraw a request.

        Raises:
            RecipeError: for a move that is not allowed, or one that work makes and no person.
        """
        by_hand = (State.VERIFIED, State.REFUSED, State.ON_HOLD, State.WITHDRAWN, State.DUPLICATE, State.MONITORED)
        held_in = self.ledger.request(request).held_in
        if to not in by_hand and to != held_in:
            raise RecipeError("is reached by work, not by hand", field="state", value=str(to),
                              remedy=f"By hand: {', '.join(by_hand)}")  # fmt: skip
        return self.ledger.append(Moved(to=to, reason=reason), actor=actor, request=request)

    def extend(self, request: str, *, actor: str, reason: str) -> Event:
        """Extend the deadline of a request, once, as its rule allows.

        Raises:
            RecipeError: if it was extended before, no reason is given, or its rule knows no extension.
        """
        view = self.ledger.request(request)
        rule = deadline(view.events[0].body["deadline"])
        received = self.request_file(request).received
        due = rule.due(received, extended=True)
        if due == rule.due(received):
            raise RecipeError("its rule knows no extension", field="deadline", value=rule.name, remedy="Answer in time")
        if not reason.strip():
            raise RecipeError("needs a reason, which the requester is told", field="reason", remedy="Give one")
        return self.ledger.append(Extended(due=due, reason=reason), actor=actor, request=request)

    def corpora(self) -> dict[str, list[Example]]:
        """Return the training data by corpus.

        Raises:
            InputDataError: if one cannot be read.
        """
        return {
            name: load_examples(located(self.folder, source), name=name, columns=self.config.columns or None)
            for name, source in self.config.corpora.items()
        }

    def locate(self, request: str, *, actor: str) -> Located:
        """Search the desk's corpora for what a request is about, and write down what was found and what was not.

        If nothing was found, `nothing-found.json` in the request's folder says what was searched, for the refusal.

        Raises:
            RecipeError: in a state in which nothing is located, for settings that cannot be meant, and if nothing was
                found.
            InputDataError: if the request's file or a corpus cannot be read.
        """
        from expunge.desk.locate.output import locate_request, write_found

        view = self.ledger.request(request)
        check_move(view.state, State.LOCATED, held_in=view.held_in)
        found = locate_request(self, request)
        scope = found.scope
        if not found.examples:
            write_json(self.path(request, "nothing-found.json"), scope.to_dict())
        self.scope(
            request, found.examples, scope.to_dict(), actor=actor, by_way=scope.by_way,
            artefacts=len(scope.artefacts), not_searched=len(scope.not_searched),
        )  # fmt: skip
        write_found(found, self.path(request))
        return found

    def scope(
        self, request: str, found: Sequence[Example], scope: Mapping[str, Any], *, actor: str,
        by_way: Mapping[str, int], artefacts: int, not_searched: int,
    ) -> Event:  # fmt: skip
        """Write down what was found for a request: texts in its folder, digests and counts in the ledger.

        Args:
            request: its id.
            found: the records.
            scope: what `scope.json` says: counts, digests, and what could not be searched.
            actor: who located.
            by_way: records found, by way of finding them.
            artefacts: models and others that saw them.
            not_searched: places that could not be searched.

        Raises:
            RecipeError: if nothing was found, which is a reason to refuse and not to run.
        """
        if not found:
            raise RecipeError("nothing was found", field="request", value=request,
                              remedy="Search by more ways, or refuse the request saying what was searched")  # fmt: skip
        write_examples(found, self.path(request, "forget.jsonl"))
        write_json(self.path(request, "scope.json"), scope)
        body = Scoped(scope_digest=digest(scope), records=len(found), by_way=dict(by_way), artefacts=artefacts,
                      not_searched=not_searched)  # fmt: skip
        return self.ledger.append(body, actor=actor, request=request)

    def plan(
        self, request: str, method: str, *, actor: str, route: str = "approximate", settings: Mapping[str, Any] | None,
        reasons: Sequence[str] = (), sentence: str = "", predicted: tuple[float | None, int | None] = (None, None),
    ) -> PlanFile:  # fmt: skip
        """Write the plan of a request: the method and its settings, under the desk's policy.

        Raises:
            RecipeError: for a method or settings that cannot run, or a request that is not located.
        """
        from expunge.recipe import merge

        card, policy = get_method(method).card, self.config.policy
        chosen = merge(dict(self.config.recipe), dict(settings or {}))
        chosen["method"] = {**dict(chosen.get("method") or {}), "name": method}
        parse_method(chosen["method"])
        plan = PlanFile(route, method, card.claim, chosen, tuple(reasons), sentence)
        self._plan_path(request, plan.digest).parent.mkdir(parents=True, exist_ok=True)
        write_json(self._plan_path(request, plan.digest), plan.to_dict())
        body = Planned(
            plan_digest=plan.digest, route=route, method=method, claim=card.claim,
            policy=f"{policy.name} {policy.version}", policy_digest=digest(policy.model_dump(mode="json")),
            predicted_seconds=predicted[0], predicted_bytes=predicted[1],
        )  # fmt: skip
        self.ledger.append(body, actor=actor, request=request)
        return plan

    def advise(self, request: str, asked: Mapping[str, Any] | None = None) -> list[Route]:
        """Return the routes for a request, the best first; see `expunge.desk.advise.of_request.routes_of`."""
        from expunge.desk.advise.of_request import routes_of

        return routes_of(self, request, asked)

    def plan_route(
        self, request: str, name: str, *, actor: str, settings: Mapping[str, Any] | None = None
    ) -> PlanFile:  # fmt: skip
        """Write the plan of a request as it was advised: method, settings, reasons, sentence, time and memory.

        Args:
            request: its id.
            name: of the route.
            actor: who plans.
            settings: laid over those of the route; what was estimated is then left out.

        Raises:
            RecipeError: for a route that is not there, not possible, or carried out by hand.
        """
        from expunge.desk.advise.of_request import named_route
        from expunge.recipe import merge

        route = named_route(self.advise(request), name)
        return self.plan(
            request, str(route.method), actor=actor, route=route.name, settings=merge(route.settings, settings or {}),
            reasons=route.reasons, sentence=route.sentence,
            predicted=(None, None) if settings else (route.predicted_seconds, route.predicted_bytes),
        )  # fmt: skip

    def now(self) -> datetime:
        """Return the time by the desk's clock."""
        return self._clock()

    def plan_file(self, request: str) -> PlanFile:
        """Return the plan of a request, checked against the digest in the ledger.

        Raises:
            InputDataError: if it is missing or was changed since.
        """
        event = self.ledger.request(request).last("plan")
        if event is None:
            raise InputDataError("has no plan", field="request", value=request, remedy="Plan it first")
        path = self._plan_path(request, event.body["plan_digest"])
        if not path.exists():
            raise InputDataError("the plan's file is gone", field="plan", value=str(path), remedy="Plan it again")
        values = json.loads(path.read_text("utf-8"))
        plan = PlanFile(**{**values, "claim": ClaimKind(values["claim"]), "reasons": tuple(values["reasons"])})
        if plan.digest != event.body["plan_digest"]:
            raise InputDataError("the plan was changed after it was written", field="plan", value=request,
                                 remedy="Plan it again, and have that approved")  # fmt: skip
        return plan

    def _plan_path(self, request: str, plan_digest: str) -> Path:
        return self.path(request, f"plan-{plan_digest[:12]}.json")

    def approve(self, request: str, *, actor: str, seen: str | None = None) -> Event:
        """Approve the plan of a request as it is; with `seen`, the digest of the plan that was looked at.

        Raises:
            RecipeError: by the person who made it, where four eyes are wanted; or if it is not the one that was seen.
            InputDataError: if the plan's file was changed since it was made.
        """
        plan = self.plan_file(request)
        if seen is not None and seen != plan.digest:
            raise RecipeError("the plan was made anew since it was looked at", field="plan", value=seen[:12],
                              remedy="Look at it again, then approve that one")  # fmt: skip
        return self.ledger.append(Approved(plan_digest=plan.digest), actor=actor, request=request)

    def suppressed(self, text: str) -> str:
        """Return the digest under which a record is remembered for the next training."""
        return salted_digest(self.ledger.salts.of(SUPPRESSION), text)
