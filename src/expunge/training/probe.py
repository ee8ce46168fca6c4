# SPDX-License-Identifier: Apache-2.0
"""A quick look at the model while it trains: answer probabilities on a few forget and retain examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from expunge.data.encoding import Encoded, Encoder
from expunge.data.examples import Example, Splits
from expunge.signals.likelihood import score
from expunge.signals.reference import READ_TOKENS


class LikelihoodProbe:
    """Mean length-normalised answer probability per set, on at most `limit` examples of each.

    Args:
        encoder: turns examples into token ids.
        splits: the sets; those that are empty are left out.
        limit: examples per set, evenly spaced through it.
    """

    def __init__(self, encoder: Encoder, splits: Splits, *, limit: int = 64) -> None:
        self._pad_id = encoder.pad_id
        self._items: dict[str, list[Encoded]] = {}
        for name, examples in (("forget", splits.forget), ("retain", splits.retain)):
            if len(examples):
                rows = encoder.encode_many(_spread(examples, limit), where=name)
                self._items[name] = [row.encoded for row in rows]

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """Return `forget.probability` and `retain.probability` of the model as it is now."""
        items = [item for chosen in self._items.values() for item in chosen]
        scores = iter(score(model, items, pad_id=self._pad_id, batch_tokens=READ_TOKENS, stats=False))
        return {
            f"{name}.probability": float(np.mean([np.exp(next(scores).logp.mean()) for _ in chosen]))
            for name, chosen in self._items.items()
        }


def _spread(examples: Sequence[Example], limit: int) -> list[Example]:
    if len(examples) <= limit:
        return list(examples)
    return [examples[i * len(examples) // limit] for i in range(limit)]
