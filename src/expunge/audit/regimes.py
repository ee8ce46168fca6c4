# SPDX-License-Identifier: Apache-2.0
"""The verdict: did unlearning take other knowledge with it, and does training a little bring back what it took?

With E(model, set) a mean over items in 0..1, the loss is D_u = E(before) - E(after) and what is left of it after
relearning D_r = E(before) - E(relearned). Source: Xu et al., "Unlearning Isn't Deletion: Investigating Reversibility of
Machine Unlearning in LLMs", 2025 (arXiv:2505.16831), section 3: {reversible, irreversible} x {catastrophic,
non-catastrophic}. The paper gives no thresholds. Those here are ours and stand beside every verdict; where the interval
of a number lies on both sides of its threshold, the verdict is that nothing was decided.

Recovery says what came back, not from where: training on facts of the forget set teaches them to a model that never
knew them. The excess recovery is ours and takes that out. With E_c the value of a model that never saw the forget set
after the same training, it is (E(relearned) - E_c) / (E(before) - E_c): 0 where the unlearned model got no further than
one that never knew, 1 where it is back at what the model knew before unlearning, negative where it lags behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from expunge.audit.columns import Column
from expunge.audit.config import AuditConfig
from expunge.audit.estimate import Estimate
from expunge.audit.metrics import item_values
from expunge.audit.protocol import Protocol
from expunge.audit.records import Records
from expunge.audit.registry import ONE_CLUSTER
from expunge.audit.statistics import Floats, Interval, Sample, function_replicates, interval, resample

UNDECIDED = "undecided: the interval spans the threshold"
NOT_TESTED = "not tested: no relearned model was given"
NOT_FORGOTTEN = "does not apply: the forget set was not lost"
NO_CONTROL = (
    "Without a model that never saw the forget set, relearned the same way, what came back cannot be told from what "
    "anyone learns from the same training."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where the regimes part; all three are ours.

    Attributes:
        forgotten: the forget set counts as lost if more than this share of E(before) is gone.
        collateral: catastrophic if more than this share of E(before) is gone on the retain set too.
        residue: reversible if at most this share of the loss is left after relearning.
    """

    forgotten: float = 0.1
    collateral: float = 0.1
    residue: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """One verdict and what it rests on.

    Attributes:
        label: the regime, or why there is none.
        forgotten, catastrophic, reversible: its parts; None where the interval spans the threshold or nothing was
            measured.
        forget_drop: D_u / E(before) on the forget set.
        retain_drop: the same on the retain set.
        residue: D_r / D_u on the forget set.
        recovery: rho = 1 - D_r / D_u: 0 where nothing came back, 1 where all of it did.
        control: E(relearned) - E(control relearned the same way) on the forget set; positive where the unlearned model
            relearned further than a model that never knew.
        excess_recovery: that difference as a share of E(before) - E(control); see the head of this file.
        means: E by model and set.
        thresholds: where the regimes part.
        caveats: what a reader must know.
    """

    label: str
    forgotten: bool | None
    catastrophic: bool | None
    reversible: bool | None
    forget_drop: Estimate
    retain_drop: Estimate
    residue: Estimate
    recovery: Estimate
    control: Estimate
    excess_recovery: Estimate
    means: dict[str, dict[str, float]]
    thresholds: Thresholds
    caveats: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        numbers = ("forget_drop", "retain_drop", "residue", "recovery", "control", "excess_recovery")
        return {
            "label": self.label, "forgotten": self.forgotten, "catastrophic": self.catastrophic,
            "reversible": self.reversible, **{name: getattr(self, name).to_dict() for name in numbers},
            "means": self.means, "thresholds": asdict(self.thresholds), "caveats": list(self.caveats),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Per-item values in 0..1 of the models to judge, the same items in the same order in each.

    `relearned` and `control` may be None: the first where reversibility was not tested, the second where no model that
    never saw the forget set was relearned the same way.
    """

    forget_before: Column
    forget_after: Column
    retain_before: Column
    retain_after: Column
    relearned: Column | None = None
    control: Column | None = None


def regime_of_records(
    before: Records, after: Records, relearned: Records | None = None, *, protocol: Protocol, config: AuditConfig,
    measure: str = "exact_memorization", control: Records | None = None, thresholds: Thresholds | None = None,
) -> Regime:  # fmt: skip
    """Return the regime of one unlearned model from audits of the models.

    Args:
        before: records of the model before unlearning, on a forget and a retain set.
        after: records of the unlearned model on the same sets.
        relearned: records of the unlearned model after a little training.
        protocol: tells the sets.
        config: intervals.
        measure: the metric that E counts, such as `exact_memorization`, `probability` or `extraction_strength`.
        control: records of a model that never saw the forget set, after the same training.
        thresholds: where the regimes part; ours by default.

    Raises:
        Unavailable: if records lack a set or the metric.
        ValueError: if two records are not of the same items.
    """

    def values(records: Records, name: str) -> Column:
        return item_values(records, f"{name}.{measure}", protocol=protocol, config=config)

    found = Measured(
        forget_before=values(before, "forget"), forget_after=values(after, "forget"),
        retain_before=values(before, "retain"), retain_after=values(after, "retain"),
        relearned=None if relearned is None else values(relearned, "forget"),
        control=None if control is None else values(control, "forget"),
    )  # fmt: skip
    return judge_regime(found, config=config, thresholds=thresholds)


def judge_regime(found: Measured, *, config: AuditConfig, thresholds: Thresholds | None = None) -> Regime:
    """Return the regime of one unlearned model from per-item values.

    Args:
        found: the values.
        config: replicates, confidence and seed of the bootstrap, which redraws subjects.
        thresholds: where the regimes part; ours by default.

    Raises:
        ValueError: if columns are not of the same items.
    """
    limits, f0, fu = thresholds or Thresholds(), found.forget_before, found.forget_after
    forget_drop = _of_means([f0, fu], _relative_drop, config)
    retain_drop = _of_means([found.retain_before, found.retain_after], _relative_drop, config)
    residue, recovery = (
        Estimate.missing(NOT_TESTED, direction="reference"),
        Estimate.missing(NOT_TESTED, direction="lower"),
    )
    if found.relearned is not None:
        residue = _of_means([f0, fu, found.relearned], _residue, config)
        recovery = _of_means([f0, fu, found.relearned], lambda means: 1.0 - _residue(means), config)
    forgotten, catastrophic = _above(forget_drop, limits.forgotten), _above(retain_drop, limits.collateral)
    left = None if residue.value is None else _above(residue, limits.residue)
    reversible = None if not forgotten or left is None else not left
    return Regime(
        label=_label((forgotten, forget_drop), (catastrophic, retain_drop), (reversible, residue)),
        forgotten=forgotten, catastrophic=catastrophic, reversible=reversible, forget_drop=forget_drop,
        retain_drop=retain_drop, residue=residue, recovery=recovery, control=_control(found, config),
        excess_recovery=_excess(found, config), means=_means(found), thresholds=limits,
        caveats=(NO_CONTROL,) if found.relearned is not None and found.control is None else (),
    )  # fmt: skip


def _of_means(
    columns: Sequence[Column], function: Callable[[Floats], Floats], config: AuditConfig,
    missing: str = "nothing was lost, so no share of it exists",
) -> Estimate:  # fmt: skip
    """Return a function of the means of several models on the same items, with one bootstrap for all of them."""
    first = columns[0]
    if any(column.ids != first.ids for column in columns[1:]):
        raise ValueError("the models must be measured on the same items in the same order")
    value = float(function(np.array([[column.values.mean() for column in columns]]))[0])
    if not np.isfinite(value):
        return Estimate.missing(missing, direction="reference", n=len(first))
    draws = resample(first.clusters, replicates=config.bootstrap, seed=[config.seed])
    bounds = Interval(None, None, ONE_CLUSTER)
    if len(draws.labels) > 1:
        samples = [Sample(column.values, column.clusters, draws) for column in columns]
        bounds = interval(function_replicates(samples, function), config.confidence)
    return Estimate(
        value=value, ci_low=bounds.low, ci_high=bounds.high, n=len(first), direction="reference", reason=bounds.reason
    )


def _relative_drop(means: Floats) -> Floats:
    """Return (E_0 - E_u) / E_0 per row of [E_0, E_u]; NaN where there was nothing to lose."""
    base = np.where(means[:, 0] > 0, means[:, 0], np.nan)
    return np.asarray((means[:, 0] - means[:, 1]) / base)


def _residue(means: Floats) -> Floats:
    """Return (E_0 - E_r) / (E_0 - E_u) per row of [E_0, E_u, E_r]; NaN where nothing was lost."""
    lost = means[:, 0] - means[:, 1]
    return np.asarray((means[:, 0] - means[:, 2]) / np.where(lost > 0, lost, np.nan))


def _above(found: Estimate, level: float) -> bool | None:
    """Return on which side of a threshold a number lies with its whole interval; None where it is on both."""
    if found.ci_low is None or found.ci_high is None:
        return None
    return True if found.ci_low > level else False if found.ci_high <= level else None


def _excess_recovery(means: Floats) -> Floats:
    """Return (E_r - E_c) / (E_0 - E_c) per row of [E_0, E_r, E_c]; NaN where the control knows as much as E_0."""
    gap = means[:, 0] - means[:, 2]
    return np.asarray((means[:, 1] - means[:, 2]) / np.where(gap > 0, gap, np.nan))


def _control(found: Measured, config: AuditConfig) -> Estimate:
    if found.relearned is None or found.control is None:
        return Estimate.missing(_uncontrolled(found), direction="reference")
    return _of_means([found.relearned, found.control], lambda means: means[:, 0] - means[:, 1], config)


def _excess(found: Measured, config: AuditConfig) -> Estimate:
    if found.relearned is None or found.control is None:
        return Estimate.missing(_uncontrolled(found), direction="lower")
    columns = [found.forget_before, found.relearned, found.control]
    return _of_means(columns, _excess_recovery, config, "the control learned as much as the model knew before")


def _uncontrolled(found: Measured) -> str:
    return NOT_TESTED if found.relearned is None else "no control was given"


def _means(found: Measured) -> dict[str, dict[str, float]]:
    forget = {"before": found.forget_before, "after": found.forget_after, "relearned": found.relearned,
              "control": found.control}  # fmt: skip
    retain = {"before": found.retain_before, "after": found.retain_after}
    return {
        "forget": {name: float(column.values.mean()) for name, column in forget.items() if column is not None},
        "retain": {name: float(column.values.mean()) for name, column in retain.items()},
    }


def _label(
    forgotten: tuple[bool | None, Estimate], catastrophic: tuple[bool | None, Estimate],
    reversible: tuple[bool | None, Estimate],
) -> str:  # fmt: skip
    """Return the regime in words; a part that was not settled says why."""
    harm = {True: "catastrophic", False: "non-catastrophic"}
    side = f"collateral damage {_why(catastrophic[1])}" if catastrophic[0] is None else harm[catastrophic[0]]
    if forgotten[0] is None:
        return f"forgetting {_why(forgotten[1])}; {side}"
    if not forgotten[0]:
        return f"reversibility {NOT_FORGOTTEN}; {side}"
    if reversible[1].value is None:
        return f"{side}; reversibility {reversible[1].reason}"
    if reversible[0] is None:
        return f"reversibility {_why(reversible[1])}; {side}"
    word = "reversible" if reversible[0] else "irreversible"
    return f"{word}, {side}" if catastrophic[0] is not None else f"{word}; {side}"


def _why(found: Estimate) -> str:
    """Return why a number did not settle its part."""
    return UNDECIDED if found.ci_low is not None else f"undecided: {found.reason}"
