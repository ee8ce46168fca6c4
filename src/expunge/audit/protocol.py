# SPDX-License-Identifier: Apache-2.0
"""Which part each evaluated set plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from expunge.data.examples import Example
from expunge.errors import RecipeError

SetRole = Literal["forget", "retain", "holdout", "options"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """A named, versioned reading of the evaluated sets.

    Attributes:
        name, version: which protocol, for example `tofu` and `1`.
        roles: role of every set. `forget` should lose what it taught; `retain` should stay as it was; `holdout` is
            like the forget set and was never trained on; `options` is utility with right and wrong answers.
    """

    name: str
    version: str
    roles: Mapping[str, SetRole]

    def __post_init__(self) -> None:
        for name, role in self.roles.items():
            if role not in get_args(SetRole):
                remedy = f"Valid: {', '.join(get_args(SetRole))}"
                raise RecipeError("unknown role of a set", field=f"roles.{name}", value=role, remedy=remedy)

    def sets(self, *roles: SetRole) -> tuple[str, ...]:
        """Return the names of the sets with one of the roles, in order."""
        return tuple(name for name, role in self.roles.items() if role in roles)


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
