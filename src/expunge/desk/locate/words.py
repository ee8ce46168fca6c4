# SPDX-License-Identifier: Apache-2.0
"""Texts as the search compares them: folded words, so that case, accents, width and punctuation do not count."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise

Gram = tuple[str, ...]

_PLAIN = re.compile(r"[a-z0-9]+")
#: Accents of Latin, Greek and Cyrillic, and characters that cannot be seen.
_DROPPED = re.compile("[\u0300-\u036f\u00ad\u200b-\u200f\u2060\ufeff]")
#: Scripts that put no space between words: each character is taken for a word. Thai to Myanmar, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)


def folded(text: str) -> str:
    """Return a text in Unicode NFKC, case folded, without accents and invisible characters."""
    if text.isascii():
        return text.lower()
    bare = _DROPPED.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFC", bare).casefold()


def words(text: str) -> list[str]:
    """Return the words of a text, folded: letters, digits and marks; an underscore parts words."""
    if text.isascii():
        return _PLAIN.findall(text.lower())
    return _full().findall(folded(text))


@cache
def _full() -> re.Pattern[str]:
    marks = [point for point in range(0x10000) if unicodedata.category(chr(point)).startswith("M")]
    starts = [point for before, point in pairwise([-2, *marks]) if point != before + 1]
    ends = [point for point, after in pairwise([*marks, -2]) if after != point + 1]
    ranges = "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(starts, ends, strict=True))
    return re.compile(f"[{_UNSPACED}]|(?:(?![{_UNSPACED}])(?:[^\\W_]|[{ranges}]))+")


def grams(found: Sequence[str], n: int) -> Iterator[Gram]:
    """Return the n-grams of words in order; all words as one where there are fewer than n."""
    if len(found) <= n:
        return iter((tuple(found),) if found else ())
    return zip(*(found[i:] for i in range(n)), strict=False)


class Phrases:
    """Looks for any of several runs of words."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._rest: dict[str, list[Gram]] = defaultdict(list)
        for text in texts:
            if run := words(text):
                self._rest[run[0]].append(tuple(run[1:]))

    def __bool__(self) -> bool:
        return bool(self._rest)

    def among(self, found: Sequence[str]) -> bool:
        """Return whether one of them stands in a text, whole words only."""
        if self._rest.keys().isdisjoint(found):
            return False
        return any(
            tuple(found[place + 1 : place + 1 + len(rest)]) == rest
            for place, word in enumerate(found) for rest in self._rest.get(word, ())
        )  # fmt: skip
