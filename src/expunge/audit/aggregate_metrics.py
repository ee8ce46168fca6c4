# SPDX-License-Identifier: Apache-2.0
"""Single scores made of many, after OpenUnlearning: memorisation, privacy, utility and their harmonic mean.

Its table of scores was made by a notebook that was not kept, so parts of these formulas are our own: each card says
which. They are a convenience for sorting; one number never stands for an audit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from expunge.audit.behaviour import repetition
from expunge.audit.columns import Column, View, column, pooled
from expunge.audit.config import Compat
from expunge.audit.estimate import Estimate
from expunge.audit.membership_metrics import side_replicates, sides
from expunge.audit.memorization import exact_memorization_column, extraction_strength_column
from expunge.audit.overlap import words
from expunge.audit.probability import answer_probability, truth_preferences
from expunge.audit.quality import utility_parts
from expunge.audit.registry import ONE_CLUSTER, AuditMetric, Context, single_cluster
from expunge.audit.statistics import (
    Floats,
    Interval,
    Sample,
    Unavailable,
    auc,
    function_replicates,
    harmonic_mean,
    harmonic_mean_rows,
    interval,
)
from expunge.claims import MetricCard

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
_OPEN = "Dorna et al., OpenUnlearning, 2025, section 5"


@dataclass(frozen=True, slots=True)
class _Score:
    """One score, its bootstrap replicates [R] (None where an interval cannot be had), and the items behind it."""

    value: float
    replicates: Floats | None
    n: int


def closeness(auc: float | Floats, reference: float | Floats) -> Floats:
    """Return 1 - min(1, |a - r| / max(r, 1 - r)): 1 at the reference's AUC, 0 at the AUC farthest from it.

    Args:
        auc: AUC a of an attack on the model, in 0..1; a number or [R].
        reference: AUC r of the same attack on the retrained reference.

    Source: our own; OpenUnlearning's formula for "how close to the retained model" was not published.
    """
    far = np.maximum(reference, 1.0 - np.asarray(reference))
    return np.asarray(1.0 - np.minimum(1.0, np.abs(np.asarray(auc) - reference) / far), dtype=np.float64)


def fluent_share(text: str) -> float:
    """Return 1 - the share of repeated word 4-grams, in 0..1; 0 for a text without a word."""
    return 1.0 - repetition(text) if words(text, False) else 0.0


def _memorization(context: Context, compat: Compat) -> _Score:
    columns = (
        _forget(context, partial(extraction_strength_column, compat=compat)),
        _forget(context, partial(exact_memorization_column, compat=compat)),
        _forget(context, partial(answer_probability, variant="paraphrase")),
        _forget(context, partial(truth_preferences, options=False)),
    )
    value = harmonic_mean([_left(float(part.values.mean())) for part in columns])
    replicates = None
    if not single_cluster(*columns):
        samples = [context.sample("role forget", part) for part in columns]
        replicates = function_replicates(samples, lambda means: harmonic_mean_rows(np.clip(1.0 - means, 0.0, 1.0)))
    return _Score(value, replicates, len(columns[0]))


def _privacy(context: Context, compat: Compat) -> _Score:
    reference, k = context.needed_reference(), context.config.min_k
    ours = [sides(context, context.view, attack, k, compat) for attack in ATTACKS]
    theirs = [sides(context, reference, attack, k, compat) for attack in ATTACKS]
    found = [
        float(closeness(auc(a.values, b.values), auc(c.values, d.values)))
        for (a, b), (c, d) in zip(ours, theirs, strict=True)
    ]
    replicates = None
    if not single_cluster(*(one for both in (*ours, *theirs) for one in both)):
        pairs = zip(ours, theirs, strict=True)
        scores = [closeness(side_replicates(context, *a), side_replicates(context, *b)) for a, b in pairs]
        replicates = harmonic_mean_rows(np.stack(scores, axis=1))
    return _Score(harmonic_mean(found), replicates, len(ours[0][0]) + len(ours[0][1]))


def _utility(context: Context, compat: Compat) -> _Score:
    parts = utility_parts(context.view, context.protocol, compat=compat)
    fluent = _forget(context, _fluent_column)
    nine = harmonic_mean([float(part.values.mean()) for part in parts.values()])
    value = harmonic_mean([nine, float(fluent.values.mean())])
    replicates = None
    if not single_cluster(fluent, *parts.values()):
        clusters: dict[str, set[str]] = {}
        for (name, _), part in parts.items():
            clusters.setdefault(name, set()).update(part.clusters)
        samples = [
            Sample(part.values, part.clusters, context.draws(name, sorted(clusters[name])))
            for (name, _), part in parts.items()
        ]
        replicates = function_replicates([*samples, context.sample("role forget", fluent)], _nested_harmonic)
    items = {(name, item) for (name, _), part in parts.items() for item in part.ids}
    return _Score(value, replicates, len(items) + len(fluent))


def _overall(context: Context, compat: Compat) -> _Score:
    scores = [make(context, compat) for make in (_memorization, _privacy, _utility)]
    parts = [score.replicates for score in scores if score.replicates is not None]
    replicates = harmonic_mean_rows(np.stack(parts, axis=1)) if len(parts) == len(scores) else None
    return _Score(harmonic_mean([score.value for score in scores]), replicates, max(score.n for score in scores))


def _nested_harmonic(means: Floats) -> Floats:
    """Return the harmonic mean of (harmonic mean of all columns but the last, the last), per row."""
    return harmonic_mean_rows(np.stack([harmonic_mean_rows(means[:, :-1]), means[:, -1]], axis=1))


def _forget(context: Context, columns: Callable[[View, str], Column]) -> Column:
    names = context.protocol.sets("forget")
    if not names:
        raise Unavailable("no set has the role 'forget'")
    return pooled({name: columns(context.view, name) for name in names})


def _fluent_column(view: View, name: str) -> Column:
    return column(((item, fluent_share(item.prediction)) for item in view.generated(name, "question")), "fluent share")


def _left(mean: float) -> float:
    """Return 1 - mean, kept in 0..1 against rounding."""
    return min(1.0, max(0.0, 1.0 - mean))


def _estimate(
    make: Callable[[Context, Compat], _Score], needs: tuple[str, ...], context: Context, compat: Compat
) -> Estimate:
    score = make(context, compat)
    bounds = Interval(None, None, ONE_CLUSTER)
    if score.replicates is not None:
        bounds = interval(score.replicates, context.config.confidence)
    return Estimate(
        value=score.value, ci_low=bounds.low, ci_high=bounds.high, n=score.n, direction="higher",
        reference=context.reference_name if "reference" in needs else None, compat=compat, reason=bounds.reason,
    )  # fmt: skip


_ONE_NUMBER = "One number never stands for an audit: read its parts."
_MEMORIZATION_NEEDS = ("paraphrased_answer", "perturbed_answers")
_UTILITY_NEEDS = ("paraphrased_answer", "perturbed_answers", "generations")
_CARDS: Mapping[str, tuple[MetricCard, Callable[[Context, Compat], _Score]]] = {
    card.name: (card, make)
    for card, make in (
        (
            MetricCard(
                name="aggregate.memorization", title="Memorisation score", unit="score in 0..1", direction="higher",
                target="the value of a model retrained without the forget set; above it is over-unlearning",
                definition="Harmonic mean of 1 - extraction strength, 1 - exact memorisation, 1 - probability of the "
                "paraphrased answer and 1 - preference for the truth, each the mean over the forget set. Higher: less "
                "is memorised. The four parts are OpenUnlearning's; that its truth ratio enters as P(right) / "
                "(P(right) + P(wrong)) is our reading.",
                needs=_MEMORIZATION_NEEDS, compat=("fixed", "openunlearning"), source=_OPEN,
                known_failures=("Gibberish scores near 1.", _ONE_NUMBER),
            ),
            _memorization,
        ),
        (
            MetricCard(
                name="aggregate.privacy", title="Privacy score", unit="score in 0..1", direction="higher", target="1",
                definition="Harmonic mean over the attacks loss, zlib, Min-K% and Min-K%++ of s = 1 - min(1, |a - r| / "
                "max(r, 1 - r)), a the AUC on this model and r on the reference. The attacks are OpenUnlearning's, s "
                "is ours: their formula was not published.",
                needs=("reference", "holdout"), compat=("fixed", "openunlearning"), source=_OPEN,
                known_failures=("Not comparable with OpenUnlearning's printed privacy scores.", _ONE_NUMBER),
            ),
            _privacy,
        ),
        (
            MetricCard(
                name="aggregate.utility", title="Utility score", unit="score in 0..1", direction="higher",
                target="the value before unlearning",
                definition="Harmonic mean of model utility and of fluency on the forget questions. Fluency is ours: 1 "
                "- the share of repeated word 4-grams, 0 for an empty generation, in place of a trained gibberish "
                "classifier. OpenUnlearning also divides by the value before unlearning; this does not.",
                needs=_UTILITY_NEEDS, compat=("fixed", "paper", "locuslab", "openunlearning"), source=_OPEN,
                known_failures=("Fluent nonsense without repetition counts as fluent.", _ONE_NUMBER),
            ),
            _utility,
        ),
        (
            MetricCard(
                name="aggregate.overall", title="Overall score", unit="score in 0..1", direction="higher",
                target="the reference's value",
                definition="Harmonic mean of the memorisation, privacy and utility scores, with what is ours in them.",
                needs=("reference", "holdout", *_UTILITY_NEEDS), compat=("fixed", "openunlearning"), source=_OPEN,
                known_failures=("Not comparable with OpenUnlearning's printed scores.", _ONE_NUMBER),
            ),
            _overall,
        ),
    )
}  # fmt: skip

AGGREGATE_METRICS: tuple[AuditMetric, ...] = tuple(
    AuditMetric(card=card, compute=partial(_estimate, make, card.needs)) for card, make in _CARDS.values()
)
