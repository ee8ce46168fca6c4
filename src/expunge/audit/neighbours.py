# SPDX-License-Identifier: Apache-2.0
"""Neighbours of a text, for the neighbourhood attack: a few of its words replaced by other words of the same sets.

The attack as published fills masks with a second language model. Substitution stands in for it: it needs no further
model, but its neighbours are less fluent, so members and non-members alike score higher.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

SHARE = 0.1
"""Share of the words of a text that are replaced, at least one."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one kind in order, [V], and how often words up to each of them occur, int64 [V]."""

    words: tuple[str, ...]
    cumulative: NDArray[np.int64]

    def other(self, word: str, rng: np.random.Generator) -> str:
        """Draw a word but `word`, which must be one of several, each as often as it occurs."""
        index = int(np.searchsorted(np.array(self.words), word))
        low = int(self.cumulative[index - 1]) if index else 0
        count = int(self.cumulative[index]) - low
        place = int(rng.integers(int(self.cumulative[-1]) - count))
        place += count if place >= low else 0  # step over the word itself
        return self.words[int(np.searchsorted(self.cumulative, place, side="right"))]


def vocabulary(texts: Iterable[str]) -> dict[str, Words]:
    """Return the words of some texts by kind: lower case, capitalised, and with digits."""
    counts: dict[str, Counter[str]] = {}
    for text in texts:
        for word in _WORD.findall(text):
            counts.setdefault(_kind(word), Counter())[word] += 1
    out = {}
    for kind, found in counts.items():
        words = tuple(sorted(found))
        out[kind] = Words(words, np.cumsum([found[word] for word in words]))
    return out


def neighbour_texts(text: str, known: Mapping[str, Words], count: int, *, seed: int, share: float = SHARE) -> list[str]:
    """Return texts that differ from `text` in a few words of the same kind; the same arguments give the same texts.

    Args:
        text: what to vary; spacing and punctuation are kept.
        known: substitutes, from `vocabulary` over texts that include this one.
        count: how many neighbours.
        seed: of the choice of places and words, together with the text.
        share: share of the words to replace, in 0..1; at least one is.

    Returns:
        `count` texts, or none where no word of the text has a substitute.

    Source: Mattern et al., "Membership Inference Attacks against Language Models via Neighbourhood Comparison", 2023;
    words instead of a mask-filler's proposals.
    """
    words = list(_WORD.finditer(text))
    places = [i for i, word in enumerate(words) if len(known[_kind(word[0])].words) > 1]
    if not places:
        return []
    rng = np.random.default_rng([seed, crc32(text.encode())])
    out = []
    for _ in range(count):
        chosen = rng.choice(places, size=min(len(places), max(1, round(share * len(words)))), replace=False)
        out.append(_replaced(text, [words[i] for i in sorted(chosen)], known, rng))
    return out


def _replaced(text: str, words: list[re.Match[str]], known: Mapping[str, Words], rng: np.random.Generator) -> str:
    pieces, end = [], 0
    for word in words:
        pieces += [text[end : word.start()], known[_kind(word[0])].other(word[0], rng)]
        end = word.end()
    return "".join([*pieces, text[end:]])


def _kind(word: str) -> str:
    if any(letter.isdigit() for letter in word):
        return "digits"
    return "capitalised" if word[0].isupper() else "lower"
