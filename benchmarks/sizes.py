# SPDX-License-Identifier: Apache-2.0
"""How large a measurement is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Shape of the model, of the data and of the training; the defaults are those of the published table.

    Attributes:
        layers, width, heads, intermediate, vocabulary: shape of the Llama.
        prompt, answer: smallest and largest number of tokens of a prompt and of an answer.
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
    prompt: tuple[int, int] = (45, 75)
    answer: tuple[int, int] = (28, 52)
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
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                  for key, value in plain.items()}  # fmt: skip
        return cls(**values)


FULL = Sizes()
QUICK = Sizes(
    layers=4, width=64, heads=4, intermediate=128, vocabulary=1024, prompt=(20, 36), answer=(8, 16), forget=8, retain=8,
    authors=3, facts=3, holdout=8, batch=4, epochs=2, read=2, generated=24, pairs=1,
)  # fmt: skip
PRESETS = {"full": FULL, "quick": QUICK}
