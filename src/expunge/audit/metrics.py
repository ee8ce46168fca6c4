# SPDX-License-Identifier: Apache-2.0
"""From records to estimates: every metric by its dotted name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial

from expunge.audit.aggregate_metrics import AGGREGATE_METRICS
from expunge.audit.canaries.cards import CANARY_CARDS, CANARY_PREFIX, NO_CANARIES
from expunge.audit.choice_metrics import choice_cards, choice_jobs
from expunge.audit.columns import Column, View
from expunge.audit.config import AuditConfig
from expunge.audit.estimate import Estimate
from expunge.audit.lm_eval_results import HARNESS, harness_card
from expunge.audit.membership_metrics import MEMBERSHIP_METRICS
from expunge.audit.muse_metrics import MUSE_METRICS
from expunge.audit.protocol import Protocol, SetRole
from expunge.audit.quality_metrics import QUALITY_METRICS
from expunge.audit.records import Records
from expunge.audit.registry import GROUPS, PREFIX, AuditMetric, Context, Group, SetMetric, variant
from expunge.audit.set_metrics import SET_METRICS
from expunge.claims import MetricCard
from expunge.data.refusals import load_refusals
from expunge.errors import RecipeError, nearest

AUDIT_METRICS = (*MEMBERSHIP_METRICS, *QUALITY_METRICS, *MUSE_METRICS, *AGGREGATE_METRICS)
_CORE_ROLES: tuple[SetRole, ...] = ("forget", "retain")
_SELF_CONTAINED: tuple[SetRole, ...] = ("hazard", "questions", "reasoning")


def compute_metrics(
    records: Records,
    *,
    protocol: Protocol,
    config: AuditConfig,
    reference: Records | None = None,
    reference_name: str | None = None,
    canaries: Mapping[str, Estimate] | None = None,
) -> dict[str, Estimate]:
    """Return every selected metric of one model.

    Args:
        records: what the model's audit pass saw.
        protocol: the part each set plays.
        config: which metrics, intervals and variants.
        reference: records of a model retrained without the forget set, on the same sets.
        reference_name: what to call it in the estimates; "reference" if not given.
        canaries: what planted canaries show about the model, by name of the metric.

    Returns:
        Estimates by name, the set first (`forget.probability`), or the bare name for the whole audit
        (`forget_quality`). A metric whose input is missing is there without a value and with the reason.

    Raises:
        RecipeError: if a pattern in `config.metrics` selects nothing, or a set has no role.
        ValueError: naming the item, if a log-probability is NaN.
    """
    context = _context(records, protocol, config, reference, reference_name)
    jobs: dict[str, Callable[[], Estimate]] = {}
    for name, role, metric in _set_jobs(protocol):
        jobs[f"{name}.{metric.name}"] = partial(metric.estimate, context, name, role)
    jobs |= choice_jobs(context)
    for whole in (metric for metric in AUDIT_METRICS if _has(protocol, metric)):
        jobs[whole.card.name] = partial(whole.estimate, context)
    jobs |= _canary_jobs(config, canaries or {})
    return {name: jobs[name]() for name in select(config.metrics, jobs)}


def _canary_jobs(config: AuditConfig, found: Mapping[str, Estimate]) -> dict[str, Callable[[], Estimate]]:
    """Return the metrics of canaries where there is a manifest, or where one of them is asked for by name."""
    asked = any(pattern.startswith(CANARY_PREFIX) for pattern in config.metrics)
    if config.canaries is None and not asked:
        return {}
    missing = Estimate.missing(NO_CANARIES, direction="reference")
    all_of_them = {card.name: missing for card in CANARY_CARDS} | dict(found)
    return {name: partial(all_of_them.__getitem__, name) for name in all_of_them}


def item_values(records: Records, name: str, *, protocol: Protocol, config: AuditConfig) -> Column:
    """Return the per-item values whose mean is the metric `name`, such as `forget.rouge_l`.

    Raises:
        RecipeError: if no metric of a set has that name.
        Unavailable: if its input is missing; the message is the reason.
    """
    jobs = {f"{set_name}.{metric.name}": (set_name, role, metric) for set_name, role, metric in _set_jobs(protocol)}
    if name not in jobs:
        raise RecipeError("no metric of a set has this name", field="metric", value=name, remedy=nearest(name, jobs))
    set_name, role, metric = jobs[name]
    context = _context(records, protocol, config, None, None)
    return metric.columns(context, set_name, role, variant(metric.compat, config))


def metric_cards(protocol: Protocol | None = None) -> list[MetricCard]:
    """Return the card of every metric, or of those that a protocol has; `{set}.` stands for any utility set."""
    groups = tuple(PREFIX) if protocol is None else _groups(protocol)
    cards = [card for metric in SET_METRICS for card in metric.cards(groups)]
    whole = (metric for metric in AUDIT_METRICS if protocol is None or _has(protocol, metric))
    planted = CANARY_CARDS if protocol is None else ()  # they depend on a manifest and not on the sets
    return [*cards, *choice_cards(groups), *(metric.card for metric in whole), *planted]


def card_for(name: str, protocol: Protocol | None = None) -> MetricCard:
    """Return the card of a computed metric.

    Args:
        name: as in the result of `compute_metrics`.
        protocol: tells the role of sets that are not called after it.

    Raises:
        RecipeError: if no card fits.
    """
    cards = {card.name: card for card in metric_cards()}
    first, _, rest = name.partition(".")
    if first == HARNESS and "." in rest:
        return harness_card(name)
    role = protocol.roles.get(first) if protocol else None
    prefix = PREFIX[GROUPS[role]] if role else first
    part = f"{{subject}}.{rest.rpartition('.')[2]}"  # a metric of one subject: `mmlu.anatomy.accuracy`
    for key in (f"{prefix}.{rest}", name, f"{{set}}.{rest}", f"{prefix}.{part}", f"{{set}}.{part}"):
        if key in cards:
            return cards[key]
    raise RecipeError("unknown metric", field="metrics", value=name, remedy=nearest(name, cards))


def select(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names that match any pattern, in their own order; a pattern without a match is a `RecipeError`."""
    known = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        matches = [name for name in known if fnmatchcase(name, pattern)]
        if not matches:
            raise RecipeError("no metric has this name", field="metrics", value=pattern, remedy=nearest(pattern, known))
        chosen.update(matches)
    return [name for name in known if name in chosen]


def _context(
    records: Records, protocol: Protocol, config: AuditConfig, reference: Records | None, reference_name: str | None
) -> Context:
    view = View(records)
    for name in view.sets:
        if name not in protocol.roles:
            remedy = f"Give it a role in the protocol {protocol.name!r}, or leave it out"
            raise RecipeError("an evaluated set has no role", field="roles", value=name, remedy=remedy)
    return Context(
        view=view,
        protocol=protocol,
        config=config,
        reference=None if reference is None else View(reference),
        reference_name=None if reference is None else reference_name or "reference",
        refusals=load_refusals(config.refusals),
    )


def _has(protocol: Protocol, metric: AuditMetric) -> bool:
    return metric.offered(protocol) and not _self_contained(protocol)


def _groups(protocol: Protocol) -> list[Group]:
    """Return the groups of sets that a protocol has metrics for; those of an unlearning audit always go together."""
    played = [GROUPS[role] for role in protocol.roles.values()]
    return played if _self_contained(protocol) else [*played, "forget", "utility", "holdout"]


def _self_contained(protocol: Protocol) -> bool:
    """Return whether every set has metrics of its own, so that those of an unlearning audit are not asked for."""
    return bool(protocol.roles) and all(role in _SELF_CONTAINED for role in protocol.roles.values())


def _set_jobs(protocol: Protocol) -> Iterable[tuple[str, SetRole, SetMetric]]:
    """Yield (set, role, metric); roles every audit needs appear even where no set plays them."""
    absent: dict[str, SetRole] = {
        role: role
        for role in _CORE_ROLES
        if not protocol.sets(role) and role not in protocol.roles and not _self_contained(protocol)
    }
    for name, role in (*protocol.roles.items(), *absent.items()):
        for metric in SET_METRICS:
            if GROUPS[role] in metric.groups:
                yield name, role, metric
