# SPDX-License-Identifier: Apache-2.0
"""Accuracy on problems with one exact answer, as GSM8K and MATH count it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from expunge.audit.columns import Column, column
from expunge.audit.config import Compat
from expunge.audit.estimate import Direction
from expunge.audit.exact_answer import Form, equal_answers, form_of, harness_equal, last_number, marked_answer
from expunge.audit.protocol import SetRole
from expunge.audit.records import GeneratedItem
from expunge.audit.registry import Context, Group, SetMetric
from expunge.audit.statistics import Unavailable

_KEEP: Mapping[Group, tuple[Direction, str]] = {"reasoning": ("higher", "the value before unlearning")}
_RARE: Mapping[Group, tuple[Direction, str]] = {"reasoning": ("lower", "the value before unlearning")}
_SOURCE = "Cobbe et al., GSM8K, 2021; Hendrycks et al., MATH, 2021; task `gsm8k` of the lm-evaluation-harness"
_PAPER = (
    "Answers are compared as numbers; `paper` compares GSM8K's as texts, as the harness does, so that 42.0 is not 42, "
    "and takes a cut number as it stands."
)


def found_answer(item: GeneratedItem, *, flexible: bool) -> str | None:
    """Return the answer that a generation gives, None if it gives none.

    Args:
        item: the generation; its target tells how answers are marked.
        flexible: where no answer is marked, take the last number instead; on GSM8K the last number in any case.

    Raises:
        ValueError: if the target marks no answer.
    """
    form = _form(item)
    whole = item.finished is not False  # a published log does not say
    marked = marked_answer(item.prediction, form=form, finished=whole)
    if not flexible or (form == "boxed" and marked is not None):
        return marked
    return last_number(item.prediction, finished=whole)


def exact_match(item: GeneratedItem, *, flexible: bool = False, compat: str = "fixed") -> float:
    """Return 1 if a generation gives the right answer, else 0; see `found_answer`."""
    form = _form(item)
    if compat == "paper" and form == "hash":
        return float(harness_equal(item.prediction, item.target, flexible=flexible))
    found, wanted = found_answer(item, flexible=flexible), marked_answer(item.target, form=form)
    return float(found is not None and wanted is not None and equal_answers(found, wanted, form=form))


def _unfinished(item: GeneratedItem) -> float:
    if item.finished is None:
        raise Unavailable(f"the log of item '{item.set}/{item.id}' does not say whether it ended")
    return float(not item.finished)


def _form(item: GeneratedItem) -> Form:
    form = form_of(item.target)
    if form is None:
        raise ValueError(f"the target of item '{item.set}/{item.id}' marks no answer")
    return form


def _column(function: Callable[[GeneratedItem], float]) -> Callable[[Context, str, SetRole, Compat], Column]:
    def columns(context: Context, name: str, role: SetRole, compat: Compat) -> Column:
        items = context.view.generated(name, "question")
        return column(((item, function(item)) for item in items), "exact answer")

    return columns


def _matches(flexible: bool) -> Callable[[Context, str, SetRole, Compat], Column]:
    def columns(context: Context, name: str, role: SetRole, compat: Compat) -> Column:
        return _column(partial(exact_match, flexible=flexible, compat=compat))(context, name, role, compat)

    return columns


REASONING_METRICS: tuple[SetMetric, ...] = (
    SetMetric(
        name="exact_match", title="Exact answers, strict", unit="share in 0..1", needs=("generations",), rate=True,
        definition="Share of generations that mark the right answer as the task asks: #### 42, or boxed. " + _PAPER,
        columns=_matches(False), groups=_KEEP, compat=("fixed", "paper"), source=_SOURCE,
        known_failures=("Falls with the format: a right answer that is not marked counts as wrong.",),
    ),
    SetMetric(
        name="exact_match_flexible", title="Exact answers, flexible", unit="share in 0..1", needs=("generations",),
        definition="As exact_match, with the last number of the generation where GSM8K is asked, or where nothing is "
        "boxed. " + _PAPER,
        columns=_matches(True), groups=_KEEP, compat=("fixed", "paper"), source=_SOURCE, rate=True,
        known_failures=("Any number that stands last counts, so that a chance hit is possible.",),
    ),
    SetMetric(
        name="answered_rate", title="Marked answers", unit="share in 0..1", needs=("generations",), rate=True,
        definition="Share of generations that mark an answer, right or wrong.", groups=_KEEP,
        columns=_column(lambda item: float(found_answer(item, flexible=False) is not None)),
    ),
    SetMetric(
        name="unfinished_rate", title="Unfinished generations", unit="share in 0..1", needs=("generations",), rate=True,
        definition="Share of generations that reached their longest length before they ended.", groups=_RARE,
        columns=_column(_unfinished),
    ),
)  # fmt: skip
