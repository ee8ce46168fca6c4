# SPDX-License-Identifier: Apache-2.0
"""How much privacy noisy steps on Poisson samples cost: three accountants, the noise for a wanted epsilon, groups.

Every number is for adding or removing one unit. A step draws each unit with probability q, sums gradients of L2 norm
at most C and adds Gaussian noise of standard deviation sigma C. None of the three is the central-limit (GDP)
approximation, which can be below the true epsilon.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal

from expunge.errors import RecipeError, require

AccountantName = Literal["rdp", "prv", "pld"]
ACCOUNTANTS: tuple[AccountantName, ...] = ("rdp", "prv", "pld")
_ORDERS = tuple(1 + x / 10 for x in range(1, 100)) + tuple(float(x) for x in range(12, 64))


@dataclass(frozen=True, slots=True)
class Mechanism:
    """What happened to the data: `steps` noisy sums.

    Attributes:
        rate: probability q that a step draws a unit, in (0, 1].
        noise_multiplier: sigma, the noise's standard deviation over the largest norm of a unit's gradient, at least 0.
        steps: noisy sums that were released, at least 0.
    """

    rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or not self.noise_multiplier >= 0 or self.steps < 0:
            raise ValueError(f"out of range: {self}")


def epsilon(mechanism: Mechanism, delta: float, accountant: AccountantName) -> float:
    """Return an epsilon for which (epsilon, delta) holds; infinity where there is no noise, 0 before the first step.

    Args:
        mechanism: rate, noise and steps.
        delta: probability in (0, 1).
        accountant: `rdp` (Renyi moments), `prv` (privacy random variables, numerical error added on top) or `pld`
            (privacy loss distributions, discretised pessimistically).

    Raises:
        MissingDependency: without the extra `dp`.
        ValueError: for a delta outside (0, 1).
        RecipeError: where the accountant cannot compute it.

    Source: Mironov et al., Renyi Differential Privacy of the Sampled Gaussian Mechanism, 2019 (arXiv:1908.10530), with
    the conversion of Balle et al. 2020 (arXiv:1905.09982), theorem 21; Gopi et al., Numerical Composition of
    Differential Privacy, 2021 (arXiv:2106.02848); Doroshenko et al., Connect the Dots, 2022 (arXiv:2207.04380).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta}")
    if mechanism.steps == 0:
        return 0.0
    if mechanism.noise_multiplier == 0:
        return math.inf
    return _ACCOUNTANTS[accountant](mechanism, delta)


def side_by_side(mechanism: Mechanism, delta: float) -> dict[AccountantName, float | None]:
    """Return the epsilon of every accountant; None where one cannot compute it. Raises as `epsilon`."""
    found: dict[AccountantName, float | None] = {}
    for name in ACCOUNTANTS:
        try:
            value = epsilon(mechanism, delta, name)
        except RecipeError:
            value = math.inf
        found[name] = value if math.isfinite(value) else None
    return found


def _rdp(mechanism: Mechanism, delta: float) -> float:
    require("opacus", "dp")
    rdp: Any = import_module("opacus.accountants.analysis.rdp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the largest: the bound holds at every order
        moments = rdp.compute_rdp(
            q=mechanism.rate, noise_multiplier=mechanism.noise_multiplier, steps=mechanism.steps, orders=_ORDERS
        )
        found, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=moments, delta=delta)
    return max(0.0, float(found))


def _prv(mechanism: Mechanism, delta: float) -> float:
    require("opacus", "dp")
    accountant: Any = import_module("opacus.accountants").PRVAccountant()
    accountant.history = [(mechanism.noise_multiplier, mechanism.rate, mechanism.steps)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it adds its own error bound to what it returns
            found = float(accountant.get_epsilon(delta))
    except (ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise _out_of_reach("prv", mechanism, str(error)) from None
    if not math.isfinite(found):
        raise _out_of_reach("prv", mechanism, f"it found {found}")
    return found


def _pld(mechanism: Mechanism, delta: float) -> float:
    require("dp_accounting", "dp")
    dp_accounting: Any = import_module("dp_accounting")
    pld: Any = import_module("dp_accounting.pld")
    sampled = dp_accounting.PoissonSampledDpEvent(
        mechanism.rate, dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    )
    accountant = pld.PLDAccountant(value_discretization_interval=_width(mechanism))
    accountant.compose(dp_accounting.SelfComposedDpEvent(sampled, mechanism.steps))
    return float(accountant.get_epsilon(delta))


def _width(mechanism: Mechanism) -> float:
    """Return the width of the cells that losses are rounded up to: wide where losses are, so that few are needed."""
    return 1e-4 * max(1.0, mechanism.noise_multiplier**-2)


_ACCOUNTANTS: Mapping[AccountantName, Callable[[Mechanism, float], float]] = {"rdp": _rdp, "prv": _prv, "pld": _pld}


def _out_of_reach(name: AccountantName, mechanism: Mechanism, why: str) -> RecipeError:
    return RecipeError(
        f"this accountant cannot compute an epsilon here: {why or 'it ran out of range'}",
        field="training.privacy.accountant", value=name,
        remedy=f"Use rdp, or more noise than {mechanism.noise_multiplier:g}",
    )  # fmt: skip


def gaussian_epsilon(noise_multiplier: float, steps: int, delta: float) -> float:
    """Return the exact epsilon of `steps` noisy sums over all units (q = 1), to 1e-10.

    Source: Balle and Wang, Improving the Gaussian Mechanism for Differential Privacy, 2018 (arXiv:1805.06530),
    theorem 8, with mu = sqrt(steps) / sigma.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu = math.sqrt(steps) / noise_multiplier

    def excess(wanted: float) -> float:
        right = wanted + norm.logcdf(-wanted / mu - mu / 2)
        return float(norm.cdf(mu / 2 - wanted / mu) - math.exp(right) - delta)

    if excess(0.0) <= 0:
        return 0.0
    upper = 1.0
    while excess(upper) > 0:
        upper *= 2
    return float(brentq(excess, 0.0, upper, xtol=1e-10))


def noise_for(
    wanted: float, *, delta: float, rate: float, steps: int, accountant: AccountantName, tolerance: float = 1e-3
) -> float:
    """Return the smallest noise multiplier whose epsilon does not exceed `wanted`, found to a relative `tolerance`.

    The search ends on the side where the wanted epsilon holds.

    Args:
        wanted: epsilon, above 0.
        delta: probability in (0, 1).
        rate: probability q that a step draws a unit.
        steps: noisy sums, at least 1.
        accountant: whose epsilon counts.
        tolerance: relative width at which the search ends.

    Raises:
        RecipeError: if even noise of 10,000 times the norm does not give so small an epsilon.
    """
    mechanism = Mechanism(rate, 1.0, steps)

    def holds(sigma: float) -> bool:
        try:
            return epsilon(replace(mechanism, noise_multiplier=sigma), delta, accountant) <= wanted
        except RecipeError:
            return False

    low, high = 0.05, 1.0
    while not holds(high):
        low, high = high, high * 2
        if high > 1e4:
            raise RecipeError(
                "no noise gives so small an epsilon under this accountant", field="training.privacy.epsilon",
                value=wanted, remedy="Ask for a larger epsilon or delta, or use accountant: pld",
            )  # fmt: skip
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def group(wanted: float, delta: float, size: int) -> tuple[float, float]:
    """Return epsilon and delta for a group of `size` units, from those for one: k eps and k e^((k-1) eps) delta.

    A delta of 1 or more says nothing; it is returned as it is, and infinity where it is too large for a float.

    Raises:
        ValueError: for a size below 1.

    Source: Vadhan, The Complexity of Differential Privacy, 2017, lemma 2.2. Changing units one after the other adds
    delta (1 + e^eps + ... + e^((k-1) eps)); here every term counts as the largest.
    """
    if size < 1:
        raise ValueError(f"a group has at least one unit, got {size}")
    exponent = math.log(size) + (size - 1) * wanted + math.log(delta)
    return size * wanted, math.exp(exponent) if exponent < 700 else math.inf
