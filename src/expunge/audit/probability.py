# SPDX-License-Identifier: Apache-2.0
"""Probability of answers and the truth ratio.

Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024, section 2.2.2. L(a|q) is the mean negative
log-likelihood over the labelled tokens, the end-of-sequence token included, in nats per token; P(a|q) = exp(-L(a|q)).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.audit.columns import Column, View, column
from expunge.audit.records import ScoredItem
from expunge.audit.statistics import Floats, Unavailable, checked

EPSILON = 1e-10
"""What open-unlearning adds to denominators."""


def mean_logp(item: ScoredItem) -> float:
    """Return the mean log-probability of the labelled tokens, in nats per token.

    Raises:
        Unavailable: if the item comes from a log that lacks the mean.
        ValueError: if it has no scored token.
    """
    logp = np.asarray(item.logp, dtype=np.float64)
    if not logp.size and item.summary is not None:
        if item.summary.mean_logp is None:
            raise Unavailable(f"the log of item '{item.set}/{item.id}' holds no mean log-probability")
        return item.summary.mean_logp
    if not logp.size:
        raise ValueError(f"item '{item.set}/{item.id}' ({item.variant}) has no scored token")
    return float(logp.mean())


def normalised_probability(correct: float, wrong: Sequence[float], *, compat: str = "fixed") -> float:
    """Return P / (P + sum of the wrong options' P).

    Args:
        correct: length-normalised probability of the right answer.
        wrong: the same for the wrong options.
        compat: `openunlearning` adds 1e-10 to the denominator; otherwise 0/0 is 0.
    """
    total = correct + sum(wrong) + (EPSILON if compat == "openunlearning" else 0.0)
    return correct / total if total > 0 else 0.0


def log_truth_ratio(correct: float, wrong: Sequence[float], *, compat: str = "fixed") -> float:
    """Return log R; R is far below 1 where the model prefers the truth.

    Args:
        correct: mean log-probability of the right answer, nats per token.
        wrong: mean log-probabilities of the N wrong answers.
        compat: `fixed` and `locuslab` take the geometric mean over the wrong answers, exp(mean of the logs); `paper`
            the arithmetic mean of their probabilities; `openunlearning` the geometric one with 1e-10 in the
            denominator.

    Raises:
        ValueError: if there is no wrong answer.

    Source: TOFU, section 2.2.2 (arithmetic); the authors' evaluation code (geometric).
    """
    if not len(wrong):
        raise ValueError("the truth ratio needs at least one wrong answer")
    logs = np.asarray(wrong, dtype=np.float64)
    if compat == "paper":
        return float(np.logaddexp.reduce(logs) - np.log(logs.size) - correct)
    geometric = float(logs.mean())
    if compat == "openunlearning":
        ratio = np.exp(geometric) / (np.exp(correct) + EPSILON)
        return float(np.log(ratio)) if ratio > 0 else -np.inf
    return geometric - correct


def forget_score(log_ratio: Floats, *, compat: str = "fixed") -> Floats:
    """Return min(R, 1/R) per item, [n]: 1 where the model cannot tell the truth from the alternatives."""
    if compat == "openunlearning":
        ratio = np.exp(log_ratio)
        return np.asarray(np.minimum(ratio, 1.0 / (ratio + EPSILON)), dtype=np.float64)
    return np.asarray(np.exp(-np.abs(log_ratio)), dtype=np.float64)


def utility_score(log_ratio: Floats) -> Floats:
    """Return max(0, 1 - R) per item, [n]: near 1 where the model prefers the truth."""
    # R above 1 scores 0 anyway; clamping first keeps a huge R from overflowing.
    return np.asarray(-np.expm1(np.minimum(log_ratio, 0.0)), dtype=np.float64)


def truth_preference(correct: float, wrong: Sequence[float]) -> float:
    """Return P_right / (P_right + P_wrong) with P_wrong the geometric mean: open-unlearning's `prob_mean` variant."""
    return float(1.0 / (1.0 + np.exp(np.clip(log_truth_ratio(correct, wrong), -700.0, 700.0))))


def answer_probability(view: View, name: str, variant: str = "answer") -> Column:
    """Return P(answer | prompt) of every item in a set."""
    return column(((item, np.exp(mean_logp(item))) for item in view.scored(name, variant)), "probability")


def option_probability(view: View, name: str, *, compat: str = "fixed") -> Column:
    """Return the probability of the right answer among the options of every item that has options."""
    wrong = view.by_id(name, "perturbed")
    return column(
        (
            (item, normalised_probability(np.exp(mean_logp(item)), _probabilities(wrong[item.id]), compat=compat))
            for item in view.scored(name, "answer")
            if item.id in wrong
        ),
        "normalised probability",
    )


def log_truth_ratios(view: View, name: str, *, options: bool, compat: str = "fixed") -> Column:
    """Return log R of every item that has a right and a wrong answer.

    Args:
        view: the records.
        name: the set.
        options: take the answer itself as the right answer, in the pass that scored the wrong ones where a log has
            several; otherwise its paraphrase, so that a memorised wording does not count as knowledge.
        compat: see `log_truth_ratio`.
    """
    wrong = view.by_id(name, "perturbed")
    right = "paraphrase" if not options else "answer_again" if view.has(name, "answer_again") else "answer"
    items = [item for item in view.scored(name, right) if item.id in wrong]
    if not items:
        raise Unavailable(f"no item of set {name!r} has both a right and a wrong answer")
    return column(
        (
            (item, log_truth_ratio(mean_logp(item), [mean_logp(p) for p in wrong[item.id]], compat=compat))
            for item in items
        ),
        "truth ratio",
    )


def truth_preferences(view: View, name: str, *, options: bool) -> Column:
    """Return `truth_preference` of every item that has a right and a wrong answer."""
    ratios = log_truth_ratios(view, name, options=options)
    values = 1.0 / (1.0 + np.exp(np.clip(ratios.values, -700.0, 700.0)))
    return Column(ratios.ids, ratios.clusters, checked(values, "truth preference", ratios.ids))


def _probabilities(items: Sequence[ScoredItem]) -> list[float]:
    return [float(np.exp(mean_logp(item))) for item in items]
