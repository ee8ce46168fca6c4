# SPDX-License-Identifier: Apache-2.0
"""Further domains of the archive: problems in families, split as the people are, and all three domains together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from expunge.data.examples import Example, Splits
from expunge.data.fictitious.archive import FORGET_SETS, Archive, forget_count
from expunge.data.writing import write_examples
from expunge.errors import RecipeError, nearest

#: Families a domain needs so that a tenth of them can be forgotten and the others stay.
MIN_FAMILIES = 10
PER_FAMILY = 4
FAMILIES = 40
DomainName = Literal["text", "math", "code"]
DOMAINS: tuple[DomainName, ...] = ("text", "math", "code")


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
class Domain:
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
        groups = {"full": self.families, "holdout": self.holdout}
        for forget, (percent, retain) in FORGET_SETS.items():
            cut = len(self.families) - forget_count(len(self.families), percent)
            groups |= {retain: self.families[:cut], forget: self.families[cut:]}
        if which not in groups:
            raise RecipeError("no such set of problems", field="which", value=which, remedy=nearest(which, groups))
        return groups[which]

    def problems(self, which: str = "full") -> list[Problem]:
        """Return the problems of a set of families."""
        return [problem for family in self.families_in(which) for problem in family.problems]

    def examples(self, which: str = "full") -> list[Example]:
        """Return the evaluated examples of a set of families, one a problem."""
        return [problem.example() for problem in self.problems(which)]

    def splits(self, forget: str = "forget10") -> Splits:
        """Return the evaluated examples for one of the forget sets.

        Raises:
            RecipeError: if there is no forget set of that name.
        """
        if forget not in FORGET_SETS:
            raise RecipeError("no such forget set", field="forget", value=forget, remedy=nearest(forget, FORGET_SETS))
        retain = FORGET_SETS[forget][1]
        forgotten, retained, holdout = (tuple(self.examples(which)) for which in (forget, retain, "holdout"))
        return Splits(forgotten, retained, holdout)

    def training_examples(self, which: str = "full") -> list[Example]:
        """Return every training wording of a set of families.

        Raises:
            RecipeError: if there is no set of that name, or it is `holdout`, which is never trained on.
        """
        if which == "holdout":
            raise RecipeError("the holdout is never trained on", field="which", value=which, remedy="Take another set.")
        return [example for problem in self.problems(which) for example in problem.training_examples()]

    def rows(self, which: str = "full") -> list[dict[str, Any]]:
        """Return one JSON-ready row a problem."""
        return [problem.row() for problem in self.problems(which)]

    def texts(self) -> list[str]:
        """Return what a tokenizer is to be trained on; the holdout is in it."""
        every = [p for family in (*self.families, *self.holdout) for p in family.problems]
        return [text for problem in every for text in (*problem.questions, *problem.answers)]

    def write_jsonl(self, folder: Path) -> list[Path]:
        """Write `{set}.jsonl` for every set and `train_{set}.jsonl` for every training set; return the paths."""
        retains = [retain for _, retain in FORGET_SETS.values()]
        files = {which: self.rows(which) for which in ("full", *FORGET_SETS, *retains, "holdout")}
        for which in ("full", *retains):
            files[f"train_{which}"] = [
                {"id": e.id, "subject": e.subject, "question": e.prompt, "answer": e.answer}
                for e in self.training_examples(which)
            ]
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        return [folder / f"{name}.jsonl" for name in files]


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
            name: tuple(self._evaluated(name)) for name in DOMAINS if name != domain
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
        retain = {name: kept for name, (_, kept) in FORGET_SETS.items()}
        sets: dict[str, Sequence[Example]] = self.splits(domain, forget).named()
        sets |= {"train_full": self.training_examples(), "train_retain": self.training_examples(domain, retain[forget])}
        return {name: write_examples(examples, folder / f"{name}.jsonl") for name, examples in sets.items()}

    def texts(self) -> list[str]:
        """Return what a tokenizer is to be trained on."""
        return [text for name in DOMAINS for text in self._domain(name).texts()]

    def _evaluated(self, name: DomainName) -> Sequence[Example]:
        if name == "text":
            return [fact.example() for fact in self.text.facts("full")]
        found = self._domain(name)
        assert isinstance(found, Domain)
        return found.examples()

    def _domain(self, name: DomainName) -> Archive | Domain:
        domains: dict[str, Archive | Domain] = {"text": self.text, "math": self.math, "code": self.code}
        if name not in domains:
            raise RecipeError("no such domain", field="domain", value=name, remedy=nearest(name, domains))
        return domains[name]


def split_families(
    found: Sequence[Family], families: int, holdout: int | None
) -> tuple[tuple[Family, ...], tuple[Family, ...]]:
    """Return the trained families and those held out of what was drawn."""
    held = held_count(families, holdout)
    return tuple(found[:families]), tuple(found[families : families + held])


def held_count(families: int, holdout: int | None) -> int:
    """Return how many families are never trained on: by default as many as `forget10` has."""
    return forget_count(families, FORGET_SETS["forget10"][0]) if holdout is None else holdout


def check_sizes(families: int, per_family: int, holdout: int | None, *, most: int, most_problems: int) -> None:
    """Raise `RecipeError` for sizes that a domain cannot have.

    Args:
        families: how many are trained on.
        per_family: problems of each.
        holdout: how many families are never trained on; None for the default.
        most: families there are.
        most_problems: different problems that a family has for certain.
    """
    held = held_count(families, holdout)
    if families < MIN_FAMILIES:
        raise RecipeError("too few to split", field="families", value=families, remedy=f"Take at least {MIN_FAMILIES}.")
    if held < 0:
        raise RecipeError("cannot be negative", field="holdout_families", value=held, remedy="Take 0 or more.")
    if families + held > most:
        raise RecipeError(
            f"with {held} held out there are {most}", field="families", value=families, remedy=f"At most {most - held}."
        )
    if not 1 <= per_family <= most_problems:
        raise RecipeError(
            "is not possible", field="per_family", value=per_family, remedy=f"Take 1 to {most_problems}."
        )  # fmt: skip
