# SPDX-License-Identifier: Apache-2.0
"""Linear centred kernel alignment: how alike two models arrange the same texts, whatever the axes and the scale.

Shape suffixes: N texts, D width of one model, E width of the other.

Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, equation 4 (linear CKA);
Song et al., "Feature Selection via Dependence Maximization", 2012, equation 5, and Nguyen et al., "Do Wide and Deep
Networks Learn the Same Things?", 2021, equation 3 (the estimate of HSIC without bias).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from expunge.audit.statistics import Unavailable

Estimator = Literal["biased", "debiased"]
#: Below this share of its square length, what centring leaves of the states is rounding.
ROUNDING = 1e-12
#: The biased estimate tends to 1 as the width outgrows the texts; it is used from so many texts a dimension on.
ENOUGH = 2
#: The estimate without bias divides by n - 3.
FEWEST = 4


class Cka(NamedTuple):
    """A similarity and the estimate of HSIC behind it; without bias it can fall below 0."""

    value: float
    estimator: Estimator


def linear_cka(x_ND: Tensor, y_NE: Tensor, *, estimator: Estimator | None = None) -> Cka:
    """Return the linear CKA of the states that two models give to the same texts; 1 if they differ by a rotation.

    Args:
        x_ND: states of one model, a row a text.
        y_NE: states of the other, in the same order; another width is fine.
        estimator: `biased` is the textbook formula, `debiased` the one for few texts; None takes the first from two
            texts a dimension on.

    Raises:
        ValueError: if the rows do not pair up.
        Unavailable: if there is no number: too few texts, or all of them have the same state in one model.
    """
    n = len(x_ND)
    if n != len(y_NE):
        raise ValueError(f"rows must be the same texts, got {n} and {len(y_NE)}")
    if n < 2:
        raise Unavailable(f"{n} texts cannot be compared with each other: 2 are needed")
    x, y = _centred(x_ND), _centred(y_NE)
    chosen = estimator or ("biased" if n >= ENOUGH * max(x.shape[1], y.shape[1]) else "debiased")
    if chosen == "biased":
        return Cka(float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())), "biased")
    if n < FEWEST:
        raise Unavailable(f"{n} texts are too few for an estimate without bias: {FEWEST} are needed")
    k, m = x @ x.T, y @ y.T
    own = hsic_debiased(k, k) * hsic_debiased(m, m)
    if own <= 0:
        raise Unavailable("the states vary too little for an estimate without bias")
    return Cka(hsic_debiased(k, m) / math.sqrt(own), "debiased")


def hsic_debiased(k_NN: Tensor, m_NN: Tensor) -> float:
    """Return the estimate without bias of the Hilbert-Schmidt independence criterion of two kernels.

    Args:
        k_NN: kernel of one model, symmetric; centring it or not changes nothing.
        m_NN: kernel of the other.

    Source: Song et al., 2012, equation 5.
    """
    n = len(k_NN)
    k, m = (kernel.double() - torch.diag(torch.diagonal(kernel).double()) for kernel in (k_NN, m_NN))
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(1))
    return float(total / (n * (n - 3)))


def _centred(x_ND: Tensor) -> Tensor:
    x = x_ND.double()
    centred: Tensor = x - x.mean(0)
    if centred.square().sum() <= ROUNDING * x.square().sum():
        raise Unavailable(f"all {len(x)} texts have the same state, so there is no arrangement to compare")
    return centred
