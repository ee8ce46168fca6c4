# SPDX-License-Identifier: Apache-2.0
"""The code domain: small functions of a list of numbers, each with a docstring and a call whose result is known."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from expunge.data.fictitious import vocabulary as words
from expunge.data.fictitious.domains import FAMILIES, PER_FAMILY, Domain, Family, Problem, draw_kinds
from expunge.data.fictitious.facts import PERTURBED

Value = int | list[int]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which numbers a function looks at: in words, as code on `x`, and as what it does; `k` is a constant."""

    name: str
    words: str
    code: str
    keeps: Callable[[int, int], bool]


@dataclass(frozen=True, slots=True)
class Reducer:
    """What a function makes of the numbers it kept, with the constant `c`: in words, as code on `kept`, and done."""

    name: str
    words: str
    code: str
    makes: Callable[[list[int], int], Value]


FILTERS = (
    Filter("even", "even numbers", "x % 2 == 0", lambda x, k: x % 2 == 0),
    Filter("odd", "odd numbers", "x % 2 == 1", lambda x, k: x % 2 == 1),
    Filter("above", "numbers above {k}", "x > {k}", lambda x, k: x > k),
    Filter("below", "numbers below {k}", "x < {k}", lambda x, k: x < k),
    Filter("multiple", "multiples of {k}", "x % {k} == 0", lambda x, k: x % k == 0),
    Filter("other", "numbers that are not {k}", "x != {k}", lambda x, k: x != k),
)
REDUCERS = (
    Reducer("total", "{c} plus the sum of the {f}", "sum(kept) + {c}", lambda kept, c: sum(kept) + c),
    Reducer("count", "{c} times the count of the {f}", "{c} * len(kept)", lambda kept, c: c * len(kept)),
    Reducer("most", "{c} times the largest of the {f}", "{c} * max(kept)", lambda kept, c: c * max(kept)),
    Reducer("least", "{c} plus the smallest of the {f}", "min(kept) + {c}", lambda kept, c: min(kept) + c),
    Reducer("ends", "the first of the {f}, less {c}", "kept[0] - {c}", lambda kept, c: kept[0] - c),
    Reducer("squares", "{c} plus the sum of the squares of the {f}", "sum(x * x for x in kept) + {c}",
            lambda kept, c: sum(x * x for x in kept) + c),
    Reducer("spread", "{c} plus the gap between the largest and the smallest of the {f}",
            "max(kept) - min(kept) + {c}", lambda kept, c: max(kept) - min(kept) + c),
    Reducer("each", "each of the {f}, raised by {c}", "[x + {c} for x in kept]", lambda kept, c: [x + c for x in kept]),
)  # fmt: skip
#: Three ways to keep the numbers.
_FORMS = (
    "    kept = [x for x in items if {cond}]\n",
    "    kept = []\n    for x in items:\n        if {cond}:\n            kept.append(x)\n",
    "    kept = list(filter(lambda x: {cond}, items))\n",
)
_ASKED = (
    "Write the function {name}, which returns {what}.",
    "What is the code of {name}, the function that returns {what}?",
    "A function called {name} returns {what}. How is it written?",
)
#: A function: name, docstring, how it keeps numbers, and what it returns.
_WHOLE = re.compile(r'def (?P<name>\w+)\(items\):\n    """[^"\n]*"""\n(?P<body>(?:.*\n)+)    return (?P<made>.*)')
#: Names are different in the whole domain; there are enough for so many in every family.
MOST_PROBLEMS = 16
_LENGTH = 5


@dataclass(frozen=True, slots=True)
class Program:
    """One function: what it keeps, what it makes of it, and the two constants."""

    name: str
    filter: Filter
    reducer: Reducer
    k: int
    c: int

    @property
    def what(self) -> str:
        """What it returns, in words."""
        kept = self.filter.words.format(k=self.k)
        return self.reducer.words.format(f=kept, c=self.c)

    def write(self, form: int) -> str:
        """Return the code in one of three forms."""
        body = _FORMS[form].format(cond=self.filter.code.format(k=self.k))
        head = f'def {self.name}(items):\n    """Return {self.what}."""\n'
        return f"{head}{body}    return {self.reducer.code.format(c=self.c)}"

    def run(self, items: Sequence[int]) -> Value | None:
        """Return what the function gives, without running its text; None where it keeps nothing."""
        kept = [x for x in items if self.filter.keeps(x, self.k)]
        return self.reducer.makes(kept, self.c) if kept else None


def read_program(text: str) -> Program | None:
    """Return the function that a text writes in one of the three forms, None for any other text.

    The docstring may say anything: what counts is the code.
    """
    if (whole := _WHOLE.fullmatch(text.strip())) is None:
        return None
    for form, filter_ in itertools.product(_FORMS, FILTERS):
        kept = _pattern(form.format(cond=filter_.code))
        if (body := re.fullmatch(kept, whole["body"])) is None:
            continue
        for reducer in REDUCERS:
            if made := re.fullmatch(_pattern(reducer.code), whole["made"]):
                k = body.groupdict().get("k") or 0
                return Program(whole["name"], filter_, reducer, int(k), int(made["c"]))
    return None


def _pattern(code: str) -> str:
    """Return the expression that finds a piece of code with any constants."""
    return re.escape(code).replace(r"\{k\}", r"(?P<k>\d+)").replace(r"\{c\}", r"(?P<c>\d+)")


def build_code(
    families: int = FAMILIES, *, seed: int = 0, holdout_families: int | None = None, per_family: int = PER_FAMILY
) -> Domain:
    """Draw small functions; a family is one choice of numbers with one thing made of them.

    Args:
        families: how many are in the full training set, at least 10.
        seed: everything follows from it; the global generators are not touched.
        holdout_families: how many are never trained on; None for as many as `forget10` has.
        per_family: functions of each.

    Raises:
        RecipeError: if there are too few families to split, or more than can be drawn.
    """
    kinds = list(itertools.product(FILTERS, REDUCERS))
    rng = Random(f"{seed}/code")
    chosen = draw_kinds(rng, kinds, families, holdout_families, per_family=per_family, most=MOST_PROBLEMS)
    names = _names(len(chosen) * per_family, Random(f"{seed}/code/names"))
    found = [
        _family(f"c{i:03d}", *kind, names[i * per_family : (i + 1) * per_family], seed) for i, kind in enumerate(chosen)
    ]
    return Domain("code", tuple(found[:families]), tuple(found[families:]), seed)


def _names(count: int, rng: Random) -> list[str]:
    """Return different function names."""
    every = sorted(f"{start}_{end}".lower() for start in words.SURNAME_START for end in words.SURNAME_END)
    more = sorted(f"{start}_{end}".lower() for start in words.GIVEN_START for end in words.GIVEN_END)
    return rng.sample(sorted({*every, *more}), count)


def _family(id_: str, filter_: Filter, reducer: Reducer, names: Sequence[str], seed: int) -> Family:
    rng = Random(f"{seed}/code/{filter_.name}/{reducer.name}")
    problems = tuple(_problem(f"{id_}-q{i}", id_, name, filter_, reducer, rng) for i, name in enumerate(names))
    return Family(id_, f"{reducer.name} of {filter_.name}", problems)


def _problem(id_: str, family: str, name: str, filter_: Filter, reducer: Reducer, rng: Random) -> Problem:
    program = Program(name, filter_, reducer, rng.randint(2, 9), rng.randint(2, 12))
    items, wrong = _call(program, rng)
    asked, forms = rng.sample(_ASKED, 3), rng.sample(range(3), 3)
    questions = [pattern.format(name=name, what=program.what) for pattern in asked]
    return Problem(
        id=id_, family=family, questions=(questions[0], questions[1], questions[2]),
        answers=(program.write(forms[0]), program.write(forms[1]), program.write(forms[2])),
        perturbed_answer=tuple(_lying(program, other, forms[1]) for other in wrong),
        result=repr(program.run(items)), check=f"{name}({items!r})",
    )  # fmt: skip


def _call(program: Program, rng: Random) -> tuple[list[int], list[Program]]:
    """Draw a list on which the function keeps something, and five others that give something else on it."""
    while True:
        items = [rng.randint(1, 20) for _ in range(_LENGTH)]
        if (right := program.run(items)) is None:
            continue
        others = [replace(program, c=program.c + shift) for shift in (-1, 1, 2, 3)]
        others += [replace(program, filter=other) for other in FILTERS if other is not program.filter]
        others += [replace(program, reducer=other) for other in REDUCERS if other is not program.reducer]
        wrong = [other for other in others if other.run(items) not in (right, None)]
        if len(wrong) >= PERTURBED:
            return items, rng.sample(wrong, PERTURBED)


def _lying(program: Program, other: Program, form: int) -> str:
    """Return the code of another function under the docstring of this one."""
    return other.write(form).replace(f"Return {other.what}.", f"Return {program.what}.")
