# SPDX-License-Identifier: Apache-2.0
"""Is a text a right answer? Facts by their value, worked answers by their sums, functions by what they compute.

No text is ever run: a function is recognised as one of those that the archive can write, and computed from that.
"""

from __future__ import annotations

import ast
import re

from expunge.data.fictitious.domains import Problem
from expunge.data.fictitious.facts import Fact
from expunge.data.fictitious.maths import SIGNS
from expunge.data.fictitious.programs import read_program

_SUM = re.compile(r"(-?\d+) ([-+*/]) (-?\d+) = (-?\d+)")


def is_right(item: Fact | Problem, text: str) -> bool:
    """Return whether a text answers a question of the archive.

    Args:
        item: what is asked: a fact is told if its value is in the text, a word problem solved if its sums hold and the
            last gives the result that the text ends with, a function written if it gives the result of its check.
        text: the answer.
    """
    if isinstance(item, Fact):
        return item.value in text
    return _computes(item, text) if item.check else _works_out(item, text)


def _works_out(problem: Problem, text: str) -> bool:
    sums = _SUM.findall(text)
    return bool(sums) and all(map(_holds, sums)) and sums[-1][3] == re.findall(r"\d+", text)[-1] == problem.result


def _holds(equation: tuple[str, str, str, str]) -> bool:
    left, sign, right, result = equation
    if sign == "/" and int(right) == 0:
        return False
    return SIGNS[sign](int(left), int(right)) == int(result)


def _computes(problem: Problem, text: str) -> bool:
    name, _, arguments = problem.check.partition("(")
    program = read_program(text)
    if program is None or program.name != name:
        return False
    try:
        found = program.run(ast.literal_eval(arguments.removesuffix(")")))
    except ZeroDivisionError:  # multiples of 0
        return False
    return repr(found) == problem.result
