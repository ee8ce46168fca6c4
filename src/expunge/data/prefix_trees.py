# SPDX-License-Identifier: Apache-2.0
"""Sequences that start alike, joined into trees in which every shared beginning stands once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

#: Nodes of the largest tree; its attention mask has the square of that many entries.
LARGEST_TREE = 2048


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Several sequences as one row of N nodes, parents before children, one branch after the other (depth first).

    Node `j` is part of the context of node `i` exactly if `j <= i < end[j]`.

    Attributes:
        members: numbers of the sequences.
        ids: token of each node, [N].
        depth: position of each node in its sequences, [N].
        end: number of the first later node that does not descend from this one, [N].
        paths: for each member the nodes of its tokens in order.
    """

    members: tuple[int, ...]
    ids: NDArray[np.int64]
    depth: NDArray[np.int64]
    end: NDArray[np.int64]
    paths: tuple[NDArray[np.int64], ...]

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.ids)


class _Growing:
    """A tree while sequences are added in lexicographic order."""

    def __init__(self) -> None:
        self.members: list[int] = []
        self.ids: list[int] = []
        self.depth: list[int] = []
        self.end: list[int] = []
        self.path: list[int] = []  # nodes of the sequence added last
        self.paths: list[NDArray[np.int64]] = []

    def add(self, member: int, sequence: Sequence[int], shared: int) -> None:
        """Add a sequence whose first `shared` tokens are those of the one before."""
        size = len(self.ids)
        for node in self.path[shared:]:
            self.end[node] = size
        self.path[shared:] = range(size, size + len(sequence) - shared)
        self.members.append(member)
        self.ids += sequence[shared:]
        self.depth += range(shared, len(sequence))
        self.end += [0] * (len(sequence) - shared)
        self.paths.append(np.array(self.path, dtype=np.int64))

    def finished(self) -> PrefixTree:
        """Return the tree."""
        for node in self.path:
            self.end[node] = len(self.ids)
        ids, depth, end = (np.array(values, dtype=np.int64) for values in (self.ids, self.depth, self.end))
        return PrefixTree(tuple(self.members), ids, depth, end, tuple(self.paths))


def prefix_trees(
    sequences: Sequence[tuple[int, ...]], *, pair_cost: float, max_nodes: int = LARGEST_TREE
) -> list[PrefixTree]:
    """Return every sequence in exactly one tree, such that the whole costs least.

    In lexicographic order neighbours share the most; that order is cut into trees. A tree of N nodes costs
    N + pair_cost * N^2.

    Args:
        sequences: token ids of each, none empty.
        pair_cost: cost of one query attending to one key, in units of what a token costs without attention.
        max_nodes: bound on the nodes of a tree of several sequences.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    shared = [_common(sequences[a], sequences[b]) for a, b in pairwise(order)]
    new = np.array([len(sequences[i]) for i in order]) - np.array([0, *shared][: len(order)])
    trees = []
    for start, end in _cuts(new, np.array([len(sequences[i]) for i in order]), pair_cost, max_nodes):
        tree = _Growing()
        for place in range(start, end):
            tree.add(order[place], sequences[order[place]], shared[place - 1] if place > start else 0)
        trees.append(tree.finished())
    return trees


def _cuts(new: NDArray[np.int64], length: NDArray[np.int64], pair_cost: float, max_nodes: int) -> list[tuple[int, int]]:
    """Return start and end of each tree, by dynamic programming over the last tree of every beginning of the order.

    Args:
        new: tokens of each sequence that the one before it lacks.
        length: tokens of each sequence.
        pair_cost: as in `prefix_trees`.
        max_nodes: as in `prefix_trees`.
    """
    total = np.cumsum(new)
    before = length - total  # a tree from i to the j-th sequence has before[i] + total[j] nodes
    best, last, low = np.zeros(len(new) + 1), np.zeros(len(new), dtype=np.int64), 0
    for j in range(len(new)):
        while low < j and before[low] + total[j] > max_nodes:
            low += 1
        nodes = before[low : j + 1] + total[j]
        costs = best[low : j + 1] + nodes + pair_cost * nodes.astype(np.float64) ** 2
        last[j] = low + int(costs.argmin())
        best[j + 1] = costs.min()
    cuts, end = [], len(new)
    while end:
        cuts.append((int(last[end - 1]), end))
        end = int(last[end - 1])
    return cuts[::-1]


def chains(sequences: Sequence[tuple[int, ...]]) -> list[PrefixTree]:
    """Return every sequence as a tree of its own."""
    out = []
    for member, sequence in enumerate(sequences):
        tree = _Growing()
        tree.add(member, sequence, 0)
        out.append(tree.finished())
    return out


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their start."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))
