# SPDX-License-Identifier: Apache-2.0
"""What may be said: kinds of claim, the cards of methods and metrics, and the sentences that are never written."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class ClaimKind(StrEnum):
    """How strong a statement a method supports."""

    EXACT = "exact"
    STATISTICAL = "statistical"
    APPROXIMATE = "approximate"
    SUPPRESSION = "suppression"


#: What a report may say, by kind of claim.
SENTENCES: dict[ClaimKind, str] = {
    ClaimKind.EXACT: "The result is the one that training without the data gives, under the stated seeds and plan.",
    ClaimKind.STATISTICAL: "An (epsilon, delta) statement holds under the assumptions printed with it.",
    ClaimKind.APPROXIMATE: (
        "The method was applied and the listed tests found the listed values with their intervals; "
        "attacks that were not run are listed as not tested."
    ),
    ClaimKind.SUPPRESSION: "Outputs are blocked at serving time; the weights still carry the data.",
}

#: Printed by every report.
MISMATCHES: tuple[str, ...] = (
    "Suppressing outputs is not removing data.",
    "Removing data does not guarantee outputs.",
    "A model is not a database.",
    "A model is not its outputs.",
    "Unlearning has side effects.",
)

#: Attacks a report lists as not tested unless they were run.
ATTACKS: tuple[str, ...] = (
    "relearning", "quantisation", "probing", "prompt attacks", "pruning", "interpolation", "direction ablation",
    "suffix search", "trace detection",
)  # fmt: skip

_FORBIDDEN: tuple[tuple[str, str], ...] = (
    (
        r"\b(data|knowledge|information|record|text|it)\s+(is|are|was|were|has been|have been)\s+"
        r"(fully |completely |successfully )?(deleted|removed|forgotten|erased)\b",
        "claims removal",
    ),
    (r"\b(certified|proved|proven|provably)\s+unlearn", "claims certified unlearning"),
    (r"\bnot a member\b", "claims non-membership"),
    (r"\bepsilon\s+is\s+at\s+most\b", "states an upper bound on epsilon from a test"),
    (r"\bGDPR[- ]compliant\b", "states a legal conclusion"),
    (r"\banonymous\b", "states a legal conclusion"),
)


def lint(text: str) -> list[str]:
    """Return one line per sentence in `text` that must not be written (empty when all is well)."""
    found = []
    for pattern, why in _FORBIDDEN:
        found += [f"{why}: {match.group(0)!r}" for match in re.finditer(pattern, text, flags=re.IGNORECASE)]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCard:
    """What a reader must know of an unlearning method before believing its numbers.

    `needs` lists inputs out of `forget`, `retain`, `holdout`, `reference`, `base_model`. `cost` counts forwards F of
    one sequence per optimiser step and forget sequence (a backward is 2 F). `provenance` says where the formula comes
    from; `differences` lists every deliberate deviation from it.
    """

    name: str
    title: str
    paper: str
    authors: str
    year: int
    venue: str
    family: str
    claim: ClaimKind
    needs: tuple[str, ...]
    cost: str
    formula: str
    provenance: str
    differences: tuple[str, ...] = ()
    defaults_source: str = ""
    notes: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricCard:
    """What a number means.

    `name` may start with `{set}.` for metrics that exist for every evaluated set. `direction` is `higher`, `lower`
    or `reference` (closer to the retrained reference is better, on either side). `needs` lists what must be there
    beside the model: `reference`, `holdout`, `perturbed_answers`...; `compat` the named variants other codes compute.
    """

    name: str
    title: str
    definition: str
    unit: str
    direction: str
    target: str
    needs: tuple[str, ...] = ()
    compat: tuple[str, ...] = ("fixed",)
    known_failures: tuple[str, ...] = field(default_factory=tuple)
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        return asdict(self)
