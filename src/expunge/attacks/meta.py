# SPDX-License-Identifier: Apache-2.0
"""How far a metric can be trusted under attack: faithfulness, robustness, and the scores built from them.

Source: Dorna et al., "OpenUnlearning: Accelerating LLM Unlearning via Unified Benchmarking of Methods and Metrics",
2025 (arXiv:2506.12618), section 4. Metrics are oriented so that high means that the knowledge is there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from expunge.audit.statistics import Floats, auc, harmonic_mean

#: Models whose utility fell by more than this share are left out of the meta-evaluation.
LARGEST_UTILITY_DROP = 0.2


def relearn_robustness(
    reference_before: ArrayLike, reference_after: ArrayLike, before: ArrayLike, after: ArrayLike
) -> Floats:
    """Return R = min(r, 1), r = (m_ret^a - m_ret^b) / (m_unl^a - m_unl^b), kept at 0 or above.

    1 says that the unlearned model regained no more than a model that had the knowledge to learn anew. Where the
    unlearned model gained nothing, R is 1; where the reference lost by training, R is 0.

    Args:
        reference_before: metric of the retain-only reference before relearning.
        reference_after: the same after it.
        before: metric of the unlearned model before relearning.
        after: the same after relearning in exactly the same way.
    """
    gain = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    control = np.asarray(reference_after, dtype=np.float64) - np.asarray(reference_before, dtype=np.float64)
    ratio = control / np.where(gain > 0, gain, 1.0)
    return np.asarray(np.clip(np.where(gain > 0, ratio, 1.0), 0.0, 1.0), dtype=np.float64)


def quantisation_robustness(before: ArrayLike, after: ArrayLike) -> Floats:
    """Return Q = min(q, 1), q = m_unl^b / m_unl^a: 1 where rounding the weights brings nothing back.

    Args:
        before: metric of the unlearned model as it is, at least 0.
        after: the same after its weights were rounded.
    """
    low = np.asarray(after, dtype=np.float64)
    ratio = np.asarray(before, dtype=np.float64) / np.where(low > 0, low, 1.0)
    return np.asarray(np.clip(np.where(low > 0, ratio, 1.0), 0.0, 1.0), dtype=np.float64)


def robustness(relearning: float, quantisation: float) -> float:
    """Return the harmonic mean of the two robustnesses."""
    return harmonic_mean([relearning, quantisation])


def faithfulness(knowing: ArrayLike, ignorant: ArrayLike) -> float:
    """Return the AUC with which a metric tells models that have the knowledge from models that never saw it."""
    return auc(knowing, ignorant)


def overall(faithful: float, robust: float) -> float:
    """Return the harmonic mean of faithfulness and robustness: how far a metric can be trusted."""
    return harmonic_mean([faithful, robust])


def memorisation_score(extraction: float, exact: float, paraphrase_probability: float, truth_ratio: float) -> float:
    """Return HM(1 - ES, 1 - EM, 1 - paraphrase probability, 1 - truth ratio), in 0..1; high if little is left."""
    return harmonic_mean([1 - extraction, 1 - exact, 1 - paraphrase_probability, 1 - truth_ratio])


def admissible(utility_before: float, utility_after: float) -> bool:
    """Return whether a model kept enough utility to be counted in a meta-evaluation."""
    return utility_after >= (1 - LARGEST_UTILITY_DROP) * utility_before
