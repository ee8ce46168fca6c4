# SPDX-License-Identifier: Apache-2.0
"""Relearning: train the model again on a little, and see what comes back beyond what the reference learns anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.attacks.base import (
    BEFORE,
    REFERENCE,
    Attack,
    AttackCard,
    AttackContext,
    AttackResult,
    Curve,
    Finding,
    Subject,
)
from expunge.attacks.compare import finding
from expunge.attacks.gauge import EXTRACTION, PROBABILITY, difference, mean, of_means
from expunge.attacks.meta import relearn_robustness
from expunge.attacks.relearn_config import How, RelearningConfig
from expunge.attacks.relearn_data import MEANING, On, rounds
from expunge.attacks.relearn_power import SHOWN, Power, learning_rate, power_of
from expunge.attacks.relearn_runs import Track, by_rate
from expunge.audit.columns import Column
from expunge.audit.regimes import Measured, Thresholds, judge_regime
from expunge.errors import RecipeError

NO_POWER = "the attack had no power: neither the reference nor this model moved"
NO_STRENGTH = "an answer of one token has no extraction strength"


class Relearning(Attack):
    """Train again, beside a reference trained in exactly the same way."""

    card = AttackCard(
        name="relearning",
        kind="relearning",
        title="Relearning",
        definition="Fine-tune on the forget set, on some facts of each subject (tested on others never shown), or on "
        "unrelated text; with all weights or with LoRA; measured at each budget. Of several learning rates the one "
        "with the highest mean counts, for every model by itself. The default rate is the published one (2e-5; LoRA "
        "2e-4) times what makes a step move the sums of this model as far as those of one of 7 billion weights: "
        "(size of its weights / 0.02) x sqrt(4096 / its width), never less than published, measured on the reference "
        "and the same for every model. The attack has power where the reference, trained alike, rises on what it was "
        "shown by 0.05 or more; without power nothing is concluded from what did not come back.",
        needs=("forget", "reference"),
        control="the retain-only reference, trained on the same examples in the same order with the same settings",
        cost="per kind, way, rate and model: budget x batch size x 3 F, and one scoring pass per point; two more of "
        "the reference on what it was shown",
        source="Lynch et al., Eight Methods to Evaluate Robust Unlearning in LLMs, 2024; Deeb and Roger, Do Unlearning "
        "Methods Remove Information from Language Model Weights?, 2024 (related facts); Łucki et al., An Adversarial "
        "Perspective on Machine Unlearning for AI Safety, 2024 (LoRA); Dorna et al., OpenUnlearning, 2025 (robustness)",
        known_failures=(
            "Two wordings of one fact given as two examples may land on both sides of `related`.",
            "Choosing the best of several rates on the tested items makes curves look higher, those of the control "
            "alike.",
        ),
    )
    Config = RelearningConfig

    def check(self, config: RelearningConfig, context: AttackContext) -> None:
        """Raise if the reference or the data of a kind of relearning is missing."""
        super().check(config, context)
        if "unrelated" in kinds(config, context) and not context.unrelated:
            raise RecipeError("needed to relearn on it", field="data.unrelated", remedy="Give --unrelated FILE")

    def run(self, config: RelearningConfig, context: AttackContext) -> AttackResult:
        """Relearn every subject and the reference in every way asked for."""
        config, out = with_rates(config, context), _Found()
        for on in kinds(config, context):
            for how in config.how:
                _one_way(config, context, on, how, out)
        return self.result(
            config, out.findings, curves=out.curves,
            notes={"regimes": out.regimes, "power": out.power, "learning_rates": out.rates, "diverged": out.diverged,
                   "optimiser": "AdamW, constant rate without warm-up, so that a point is what a run of that length "
                   "ends with"},
        )  # fmt: skip


def kinds(config: RelearningConfig, context: AttackContext) -> tuple[On, ...]:
    """Return what is relearned on."""
    if config.on is not None:
        return config.on
    return ("forget", "related", "unrelated") if context.unrelated else ("forget", "related")


def with_rates(config: RelearningConfig, context: AttackContext) -> RelearningConfig:
    """Return the settings with the rates that `auto` stands for, measured on the reference."""
    keys: dict[str, How] = {"learning_rates": "full", "lora_learning_rates": "lora"}
    wanted = {key: how for key, how in keys.items() if config.rates(how) == "auto"}
    if not wanted:
        return config
    model = context.need(REFERENCE, "relearning").load()
    return config.model_copy(update={key: (learning_rate(model, how),) for key, how in wanted.items()})


class _Found:
    """What one attack gathers."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.curves: list[Curve] = []
        self.regimes: dict[str, dict[str, object]] = {}
        self.power: dict[str, dict[str, object]] = {}
        self.rates: dict[str, dict[str, list[float]]] = {}
        self.diverged: list[str] = []


def _one_way(config: RelearningConfig, context: AttackContext, on: On, how: How, out: _Found) -> None:
    """Relearn every model in one way and add what it shows."""
    title = f"{on}, {'all weights' if how == 'full' else 'LoRA'}"
    plan = rounds(
        on, context.splits.forget, context.unrelated, folds=config.folds, rotations=config.rotations, seed=context.seed
    )
    tracks: dict[str, dict[float, Track]] = {}
    rates = [rate for rate in config.rates(how) if not isinstance(rate, str)]
    for subject in context.attacked():
        context.stage(f"Relearning {subject.name}: {MEANING[on]}, {how}")
        tracks[subject.name] = by_rate(config, context, subject, plan, how, rates, out.diverged)
    tested = [example for part in plan for example in part.tested]
    first = [track[0] for found in tracks.values() for track in found.values()]
    metrics = [m for m in (PROBABILITY, EXTRACTION) if all(m in columns for columns in first)]
    for metric in metrics:
        best = {name: _best(found, metric) for name, found in tracks.items()}
        out.rates[f"{title}, {metric}"] = {name: [point.rate for point in track] for name, track in best.items()}
        out.curves.append(_curve(config, context, title, on, metric, best, len(tested)))
        out.findings += [_finding(config, context, title, metric, subject.name, best) for subject in context.subjects]
    power = _power(config, context, tracks[REFERENCE])
    out.power[title] = power.to_dict()
    for subject in context.subjects:
        own = _best(tracks[subject.name], PROBABILITY)
        found: dict[str, object] = {"label": None, "power": False, "reason": NO_POWER}
        if power.covers(difference(own[-1].column, own[0].column, context.audit)):
            found = {"label": None, "reason": NO_STRENGTH}
            if config.measure in metrics:
                last, anew = (_best(tracks[n], config.measure)[-1].column for n in (subject.name, REFERENCE))
                found = _regime(config, context, subject, last, anew)
        out.regimes.setdefault(subject.name, {})[title] = found


def _power(config: RelearningConfig, context: AttackContext, found: Mapping[float, Track]) -> Power:
    """Return how far the reference rose on what it was shown, at the rate where it rose furthest."""
    ends = [(track[0][SHOWN], track[max(config.budgets)][SHOWN]) for track in found.values()]
    before, after = max(ends, key=lambda pair: float(pair[1].values.mean()))
    return power_of(before, after, limit=config.power, config=context.audit)


@dataclass(frozen=True, slots=True)
class _Point:
    """Values at one budget under the learning rate that is best for the attacker there."""

    budget: int
    rate: float
    column: Column


def _best(found: Mapping[float, Track], metric: str) -> list[_Point]:
    """Return the points of the curve, from budget 0."""
    out = []
    for budget in next(iter(found.values())):
        points = [_Point(budget, rate, track[budget][metric]) for rate, track in found.items()]
        out.append(max(points, key=lambda point: float(point.column.values.mean())))
    return out


def _curve(
    config: RelearningConfig, context: AttackContext, title: str, on: On, metric: str,
    best: Mapping[str, Sequence[_Point]], tested: int,
) -> Curve:  # fmt: skip
    unit = "optimiser steps" if config.unit == "steps" else "examples shown"
    points = {name: [(float(p.budget), mean(p.column, context.audit)) for p in track] for name, track in best.items()}
    words = f"{MEANING[on]} ({title.partition(', ')[2]}; {tested} facts tested)"
    return Curve(title=words, metric=f"forget.{metric}", budget_unit=unit, points=points)


def _finding(
    config: RelearningConfig, context: AttackContext, title: str, metric: str, name: str,
    best: Mapping[str, Sequence[_Point]],
) -> Finding:  # fmt: skip
    own, control = best[name], best[REFERENCE]
    four = [control[0].column, control[-1].column, own[0].column, own[-1].column]
    robust = of_means(four, lambda m: relearn_robustness(m[:, 0], m[:, 1], m[:, 2], m[:, 3]), context.audit)
    return finding(
        name, f"{title}, {own[-1].budget} {config.unit}", f"forget.{metric}", own[-1].column,
        {REFERENCE: control[-1].column, BEFORE: own[0].column}, context.audit, more={"relearn_robustness": robust},
    )  # fmt: skip


def _regime(
    config: RelearningConfig, context: AttackContext, subject: Subject, relearned: Column, anew: Column
) -> dict[str, object]:
    """Return the regime as JSON values, or why there is none."""
    if context.original is None or not context.splits.retain:
        return {"label": None, "reason": "a verdict needs the original model and a retain set"}
    original, measure = context.original, config.measure
    found = Measured(
        forget_before=_only(context.before(original)[measure], relearned),
        forget_after=_only(context.before(subject)[measure], relearned),
        retain_before=context.before(original, "retain")[measure],
        retain_after=context.before(subject, "retain")[measure],
        relearned=relearned, control=_only(anew, relearned),
    )  # fmt: skip
    limits = Thresholds(forgotten=config.forgotten, collateral=config.collateral, residue=config.residue)
    return {"measure": measure, **judge_regime(found, config=context.audit, thresholds=limits).to_dict()}


def _only(column: Column, like: Column) -> Column:
    """Return the items of `like` out of a column, in its order."""
    place = {name: i for i, name in enumerate(column.ids)}
    return Column(like.ids, like.clusters, column.values[[place[name] for name in like.ids]])
