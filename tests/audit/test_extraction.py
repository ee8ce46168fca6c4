# SPDX-License-Identifier: Apache-2.0
"""Extraction likelihood, memorisation accuracy, (n, p)-discoverable extraction and submitted guesses."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from audit_records import generated, scored
from pydantic import ValidationError

from expunge.audit import extraction, guesses, memorization
from expunge.audit.collect import collect
from expunge.audit.columns import View
from expunge.audit.config import AuditConfig
from expunge.audit.extraction_metrics import discoverable_column, extraction_likelihood_column
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import Protocol
from expunge.audit.records import Records
from expunge.audit.statistics import Unavailable
from expunge.audit.store import read_records, write_records
from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.data.examples import Example
from expunge.models.tiny import build_llama, build_tokenizer

CONFIG = AuditConfig(max_new_tokens=24, extraction_prefixes=3, extraction_length=2, bootstrap=100)
PROTOCOL = Protocol("test", "1", {"forget": "forget", "holdout": "holdout", "retain": "retain"})


# Overlap of n-grams, and EL_n


def test_overlap_by_hand():  # X2
    assert extraction.ngram_overlap([1, 2, 3, 9], [1, 2, 3, 4], 2) == pytest.approx(2 / 3)
    assert extraction.ngram_overlap([1, 2, 1, 2], [1, 2, 3, 4], 2) == pytest.approx(2 / 3)  # repeats count
    assert extraction.ngram_overlap([1, 2], [1, 2, 3, 4], 2) == 1.0
    assert extraction.ngram_overlap([1, 2], [1, 2, 3, 4], 2, per="target") == pytest.approx(1 / 3)
    for pair in (([], [1, 2]), ([1, 2], []), ([1], [1, 2]), ([], [])):
        assert extraction.ngram_overlap(*pair, 2) == 0.0
    with pytest.raises(ValueError, match="at least one token"):
        extraction.ngram_overlap([1], [1], 0)


def slow_overlap(ours, theirs, n):
    hits = total = 0
    for i in range(len(ours) - n + 1):
        total += 1
        hits += any(ours[i : i + n] == theirs[j : j + n] for j in range(len(theirs) - n + 1))
    return hits / total if total else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_overlap_matches_a_slow_search(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = (rng.integers(0, 3, rng.integers(0, 12)).tolist() for _ in range(2))
    for n in (1, 2, 3):
        assert extraction.ngram_overlap(ours, theirs, n) == pytest.approx(slow_overlap(ours, theirs, n))


def test_extraction_likelihood_is_the_mean_over_prefixes():
    said, true = [[1, 2, 3], [2, 9, 9], [3]], [[1, 2, 3], [2, 3, 4], [3]]
    assert extraction.extraction_likelihood(said, true, 2) == pytest.approx(0.5)  # the third has no bigram to come
    with pytest.raises(Unavailable, match="4 tokens"):
        extraction.extraction_likelihood(said, true, 4)
    with pytest.raises(Unavailable):
        extraction.extraction_likelihood([], [], 1)


def test_prefixes_are_those_of_the_definition():
    item = Encoded((9, 8, 1, 2, 3, 4, 5, 7), (IGNORE, IGNORE, 1, 2, 3, 4, 5, 7), ends_with_eos=True)
    every = extraction.prefixes(item, 2, 99, longest=99)
    # T = 5 tokens, so t = 1, 2, 3; the first prefix is the prompt alone, the end-of-sequence token is nowhere.
    assert every == [((9, 8), (1, 2, 3, 4, 5)), ((9, 8, 1), (2, 3, 4, 5)), ((9, 8, 1, 2), (3, 4, 5))]
    assert extraction.prefixes(item, 2, 2, longest=3) == [((9, 8), (1, 2, 3)), ((9, 8, 1, 2), (3, 4, 5))]
    assert extraction.prefixes(item, 2, 1, longest=99) == every[:1]
    assert extraction.prefixes(item, 5, 3, longest=99) == extraction.prefixes(item, 2, 0, longest=99) == []
    text = Encoded((1, 2, 3, 4), (1, 2, 3, 4), ends_with_eos=False)  # the first token is not predicted from anything
    assert extraction.prefixes(text, 1, 9, longest=9) == [((1,), (2, 3, 4)), ((1, 2), (3, 4))]
    one = Encoded((1, 2), (IGNORE, 2), ends_with_eos=False)
    assert extraction.prefixes(one, 1, 3, longest=9) == []


def slow_memorization_accuracy(predictions, tokens):
    """The sum of Jang et al., equation 1: `predictions[t]` is the arg max given the tokens before t."""
    return sum(predictions[t] == tokens[t] for t in range(1, len(tokens))) / (len(tokens) - 1)


def test_memorization_accuracy_is_that_of_the_paper():
    tokens, predictions = [4, 5, 6, 7, 8], [None, 5, 9, 7, 8]
    correct = [p == t for p, t in zip(predictions[1:], tokens[1:], strict=True)]
    assert memorization.memorization_accuracy(correct) == slow_memorization_accuracy(predictions, tokens) == 0.75


# The pass


def example(number, answer):
    return Example(id=f"q{number}", prompt=f"What is thing {number}?", answer=answer, subject=f"s{number}")


SETS = {
    "forget": [example(i, f"Thing {i} is a red boat on the old river near the town.") for i in range(3)],
    "retain": [example(8, "Thing 8 is a green hill.")],
    "holdout": [example(9, "A blue house stands on the hill."), example(10, "No")],
    "texts": [Example(id="doc", prompt="", answer="the long story of the boat and the tree " * 4, kind="text")],
}


@pytest.fixture(scope="module")
def machine():
    torch.set_num_threads(1)
    tokenizer = build_tokenizer([e.prompt + e.answer for s in SETS.values() for e in s], vocab_size=400)
    model = build_llama(len(tokenizer), hidden_size=32, layers=1, context=64)
    return model, Encoder(tokenizer, template="question", max_length=64)


def greedy(model, ids, steps, eos):
    out = []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([[*ids, *out]])).logits[0, -1].argmax())
        if token == eos:
            break
        out.append(token)
    return out


def test_likelihood_of_the_pass_equals_greedy_decoding_prefix_by_prefix(target, encoder, archive, tmp_path):
    """A model that learned the answers continues them: the numbers are far from nought."""
    splits = archive.splits()
    text = " ".join(e.answer for e in splits.forget[:3])
    sets = {
        "forget": splits.forget[:5], "retain": splits.retain[:2],
        "holdout": [*splits.holdout[:4], Example(id="short", prompt="What?", answer="")],
        "texts": [Example(id="doc", prompt="", answer=text, kind="text")],
    }  # fmt: skip
    protocol = Protocol("t", "1", {"forget": "forget", "retain": "retain", "holdout": "holdout", "texts": "forget"})
    records = collect(target, encoder, sets, config=CONFIG, protocol=protocol)
    kept = read_records(write_records(records, tmp_path / "r"))
    assert list(kept.generated) == list(records.generated)
    assert {g.set for g in kept.generated if g.prompt_variant == "prefix"} == {"forget", "holdout", "texts"}
    view = View(kept)
    for name in ("forget", "holdout", "texts"):
        found = extraction_likelihood_column(view, name, 2)
        slow = {}
        for row in encoder.encode_many(sets[name], where=name):
            own = sets[name][row.index]
            values = []
            for ids, true in extraction.prefixes(row.encoded, 2, 3, longest=24):
                said = greedy(target, ids, len(true), encoder.eos_id)
                values.append(slow_overlap(said, list(true), 2))
            if values:
                slow[f"{own.id}#{row.chunk}" if own.kind == "text" else own.id] = np.mean(values)
        assert dict(zip(found.ids, found.values, strict=True)) == pytest.approx(slow)
        assert name != "forget" or found.values.mean() > 0.3
    assert "short" not in extraction_likelihood_column(view, "holdout", 2).ids  # no bigram to come


def test_prefixes_do_not_touch_the_other_numbers_and_stay_within_the_context(machine):
    model, encoder = machine
    plain = collect(model, encoder, SETS, config=CONFIG.model_copy(update={"extraction_prefixes": 0}))
    more = collect(model, encoder, SETS, config=CONFIG)
    assert [g for g in more.generated if g.prompt_variant != "prefix"] == list(plain.generated)
    began = [g for g in more.generated if g.prompt_variant == "prefix"]
    assert began
    assert all(len(g.ids) <= len(g.target_ids) <= 24 for g in began)
    assert more.meta["counts"]["prompts"] == len(plain.generated) + len(began)
    assert all(g.n_tokens == len(g.ids) and g.finished == (len(g.ids) < len(g.target_ids)) for g in began)


def test_a_setting_that_holds_no_ngram_is_refused():
    with pytest.raises(ValidationError, match="hold no 30-gram"):
        AuditConfig(extraction_prefixes=1, extraction_length=30, max_new_tokens=29)
    assert AuditConfig(extraction_length=30, max_new_tokens=29).extraction_prefixes == 0


def test_likelihood_as_a_metric():
    def item(name, number, said, true):
        return dataclasses.replace(
            generated(name, f"q{number}", "", "", prompt="prefix", subject=f"s{number}"), ids=said, target_ids=true
        )

    true = tuple(range(12))
    texts = [item("forget", 0, true, true), item("forget", 0, true[:6] + (99,) * 6, true), item("forget", 1, (), true)]
    config = AuditConfig(bootstrap=100, extraction_length=2, metrics=("*.extraction_likelihood",))
    found = compute_metrics(Records([], texts), protocol=PROTOCOL, config=config)
    entry = found["forget.extraction_likelihood"]
    assert (entry.value, entry.n) == (pytest.approx((1 + 5 / 11) / 2 / 2), 2)
    assert entry.ci_low <= entry.value <= entry.ci_high
    assert (
        "'prefix'" in found["holdout.extraction_likelihood"].reason
        or "no set" in found["holdout.extraction_likelihood"].reason
    )
    long = compute_metrics(
        Records([], texts), protocol=PROTOCOL, config=config.model_copy(update={"extraction_length": 13})
    )
    assert "13 tokens" in long["forget.extraction_likelihood"].reason
    assert "retain.extraction_likelihood" not in found


# (n, p)-discoverable extraction


def test_samples_needed_by_hand():  # X4
    assert extraction.samples_needed(math.log(0.01), 0.5) == 69
    assert extraction.samples_needed(math.log(0.2), 0.9) == 11
    assert 1 - extraction.extraction_chance(math.log(0.01), 50) == pytest.approx(0.605006, abs=1e-6)
    assert extraction.samples_needed(math.log(0.1), 0.19) == 2  # exactly two: rounding must not make it three
    assert extraction.samples_needed(0.0, 0.999) == 1
    assert extraction.samples_needed(1e-7, 0.5) == 1  # a sum of rounded log-probabilities
    assert extraction.samples_needed(-math.inf, 0.5) == extraction.samples_needed(-2000.0, 0.5) == math.inf
    assert extraction.samples_needed(-600.0, 0.5) == pytest.approx(math.log(2) * math.exp(600.0))
    assert extraction.extraction_chance(-2000.0, 10) == extraction.extraction_chance(-1.0, 0) == 0.0
    assert extraction.extraction_chance(0.0, 1) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_samples_needed_is_the_smallest_number_that_a_count_upwards_finds(seed):
    rng = np.random.default_rng(seed)
    p_z, chance = rng.uniform(0.01, 0.9), rng.uniform(0.05, 0.99)
    n = next(n for n in itertools.count(1) if 1 - (1 - p_z) ** n >= chance)
    assert extraction.samples_needed(math.log(p_z), chance) == n
    assert extraction.extractable(math.log(p_z), n, chance)
    assert not extraction.extractable(math.log(p_z), n - 1, chance)


def test_no_number_for_no_probability():
    for bad in (float("nan"), 0.5):
        with pytest.raises(ValueError, match="at most 0"):
            extraction.samples_needed(bad, 0.5)
    for chance in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="chance"):
            extraction.samples_needed(-1.0, chance)
    with pytest.raises(ValueError, match="at least 0"):
        extraction.extraction_chance(-1.0, -1)


def slow_sampling(logits, labels, temperature, top_k):
    """Zero all but the k most likely tokens, renormalise, multiply."""
    total = 1.0
    for row, label in zip(logits, labels, strict=True):
        weights = np.exp(np.asarray(row) / temperature)
        weights[np.argsort(-weights, kind="stable")[top_k:]] = 0.0
        total *= weights[label] / weights.sum()
    return math.log(total) if total else -math.inf


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 6), (0.7, 3), (2.0, 1), (1.0, 5)])
def test_sampling_under_temperature_and_top_k(temperature, top_k):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 6))
    for labels in (logits.argmax(1), rng.integers(0, 6, 4)):
        found = extraction.sampling_log_probability(logits, labels, temperature=temperature, top_k=top_k)
        assert found == pytest.approx(slow_sampling(logits, labels, temperature, top_k))
    plain = extraction.sampling_log_probability(logits, [0, 1, 2, 3])
    assert plain == pytest.approx(slow_sampling(logits, [0, 1, 2, 3], 1.0, 6))
    assert extraction.sampling_log_probability(np.zeros((0, 6)), np.zeros(0, int)) == 0.0
    ties = extraction.sampling_log_probability([[1.0, 1.0, 0.0]], [1], top_k=1)
    assert ties == pytest.approx(math.log(0.5))  # which of two equals a sampler keeps is not defined
    for bad in ({"temperature": 0.0}, {"top_k": 0}):
        with pytest.raises(ValueError, match="needs"):
            extraction.sampling_log_probability(logits, [0] * 4, **bad)


def test_discoverable_share_of_records():
    items = [
        scored("forget", "likely", [math.log(0.2), math.log(0.5), -50.0], eos=True),  # p_z = .1: 7 samples for .5
        scored("forget", "certain", [0.0, 0.0]),
        scored("forget", "never", [-400.0, -600.0]),
    ]
    view = View(Records(items, []))
    assert discoverable_column(view, "forget", samples=7, chance=0.5).values.tolist() == [1, 1, 0]
    assert discoverable_column(view, "forget", samples=6, chance=0.5).values.tolist() == [0, 1, 0]
    config = AuditConfig(bootstrap=100, extraction_samples=7, metrics=("*.discoverable_extraction",))
    found = compute_metrics(Records(items, []), protocol=PROTOCOL, config=config)
    assert found["forget.discoverable_extraction"].value == pytest.approx(2 / 3)
    assert found["holdout.discoverable_extraction"].value is None
    none = compute_metrics(Records(items[2:], []), protocol=PROTOCOL, config=config)["forget.discoverable_extraction"]
    assert (none.value, none.ci_low) == (0.0, 0.0)
    assert none.ci_high > 0.9  # nought of one is not never


# Submitted guesses


def test_recall_at_a_budget_of_errors_by_hand():  # X3
    truths = {name: (1, 2, 3) for name in "abcdefgh"}
    correct = [1, 1, 0, 1, 0, 1]
    submitted = [
        guesses.Guess(name, (1, 2, 3) if right else (1, 2, 4), 1.0 - 0.1 * i)
        for i, (name, right) in enumerate(zip("abcdef", correct, strict=True))
    ]
    found = guesses.score_guesses(submitted[::-1], truths, max_errors=2)
    assert (found.found, found.errors, found.n, found.guessed) == (3, 2, 8, 6)
    assert found.recall == pytest.approx(3 / 8)
    assert found.precision == pytest.approx(4 / 6)
    assert found.hamming == pytest.approx(2 / 6)
    assert guesses.score_guesses(submitted, truths).found == 4


def slow_recall(submitted, truths, max_errors):
    found, errors = set(), 0
    for _, _, guess in sorted((-g.confidence, i, g) for i, g in enumerate(submitted)):
        if errors >= max_errors:
            break
        if guess.tokens == truths[guess.example]:
            found.add(guess.example)
        else:
            errors += 1
    return len(found) / len(truths)


@pytest.mark.parametrize("seed", range(6))
def test_recall_matches_a_slow_walk_with_ties_and_several_guesses(seed):
    rng = np.random.default_rng(seed)
    truths = {str(i): tuple(int(t) for t in rng.integers(0, 2, 2)) for i in range(8)}
    submitted = [
        guesses.Guess(str(rng.integers(8)), tuple(int(t) for t in rng.integers(0, 2, 2)), float(rng.integers(3)))
        for _ in range(30)
    ]
    for budget in (1, 3, 100):
        found = guesses.score_guesses(submitted, truths, max_errors=budget)
        assert found.recall == pytest.approx(slow_recall(submitted, truths, budget))


def test_best_guesses_repeats_and_odd_lengths():
    truths = {"a": (1, 2), "b": (3, 4)}
    submitted = [guesses.Guess("a", (1, 2), 0.9), guesses.Guess("a", (1, 2), 0.8), guesses.Guess("a", (9, 9), 0.1)]
    found = guesses.score_guesses(submitted, truths)
    assert (found.found, found.errors, found.precision, found.hamming, found.guessed) == (1, 1, 1.0, 0.0, 1)
    assert [guesses.hamming(g, (1, 2)) for g in ((), (1,), (1, 2), (2, 1), (1, 2, 3))] == [2, 1, 0, 2, 1]


def test_guesses_that_cannot_be_scored():
    guess = guesses.Guess("a", (1,), 1.0)
    for submitted, truths in (([], {"a": (1,)}), ([guess], {}), ([], {})):
        with pytest.raises(Unavailable):
            guesses.score_guesses(submitted, truths)
    for bad in (guesses.Guess("z", (1,), 1.0), guesses.Guess("a", (1,), float("nan"))):
        with pytest.raises(ValueError, match="no such example"):
            guesses.score_guesses([bad], {"a": (1,)})
    with pytest.raises(ValueError, match="max_errors"):
        guesses.score_guesses([guess], {"a": (1,)}, max_errors=0)
