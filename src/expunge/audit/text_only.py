# SPDX-License-Identifier: Apache-2.0
"""A classifier that never sees the model: can forget and holdout items be told apart by their text alone?

Where they can, a membership score may rank them by what they are about instead of by what the model was trained on.
The classifier is a logistic regression on hashed words, word pairs and the length of a text. Every text is scored by
a classifier that was fitted without the text's subject.

Shape letters: n texts, F hashed features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from math import log2
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse, special

from expunge.audit.statistics import Floats, Unavailable

FEATURES = 1 << 13
"""Few enough that BLAS stays on one thread, which at this size costs nothing and on a busy machine saves seconds."""
FOLDS = 5

_WORD = re.compile(r"\w+|[^\w\s]")


def text_scores(texts: Sequence[str], forget: Sequence[bool], subjects: Sequence[str]) -> Floats:
    """Return how much every text looks like the forget set to a classifier that did not see its subject, [n], logits.

    Args:
        texts: the texts of both sides, [n].
        forget: whether each is of the forget set, [n].
        subjects: what must not be split between fitting and scoring, [n].

    Raises:
        Unavailable: if either side has fewer than two subjects of its own to fit on.

    Source: Das et al., "Blind Baselines Beat Membership Inference Attacks for Foundation Models", 2024, for the test;
    the classifier is our own.
    """
    side = np.asarray(forget, dtype=bool)
    folds = _folds(side, subjects)
    rows = features(texts)
    scores = np.zeros(len(texts))
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        scores[held] = _logits(rows[held], *fit(rows[~held], side[~held]))
    return scores


def features(texts: Sequence[str]) -> Any:
    """Return binary hashed features of the texts, rows of length one, sparse [n, F]."""
    columns = [sorted({crc32(gram.encode()) % FEATURES for gram in _grams(text)}) for text in texts]
    ends = np.cumsum([0, *map(len, columns)])
    values = np.concatenate([np.full(len(found), len(found) ** -0.5) for found in columns])
    return sparse.csr_matrix((values, np.concatenate(columns), ends), shape=(len(texts), FEATURES))


def fit(rows: Any, forget: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Return weights [F] and intercept of a logistic regression in which both sides weigh the same.

    Minimises sum_i s_i log(1 + exp(-y_i (w x_i + b))) + |w|^2 / (2 n) with sum_i s_i = 1.

    Args:
        rows: features, [n, F].
        forget: the side of each row, [n]; both sides occur.
    """
    sign = np.where(forget, 1.0, -1.0)
    share = np.where(forget, 0.5 / forget.sum(), 0.5 / (~forget).sum())
    penalty = 1.0 / len(sign)

    def loss(x: Floats) -> tuple[float, Floats]:
        margin = sign * _logits(rows, x[:-1], x[-1])
        slope = -share * sign * special.expit(-margin)
        value = float(share @ np.logaddexp(0.0, -margin)) + penalty / 2 * float(x[:-1] @ x[:-1])
        return value, np.append(rows.T @ slope + penalty * x[:-1], slope.sum())

    found = optimize.minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B")
    return found.x[:-1], float(found.x[-1])


def _logits(rows: Any, weights: Floats, intercept: float) -> Floats:
    result: Floats = rows @ weights + intercept
    return result


def _grams(text: str) -> list[str]:
    words = _WORD.findall(text)
    # Half octaves of the length; the space keeps it apart from any word.
    return [
        f" {round(2 * log2(1 + len(words)))}",
        *words,
        *(f"{a} {b}" for a, b in pairwise(words)),
    ]


def _folds(forget: NDArray[np.bool_], subjects: Sequence[str]) -> NDArray[np.int64]:
    """Return the fold of every text, [n]: subjects are dealt out in hashed order, those of the forget set first."""
    sides = [{s for s, mine in zip(subjects, forget == side, strict=True) if mine} for side in (True, False)]
    count = min(FOLDS, *map(len, sides))
    fold: dict[str, int] = {}
    for side in sides:
        for subject in sorted(side - fold.keys(), key=lambda s: (crc32(s.encode()), s)):
            fold[subject] = len(fold) % max(count, 1)
    folds = np.array([fold[subject] for subject in subjects], dtype=np.int64)
    fitted = (set(forget[folds != held].tolist()) for held in range(count))
    if count < 2 or any(len(found) < 2 for found in fitted):
        raise Unavailable("a classifier of the texts needs two subjects or more of forget and of holdout")
    return folds
