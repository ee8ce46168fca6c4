# SPDX-License-Identifier: Apache-2.0
"""Which examples must leave together: those of one subject, and near-duplicates, which carry each other's text."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from expunge.data.examples import Example

#: Words of a shingle.
SHINGLE = 3


def shingles(example: Example) -> frozenset[tuple[str, ...]]:
    """Return the word 3-grams of prompt and answer, lower case without punctuation; of a shorter text all its words."""
    words = re.findall(r"\w+", f"{example.prompt} {example.answer}".casefold())
    if len(words) <= SHINGLE:
        return frozenset([tuple(words)])
    return frozenset(tuple(words[k : k + SHINGLE]) for k in range(len(words) - SHINGLE + 1))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """Return the size of the intersection over that of the union, 0..1."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def near_duplicates(examples: Sequence[Example], threshold: float) -> Iterator[tuple[int, int]]:
    """Yield every pair of positions whose overlap reaches the threshold: all of them, not a sample.

    Two sets of overlap t share at least one of the n - ceil(t n) + 1 rarest shingles of each: only those are indexed.

    Source: Bayardo, Ma and Srikant 2007, Scaling Up All Pairs Similarity Search, section 3 (prefix filtering).
    """
    sets = [shingles(example) for example in examples]
    count = Counter(shingle for one in sets for shingle in one)
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, one in enumerate(sets):
        rare = sorted(one, key=lambda shingle: (count[shingle], shingle))
        rare = rare[: len(rare) - math.ceil(threshold * len(rare) - 1e-9) + 1]
        for j in sorted({j for shingle in rare for j in index[shingle]}):
            if jaccard(one, sets[j]) >= threshold - 1e-12:
                yield j, i
        for shingle in rare:
            index[shingle].append(i)


def units(examples: Sequence[Example], *, by_subject: bool, threshold: float | None) -> list[int]:
    """Return the unit of every example, [N]: the lowest position of those that must leave together.

    Args:
        examples: the training set.
        by_subject: examples of one subject are one unit.
        threshold: overlap from which two texts count as the same; None: only equal ones do.
    """
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        low, high = sorted((root(i), root(j)))
        parent[high] = low

    first: dict[str, int] = {}
    for i, example in enumerate(examples):
        if by_subject and example.subject:
            join(first.setdefault(example.subject, i), i)
    for i, j in near_duplicates(examples, 1.0 if threshold is None else threshold):
        join(i, j)
    return [root(i) for i in range(len(examples))]
