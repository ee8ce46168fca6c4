# SPDX-License-Identifier: Apache-2.0
"""Forget quality, privacy leakage and model utility as metrics."""

from __future__ import annotations

import numpy as np

from expunge.audit.columns import Column, View, pooled
from expunge.audit.config import Compat
from expunge.audit.estimate import Direction, Estimate
from expunge.audit.membership_metrics import side_replicates, sides
from expunge.audit.probability import log_truth_ratios
from expunge.audit.quality import privleak, utility_parts
from expunge.audit.registry import ONE_CLUSTER, AuditMetric, Context, single_cluster
from expunge.audit.statistics import (
    Interval,
    Sample,
    Unavailable,
    auc,
    function_replicates,
    harmonic_mean,
    harmonic_mean_rows,
    interval,
    ks_p_value,
    ks_replicates,
    ks_two_sample,
)
from expunge.claims import MetricCard

_TOFU = "Maini et al., TOFU, 2024, section 2.2"


def _forget_ratios(context: Context, view: View, compat: Compat) -> Column:
    names = context.protocol.sets("forget")
    if not names:
        raise Unavailable("no set has the role 'forget'")
    return pooled({name: log_truth_ratios(view, name, options=False, compat=compat) for name in names})


def _distance(context: Context, compat: Compat) -> tuple[Column, Column, Interval]:
    """Return the log truth ratios of model and reference, and the interval of the distance between the two."""
    reference = context.needed_reference()
    ours, theirs = _forget_ratios(context, context.view, compat), _forget_ratios(context, reference, compat)
    if single_cluster(ours, theirs):
        return ours, theirs, Interval(None, None, ONE_CLUSTER)
    # Two names, so that the two models are redrawn independently.
    first, second = context.sample("ratios of the model", ours), context.sample("ratios of the reference", theirs)
    return ours, theirs, interval(ks_replicates(first, second), context.config.confidence)


def _forget_quality(context: Context, compat: Compat) -> Estimate:
    ours, theirs, bounds = _distance(context, compat)
    value = ks_two_sample(ours.values, theirs.values)[1]
    low = high = None
    if bounds.low is not None and bounds.high is not None:
        # The p-value falls as the distance grows. Resampling adds distance, so widen to hold the estimate.
        low = min(value, ks_p_value(bounds.high, len(ours), len(theirs)))
        high = max(value, ks_p_value(bounds.low, len(ours), len(theirs)))
    return _estimate(context, compat, value, Interval(low, high, bounds.reason), len(ours), "higher")


def _forget_quality_ks(context: Context, compat: Compat) -> Estimate:
    ours, theirs, bounds = _distance(context, compat)
    value = ks_two_sample(ours.values, theirs.values)[0]
    low = None if bounds.low is None else min(value, bounds.low)
    high = None if bounds.high is None else max(value, bounds.high)
    return _estimate(context, compat, value, Interval(low, high, bounds.reason), len(ours), "lower")


def _privleak(context: Context, compat: Compat) -> Estimate:
    k = context.config.privleak_k
    member, nonmember = sides(context, context.view, "min_k", k, compat)
    their_member, their_nonmember = sides(context, context.needed_reference(), "min_k", k, compat)
    value = privleak(
        auc(member.values, nonmember.values), auc(their_member.values, their_nonmember.values), compat=compat
    )
    bounds = Interval(None, None, ONE_CLUSTER)
    if not single_cluster(member, nonmember, their_member, their_nonmember):
        ours = side_replicates(context, member, nonmember)
        theirs = side_replicates(context, their_member, their_nonmember)
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = interval(np.asarray(privleak(ours, theirs, compat=compat)), context.config.confidence)
    return _estimate(context, compat, float(value), bounds, len(member) + len(nonmember), "reference")


def _privleak_auc(context: Context, compat: Compat) -> Estimate:
    """Return the AUC behind PrivLeak; MUSE prints one minus that of member-high scores."""
    member, nonmember = sides(context, context.view, "min_k", context.config.privleak_k, compat)
    value, bounds = auc(member.values, nonmember.values), Interval(None, None, ONE_CLUSTER)
    if not single_cluster(member, nonmember):
        replicates = side_replicates(context, member, nonmember)
        bounds = interval(1.0 - replicates if compat == "muse" else replicates, context.config.confidence)
    return Estimate(
        value=1.0 - value if compat == "muse" else value, ci_low=bounds.low, ci_high=bounds.high,
        n=len(member) + len(nonmember), direction="reference", compat=compat, reason=bounds.reason,
    )  # fmt: skip


def _model_utility(context: Context, compat: Compat) -> Estimate:
    parts = utility_parts(context.view, context.protocol, compat=compat)
    value = harmonic_mean([float(values.values.mean()) for values in parts.values()])
    bounds = Interval(None, None, ONE_CLUSTER)
    ids: dict[str, set[str]] = {}
    clusters: dict[str, set[str]] = {}
    for (name, _), values in parts.items():
        ids.setdefault(name, set()).update(values.ids)
        clusters.setdefault(name, set()).update(values.clusters)
    if not single_cluster(*parts.values()):
        # The parts of one set share its draws: probability and ROUGE of an item rise and fall together.
        samples = [
            Sample(c.values, c.clusters, context.draws(name, sorted(clusters[name]))) for (name, _), c in parts.items()
        ]
        bounds = interval(function_replicates(samples, harmonic_mean_rows), context.config.confidence)
    return Estimate(
        value=value,
        ci_low=bounds.low,
        ci_high=bounds.high,
        n=sum(map(len, ids.values())),
        direction="higher",
        compat=compat,
        reason=bounds.reason,
    )


def _estimate(
    context: Context, compat: Compat, value: float, bounds: Interval, n: int, direction: Direction
) -> Estimate:
    return Estimate(
        value=value,
        ci_low=bounds.low,
        ci_high=bounds.high,
        n=n,
        direction=direction,
        reference=context.reference_name,
        compat=compat,
        reason=bounds.reason,
    )


_FORGET_QUALITY = MetricCard(
    name="forget_quality", title="Forget quality", unit="p-value", direction="higher", target="above 0.05",
    definition="p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios of this model and of the "
    "retrained reference on the forget set.",
    needs=("reference", "perturbed_answers", "paraphrased_answer"),
    compat=("fixed", "paper", "locuslab", "openunlearning"), source=_TOFU,
    known_failures=(
        "Says nothing about utility: gibberish can pass.",
        "Falls with the number of items: compare only runs on the same items.",
        "A high p-value is absence of evidence, not evidence of equality; items of one author are not independent.",
    ),
)  # fmt: skip
_FORGET_QUALITY_KS = MetricCard(
    name="forget_quality_ks", title="Distance of truth ratios from the reference", unit="distance in 0..1",
    direction="lower", target="0",
    definition="Largest gap between the distribution functions of the truth ratios of this model and of the retrained "
    "reference on the forget set.",
    needs=_FORGET_QUALITY.needs, compat=_FORGET_QUALITY.compat, source=_TOFU,
    known_failures=("Biased upwards in small sets: two samples of one model differ too.",),
)  # fmt: skip
_PRIVLEAK = MetricCard(
    name="privleak", title="Privacy leakage relative to the reference", unit="percent", direction="reference",
    target="-5 to 5",
    definition="100 (A - A_reference) / A_reference with A = 1 - AUC of Min-K% at share `privleak_k`, forget against "
    "holdout; negative: the forget set still stands out; positive: over-unlearned. `paper` takes A = AUC.",
    needs=("reference", "holdout"), compat=("fixed", "paper", "openunlearning", "muse"),
    source="Shi et al., MUSE, 2024, section 3",
    known_failures=("Explodes where the reference separates the two sets by itself.", "Inherits the limits of Min-K%."),
)  # fmt: skip
_PRIVLEAK_AUC = MetricCard(
    name="privleak_auc", title="AUC behind PrivLeak", unit="AUC", direction="reference", target="the reference's value",
    definition="P(forget item scores higher than holdout item) under Min-K% at share `privleak_k`, ties one half: "
    "above one half the forget set stands out. `muse` prints one minus this.", needs=("holdout",),
    compat=_PRIVLEAK.compat, source=_PRIVLEAK.source,
    known_failures=("Two orientations are in print: never compare without the variant's name.",),
)  # fmt: skip
_MODEL_UTILITY = MetricCard(
    name="model_utility", title="Model utility", unit="score in 0..1", direction="higher",
    target="the value before unlearning",
    definition="Harmonic mean of probability, ROUGE-L recall and truth ratio over every utility set; 0 if any is 0.",
    needs=("perturbed_answers", "paraphrased_answer", "generations"),
    compat=("fixed", "paper", "locuslab", "openunlearning"), source=_TOFU,
    known_failures=("One collapsed part hides the others.", "Utility outside these sets is not measured."),
)  # fmt: skip

QUALITY_METRICS: tuple[AuditMetric, ...] = (
    AuditMetric(card=_FORGET_QUALITY, compute=_forget_quality),
    AuditMetric(card=_FORGET_QUALITY_KS, compute=_forget_quality_ks),
    AuditMetric(card=_PRIVLEAK, compute=_privleak),
    AuditMetric(card=_PRIVLEAK_AUC, compute=_privleak_auc),
    AuditMetric(card=_MODEL_UTILITY, compute=_model_utility),
)
