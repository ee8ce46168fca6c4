# SPDX-License-Identifier: Apache-2.0
"""What counts as a right answer in each domain: every true wording, no false one, and no text is run."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from expunge.data.fictitious import Fact, Problem, ThreeDomains, build_domains
from expunge.data.fictitious.answers import is_right
from expunge.data.fictitious.programs import FILTERS, REDUCERS, Program, read_program


@pytest.fixture(scope="module")
def world() -> ThreeDomains:
    return build_domains(10, families=20, per_family=3, seed=6)


def items(world: ThreeDomains) -> list[Fact | Problem]:
    return [*world.text.facts("full"), *world.math.problems(), *world.code.problems()]


def test_every_wording_is_right_and_every_wrong_answer_is_not(world: ThreeDomains) -> None:
    for item in items(world):
        assert all(is_right(item, answer) for answer in item.answers)
        assert not any(is_right(item, answer) for answer in item.perturbed_answer)


@pytest.mark.parametrize("form", [0, 1, 2])
def test_a_function_is_read_back(form: int) -> None:
    for filter_ in FILTERS:
        for reducer in REDUCERS:
            text = Program("count_me", filter_, reducer, 7, 3).write(form)
            found = read_program(text + "\n")
            assert found is not None
            assert (found.name, found.filter, found.reducer, found.c) == ("count_me", filter_, reducer, 3)
            assert found.write(form).splitlines()[2:] == text.splitlines()[2:]


def sum_of(answer: str, result: str) -> bool:
    problem = Problem(id="m", family="f", questions=("", "", ""), answers=("", "", ""), perturbed_answer=(),
                      result=result)  # fmt: skip
    return is_right(problem, answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("3 * 4 = 12. 12 + 5 = 17. The answer is 17 buns.", True),
        ("First 12 + 5 = 17. So it is 17 pears.", True),  # what is counted does not matter
        ("3 * 4 = 11. 12 + 5 = 17. The answer is 17 buns.", False),  # a wrong step
        ("3 * 4 = 12. 12 + 5 = 17. The answer is 18 buns.", False),  # another result at the end
        ("12 + 6 = 18. The answer is 18 buns.", False),  # right sums, another problem
        ("The answer is 17 buns.", False),  # not worked out
        ("17 / 0 = 17. The answer is 17.", False),
    ],
)
def test_worked_answers_by_hand(answer: str, expected: bool) -> None:
    assert sum_of(answer, "17") is expected


def code(body: str, made: str, name: str = "f") -> str:
    return f'def {name}(items):\n    """Return anything."""\n{body}\n    return {made}'


EVEN = "    kept = [x for x in items if x % 2 == 0]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (code(EVEN, "sum(kept) + 4"), True),  # 2 + 4 + 4
        (code("    kept = [x for x in items if x != 3]", "sum(kept) + 3"), True),  # another way to 10
        (code(EVEN, "sum(kept) + 5"), False),
        (code(EVEN, "sum(kept) + 4", name="g"), False),
        (code("    kept = [x for x in items if x % 0 == 0]", "sum(kept) + 4"), False),
        (code(EVEN, "10"), False),  # not a function of the archive
        (code(EVEN, "sum(kept) + 4") + "\nimport os", False),
        ("", False),
    ],
)
def test_functions_by_hand(text: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(id="c", family="f", questions=("", "", ""), answers=("", "", ""), perturbed_answer=(),
                      result="10", check="f([2, 4, 3, 1])")  # fmt: skip

    def never(*_: Any) -> None:
        raise AssertionError("a text was run")

    monkeypatch.setattr(builtins, "exec", never)
    monkeypatch.setattr(builtins, "eval", never)
    assert is_right(problem, text) is expected
