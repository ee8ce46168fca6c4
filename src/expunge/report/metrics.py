# SPDX-License-Identifier: Apache-2.0
"""Metrics in plain words: display name, group, a short explanation, and which metrics lead a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.report.view import EstimateDict, ReportView

GROUPS: dict[str, str] = {
    "Forgetting": "What the model still says or prefers about the forget set.",
    "Utility": "What it should have kept.",
    "Membership": "Whether the forget set still looks more familiar than text the model never saw.",
    "Behaviour": "How it answers: refusals, invented answers, fluency.",
    "Other": "Controls, such as text the model never saw, and everything else.",
}

_SETS: dict[str, str] = {
    "forget": "forget-set",
    "retain": "retain-set",
    "holdout": "unseen-set",
    "real_authors": "real-authors",
    "world_facts": "world-facts",
    "utility": "utility-set",
}


@dataclass(frozen=True, slots=True)
class Term:
    """Words for one kind of number.

    `known` is +1 where a larger value means that more is known of the set, -1 where it means less, 0 where neither
    holds. `neutral` is the value that needs no reference model (one half for an AUC). `scale` is the width of the
    range that closeness is judged on: 1 for shares and probabilities, 100 for percentages, None where a plain gap
    says nothing (p-values, lengths).
    """

    phrase: str
    means: str
    group: str = ""
    known: int = 0
    neutral: float | None = None
    scale: float | None = 1.0


_AUC = "How often a forget-set item looks more familiar than an unseen one; one half is chance level."
_TRACES = (
    "Share of readings of forget texts that a classifier puts down to the right one of two models: this one and one "
    "that never learned. The reference stands for two that never learned."
)
_TERMS: dict[str, Term] = {
    "probability": Term("answer probability", "How likely the true answer is, per token (geometric mean).", known=1),
    "rouge": Term("answer overlap", "Share of the true answer that the generated answer contains (ROUGE-L).", known=1),
    "rouge_l_f1": Term("answer overlap, F1", "How far true and generated answer overlap (ROUGE-L F1).", known=1),
    "rouge_1": Term("shared words", "Share of the words of the true answer that were generated (ROUGE-1).", known=1),
    "truth_preference": Term("preference for the truth", "Weight of the true answer against wrong ones.", known=1),
    "truth_ratio": Term("truth ratio", "How plausible wrong answers fare against the true one."),
    "extraction_strength": Term(
        "extraction strength", "Share of the answer that comes out word for word once its start is given.", known=1
    ),
    "extraction_likelihood": Term(
        "extraction likelihood", "How much of the true rest comes out when the start of an answer is given.", known=1
    ),
    "discoverable_extraction": Term(
        "answers found by sampling", "Share of answers that a set number of random samples would hold.", known=1
    ),
    "exact_memori": Term(
        "exact memorisation", "Share of answer tokens that are the model's first choice.", known=1
    ),
    "verbmem": Term("verbatim overlap", "How much of the true continuation is written out (ROUGE-L).", "Forgetting",
                    known=1),
    "knowmem": Term("knowledge overlap", "How much of the true answer is given to a question (ROUGE-L).", known=1),
    "knowmem_f": Term("forget-set knowledge overlap", "How much of the true answer is given to a question on the "
                      "forget set (ROUGE-L).", "Forgetting", known=1),
    "knowmem_r": Term("retain-set knowledge overlap", "How much of the true answer is given to a question on the "
                      "retain set (ROUGE-L); MUSE calls it utility.", "Utility", known=1),
    "accuracy": Term("accuracy", "Share of questions answered correctly.", known=1),
    "perplexity": Term("perplexity", "How surprised the model is by the text; high is surprised.", scale=None),
    "forget_quality": Term(
        "forget quality", "p-value: could these truth ratios come from the reference? Small means no.",
        group="Forgetting", scale=None
    ),
    "forget_quality_ks": Term(
        "truth-ratio distance", "How far the truth ratios lie from those of the reference; 0 is the same.", "Forgetting"
    ),
    "model_utility": Term(
        "model utility", "Harmonic mean of scores on data that should stay; one zero makes it zero.", "Utility"
    ),
    "privleak": Term("privacy leakage", "Gap to the reference's membership AUC, in percent of it.", "Membership",
                     known=-1, neutral=0.0, scale=100.0),
    "auc": Term("membership AUC", _AUC, "Membership", known=1, neutral=0.5),
    "membership.text_only.auc": Term(
        "AUC of the texts alone", "How well forget and unseen texts are told apart without the model; near one half, "
        "membership numbers mean something.", "Membership", scale=None
    ),
    "tpr": Term("membership hits", "Share of forget-set items found at 1 % false alarms.", "Membership",
                known=1),
    "membership.traces.outputs": Term("traces in the outputs", _TRACES, "Membership", scale=None),
    "membership.traces.states": Term("traces in the states", _TRACES, "Membership", scale=None),
    "canary.auc": Term("canary AUC", "How often an inserted canary looks more familiar than a held-out one; one half "
                       "is chance level.", "Membership", known=1, neutral=0.5),
    "canary.tpr_at_1_fpr": Term("canaries found", "Share of inserted canaries found at 1 % false alarms.", "Membership",
                                known=1),
    "canary.one_run": Term("epsilon, lower bound", "What canaries of one run show of epsilon at least; nothing from "
                           "above.", "Membership", scale=None),
    "canary.clopper_pearson": Term("epsilon, lower bound from error rates", "What canaries show of epsilon at least; "
                                   "nothing from above.", "Membership", scale=None),
    "canary.fdp_one_run": Term("epsilon, estimate from one run", "Assumes a Gaussian trade-off curve; no bound.",
                               "Membership", scale=None),
    "canary.gdp": Term("epsilon, Gaussian estimate", "Assumes a Gaussian trade-off curve; no bound.", "Membership",
                       scale=None),
    "canary.auc_convexified": Term("canary AUC, thresholds mixed", "Area under the hull of the ROC curve.",
                                   "Membership", scale=None),
    "canary.tpr_at_1_fpr_convexified": Term("canaries found, thresholds mixed", "The same on the hull of the ROC "
                                            "curve.", "Membership", scale=None),
    "epsilon": Term("empirical epsilon", "A lower bound on what canaries give away; never an upper bound.",
                    "Membership", scale=None),
    "refusal_rate": Term("refusal rate", "Share of answers that decline.", "Behaviour"),
    "hallucination_rate": Term("invented answers", "Share of answers that are neither true nor a refusal.",
                               "Behaviour"),
    "leak_rate": Term("leak rate", "Share of answers that give the truth away.", "Behaviour"),
    "empty_rate": Term("empty answers", "Share of answers with nothing in them.", "Behaviour"),
    "fluency": Term("fluency", "How varied the generated words are.", "Behaviour", scale=None),
    "repetition": Term("repetition", "Share of generated text that repeats itself.", "Behaviour"),
    "gibberish": Term("gibberish", "Share of answers that are not language.", "Behaviour"),
    "finished_rate": Term("finished answers", "Share of answers that end by themselves.", "Behaviour"),
    "length": Term("answer length", "Mean length of the generated answers.", "Behaviour", scale=None),
}  # fmt: skip
_SCORES = {"min_k_plus_plus": "Min-K%++", "min_k_pp": "Min-K%++", "min_k": "Min-K%", "mink": "Min-K%", "zlib": "zlib",
           "loss": "loss", "lowercase": "lowercase", "gradient_norm": "gradient-norm", "gradnorm": "gradient-norm",
           "neighbourhood": "neighbourhood",
           "reference": "reference-model"}  # fmt: skip
_LEADING = (
    "forget.extraction_strength",
    "forget.probability",
    "model_utility",
    "retain.probability",
    "membership.min_k.auc",
)


@dataclass(frozen=True, slots=True)
class Words:
    """How one metric is named and explained."""

    title: str
    phrase: str
    group: str
    means: str
    known: int
    neutral: float | None
    scale: float | None


def _is_membership(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in ("membership", "mia") or "auc" in parts[-1] or "tpr" in parts[-1]


def _term(name: str, suffix: str) -> Term:
    """Find the most specific known term in a metric's name."""
    if name in _TERMS or suffix in _TERMS:
        return _TERMS.get(name) or _TERMS[suffix]
    if _is_membership(name):
        return _TERMS["tpr" if "tpr" in suffix else "auc"]
    matches = [key for key in _TERMS if key in suffix]
    return _TERMS[max(matches, key=len)] if matches else Term(suffix.replace("_", " "), "")


def _phrase(name: str, suffix: str, term: Term) -> str:
    """Say which variant of a known term a longer name means: a membership score, or a paraphrased question."""
    if _is_membership(name):
        score = next((f"{words} " for key, words in _SCORES.items() if key in name), "")
        return score + term.phrase
    return f"{term.phrase}, paraphrased question" if suffix.startswith("paraphrase") else term.phrase


def _group(name: str, dataset: str, term: Term) -> str:
    """Choose the group: the term's own, else by the set it was measured on; sets of other names are utility."""
    if term.group:
        return term.group
    if dataset.startswith("forget"):
        return "Forgetting"
    return "Utility" if "utility" in name or (dataset and not dataset.startswith("holdout")) else "Other"


def describe(name: str) -> Words:
    """Return the words for a metric name such as `forget.probability`; unknown names are shown as they are."""
    dataset, _, suffix = name.rpartition(".")
    term = _term(name, suffix)
    phrase = _phrase(name, suffix, term)
    where = _SETS.get(dataset, dataset.replace("_", " ").replace(".", " "))
    title = phrase if not where or _is_membership(name) else f"{where} {phrase}"
    return Words(
        title=title[:1].upper() + title[1:],
        phrase=phrase[:1].upper() + phrase[1:],
        group=_group(name, dataset, term),
        means=term.means,
        known=term.known,
        neutral=term.neutral,
        scale=term.scale,
    )


def direction(view: ReportView, name: str) -> str:
    """Return the direction that the models state for a metric ("" where none has it)."""
    return next((str(m.metrics[name].get("direction", "")) for m in view.models.values() if name in m.metrics), "")


def metric_names(view: ReportView) -> list[str]:
    """Return every metric that some model carries, leading ones first within each group."""
    seen = dict.fromkeys(name for model in view.models.values() for name in model.metrics)
    order = list(GROUPS)
    lead = {name: rank for rank, name in enumerate(_LEADING)}
    return sorted(seen, key=lambda name: (order.index(describe(name).group), lead.get(name, len(lead))))


def key_metrics(view: ReportView, limit: int = 6) -> list[str]:
    """Return the metrics that lead the report: those asked for, else the usual ones that have a number."""
    present = [name for name in metric_names(view) if any(_usable(m.metrics.get(name)) for m in view.changed.values())]
    if view.key_metrics:
        return [name for name in view.key_metrics if name in present]
    lead = [name for name in _LEADING if name in present]
    have = {describe(name).group for name in lead}
    for group in [g for g in ("Membership", "Behaviour") if g not in have] + ["Forgetting", "Utility"]:
        lead += [name for name in present if describe(name).group == group and name not in lead][:1]
    return lead[:limit]


def _usable(estimate: EstimateDict | None) -> bool:
    """Return whether there is a number, and nothing that takes its meaning away."""
    return estimate is not None and estimate.get("value") is not None and not estimate.get("caveat")


def plane_metric(view: ReportView) -> str:
    """Return the horizontal axis of the plane ("" where no forgetting metric has a number)."""
    if view.plane_metric:
        return view.plane_metric
    usable = [name for name in metric_names(view) if any(m.value(name) is not None for m in view.models.values())]
    preferred = [name for name in _LEADING[:2] if name in usable]
    return next(iter(preferred + [name for name in usable if describe(name).group == "Forgetting"]), "")
