# SPDX-License-Identifier: Apache-2.0
"""How much of an answer the model reproduces token by token under teacher forcing.

The end-of-sequence token is dropped: ending is not knowledge. open-unlearning drops the last label always, also where
it is a real token of running text.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expunge.audit.columns import Column, View, column
from expunge.audit.records import Flags, Floats, ScoredItem
from expunge.audit.statistics import Unavailable


def exact_memorization(correct: Flags) -> float:
    """Return the share of tokens that are the model's arg max, in 0..1.

    Args:
        correct: per token, 1 where the arg max equals the label, [n], n >= 1.

    Source: Tirumala et al., 2022; the same number as the memorisation accuracy of Jang et al., 2023, equation 1.
    """
    return float(np.asarray(correct, dtype=np.float64).mean())


def extraction_strength(correct: Flags, *, compat: str = "fixed") -> float:
    """Return the share of the answer that the model completes by itself after the shortest prefix that suffices.

    1 - min{k : every token from k on is the arg max} / n. For a suffix, teacher forcing and greedy decoding agree.

    Args:
        correct: per token, 1 where the arg max equals the label, [n], n >= 1.
        compat: `openunlearning` returns 1/n where even the last token is wrong; otherwise that is 0.

    Source: Carlini et al., "Extracting Training Data from Large Language Models", 2021, as used by open-unlearning.
    """
    flags = np.asarray(correct, dtype=bool)
    wrong = np.flatnonzero(~flags)
    run = flags.size - 1 - int(wrong[-1]) if wrong.size else flags.size
    if compat == "openunlearning":
        run = max(run, 1)
    return run / flags.size


def memorization_accuracy(correct: Flags) -> float:
    """Return Jang's memorisation accuracy: over the T - 1 predictable tokens, the number `exact_memorization` gives."""
    return exact_memorization(correct)


def scored_part(item: ScoredItem, values: Floats | Flags, *, always: bool = False) -> NDArray[np.float64]:
    """Return per-token values without the end-of-sequence token.

    Args:
        item: the scored pair.
        values: one of its per-token fields, [n].
        always: drop the last token whatever it is (open-unlearning).

    Raises:
        Unavailable: if nothing is left.
    """
    array = np.asarray(values, dtype=np.float64)
    if item.summary is not None and not array.size:
        raise Unavailable("the records come from a log without token log-probabilities")
    kept = array[:-1] if always or item.ends_with_eos else array
    if not kept.size:
        raise Unavailable(f"item '{item.set}/{item.id}' ({item.variant}) has no token to score beside its last one")
    return kept


def exact_memorization_column(view: View, name: str, *, compat: str = "fixed") -> Column:
    """Return the exact memorisation of every answer in a set."""
    always = compat == "openunlearning"
    return column(
        ((i, exact_memorization(_flags(i, always))) for i in view.scored(name, "answer")), "exact memorisation"
    )


def extraction_strength_column(view: View, name: str, *, compat: str = "fixed") -> Column:
    """Return the extraction strength of every answer in a set."""
    always = compat == "openunlearning"
    return column(
        ((i, extraction_strength(_flags(i, always), compat=compat)) for i in view.scored(name, "answer")),
        "extraction strength",
    )


def _flags(item: ScoredItem, always: bool) -> NDArray[np.bool_]:
    return scored_part(item, item.correct, always=always).astype(bool)
