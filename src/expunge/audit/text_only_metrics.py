# SPDX-License-Identifier: Apache-2.0
"""Whether forget and holdout differ as texts, and what that takes away from every membership score."""

from __future__ import annotations

import numpy as np
from scipy import stats

from expunge.audit.columns import Column, column, pooled
from expunge.audit.config import Compat
from expunge.audit.estimate import Estimate
from expunge.audit.protocol import SetRole
from expunge.audit.registry import ONE_CLUSTER, AuditMetric, Context, single_cluster
from expunge.audit.statistics import Floats, Interval, Unavailable, auc, auc_replicates, interval
from expunge.claims import MetricCard

MARGIN = 0.05
"""How far above one half the interval of the text-only AUC must lie for the sets to count as different."""
ALPHA = 0.01
"""Largest p-value of the rank test between subjects at which they do: in tiny sets an interval alone can mislead."""

_NAME = "text_only"


def sets_differ(context: Context) -> str:
    """Return why membership scores on these sets are no evidence, "" where nothing says so.

    The sets differ if the whole interval of the text-only AUC lies above one half by more than `MARGIN`, and subjects
    of the forget set rank above those of the holdout with p < `ALPHA` (one-sided Mann-Whitney test on subject means).
    """
    if _NAME not in context.caveats:
        try:
            context.caveats[_NAME] = _verdict(context)
        except Unavailable:  # the text-only metric itself says why
            context.caveats[_NAME] = ""
    return context.caveats[_NAME]


def _verdict(context: Context) -> str:
    member, nonmember = _scores(context, "forget"), _scores(context, "holdout")
    bounds = _bounds(context, member, nonmember)
    if bounds.low is None or bounds.high is None or bounds.low <= 0.5 + MARGIN:
        return ""
    test = stats.mannwhitneyu(_subject_means(member), _subject_means(nonmember), alternative="greater")
    if not test.pvalue < ALPHA:
        return ""
    return (
        "not evidence of membership: the forget and holdout texts differ; a classifier that never sees the model tells "
        f"them apart with AUC {auc(member.values, nonmember.values):.2f} ({bounds.low:.2f} to {bounds.high:.2f})"
    )


def _subject_means(values: Column) -> Floats:
    _, codes = np.unique(values.clusters, return_inverse=True)
    means: Floats = np.bincount(codes, weights=values.values) / np.bincount(codes)
    return means


def _bounds(context: Context, member: Column, nonmember: Column) -> Interval:
    if single_cluster(member, nonmember):
        return Interval(None, None, ONE_CLUSTER)
    samples = context.sample("role forget", member), context.sample("role holdout", nonmember)
    return interval(auc_replicates(*samples), context.config.confidence)


def _scores(context: Context, role: SetRole) -> Column:
    names = (role == "forget" and context.protocol.members) or context.protocol.sets(role)
    if not names:
        raise Unavailable(f"no set has the role {role!r}")
    found = pooled({
        name: column(
            ((item, item.text_score) for item in context.view.scored(name, "answer") if item.text_score is not None),
            "score of the text",
        )
        for name in names
    })  # fmt: skip
    if not len(found):
        raise Unavailable(
            "the records hold no scores of the texts alone: they need two subjects or more of forget and of holdout"
        )
    return found


def _auc(context: Context, compat: Compat) -> Estimate:
    member, nonmember = _scores(context, "forget"), _scores(context, "holdout")
    bounds = _bounds(context, member, nonmember)
    return Estimate(
        value=auc(member.values, nonmember.values), ci_low=bounds.low, ci_high=bounds.high,
        n=len(member) + len(nonmember), direction="lower", compat=compat, reason=bounds.reason,
    )  # fmt: skip


TEXT_ONLY = AuditMetric(
    card=MetricCard(
        name="membership.text_only.auc", title="Forget against holdout by text alone", unit="AUC", direction="lower",
        target="one half: the two sets can then be compared",
        definition="AUC of a logistic regression on hashed words, word pairs and text length that never sees the "
        "model, each text scored without its own subject. Where the whole interval lies above "
        f"{0.5 + MARGIN:g} and subjects differ with p < {ALPHA:g}, the sets differ: every membership number of the "
        "audit then says that it is not evidence.",
        needs=("holdout",),
        known_failures=(
            "One half does not show that the sets are alike: a stronger classifier may tell them apart.",
            "Below one half means the same as one half.",
        ),
        source="Das et al., Blind Baselines Beat Membership Inference Attacks for Foundation Models, 2024",
    ),
    compute=_auc,
)  # fmt: skip
