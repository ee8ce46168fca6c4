# SPDX-License-Identifier: Apache-2.0
"""What a report shows: plain frozen values, already measured elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.claims import ClaimKind

REPORT_SCHEMA = 1

TARGET = "target"
REFERENCE = "reference"
UNLEARNED = "unlearned"

#: One metric of one model in its JSON form: value, ci_low, ci_high, n, direction, reference, compat, reason.
EstimateDict = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One example with what the models said; None where a model was not asked.

    Attributes:
        set: evaluated set, such as `forget`.
        id: id of the example within its set.
        prompt, target: the question and the true answer.
        before, after, reference: answers of the target, of this model and of the reference.
        overlap: ROUGE-L recall in 0..1 by `before`, `after`, `reference`, where it was measured.
    """

    set: str
    id: str
    prompt: str
    target: str
    before: str | None = None
    after: str | None = None
    reference: str | None = None
    overlap: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One measured model.

    Attributes:
        role: `target` (before), `reference` (never saw the forget set), or another word for a changed model.
        method: the method card as a dict, or None.
        metrics: estimates by metric name.
        seconds: wall time of the procedure that made the model.
        trajectory: rows of `metrics.jsonl`.
        examples: answers to show, redacted unless the writer is told otherwise.
        settings: the resolved recipe of the run that made the model.
    """

    role: str
    method: Mapping[str, Any] | None = None
    metrics: Mapping[str, EstimateDict] = field(default_factory=dict)
    seconds: float | None = None
    trajectory: Sequence[Mapping[str, Any]] = ()
    examples: Sequence[ExampleView] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """Return the point estimate of `metric`, or None where there is no number."""
        found = self.metrics.get(metric)
        return None if found is None else found.get("value")

    @property
    def claim(self) -> ClaimKind | None:
        """The kind of claim its method supports, or None where no method is recorded."""
        return None if self.method is None or not self.method.get("claim") else ClaimKind(self.method["claim"])


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One point of an attack curve: `budget` in the unit of the curve, `value` with its 95 % interval."""

    budget: float
    value: float
    ci_low: float | None = None
    ci_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelearnView:
    """How `metric` climbs when models are trained again, per model name; `title` says on what and how."""

    metric: str
    budget_unit: str
    curves: Mapping[str, Sequence[CurvePoint]]
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRow:
    """One number of an attack on one model beside the control that counts, and their difference.

    `attack` is its title, `kind` its name in `claims.ATTACKS`.
    """

    attack: str
    kind: str
    model: str
    setting: str
    metric: str
    value: EstimateDict
    control_name: str
    control: EstimateDict
    difference: EstimateDict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegimeView:
    """The verdict on one model under one way of relearning: the regime, the share of the loss that came back, and how
    far the model relearned beyond the reference, by the measure that E counts.
    """

    model: str
    way: str
    label: str
    recovery: EstimateDict
    control: EstimateDict
    thresholds: Mapping[str, float]
    excess_recovery: EstimateDict = field(default_factory=dict)
    measure: str = "probability"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerView:
    """Whether one way of relearning moved anything.

    Attributes:
        way: on what and how.
        before, after: probability of the reference on what it was shown.
        limit: rise from which the attack counts as one.
        there: whether the reference rose so far.
        without: models about which nothing follows, because neither they nor the reference moved.
    """

    way: str
    before: float
    after: float
    limit: float
    there: bool
    without: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """One threshold: its text, what was measured (already formatted) and whether it holds (None: not measured)."""

    rule: str
    measured: str
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportView:
    """Everything one report shows.

    Attributes:
        what_was_asked: rows of (label, text).
        run: name, status, started, seconds, error... of the run; empty for a comparison.
        models: measured models by name, in display order.
        claim: kind of claim where the models carry no method card.
        environment: versions, device, seeds by name.
        reproduce: shell commands, in order.
        attacks_run: names out of `claims.ATTACKS` that were run.
        runs_tried: how many runs were tried to obtain the one shown, or None if nobody counted.
        policy: thresholds that the request set; empty if none.
        relearning: the main relearning curves, or None.
        more_relearning: those of other ways of relearning.
        attacks: what attacks found, number by number.
        regimes: verdicts on reversibility.
        powers: whether relearning moved anything, by way.
        canaries: what planted canaries show, as in `audit.json`; empty if none were planted.
        key_metrics: metrics of the cards and of the interval plots; empty: chosen from what is there.
        plane_metric: horizontal axis of the plane; "": chosen from what is there.
        not_shown: what the audit says that it cannot show.
        notes: remarks on the input files that a reader must know.
        schemas: schema versions of the files read, by file name.
    """

    title: str
    models: Mapping[str, ModelView]
    what_was_asked: Sequence[tuple[str, str]] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    claim: ClaimKind | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    reproduce: Sequence[str] = ()
    attacks_run: Sequence[str] = ()
    runs_tried: int | None = None
    policy: Sequence[PolicyRule] = ()
    relearning: RelearnView | None = None
    more_relearning: Sequence[RelearnView] = ()
    attacks: Sequence[AttackRow] = ()
    regimes: Sequence[RegimeView] = ()
    powers: Sequence[PowerView] = ()
    canaries: Mapping[str, Any] = field(default_factory=dict)
    key_metrics: Sequence[str] = ()
    plane_metric: str = ""
    not_shown: Sequence[str] = ()
    notes: Sequence[str] = ()
    schemas: Mapping[str, Any] = field(default_factory=dict)

    def first(self, role: str) -> ModelView | None:
        """Return the first model with this role, or None."""
        return next((model for model in self.models.values() if model.role == role), None)

    @property
    def changed(self) -> dict[str, ModelView]:
        """The models that are neither the target nor the reference, by name."""
        return {name: model for name, model in self.models.items() if model.role not in (TARGET, REFERENCE)}

    @property
    def measured(self) -> bool:
        """Whether any model carries a metric."""
        return any(model.metrics for model in self.models.values())

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself and without an error (a comparison has no run and counts as finished)."""
        return self.run.get("status", "done") in ("done", "completed", "finished", "ok") and not self.run.get("error")
