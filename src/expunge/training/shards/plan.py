# SPDX-License-Identifier: Apache-2.0
"""Who is in which shard and slice, what each stage trains on and for how long: fixed once, before anything leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from expunge.data.examples import Example
from expunge.errors import RecipeError
from expunge.training.shards.duplicates import units


@dataclass(frozen=True, slots=True)
class Place:
    """Where one example of the training set is.

    Attributes:
        id: of the example.
        subject: whom it belongs to; "" if unknown, and once the example was taken out.
        unit: position of the first example of those that are kept together.
        shard, slice: from 0.
        rows: sequences it gives.
        digest: SHA-256 over the token ids and labels of those; "" once the example was taken out.
        deleted: it was taken out.
    """

    id: str
    subject: str
    unit: int
    shard: int
    slice: int
    rows: int
    digest: str
    deleted: bool = False


def place_all(
    examples: Sequence[Example], rows: Sequence[int], digests: Sequence[str], *, shards: int, slices: int, seed: int,
    by_subject: bool, threshold: float | None,
) -> list[Place]:  # fmt: skip
    """Return the place of every example: units in drawn order, each into the shard that holds least so far.

    Args:
        examples: the training set.
        rows: sequences of each example, [N].
        digests: of those sequences, [N].
        shards: how many models.
        slices: how many stages each has.
        seed: of the order in which units are placed.
        by_subject: see `duplicates.units`.
        threshold: see `duplicates.units`.

    Raises:
        RecipeError: if there are fewer units than shards.
    """
    unit_of = units(examples, by_subject=by_subject, threshold=threshold)
    members: dict[int, list[int]] = {}
    for i, unit in enumerate(unit_of):
        members.setdefault(unit, []).append(i)
    if len(members) < shards:
        raise RecipeError(
            f"there are {len(members)} units that may be told apart", field="sisa.shards", value=shards,
            remedy=f"Use at most {len(members)}, or sisa.unit=example",
        )  # fmt: skip
    order = np.random.default_rng([seed, 15487469]).permutation(sorted(members))
    sizes, held = [0] * shards, [list[int]() for _ in range(shards)]
    for unit in order.tolist():
        shard = min(range(shards), key=lambda s: (sizes[s], s))
        held[shard].append(unit)
        sizes[shard] += len(members[unit])
    places: dict[int, Place] = {}
    for shard, inside in enumerate(held):
        for unit, number in zip(inside, slice_numbers([len(members[u]) for u in inside], slices), strict=True):
            for i in members[unit]:
                example = examples[i]
                places[i] = Place(example.id, example.subject, unit, shard, number, rows[i], digests[i])
    return [places[i] for i in range(len(examples))]


def place_by_subject(
    examples: Sequence[Example], rows: Sequence[int], digests: Sequence[str], *, slices: int
) -> list[Place]:
    """Return the place of every example: a shard for each subject, in the order in which they come.

    Args:
        examples: the training set.
        rows: sequences of each example, [N].
        digests: of those sequences, [N].
        slices: how many stages each shard has.

    Raises:
        RecipeError: if an example has no subject.
    """
    shard_of: dict[str, int] = {}
    inside: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        if not example.subject:
            raise RecipeError("an example has no subject", field="data.train", value=example.id,
                              remedy="Give every example the subject whose shard it goes to")  # fmt: skip
        shard_of.setdefault(example.subject, len(shard_of))
        inside.setdefault(example.subject, []).append(i)
    number = {i: s for members in inside.values()
              for i, s in zip(members, slice_numbers([1] * len(members), slices), strict=True)}  # fmt: skip
    return [
        Place(e.id, e.subject, inside[e.subject][0], shard_of[e.subject], number[i], rows[i], digests[i])
        for i, e in enumerate(examples)
    ]


def slice_numbers(sizes: Sequence[int], slices: int) -> list[int]:
    """Return the slice of every unit of a shard, in order: a unit is where its middle falls if all are laid in a row.

    Every unit has a slice, the last included, whatever remains of the division.
    """
    ends = np.cumsum(sizes)
    middle = ends - np.asarray(sizes) / 2
    return np.minimum(middle * slices / ends[-1], slices - 1).astype(int).tolist() if len(ends) else []


def stage_epochs(epochs: int, slices: int) -> list[int]:
    """Return the epochs of every stage, [R]: 2 epochs / (R + 1) each on average, rounded so that the sums come out.

    Over all stages as many rows are read as in that many epochs over the shard, if slices are equal.

    Source: Bourtoule et al. 2021, section IV.C.
    """
    until = [2 * epochs * r // (slices + 1) for r in range(slices + 1)]
    return [after - before for before, after in pairwise(until)]


def stage_seed(seed: int, shard: int, stage: int) -> int:
    """Return the seed of one stage; that of the first of the first shard is the run's own, as in plain training."""
    if shard == stage == 0:
        return seed
    return int(np.random.SeedSequence([seed, shard, stage]).generate_state(1)[0])


def expected_retrained(n: int, shards: int, deleted: int) -> float:
    """Return how many of `n` examples are expected to be trained on again after uniformly drawn deletions, unsliced.

    Source: Bourtoule et al. 2021, section V.B: n (1 - (1 - 1/S)^K) - K.
    """
    return n * (1 - (1 - 1 / shards) ** deleted) - deleted
