# SPDX-License-Identifier: Apache-2.0
"""The three domains together: people, word problems, small functions, learned by one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expunge.data.examples import Example, Splits
from expunge.data.fictitious.archive import Archive, build_archive
from expunge.data.fictitious.domains import DOMAINS, FAMILIES, PER_FAMILY, Domain, DomainName
from expunge.data.fictitious.maths import build_math
from expunge.data.fictitious.programs import build_code
from expunge.data.fictitious.splits import Sets, retain_of
from expunge.data.writing import write_examples
from expunge.errors import RecipeError, nearest


@dataclass(frozen=True, slots=True)
class ThreeDomains:
    """The people of the archive and the two domains of problems, learned by one model."""

    text: Archive
    math: Domain
    code: Domain

    def splits(self, domain: DomainName, forget: str = "forget10") -> Splits:
        """Return the sets of a request in one domain; the other two are further sets, which utility counts.

        Raises:
            RecipeError: if there is no such domain or forget set.
        """
        own = self._domain(domain).splits(forget)
        others: dict[str, Sequence[Example]] = {
            name: tuple(self._domain(name).examples()) for name in DOMAINS if name != domain
        }
        return Splits(own.forget, own.retain, own.holdout, {**own.extra, **others})

    def training_examples(self, domain: DomainName = "text", which: str = "full") -> list[Example]:
        """Return the training examples of all domains, of `domain` those of one set only, such as `retain90`.

        Raises:
            RecipeError: if there is no such domain or set, or it is the holdout.
        """
        self._domain(domain)
        every = [(name, which if name == domain else "full") for name in DOMAINS]
        return [example for name, part in every for example in self._domain(name).training_examples(part)]

    def write_jsonl(self, folder: Path, domain: DomainName, forget: str = "forget10") -> dict[str, Path]:
        """Write the sets of one request, and what a model and its reference are trained on; return the paths by name.

        Args:
            folder: where to.
            domain: what the request is about.
            forget: its forget set.
        """
        sets: dict[str, Sequence[Example]] = self.splits(domain, forget).named()
        sets |= {
            "train_full": self.training_examples(),
            "train_retain": self.training_examples(domain, retain_of(forget)),
        }
        return {name: write_examples(examples, folder / f"{name}.jsonl") for name, examples in sets.items()}

    def texts(self) -> list[str]:
        """Return what a tokenizer is to be trained on."""
        return [text for name in DOMAINS for text in self._domain(name).texts()]

    def _domain(self, name: DomainName) -> Sets:
        domains: dict[str, Sets] = {"text": self.text, "math": self.math, "code": self.code}
        if name not in domains:
            raise RecipeError("no such domain", field="domain", value=name, remedy=nearest(name, domains))
        return domains[name]


def build_domains(
    people: int = 40, *, families: int = FAMILIES, per_family: int = PER_FAMILY, seed: int = 0
) -> ThreeDomains:
    """Draw the archive of people and the two domains of problems.

    Args:
        people: of the archive, at least 10.
        families: of each domain of problems, at least 10.
        per_family: problems of each family.
        seed: everything follows from it.

    Raises:
        RecipeError: if one of the sizes is not possible.
    """
    return ThreeDomains(
        build_archive(people, seed=seed),
        build_math(families, seed=seed, per_family=per_family),
        build_code(families, seed=seed, per_family=per_family),
    )
