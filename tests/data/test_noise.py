# SPDX-License-Identifier: Apache-2.0
"""Noisy forget sets: exact rates, nested choices, nothing touched at rate 0; and the guards against them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expunge.data.examples import Example
from expunge.data.noise import (
    MASK,
    NoiseConfig,
    add_noise,
    drop,
    duplicate,
    mask_words,
    mislabel,
    rewrite,
    swap_answers,
)
from expunge.data.robust import memorised, overlaps, shingles, without_overlap
from expunge.errors import InputDataError, RecipeError

KINDS = ("mask", "rewrite", "mislabel", "swap", "drop", "duplicate")


def facts(n, name="q", words=5):
    return [
        Example(id=f"{name}{i}", prompt=f"What of {name}{i}?", answer=" ".join(f"{name}{i}w{k}" for k in range(words)),
                paraphrased_answer=f"other {name}{i}", perturbed_answers=("wrong",))
        for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_rate_zero_changes_nothing_and_the_same_seed_repeats_itself(kind):
    clean, retain = facts(10), facts(20, "r")
    assert add_noise(clean, NoiseConfig(kind=kind, rate=0.0), retain=retain) == clean
    config = NoiseConfig(kind=kind, rate=0.4, seed=3)
    state = np.random.get_state()[1].copy()
    once = add_noise(clean, config, retain=retain)
    assert once == add_noise(clean, config, retain=retain) != clean
    assert (np.random.get_state()[1] == state).all()  # the global generator is left alone
    assert clean == facts(10)
    assert len({example.id for example in once}) == len(once)


def test_masking_hides_exactly_the_share_of_words_and_no_prompt():
    clean = facts(10)
    for rate in (0.1, 0.3, 0.9, 1.0):
        masked = mask_words(clean, rate, seed=0)
        hidden = sum(word == MASK for example in masked for word in example.answer.split(" "))
        assert hidden == math.floor(rate * 50 + 0.5)
        assert [e.prompt for e in masked] == [e.prompt for e in clean]
    odd = [Example(id="a", prompt="", answer="one  two")]
    assert mask_words(odd, 1.0, seed=0)[0].answer == f"{MASK}  {MASK}"


def test_what_is_touched_at_a_rate_is_touched_at_every_higher_one():
    clean = facts(40)
    low, high = (
        {e.id for e, c in zip(swap_answers(clean, rate, seed=1), clean, strict=True) if e != c} for rate in (0.2, 0.6)
    )
    assert low < high
    gone = [{e.id for e in clean} - {e.id for e in drop(clean, rate, seed=1)} for rate in (0.2, 0.6)]
    assert gone[0] < gone[1]
    assert [len(found) for found in gone] == [8, 24]


def test_each_kind_does_what_it_says():
    clean, retain = facts(10), facts(20, "r")
    assert sum(e.answer.startswith("other") for e in rewrite(clean, 0.3, seed=0)) == 3
    assert rewrite(clean, 1.0, seed=0, rewriter=str.upper)[4].answer == clean[4].answer.upper()
    mixed = mislabel(clean, retain, 0.5, seed=0)
    assert mixed[:10] == clean
    assert len(mixed) == 15
    assert all(e.id.startswith("mislabelled/r") for e in mixed[10:])
    swapped = swap_answers(clean, 0.5, seed=0)
    moved = [(e, c) for e, c in zip(swapped, clean, strict=True) if e != c]
    assert len(moved) == 5
    assert sorted(e.answer for e, _ in moved) == sorted(c.answer for _, c in moved)
    assert all(e.answer != c.answer and not e.perturbed_answers for e, c in moved)
    twice = duplicate(clean, 0.2, seed=0)
    assert [e.id.removeprefix("again/") in {c.id for c in clean} for e in twice[10:]] == [True, True]


def test_noise_that_cannot_be_made_says_why():
    with pytest.raises(RecipeError, match="5 are needed"):
        mislabel(facts(10), facts(2, "r"), 0.5, seed=0)
    with pytest.raises(InputDataError, match="no paraphrase"):
        rewrite([Example(id="x", prompt="", answer="a")], 1.0, seed=0)
    with pytest.raises(InputDataError, match="no item is left"):
        drop(facts(3), 1.0, seed=0)


def test_overlap_by_hand_and_against_a_naive_count():
    a = Example(id="a", prompt="Who is Ann?", answer="Ann is a baker")
    b = Example(id="b", prompt="Who is Ann?", answer="Ann is a tailor")
    assert shingles(a) == {
        ("who", "is", "ann"), ("is", "ann", "ann"), ("ann", "ann", "is"), ("ann", "is", "a"), ("is", "a", "baker"),
    }  # fmt: skip
    (found,) = overlaps([a], [b], threshold=0.5)
    assert found.similarity == pytest.approx(4 / 6)
    assert overlaps([a], [b], threshold=0.7) == []
    forget, retain = [*facts(6), a], [*facts(8, "r"), b, a]
    naive = [
        (i, j) for i, x in enumerate(forget) for j, y in enumerate(retain)
        if len(shingles(x) & shingles(y)) / len(shingles(x) | shingles(y)) >= 0.3
    ]  # fmt: skip
    assert [(pair.forget, pair.retain) for pair in overlaps(forget, retain, threshold=0.3)] == naive
    kept, pairs = without_overlap(forget, retain)
    assert kept == facts(6)
    assert pairs[0].similarity == 1.0


def test_mislabelled_items_are_found_again_and_unlearned_ones_filtered():
    clean, retain = facts(10), facts(20, "r")
    kept, pairs = without_overlap(mislabel(clean, retain, 0.5, seed=2), retain)
    assert kept == clean
    assert len(pairs) == 5
    assert memorised([0.5, 2.0, 1.0], [1.0, 2.0, 1.05], margin=0.1).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="finite"):
        memorised([np.nan], [1.0])
