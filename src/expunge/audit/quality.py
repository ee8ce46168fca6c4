# SPDX-License-Identifier: Apache-2.0
"""Numbers of a whole audit: forget quality, model utility, privacy leakage."""

from __future__ import annotations

from collections.abc import Mapping

from expunge.audit.columns import Column, View
from expunge.audit.config import Compat
from expunge.audit.overlap import rouge_column
from expunge.audit.probability import (
    EPSILON,
    answer_probability,
    log_truth_ratios,
    option_probability,
    utility_score,
)
from expunge.audit.protocol import Protocol
from expunge.audit.statistics import Floats, Unavailable

UTILITY_PARTS = ("probability", "rouge_l", "truth_ratio")


def privleak(auc: float | Floats, reference_auc: float | Floats, *, compat: Compat = "fixed") -> float | Floats:
    """Return the relative gap to the reference's AUC, in percent.

    Negative where the forget set still stands out more than in the reference (under-unlearned), positive where it
    looks too unfamiliar (over-unlearned); 0 is the aim.

    Args:
        auc: P(forget item scores higher than holdout item) of the model, in 0..1.
        reference_auc: the same for the retrained reference.
        compat: `fixed` and `muse` compare 1 - AUC, the orientation of every published table; `openunlearning` does too
            and adds 1e-10 to the denominator; `paper` takes the printed definition literally, which flips the sign.

    Raises:
        Unavailable: if the denominator is 0.

    Source: Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", 2024, section 3.
    """
    ours, theirs = (auc, reference_auc) if compat == "paper" else (1.0 - auc, 1.0 - reference_auc)
    base = theirs + EPSILON if compat == "openunlearning" else theirs
    if isinstance(base, float) and base == 0:
        raise Unavailable("the reference separates forget from holdout perfectly, so PrivLeak divides by zero")
    return 100.0 * (ours - theirs) / base


def utility_parts(view: View, protocol: Protocol, *, compat: Compat) -> Mapping[tuple[str, str], Column]:
    """Return {probability, ROUGE-L recall, truth ratio} of every utility set (roles `retain` and `options`).

    Raises:
        Unavailable: naming the sets and parts that are missing.
    """
    parts: dict[tuple[str, str], Column] = {}
    missing = []
    for name in protocol.sets("retain", "options"):
        for part in UTILITY_PARTS:
            try:
                parts[name, part] = utility_part(
                    view, name, part, options=protocol.roles[name] == "options", compat=compat
                )
            except Unavailable as reason:
                missing.append(f"{name}.{part} ({reason})")
    if missing:
        raise Unavailable(f"model utility needs {', '.join(missing)}")
    if not parts:
        raise Unavailable("no set has the role 'retain' or 'options'")
    return parts


def utility_part(view: View, name: str, part: str, *, options: bool, compat: Compat) -> Column:
    """Return one of the three utility numbers of every item in a set, each in 0..1 and higher for a better model."""
    if part == "probability":
        return option_probability(view, name, compat=compat) if options else answer_probability(view, name)
    if part == "rouge_l":
        return rouge_column(view, name, "rouge_l", stemmer=compat != "muse")
    ratios = log_truth_ratios(view, name, options=options, compat=compat)
    return Column(ratios.ids, ratios.clusters, utility_score(ratios.values))
