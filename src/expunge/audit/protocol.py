# SPDX-License-Identifier: Apache-2.0
"""Which part each evaluated set plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from expunge.data.examples import Example
from expunge.errors import InputDataError, RecipeError

SetRole = Literal["forget", "retain", "holdout", "options", "hazard", "questions", "reasoning"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """How the prompts of one set are continued, where a protocol fixes it.

    Attributes:
        max_new_tokens: longest generation in tokens; None takes that of the audit's settings.
        stop: the generation is cut before the first of these strings.
        target_tokens: the true answer is cut to this many token ids, those the tokenizer adds at its start counted;
            None leaves it whole.
        max_total_tokens: prompt and generation together are cut to this many tokens; None leaves them whole.
    """

    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    target_tokens: int | None = None
    max_total_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Protocol:
    """A named, versioned reading of the evaluated sets.

    Attributes:
        name, version: which protocol, for example `tofu` and `1`.
        roles: role of every set. `forget` should lose what it taught; `retain` should stay as it was; `holdout` is
            like the forget set and was never trained on; `options` is utility with right and wrong answers.
            Three have metrics of their own: `hazard`, multiple-choice questions the model should come to fail;
            `questions`, such questions it should still answer; `reasoning`, problems with one exact answer.
        continuations: how prompts are continued, for the sets where that is fixed.
        members: sets of role `forget` that membership attacks compare with the holdout; () takes all of them.
    """

    name: str
    version: str
    roles: Mapping[str, SetRole]
    continuations: Mapping[str, Continuation] = field(default_factory=dict)
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, role in self.roles.items():
            if role not in get_args(SetRole):
                remedy = f"Valid: {', '.join(get_args(SetRole))}"
                raise RecipeError("unknown role of a set", field=f"roles.{name}", value=role, remedy=remedy)

    def sets(self, *roles: SetRole) -> tuple[str, ...]:
        """Return the names of the sets with one of the roles, in order."""
        return tuple(name for name, role in self.roles.items() if role in roles)

    def continuation(self, name: str) -> Continuation:
        """Return how the prompts of a set are continued."""
        return self.continuations.get(name, Continuation())

    def to_dict(self) -> dict[str, Any]:
        """Return the protocol as JSON values; what it leaves open is left out."""
        out: dict[str, Any] = {"name": self.name, "version": self.version, "roles": dict(self.roles)}
        if self.continuations:
            out["continuations"] = {name: asdict(found) for name, found in self.continuations.items()}
        return out | ({"members": list(self.members)} if self.members else {})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Protocol:
        """Return the protocol that records or an audit document state; see `to_dict`.

        Raises:
            InputDataError: if what is stated is no protocol.
        """
        try:
            found = {name: Continuation(**rule) for name, rule in plain.get("continuations", {}).items()}
            rules = {name: replace(rule, stop=tuple(rule.stop)) for name, rule in found.items()}
            members = tuple(plain.get("members", ()))
            return cls(plain["name"], plain["version"], dict(plain["roles"]), rules, members)
        except (KeyError, TypeError, ValueError) as error:
            raise InputDataError(f"not a protocol: {error}", field="protocol", remedy="Audit the model again") from None


def default_protocol(sets: Mapping[str, Sequence[Example]]) -> Protocol:
    """Return the protocol that set names suggest.

    `forget`, `retain` and `holdout` play what they are called. Any other set is utility: `options` if every example
    has wrong answers to choose from, otherwise `retain`.
    """
    return Protocol("default", "1", {name: _role(name, examples) for name, examples in sets.items()})


def _role(name: str, examples: Sequence[Example]) -> SetRole:
    if name == "forget":
        return "forget"
    if name == "holdout":
        return "holdout"
    if name == "retain" or not len(examples):
        return "retain"
    return "options" if all(example.perturbed_answers for example in examples) else "retain"
