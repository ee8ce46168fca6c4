# SPDX-License-Identifier: Apache-2.0
"""Models that are sums of counts: taking examples out subtracts theirs, and nothing of them is left in the sums.

Counts are integers, so a model that examples were taken out of is the very model that never had them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from expunge.errors import InputDataError, RecipeError

#: Stands before the first token of a sequence.
START = -1


def subtract(counts: Counter[Hashable], other: Mapping[Hashable, int], *, field: str) -> None:
    """Take counts away in place; entries that reach 0 go, so that not even their names stay.

    Raises:
        InputDataError: if more would be taken than is there; then nothing is changed.
    """
    missing = sum(1 for key, count in other.items() if counts[key] < count)
    if missing:
        raise InputDataError(f"{missing} counts would fall below 0: it was not counted here", field=field,
                             remedy="Give the very example that was added")  # fmt: skip
    for key, count in other.items():
        if counts[key] == count:
            del counts[key]
        else:
            counts[key] -= count


@dataclass(slots=True)
class NGramModel:
    """An n-gram language model over token ids, with add-k smoothing.

    Attributes:
        order: tokens of one n-gram; 1 is a unigram model.
        vocabulary: number of token ids.
        smoothing: added to every count.
    """

    order: int
    vocabulary: int
    smoothing: float = 1.0
    grams: Counter[Hashable] = field(default_factory=Counter)
    contexts: Counter[Hashable] = field(default_factory=Counter)
    sequences: int = 0

    def __post_init__(self) -> None:
        """Refuse what defines no model.

        Raises:
            RecipeError: naming the setting.
        """
        for name, value, least in (("order", self.order, 1), ("vocabulary", self.vocabulary, 1)):
            if value < least:
                raise RecipeError("is too small", field=name, value=value, remedy=f"At least {least}")
        if not self.smoothing > 0:
            raise RecipeError("must be above 0", field="smoothing", value=self.smoothing, remedy="1 is Laplace's rule")

    def add(self, ids: Sequence[int]) -> None:
        """Count one sequence of token ids."""
        grams, contexts = self._counts(ids)
        self.grams.update(grams)
        self.contexts.update(contexts)
        self.sequences += 1

    def remove(self, ids: Sequence[int]) -> None:
        """Take one sequence out again; equal in every bit to never having added it.

        Raises:
            InputDataError: if it was not counted here.
        """
        grams, contexts = self._counts(ids)
        subtract(self.grams, grams, field="sequence")
        subtract(self.contexts, contexts, field="sequence")
        self.sequences -= 1

    def logp(self, ids: Sequence[int]) -> float:
        """Return log p of a sequence, nats."""
        found = 0.0
        for context, token in self._pairs(ids):
            numerator = self.grams[(*context, token)] + self.smoothing
            found += math.log(numerator / (self.contexts[context] + self.smoothing * self.vocabulary))
        return found

    def _pairs(self, ids: Sequence[int]) -> Iterable[tuple[tuple[int, ...], int]]:
        padded = (START,) * (self.order - 1) + tuple(ids)
        for k in range(self.order - 1, len(padded)):
            if not 0 <= padded[k] < self.vocabulary:
                raise InputDataError("is no token id", field="sequence", value=padded[k],
                                     remedy=f"Ids are 0 to {self.vocabulary - 1}")  # fmt: skip
            yield padded[k - self.order + 1 : k], padded[k]

    def _counts(self, ids: Sequence[int]) -> tuple[Counter[Hashable], Counter[Hashable]]:
        pairs = list(self._pairs(ids))
        return Counter((*context, token) for context, token in pairs), Counter(context for context, _ in pairs)


@dataclass(slots=True)
class NaiveBayes:
    """A multinomial naive Bayes classifier over token ids, with add-k smoothing."""

    vocabulary: int
    smoothing: float = 1.0
    labels: Counter[Hashable] = field(default_factory=Counter)
    tokens: Counter[Hashable] = field(default_factory=Counter)
    lengths: Counter[Hashable] = field(default_factory=Counter)

    def add(self, ids: Sequence[int], label: Hashable) -> None:
        """Count one labelled sequence."""
        self.labels[label] += 1
        self.tokens.update(self._of(ids, label))
        if ids:
            self.lengths[label] += len(ids)

    def remove(self, ids: Sequence[int], label: Hashable) -> None:
        """Take one labelled sequence out again; equal in every bit to never having added it.

        Raises:
            InputDataError: if it was not counted here.
        """
        mine = self._of(ids, label)
        if self.labels[label] < 1 or any(self.tokens[key] < count for key, count in mine.items()):
            raise InputDataError("was not counted here", field="example", remedy="Give the very example that was added")
        subtract(self.tokens, mine, field="example")
        subtract(self.labels, {label: 1}, field="example")
        if ids:
            subtract(self.lengths, {label: len(ids)}, field="example")

    def log_posterior(self, ids: Sequence[int]) -> dict[Hashable, float]:
        """Return log p(label | ids) by label, nats; empty without examples."""
        total = sum(self.labels.values())
        joint = {label: math.log(count / total) + sum(self._logp(i, label) for i in ids)
                 for label, count in self.labels.items()}  # fmt: skip
        if not joint:
            return {}
        largest = max(joint.values())
        norm = largest + math.log(sum(math.exp(value - largest) for value in joint.values()))
        return {label: value - norm for label, value in joint.items()}

    def _logp(self, token: int, label: Hashable) -> float:
        room = self.lengths[label] + self.smoothing * self.vocabulary
        return math.log((self.tokens[label, token] + self.smoothing) / room)

    def _of(self, ids: Sequence[int], label: Hashable) -> Counter[Hashable]:
        return Counter((label, token) for token in ids)
