# SPDX-License-Identifier: Apache-2.0
"""The forget loss without its most extreme examples, for any forget term. Shape suffixes: B examples, N tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.objectives.trimmed import Side, trimmed_mean
from expunge.signals.likelihood import TokenValues
from expunge.training.task import Counts

if TYPE_CHECKING:
    from expunge.methods.gradient import ForgetTerm


def trimmed_loss(
    term: ForgetTerm, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts, *,
    share: float, side: Side,
) -> Tensor:  # fmt: skip
    """Return this batch's share of the mean over examples of a term's loss, the most extreme examples left out.

    The loss of an example is what the term gives for it alone, so that examples weigh the same whatever their length.
    The extremes are found within one forward; each of its examples stands for one of the step.

    Args:
        term: the forget term; each example has the same number of rows of a role, in the same order.
        tokens: by role, as for `ForgetTerm.loss`.
        reference: by role, as for `ForgetTerm.loss`.
        counts: of the whole optimiser step.
        share: of the examples left out, on each side where `side` is `both`.
        side: which end, see `trimmed_mean`.
    """
    size = min(len(tokens[role].lengths) for role in term.roles)
    whole = min(counts.sequences[role] for role in term.roles)
    losses = []
    for example in range(size):
        own, kept = {}, {}
        for role in term.roles:
            own[role], chosen_N = _part(tokens[role], example, size)
            if role in reference:
                kept[role] = reference[role][chosen_N]
        losses.append(term.loss(own, kept, _counts(own)))
    return trimmed_mean(torch.stack(losses), share, side=side) * size / whole


def _part(tokens: TokenValues, example: int, size: int) -> tuple[TokenValues, Tensor]:
    """Return the rows of one example out of `size`, and which tokens they are, [N] bool."""
    each = len(tokens.lengths) // size
    first = example * each
    chosen_N = (tokens.row >= first) & (tokens.row < first + each)
    part = TokenValues(tokens.values[chosen_N], tokens.row[chosen_N] - first, tokens.lengths[first : first + each])
    return part, chosen_N


def _counts(own: Mapping[str, TokenValues]) -> Counts:
    return Counts(
        {role: len(found.lengths) for role, found in own.items()},
        {role: len(found.row) for role, found in own.items()},
    )
