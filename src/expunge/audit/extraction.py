# SPDX-License-Identifier: Apache-2.0
"""Extraction beyond greedy teacher forcing: continuations of every prefix, and what sampling would find.

Shape suffixes: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from expunge.audit.statistics import Unavailable
from expunge.data.encoding import IGNORE, Encoded


class Prefix(NamedTuple):
    """The start of a sequence and the answer tokens that should follow."""

    ids: tuple[int, ...]
    target: tuple[int, ...]


def ngram_overlap(
    prediction: Sequence[int], target: Sequence[int], n: int, *, per: Literal["prediction", "target"] = "prediction"
) -> float:
    """Return the share of n-grams of a continuation that occur in the true one, in 0..1; repeats count each time.

    Args:
        prediction: generated token ids.
        target: true token ids.
        n: length of an n-gram, at least 1.
        per: whose n-grams are in the denominator: those of the continuation as the paper defines it, or of the true
            one as its code does. The two differ where the continuation stops early. A side without n-grams gives 0.

    Source: Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks in Language Models", 2023, equation 3.
    """
    if n < 1:
        raise ValueError(f"an n-gram has at least one token, got n = {n}")
    ours, theirs = _ngrams(prediction, n), _ngrams(target, n)
    known = set(theirs)
    total = len(ours if per == "prediction" else theirs)
    return sum(gram in known for gram in ours) / total if total else 0.0


def extraction_likelihood(predictions: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], n: int) -> float:
    """Return EL_n of one text: the mean n-gram overlap over its prefixes, in 0..1.

    Args:
        predictions: the continuation of each prefix, token ids.
        targets: the true continuation of each.
        n: length of an n-gram; prefixes with fewer than n tokens to come are left out.

    Raises:
        Unavailable: if no prefix is left.

    Source: Jang et al., 2023, equation 2.
    """
    pairs = [(ours, theirs) for ours, theirs in zip(predictions, targets, strict=True) if len(theirs) >= n]
    if not pairs:
        raise Unavailable(f"no continuation has {n} tokens")
    return float(np.mean([ngram_overlap(ours, theirs, n) for ours, theirs in pairs]))


def prefixes(encoded: Encoded, n: int, count: int, *, longest: int) -> list[Prefix]:
    """Return up to `count` evenly spaced prefixes of an answer of T tokens, out of the T - n that EL_n averages.

    Args:
        encoded: one sequence; the first prefix is its prompt alone, and the end-of-sequence token is left out.
        n: length of an n-gram.
        count: how many prefixes; T - n or more gives all of them.
        longest: true continuations are cut to so many tokens.
    """
    stop = len(encoded.ids) - encoded.ends_with_eos
    places = [i for i in range(1, stop) if encoded.labels[i] != IGNORE]
    usable = places[: max(0, len(places) - n)]
    chosen = sorted({round(i) for i in np.linspace(0, len(usable) - 1, min(count, len(usable)))}) if usable else []
    starts = [usable[i] for i in chosen]
    return [Prefix(encoded.ids[:start], encoded.ids[start : min(stop, start + longest)]) for start in starts]


def samples_needed(log_probability: float, chance: float) -> float:
    """Return the fewest samples that hold a text with probability `chance`, infinite where none suffice.

    Args:
        log_probability: log p_z, the sum of the log-probabilities of the text's tokens under the sampling scheme, nats.
        chance: p, above 0 and below 1.

    Source: Hayes et al., "Measuring memorization in language models via probabilistic extraction", 2025, equation 2.
    """
    if not 0 < chance < 1:
        raise ValueError(f"a chance lies above 0 and below 1, got {chance}")
    rate = -_log_miss(log_probability)
    needed = -math.log1p(-chance) / rate if rate else math.inf
    # The quotient of two rounded logarithms may lie a hair above a whole number.
    return needed if math.isinf(needed) else max(1.0, float(math.ceil(needed * (1 - 1e-12))))


def extraction_chance(log_probability: float, samples: int) -> float:
    """Return 1 - (1 - p_z)^n, the probability that n samples hold the text; the inverse of `samples_needed`."""
    if samples < 0:
        raise ValueError(f"samples must be at least 0, got {samples}")
    return -math.expm1(samples * _log_miss(log_probability)) if samples else 0.0


def extractable(log_probability: float, samples: int, chance: float) -> bool:
    """Return whether a text is (n, p)-discoverably extractable with n = `samples` and p = `chance`."""
    return samples_needed(log_probability, chance) <= samples


def sampling_log_probability(
    logits_TV: ArrayLike, labels_T: ArrayLike, *, temperature: float = 1.0, top_k: int | None = None
) -> float:
    """Return log p_z of a text under temperature and top-k sampling, nats; minus infinite where it cannot be drawn.

    Args:
        logits_TV: logits that predict each token, [T, V].
        labels_T: the tokens, [T].
        temperature: divides the logits; above 0.
        top_k: only the k largest logits can be drawn, ties with the last of them included; None keeps all.
    """
    if temperature <= 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"needs temperature > 0 and top_k >= 1, got {temperature} and {top_k}")
    scaled = np.asarray(logits_TV, dtype=np.float64) / temperature
    if top_k is not None and top_k < scaled.shape[1]:
        last = np.partition(scaled, -top_k, axis=1)[:, -top_k, None]
        scaled = np.where(scaled >= last, scaled, -np.inf)
    labels = np.asarray(labels_T)
    return float((scaled[np.arange(len(labels)), labels] - special.logsumexp(scaled, axis=1)).sum())


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _log_miss(log_probability: float) -> float:
    """Return log(1 - p_z), at most 0; sums of rounded log-probabilities may exceed 0 by a little."""
    if math.isnan(log_probability) or log_probability > 1e-3:
        raise ValueError(f"a log-probability is at most 0, got {log_probability}")
    return -math.inf if log_probability >= 0 else math.log1p(-math.exp(log_probability))
