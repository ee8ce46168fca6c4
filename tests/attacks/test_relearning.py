# SPDX-License-Identifier: Apache-2.0
"""Relearning: the same training for every model, facts that were never shown, and what comes back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from expunge.attacks.base import REFERENCE
from expunge.attacks.compare import block_weights
from expunge.attacks.gauge import column_of, difference
from expunge.attacks.registry import parse_attack, run_attacks
from expunge.attacks.relearn_config import RelearningConfig
from expunge.attacks.relearn_data import fold_of, rounds
from expunge.attacks.relearn_power import learning_rate, power_of, shown_examples
from expunge.attacks.relearning import NO_POWER, Relearning, with_rates
from expunge.audit.config import AuditConfig
from expunge.data.encoding import Encoded, EncodedRow
from expunge.data.examples import Example
from expunge.errors import InputDataError, RecipeError
from expunge.training.finetune import FineTuneTask

SETTINGS = {"how": ["full"], "learning_rates": [1e-3], "budgets": [2, 6], "batch_size": 8}


def facts(subjects=3, each=5):
    return [
        Example(id=f"{s}-{k}", prompt=f"q{k}", answer="a", subject=f"s{s}")
        for s in range(subjects)
        for k in range(each)
    ]


def test_folds_deal_every_subject_out_evenly():
    fold = np.array(fold_of(facts(), 5, seed=3)).reshape(3, 5)
    assert [sorted(row) for row in fold.tolist()] == [[0, 1, 2, 3, 4]] * 3
    assert fold_of(facts(), 5, seed=3) == fold_of(facts(), 5, seed=3) != fold_of(facts(), 5, seed=4)
    uneven = np.bincount(fold_of(facts(4, 3), 5, seed=0))
    assert uneven.max() - uneven.min() <= 1
    with pytest.raises(InputDataError, match="folds"):
        fold_of(facts(1, 2), 5, seed=0)


def test_related_facts_tested_were_never_shown_and_each_is_tested_once():
    parts = rounds("related", facts(), (), folds=5, rotations=5, seed=0)
    for part in parts:
        assert not {e.id for e in part.shown} & {e.id for e in part.tested}
        assert len(part.shown) == 12
        assert {e.subject for e in part.shown} == {e.subject for e in part.tested} == {"s0", "s1", "s2"}
    assert sorted(e.id for part in parts for e in part.tested) == sorted(e.id for e in facts())
    assert len(rounds("related", facts(), (), folds=5, rotations=2, seed=0)) == 2


def test_what_was_hidden_comes_back_faster_than_the_reference_learns(lab):
    (result,) = run_attacks(
        ["relearning"], lab.context("target", "unlearned"), {"relearning": {**SETTINGS, "on": ["related"]}}
    )
    curve = next(c for c in result.curves if c.metric == "forget.probability")
    assert [budget for budget, _ in curve.points[REFERENCE]] == [0, 2, 6]
    own, control = (dict(curve.points[name]) for name in ("unlearned", REFERENCE))
    assert abs(own[0].value - control[0].value) < 0.15  # on outputs alone the two look alike
    assert own[6].value > control[6].value + 0.2
    finding = next(f for f in result.findings if f.model == "unlearned" and f.metric == "forget.probability")
    assert finding.value.value == own[6].value
    assert next(iter(finding.controls)) == REFERENCE
    assert finding.differences[REFERENCE].value == pytest.approx(own[6].value - control[6].value)
    assert finding.more["relearn_robustness"].value < 0.7
    verdict = result.notes["regimes"]["unlearned"]["related, all weights"]
    assert verdict["forgotten"] is True
    assert verdict["recovery"]["value"] > 0.3
    assert verdict["control"]["value"] == pytest.approx(own[6].value - control[6].value)  # against the reference
    kept = result.notes["regimes"]["target"]["related, all weights"]
    assert kept["forgotten"] is False
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_verdict_counts_what_is_asked_for(lab):
    settings = {**SETTINGS, "on": ["related"], "measure": "extraction_strength"}
    (result,) = run_attacks(["relearning"], lab.context(), {"relearning": settings})
    verdict = result.notes["regimes"]["unlearned"]["related, all weights"]
    (curve,) = [curve for curve in result.curves if curve.metric == "forget.extraction_strength"]
    last, control = curve.points["unlearned"][-1][1].value, curve.points[REFERENCE][-1][1].value
    before = verdict["means"]["forget"]["before"]
    assert verdict["measure"] == "extraction_strength"
    assert verdict["means"]["forget"]["relearned"] == pytest.approx(last)
    assert verdict["excess_recovery"]["value"] == pytest.approx((last - control) / (before - control))


def test_a_point_of_the_curve_is_what_a_run_of_that_length_ends_with(lab):
    def last(budgets):
        settings = {"relearning": {**SETTINGS, "on": ["forget"], "budgets": budgets}}
        (result,) = run_attacks(["relearning"], lab.context(), settings)
        return {name: dict(points) for name, points in result.curves[0].points.items()}

    long, short = last([1, 3]), last([1])
    for name in ("unlearned", REFERENCE):
        assert short[name][1].value == long[name][1].value  # also: the same seed gives the same bytes


def test_budgets_in_examples_and_lora(lab):
    settings = {"on": ["forget"], "how": ["lora"], "unit": "examples", "budgets": [1, 16], "epochs": 2,
                "lora": {"r": 4, "alpha": 8}, "lora_learning_rates": [1e-4, 1e-2]}  # fmt: skip
    (result,) = run_attacks(["relearning"], lab.context(), {"relearning": settings})
    curve = result.curves[0]
    assert curve.budget_unit == "examples shown"
    points = dict(curve.points["unlearned"])
    assert points[16].value > points[1].value
    rates = result.notes["learning_rates"]["forget, LoRA, probability"]["unlearned"]
    assert len(rates) == 3
    assert rates[-1] == 1e-2  # the attacker takes the better of the two


def test_unrelated_text_and_a_rate_that_diverges(lab):
    settings = {**SETTINGS, "on": ["unrelated"], "learning_rates": [1e-3, 1e30], "budgets": [2]}
    (result,) = run_attacks(["relearning"], lab.context(), {"relearning": settings})
    assert "unrelated text" in result.curves[0].title
    assert result.curves[0].points["unlearned"][-1][1].n == len(lab.splits.forget)


def test_the_default_rate_is_the_published_one_carried_over_by_width_and_size(tiny):
    model = tiny(0)  # width 32: sqrt(4096 / 32) is 8 sqrt(2)
    with torch.no_grad():
        for weight in block_weights(model).values():
            weight.fill_(0.06)  # three times 0.02
    assert learning_rate(model, "full") == pytest.approx(float(f"{2e-5 * 3 * 8 * math.sqrt(2):.2g}"))
    assert learning_rate(model, "lora") == pytest.approx(float(f"{2e-4 * 3 * 8 * math.sqrt(2):.2g}"))
    with torch.no_grad():
        for weight in block_weights(model).values():
            weight.mul_(1e-3)
    assert learning_rate(model, "full") == 2e-5  # never below the published one
    given = RelearningConfig(learning_rates=(1e-3,))
    assert given.rates("full") == (1e-3,)
    with pytest.raises(RecipeError, match="learning rates must be above 0"):
        parse_attack("relearning", {"learning_rates": []})


def test_rates_are_measured_on_the_reference_and_are_the_same_for_every_model(lab):
    found = with_rates(RelearningConfig(), lab.context())
    assert found.learning_rates == (learning_rate(lab.reference, "full"),)
    assert found.lora_learning_rates == (learning_rate(lab.reference, "lora"),)
    given = RelearningConfig(learning_rates=(1e-3,), lora_learning_rates=(1e-2,))
    assert with_rates(given, lab.context(reference=None)) is given


def test_what_was_shown_follows_the_order_of_training():
    rows = [EncodedRow(Encoded((i, 1), (i, 1), False), i // 2, i % 2) for i in range(12)]  # two chunks per example
    task = FineTuneTask([row.encoded for row in rows], batch_size=4, seed=3)
    first = {rows[row.index].index for group in task.steps(0)[0] for row in group}
    assert shown_examples(rows, steps=1, batch_size=4, seed=3) == sorted(first)
    assert shown_examples(rows, steps=5, batch_size=4, seed=3) == list(range(6))
    many = [EncodedRow(Encoded((1,), (1,), False), i, 0) for i in range(200)]
    found = shown_examples(many, steps=25, batch_size=8, seed=0)
    assert (len(found), found[0], found[-1]) == (64, 0, 196)


def test_an_attack_that_moves_nothing_concludes_nothing(lab):
    still = {"relearning": {**SETTINGS, "on": ["forget"], "learning_rates": [1e-7]}}
    (result,) = run_attacks(["relearning"], lab.context("unlearned"), still)
    way = "forget, all weights"
    power = result.notes["power"][way]
    assert (power["there"], power["limit"]) == (False, 0.05)
    assert abs(power["rise"]["value"]) < 0.01
    assert power["rise"]["value"] == pytest.approx(power["after"] - power["before"])
    assert result.notes["regimes"]["unlearned"][way] == {"label": None, "power": False, "reason": NO_POWER}
    moving = {"relearning": {**SETTINGS, "on": ["forget"], "budgets": [2, 12]}}
    (result,) = run_attacks(["relearning"], lab.context("unlearned"), moving)
    assert result.notes["power"][way]["there"] is True
    assert result.notes["regimes"]["unlearned"][way]["label"]


def test_a_model_that_moves_alone_counts_although_the_reference_did_not():
    def column(*values):
        return column_of([Example(id=f"i{k}", prompt="q", answer="a", subject=f"s{k}") for k in range(3)], values, "p")

    config = AuditConfig(bootstrap=200)
    low = column(0.1, 0.2, 0.3)
    still = power_of(low, column(0.11, 0.2, 0.3), limit=0.05, config=config)
    assert (still.before, still.there) == (pytest.approx(0.2), False)
    assert not still.covers(difference(low, low, config))
    assert still.covers(difference(column(0.3, 0.5, 0.5), low, config))
    assert power_of(low, column(0.2, 0.3, 0.4), limit=0.05, config=config).there
    # A mean that one of three subjects makes alone does not hold.
    assert not power_of(low, column(0.0, 0.2, 0.8), limit=0.05, config=config).there


def test_without_unrelated_text_it_is_left_out_by_default(lab):
    from expunge.attacks.relearning import kinds

    assert kinds(RelearningConfig(), lab.context()) == ("forget", "related", "unrelated")
    assert kinds(RelearningConfig(), lab.context(unrelated=())) == ("forget", "related")
    assert Relearning.card.needs == ("forget", "reference")
