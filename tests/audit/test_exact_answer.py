# SPDX-License-Identifier: Apache-2.0
"""Exact answers: found where they are marked, equal when their values are, never read from a cut number."""

from __future__ import annotations

from fractions import Fraction

import pytest

from expunge.audit.config import AuditConfig
from expunge.audit.exact_answer import (
    as_number,
    boxed,
    equal_answers,
    few_shot_prompt,
    form_of,
    harness_equal,
    last_number,
    marked_answer,
    normalize,
    problem_example,
)
from expunge.audit.metrics import card_for, compute_metrics, metric_cards
from expunge.audit.protocol import Protocol
from expunge.audit.reasoning_metrics import exact_match, found_answer
from expunge.audit.records import GeneratedItem, Records
from expunge.errors import InputDataError

SOLVED = "She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 18"
BOXED = r"The sum is $\boxed{\frac{1}{2}}$."
PROTOCOL = Protocol("gsm8k-5-shot", "1", {"gsm8k": "reasoning"})


def said(prediction, target=SOLVED, *, finished=True, own="p"):
    return GeneratedItem(
        set="gsm8k", id=own, subject="", prompt_variant="question", prediction=prediction, target=target,
        n_tokens=3, finished=finished,
    )  # fmt: skip


def metrics(items, compat="fixed"):
    config = AuditConfig(bootstrap=200, compat=compat)
    return compute_metrics(Records([], items), protocol=PROTOCOL, config=config)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (SOLVED, "18", "18"),
        ("#### -1,234.50", "-1,234.50", "-1,234.50"),
        ("It costs $5.00, so #### $5", "$5", "$5"),
        ("The answer is 42.", None, "42"),
        ("The answer is 42...", None, "42"),
        ("first 3, then 4 apples", None, "4"),
        ("10-5", None, "5"),  # a difference, not a negative number
        ("it is -5 degrees", None, "-5"),
        ("a share of .5", None, ".5"),
        ("#### 7\nQuestion: 9", "7", "9"),
        ("no number at all", None, None),
        ("", None, None),
        ("####", None, None),
    ],
)
def test_answers_are_found(text, strict, flexible):
    assert marked_answer(text, form="hash") == strict
    assert last_number(text) == flexible


def test_a_number_that_may_be_cut_is_no_answer():
    assert marked_answer("#### 4", form="hash", finished=False) is None
    assert marked_answer("#### 4\n", form="hash", finished=False) == "4"
    assert last_number("3 and 4", finished=False) == "3"
    assert last_number("4", finished=False) is None
    assert exact_match(said("#### 18", finished=False)) == 0
    assert exact_match(said("#### 18", finished=False), compat="paper") == 1, "the harness cannot know"
    assert exact_match(said("#### 18", finished=None)) == 1, "a published log does not say"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so $\boxed{42}$", "42"),
        (r"\boxed{1} then \boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\fbox{x}", "x"),
        (r"thus \boxed 5.", "5"),
        (r"\boxed{1 + {2", None),
        (r"\boxed", None),
        ("42", None),
    ],
)
def test_boxes_are_read_to_their_closing_brace(text, found):
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\dfrac{1}{2}", r"\frac12"),
        ("1/2", "0.5"),
        (r"\frac{3}{4}", ".75"),
        (r"-\frac{1}{2}", "-0.50"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"x = 5", "5"),
        (r"10\text{ cm}", "10"),
        (r"\text{Monday}", "Monday"),
        (r"90^\circ", "90"),
        (r"\$1{,}000".replace("{,}", ","), "1000"),
        (r"50\%", "50"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"2 \! x", "2x"),
        ("7.", "7.0"),
    ],
)
def test_spellings_of_one_value_are_equal(first, second):
    assert equal_answers(first, second, form="boxed"), (normalize(first), normalize(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [("1/2", "1/3"), ("(1,2)", "12"), ("1,2", "12"), ("x", "y"), ("-5", "5"), (r"\frac{1}{0}", "0"), ("", "0")],
)
def test_different_values_are_not(first, second):
    assert not equal_answers(first, second, form="boxed"), (normalize(first), normalize(second))


def test_numbers():
    assert as_number("$1,000.50") == Fraction(2001, 2)
    assert as_number(r"-\frac{-1}{2}") == Fraction(1, 2)
    for text in ("", "x", "nan", "Infinity", r"\frac{1}{0}", "1 2"):
        assert as_number(text) is None, text


@pytest.mark.parametrize(
    ("prediction", "strict", "flexible"),
    [
        ("#### 18", True, True),
        ("#### 18.", True, True),
        ("#### $18", False, True),
        ("so it is 18", False, True),
        ("#### 18.0", False, False),
        ("it is 18 ...", False, False),  # the dots are what the harness takes for the last number
        ("#### 1,8", True, True),
        ("", False, False),
    ],
)
def test_paper_compares_as_the_harness_does(prediction, strict, flexible):
    assert harness_equal(prediction, SOLVED, flexible=False) is strict
    assert harness_equal(prediction, SOLVED, flexible=True) is flexible
    assert exact_match(said(prediction), compat="paper") == strict


def test_values_are_compared_unless_paper_is_asked():
    dots = said("it is 18 ...")
    assert (exact_match(said("#### 18.0")), exact_match(said("#### 18.0"), compat="paper")) == (1, 0)
    assert (exact_match(dots, flexible=True), exact_match(dots, flexible=True, compat="paper")) == (1, 0)


def test_the_form_is_that_of_the_target():
    assert form_of(SOLVED) == "hash"
    assert form_of(BOXED) == "boxed"
    assert exact_match(said(r"clearly \boxed{0.5}", BOXED)) == 1
    assert exact_match(said("clearly 0.5", BOXED)) == 0
    assert exact_match(said("clearly 0.5", BOXED), flexible=True) == 1
    assert found_answer(said(r"\boxed{3} not 4", BOXED), flexible=True) == "3"
    with pytest.raises(ValueError, match="'gsm8k/p' marks no answer"):
        exact_match(said("18", "eighteen"))


def test_prompts_hold_worked_examples():
    made = few_shot_prompt("3+3?", [("1+1?", "2\n#### 2"), ("2+2?", "4\n#### 4")])
    assert made == ("Question: 1+1?\nAnswer: 2\n#### 2\n\nQuestion: 2+2?\nAnswer: 4\n#### 4\n\nQuestion: 3+3?\nAnswer:")
    example = problem_example("p", "3+3?", "6\n#### 6", [], pattern="Question: {problem}\nAnswer:")
    assert (example.prompt, example.answer, example.kind) == ("Question: 3+3?\nAnswer:", " 6\n#### 6", "completion")
    with pytest.raises(InputDataError, match="marks no answer"):
        problem_example("p", "3+3?", "6", [], pattern="{problem}")


def test_metrics_of_a_set():
    items = [
        said("#### 18", own="a"), said("so 18", own="b"), said("#### 17", own="c"),
        said("well, 18 of", own="d", finished=False),
    ]  # fmt: skip
    found = metrics(items)
    assert set(found) == {
        "gsm8k.exact_match", "gsm8k.exact_match_flexible", "gsm8k.answered_rate", "gsm8k.unfinished_rate",
    }  # fmt: skip
    values = {name.removeprefix("gsm8k."): estimate.value for name, estimate in found.items()}
    assert values == {"exact_match": 0.25, "exact_match_flexible": 0.75, "answered_rate": 0.5, "unfinished_rate": 0.25}
    assert all(0 <= e.ci_low <= e.value <= e.ci_high <= 1 for e in found.values())
    assert metrics(items, "paper")["gsm8k.exact_match"].compat == "paper"
    assert {card_for(name, PROTOCOL).name for name in found} == {card.name for card in metric_cards(PROTOCOL)}


def test_one_item_and_none():
    one = metrics([said("#### 18")])["gsm8k.exact_match"]
    assert (one.value, one.ci_low, one.ci_high) == (1.0, pytest.approx(0.025), 1.0)
    empty = metrics([])["gsm8k.exact_match"]
    assert empty.value is None
    assert "no set 'gsm8k'" in empty.reason
    assert metrics([said("")])["gsm8k.exact_match_flexible"].value == 0.0
