# SPDX-License-Identifier: Apache-2.0
"""What an attacker trains on again, and what is tested: parts of the forget set, or texts unrelated to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge.data.examples import Example
from expunge.errors import InputDataError

On = Literal["forget", "related", "unrelated"]

#: What each choice means, for titles and reports.
MEANING: dict[On, str] = {
    "forget": "trained again on the forget set",
    "related": "trained on some facts of each subject, tested on others never shown",
    "unrelated": "trained on unrelated text",
}


@dataclass(frozen=True, slots=True)
class Round:
    """What is shown in one training run, in the order of budgets in examples, and what is tested after it."""

    shown: tuple[Example, ...]
    tested: tuple[Example, ...]


def fold_of(examples: Sequence[Example], folds: int, *, seed: int) -> list[int]:
    """Return the fold of every example, [n]: the facts of each subject are dealt out as evenly as they go.

    Where subjects are unknown, all examples count as one subject, so that the parts are random.

    Args:
        examples: one per fact; two wordings of a fact should not be there as two examples.
        folds: number of parts, at least 2.
        seed: of a private generator.

    Raises:
        InputDataError: if there are fewer examples than folds.
    """
    if len(examples) < folds:
        raise InputDataError(
            f"{folds} parts need as many facts", field="data.forget", value=len(examples),
            remedy="Lower relearning.folds, or give more facts",
        )  # fmt: skip
    rng, of_subject = np.random.default_rng([seed, 7919]), defaultdict[str, list[int]](list)
    for index, example in enumerate(examples):
        of_subject[example.subject].append(index)
    out, place = [0] * len(examples), 0
    for indices in of_subject.values():
        for index in rng.permutation(indices).tolist():
            out[index], place = place % folds, place + 1
    return out


def rounds(
    on: On, forget: Sequence[Example], unrelated: Sequence[Example], *, folds: int, rotations: int, seed: int
) -> list[Round]:
    """Return the training runs of one kind of relearning; together they test no example twice.

    Args:
        on: what is shown.
        forget: the forget set.
        unrelated: what `unrelated` shows.
        folds: parts of the forget set under `related`; one is tested, the others are shown.
        rotations: how many of the parts take their turn as the tested one.
        seed: of parts and order.
    """
    if on == "forget":
        return [Round(_shuffled(forget, seed), tuple(forget))]
    if on == "unrelated":
        return [Round(_shuffled(unrelated, seed), tuple(forget))]
    fold = fold_of(forget, folds, seed=seed)
    parts = [tuple(e for e, f in zip(forget, fold, strict=True) if f == part) for part in range(folds)]
    return [
        Round(_shuffled([e for other in range(folds) if other != part for e in parts[other]], seed), parts[part])
        for part in range(rotations)
    ]


def _shuffled(examples: Sequence[Example], seed: int) -> tuple[Example, ...]:
    order = np.random.default_rng([seed, 104729]).permutation(len(examples)).tolist()
    return tuple(examples[i] for i in order)
