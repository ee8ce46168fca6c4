# SPDX-License-Identifier: Apache-2.0
"""Membership inference as metrics: can an attacker tell forget items from holdout items?

Members are the sets of role `forget`, non-members those of role `holdout`. The AUC is always that of member-high
scores; one half means that the attack sees nothing, far below it that the model was pushed too far.
"""

from __future__ import annotations

from functools import partial

from expunge.audit.columns import Column, View, pooled
from expunge.audit.config import Compat
from expunge.audit.estimate import Estimate
from expunge.audit.membership import ATTACKS, attack_column
from expunge.audit.protocol import SetRole
from expunge.audit.registry import ONE_CLUSTER, AuditMetric, Context, single_cluster
from expunge.audit.statistics import Floats, Interval, Unavailable, auc, auc_replicates, interval, tpr_at_fpr
from expunge.audit.text_only_metrics import TEXT_ONLY, sets_differ
from expunge.claims import MetricCard

FPR = 0.01

_DEFINITIONS = {
    "loss": "mean token log-probability",
    "zlib": "mean token log-probability over the zlib-compressed length of the text",
    "min_k": "mean of the lowest share `min_k` of the token log-probabilities, at least one token",
    "min_k_plus_plus": "mean of the lowest share `min_k` of the token log-probabilities, each standardised by the mean "
    "and variance of log p under the model (variance kept above 1e-6)",
    "lowercase": "loss of the lowercased text over the loss of the text",
    "reference": "loss under the reference model minus loss under the model",
    "gradient_norm": "minus the L2 norm, over all parameters, of the gradient of the mean loss of the answer's tokens "
    "(`openunlearning`: the mean over parameter tensors of the norm of each)",
    "neighbourhood": "mean loss of copies of the answer with a tenth of its words replaced, minus its own loss",
}
_SOURCES = {
    "loss": "Yeom et al., Privacy Risk in Machine Learning, 2018",
    "zlib": "Carlini et al., Extracting Training Data from Large Language Models, 2021",
    "min_k": "Shi et al., Detecting Pretraining Data from Large Language Models, 2024",
    "min_k_plus_plus": "Zhang et al., Min-K%++, 2024",
    "lowercase": "Carlini et al., Extracting Training Data from Large Language Models, 2021",
    "reference": "Carlini et al., Membership Inference Attacks From First Principles, 2022",
    "gradient_norm": "Dorna et al., OpenUnlearning, 2025",
    "neighbourhood": "Mattern et al., Membership Inference Attacks via Neighbourhood Comparison, 2023",
}
_ALSO = {
    "gradient_norm": ("Depends on the size of the model: compare models of one architecture only.",),
    "neighbourhood": (
        "Words drawn from the evaluated sets stand in for a mask-filler: less fluent neighbours, a weaker attack.",
    ),
}
_TOKENS = (
    "Scores leave the end-of-sequence token out. `openunlearning` keeps it for loss and zlib and drops the last label "
    "elsewhere; `muse` keeps every token and does not round Min-K% up to one token."
)
_COMPAT = {
    "lowercase": ("fixed",), "reference": ("fixed",), "neighbourhood": ("fixed",),
    "gradient_norm": ("fixed", "openunlearning"),
}  # fmt: skip
_FAILURES = (
    "No evidence where the holdout set is not distributed like the forget set; see membership.text_only.auc.",
    "A failed attack does not show that there is nothing to find.",
)


def sides(context: Context, view: View, attack: str, k: float, compat: Compat) -> tuple[Column, Column]:
    """Return the scores of members and non-members under one attack.

    Raises:
        Unavailable: if either role has no set, or the attack lacks its input.
    """
    if not context.protocol.sets("holdout"):
        raise Unavailable("no set has the role 'holdout'")
    member, nonmember = (_scores(context, view, role, attack, k, compat) for role in ("forget", "holdout"))
    return member, nonmember


def side_replicates(context: Context, member: Column, nonmember: Column) -> Floats:
    """Return the AUC in every replicate, [R]; models scored on the same items get the same draws."""
    return auc_replicates(context.sample("role forget", member), context.sample("role holdout", nonmember))


def _scores(context: Context, view: View, role: SetRole, attack: str, k: float, compat: Compat) -> Column:
    names = (role == "forget" and context.protocol.members) or context.protocol.sets(role)
    if not names:
        raise Unavailable(f"no set has the role {role!r}")
    other = context.needed_reference() if attack == "reference" else None
    scores = pooled({name: attack_column(view, name, attack, k=k, compat=compat, reference=other) for name in names})
    if not len(scores):
        raise Unavailable(f"no item of role {role!r} has what this attack needs")
    return scores


def _auc(attack: str, context: Context, compat: Compat) -> Estimate:
    member, nonmember = sides(context, context.view, attack, context.config.min_k, compat)
    bounds = Interval(None, None, ONE_CLUSTER)
    if not single_cluster(member, nonmember):
        bounds = interval(side_replicates(context, member, nonmember), context.config.confidence)
    value = auc(member.values, nonmember.values)
    return _estimate(attack, context, compat, member, nonmember, value, bounds)


def _tpr(attack: str, context: Context, compat: Compat) -> Estimate:
    member, nonmember = sides(context, context.view, attack, context.config.min_k, compat)
    value, low, high = tpr_at_fpr(member.values, nonmember.values, FPR, confidence=context.config.confidence)
    return _estimate(attack, context, compat, member, nonmember, value, Interval(low, high))


def _estimate(
    attack: str, context: Context, compat: Compat, member: Column, nonmember: Column, value: float, bounds: Interval
) -> Estimate:
    return Estimate(
        value=value,
        ci_low=bounds.low,
        ci_high=bounds.high,
        n=len(member) + len(nonmember),
        direction="reference",
        reference=context.reference_name if attack == "reference" else None,
        compat=compat,
        reason=bounds.reason,
        caveat=sets_differ(context),
    )


def _needs(attack: str) -> tuple[str, ...]:
    extra = {
        "lowercase": ("lowercase",), "reference": ("reference",), "min_k_plus_plus": ("token_statistics",),
        "gradient_norm": ("gradient_norm",), "neighbourhood": ("neighbours",),
    }  # fmt: skip
    return ("holdout", *extra.get(attack, ()))


def _metrics(attack: str) -> tuple[AuditMetric, AuditMetric]:
    compat, failures = _COMPAT.get(attack, ("fixed", "openunlearning", "muse")), (*_FAILURES, *_ALSO.get(attack, ()))
    aim = "the reference's value; one half where holdout is distributed like forget"
    auc_card = MetricCard(
        name=f"membership.{attack}.auc", title=f"Membership AUC, {attack}", unit="AUC", direction="reference",
        definition=f"P(forget item scores higher than holdout item), ties one half; score: {_DEFINITIONS[attack]}. "
        + _TOKENS, target=aim, needs=_needs(attack), compat=compat, known_failures=failures, source=_SOURCES[attack],
    )  # fmt: skip
    tpr_card = MetricCard(
        name=f"membership.{attack}.tpr_at_1pct_fpr", title=f"Membership TPR at 1 % FPR, {attack}", unit="share in 0..1",
        definition="Largest share of forget items above a threshold that at most 1 % of the holdout items pass, with "
        f"Clopper-Pearson interval; needs 100 holdout items. Score: {_DEFINITIONS[attack]}.", direction="reference",
        target="the reference's value", needs=_needs(attack), compat=compat, source=_SOURCES[attack],
        known_failures=(*failures, "The interval treats items as independent and the threshold as given."),
    )  # fmt: skip
    return (
        AuditMetric(card=auc_card, compute=partial(_auc, attack)),
        AuditMetric(card=tpr_card, compute=partial(_tpr, attack)),
    )


MEMBERSHIP_METRICS: tuple[AuditMetric, ...] = (
    *(metric for attack in ATTACKS for metric in _metrics(attack)),
    TEXT_ONLY,
)
