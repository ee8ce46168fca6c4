# SPDX-License-Identifier: Apache-2.0
"""ROUGE between a generation and its target, with the tokens and the numbers of the `rouge_score` package.

Words are lowercased runs of letters and digits; with `stemmer`, words longer than three letters are stemmed (Porter).
An empty prediction or target scores 0. Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from expunge.audit.columns import Column, View, column
from expunge.audit.stemming import stem

_WORD = re.compile("[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Share of the prediction's words that match, share of the target's words that match, and their F1; in 0..1."""

    precision: float
    recall: float
    f1: float


def rouge_l(target: str, prediction: str, *, stemmer: bool = True) -> Overlap:
    """Return ROUGE-L: overlap by the longest common subsequence of words."""
    want, got = words(target, stemmer), words(prediction, stemmer)
    return _overlap(lcs_length(want, got), len(want), len(got))


def rouge_1(target: str, prediction: str, *, stemmer: bool = True) -> Overlap:
    """Return ROUGE-1: overlap of the words as multisets."""
    want, got = words(target, stemmer), words(prediction, stemmer)
    return _overlap(shared_words(want, got), len(want), len(got))


def shared_words(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Return the size of the multiset intersection; it bounds the longest common subsequence from above."""
    have = _counted(second)
    return sum(min(count, have[word]) for word, count in _counted(first).items() if word in have)


@lru_cache(maxsize=65_536)
def _counted(said: tuple[str, ...]) -> Counter[str]:
    return Counter(said)


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, one machine-word operation per word of `second`.

    Source: Hyyro, "Bit-parallel LCS-length computation revisited", 2004.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(first)) - 1
    row = full  # a cleared bit i says: the subsequence grows by one at first[i]
    for word in second:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(first) - row.bit_count()


@lru_cache(maxsize=65_536)
def words(text: str, stemmer: bool) -> tuple[str, ...]:
    """Return the words of a text as `rouge_score` splits them."""
    found = _WORD.findall(text.lower())
    return tuple(stem(word) if len(word) > 3 else word for word in found) if stemmer else tuple(found)


def rouge_column(view: View, name: str, kind: str, *, prompt: str = "question", stemmer: bool = True) -> Column:
    """Return one ROUGE number of every generation in a set.

    Args:
        view: the records.
        name: the set.
        kind: `rouge_l`, `rouge_l_f1` or `rouge_1`; recall, except for the F1.
        prompt: which prompt was generated from, `question` or `paraphrase`.
        stemmer: stem the words first.
    """
    score = rouge_1 if kind == "rouge_1" else rouge_l
    overlaps = ((item, score(item.target, item.prediction, stemmer=stemmer)) for item in view.generated(name, prompt))
    return column(((item, o.f1 if kind == "rouge_l_f1" else o.recall) for item, o in overlaps), kind)


def _overlap(hits: int, n_target: int, n_prediction: int) -> Overlap:
    if not hits:
        return Overlap(0.0, 0.0, 0.0)
    precision, recall = hits / n_prediction, hits / n_target
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall))
