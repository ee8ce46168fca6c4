# SPDX-License-Identifier: Apache-2.0
"""Trees of sequences: by hand, against every way to cut, and what each token may see."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from expunge.data.prefix_trees import PrefixTree, chains, prefix_trees


def test_a_tree_worked_by_hand() -> None:
    (tree,) = prefix_trees([(7, 8, 1, 2), (7, 8, 3), (7, 8, 1, 5)], pair_cost=0.0)
    assert tree.members == (0, 2, 1)  # in the order of their ids
    assert tree.ids.tolist() == [7, 8, 1, 2, 5, 3]
    assert tree.depth.tolist() == [0, 1, 2, 3, 3, 2]
    assert tree.end.tolist() == [6, 6, 5, 4, 5, 6]
    assert [path.tolist() for path in tree.paths] == [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 5]]


def contexts(tree: PrefixTree) -> list[list[int]]:
    """What each node sees, by the rule of `PrefixTree`."""
    n = len(tree)
    return [[j for j in range(n) if j <= i < tree.end[j]] for i in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_every_node_sees_its_own_past_and_nothing_else(seed: int) -> None:
    draw = random.Random(seed)
    sequences = [tuple(draw.randrange(3) for _ in range(draw.randrange(1, 8))) for _ in range(20)]
    trees = prefix_trees(sequences, pair_cost=0.02)
    assert sorted(m for tree in trees for m in tree.members) == list(range(20))
    for tree in trees:
        seen = contexts(tree)
        for member, path in zip(tree.members, tree.paths, strict=True):
            assert tuple(tree.ids[path]) == sequences[member]
            for depth, node in enumerate(path):
                assert seen[node] == path[: depth + 1].tolist()
                assert tree.depth[node] == depth


def cost(sequences: list[tuple[int, ...]], pair_cost: float) -> float:
    nodes = len({s[:k] for s in sequences for k in range(1, len(s) + 1)})
    return nodes + pair_cost * nodes**2


@pytest.mark.parametrize("pair_cost", [0.001, 0.02, 0.2])
def test_no_other_cut_of_the_order_costs_less(pair_cost: float) -> None:
    draw = random.Random(3)
    sequences = sorted(tuple(draw.randrange(2) for _ in range(draw.randrange(4, 9))) for _ in range(9))
    found = sum(
        cost([sequences[m] for m in tree.members], pair_cost) for tree in prefix_trees(sequences, pair_cost=pair_cost)
    )
    every = []
    for pattern in itertools.product((False, True), repeat=8):
        parts = [[sequences[0]]]
        for sequence, cut in zip(sequences[1:], pattern, strict=True):
            parts += [[]] if cut else []
            parts[-1].append(sequence)
        every.append(sum(cost(part, pair_cost) for part in parts))
    assert found == pytest.approx(min(every))


def test_a_tree_of_several_keeps_to_the_bound_and_a_long_sequence_stands_alone() -> None:
    sequences = [(1, *range(10, 10 + n), n) for n in (30, 5, 6, 7)]
    trees = prefix_trees(sequences, pair_cost=0.0, max_nodes=20)
    assert sorted(tree.members for tree in trees) == [(0,), (1, 2, 3)]
    assert len(trees[0]) <= 20 or len(trees[0].members) == 1


def test_chains_share_nothing_and_no_sequences_give_no_trees() -> None:
    twice = [(1, 2), (1, 2)]
    assert [tree.ids.tolist() for tree in chains(twice)] == [[1, 2], [1, 2]]
    (joined,) = prefix_trees(twice, pair_cost=0.001)
    assert len(joined) == 2
    assert prefix_trees([], pair_cost=0.1) == []
    assert np.array_equal(joined.paths[0], joined.paths[1])
