# SPDX-License-Identifier: Apache-2.0
r"""Problems with one exact answer: finding it in a text (`#### 42`, `\boxed{42}`) and telling whether two are equal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Literal

from expunge.data.examples import Example
from expunge.errors import InputDataError

Form = Literal["hash", "boxed"]
"""How a solution marks its answer: GSM8K's `#### 42`, or `\\boxed{42}` of MATH."""

#: Prompt of one GSM8K problem. Source: the task `gsm8k` of the lm-evaluation-harness.
GSM8K_PROMPT = "Question: {problem}\nAnswer:"
#: Prompt of one MATH problem.
MATH_PROMPT = "Problem: {problem}\nSolution:"

# A minus after a letter, digit or bracket is a difference, not a sign.
_NUMBER = r"(?:(?<![\w)])-\$?|\$-?)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_AFTER_HASH = re.compile(rf"####\s*({_NUMBER})")
_ANYWHERE = re.compile(_NUMBER)
# What the harness takes for a number: two or more of these characters, or digits.
_HARNESS_STRICT = re.compile(r"#### (-?[\d.,]+)", re.ASCII)
_HARNESS_FLEXIBLE = re.compile(r"-?[$\d.,]{2,}|-?\d+", re.ASCII)
_PLAIN_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}")


def few_shot_prompt(problem: str, shots: Sequence[tuple[str, str]], *, pattern: str = GSM8K_PROMPT) -> str:
    """Return a problem after worked examples, one blank line between them.

    Args:
        problem: the problem to solve.
        shots: (problem, solution) pairs, in order.
        pattern: the text of one problem with `{problem}`; the solution follows after a space.
    """
    solved = [f"{pattern.format(problem=question)} {solution}" for question, solution in shots]
    return "\n\n".join([*solved, pattern.format(problem=problem)])


def problem_example(
    own: str, problem: str, solution: str, shots: Sequence[tuple[str, str]], *, pattern: str, subject: str = ""
) -> Example:
    """Return a problem as an example whose answer is its solution.

    Raises:
        InputDataError: if the solution marks no answer.
    """
    if marked_answer(solution) is None:
        remedy = r"Mark the answer as #### 42 or \boxed{42}"
        raise InputDataError("the solution marks no answer", field="solution", value=own, remedy=remedy)
    prompt = few_shot_prompt(problem, shots, pattern=pattern)
    return Example(id=own, prompt=prompt, answer=f" {solution}", kind="completion", subject=subject)


def form_of(solution: str) -> Form | None:
    """Return how a solution marks its answer, None if it does not."""
    if r"\boxed" in solution or r"\fbox" in solution:
        return "boxed"
    return "hash" if "####" in solution else None


def marked_answer(text: str, *, form: Form | None = None, finished: bool = True) -> str | None:
    """Return the answer that a text marks, None if there is none.

    Args:
        text: a solution or a generation.
        form: which mark counts; that of the text itself if not given.
        finished: the text ended by itself; otherwise a number at its very end may have been cut and is no answer.
    """
    form = form or form_of(text)
    if form == "boxed":
        return boxed(text)
    found = _AFTER_HASH.search(text) if form == "hash" else None
    return found[1] if found and (finished or found.end() < len(text)) else None


def last_number(text: str, *, finished: bool = True) -> str | None:
    """Return the last number in a text, None if there is none; `finished` as in `marked_answer`."""
    found = [match for match in _ANYWHERE.finditer(text) if finished or match.end() < len(text)]
    return found[-1][0] if found else None


def boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{}` or `\fbox{}` holds; None if there is none or its braces never close."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        return None
    opening = re.compile(r"\\(?:boxed|fbox)\s*(\{)?").match(text, start)
    if opening is None or opening[1] is None:
        bare = re.compile(r"\\(?:boxed|fbox)\s+(\S+)").match(text, start)  # `\boxed 5`
        return bare[1].rstrip("$.") if bare else None
    depth = 1
    for place in range(opening.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[opening.end() : place]
    return None


def as_number(text: str) -> Fraction | None:
    r"""Return the value of an integer, decimal or `\frac{a}{b}`, with or without $ and thousands commas."""
    plain = text.replace("$", "").replace(",", "").strip()
    if (found := _PLAIN_FRACTION.fullmatch(plain)) and int(found[3]):
        value = Fraction(int(found[2]), int(found[3]))
        return -value if found[1] else value
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return None
    return Fraction(number) if number.is_finite() else None


def equal_answers(first: str, second: str, *, form: Form) -> bool:
    """Return whether two answers are the same: as numbers where both are, else as normalised text."""
    one, two = (normalize(text) if form == "boxed" else text for text in (first, second))
    left, right = (None if "," in text and form == "boxed" else as_number(text) for text in (one, two))
    return left == right if left is not None and right is not None else one == two


def normalize(answer: str) -> str:
    r"""Return a mathematical answer in one spelling.

    Spaces, sizes (`\left`, `\dfrac`), dollar, percent and degree signs, units in `\text{}` after a value, a short
    left-hand side (`x=`), a final full stop and thousands commas go; `\frac12` and `1/2` become `\frac{1}{2}`,
    `\sqrt3` becomes `\sqrt{3}`, `.5` becomes `0.5`. Two spellings of one value that are not plain numbers can differ.
    """
    text = re.sub(r"\\[!,;: ]|~|\\left|\\right|\\displaystyle", "", answer.strip())
    text = re.sub(r"\\[tdc]frac", r"\\frac", text)
    text = re.sub(r"\^\{?\\circ\}?|°|\\?[$%]", "", text)
    text = re.sub(r"(?<=\S)\s*\\(?:text|mbox|mathrm)\{[^{}]*\}\s*$", "", text)
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\s+", "", text).rstrip(".")
    text = re.sub(r"^[A-Za-z]{1,2}=", "", text)
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac(\d)(?=[\d{])", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})(\d)", r"\1{\2}", text)
    return re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)


def harness_equal(prediction: str, solution: str, *, flexible: bool) -> bool:
    """Return whether the lm-evaluation-harness counts a GSM8K generation as right: texts are compared, not values.

    Source: task `gsm8k`, filters `strict-match` and `flexible-extract`.
    """
    if flexible:
        numbers = _HARNESS_FLEXIBLE.findall(prediction)
        found = numbers[-1] if numbers else None
    else:
        match = _HARNESS_STRICT.search(prediction)
        found = match[1] if match else None
    return found is not None and _harness_text(found) == _harness_text(solution)


def _harness_text(text: str) -> str:
    plain = text.replace(",", "").replace("$", "")
    return re.sub(r"\.$", "", plain.rpartition("#### ")[2]).lower()
