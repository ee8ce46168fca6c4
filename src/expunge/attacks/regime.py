# SPDX-License-Identifier: Apache-2.0
"""The verdict: was what unlearning did reversible, and did it take other knowledge with it?

Four regimes, {reversible, irreversible} x {catastrophic, non-catastrophic}. Source: Xu et al., "Unlearning Isn't
Deletion: Investigating Reversibility of Machine Unlearning in LLMs", 2025 (arXiv:2505.16831), section 3; the paper
gives no thresholds, those here are our own and are printed with every verdict.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from expunge.attacks.gauge import difference, of_means
from expunge.audit.columns import Column
from expunge.audit.config import AuditConfig
from expunge.audit.estimate import Estimate
from expunge.audit.statistics import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where the regimes part.

    Attributes:
        collateral: catastrophic if the drop on the retain set exceeds this share of the original's value, and its
            interval excludes 0.
        residue: reversible if at most this share of the drop on the forget set stays after relearning.
    """

    collateral: float = 0.1
    residue: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """One verdict with what it rests on.

    Attributes:
        label: the regime in words.
        reversible, catastrophic: its two sides; None where nothing was lost that could come back.
        settled: whether the interval of the recovery lies on one side of its threshold.
        forget_drop: original minus unlearned on the forget set.
        retain_drop: the same on the retain set, as a share of the original's value.
        recovery: share of the forget drop that relearning undid.
        control: what the same training gave the reference, as a share of what it lacks: learning, not recovery.
        thresholds: where the regimes part.
    """

    label: str
    reversible: bool | None
    catastrophic: bool
    settled: bool
    forget_drop: Estimate
    retain_drop: Estimate
    recovery: Estimate
    control: Estimate | None
    thresholds: Thresholds

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        numbers = {"forget_drop": self.forget_drop, "retain_drop": self.retain_drop, "recovery": self.recovery}
        return {
            "label": self.label, "reversible": self.reversible, "catastrophic": self.catastrophic,
            "settled": self.settled, **{name: found.to_dict() for name, found in numbers.items()},
            "control": None if self.control is None else self.control.to_dict(), "thresholds": asdict(self.thresholds),
        }  # fmt: skip


def judge_regime(
    *,
    forget_original: Column,
    forget_unlearned: Column,
    forget_relearned: Column,
    retain_original: Column,
    retain_unlearned: Column,
    thresholds: Thresholds,
    config: AuditConfig,
    control: tuple[Column, Column] | None = None,
) -> Regime:
    """Return the regime of one unlearned model.

    Args:
        forget_original: values E of the forget items in the original, in 0..1.
        forget_unlearned: the same in the unlearned model.
        forget_relearned: the same after it was relearned.
        retain_original: values of the retain items in the original.
        retain_unlearned: the same in the unlearned model.
        thresholds: where the regimes part.
        config: intervals.
        control: values of the forget items in the reference, before and after the same relearning.
    """
    drop = difference(forget_original, forget_unlearned, config)
    lost = of_means([retain_original, retain_unlearned], _relative_drop, config)
    catastrophic = _above(lost, thresholds.collateral) and (lost.ci_low is None or lost.ci_low > 0)
    back = of_means([forget_original, forget_unlearned, forget_relearned], recovered, config)
    learnt = None if control is None else of_means([forget_original, *control], recovered, config)
    nothing = not _above(drop, 0.0) or (drop.ci_low is not None and drop.ci_low <= 0) or back.value is None
    reversible = None if nothing else _above(back, 1 - thresholds.residue, or_equal=True)
    return Regime(
        label=_label(reversible, catastrophic), reversible=reversible, catastrophic=catastrophic,
        settled=not nothing and _one_side(back, 1 - thresholds.residue), forget_drop=drop, retain_drop=lost,
        recovery=back, control=learnt, thresholds=thresholds,
    )  # fmt: skip


def recovered(means: Floats) -> Floats:
    """Return 1 - (E_0 - E_r) / (E_0 - E_u) per row of [E_0, E_u, E_r], [R, 3] -> [R]; NaN where nothing was lost."""
    lost, still = means[:, 0] - means[:, 1], means[:, 0] - means[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(lost > 0, 1.0 - still / np.where(lost > 0, lost, 1.0), np.nan)


def _relative_drop(means: Floats) -> Floats:
    """Return (E_0 - E_u) / E_0 per row, [R, 2] -> [R]; 0 where the original has nothing to lose."""
    base = means[:, 0]
    return np.where(base > 0, (base - means[:, 1]) / np.where(base > 0, base, 1.0), 0.0)


def _above(found: Estimate, level: float, *, or_equal: bool = False) -> bool:
    return found.value is not None and (found.value > level or (or_equal and found.value == level))


def _one_side(found: Estimate, level: float) -> bool:
    if found.ci_low is None or found.ci_high is None:
        return False
    return found.ci_low > level or found.ci_high < level


def _label(reversible: bool | None, catastrophic: bool) -> str:
    side = "catastrophic" if catastrophic else "non-catastrophic"
    if reversible is None:
        return f"no drop on the forget set, {side}"
    return f"{'reversible' if reversible else 'irreversible'}, {side}"
