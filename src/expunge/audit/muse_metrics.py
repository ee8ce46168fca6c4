# SPDX-License-Identifier: Apache-2.0
"""The numbers of MUSE under their own names, and its leakage against the published retrained models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from expunge.audit.config import Compat
from expunge.audit.estimate import Direction, Estimate
from expunge.audit.membership_metrics import side_replicates, sides
from expunge.audit.overlap import rouge_column
from expunge.audit.quality import privleak
from expunge.audit.registry import ONE_CLUSTER, AuditMetric, Context, mean_estimate, single_cluster
from expunge.audit.statistics import Interval, Unavailable, auc, interval
from expunge.claims import MetricCard

PROTOCOLS = ("muse-*",)
#: AUC that MUSE prints for its retrained models. Its code counts the holdout as positive and ranks by low Min-K%, so
#: this is one minus the AUC of member-high scores.
PUBLISHED_AUC: Mapping[str, tuple[str, float]] = {
    "muse-news": ("published retrain of MUSE News (LLaMA-2 7B)", 0.4772),
    "muse-books": ("published retrain of MUSE Books (ICLM 7B)", 0.5393),
}
_SOURCE = "Shi et al., MUSE: Machine Unlearning Six-Way Evaluation for Language Models, 2024, section 3"


def _overlap(name: str, direction: Direction, context: Context, compat: Compat) -> Estimate:
    """Return the mean ROUGE-L F1 of the set that carries the metric's name; only OpenUnlearning stems the words."""
    values = rouge_column(context.view, name, "rouge_l_f1", stemmer=compat == "openunlearning")
    return mean_estimate(context, name, values, direction=direction, compat=compat)


def _privleak_published(context: Context, compat: Compat) -> Estimate:
    if context.protocol.name not in PUBLISHED_AUC:
        raise Unavailable(f"no retrained model of protocol {context.protocol.name!r} was published")
    if context.config.privleak_k != 0.4:
        raise Unavailable(f"the published AUC is that of Min-40%, not of share {context.config.privleak_k:g}")
    who, published = PUBLISHED_AUC[context.protocol.name]
    member, nonmember = sides(context, context.view, "min_k", context.config.privleak_k, compat)
    theirs = 1.0 - published
    bounds = Interval(None, None, ONE_CLUSTER)
    if not single_cluster(member, nonmember):
        replicates = privleak(side_replicates(context, member, nonmember), theirs, compat=compat)
        bounds = interval(np.asarray(replicates), context.config.confidence)
    return Estimate(
        value=float(privleak(auc(member.values, nonmember.values), theirs, compat=compat)),
        ci_low=bounds.low, ci_high=bounds.high, n=len(member) + len(nonmember), direction="reference",
        reference=f"{who}, AUC {published}", compat=compat, reason=bounds.reason,
    )  # fmt: skip


_RETRAINED = "the value of a model retrained without the forget set; far below it is over-unlearning"
_COMPAT = ("fixed", "muse", "openunlearning")
_VERBMEM = MetricCard(
    name="verbmem", title="Verbatim memorisation (VerbMem)", unit="ROUGE in 0..1", direction="lower",
    target=_RETRAINED, needs=("generations",), compat=_COMPAT, source=_SOURCE,
    definition="Mean ROUGE-L F1 between the greedy continuation (128 tokens) of an excerpt of the forget set and its "
    "true continuation, cut to 128 token ids with the start token counted. Words are not stemmed; `openunlearning` "
    "stems them. MUSE prints 100 times this.",
    known_failures=("Gibberish scores as low as a model that never saw the text.", "Sees greedy decoding only."),
)  # fmt: skip
_KNOWMEM_F = MetricCard(
    name="knowmem_f", title="Knowledge memorisation (KnowMem) of the forget set", unit="ROUGE in 0..1",
    direction="lower", target=_RETRAINED, needs=("generations",), compat=_COMPAT, source=_SOURCE,
    definition="Mean ROUGE-L F1 between the answer to a question on the forget set and the true answer: ten solved "
    "questions first, greedy, 32 tokens, cut before the next question. Words are not stemmed; `openunlearning` stems "
    "them. MUSE prints 100 times this.",
    known_failures=("Blind to paraphrase.", "Answers of one or two words make the score coarse."),
)  # fmt: skip
_KNOWMEM_R = MetricCard(
    name="knowmem_r", title="Utility: KnowMem of the retain set", unit="ROUGE in 0..1", direction="higher",
    target="the value before unlearning", needs=("generations",), compat=_COMPAT, source=_SOURCE,
    definition="The same number as `knowmem_f` on questions about the retain set, which MUSE calls utility.",
    known_failures=("Utility outside questions on the retain set is not measured.",),
)  # fmt: skip
_PRIVLEAK = MetricCard(
    name="privleak_published", title="Privacy leakage relative to the published retrained model", unit="percent",
    direction="reference", target="-5 to 5", needs=("holdout",),
    compat=("fixed", "paper", "openunlearning", "muse"), source=_SOURCE,
    definition="As `privleak`, with the AUC that MUSE prints for its own retrained model, 0.4772 (News) or 0.5393 "
    "(Books) in the orientation 1 - AUC, in place of a measured one. `paper` takes A = AUC.",
    known_failures=(
        "Holds only for a model made from the same base model as the published one, on the published chunks.",
        "The interval leaves out how uncertain the published number is.",
        "Inherits the limits of Min-K%.",
    ),
)  # fmt: skip


def _metric(card: MetricCard, compute: Callable[[Context, Compat], Estimate]) -> AuditMetric:
    return AuditMetric(card=card, compute=compute, protocols=PROTOCOLS)


MUSE_METRICS: tuple[AuditMetric, ...] = (
    _metric(_VERBMEM, partial(_overlap, "verbmem", "lower")),
    _metric(_KNOWMEM_F, partial(_overlap, "knowmem_f", "lower")),
    _metric(_KNOWMEM_R, partial(_overlap, "knowmem_r", "higher")),
    _metric(_PRIVLEAK, _privleak_published),
)
