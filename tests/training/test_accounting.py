# SPDX-License-Identifier: Apache-2.0
"""Accountants against published tables and closed forms, and the noise that a wanted epsilon takes."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import pairwise

import pytest

from expunge.errors import MissingDependency, RecipeError
from expunge.training import accounting
from expunge.training.accounting import ACCOUNTANTS, Mechanism, epsilon, gaussian_epsilon, group, noise_for

_missing = [name for name in ("opacus", "dp_accounting") if find_spec(name) is None]
needs_dp = pytest.mark.skipif(bool(_missing), reason=f"needs the extra `dp`: {_missing} missing")


@needs_dp
@pytest.mark.parametrize(
    ("rate", "sigma", "steps", "delta", "rdp", "prv", "pld"),
    [
        (0.01, 1.0, 1000, 1e-5, 2.1014, 1.8384, 1.8282),
        (0.01, 1.1, 10000, 1e-5, 5.632, 5.2029, 5.1926),
        (0.004, 0.8, 2500, 1e-6, 2.7746, 2.2103, 2.2001),
    ],
)
def test_reference_table(
    rate: float, sigma: float, steps: int, delta: float, rdp: float, prv: float, pld: float
) -> None:
    mechanism = Mechanism(rate, sigma, steps)
    found = accounting.side_by_side(mechanism, delta)
    assert found == pytest.approx({"rdp": rdp, "prv": prv, "pld": pld}, abs=1e-3)


@needs_dp
@pytest.mark.parametrize(("sigma", "steps", "rdp", "exact"), [(10, 100, 4.7285, 4.3772), (5, 1, 0.7945, 0.7255)])
def test_without_sampling_the_gaussian_is_known_exactly(sigma: float, steps: int, rdp: float, exact: float) -> None:
    mechanism = Mechanism(1.0, sigma, steps)
    assert gaussian_epsilon(sigma, steps, 1e-5) == pytest.approx(exact, abs=1e-3)
    assert epsilon(mechanism, 1e-5, "rdp") == pytest.approx(rdp, abs=1e-3)
    found = epsilon(mechanism, 1e-5, "pld")
    assert gaussian_epsilon(sigma, steps, 1e-5) <= found == pytest.approx(exact, abs=2e-3)


@needs_dp
def test_rdp_without_sampling_is_its_closed_form() -> None:
    """alpha T / (2 sigma^2) - (ln delta + ln alpha) / (alpha - 1) + ln((alpha - 1) / alpha), at the best order."""
    sigma, steps, delta = 7.0, 30, 1e-6
    by_hand = min(
        a * steps / (2 * sigma**2) - (math.log(delta) + math.log(a)) / (a - 1) + math.log((a - 1) / a)
        for a in accounting._ORDERS
    )
    assert epsilon(Mechanism(1.0, sigma, steps), delta, "rdp") == pytest.approx(by_hand, rel=1e-9)


@needs_dp
@pytest.mark.parametrize("name", ACCOUNTANTS)
def test_more_steps_a_higher_rate_or_less_noise_cost_more(name: accounting.AccountantName) -> None:
    steps = [epsilon(Mechanism(0.05, 1.0, steps), 1e-5, name) for steps in (0, 10, 40, 160)]
    rates = [epsilon(Mechanism(rate, 1.0, 40), 1e-5, name) for rate in (0.02, 0.05, 0.2)]
    noises = [epsilon(Mechanism(0.05, sigma, 40), 1e-5, name) for sigma in (4.0, 2.0, 1.0, 0.6, 0.0)]
    assert all(a < b for line in (steps, rates, noises) for a, b in pairwise(line))
    assert steps[0] == 0.0
    assert noises[-1] == math.inf


@needs_dp
@pytest.mark.parametrize(("name", "published"), [("rdp", 0.6158), ("prv", 0.5865), ("pld", None)])
def test_noise_for_a_wanted_epsilon(name: accounting.AccountantName, published: float | None) -> None:
    sigma = noise_for(8.0, delta=1e-5, rate=0.01, steps=1000, accountant=name)
    assert 7.95 < epsilon(Mechanism(0.01, sigma, 1000), 1e-5, name) <= 8.0
    assert epsilon(Mechanism(0.01, sigma * 0.998, 1000), 1e-5, name) > 8.0
    if published is not None:  # found there to 0.01 in epsilon
        assert sigma == pytest.approx(published, abs=1.5e-3)


@needs_dp
def test_an_epsilon_out_of_reach_is_named() -> None:
    with pytest.raises(RecipeError, match=r"training.privacy.epsilon: no noise gives so small an epsilon"):
        noise_for(1e-5, delta=1e-7, rate=1.0, steps=100, accountant="rdp")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_group_is_a_chain_of_single_changes(size: int) -> None:
    """Each change maps p to at most e^eps p + delta: after k of them e^(k eps) p + delta sum_j e^(j eps)."""
    multiplied, added = 1.0, 0.0
    for _ in range(size):
        multiplied, added = math.exp(0.7) * multiplied, math.exp(0.7) * added + 1e-6
    eps, delta = group(0.7, 1e-6, size)
    assert math.exp(eps) == pytest.approx(multiplied)
    assert delta >= added * (1 - 1e-12)
    assert delta == pytest.approx(size * math.exp((size - 1) * 0.7) * 1e-6)


def test_a_group_too_large_says_nothing() -> None:
    assert group(8.0, 1e-5, 500) == (4000.0, math.inf)
    with pytest.raises(ValueError, match="at least one"):
        group(1.0, 1e-5, 0)


@pytest.mark.parametrize(("name", "package"), [("rdp", "opacus"), ("prv", "opacus"), ("pld", "dp_accounting")])
def test_without_the_extra_the_error_names_it(
    name: accounting.AccountantName, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=rf"{package}: .*pip install 'expunge\[dp\]'") as caught:
        epsilon(Mechanism(0.1, 1.0, 10), 1e-5, name)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("wrong", [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.5, -1.0, 1), (0.5, 1.0, -1), (0.5, math.nan, 1)])
def test_what_is_out_of_range_is_refused(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Mechanism(*wrong)
    with pytest.raises(ValueError, match="delta"):
        epsilon(Mechanism(0.5, 1.0, 1), 0.0, "rdp")
