# SPDX-License-Identifier: Apache-2.0
"""Metrics in plain words: display name, group, a short explanation, and which metrics lead a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.report.view import ReportView

GROUPS: dict[str, str] = {
    "Forgetting": "What the model still says or prefers about the forget set.",
    "Utility": "What it should have kept.",
    "Membership": "Whether the forget set still looks more familiar than text the model never saw.",
    "Behaviour": "How it answers: refusals, invented answers, fluency.",
    "Other": "Measured, but not in the groups above.",
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
_TERMS: dict[str, Term] = {
    "probability": Term("answer probability", "How likely the true answer is, per token (geometric mean).", known=1),
    "rouge": Term("answer overlap", "Share of the true answer that the generated answer contains (ROUGE-L).", known=1),
    "truth_ratio": Term("truth ratio", "How plausible wrong answers fare against the true one."),
    "extraction_strength": Term(
        "extraction strength", "Share of the answer that comes out word for word once its start is given.", known=1
    ),
    "exact_memorisation": Term(
        "exact memorisation", "Share of answer tokens that are the model's first choice.", known=1
    ),
    "verbmem": Term("verbatim overlap", "How much of the true continuation is written out (ROUGE-L).", known=1),
    "knowmem": Term("knowledge overlap", "How much of the true answer is given to a question (ROUGE-L).", known=1),
    "accuracy": Term("accuracy", "Share of questions answered correctly.", known=1),
    "perplexity": Term("perplexity", "How surprised the model is by the text; high is surprised.", scale=None),
    "forget_quality": Term(
        "forget quality", "p-value: could these truth ratios come from the reference? Small means no.",
        group="Forgetting", scale=None
    ),
    "model_utility": Term(
        "model utility", "Harmonic mean of nine scores on data that should stay; one zero makes it zero.", "Utility"
    ),
    "privleak": Term("privacy leakage", "Gap to the reference's membership AUC, in percent of it.", "Membership",
                     neutral=0.0, scale=100.0),
    "auc": Term("membership AUC", _AUC, "Membership", known=1, neutral=0.5),
    "tpr": Term("membership hits", "Share of forget-set items found at a small false-alarm rate.", "Membership",
                known=1),
    "epsilon": Term("empirical epsilon", "A lower bound on what canaries give away; never an upper bound.",
                    "Membership", scale=None),
    "refusal_rate": Term("refusal rate", "Share of answers that decline.", "Behaviour"),
    "hallucination_rate": Term("invented answers", "Share of answers that are neither true nor a refusal.",
                               "Behaviour"),
    "leak_rate": Term("leak rate", "Share of answers that give the truth away.", "Behaviour"),
    "fluency": Term("fluency", "How varied the generated words are.", "Behaviour", scale=None),
    "repetition": Term("repetition", "Share of generated text that repeats itself.", "Behaviour"),
    "gibberish": Term("gibberish", "Share of answers that are not language.", "Behaviour"),
    "finished_rate": Term("finished answers", "Share of answers that end by themselves.", "Behaviour"),
    "length": Term("answer length", "Mean length of the generated answers.", "Behaviour", scale=None),
}  # fmt: skip
_SCORES = {"min_k_plus_plus": "Min-K%++", "min_k_pp": "Min-K%++", "min_k": "Min-K%", "mink": "Min-K%", "zlib": "zlib",
           "loss": "loss", "lowercase": "lowercase", "gradnorm": "gradient norm"}  # fmt: skip
_LEADING = ("forget.extraction_strength", "forget.probability", "model_utility", "retain.probability")


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


def _term(name: str, suffix: str) -> Term:
    """Find the most specific known term in a metric's name."""
    for key in (name, suffix):
        if key in _TERMS:
            return _TERMS[key]
    if any(score in suffix for score in _SCORES) or suffix.startswith("mia"):
        return _TERMS["tpr" if "tpr" in suffix else "auc"]
    matches = [key for key in _TERMS if key in suffix]
    if matches:
        return _TERMS[max(matches, key=len)]
    return Term(suffix.replace("_", " "), "")


def _variant(suffix: str, term: Term) -> str:
    """Say which variant of a known term a longer name means (a paraphrase, or a membership score)."""
    if suffix.startswith("paraphrase") and "paraphrase" not in term.phrase:
        return "paraphrased-"
    if term.group == "Membership":
        return next((f"{words} " for key, words in _SCORES.items() if key in suffix), "")
    return ""


def _group(name: str, dataset: str, term: Term) -> str:
    """Choose the group: the term's own, else by the set it was measured on."""
    if term.group:
        return term.group
    if "utility" in name or dataset in ("retain", "real_authors", "world_facts", "utility"):
        return "Utility"
    return "Forgetting" if dataset.startswith("forget") else "Other"


def describe(name: str) -> Words:
    """Return the words for a metric name such as `forget.probability`; unknown names are shown as they are."""
    dataset, _, suffix = name.rpartition(".")
    term = _term(name, suffix)
    phrase = _variant(suffix, term) + term.phrase
    where = _SETS.get(dataset, dataset.replace("_", " ").replace(".", " "))
    title = phrase if not where or where in ("membership", "mia", "behaviour") else f"{where} {phrase}"
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
    present = [name for name in metric_names(view) if any(m.value(name) is not None for m in view.changed.values())]
    if view.key_metrics:
        return [name for name in view.key_metrics if name in present]
    lead = [name for name in _LEADING if name in present]
    for group in ("Membership", "Behaviour", "Forgetting", "Utility"):
        lead += [name for name in present if describe(name).group == group and name not in lead][:1]
    return lead[:limit]


def plane_metric(view: ReportView) -> str:
    """Return the horizontal axis of the plane ("" where no forgetting metric has a number)."""
    if view.plane_metric:
        return view.plane_metric
    usable = [name for name in metric_names(view) if any(m.value(name) is not None for m in view.models.values())]
    preferred = [name for name in _LEADING[:2] if name in usable]
    return next(iter(preferred + [name for name in usable if describe(name).group == "Forgetting"]), "")
