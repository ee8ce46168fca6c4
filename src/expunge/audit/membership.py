# SPDX-License-Identifier: Apache-2.0
"""Membership inference scores, all of them high for members (texts the model was trained on).

`fixed` scores every token but the end-of-sequence token, the same tokens for every attack. `openunlearning` keeps that
token for the loss and zlib scores and drops the last label, whatever it is, for the others. `muse` keeps every token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from expunge.audit.columns import Column, View, column
from expunge.audit.memorization import scored_part
from expunge.audit.records import ScoredItem, Summary
from expunge.audit.statistics import Floats, Unavailable

ATTACKS = (
    "loss", "zlib", "min_k", "min_k_plus_plus", "lowercase", "reference", "gradient_norm", "neighbourhood",
)  # fmt: skip
SIGMA2_FLOOR = 1e-6
"""Smallest variance of log p: a uniform row has none, and Min-K%++ divides by its root."""


def lowest_mean(values: ArrayLike, k: float, *, compat: str = "fixed") -> float:
    """Return the mean of the lowest share `k` of the values.

    Args:
        values: per-token numbers, [n], n >= 1.
        k: share in 0..1; int(k n) values are taken, and at least one.
        compat: `muse` does not round up to one.

    Raises:
        Unavailable: for `muse` when int(k n) is 0, where its code divides by zero.

    Source: Shi et al., "Detecting Pretraining Data from Large Language Models", 2024, equation 1.
    """
    array = np.asarray(values, dtype=np.float64)
    take = int(k * array.size)
    if take == 0 and compat == "muse":
        raise Unavailable(f"int({k:g} x {array.size} tokens) is 0, where Min-K% of MUSE is undefined")
    return float(np.partition(array, max(take, 1) - 1)[: max(take, 1)].mean())


def standardised(logp: ArrayLike, mu: ArrayLike, sigma2: ArrayLike) -> Floats:
    """Return (log p - mu) / sigma per token, [n].

    Args:
        logp: log-probabilities of the tokens, [n], nats.
        mu: mean of log p under the model's own distribution, [n].
        sigma2: its variance, [n]; kept above 1e-6.

    Source: Zhang et al., "Min-K%++: Improved Baseline for Detecting Pre-Training Data from LLMs", 2024, equation 3.
    """
    sigma = np.sqrt(np.maximum(np.asarray(sigma2, dtype=np.float64), SIGMA2_FLOOR))
    result: Floats = (np.asarray(logp, dtype=np.float64) - np.asarray(mu, dtype=np.float64)) / sigma
    return result


def loss_score(item: ScoredItem, *, compat: str = "fixed") -> float:
    """Return the mean log-probability. Source: Yeom et al., 2018."""
    return float(_whole(item, compat).mean())


def zlib_score(item: ScoredItem, *, compat: str = "fixed") -> float:
    """Return the mean log-probability over the zlib-compressed length. Source: Carlini et al., 2021."""
    if item.zlib_bytes < 1:
        raise Unavailable(f"the text of item '{item.set}/{item.id}' is not known, nor its compressed length")
    return loss_score(item, compat=compat) / item.zlib_bytes


def min_k_score(item: ScoredItem, k: float, *, compat: str = "fixed") -> float:
    """Return Min-K%: the mean of the lowest log-probabilities."""
    if item.summary is not None:
        return _logged_min_k(item, item.summary, k, compat)
    return lowest_mean(_tokens(item, "logp", compat), k, compat=compat)


def min_k_plus_plus_score(item: ScoredItem, k: float, *, compat: str = "fixed") -> float:
    """Return Min-K%++: the mean of the lowest standardised log-probabilities."""
    if not len(item.mu) or not len(item.sigma2):
        raise Unavailable("the records hold no mean and variance of log p (scored without statistics)")
    return lowest_mean(standardised(*(_tokens(item, f, compat) for f in ("logp", "mu", "sigma2"))), k, compat=compat)


def lowercase_score(item: ScoredItem, lowered: ScoredItem) -> float:
    """Return L(lowercased) / L(text). Source: Carlini et al., 2021; a loss of 0 counts as 1e-12."""
    return max(-loss_score(lowered), 0.0) / max(-loss_score(item), 1e-12)


def reference_score(item: ScoredItem, reference: ScoredItem) -> float:
    """Return L under the reference - L under the model. Source: Carlini et al., 2022 (difficulty calibration)."""
    return loss_score(item) - loss_score(reference)


def gradient_score(item: ScoredItem, *, compat: str = "fixed") -> float:
    """Return minus the norm of the gradient of the mean loss; `openunlearning` averages the norms of the tensors."""
    norm = item.gradient_norm_mean if compat == "openunlearning" else item.gradient_norm
    if norm is None:
        raise Unavailable("the records hold no gradient norms (`audit.gradient_norm` measures them)")
    return -norm


def neighbour_score(item: ScoredItem, neighbours: Sequence[ScoredItem]) -> float:
    """Return the mean L(neighbour) - L(text). Source: Mattern et al., 2023, equation 1."""
    return loss_score(item) - float(np.mean([loss_score(neighbour) for neighbour in neighbours]))


def attack_column(
    view: View, name: str, attack: str, *, k: float, compat: str = "fixed", reference: View | None = None
) -> Column:
    """Return the score of one attack for every answer in a set.

    Args:
        view: the records of the model under attack.
        name: the set.
        attack: one of `ATTACKS`.
        k: share of tokens for the Min-K% family.
        compat: see the module.
        reference: records of another model, for the attack `reference`.

    Raises:
        Unavailable: if the set, or what the attack needs beside the answers, is missing.
    """
    alone: Mapping[str, Callable[[ScoredItem], float]] = {
        "loss": partial(loss_score, compat=compat),
        "zlib": partial(zlib_score, compat=compat),
        "min_k": partial(min_k_score, k=k, compat=compat),
        "min_k_plus_plus": partial(min_k_plus_plus_score, k=k, compat=compat),
        "gradient_norm": partial(gradient_score, compat=compat),
    }
    items = view.scored(name, "answer")
    if attack in alone:
        return column(((item, alone[attack](item)) for item in items), attack)
    beside = _beside(view, name, attack, reference)
    compared: Mapping[str, Callable[[ScoredItem, Sequence[ScoredItem]], float]] = {
        "lowercase": lambda item, found: lowercase_score(item, found[0]),
        "reference": lambda item, found: reference_score(item, found[0]),
        "neighbourhood": neighbour_score,
    }
    return column(((item, compared[attack](item, beside[item.id])) for item in items if item.id in beside), attack)


def _beside(view: View, name: str, attack: str, reference: View | None) -> Mapping[str, Sequence[ScoredItem]]:
    """Return what an attack compares each answer with, by id."""
    if attack == "lowercase":
        return view.by_id(name, "lowercase")
    if attack == "neighbourhood":
        return view.by_id(name, "neighbour")
    if attack == "reference":
        if reference is None:
            raise Unavailable("no records of a reference model were given")
        return reference.by_id(name, "answer")
    raise ValueError(f"unknown attack {attack!r}; valid: {', '.join(ATTACKS)}")


def _logged_min_k(item: ScoredItem, summary: Summary, k: float, compat: str) -> float:
    """Return a score that a log holds; it was taken over every token, as `muse` does."""
    name = f"min_k@{k:g}"
    if name not in summary.scores:
        known = ", ".join(score for score in summary.scores if score.startswith("min_k")) or "none"
        raise Unavailable(f"the log of item '{item.set}/{item.id}' holds no {name} (of Min-K% it holds: {known})")
    if compat == "openunlearning" or (compat != "muse" and item.ends_with_eos):
        raise Unavailable("the log's Min-K% is over every token: this variant leaves the last one out")
    return summary.scores[name]


def _whole(item: ScoredItem, compat: str) -> Floats:
    """Return the log-probabilities that the loss and zlib scores average; of a log, their mean alone."""
    if item.summary is not None and item.summary.mean_logp is not None:
        if compat not in ("openunlearning", "muse") and item.ends_with_eos:
            raise Unavailable("the log's mean includes the end-of-sequence token: this variant leaves it out")
        return np.array([item.summary.mean_logp])
    if compat in ("openunlearning", "muse"):
        logp = np.asarray(item.logp, dtype=np.float64)
        if not logp.size:
            raise Unavailable(f"item '{item.set}/{item.id}' has no scored token")
        return logp
    return scored_part(item, item.logp)


def _tokens(item: ScoredItem, field: str, compat: str) -> Floats:
    """Return one per-token field over the tokens that Min-K% reads."""
    values = {"logp": item.logp, "mu": item.mu, "sigma2": item.sigma2}[field]
    if compat == "muse":
        return np.asarray(values, dtype=np.float64)
    return scored_part(item, values, always=compat == "openunlearning")
