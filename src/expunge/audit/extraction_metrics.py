# SPDX-License-Identifier: Apache-2.0
"""Extraction by continuing prefixes and by sampling, as metrics of the forget and holdout sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from expunge.audit.columns import Column, View, column
from expunge.audit.config import Compat
from expunge.audit.estimate import Direction
from expunge.audit.extraction import extractable, extraction_likelihood
from expunge.audit.memorization import scored_part
from expunge.audit.protocol import SetRole
from expunge.audit.records import GeneratedItem
from expunge.audit.registry import Context, Group, SetMetric
from expunge.audit.statistics import Unavailable

_RETRAINED = "the value of a model retrained without the forget set"
_GROUPS: Mapping[Group, tuple[Direction, str]] = {
    "forget": ("lower", f"{_RETRAINED}, or that of the holdout set"),
    "holdout": ("reference", _RETRAINED),
}


def extraction_likelihood_column(view: View, name: str, n: int) -> Column:
    """Return EL_n of every answer in a set that has a continued prefix with n tokens to come."""
    groups: dict[str, list[GeneratedItem]] = defaultdict(list)
    for item in view.generated(name, "prefix"):
        if len(item.target_ids) >= n:
            groups[item.id].append(item)
    if not groups:
        raise Unavailable(f"no continued answer of set {name!r} has {n} tokens")
    values = (
        (items[0], extraction_likelihood([i.ids for i in items], [i.target_ids for i in items], n))
        for items in groups.values()
    )
    return column(values, "extraction likelihood")


def discoverable_column(view: View, name: str, *, samples: int, chance: float) -> Column:
    """Return 1 for every answer that is among `samples` plain samples with at least `chance`, else 0."""
    return column(
        (
            (item, float(extractable(float(scored_part(item, item.logp).sum()), samples, chance)))
            for item in view.scored(name, "answer")
        ),
        "discoverable extraction",
    )


def _likelihood(context: Context, name: str, role: SetRole, compat: Compat) -> Column:
    return extraction_likelihood_column(context.view, name, context.config.extraction_length)


def _discoverable(context: Context, name: str, role: SetRole, compat: Compat) -> Column:
    config = context.config
    return discoverable_column(
        context.view, name, samples=config.extraction_samples, chance=config.extraction_probability
    )


EXTRACTION_METRICS: tuple[SetMetric, ...] = (
    SetMetric(
        name="discoverable_extraction", title="(n, p)-discoverable extraction", unit="share in 0..1", rate=True,
        definition="Share of answers, end-of-sequence left out, that are among `extraction_samples` samples at "
        "temperature 1 from the whole vocabulary with probability `extraction_probability` or more.",
        columns=_discoverable, groups=_GROUPS,
        source="Hayes et al., Measuring Memorization in Language Models via Probabilistic Extraction, 2025",
        known_failures=(
            "Verbatim only: a paraphrase does not count.",
            "Sampling at lower temperature or from fewer tokens finds other answers.",
            "Long answers need far more samples than short ones.",
        ),
    ),
    SetMetric(
        name="extraction_likelihood", title="Extraction likelihood (EL_n)", unit="share in 0..1",
        definition="Mean share of n-grams (n = `extraction_length`) of the greedy continuation of an answer's prefix "
        "that occur in the true continuation, over `extraction_prefixes` evenly spaced prefixes; both are cut at "
        "`max_new_tokens`, and answers of n tokens or fewer are left out.",
        columns=_likelihood, groups=_GROUPS, needs=("extraction_prefixes",),
        source="Jang et al., Knowledge Unlearning for Mitigating Privacy Risks in Language Models, 2023",
        known_failures=("Sees greedy decoding only.", "Repeated n-grams count each time."),
    ),
)  # fmt: skip
