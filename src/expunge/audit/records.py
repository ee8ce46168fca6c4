# SPDX-License-Identifier: Apache-2.0
"""What one audit pass saw, item by item: enough to compute every metric again without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

RECORDS_VERSION = 1

Floats: TypeAlias = Sequence[float] | NDArray[np.floating[Any]]
Flags: TypeAlias = Sequence[int] | NDArray[np.bool_] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredItem:
    """Teacher-forced scores of one (prompt, answer) pair.

    Attributes:
        set: evaluated set (`forget`, `retain`, `holdout`, `world_facts`...).
        id: id of the example within its set.
        subject: cluster for intervals; "" if unknown.
        variant: which answer was scored: `answer`, `paraphrase`, `perturbed`, `lowercase`, ...
        variant_index: position among several of that variant (0 for single ones).
        ids_hash: digest of the scored token ids (prompt and answer).
        logp: log-probability of each labelled token, natural log, in order.
        correct: per token, 1 where the arg max of the model equals the label.
        mu, sigma2: per token, mean and variance of log p_v under p (for Min-K%++).
        ends_with_eos: the last labelled token is the end-of-sequence token.
        zlib_bytes: length of the zlib-compressed UTF-8 text of the answer.
    """

    set: str
    id: str
    subject: str
    variant: str
    variant_index: int
    ids_hash: str
    logp: Floats
    correct: Flags
    mu: Floats
    sigma2: Floats
    ends_with_eos: bool
    zlib_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedItem:
    """One greedy generation; `prompt_variant` is `question` or `paraphrase`, `finished` means it ended by itself."""

    set: str
    id: str
    subject: str
    prompt_variant: str
    prediction: str
    target: str
    n_tokens: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Records:
    """Every item of one audit of one model. `meta` holds digests, template, dtype, settings, versions and seconds."""

    scored: Sequence[ScoredItem]
    generated: Sequence[GeneratedItem]
    meta: dict[str, Any] = field(default_factory=dict)
