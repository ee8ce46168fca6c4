# SPDX-License-Identifier: Apache-2.0
"""Guards against noisy forget sets: which items are in the retain set too, and which were never learned.

A design of our own; see also `objectives.trimmed`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from expunge.data.examples import Example

_WORD = re.compile(r"\w+")


class RobustConfig(BaseModel):
    """Which items of a forget set are left out of training; the audit measures them all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overlap: float | None = Field(
        None, gt=0, le=1,
        description="leave out forget items whose word 3-grams are at least this alike (Jaccard) to those of a retain "
        "item; null: none",
    )  # fmt: skip
    memorised: Literal["none", "base", "holdout"] = Field(
        "none",
        description="leave out items that the model does not know better than base: model.base knows them; holdout: "
        "it knows the median holdout item itself",
    )
    margin: float = Field(0.0, ge=0, description="by how much better it must know them, nats per token")


class Overlap(NamedTuple):
    """A forget and a retain item, by position, and how alike they are in 0..1."""

    forget: int
    retain: int
    similarity: float


def shingles(example: Example, n: int = 3) -> frozenset[tuple[str, ...]]:
    """Return the word n-grams of prompt and answer, lowercased; the whole text where it is shorter."""
    words = _WORD.findall(f"{example.prompt} {example.answer}".lower())
    return frozenset(tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1)))


def overlaps(
    forget: Sequence[Example], retain: Sequence[Example], *, threshold: float = 0.7, n: int = 3
) -> list[Overlap]:
    """Return the pairs whose word n-grams have a Jaccard similarity of at least `threshold`, in order.

    Args:
        forget: the forget set.
        retain: what must not be unlearned.
        threshold: in 0..1, above 0.
        n: words of an n-gram.
    """
    holders = defaultdict[tuple[str, ...], list[int]](list)
    theirs = [shingles(example, n) for example in retain]
    for place, found in enumerate(theirs):
        for gram in found:
            holders[gram].append(place)
    out = []
    for mine, example in enumerate(forget):
        own = shingles(example, n)
        shared = Counter(place for gram in own for place in holders.get(gram, ()))
        for place, count in sorted(shared.items()):
            similarity = count / (len(own) + len(theirs[place]) - count)
            if similarity >= threshold:
                out.append(Overlap(mine, place, similarity))
    return out


def without_overlap(
    forget: Sequence[Example], retain: Sequence[Example], *, threshold: float = 0.7
) -> tuple[list[Example], list[Overlap]]:
    """Return the forget items that no retain item resembles, and the pairs for which others were left out."""
    found = overlaps(forget, retain, threshold=threshold)
    out = {pair.forget for pair in found}
    return [example for place, example in enumerate(forget) if place not in out], found


def memorised(original_nll: ArrayLike, other_nll: ArrayLike, *, margin: float = 0.0) -> NDArray[np.bool_]:
    """Return which items the original knows better than a model that never saw them, [n].

    An item that it does not know better has nothing to unlearn, and pushing on it only does harm.

    Args:
        original_nll: mean negative log-likelihood of each answer under the model to change, nats per token, [n].
        other_nll: the same under a model that never saw them (a base model, an earlier checkpoint), [n].
        margin: by how much it must be lower, nats per token.

    Raises:
        ValueError: if a likelihood is not finite, or the two differ in length.
    """
    own, other = (np.asarray(values, dtype=np.float64) for values in (original_nll, other_nll))
    if own.shape != other.shape or not (np.isfinite(own).all() and np.isfinite(other).all()):
        raise ValueError(f"needs finite likelihoods of the same items, got {own.shape} and {other.shape}")
    return np.asarray(own < other - margin)
