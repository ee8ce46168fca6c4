# SPDX-License-Identifier: Apache-2.0
"""From a situation to routes, the best first: the rules read against the facts, time and memory estimated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from expunge.api.privacy import dp_statement
from expunge.claims import SENTENCES, ClaimKind
from expunge.desk.advise.predict import Prediction, Predictor, planned
from expunge.desk.advise.rules import Rule, Rules, Says, holds, rules
from expunge.desk.advise.situation import Bound, Saw, Situation
from expunge.errors import ExpungeError
from expunge.methods.registry import get_method
from expunge.recipe import merge
from expunge.runs import read_run
from expunge.training.accounting import group

#: From the strongest statement to the weakest.
_STRENGTH = (ClaimKind.EXACT, ClaimKind.STATISTICAL, ClaimKind.APPROXIMATE, ClaimKind.SUPPRESSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way to answer a request.

    Attributes:
        name: what it is called by.
        title: one line.
        method: that `expunge work` runs; None where a person carries the route out.
        claim: the kind of statement it supports; None where nothing is said about a model.
        reasons: for and against it here, what was measured of it, and why there is no estimate where there is none.
        predicted_seconds: of training and audits on this machine; None where it is not estimated.
        predicted_bytes: of memory at the fullest moment; None where it is not estimated.
        sentence: what may be said afterwards, no more; empty where the route is not possible.
        settings: of the recipe.
        possible: whether it can be taken.
        why_not: what stands against it.
        how: the command, or what a person does.
        besides: what is to be done beside it.
    """

    name: str
    title: str
    method: str | None
    claim: ClaimKind | None
    reasons: tuple[str, ...]
    predicted_seconds: float | None
    predicted_bytes: int | None
    sentence: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    possible: bool = True
    why_not: str = ""
    how: str = ""
    besides: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the route as JSON values."""
        return asdict(self)


def advise(situation: Situation, *, predict: Predictor | None = None) -> list[Route]:
    """Return the routes that a situation allows to think of, the best first, impossible ones at the end with reasons.

    Possible ones come first; among them those that say no less than is wanted; then by the ranks of the rules.

    Args:
        situation: what is known.
        predict: estimates time and memory of a method under settings; by default through the situation's recipe.
    """
    known, found = rules(), []
    facts, predict = facts_of(situation), predict or planned(situation)
    for rule in known.routes:
        if holds(rule.listed, facts):
            rank, route = _route(rule, known, situation, facts, predict)
            found.append(((not route.possible, _too_weak(rule, situation), rank), route))
    return [route for _, route in sorted(found, key=lambda pair: pair[0])]


def facts_of(situation: Situation) -> dict[str, Any]:
    """Return every fact that rules may ask about or say."""
    saw, others = situation.artefacts, situation.others
    out_of_reach = [one for one in saw if not one.reachable]
    here = [one for one in others if one.reachable]
    return {
        **{name: getattr(situation, name) for name in Situation.model_fields},
        **bound_facts(situation),
        "share": situation.share,
        "artefacts_count": len(saw), "others_count": len(here), "out_of_reach_count": len(out_of_reach),
        "artefacts_text": _listed(saw, bare=True), "others_text": _listed(here),
        "out_of_reach_text": _listed(out_of_reach, bare=True),
        "artefacts_list": _listed([one for one in saw if one.reachable], bare=True) or "the models that are listed",
        "base_name": None if situation.base is None else "/".join(Path(situation.base).parts[-2:]),
        "model_text": situation.model or "the model in use",
        "records": "the records" if situation.forget is None else f"{situation.forget:,} records",
        "people": {None: "the data", 1: "one subject"}.get(situation.subjects, f"{situation.subjects} subjects"),
    }  # fmt: skip


def _listed(found: tuple[Saw, ...] | list[Saw], *, bare: bool = False) -> str:
    by_kind = rules().by_kind
    return "; ".join(f"{one.name} ({one.kind.replace('_', ' ')}{'' if bare else ': ' + by_kind[one.kind]})"
                     for one in found)  # fmt: skip


def bound_facts(situation: Situation) -> dict[str, Any]:
    """Return the privacy bound of all records together; what is not known of it is None."""
    bound, accepted = situation.private, situation.epsilon
    facts: dict[str, Any] = dict.fromkeys(("group_size", "group_records", "group_epsilon", "group_delta", "bound_unit"))
    facts |= {"bound_problem": "", "beyond_accepted": False, "group_text": ""}
    if bound is None:
        return facts
    facts["bound_unit"] = unit = _unit(bound)
    facts["group_records"] = records = situation.subjects if unit == "subject" else situation.forget
    if records is None:
        return facts
    try:
        size, epsilon, delta = _group(bound, records)
    except ExpungeError as error:
        return facts | {"group_size": records, "bound_problem": str(error)}
    facts |= {"group_size": size, "group_epsilon": epsilon, "group_delta": delta}
    facts["group_text"] = f"one {unit}" if size == 1 else f"{size:,} {unit}s together"
    return facts | {"beyond_accepted": accepted is not None and epsilon > accepted}


def _unit(bound: Bound) -> str:
    """Return what a bound is about: as its run says, if there is one."""
    said = read_run(Path(bound.run)).get("privacy") if bound.run is not None else None
    return str(said["unit"]) if said else bound.unit


def _group(bound: Bound, records: int) -> tuple[int, float, float]:
    """Return the size of the group, and its epsilon and delta: asked of the run, or from the numbers."""
    if bound.run is not None:
        said = dp_statement(Path(bound.run), records)
        return said["group_size"], said["epsilon"], math.inf if said["delta"] is None else said["delta"]
    assert bound.epsilon is not None, "the situation was checked"
    assert bound.delta is not None, "the situation was checked"
    size = records if bound.unit == "subject" else records * bound.per_record
    # Without a delta the bound is pure, and stays so for a group.
    epsilon, delta = group(bound.epsilon, bound.delta, size) if bound.delta else (size * bound.epsilon, 0.0)
    return size, epsilon, delta


def _too_weak(rule: Rule, situation: Situation) -> bool:
    if situation.wanted is None or rule.claim is None:
        return False
    return _STRENGTH.index(rule.claim) > _STRENGTH.index(situation.wanted)


def _route(rule: Rule, known: Rules, situation: Situation, facts: dict[str, Any], predict: Predictor
           ) -> tuple[int, Route]:  # fmt: skip
    title = None if rule.method is None else get_method(rule.method).card.title
    facts = {**facts, "route": rule.name, "method_title": title}
    preferred = next((one for one in rule.prefer if holds(one.when, facts)), None)
    demands = [*(known.needs if rule.common else ()), *rule.needs]
    why_not = [one.otherwise.format(**facts) for one in demands if not holds(one.holds, facts)]
    settings = _filled(rule.settings, facts)
    estimate = Prediction()
    if not why_not:
        settings, estimate = _estimated(rule, settings, situation, predict)
        why_not = [estimate.stops] if estimate.stops else _out_of_bounds(situation, estimate)
    reasons = [preferred.says] if preferred else []
    reasons += [] if rule.claim is None else _weak_words(rule, situation)
    reasons += _said(rule.reasons, facts) if not why_not else []
    reasons += [f"Measured: {one.text}" for one in rule.evidence]
    route = Route(
        name=rule.name, title=rule.title, method=rule.method, claim=rule.claim,
        reasons=tuple([*reasons, *([estimate.why] if estimate.why else [])]),
        predicted_seconds=estimate.seconds, predicted_bytes=estimate.bytes,
        sentence=_sentence(rule, facts) if not why_not else "", settings=settings, possible=not why_not,
        why_not="; ".join(why_not), how=rule.how.format(**facts),
        besides=tuple(_said(known.besides, facts)) if rule.common else (),
    )  # fmt: skip
    return (preferred.rank if preferred else rule.rank), route


def _sentence(rule: Rule, facts: Mapping[str, Any]) -> str:
    """Return the sentence of the claim and what this route adds to it."""
    own = rule.sentence.format(**facts).strip()
    own = own[0].upper() + own[1:]
    return own if rule.claim is None else f"{SENTENCES[rule.claim]} {own}"


def _said(sentences: tuple[Says, ...], facts: Mapping[str, Any]) -> list[str]:
    return [one.says.format(**facts) for one in sentences if holds(one.when, facts)]


def _weak_words(rule: Rule, situation: Situation) -> list[str]:
    if not _too_weak(rule, situation):
        return []
    return [f"It says less than what is wanted: {rule.claim}, where {situation.wanted} is."]


def _filled(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the facts in their texts."""
    return {
        key: _filled(value, facts) if isinstance(value, Mapping)
        else value.format(**facts) if isinstance(value, str) else value
        for key, value in settings.items()
    }  # fmt: skip


def _estimated(rule: Rule, settings: dict[str, Any], situation: Situation, predict: Predictor
               ) -> tuple[dict[str, Any], Prediction]:  # fmt: skip
    """Return what a route takes, under the first settings that fit into memory; under the last if none do."""
    if rule.predict == "nothing":
        return settings, Prediction(why="Nothing is trained, so that there is no time to estimate.")
    if rule.predict == "shards":
        return settings, _of_shards(situation, predict)
    assert rule.method is not None, "what predicts a method has one"
    estimate = predict(rule.method, settings)
    for lighter in rule.lighter:
        if not _too_large(situation, estimate):
            break
        settings = merge(settings, lighter)
        estimate = predict(rule.method, settings)
    return settings, estimate


def _of_shards(situation: Situation, predict: Predictor) -> Prediction:
    """Return the shards' share of what retraining is estimated to take."""
    share = situation.shard_share
    if share is None or situation.base is None:
        missing = "share of the rows" if share is None else "checkpoint they start from"
        return Prediction(why=f"Time and memory are not estimated: the {missing} is not known.")
    whole = predict("retrain", {"model": {"base": situation.base}})
    if whole.seconds is None:
        return Prediction(why=whole.why or f"Time and memory are not estimated: {whole.stops}")
    why = f"The time is {share:.1%} of what retraining all of it is estimated to take."
    return Prediction(whole.seconds * share, whole.bytes, why=why)


def _too_large(situation: Situation, estimate: Prediction) -> bool:
    limit = situation.memory_bytes
    return limit is not None and estimate.bytes is not None and estimate.bytes > limit


def _out_of_bounds(situation: Situation, estimate: Prediction) -> list[str]:
    """Return what of time and memory is missing."""
    found, left = [], situation.deadline_seconds
    if left is not None and estimate.seconds is not None and estimate.seconds > left:
        found.append(f"it is estimated to take {estimate.seconds:,.0f} s, and {max(left, 0):,.0f} s are left")
    if _too_large(situation, estimate):
        found.append(f"it is estimated to take {estimate.bytes:,} bytes of memory of {situation.memory_bytes:,}")
    return found
