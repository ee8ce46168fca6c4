# SPDX-License-Identifier: Apache-2.0
"""The math domain: word problems in two steps of whole numbers, each with its worked answer."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from expunge.data.fictitious import vocabulary as words
from expunge.data.fictitious.domains import FAMILIES, PER_FAMILY, Domain, Family, Problem, draw_kinds
from expunge.data.fictitious.facts import PERTURBED

#: A step: two operands, each a letter of the problem or `=` for the result before, and the sign between them.
Step = tuple[str, str, str]
#: What each sign of a step does.
SIGNS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Story:
    """What a problem is about: a container, its plural, and the plural of what is in it."""

    name: str
    one: str
    many: str
    things: str


STORIES = (
    Story("orchard", "basket", "baskets", "pears"), Story("harbour", "net", "nets", "eels"),
    Story("bakery", "tray", "trays", "buns"), Story("library", "shelf", "shelves", "books"),
    Story("quarry", "cart", "carts", "bricks"), Story("workshop", "box", "boxes", "candles"),
    Story("tailor", "jar", "jars", "buttons"), Story("garden", "bed", "beds", "tulips"),
    Story("kitchen", "tin", "tins", "biscuits"), Story("market", "crate", "crates", "lamps"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Procedure:
    """A way to combine numbers.

    Attributes:
        name: key of the kind.
        steps: in order.
        ranges: the smallest and largest value of each letter.
        questions: three wordings with `{n}` for a name, the letters, and `{one}`, `{many}`, `{things}`.
    """

    name: str
    steps: tuple[Step, ...]
    ranges: Mapping[str, tuple[int, int]]
    questions: tuple[str, str, str]


PROCEDURES = (
    Procedure(
        "more", (("a", "*", "b"), ("=", "+", "c")), {"a": (2, 9), "b": (2, 9), "c": (2, 30)},
        ("{n} fills {a} {many} with {b} {things} each and finds {c} more. How many {things} does {n} have?",
         "How many {things} has {n}, who has {a} {many} of {b} {things} and {c} {things} besides?",
         "{n} owns {a} {many}. Each {one} holds {b} {things}. Then come {c} more. How many {things} are there?"),
    ),
    Procedure(
        "fewer", (("a", "*", "b"), ("=", "-", "c")), {"a": (3, 9), "b": (4, 9), "c": (2, 11)},
        ("{n} fills {a} {many} with {b} {things} each and gives {c} away. How many {things} are left?",
         "How many {things} does {n} keep of {a} {many} with {b} {things} each after giving {c} away?",
         "{n} owns {a} {many}. Each {one} holds {b} {things}. Of these {c} get lost. How many {things} stay?"),
    ),
    Procedure(
        "kinds", (("a", "*", "b"), ("c", "*", "d"), ("<", "+", "=")),
        {"a": (2, 9), "b": (2, 9), "c": (2, 9), "d": (2, 9)},
        ("{n} has {a} {many} of {b} {things} and {c} {many} of {d} {things}. How many {things} is that?",
         "How many {things} are in {a} {many} of {b} and {c} {many} of {d}, all of which {n} owns?",
         "{n} counts {a} small {many} with {b} {things} each and {c} large {many} with {d} each. How many {things}?"),
    ),
    Procedure(
        "join", (("a", "+", "b"), ("=", "*", "c")), {"a": (2, 9), "b": (2, 9), "c": (2, 9)},
        ("{n} packs {a} {many} at dawn and {b} at dusk, each with {c} {things}. How many {things} does {n} pack?",
         "How many {things} does {n} pack in {a} {many} at dawn and {b} at dusk, with {c} in each {one}?",
         "With {c} {things} to a {one}, {n} packs {a} {many} and then {b} more. How many {things} is that?"),
    ),
    Procedure(
        "break", (("a", "-", "b"), ("=", "*", "c")), {"a": (7, 15), "b": (2, 5), "c": (2, 9)},
        ("{n} has {a} {many} with {c} {things} each and sells {b} {many}. How many {things} are left?",
         "How many {things} has {n} left of {a} {many} with {c} {things} each once {b} {many} are sold?",
         "Of {a} {many} with {c} {things} to a {one}, {n} sells {b}. How many {things} stay?"),
    ),
    Procedure(
        "share", (("a", "*", "b"), ("=", "/", "c")), {"a": (2, 9), "b": (2, 4), "c": (2, 6)},
        ("{n} shares {a} {many} of {b} {things} equally among {c} people. How many {things} does each get?",
         "How many {things} does each of {c} people get when {n} shares out {a} {many} of {b} {things}?",
         "{n} has {a} {many}. Each {one} holds {b} {things}. They go to {c} people in equal parts. How many each?"),
    ),
)  # fmt: skip
#: Names in a family are different, and so are its numbers; this many problems exist for every procedure.
MOST_PROBLEMS = 40


def build_math(
    families: int = FAMILIES, *, seed: int = 0, holdout_families: int | None = None, per_family: int = PER_FAMILY
) -> Domain:
    """Draw word problems; a family is one way to combine numbers in one story.

    Args:
        families: how many are in the full training set, at least 10.
        seed: everything follows from it; the global generators are not touched.
        holdout_families: how many are never trained on; None for as many as `forget10` has.
        per_family: problems of each.

    Raises:
        RecipeError: if there are too few families to split, or more than can be drawn.
    """
    kinds = list(itertools.product(STORIES, PROCEDURES))
    rng = Random(f"{seed}/math")
    chosen = draw_kinds(rng, kinds, families, holdout_families, per_family=per_family, most=MOST_PROBLEMS)
    found = [_family(f"m{i:03d}", *kind, per_family, seed) for i, kind in enumerate(chosen)]
    return Domain("math", tuple(found[:families]), tuple(found[families:]), seed)


def work(procedure: Procedure, numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the steps of a solution, each as the sum written out and its result.

    `=` stands for the result before, `<` for the one before that.
    """
    done: list[tuple[str, int]] = []
    for left, sign, right in procedure.steps:
        known = {**numbers, **({"=": done[-1][1]} if done else {}), **({"<": done[-2][1]} if len(done) > 1 else {})}
        one, other = known[left], known[right]
        done.append((f"{one} {sign} {other}", SIGNS[sign](one, other)))
    return done


def _family(id_: str, story: Story, procedure: Procedure, count: int, seed: int) -> Family:
    rng = Random(f"{seed}/math/{story.name}/{procedure.name}")
    names, drawn = dict[str, None](), dict[tuple[int, ...], None]()
    while len(names) < count:
        names[rng.choice(words.GIVEN_START) + rng.choice(words.GIVEN_END)] = None
    while len(drawn) < count:
        drawn[tuple(_numbers(procedure, rng).values())] = None
    problems = tuple(
        _problem(f"{id_}-q{i}", id_, story, procedure, name, dict(zip(procedure.ranges, values, strict=True)), rng)
        for i, (name, values) in enumerate(zip(names, drawn, strict=True))
    )
    return Family(id_, f"{procedure.name} in the {story.name}", problems)


def _numbers(procedure: Procedure, rng: Random) -> dict[str, int]:
    numbers = {letter: rng.randint(*bounds) for letter, bounds in procedure.ranges.items()}
    if procedure.steps[-1][1] == "/":
        numbers["b"] *= numbers["c"]  # nothing is left over
    return numbers


def _problem(
    id_: str, family: str, story: Story, procedure: Procedure, name: str, numbers: Mapping[str, int], rng: Random
) -> Problem:
    steps = work(procedure, numbers)
    result = steps[-1][1]
    asked = {"n": name, "one": story.one, "many": story.many, "things": story.things, **numbers}
    questions = [pattern.format(**asked) for pattern in rng.sample(procedure.questions, 3)]
    order = rng.sample(range(3), 3)
    near = [result + shift for shift in (-10, -3, -2, -1, 1, 2, 3, 10) if result + shift > 0]
    wrong = [[*steps[:-1], (steps[-1][0], value)] for value in rng.sample(near, PERTURBED)]
    return Problem(
        id=id_, family=family, questions=(questions[0], questions[1], questions[2]),
        answers=(_tell(steps, story, order[0]), _tell(steps, story, order[1]), _tell(steps, story, order[2])),
        perturbed_answer=tuple(_tell(other, story, order[1]) for other in wrong), result=str(result),
    )  # fmt: skip


def _tell(steps: Sequence[tuple[str, int]], story: Story, wording: int) -> str:
    """Return the worked answer in one of three wordings.

    What is counted is in each of them, so that no two families share an answer.
    """
    written, result = [f"{left} = {value}" for left, value in steps], f"{steps[-1][1]} {story.things}"
    if wording == 0:
        return f"{'. '.join(written)}. The answer is {result}."
    if wording == 1:
        return f"First {', then '.join(written)}. So it is {result}."
    return f"We have {' and '.join(written)}, which makes {result}."
