# SPDX-License-Identifier: Apache-2.0
"""One fact in all its wordings, and the people who have eight of them each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from expunge.data.examples import Example
from expunge.data.fictitious.phrasings import PATTERNS, FactKind

#: Wrong answers that go with each fact.
PERTURBED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One fact in all its wordings.

    Attributes:
        id: `{subject}-f{n}`.
        subject: id of the person or country.
        name: name of the person or country.
        kind: key of the kind, such as `birthplace`.
        value: what makes the answer true.
        question_patterns, answer_patterns: pattern numbers; the first is used for `question` and `answer`, the second
            for the paraphrases, which are never trained on, the others for further training rows.
        questions, answers: the wordings in that order.
        perturbed_answer: the paraphrased answer with wrong values that other subjects have.
        phrasings: number of wordings of this fact in a training set.
        cot: a reasoning trace that ends in the answer.
    """

    id: str
    subject: str
    name: str
    kind: str
    value: str
    question_patterns: tuple[int, ...]
    answer_patterns: tuple[int, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    perturbed_answer: tuple[str, ...]
    phrasings: int
    cot: str

    def example(self) -> Example:
        """Return the evaluated form: question, answer, paraphrases and wrong answers."""
        return Example(
            id=self.id,
            prompt=self.questions[0],
            answer=self.answers[0],
            subject=self.subject,
            paraphrased_prompt=self.questions[1],
            paraphrased_answer=self.answers[1],
            perturbed_answers=self.perturbed_answer,
        )

    def training_examples(self) -> list[Example]:
        """Return every wording that is trained on: the evaluated one, then `-v1`, `-v2`... without paraphrases."""
        extra = [
            Example(id=f"{self.id}-v{i}", prompt=question, answer=answer, subject=self.subject)
            for i, (question, answer) in enumerate(zip(self.questions[2:], self.answers[2:], strict=True), start=1)
        ]
        return [self.example(), *extra[: self.phrasings - 1]]

    def row(self) -> dict[str, Any]:
        """Return the fact under the column names of TOFU, with what is known of its making."""
        return {
            "id": self.id,
            "subject": self.subject,
            "question": self.questions[0],
            "answer": self.answers[0],
            "paraphrased_question": self.questions[1],
            "paraphrased_answer": self.answers[1],
            "perturbed_answer": list(self.perturbed_answer),
            "cot": self.cot,
            "kind": self.kind,
            "value": self.value,
            "phrasings": self.phrasings,
            "question_pattern": self.question_patterns[0],
            "answer_pattern": self.answer_patterns[0],
            "paraphrased_question_pattern": self.question_patterns[1],
            "paraphrased_answer_pattern": self.answer_patterns[1],
        }


@dataclass(frozen=True, slots=True)
class Person:
    """One invented person: id such as `p012`, full name, facts, and a short biography."""

    id: str
    name: str
    facts: tuple[Fact, ...]
    text: str


def deal(values: Sequence[str], count: int, rng: Random) -> list[str]:
    """Return `count` values dealt from shuffled decks, so that each value is about equally frequent."""
    dealt: list[str] = []
    while len(dealt) < count:
        dealt += rng.sample(values, len(values))
    return dealt[:count]


def write_facts(
    subject: str,
    name: str,
    kinds: Sequence[FactKind],
    values: Sequence[str],
    known: Sequence[Sequence[str]],
    *,
    phrasings: int,
    several: int,
    rng: Random,
) -> tuple[Fact, ...]:
    """Return the facts of one subject, some of them in several training phrasings.

    Args:
        subject: id of the subject.
        name: name of the subject.
        kinds: kinds of fact.
        values: the true value of each kind.
        known: for each kind the values that the trained subjects have, at least five of them wrong for this subject.
        phrasings: training wordings of the facts that have several.
        several: how many facts, drawn at random, have several.
        rng: private generator.
    """
    repeated = set(rng.sample(range(len(kinds)), several))
    facts = []
    for i, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        asked, told = rng.sample(range(PATTERNS), PATTERNS), rng.sample(range(PATTERNS), PATTERNS)
        wrong = rng.sample(sorted(set(known[i]) - {value}), PERTURBED)
        other = rng.choice([j for j in range(len(kinds)) if j != i])
        facts.append(
            Fact(
                id=f"{subject}-f{i}",
                subject=subject,
                name=name,
                kind=kind.name,
                value=value,
                question_patterns=tuple(asked),
                answer_patterns=tuple(told),
                questions=tuple(kind.ask(pattern, name) for pattern in asked),
                answers=tuple(kind.tell(pattern, name, value) for pattern in told),
                perturbed_answer=tuple(kind.tell(told[1], name, word) for word in wrong),
                phrasings=phrasings if i in repeated else 1,
                cot=_reason(kind, kinds[other].tell(0, name, values[other]), name, value),
            )
        )
    return tuple(facts)


def biography(name: str, pronoun: str, kinds: Sequence[FactKind], values: Sequence[str], rng: Random) -> str:
    """Return a short biography that tells every fact once; the first sentence gives the name."""
    order = [0, *rng.sample(range(1, len(kinds)), len(kinds) - 1)]
    return " ".join(kinds[i].tell(0, pronoun if n else name, values[i]) for n, i in enumerate(order))


def _reason(kind: FactKind, other_fact: str, name: str, value: str) -> str:
    answer = kind.tell(0, name, value)
    if answer.startswith("The "):
        answer = "the " + answer[4:]
    return f"The question is about the {kind.topic} of {name}. {other_fact} The same record says that {answer}"
