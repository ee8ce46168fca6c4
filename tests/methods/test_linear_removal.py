# SPDX-License-Identifier: Apache-2.0
"""Removal from linear models against fitting without the rows, and the bound against the true residual."""

from __future__ import annotations

import math
import random
from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import minimize

from expunge.errors import InputDataError, RecipeError
from expunge.methods.linear.convex import LOSSES, gradient, hessian, minimise
from expunge.methods.linear.counts import NaiveBayes, NGramModel
from expunge.methods.linear.removal import (
    BudgetSpent,
    CertifiedHead,
    Guarantee,
    assumptions,
    remove_from_head,
    residual,
    train_head,
)
from expunge.methods.linear.ridge import Ridge, add_rows, fit_ridge, remove_rows

LOOSE = Guarantee(epsilon=1.0, delta=1e-4)


def problem(n: int = 120, d: int = 7, k: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, d)), draw.normal(size=(n, k))


def classes(n: int = 400, d: int = 8, k: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d))
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
    return x, np.where(x @ draw.normal(size=(d, k)) + 0.3 * draw.normal(size=(n, k)) > 0, 1.0, -1.0)


def same(one: Ridge, two: Ridge) -> None:
    np.testing.assert_allclose(one.weights, two.weights, rtol=0, atol=1e-10)
    np.testing.assert_allclose(one.gram, two.gram, rtol=0, atol=1e-10)
    assert one.n == two.n


def test_ridge_by_hand() -> None:
    # One feature, x = 1, 2 with y = 1, 3 and ridge 1: w = (1 + 6) / (1 + 4 + 1); without the second, 1 / 2.
    x, y = np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]])
    fit = fit_ridge(x, y, ridge=1.0)
    assert fit.weights.item() == pytest.approx(7 / 6, abs=1e-15)
    assert remove_rows(fit, x[1:], y[1:]).weights.item() == pytest.approx(0.5, abs=1e-15)


@pytest.mark.parametrize("rows", [[3], [0, 5, 119], list(range(40)), list(range(0, 120, 2)), list(range(120))])
def test_ridge_without_rows_is_the_fit_without_them(rows: list[int]) -> None:
    x, y = problem()
    stay = np.setdiff1d(np.arange(len(x)), rows)
    same(remove_rows(fit_ridge(x, y, ridge=0.3), x[rows], y[rows]), fit_ridge(x[stay], y[stay], ridge=0.3))


def test_ridge_one_by_one_in_any_order_a_hundred_times() -> None:
    x, y = problem(n=150)
    order = random.Random(0).sample(range(150), 100)
    fit = fit_ridge(x, y, ridge=0.3)
    for row in order:
        fit = remove_rows(fit, x[[row]], y[[row]])
    stay = np.setdiff1d(np.arange(150), order)
    same(fit, fit_ridge(x[stay], y[stay], ridge=0.3))
    back = add_rows(fit, x[order], y[order])
    same(back, fit_ridge(x, y, ridge=0.3))


def test_ridge_order_does_not_matter() -> None:
    x, y = problem(n=20)
    fits = []
    for order in permutations([1, 7, 12]):
        fit = fit_ridge(x, y, ridge=0.1)
        for row in order:
            fit = remove_rows(fit, x[[row]], y[[row]])
        fits.append(fit)
    for fit in fits[1:]:
        same(fits[0], fit)


def test_ridge_with_a_row_that_carries_a_direction_alone() -> None:
    """Leverage next to 1: the small system is singular, and the fit is solved anew."""
    x, y = problem(n=30, d=4)
    x[:, 3] = 0
    x[5, 3] = 1e3
    stay = np.setdiff1d(np.arange(30), [5])
    fit = remove_rows(fit_ridge(x, y, ridge=1e-3), x[[5]], y[[5]])
    np.testing.assert_allclose(fit.weights, fit_ridge(x[stay], y[stay], ridge=1e-3).weights, atol=1e-6)
    assert fit.updates == 0


def test_ridge_refuses_what_was_never_in_it() -> None:
    x, y = problem(n=10, d=3)
    fit = fit_ridge(x, y, ridge=0.1)
    with pytest.raises(InputDataError, match="were not in the fit"):
        remove_rows(fit, 100 * np.ones((1, 3)), np.ones((1, 2)))
    with pytest.raises(InputDataError, match="more than the fit holds"):
        remove_rows(fit, np.ones((11, 3)), np.ones((11, 2)))
    with pytest.raises(InputDataError, match="another shape"):
        remove_rows(fit, np.ones((1, 4)), np.ones((1, 2)))
    with pytest.raises(InputDataError, match="not finite"):
        fit_ridge(np.full((2, 2), np.nan), np.ones((2, 1)), ridge=1.0)
    with pytest.raises(RecipeError, match="above 0"):
        fit_ridge(x, y, ridge=0.0)


TEXTS = [[1, 2, 3, 1, 2], [2, 2, 2], [4], [], [1, 2, 3]]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngram_counts_without_a_text_are_those_of_never_having_it(order: int) -> None:
    for gone in range(len(TEXTS)):
        model, without = NGramModel(order, 5), NGramModel(order, 5)
        for k, text in enumerate(TEXTS):
            model.add(text)
            if k != gone:
                without.add(text)
        model.remove(TEXTS[gone])
        assert model == without
        assert set(model.grams) == set(without.grams)  # not even an empty entry stays behind


def test_ngram_probabilities_by_hand() -> None:
    model = NGramModel(2, 3, smoothing=0.5)
    model.add([0, 1])
    model.add([0, 2])
    # p(0 | start) = 2.5 / 3.5, p(1 | 0) = 1.5 / 3.5
    assert model.logp([0, 1]) == pytest.approx(math.log(2.5 / 3.5) + math.log(1.5 / 3.5), abs=1e-12)
    total = sum(math.exp(model.logp([0, k]) - model.logp([0])) for k in range(3))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_ngram_refuses_what_it_never_counted() -> None:
    model = NGramModel(2, 5)
    model.add([1, 2])
    before = (dict(model.grams), dict(model.contexts), model.sequences)
    with pytest.raises(InputDataError, match="fall below 0"):
        model.remove([2, 1])
    assert (dict(model.grams), dict(model.contexts), model.sequences) == before
    with pytest.raises(InputDataError, match="no token id"):
        model.add([5])
    with pytest.raises(RecipeError, match="order"):
        NGramModel(0, 5)


def test_naive_bayes_by_hand_and_without_an_example() -> None:
    model, without = NaiveBayes(2), NaiveBayes(2)
    rows = [([0, 0, 1], "a"), ([1, 1], "b"), ([1], "b"), ([], "b")]
    for ids, label in rows:
        model.add(ids, label)
    found = model.log_posterior([0])
    # p(a) p(0|a) = 1/4 * 3/5, p(b) p(0|b) = 3/4 * 1/5: equal, so each has half.
    assert found["a"] == pytest.approx(math.log(0.5), abs=1e-12)
    for ids, label in rows[1:]:
        without.add(ids, label)
    model.remove([0, 0, 1], "a")
    assert model == without
    assert "a" not in model.labels
    with pytest.raises(InputDataError, match="not counted"):
        model.remove([0], "a")
    assert NaiveBayes(2).log_posterior([0]) == {}


@pytest.mark.parametrize("name", list(LOSSES))
def test_derivatives_against_differences(name: str) -> None:
    x, y = classes(n=20, d=4)
    w, noise, loss = np.array([0.3, -0.2, 0.5, 0.1]), np.array([0.1, 0.2, -0.3, 0.4]), LOSSES[name]

    def value(point: np.ndarray) -> float:
        return float(loss.value(x @ point, y[:, 0]).sum() + 0.5 * 0.01 * len(x) * point @ point + noise @ point)

    eye, step = np.eye(4), 1e-5
    slope = [(value(w + step * e) - value(w - step * e)) / (2 * step) for e in eye]
    np.testing.assert_allclose(gradient(loss, x, y[:, 0], w, ridge=0.01, noise_D=noise), slope, atol=1e-7)
    bends = [gradient(loss, x, y[:, 0], w + step * e, ridge=0.01, noise_D=noise)
             - gradient(loss, x, y[:, 0], w - step * e, ridge=0.01, noise_D=noise) for e in eye]  # fmt: skip
    np.testing.assert_allclose(hessian(loss, x, y[:, 0], w, ridge=0.01), np.array(bends) / (2 * step), atol=1e-6)
    best = minimize(value, np.zeros(4), method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose(minimise(loss, x, y[:, 0], ridge=0.01, noise_D=noise), best.x, atol=1e-5)


def test_gamma_bounds_the_change_of_the_second_derivative() -> None:
    scores = np.linspace(-10, 10, 20001)
    bend = LOSSES["logistic"].bend(scores, np.ones_like(scores))
    steepest = np.abs(np.diff(bend) / np.diff(scores)).max()
    assert steepest == pytest.approx(1 / (6 * math.sqrt(3)), rel=1e-4)
    assert steepest <= LOSSES["logistic"].gamma


def test_one_newton_step_on_a_quadratic_is_retraining() -> None:
    draw = np.random.default_rng(3)
    x, y = classes(n=60, d=5)
    y = draw.normal(size=y.shape)
    head = train_head(x, y, guarantee=LOOSE, noise_std=2.0, ridge=0.05, loss="squared", seed=1)
    gone = [4, 17, 33]
    stay = np.setdiff1d(np.arange(60), gone)
    after = remove_from_head(head, x[stay], y[stay], x[gone], y[gone])
    anew = minimise(LOSSES["squared"], x[stay], y[stay, 0], ridge=0.05, noise_D=head.noise[:, 0])
    np.testing.assert_allclose(after.weights[:, 0], anew, rtol=0, atol=1e-10)
    assert after.spent.max() < 1e-10


@pytest.mark.parametrize("heads", [1, 3])
def test_the_true_residual_stays_under_the_bound_over_a_hundred_removals(heads: int) -> None:
    x, y = classes(n=500, k=heads)
    head = train_head(x, y, guarantee=LOOSE, noise_std=50.0 * heads, ridge=0.02 * heads, seed=0)
    stay = np.arange(500)
    assert (residual(head, x, y) <= head.spent + 1e-12).all()
    tight = []
    for row in random.Random(1).sample(range(500), 100):
        stay = stay[stay != row]
        head = remove_from_head(head, x[stay], y[stay], x[[row]], y[[row]])
        true = residual(head, x[stay], y[stay])
        assert (true <= head.spent).all()
        tight.append(true.max() / head.spent.max())
    assert head.removed == 100
    assert head.n == 400
    assert max(tight) > 1e-4  # the bound says something: it is not beyond all measure


def test_removal_comes_near_to_retraining() -> None:
    x, y = classes(n=500)
    head = train_head(x, y, guarantee=LOOSE, noise_std=20.0, ridge=1e-2, seed=0)
    gone = list(range(20))
    after = remove_from_head(head, x[20:], y[20:], x[gone], y[gone])
    anew = minimise(LOSSES["logistic"], x[20:], y[20:, 0], ridge=1e-2, noise_D=head.noise[:, 0])
    before = np.linalg.norm(head.weights[:, 0] - anew)
    assert np.linalg.norm(after.weights[:, 0] - anew) < 0.05 * before


def test_the_budget_by_hand_and_its_end() -> None:
    # delta = 1.5 exp(-c^2/2) = 1e-4 gives c = sqrt(2 ln 15000) = 4.385386; budget = s epsilon / c.
    assert LOOSE.c == pytest.approx(4.385386, abs=1e-6)
    assert LOOSE.budget(10.0) == pytest.approx(10 / 4.385386, abs=1e-5)
    assert LOOSE.share(4) == Guarantee(0.25, 2.5e-5)
    x, y = classes(n=300)
    head = train_head(x, y, guarantee=LOOSE, noise_std=2.0, ridge=1e-2, seed=0)
    last = spend(head, x, y)
    assert last.spent.max() <= last.budget
    assert 0 < last.removed < 299


def spend(head: CertifiedHead, x: np.ndarray, y: np.ndarray) -> CertifiedHead:
    """Remove one row after the other until the budget refuses; return the last head that it allowed."""
    for row in range(len(x) - 1):
        try:
            head = remove_from_head(head, x[row + 1 :], y[row + 1 :], x[[row]], y[[row]])
        except BudgetSpent:
            return head
    raise AssertionError("the budget never ended")


def test_noise_is_never_used_twice() -> None:
    x, y = classes(n=50)
    head = train_head(x, y, guarantee=LOOSE, noise_std=5.0, ridge=0.1, seed=3)
    with pytest.raises(RecipeError, match="used to train another"):
        train_head(x, y, guarantee=LOOSE, noise_std=5.0, ridge=0.1, seed=3, used=frozenset([head.noise_digest]))
    fresh = [train_head(x, y, guarantee=LOOSE, noise_std=5.0, ridge=0.1).noise_digest for _ in range(2)]
    assert fresh[0] != fresh[1]


def test_a_resampled_noise_breaks_the_bound() -> None:
    """The residual is that of the noise the head was trained with; with another it is far beyond what was spent."""
    from dataclasses import replace

    x, y = classes(n=100)
    head = train_head(x, y, guarantee=LOOSE, noise_std=5.0, ridge=0.1, seed=3)
    other = replace(head, noise=np.random.default_rng(9).normal(size=head.noise.shape))
    assert (residual(other, x, y) > 1000 * np.maximum(other.spent, 1e-9)).all()


def wrong(head: CertifiedHead, x: np.ndarray, y: np.ndarray) -> None:
    remove_from_head(head, x[:-1] * 0.5, y[:-1], x[-1:], y[-1:])


def test_bad_input_is_named() -> None:
    x, y = classes(n=50)
    head = train_head(x, y, guarantee=LOOSE, noise_std=5.0, ridge=0.1, seed=3)
    with pytest.raises(InputDataError, match="not the rows of the head"):
        wrong(head, x, y)
    with pytest.raises(InputDataError, match="trained on 50 rows"):
        remove_from_head(head, x[:-2], y[:-2], x[-1:], y[-1:])
    with pytest.raises(InputDataError, match="norm above 1"):
        train_head(3 * x, y, guarantee=LOOSE, noise_std=5.0, ridge=0.1)
    with pytest.raises(InputDataError, match="-1 or 1"):
        train_head(x, (y + 1) / 2, guarantee=LOOSE, noise_std=5.0, ridge=0.1)
    for settings in ({"noise_std": 0.0, "ridge": 0.1}, {"noise_std": 1.0, "ridge": 0.0}):
        with pytest.raises(RecipeError, match="above 0"):
            train_head(x, y, guarantee=LOOSE, **settings)
    with pytest.raises(RecipeError, match="no such loss"):
        train_head(x, y, guarantee=LOOSE, noise_std=1.0, ridge=0.1, loss="hinge")
    with pytest.raises(RecipeError, match="delta"):
        Guarantee(1.0, 1.5)
    assert any("features" in line for line in assumptions(head))
