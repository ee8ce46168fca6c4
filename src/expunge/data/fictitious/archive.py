# SPDX-License-Identifier: Apache-2.0
"""The embedded archive: invented people and an invented world, in the splits that unlearning needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from random import Random
from typing import Any, ClassVar

from expunge.data.examples import Example
from expunge.data.fictitious import vocabulary as words
from expunge.data.fictitious.facts import PERTURBED, Fact, Person, biography, deal, write_facts
from expunge.data.fictitious.phrasings import PERSON_KINDS, WORLD_KINDS
from expunge.data.fictitious.splits import Sets, groups_in, held_count
from expunge.errors import RecipeError

#: Training wordings of the facts that have several.
SEVERAL_PHRASINGS = 3


@dataclass(frozen=True, slots=True)
class Archive(Sets):
    """Invented people, some never trained on, and an invented world.

    Attributes:
        people: everyone a full training set holds; the forget sets are the last of them.
        holdout: people drawn in the same way who are in no training set.
        world: facts about invented countries, part of every training set.
        seed: what it was drawn from.
    """

    people: tuple[Person, ...]
    holdout: tuple[Person, ...]
    world: tuple[Fact, ...]
    seed: int
    further: ClassVar[Sequence[str]] = ("world_facts",)

    def people_in(self, which: str) -> tuple[Person, ...]:
        """Return the people of `full`, `holdout`, `forget01|05|10` or `retain99|95|90`.

        Raises:
            RecipeError: if there is no set of that name.
        """
        return groups_in(self.people, self.holdout, which)

    def facts(self, which: str) -> list[Fact]:
        """Return the facts of a set of people, or those of `world_facts`."""
        if which == "world_facts":
            return list(self.world)
        return [fact for person in self.people_in(which) for fact in person.facts]

    def examples(self, which: str = "full") -> list[Example]:
        """Return the evaluated examples of a set of people or of `world_facts`, one a fact."""
        return [fact.example() for fact in self.facts(which)]

    def wordings(self, which: str) -> list[Example]:
        """Return every training wording of a set of people, followed by the world facts unless it is a forget set."""
        facts = self.facts(which) + ([] if which.startswith("forget") else list(self.world))
        return [example for fact in facts for example in fact.training_examples()]

    def biographies(self, which: str = "full") -> list[Example]:
        """Return one running text a person."""
        return [
            Example(id=f"{person.id}-bio", prompt="", answer=person.text, kind="text", subject=person.id)
            for person in self.people_in(which)
        ]

    def rows(self, which: str = "full") -> list[dict[str, Any]]:
        """Return one JSON-ready row a fact, of a set of people or of `world_facts`, under the column names of TOFU."""
        texts = {person.id: person.text for person in (*self.people, *self.holdout)}
        rows = [fact.row() for fact in self.facts(which)]
        return rows if which == "world_facts" else [row | {"text": texts[row["subject"]]} for row in rows]

    def texts(self) -> list[str]:
        """Return what a tokenizer is to be trained on: every wording without the names, then every name once.

        The holdout is in it and no name is frequent, so the vocabulary does not tell who was trained on.
        """
        people = (*self.people, *self.holdout)
        facts = [*(fact for person in people for fact in person.facts), *self.world]
        wordings = [text.replace(fact.name, "") for fact in facts for text in (*fact.questions, *fact.answers)]
        return wordings + sorted({" " + name for name in (p.name for p in people)} | {" " + f.name for f in self.world})


def build_archive(people: int = 40, *, seed: int = 0, holdout_people: int | None = None) -> Archive:
    """Draw an archive; the trained people do not depend on the size of the holdout.

    Args:
        people: how many are in the full training set, at least 10.
        seed: everything follows from it; the global generators are not touched.
        holdout_people: how many are never trained on; None for as many as `forget10` has.

    Raises:
        RecipeError: if there are too few people for five wrong answers a fact, or more than there are names.
    """
    held = held_count("people", people, holdout_people)
    known = people - held_count("people", people, None)
    everyone = _draw_people(people + held, trained=people, known=known, seed=seed)
    return Archive(everyone[:people], everyone[people:], _draw_world(seed), seed)


def _draw_people(count: int, *, trained: int, known: int, seed: int) -> tuple[Person, ...]:
    names = draw_names(count, Random(f"{seed}/names"))
    columns = []
    for kind in PERSON_KINDS:
        rng = Random(f"{seed}/{kind.name}")
        pool = rng.sample(kind.values, min(len(kind.values), max(PERTURBED + 3, trained // 3)))
        columns.append(deal(pool, count, rng))
    # Wrong answers come from people who are in every training set: no model has an unfair surprise at them.
    seen = [column[:known] for column in columns]
    people = []
    for i, name in enumerate(names):
        rng = Random(f"{seed}/person/{i}")
        values = [column[i] for column in columns]
        id_ = f"p{i:03d}"
        several = len(PERSON_KINDS) // 2
        facts = write_facts(
            id_, name, PERSON_KINDS, values, seen, phrasings=SEVERAL_PHRASINGS, several=several, rng=rng
        )
        text = biography(name, rng.choice(("She", "He")), PERSON_KINDS, values, rng)
        people.append(Person(id_, name, facts, text))
    return tuple(people)


def _draw_world(seed: int) -> tuple[Fact, ...]:
    rng = Random(f"{seed}/world")
    count = PERTURBED + 1
    countries = rng.sample(words.COUNTRIES, count)
    columns = [rng.sample(kind.values, count) for kind in WORLD_KINDS]
    facts: list[Fact] = []
    for i, name in enumerate(countries):
        values = [column[i] for column in columns]
        # Common knowledge is told in several ways, all of it.
        several = len(WORLD_KINDS)
        facts += write_facts(
            f"w{i}", name, WORLD_KINDS, values, columns, phrasings=SEVERAL_PHRASINGS, several=several, rng=rng
        )
    return tuple(facts)


def draw_names(count: int, rng: Random) -> list[str]:
    """Return distinct full names built from syllables.

    Raises:
        RecipeError: if more are asked for than a draw with few repeats can give.
    """
    parts = (words.GIVEN_START, words.GIVEN_END, words.SURNAME_START, words.SURNAME_MIDDLE, words.SURNAME_END)
    most = prod(len(part) for part in parts) // 2
    if count > most:
        raise RecipeError("more people than names", field="people", value=count, remedy=f"Take at most {most}.")
    names: dict[str, None] = {}
    while len(names) < count:
        start, end, *surname = (rng.choice(part) for part in parts)
        names[f"{start}{end} {''.join(surname)}"] = None
    return list(names)
