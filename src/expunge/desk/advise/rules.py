# SPDX-License-Identifier: Apache-2.0
"""The rules as they stand in `rules.yaml`, and what a condition of them means.

A condition names facts; all of them must hold. `known` and `unknown` ask whether a fact is there, `{above: x}` and
`{below: x}` compare (an unknown number is neither), a list is a choice, and anything else is equality.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from expunge.claims import ClaimKind

Condition = dict[str, Any]
Facts = Mapping[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Says(_Part):
    """A sentence, and when it is said."""

    when: Condition = Field(default_factory=dict, alias="if")
    says: str


class Demand(_Part):
    """What must hold for a route to be possible, and what is said where it does not."""

    holds: Condition
    otherwise: str = Field(alias="else")


class Preference(_Part):
    """When a route stands at another place in the order, and why."""

    when: Condition = Field(alias="if")
    rank: int
    says: str


class Figure(_Part):
    """A measured number: the median of what a path in a file of results leads to, rounded."""

    at: str
    value: float


class Evidence(_Part):
    """What a study measured: the file of its numbers, the page that explains it, and one sentence with figures."""

    results: str
    page: str
    says: str
    figures: tuple[Figure, ...] = ()

    @property
    def text(self) -> str:
        """The sentence with its figures, and where they are from."""
        return f"{self.says.format(*(f'{figure.value:g}' for figure in self.figures))} ({self.results})"


class Rule(_Part):
    """One route.

    Attributes:
        name: what people call it by.
        title: one line.
        claim: what kind of statement it supports; None where nothing is said about a model.
        method: name of the method that `expunge work` runs; None where it is carried out by hand.
        rank: place in the order; smaller is better.
        listed: when the route is named at all.
        needs: what makes it impossible where it does not hold, beside what every route needs.
        prefer: other ranks; the first that holds counts.
        reasons: for and against it.
        sentence: what follows the sentence of the claim.
        how: the command, or what a person does.
        predict: whose time and memory are estimated: the method's own run, the retraining's times the shards' share.
        settings: of the recipe.
        lighter: settings laid over, in turn, while the estimate takes more memory than there is.
        evidence: what was measured here.
        common: whether the demands on every route and the remarks after it concern this one.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    title: str
    claim: ClaimKind | None
    method: str | None = None
    rank: int
    listed: Condition = Field(default_factory=dict)
    needs: tuple[Demand, ...] = ()
    prefer: tuple[Preference, ...] = ()
    reasons: tuple[Says, ...] = Field(min_length=1)
    sentence: str
    how: str
    predict: Literal["nothing", "method", "shards"] = "nothing"
    settings: dict[str, Any] = Field(default_factory=dict)
    lighter: tuple[dict[str, Any], ...] = ()
    evidence: tuple[Evidence, ...] = ()
    common: bool = True


class Rules(_Part):
    """The whole file.

    Attributes:
        needs: what every route needs, unless it says otherwise.
        besides: what is to be done beside a route.
        by_kind: what is done with an artefact that the data went into, by kind.
        needs_of: what has to go, by the kind of a request.
        routes: in any order.
    """

    needs: tuple[Demand, ...]
    besides: tuple[Says, ...]
    by_kind: dict[str, str]
    needs_of: dict[str, str]
    routes: tuple[Rule, ...]


@cache
def rules() -> Rules:
    """Return the rules of this package."""
    text = files("expunge.desk.advise").joinpath("rules.yaml").read_text("utf-8")
    return Rules.model_validate(yaml.safe_load(text))


def holds(condition: Condition, facts: Facts) -> bool:
    """Return whether every part of a condition holds; a fact that there is not is a mistake of the rules.

    Raises:
        KeyError: for such a fact.
    """
    return all(_holds(test, facts[name]) for name, test in condition.items())


def _holds(test: Any, fact: Any) -> bool:
    if test == "known":
        return fact is not None
    if test == "unknown":
        return fact is None
    if isinstance(test, Mapping):
        return fact is not None and all(
            fact > bound if sign == "above" else fact < bound for sign, bound in test.items()
        )
    return fact in test if isinstance(test, list) else bool(fact == test)


def in_words(condition: Condition) -> str:
    """Return a condition as a reader of the rules sees it."""
    return ", ".join(f"{name.replace('_', ' ')} {_words(test)}" for name, test in condition.items()) or "always"


def _words(test: Any) -> str:
    if isinstance(test, Mapping):
        return " and ".join(f"{sign} {bound:g}" for sign, bound in test.items())
    if isinstance(test, list):
        return " or ".join(map(_words, test))
    return {True: "yes", False: "no", None: "unknown", "": "none"}.get(test, str(test))
