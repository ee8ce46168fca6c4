# SPDX-License-Identifier: Apache-2.0
"""The guard that needs the model: forget items it does not know have nothing to unlearn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.preparation import Prepared, without_unlearned
from expunge.data.robust import RobustConfig
from expunge.signals.likelihood import score


def screen(
    prepared: Prepared, config: RobustConfig, *, model: nn.Module, encoder: Encoder, holdout: Sequence[Example],
    load_base: Callable[[], nn.Module] | None,
) -> Prepared:  # fmt: skip
    """Return the forget set without what the original model knows no better than `config.memorised` says.

    Args:
        prepared: what is trained on so far.
        config: the guards of the recipe.
        model: the model as it is before it changes.
        encoder: turns examples into token ids.
        holdout: items that no model was trained on.
        load_base: loads the model that never saw the data.

    Raises:
        InputDataError: if no item is left.
    """
    if config.memorised == "none":
        return prepared
    own = mean_nll(model, prepared.examples, encoder, where="forget")
    if config.memorised == "base":
        assert load_base is not None, "checked before the run began"
        other = mean_nll(load_base(), prepared.examples, encoder, where="forget")
    else:
        unseen = mean_nll(model, holdout, encoder, where="holdout")
        other = np.full(len(own), np.median(unseen[np.isfinite(unseen)]))
    # What `too_long: drop` leaves out of training has no likelihood, and it is not this guard that leaves it out.
    scored = np.isfinite(own)
    own, other = np.where(scored, own, 0.0), np.where(scored, other, 1.0 + config.margin)
    return without_unlearned(prepared, own, other, against=config.memorised, margin=config.margin)


def mean_nll(model: nn.Module, examples: Sequence[Example], encoder: Encoder, *, where: str) -> NDArray[np.float64]:
    """Return the mean negative log-likelihood of each answer, nats per token, [n]; a running text's over its chunks.

    NaN where the recipe leaves an example out because it is too long.
    """
    rows = encoder.encode_many(examples, where=where)
    total, count = np.zeros(len(examples)), np.zeros(len(examples))
    found = score(model, [row.encoded for row in rows], pad_id=encoder.pad_id, stats=False)
    for row, scores in zip(rows, found, strict=True):
        total[row.index] -= scores.logp.sum(dtype=np.float64)
        count[row.index] += len(scores.logp)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
