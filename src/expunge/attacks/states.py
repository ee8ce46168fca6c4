# SPDX-License-Identifier: Apache-2.0
"""Hidden states of the last token, or of the answer on average, of many sequences at many blocks.

Shape suffixes: N sequences, T tokens, D hidden width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.signals.hidden import over_batches

States: TypeAlias = NDArray[np.float32]


def last_states(
    model: nn.Module, items: Sequence[Encoded], *, layers: Sequence[int], pad_id: int, batch_tokens: int = 8192
) -> dict[int, States]:
    """Return the state of the last token of every sequence at every block, [N, D] each."""
    return _states(model, items, layers, pad_id, batch_tokens, lambda _item, states_TD: states_TD[-1])


def answer_states(
    model: nn.Module, items: Sequence[Encoded], *, layers: Sequence[int], pad_id: int, batch_tokens: int = 8192
) -> dict[int, States]:
    """Return the mean state over the labelled tokens of every sequence at every block, [N, D] each."""
    return _states(
        model, items, layers, pad_id, batch_tokens, lambda item, states_TD: states_TD[item.label_start :].mean(0)
    )


def _states(
    model: nn.Module, items: Sequence[Encoded], layers: Sequence[int], pad_id: int, batch_tokens: int,
    pick: Callable[[Encoded, Tensor], Tensor],
) -> dict[int, States]:  # fmt: skip
    places = defaultdict[Encoded, list[int]](list)
    for index, item in enumerate(items):
        places[item].append(index)
    out: dict[int, States] = {}
    unique = list(places)
    for bucket, found in over_batches(model, unique, layers=layers, pad_id=pad_id, batch_tokens=batch_tokens):
        for layer in layers:
            for item, states_TD in zip(bucket, found[layer].float().cpu(), strict=True):
                state = pick(item, states_TD[: len(item.ids)]).numpy()
                rows = out.setdefault(layer, np.empty((len(items), len(state)), dtype=np.float32))
                rows[places[item]] = state
    return out
