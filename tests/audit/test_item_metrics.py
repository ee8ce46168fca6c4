# SPDX-License-Identifier: Apache-2.0
"""Per-item metrics against hand-worked cases."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from audit_records import generated, scored

from expunge.audit import behaviour, membership, memorization, overlap, probability
from expunge.audit.columns import View
from expunge.audit.quality import privleak
from expunge.audit.records import Records
from expunge.audit.statistics import Unavailable, auc
from expunge.data.refusals import REFUSALS, load_refusals
from expunge.errors import InputDataError


def test_probability_of_three_losses():  # T1
    item = scored("forget", "a", [-0.5, -1.0, -1.5])
    assert math.exp(probability.mean_logp(item)) == pytest.approx(0.367879, abs=1e-6)
    with pytest.raises(ValueError, match="forget/empty"):
        probability.mean_logp(scored("forget", "empty", []))


def test_option_probability():  # T2
    assert probability.normalised_probability(0.5, [0.25, 0.15, 0.1]) == pytest.approx(0.5)
    assert probability.normalised_probability(0.0, [0.0]) == 0.0
    assert probability.normalised_probability(1e-10, [], compat="openunlearning") == pytest.approx(0.5)


def test_truth_ratio_variants():  # T3
    geometric = probability.log_truth_ratio(-1.0, [-1.0, -2.0, -3.0])
    arithmetic = probability.log_truth_ratio(-1.0, [-1.0, -2.0, -3.0], compat="paper")
    assert math.exp(geometric) == pytest.approx(0.3678794, abs=1e-7)
    assert math.exp(arithmetic) == pytest.approx(0.5010716, abs=1e-7)
    assert probability.forget_score(np.array([geometric, -geometric])) == pytest.approx([0.3678794] * 2, abs=1e-7)
    both = probability.utility_score(np.array([geometric, arithmetic, 5.0]))
    assert both == pytest.approx([0.6321206, 0.4989284, 0.0], abs=1e-7)
    assert probability.truth_preference(-1.0, [-1.0, -2.0, -3.0]) == pytest.approx(0.7310586, abs=1e-7)


def test_truth_ratio_of_a_collapsed_model_does_not_overflow():
    huge = probability.log_truth_ratio(-2000.0, [-10.0])
    assert probability.forget_score(np.array([huge]))[0] == 0.0
    assert probability.utility_score(np.array([huge]))[0] == 0.0
    assert probability.truth_preference(-2000.0, [-10.0]) == pytest.approx(0.0)
    compat = probability.log_truth_ratio(-2000.0, [-3000.0], compat="openunlearning")
    assert probability.forget_score(np.array([compat]), compat="openunlearning")[0] == 0.0
    with pytest.raises(ValueError, match="at least one"):
        probability.log_truth_ratio(-1.0, [])


def test_rouge_with_and_without_stemmer():  # T6
    target, prediction = "the cats are sitting on the mat", "the cat sat on a mat"
    stemmed, plain = (overlap.rouge_l(target, prediction, stemmer=s) for s in (True, False))
    assert (stemmed.recall, plain.recall) == (pytest.approx(4 / 7), pytest.approx(3 / 7))
    assert (stemmed.f1, plain.f1) == (pytest.approx(0.6153846, abs=1e-7), pytest.approx(0.4615385, abs=1e-7))


def test_rouge_of_empty_texts_is_zero():
    for pair in (("", "word"), ("word", ""), ("", ""), ("?!", "word")):
        assert overlap.rouge_l(*pair) == overlap.rouge_1(*pair) == overlap.Overlap(0.0, 0.0, 0.0)


def test_rouge_equals_the_rouge_score_package():
    from rouge_score import rouge_scorer

    rng = np.random.default_rng(0)
    vocabulary = [
        "running",
        "Runs",
        "ran",
        "book",
        "books",
        "the",
        "a",
        "Émile",
        "1997",
        "it's",
        "—",
        "novels",
        "x-ray",
    ]
    for stemmer in (True, False):
        scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
        for _ in range(100):
            target, prediction = (" ".join(rng.choice(vocabulary, rng.integers(0, 90))) for _ in range(2))
            want = scorer.score(target, prediction)
            for ours, theirs in ((overlap.rouge_l, "rougeL"), (overlap.rouge_1, "rouge1")):
                got = ours(target, prediction, stemmer=stemmer)
                assert (got.precision, got.recall, got.f1) == pytest.approx(tuple(want[theirs]))


def slow_extraction_strength(predictions, labels):
    n = len(labels)
    return 1 - min(k for k in range(n + 1) if predictions[k:] == labels[k:]) / n


def test_extraction_strength_and_exact_memorisation():  # X1
    labels = [5, 6, 7, 8, 9]
    cases = {
        (0, 6, 7, 8, 9): (0.8, 0.8, 0.8),
        (5, 6, 7, 8, 0): (0.8, 0.0, 0.2),
        (0, 0, 0, 0, 0): (0.0, 0.0, 0.2),
        (0, 0, 0, 0, 9): (0.2, 0.2, 0.2),
        (5, 6, 7, 8, 9): (1.0, 1.0, 1.0),
    }
    for predictions, (em, es, es_open) in cases.items():
        correct = [p == t for p, t in zip(predictions, labels, strict=True)]
        assert memorization.exact_memorization(correct) == pytest.approx(em)
        assert memorization.extraction_strength(correct) == pytest.approx(es)
        assert memorization.extraction_strength(correct, compat="openunlearning") == pytest.approx(es_open)


@pytest.mark.parametrize("seed", range(5))
def test_extraction_strength_matches_the_definition(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 12).tolist()
    predictions = np.where(rng.random(12) < 0.8, labels, 9).tolist()
    correct = [p == t for p, t in zip(predictions, labels, strict=True)]
    assert memorization.extraction_strength(correct) == pytest.approx(slow_extraction_strength(predictions, labels))


def test_end_of_sequence_is_not_knowledge():
    item = scored("forget", "a", [-1.0, -1.0, -1.0], correct=[0, 1, 0], eos=True)
    view = View(Records([item], []))
    assert memorization.extraction_strength_column(view, "forget").values == [0.5]
    text = View(Records([scored("forget", "t", [-1.0, -1.0, -1.0], correct=[0, 1, 0])], []))
    assert memorization.extraction_strength_column(text, "forget").values == [0.0]
    assert memorization.extraction_strength_column(text, "forget", compat="openunlearning").values == [0.5]
    with pytest.raises(Unavailable, match="forget/only"):
        memorization.scored_part(scored("forget", "only", [-1.0], eos=True), [1])


FORGET = [[-0.1, -0.2, -0.1, -0.3, -0.2], [-1, -0.5, -2, -0.2, -0.3]]
HOLDOUT = [[-2, -3, -1, -0.5, -4], [-0.9, -0.1, -0.2, -1.2, -0.3]]


def test_min_k_auc():  # M1
    forget = [membership.lowest_mean(row, 0.4) for row in FORGET]
    holdout = [membership.lowest_mean(row, 0.4) for row in HOLDOUT]
    assert forget == pytest.approx([-0.25, -1.5])
    assert holdout == pytest.approx([-3.5, -1.05])
    assert auc(forget, holdout) == 0.75


def test_privleak_in_percent():  # M2: the AUC of the published code is one minus the member-high AUC
    news, books = 1 - 0.4772, 1 - 0.5393
    assert privleak(0.75, 0.5, compat="muse") == pytest.approx(-50)
    assert privleak(0.75, news, compat="muse") == pytest.approx(-47.6110645, abs=1e-6)
    assert privleak(1.0, news) == pytest.approx(-100)
    assert privleak(0.0, news) == pytest.approx(109.5557418, abs=1e-6)
    assert privleak(0.0, books) == pytest.approx(85.4255516, abs=1e-6)
    assert privleak(0.75, 0.5, compat="paper") == pytest.approx(50)
    assert privleak(0.5, 0.5, compat="openunlearning") == pytest.approx(0)
    with pytest.raises(Unavailable, match="zero"):
        privleak(0.5, 1.0)


def test_min_k_of_two_tokens():  # M3
    item = scored("forget", "short", [-1.0, -2.0])
    with pytest.raises(Unavailable):
        membership.min_k_score(item, 0.2, compat="muse")
    assert membership.lowest_mean([-1.0, -2.0], 0.2, compat="openunlearning") == -2.0
    assert membership.min_k_score(item, 0.2) == -2.0


ROWS = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5], [0.05, 0.05, 0.9]])
TARGETS = [0, 2, 1, 2]


def test_min_k_plus_plus():  # I1
    logs = np.log(ROWS)
    mu = (ROWS * logs).sum(1)
    sigma2 = (ROWS * logs**2).sum(1) - mu**2
    logp = logs[range(4), TARGETS]
    assert mu == pytest.approx([-0.801819, -0.897946, -1.039721, -0.394398], abs=1e-6)
    assert sigma2 == pytest.approx([0.494387, 0.315314, 0.120113, 0.751882], abs=1e-6)
    assert membership.standardised(logp, mu, sigma2) == pytest.approx([0.633092, -0.544990, -1.0, 0.333333], abs=1e-6)
    item = scored("forget", "a", logp, mu=mu, sigma2=sigma2)
    assert [membership.min_k_score(item, k) for k in (0.25, 0.5)] == pytest.approx([-1.3862944, -1.2951336], abs=1e-6)
    plus = [membership.min_k_plus_plus_score(item, k) for k in (0.25, 0.5)]
    assert plus == pytest.approx([-1.0, -0.7724948], abs=1e-6)


def test_uniform_row_has_a_finite_score():  # I2
    uniform = math.log(1 / 3)
    assert membership.standardised([uniform], [uniform], [0.0]) == [0.0]
    assert np.isfinite(membership.standardised([-5.0], [uniform], [-1e-9])).all()


def test_compressed_length():  # I3
    assert (len(zlib.compress(b"")), len(zlib.compress(b"a" * 100))) == (8, 12)
    item = scored("forget", "a", [-2.0, -4.0])
    assert membership.zlib_score(item) == pytest.approx(-3.0 / item.zlib_bytes)


def test_token_sets_of_the_compat_variants():
    item = scored("forget", "a", [-1.0, -2.0, -6.0], eos=True)
    assert membership.loss_score(item) == pytest.approx(-1.5)
    assert membership.loss_score(item, compat="openunlearning") == pytest.approx(-3.0)
    assert membership.min_k_score(item, 0.4) == pytest.approx(-2.0)
    assert membership.min_k_score(item, 0.4, compat="muse") == pytest.approx(-6.0)
    text = scored("forget", "t", [-1.0, -2.0, -6.0])
    assert membership.min_k_score(text, 0.4) == pytest.approx(-6.0)
    assert membership.min_k_score(text, 0.4, compat="openunlearning") == pytest.approx(-2.0)


def test_scores_are_high_for_members():
    known, unknown = scored("forget", "a", [-0.1] * 4), scored("forget", "b", [-3.0] * 4)
    for score in (membership.loss_score, membership.zlib_score):
        assert score(known) > score(unknown)
    assert membership.reference_score(known, unknown) > 0
    assert membership.lowercase_score(known, unknown) == pytest.approx(30.0)
    with pytest.raises(Unavailable, match="statistics"):
        membership.min_k_plus_plus_score(scored("forget", "a", [-1.0], mu=[], sigma2=[]), 0.2)


def test_fluency():  # X5
    tokens = "a b a b c"
    assert behaviour.ngram_entropy(tokens.split(), 2) == pytest.approx(1.5)
    assert behaviour.ngram_entropy(tokens.split(), 3) == pytest.approx(1.5849625, abs=1e-7)
    assert behaviour.fluency(tokens) == pytest.approx(1.5566416, abs=1e-7)
    assert behaviour.fluency("a a a a a") == behaviour.fluency("a") == behaviour.fluency("") == 0.0


def test_repetition():
    assert behaviour.repetition("a b c d e f") == 0.0
    assert behaviour.repetition("x x x x x x") == pytest.approx(1 - 1 / 3)
    assert behaviour.repetition("one two") == 0.0


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("I'm sorry, but I do not know.", "refusal"),
        ("Sorry, but I really do not know this.", "refusal"),
        ("", "refusal"),
        ("...", "refusal"),
        ("Her name is Hsiao Yun-Hwa.", "leak"),
        ("She lives in Lisbon and paints boats", "hallucination"),
    ],
)
def test_behaviour_classes(prediction, expected):
    assert behaviour.classify(prediction, "The author's full name is Hsiao Yun-Hwa.", REFUSALS) == expected


def test_behaviour_rates_sum_to_one_per_item():
    texts = ["", "I don't know who that is.", "Anna", "nothing here fits", "Anna wrote it"]
    view = View(Records([], [generated("forget", str(i), t, "Anna wrote the red book") for i, t in enumerate(texts)]))
    columns = [
        behaviour.behaviour_column(view, "forget", c, REFUSALS).values for c in ("refusal", "leak", "hallucination")
    ]
    np.testing.assert_array_equal(np.sum(columns, axis=0), 1.0)
    assert behaviour.empty_column(view, "forget").values.tolist() == [1, 0, 0, 0, 0]


def test_our_refusals_are_refusals_and_load(tmp_path):
    assert len(REFUSALS) == len(set(REFUSALS)) == 40
    assert all(behaviour.is_refusal(sentence.lower(), REFUSALS) for sentence in REFUSALS)
    path = tmp_path / "refusals.txt"
    path.write_text("No.\n\nNever.\nNo.\n")
    assert load_refusals(path) == ("No.", "Never.")
    assert load_refusals() == REFUSALS
    path.write_text("\n")
    with pytest.raises(InputDataError, match="no sentence"):
        load_refusals(path)
    with pytest.raises(InputDataError, match="cannot read"):
        load_refusals(tmp_path / "absent.txt")


def test_nan_in_any_score_names_the_item():
    for field in ({"logp": [-1.0, np.nan]}, {"logp": [-1.0], "mu": [np.nan]}, {"logp": [-1.0], "sigma2": [np.nan]}):
        with pytest.raises(ValueError, match="retain/bad"):
            View(Records([scored("retain", "bad", **field)], []))
