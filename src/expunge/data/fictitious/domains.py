# SPDX-License-Identifier: Apache-2.0
"""Domains of problems: word problems or small functions in families, split as the people of the archive are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypeVar

from expunge.data.examples import Example
from expunge.data.fictitious.splits import Sets, groups_in, held_count
from expunge.errors import RecipeError

PER_FAMILY = 4
FAMILIES = 40
DomainName = Literal["text", "math", "code"]
DOMAINS: tuple[DomainName, ...] = ("text", "math", "code")
Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem with its worked answer.

    Attributes:
        id: `{family}-q{n}`.
        family: id of its family; the subject of its examples.
        questions, answers: three wordings each: the evaluated one, the paraphrase that is never trained on, and a
            further one for training. Any question goes with any answer.
        perturbed_answer: the paraphrased answer with wrong results.
        result: what is right, as text: a number, or what `check` evaluates to.
        check: for code, a call of the function; "" for a number in the answer.
    """

    id: str
    family: str
    questions: tuple[str, str, str]
    answers: tuple[str, str, str]
    perturbed_answer: tuple[str, ...]
    result: str
    check: str = ""

    def example(self) -> Example:
        """Return the evaluated form: question, worked answer, paraphrases and wrong answers."""
        return Example(
            id=self.id, prompt=self.questions[0], answer=self.answers[0], subject=self.family,
            paraphrased_prompt=self.questions[1], paraphrased_answer=self.answers[1],
            perturbed_answers=self.perturbed_answer,
        )  # fmt: skip

    def training_examples(self) -> list[Example]:
        """Return every wording that is trained on: the evaluated one, then `-v1`."""
        again = Example(
            id=f"{self.id}-v1", prompt=self.questions[2], answer=self.answers[2], subject=self.family
        )  # fmt: skip
        return [self.example(), again]

    def row(self) -> dict[str, Any]:
        """Return the problem under the column names of the archive's other files."""
        row: dict[str, Any] = {
            "id": self.id, "subject": self.family, "question": self.questions[0], "answer": self.answers[0],
            "paraphrased_question": self.questions[1], "paraphrased_answer": self.answers[1],
            "perturbed_answer": list(self.perturbed_answer), "result": self.result,
        }  # fmt: skip
        return row | ({"check": self.check} if self.check else {})


@dataclass(frozen=True, slots=True)
class Family:
    """Problems of one kind: id such as `m03`, what they have in common, and the problems."""

    id: str
    kind: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Domain(Sets):
    """Problems in families, some families never trained on.

    Attributes:
        name: `math` or `code`.
        families: all that a full training set holds; the forget sets are the last of them.
        holdout: families drawn in the same way that are in no training set.
        seed: what it was drawn from.
    """

    name: DomainName
    families: tuple[Family, ...]
    holdout: tuple[Family, ...]
    seed: int

    def families_in(self, which: str) -> tuple[Family, ...]:
        """Return the families of `full`, `holdout`, `forget01|05|10` or `retain99|95|90`.

        Raises:
            RecipeError: if there is no set of that name.
        """
        return groups_in(self.families, self.holdout, which)

    def problems(self, which: str = "full") -> list[Problem]:
        """Return the problems of a set of families."""
        return [problem for family in self.families_in(which) for problem in family.problems]

    def examples(self, which: str = "full") -> list[Example]:
        """Return the evaluated examples of a set of families, one a problem."""
        return [problem.example() for problem in self.problems(which)]

    def wordings(self, which: str) -> list[Example]:
        """Return every training wording of a set of families."""
        return [example for problem in self.problems(which) for example in problem.training_examples()]

    def rows(self, which: str = "full") -> list[dict[str, Any]]:
        """Return one JSON-ready row a problem."""
        return [problem.row() for problem in self.problems(which)]

    def texts(self) -> list[str]:
        """Return what a tokenizer is to be trained on; the holdout is in it."""
        every = [p for family in (*self.families, *self.holdout) for p in family.problems]
        return [text for problem in every for text in (*problem.questions, *problem.answers)]


def draw_kinds(
    rng: Random, kinds: Sequence[Kind], families: int, holdout: int | None, *, per_family: int, most: int
) -> list[Kind]:
    """Return the kind of every family, those that are trained on first.

    Args:
        rng: private generator.
        kinds: all there are, no two families are of the same.
        families: how many are trained on.
        holdout: how many are never trained on; None for the default.
        per_family: problems of each.
        most: different problems that a family has for certain.

    Raises:
        RecipeError: for sizes that a domain cannot have.
    """
    held = held_count("families", families, holdout)
    if families + held > len(kinds):
        remedy = f"At most {len(kinds) - held}."
        raise RecipeError(f"with {held} held out there are {len(kinds)}", field="families", value=families,
                          remedy=remedy)  # fmt: skip
    if not 1 <= per_family <= most:
        raise RecipeError("is not possible", field="per_family", value=per_family, remedy=f"Take 1 to {most}.")
    return rng.sample(kinds, families + held)
