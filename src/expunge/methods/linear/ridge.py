# SPDX-License-Identifier: Apache-2.0
"""Ridge regression that rows can be taken out of: the result is that of fitting without them.

Shape suffixes: N rows, D features, K outputs, M rows that leave or join.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigvalsh

from expunge.errors import InputDataError, RecipeError

Floats = NDArray[np.float64]

#: Rows leave through the small M x M system only while 1 - leverage stays above this; below it, the fit is done anew.
_LEVERAGE = 1e-6
#: After so many updates the weights are solved from the normal equations again, so that rounding does not add up.
_REFRESH = 64


@dataclass(frozen=True, slots=True)
class Ridge:
    """A fit and all that later removals need; it holds sums over rows and no row.

    Attributes:
        gram: X'X + ridge I, [D, D] float64.
        moment: X'Y, [D, K].
        weights: [D, K].
        ridge: the penalty; the same whatever the number of rows.
        n: rows that are in it.
        updates: changes since the weights were last solved anew.
    """

    gram: Floats
    moment: Floats
    weights: Floats
    ridge: float
    n: int
    updates: int = 0

    def predict(self, x_ND: Floats) -> Floats:
        """Return X w, [N, K]."""
        return np.asarray(x_ND @ self.weights)


def fit_ridge(x_ND: Floats, y_NK: Floats, *, ridge: float) -> Ridge:
    """Return the minimiser of |X w - Y|^2 + ridge |w|^2.

    Args:
        x_ND: features, [N, D].
        y_NK: targets, [N, K].
        ridge: penalty, above 0; a constant, not a multiple of N.

    Raises:
        RecipeError: for a penalty that is not above 0.
        InputDataError: for shapes that do not fit, or values that are not finite.
    """
    if not ridge > 0:
        raise RecipeError("must be above 0", field="ridge", value=ridge, remedy="Without it removals are ill-posed")
    x_ND, y_NK = _rows(x_ND, y_NK)
    gram = x_ND.T @ x_ND + ridge * np.eye(x_ND.shape[1])
    return _solved(Ridge(gram, x_ND.T @ y_NK, np.empty(0), ridge, len(x_ND)))


def remove_rows(fit: Ridge, x_MD: Floats, y_MK: Floats) -> Ridge:
    """Return the fit without some rows, as if it had been made without them.

    w' = w - A^-1 X_M' (I - X_M A^-1 X_M')^-1 (Y_M - X_M w), the Woodbury identity on the normal equations.

    Args:
        fit: a fit that these rows are in; that they are is the caller's to know.
        x_MD: features of the rows that leave, [M, D].
        y_MK: their targets, [M, K].

    Raises:
        InputDataError: if there are more of them than rows in the fit, or they cannot have been in it.
    """
    return _changed(fit, x_MD, y_MK, sign=-1)


def add_rows(fit: Ridge, x_MD: Floats, y_MK: Floats) -> Ridge:
    """Return the fit with some more rows, as if it had been made with them."""
    return _changed(fit, x_MD, y_MK, sign=1)


def _changed(fit: Ridge, x_MD: Floats, y_MK: Floats, *, sign: int) -> Ridge:
    x_MD, y_MK = _rows(x_MD, y_MK)
    if x_MD.shape[1] != fit.gram.shape[0] or y_MK.shape[1] != fit.moment.shape[1]:
        raise InputDataError("are of another shape than the fit", field="rows", value=(x_MD.shape, y_MK.shape),
                             remedy=f"Expected [M, {fit.gram.shape[0]}] and [M, {fit.moment.shape[1]}]")  # fmt: skip
    if fit.n + sign * len(x_MD) < 0:
        raise InputDataError("are more than the fit holds", field="rows", value=len(x_MD), remedy=f"It holds {fit.n}")
    gram = fit.gram + sign * (x_MD.T @ x_MD)
    moved = replace(fit, gram=gram, moment=fit.moment + sign * (x_MD.T @ y_MK), n=fit.n + sign * len(x_MD),
                    updates=fit.updates + 1)  # fmt: skip
    if sign < 0 and eigvalsh(gram, subset_by_index=(0, 0))[0] < fit.ridge * (1 - 1e-6):
        raise InputDataError("were not in the fit: what is left is no sum over rows", field="rows", value=len(x_MD),
                             remedy="Give the very rows that it was made with")  # fmt: skip
    weights = _by_woodbury(fit, x_MD, y_MK, sign) if moved.updates < _REFRESH else None
    return _solved(moved) if weights is None else replace(moved, weights=weights)


def _by_woodbury(fit: Ridge, x_MD: Floats, y_MK: Floats, sign: int) -> Floats | None:
    """Return the new weights through the M x M system; None where it is too near to singular, or not smaller."""
    if len(x_MD) >= fit.gram.shape[0]:
        return None
    through_DM = cho_solve(cho_factor(fit.gram), x_MD.T)
    small_MM = np.eye(len(x_MD)) + sign * (x_MD @ through_DM)
    if eigvalsh(small_MM, subset_by_index=(0, 0))[0] < _LEVERAGE:
        return None
    error_MK = y_MK - x_MD @ fit.weights
    return np.asarray(fit.weights + sign * (through_DM @ np.linalg.solve(small_MM, error_MK)))


def _solved(fit: Ridge) -> Ridge:
    return replace(fit, weights=cho_solve(cho_factor(fit.gram), fit.moment), updates=0)


def _rows(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputDataError("need features [N, D] and targets [N, K]", field="rows", value=(x.shape, y.shape),
                             remedy="One row of each an example")  # fmt: skip
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputDataError("hold numbers that are not finite", field="rows", remedy="Leave those rows out")
    return x, y
