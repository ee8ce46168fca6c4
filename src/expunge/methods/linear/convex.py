# SPDX-License-Identifier: Apache-2.0
"""Convex losses on linear scores, and the minimiser of a perturbed objective.

L(w) = sum_i loss(x_i . w, y_i) + (ridge n / 2) |w|^2 + b . w, with b drawn once before training.
Source: Guo, Goldstein, Hannun, van der Maaten, "Certified Data Removal from Machine Learning Models", ICML 2020,
section 3 (objective perturbation, Newton removal). Shape suffixes: N rows, D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, log_expit

from expunge.errors import ExpungeError

Floats = NDArray[np.float64]
_STEPS = 200


class Loss(ABC):
    """A loss of score and label, per row.

    Class attributes:
        name: of it.
        gamma: how fast its second derivative can change with the score.
    """

    name: ClassVar[str]
    gamma: ClassVar[float]

    @abstractmethod
    def value(self, score_N: Floats, y_N: Floats) -> Floats:
        """Return the loss per row, [N]."""

    @abstractmethod
    def slope(self, score_N: Floats, y_N: Floats) -> Floats:
        """Return its derivative by the score, [N]."""

    @abstractmethod
    def bend(self, score_N: Floats, y_N: Floats) -> Floats:
        """Return its second derivative by the score, [N]."""


class Logistic(Loss):
    """-log sigmoid(y s), labels -1 and 1. |d3/ds3| is at most 1/(6 sqrt 3), below the 1/4 of the paper."""

    name: ClassVar[str] = "logistic"
    gamma: ClassVar[float] = 0.25

    def value(self, score_N: Floats, y_N: Floats) -> Floats:
        """Return the loss per row, nats."""
        return np.asarray(-log_expit(y_N * score_N))

    def slope(self, score_N: Floats, y_N: Floats) -> Floats:
        """Return -y sigmoid(-y s)."""
        return np.asarray(-y_N * expit(-y_N * score_N))

    def bend(self, score_N: Floats, y_N: Floats) -> Floats:
        """Return sigmoid(s) sigmoid(-s)."""
        del y_N
        return np.asarray(expit(score_N) * expit(-score_N))


class Squared(Loss):
    """(s - y)^2 / 2. Its second derivative is constant, so one Newton step is the minimiser."""

    name: ClassVar[str] = "squared"
    gamma: ClassVar[float] = 0.0

    def value(self, score_N: Floats, y_N: Floats) -> Floats:
        """Return half the squared error per row."""
        return np.asarray(0.5 * (score_N - y_N) ** 2)

    def slope(self, score_N: Floats, y_N: Floats) -> Floats:
        """Return the error."""
        return score_N - y_N

    def bend(self, score_N: Floats, y_N: Floats) -> Floats:
        """Return 1."""
        del y_N
        return np.ones_like(score_N)


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (Logistic(), Squared())}


def gradient(loss: Loss, x_ND: Floats, y_N: Floats, w_D: Floats, *, ridge: float, noise_D: Floats) -> Floats:
    """Return the gradient of the perturbed objective, [D]."""
    return np.asarray(x_ND.T @ loss.slope(x_ND @ w_D, y_N) + ridge * len(x_ND) * w_D + noise_D)


def hessian(loss: Loss, x_ND: Floats, y_N: Floats, w_D: Floats, *, ridge: float) -> Floats:
    """Return the Hessian of the objective, [D, D]; the noise is linear and adds nothing."""
    bend_N = loss.bend(x_ND @ w_D, y_N)
    return np.asarray((x_ND.T * bend_N) @ x_ND + ridge * len(x_ND) * np.eye(x_ND.shape[1]))


def minimise(
    loss: Loss, x_ND: Floats, y_N: Floats, *, ridge: float, noise_D: Floats, tolerance: float = 1e-10
) -> Floats:
    """Return the minimiser of the perturbed objective by Newton's method with halved steps, [D].

    Args:
        loss: per row.
        x_ND: features, [N, D].
        y_N: labels, [N].
        ridge: penalty per row.
        noise_D: the perturbation, [D].
        tolerance: largest norm of the gradient at the end, relative to the number of rows.

    Raises:
        ExpungeError: if that is not reached.
    """

    def objective(w_D: Floats) -> float:
        penalty = 0.5 * ridge * len(x_ND) * float(w_D @ w_D)
        return float(loss.value(x_ND @ w_D, y_N).sum()) + penalty + float(noise_D @ w_D)

    w_D = np.zeros(x_ND.shape[1])
    for _ in range(_STEPS):
        slope_D = gradient(loss, x_ND, y_N, w_D, ridge=ridge, noise_D=noise_D)
        if np.linalg.norm(slope_D) <= tolerance * len(x_ND):
            return w_D
        step_D = cho_solve(cho_factor(hessian(loss, x_ND, y_N, w_D, ridge=ridge)), slope_D)
        here, size = objective(w_D), 1.0
        here += 1e-12 * abs(here)  # next to the minimum the objective no longer tells a good step from rounding
        while objective(w_D - size * step_D) > here and size > 1e-8:
            size /= 2
        w_D = w_D - size * step_D
    raise ExpungeError("training did not reach its minimum", field="tolerance", value=tolerance,
                       remedy="Raise ridge, scale the features, or allow a larger tolerance")  # fmt: skip
