# SPDX-License-Identifier: Apache-2.0
"""Certified removal from convex heads: a Newton step per removal, a bound on what is left, a budget that runs out.

A head is trained with noise b ~ N(0, s^2 I) in its objective. After a removal the gradient of the objective without
the rows is not zero, but bounded; all that adds to it is counted: what training left over, the third order of each
Newton step, and the rounding of each linear solve. While the sum stays within budget = s epsilon / c, the head is
(epsilon, delta)-certified with delta = 1.5 exp(-c^2 / 2).
Source: Guo et al., ICML 2020, theorems 1 to 3. Of several heads (one per class) each gets an equal share of epsilon
and delta: basic composition. Shape suffixes: N rows, D features, K heads, M rows that leave.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigvalsh

from expunge.errors import ExpungeError, InputDataError, RecipeError
from expunge.methods.linear.convex import LOSSES, Floats, Loss, gradient, hessian, minimise

#: The exact spectral norm is rounded up by this factor, more than the error of a symmetric eigenvalue in float64.
_ROUND_UP = 1 + 1e-9


class BudgetSpent(ExpungeError):
    """The bound on what is left would pass the budget: the head must be trained anew, with fresh noise."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What is wanted: (epsilon, delta) for all removals together."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        """Refuse what is no guarantee.

        Raises:
            RecipeError: naming the number.
        """
        if not self.epsilon > 0:
            raise RecipeError("must be above 0", field="epsilon", value=self.epsilon, remedy="Such as 1")
        if not 0 < self.delta < 1:
            raise RecipeError("must lie between 0 and 1", field="delta", value=self.delta, remedy="Such as 1e-4")

    @property
    def c(self) -> float:
        """Solves delta = 1.5 exp(-c^2 / 2)."""
        return math.sqrt(2 * math.log(1.5 / self.delta))

    def budget(self, noise_std: float) -> float:
        """Return the largest norm of the gradient that the noise still hides."""
        return noise_std * self.epsilon / self.c

    def share(self, heads: int) -> Guarantee:
        """Return what one of several heads gets."""
        return Guarantee(self.epsilon / heads, self.delta / heads)


@dataclass(frozen=True, slots=True)
class CertifiedHead:
    """One or more linear heads on the same features, and how much of their budget is used.

    Attributes:
        weights: [D, K] float64.
        noise: the perturbation drawn before training, [D, K]; never drawn again.
        noise_std: s.
        loss: name of the loss.
        ridge: penalty per row.
        guarantee: (epsilon, delta) over all heads and removals.
        spent: bound on the norm of each head's gradient, [K].
        gram: X'X of the rows that are in it, [D, D]; its largest eigenvalue is the squared spectral norm.
        n: rows that are in it.
        removed: rows taken out since training.
    """

    weights: Floats
    noise: Floats
    noise_std: float
    loss: str
    ridge: float
    guarantee: Guarantee
    spent: Floats
    gram: Floats
    n: int
    removed: int = 0

    @property
    def budget(self) -> float:
        """What each head may spend."""
        return self.guarantee.share(self.weights.shape[1]).budget(self.noise_std)

    @property
    def noise_digest(self) -> str:
        """SHA-256 (hex) of the perturbation."""
        return hashlib.sha256(np.ascontiguousarray(self.noise).tobytes()).hexdigest()

    def scores(self, x_ND: Floats) -> Floats:
        """Return X W, [N, K]."""
        return np.asarray(x_ND @ self.weights)


def train_head(
    x_ND: Floats, y_NK: Floats, *, guarantee: Guarantee, noise_std: float, ridge: float, loss: str = "logistic",
    seed: int | None = None, used: frozenset[str] = frozenset(),
) -> CertifiedHead:  # fmt: skip
    """Return heads trained on a perturbed objective.

    Args:
        x_ND: features, [N, D], of norm at most 1 a row.
        y_NK: labels, [N, K], -1 or 1 for the logistic loss.
        guarantee: wanted over all removals.
        noise_std: s, the standard deviation of the perturbation; more allows more removals and costs accuracy.
        ridge: penalty per row, above 0.
        loss: logistic or squared.
        seed: of the perturbation; None draws from the system's source of randomness, as a guarantee needs.
        used: digests of perturbations that were used before, which must not come again.

    Raises:
        InputDataError: for features longer than 1, or labels that the loss does not know.
        RecipeError: for settings that give no guarantee, or noise that was used before.
        BudgetSpent: if training alone leaves more than the budget.
    """
    x_ND, y_NK = np.asarray(x_ND, np.float64), np.asarray(y_NK, np.float64)
    function = _checked(x_ND, y_NK, loss, ridge, noise_std)
    noise_DK = np.random.default_rng(seed).normal(0.0, noise_std, (x_ND.shape[1], y_NK.shape[1]))
    head = CertifiedHead(np.zeros_like(noise_DK), noise_DK, noise_std, loss, ridge, guarantee,
                         np.zeros(y_NK.shape[1]), x_ND.T @ x_ND, len(x_ND))  # fmt: skip
    if head.noise_digest in used:
        raise RecipeError("was used to train another head", field="noise", value=head.noise_digest[:16],
                          remedy="Draw another: leave out the seed")  # fmt: skip
    columns = range(y_NK.shape[1])
    weights = [minimise(function, x_ND, y_NK[:, k], ridge=ridge, noise_D=noise_DK[:, k]) for k in columns]
    left = [gradient(function, x_ND, y_NK[:, k], weights[k], ridge=ridge, noise_D=noise_DK[:, k]) for k in columns]
    head = replace(head, weights=np.stack(weights, axis=1), spent=np.array([np.linalg.norm(g) for g in left]))
    _check_budget(head)
    return head


def remove_from_head(
    head: CertifiedHead, x_ND: Floats, y_NK: Floats, x_MD: Floats, y_MK: Floats
) -> CertifiedHead:  # fmt: skip
    """Return the heads after one Newton step towards the minimum without some rows; the head given stays as it is.

    w' = w + H^-1 (M ridge w + sum over the rows of their gradient), H on the rows that stay; per head the budget pays
    gamma |X|_2 |step| |X step| for the third order, plus the rounding of the solve.

    Args:
        head: trained on both sets of rows.
        x_ND: features of the rows that stay, [N, D].
        y_NK: their labels, [N, K].
        x_MD: features of the rows that leave, [M, D].
        y_MK: their labels, [M, K].

    Raises:
        InputDataError: if the rows are not those of the head.
        BudgetSpent: if the budget does not suffice; the head given stays as it is.
    """
    x_ND, y_NK = np.asarray(x_ND, np.float64), np.asarray(y_NK, np.float64)
    x_MD, y_MK = np.asarray(x_MD, np.float64), np.asarray(y_MK, np.float64)
    if len(x_ND) + len(x_MD) != head.n:
        raise InputDataError(f"the head was trained on {head.n} rows", field="rows", value=len(x_ND) + len(x_MD),
                             remedy="Give all rows that stay and all that leave")  # fmt: skip
    gram = head.gram - x_MD.T @ x_MD
    if not np.allclose(gram, x_ND.T @ x_ND, rtol=1e-8, atol=1e-8):
        raise InputDataError("are not the rows of the head: their sums differ", field="rows",
                             remedy="Give the very rows that it was trained on")  # fmt: skip
    norm = math.sqrt(max(float(eigvalsh(gram, subset_by_index=(len(gram) - 1, len(gram) - 1))[0]), 0.0)) * _ROUND_UP
    steps = [_newton(head, k, x_ND, y_NK[:, k], x_MD, y_MK[:, k], norm) for k in range(head.weights.shape[1])]
    after = replace(
        head, weights=head.weights + np.stack([step for step, _ in steps], axis=1), gram=gram, n=len(x_ND),
        spent=head.spent + np.array([cost for _, cost in steps]), removed=head.removed + len(x_MD),
    )  # fmt: skip
    _check_budget(after)
    return after


def residual(head: CertifiedHead, x_ND: Floats, y_NK: Floats) -> Floats:
    """Return the true norm of each head's gradient on the rows that are in it, [K]; `spent` bounds it."""
    function = LOSSES[head.loss]
    found = [gradient(function, x_ND, y_NK[:, k], head.weights[:, k], ridge=head.ridge, noise_D=head.noise[:, k])
             for k in range(head.weights.shape[1])]  # fmt: skip
    return np.array([np.linalg.norm(g) for g in found])


def assumptions(head: CertifiedHead) -> tuple[str, ...]:
    """Return what must hold for the statement to hold; a certificate prints every line."""
    return (
        "The features do not depend on the rows that leave: they come from public data, or from an extractor with a "
        "guarantee of its own, whose epsilon adds to this one. Otherwise the statement covers the head alone.",
        "Every row of features has norm at most 1.",
        f"The loss is {head.loss} with ridge penalty {head.ridge:g} a row, minimised in float64.",
        "The noise was drawn once, before training, from a source nobody can predict, and was used for no other head.",
        "Requests are chosen without looking at the released weights.",
        f"Of {head.weights.shape[1]} heads each has an equal share of epsilon and delta (basic composition).",
    )


def _newton(
    head: CertifiedHead, k: int, x_ND: Floats, y_N: Floats, x_MD: Floats, y_M: Floats, norm: float
) -> tuple[Floats, float]:
    """Return the step of one head and what it costs of the budget."""
    function, w_D = LOSSES[head.loss], head.weights[:, k]
    delta_D = x_MD.T @ function.slope(x_MD @ w_D, y_M) + len(x_MD) * head.ridge * w_D
    hessian_DD = hessian(function, x_ND, y_N, w_D, ridge=head.ridge)
    step_D = cho_solve(cho_factor(hessian_DD), delta_D)
    third = function.gamma * norm * float(np.linalg.norm(step_D)) * float(np.linalg.norm(x_ND @ step_D))
    return step_D, third + float(np.linalg.norm(hessian_DD @ step_D - delta_D))


def _check_budget(head: CertifiedHead) -> None:
    if head.spent.max() > head.budget:
        raise BudgetSpent(
            f"the bound {head.spent.max():.3g} passes the budget {head.budget:.3g}", field="budget",
            value=head.removed, remedy="Train anew with fresh noise; more noise or ridge allows more removals",
        )  # fmt: skip


def _checked(x_ND: Floats, y_NK: Floats, loss: str, ridge: float, noise_std: float) -> Loss:
    if loss not in LOSSES:
        raise RecipeError("no such loss", field="loss", value=loss, remedy=f"Valid: {', '.join(LOSSES)}")
    for name, value in (("ridge", ridge), ("noise_std", noise_std)):
        if not value > 0:
            raise RecipeError("must be above 0", field=name, value=value, remedy="Without it there is no guarantee")
    if x_ND.ndim != 2 or y_NK.ndim != 2 or len(x_ND) != len(y_NK):
        raise InputDataError("need features [N, D] and labels [N, K]", field="rows", value=(x_ND.shape, y_NK.shape),
                             remedy="One row of each an example")  # fmt: skip
    longest = float(np.linalg.norm(x_ND, axis=1).max(initial=0.0))
    if longest > 1 + 1e-12:
        raise InputDataError("features have norm above 1", field="rows", value=longest,
                             remedy="Divide every row by its norm")  # fmt: skip
    if loss == "logistic" and not np.isin(y_NK, (-1.0, 1.0)).all():
        raise InputDataError("labels must be -1 or 1", field="labels", remedy="One column a class, 1 for it, else -1")
    return LOSSES[loss]
