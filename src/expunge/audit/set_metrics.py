# SPDX-License-Identifier: Apache-2.0
"""The metrics that exist once per set."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from expunge.audit.behaviour import Behaviour, behaviour_column, empty_column, fluency_column, repetition_column
from expunge.audit.choice_metrics import CHOICE_METRICS
from expunge.audit.columns import Column
from expunge.audit.config import Compat
from expunge.audit.estimate import Direction
from expunge.audit.extraction_metrics import EXTRACTION_METRICS
from expunge.audit.memorization import exact_memorization_column, extraction_strength_column
from expunge.audit.overlap import rouge_column
from expunge.audit.probability import (
    answer_probability,
    forget_score,
    log_truth_ratios,
    option_probability,
    truth_preferences,
    utility_score,
)
from expunge.audit.protocol import SetRole
from expunge.audit.reasoning_metrics import REASONING_METRICS
from expunge.audit.registry import Context, Group, SetMetric

_TOFU = "Maini et al., TOFU, 2024, section 2.2"
_MUSE = "Shi et al., MUSE, 2024, section 3"
_OPEN = "Dorna et al., OpenUnlearning, 2025"

_RETRAINED = "the value of a model retrained without the forget set"
_BEFORE = "the value before unlearning"
_OPTIONS = ("perturbed_answers", "paraphrased_answer")

_Groups = Mapping[Group, tuple[Direction, str]]
_KNOWLEDGE: _Groups = {
    "forget": ("lower", "the value of a model retrained without the forget set; far below it is over-unlearning"),
    "utility": ("higher", _BEFORE),
    "holdout": ("reference", _RETRAINED),
}
_TEXT: _Groups = {
    "forget": ("higher", _BEFORE),
    "utility": ("higher", _BEFORE),
}
_FORGET_ONLY: _Groups = {"forget": _KNOWLEDGE["forget"]}


def _probability(context: Context, name: str, role: SetRole, compat: Compat) -> Column:
    if role == "options":
        return option_probability(context.view, name, compat=compat)
    return answer_probability(context.view, name)


def _truth_ratio(context: Context, name: str, role: SetRole, compat: Compat) -> Column:
    ratios = log_truth_ratios(context.view, name, options=role == "options", compat=compat)
    score = forget_score(ratios.values, compat=compat) if role == "forget" else utility_score(ratios.values)
    return Column(ratios.ids, ratios.clusters, score)


def _truth_preference(context: Context, name: str, role: SetRole, compat: Compat) -> Column:
    return truth_preferences(context.view, name, options=role == "options")


def _rouge(kind: str, prompt: str = "question") -> Callable[[Context, str, SetRole, Compat], Column]:
    def columns(context: Context, name: str, role: SetRole, compat: Compat) -> Column:
        return rouge_column(context.view, name, kind, prompt=prompt, stemmer=compat != "muse")

    return columns


def _behaviour(which: Behaviour) -> Callable[[Context, str, SetRole, Compat], Column]:
    def columns(context: Context, name: str, role: SetRole, compat: Compat) -> Column:
        return behaviour_column(context.view, name, which, context.refusals)

    return columns


_PROBABILITIES = (
    SetMetric(
        name="probability", title="Probability of the answer", unit="probability",
        definition="Mean over items of exp(mean log-probability of the answer's tokens, end-of-sequence included); "
        "on sets with options, divided by the same sum over all options.",
        columns=_probability, groups=_KNOWLEDGE, compat=("fixed", "locuslab", "openunlearning"), source=_TOFU,
        known_failures=("Depends on the wording of the answer.", "Gibberish models score low for the wrong reason."),
    ),
    SetMetric(
        name="truth_ratio", title="Truth ratio", unit="score in 0..1", needs=_OPTIONS,
        definition="R = P(wrong answers) / P(paraphrased answer), length-normalised, geometric mean over wrong "
        "answers; mean of min(R, 1/R) on the forget set, of max(0, 1 - R) elsewhere. `paper`: arithmetic mean.",
        columns=_truth_ratio, compat=("fixed", "paper", "locuslab", "openunlearning"), source=_TOFU,
        groups={**_KNOWLEDGE, "forget": ("reference", _RETRAINED)},
        known_failures=("A model without any knowledge does not score 1.",),
    ),
    SetMetric(
        name="truth_preference", title="Preference for the truth", unit="probability",
        definition="Mean of P(right) / (P(right) + P(wrong)), with P(wrong) the geometric mean over the wrong answers.",
        columns=_truth_preference, groups=_FORGET_ONLY, needs=_OPTIONS, source=_OPEN,
    ),
    SetMetric(
        name="paraphrased_answer_probability", title="Probability of the paraphrased answer", unit="probability",
        definition="The probability, per token, of the true answer in other words.",
        columns=lambda context, name, role, compat: answer_probability(context.view, name, "paraphrase"),
        groups=_FORGET_ONLY, needs=("paraphrased_answer",), source=_OPEN,
    ),
    SetMetric(
        name="paraphrase_probability", title="Probability under a paraphrased question", unit="probability",
        definition="The probability of the answer when the question is put in other words.",
        columns=lambda context, name, role, compat: answer_probability(context.view, name, "paraphrased_question"),
        groups=_FORGET_ONLY, needs=("paraphrased_question",), source=_OPEN,
    ),
)  # fmt: skip

_OVERLAPS = (
    SetMetric(
        name="rouge_l", title="ROUGE-L recall", unit="ROUGE in 0..1", needs=("generations",),
        definition="Mean share of the answer's words found, in order, in the greedy generation; words are stemmed.",
        columns=_rouge("rouge_l"), groups=_KNOWLEDGE, compat=("fixed", "locuslab", "openunlearning", "muse"),
        source=_TOFU, known_failures=("Blind to paraphrase.", "Long generations score high by chance."),
    ),
    SetMetric(
        name="rouge_l_f1", title="ROUGE-L F1", unit="ROUGE in 0..1", needs=("generations",),
        definition="Mean F1 of the ordered word overlap; `muse` does not stem.",
        columns=_rouge("rouge_l_f1"), groups=_KNOWLEDGE, compat=("fixed", "muse"), source=_MUSE,
    ),
    SetMetric(
        name="rouge_1", title="ROUGE-1 recall", unit="ROUGE in 0..1", needs=("generations",),
        definition="Mean share of the answer's words found in the greedy generation, in any order.",
        columns=_rouge("rouge_1"), groups=_KNOWLEDGE, compat=("fixed", "locuslab", "openunlearning", "muse"),
        source=_TOFU,
    ),
    SetMetric(
        name="paraphrase_rouge_l", title="ROUGE-L recall under a paraphrased question", unit="ROUGE in 0..1",
        definition="ROUGE-L recall of the generation when the question is put in other words.",
        columns=_rouge("rouge_l", "paraphrase"), groups=_FORGET_ONLY, needs=("generations", "paraphrased_question"),
        source=_OPEN,
    ),
)  # fmt: skip

_MEMORIZATION = (
    SetMetric(
        name="extraction_strength", title="Extraction strength", unit="share in 0..1",
        definition="1 - (shortest prefix of the answer after which every token is the arg max) / length, the "
        "end-of-sequence token left out; 0 where even the last token is wrong (`openunlearning`: 1/length).",
        columns=lambda context, name, role, compat: extraction_strength_column(context.view, name, compat=compat),
        groups=_KNOWLEDGE, compat=("fixed", "openunlearning"), source="Carlini et al., 2021; " + _OPEN,
        known_failures=("Sees greedy decoding only; sampling can still extract.",),
    ),
    SetMetric(
        name="exact_memorization", title="Exact memorisation", unit="share in 0..1",
        definition="Share of the answer's tokens, end-of-sequence left out, that are the model's arg max.",
        columns=lambda context, name, role, compat: exact_memorization_column(context.view, name, compat=compat),
        groups=_KNOWLEDGE, compat=("fixed", "openunlearning"), source="Tirumala et al., 2022; " + _OPEN,
        known_failures=("High for any fluent text: compare with the reference.",),
    ),
)  # fmt: skip

_RATES = (
    SetMetric(
        name="refusal_rate", title="Refusal rate", unit="share in 0..1", needs=("generations",), rate=True,
        definition="Share of generations that are empty, equal a refusal sentence or have ROUGE-L F1 >= 0.5 with one.",
        columns=_behaviour("refusal"), groups={
            "forget": ("reference", "the value of a model retrained without the forget set, usually 0"),
            "utility": ("lower", _BEFORE),
        },
        known_failures=("A refusal hides an answer that the weights may still carry.",),
    ),
    SetMetric(
        name="leak_rate", title="Leak rate", unit="share in 0..1", needs=("generations",), rate=True,
        definition="Share of generations, refusals left out, that hold a quarter of the answer's words in order.",
        columns=_behaviour("leak"), groups=_FORGET_ONLY,
        known_failures=("Words that repeat the question can pass the threshold.",),
    ),
    SetMetric(
        name="hallucination_rate", title="Hallucination rate", unit="share in 0..1", needs=("generations",), rate=True,
        definition="Share of generations that are neither a refusal nor a leak.",
        columns=_behaviour("hallucination"),
        groups={"forget": ("reference", _RETRAINED)},
        known_failures=("A true answer in other words counts as hallucination.",),
    ),
    SetMetric(
        name="empty_rate", title="Empty generations", unit="share in 0..1", needs=("generations",), rate=True,
        definition="Share of generations without a word.", groups={"forget": ("lower", "0"), "utility": ("lower", "0")},
        columns=lambda context, name, role, compat: empty_column(context.view, name),
    ),
)  # fmt: skip

_FLUENCY = (
    SetMetric(
        name="fluency", title="Fluency", unit="bits", needs=("generations",), groups=_TEXT,
        definition="Mean of H2/3 + 2 H3/3, the entropies of word bigrams and trigrams of a generation.",
        columns=lambda context, name, role, compat: fluency_column(context.view, name),
        source="Meng et al., 2022; Jin et al., RWKU, 2024",
        known_failures=("Grows with length: short answers score low.", "Random words score high."),
    ),
    SetMetric(
        name="repetition", title="Repetition", unit="share in 0..1", needs=("generations",),
        definition="Mean share of word 4-grams that already occurred in the same generation.",
        groups={"forget": ("lower", _BEFORE), "utility": ("lower", _BEFORE)},
        columns=lambda context, name, role, compat: repetition_column(context.view, name),
    ),
)  # fmt: skip

SET_METRICS: tuple[SetMetric, ...] = (
    *_PROBABILITIES, *_OVERLAPS, *_MEMORIZATION, *EXTRACTION_METRICS, *_RATES, *_FLUENCY, *CHOICE_METRICS,
    *REASONING_METRICS,
)  # fmt: skip
