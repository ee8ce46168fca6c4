# SPDX-License-Identifier: Apache-2.0
"""How large a measurement is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

#: Lengths in TOFU's forget10, 400 pairs, in words and punctuation marks: those that so many texts do not
#: exceed. Questions have a mean of 15.8 and a standard deviation of 4.8, answers 33.0 and 12.2.
SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
QUESTIONS = (8, 10, 12, 15, 18, 24, 29, 49)
ANSWERS = (7, 13, 25, 33, 41, 54, 66, 78)


def length(mean: int, shape: Sequence[int], share: float) -> int:
    """Return the length, in tokens, that this share of texts does not exceed, for a mean and the shape of lengths."""
    drawn = np.interp(np.linspace(0, 1, 1001), SHARES, shape)
    return max(1, round(float(np.interp(share, SHARES, shape)) * mean / float(drawn.mean())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Shape of the model, of the data and of the training; the defaults are those of the published table.

    Attributes:
        layers, width, heads, intermediate, vocabulary: shape of the Llama.
        prompt, answer: mean tokens of a prompt and of an answer.
        question: mean tokens of a prompt that are the question; the rest is a template, the same for all.
        forget, retain, authors, facts, holdout: examples of each evaluated set (TOFU: 400, 400, 100, 117, 400).
        batch: forget examples per optimiser step, each with one retain example.
        epochs: passes over the forget set.
        read: block whose states RMU steers; it and the two before it train.
        generated: most tokens of a generation; 0: none, and answers are drawn.
        pairs: measured repetitions of each row, one of each side.
        seed: of weights and texts.
    """

    layers: int = 12
    width: int = 256
    heads: int = 8
    intermediate: int = 688
    vocabulary: int = 8192
    prompt: int = 60
    question: int = 20
    answer: int = 40
    forget: int = 24
    retain: int = 24
    authors: int = 6
    facts: int = 7
    holdout: int = 24
    batch: int = 8
    epochs: int = 2
    read: int = 7
    generated: int = 200
    pairs: int = 3
    seed: int = 0

    def changed(self, **values: Any) -> Sizes:
        """Return other sizes."""
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Sizes:
        """Return what `to_dict` gave."""
        return cls(**plain)

    @property
    def longest(self) -> tuple[int, int]:
        """Most tokens of a prompt and of an answer."""
        return self.prompt - self.question + length(self.question, QUESTIONS, 1.0), length(self.answer, ANSWERS, 1.0)


FULL = Sizes()
QUICK = Sizes(
    layers=4, width=64, heads=4, intermediate=128, vocabulary=1024, prompt=28, question=10, answer=12, forget=8,
    retain=8, authors=3, facts=3, holdout=8, batch=4, epochs=2, read=2, generated=24, pairs=1,
)  # fmt: skip
PRESETS = {"full": FULL, "quick": QUICK}
