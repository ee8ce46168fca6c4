# SPDX-License-Identifier: Apache-2.0
"""Padding, length buckets, and the pairing of forget with retain rows."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.batching import length_buckets, pad
from expunge.data.encoding import IGNORE, Encoded
from expunge.data.sampling import PairedSampler, derangement


def test_padding_by_hand() -> None:
    batch = pad([Encoded((5, 6, 7), (IGNORE, 6, 7), True), Encoded((8,), (8,), False)], pad_id=7)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 7, 7]]
    # The real token 7 is seen although 7 pads.
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, 6, 7], [8, IGNORE, IGNORE]]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels)} == {torch.int64}
    with pytest.raises(ValueError, match="at least one"):
        pad([], 0)


def test_buckets_by_hand() -> None:
    assert length_buckets([3, 9, 4, 4, 1], 12) == [[1], [2, 3, 0], [4]]
    assert length_buckets([3, 9, 4, 4, 1], 12, max_rows=2) == [[1], [2, 3], [0, 4]]
    assert length_buckets([50, 2, 2], 12) == [[0], [1, 2]]
    assert length_buckets([], 12) == []
    with pytest.raises(ValueError, match="at least 1"):
        length_buckets([1], 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40)), st.integers(40, 200), st.integers(1, 5))
def test_buckets_hold_every_row_once_within_bounds(lengths: list[int], tokens: int, rows: int) -> None:
    buckets = length_buckets(lengths, tokens, max_rows=rows)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(lengths)))
    ordered = [lengths[index] for bucket in buckets for index in bucket]
    assert ordered == sorted(lengths, reverse=True)
    for bucket in buckets:
        assert len(bucket) * max(lengths[index] for index in bucket) <= tokens
        assert len(bucket) <= rows


@pytest.mark.parametrize(("n_forget", "n_retain"), [(10, 3), (7, 20), (5, 5), (4, 1)])
def test_an_epoch_covers_both_sets_evenly(n_forget: int, n_retain: int) -> None:
    sampler = PairedSampler(n_forget, n_retain, batch_size=4, seed=3)
    steps = sampler.steps(2)
    assert [len(step) for step in steps] == [4] * (n_forget // 4) + [n_forget % 4] * (n_forget % 4 > 0)
    assert len(steps) == sampler.steps_per_epoch
    pairs = [pair for step in steps for pair in step]
    assert sorted(forget for forget, _ in pairs) == list(range(n_forget))
    seen = Counter(retain for _, retain in pairs)
    counts = [seen[index] for index in range(n_retain)]
    assert sum(counts) == n_forget
    assert max(counts) - min(counts) <= 1


def test_epochs_are_rebuilt_without_the_ones_before_and_without_the_global_generator() -> None:
    fresh = PairedSampler(9, 4, batch_size=2, seed=1).steps(5)
    used = PairedSampler(9, 4, batch_size=2, seed=1)
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    epochs = [used.steps(epoch) for epoch in range(6)]
    assert np.random.get_state()[1].tolist() == before[0]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert epochs[5] == fresh
    assert len({str(epoch) for epoch in epochs}) == 6
    assert PairedSampler(9, 4, batch_size=2, seed=2).steps(5) != fresh


def test_without_retain_rows_there_is_none() -> None:
    steps = PairedSampler(3, 0, batch_size=2, seed=0).steps(0)
    assert {retain for step in steps for _, retain in step} == {None}
    with pytest.raises(ValueError, match="n_forget=0"):
        PairedSampler(0, 3, batch_size=2, seed=0)


def test_derangements_are_uniform() -> None:
    rng = np.random.default_rng(0)
    drawn = Counter(tuple(derangement(4, rng).tolist()) for _ in range(4500))
    valid = {p for p in permutations(range(4)) if all(p[i] != i for i in range(4))}
    assert set(drawn) == valid  # all 9 of them
    assert all(abs(count - 500) < 5 * 500**0.5 for count in drawn.values())
    assert derangement(2, rng).tolist() == [1, 0]
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1, rng)
