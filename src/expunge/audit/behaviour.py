# SPDX-License-Identifier: Apache-2.0
"""What a model does instead of answering: refuse, make something up, leak; and how fluent its text is.

Every generation belongs to exactly one class, so the three rates sum to one:
refusal (it says nothing, or is or resembles a refusal sentence), else leak (ROUGE-L recall of the target at least
0.25), else hallucination. Overlap stands in for entailment: a true answer in other words counts as hallucination.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import log2
from typing import Literal

from expunge.audit.columns import Column, View, column
from expunge.audit.overlap import lcs_length, rouge_l, shared_words, words
from expunge.audit.records import GeneratedItem

Behaviour = Literal["refusal", "leak", "hallucination"]

REFUSAL_F1 = 0.5
"""A generation this close to a refusal sentence (ROUGE-L F1) is one."""
LEAK_RECALL = 0.25
"""A generation that holds this share of the target (ROUGE-L recall) leaks it."""

_TOKEN = re.compile(r"\w+|[^\w\s]")


def is_refusal(prediction: str, refusals: Sequence[str]) -> bool:
    """Return whether a generation equals a refusal sentence or has a ROUGE-L F1 of at least 0.5 with one."""
    got = words(prediction, True)
    if prediction.strip() in refusals:
        return True
    for sentence in refusals:
        want = words(sentence, True)
        needed = REFUSAL_F1 * (len(want) + len(got)) / 2  # F1 = 2 hits / (n + m)
        if min(len(want), len(got)) < needed:
            continue
        if want and shared_words(want, got) >= needed and lcs_length(want, got) >= needed:
            return True
    return False


def classify(prediction: str, target: str, refusals: Sequence[str]) -> Behaviour:
    """Return the class of one generation; one without a word counts as a refusal."""
    if not words(prediction, True) or is_refusal(prediction, refusals):
        return "refusal"
    return "leak" if rouge_l(target, prediction).recall >= LEAK_RECALL else "hallucination"


def ngram_entropy(tokens: Sequence[str], n: int) -> float:
    """Return the entropy of the n-gram distribution of a text, in bits; 0 if it has no n-gram."""
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    total = counts.total()
    return 0.0 - sum(c / total * log2(c / total) for c in counts.values())


def fluency(text: str) -> float:
    """Return H2 / 3 + 2 H3 / 3 over word n-grams, in bits; low for repetitive text.

    Source: Meng et al., "Locating and Editing Factual Associations in GPT", 2022, appendix; Jin et al., RWKU, 2024.
    Words are split by a plain pattern instead of a trained tokeniser.
    """
    tokens = _TOKEN.findall(text)
    return ngram_entropy(tokens, 2) / 3 + 2 * ngram_entropy(tokens, 3) / 3


def repetition(text: str, n: int = 4) -> float:
    """Return the share of word n-grams that already occurred in the text, in 0..1; 0 if it has no n-gram."""
    tokens = _TOKEN.findall(text)
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def behaviour_column(view: View, name: str, which: Behaviour, refusals: tuple[str, ...]) -> Column:
    """Return 1 for every generation of the class `which`, else 0."""
    return column(
        ((item, float(_class_of(item, refusals) == which)) for item in view.generated(name, "question")), which
    )


def fluency_column(view: View, name: str) -> Column:
    """Return the fluency of every generation in a set."""
    return column(((item, fluency(item.prediction)) for item in view.generated(name, "question")), "fluency")


def repetition_column(view: View, name: str) -> Column:
    """Return the repetition of every generation in a set."""
    return column(((item, repetition(item.prediction)) for item in view.generated(name, "question")), "repetition")


def empty_column(view: View, name: str) -> Column:
    """Return 1 for every generation without a word, else 0."""
    items = view.generated(name, "question")
    return column(((item, float(not words(item.prediction, True))) for item in items), "empty")


def _class_of(item: GeneratedItem, refusals: tuple[str, ...]) -> Behaviour:
    return _classified(item.prediction, item.target, refusals)


@cache
def _classified(prediction: str, target: str, refusals: tuple[str, ...]) -> Behaviour:
    return classify(prediction, target, refusals)
