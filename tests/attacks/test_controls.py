# SPDX-License-Identifier: Apache-2.0
"""No number without its control; meta-evaluation formulas; regimes; registry."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.attacks.base import REFERENCE, Curve, Finding
from expunge.attacks.gauge import PROBABILITY, column_of, difference, joined, mean, of_means
from expunge.attacks.meta import (
    admissible,
    faithfulness,
    memorisation_score,
    overall,
    quantisation_robustness,
    relearn_robustness,
    robustness,
)
from expunge.attacks.registry import attack_cards, attacks, choose, parse_attack, prepare
from expunge.audit.columns import Column
from expunge.audit.config import AuditConfig
from expunge.audit.estimate import Estimate
from expunge.audit.statistics import harmonic_mean
from expunge.claims import ATTACKS
from expunge.data.examples import Example, Splits
from expunge.errors import ExpungeError, RecipeError
from expunge.signals.likelihood import score

CONFIG = AuditConfig(bootstrap=300)


def number(value):
    return Estimate(value=value, n=1, direction="reference")


def people(values, per=2):
    """A column in which every `per` items share a subject."""
    examples = [Example(id=f"i{k}", prompt="q", answer="a", subject=f"s{k // per}") for k in range(len(values))]
    return column_of(examples, values, "value")


def test_a_number_without_a_control_cannot_exist():
    given = {"model": "m", "setting": "s", "metric": "x"}
    with pytest.raises(ValueError, match="no control"):
        Finding(**given, value=number(0.5), controls={})
    with pytest.raises(ValueError, match="no control"):
        Finding(**given, value=number(0.5), controls={"r": Estimate.missing("none", direction="reference")})
    Finding(**given, value=Estimate.missing("why", direction="reference"), controls={})
    Finding(**given, value=number(0.5), controls={"r": number(0.1)})
    with pytest.raises(ValueError, match="no reference"):
        Curve(title="t", metric="x", budget_unit="steps", points={"m": [(0.0, number(1.0))]})


def test_relearn_and_quantisation_robustness_are_those_of_the_fixtures():
    assert relearn_robustness(0.20, 0.30, 0.10, 0.35) == pytest.approx(0.4)  # O1
    assert quantisation_robustness(0.20, 0.25) == pytest.approx(0.8)
    assert robustness(0.4, 0.8) == pytest.approx(0.5333333333)
    assert overall(0.9, robustness(0.4, 0.8)) == pytest.approx(0.6697674419)
    assert robustness(0.95, 0.68) == pytest.approx(0.7926, abs=5e-5)  # O2
    assert overall(0.92, 0.7926) == pytest.approx(0.8516, abs=5e-5)
    assert memorisation_score(0.2, 0.5, 0.3, 0.4) == pytest.approx(0.6303940, abs=1e-6)  # O3
    assert harmonic_mean([0.32, 0.63, 1.0]) == pytest.approx(0.53, abs=5e-3)


def test_robustness_guards_its_denominators():
    assert relearn_robustness(0.2, 0.3, 0.4, 0.4) == 1.0  # nothing gained
    assert relearn_robustness(0.2, 0.3, 0.4, 0.3) == 1.0  # lost
    assert relearn_robustness(0.2, 0.9, 0.1, 0.2) == 1.0  # the reference gained more: cut at 1
    assert relearn_robustness(0.2, 0.1, 0.1, 0.2) == 0.0  # the reference lost, the model gained
    assert quantisation_robustness(0.2, 0.0) == 1.0
    rows = relearn_robustness([0.2, 0.2], [0.3, 0.3], [0.1, 0.4], [0.35, 0.4])
    assert rows.tolist() == pytest.approx([0.4, 1.0])
    assert faithfulness([0.9, 0.8], [0.1, 0.8]) == 0.875
    assert admissible(0.5, 0.4)
    assert not admissible(0.5, 0.39)


def test_paired_differences_are_tighter_than_independent_ones():
    rng = np.random.default_rng(1)
    base = rng.random(20)
    one, two = people(base + 0.1), people(base)
    paired = difference(one, two, CONFIG)
    assert paired.value == pytest.approx(0.1)
    assert paired.ci_high - paired.ci_low == pytest.approx(0.0, abs=1e-12)
    other = Column(tuple(f"o{i}" for i in range(20)), two.clusters, two.values)
    apart = difference(one, other, CONFIG)
    assert apart.value == pytest.approx(0.1)
    assert apart.ci_high - apart.ci_low > 0.1
    assert of_means([one, two], lambda m: m[:, 0] - m[:, 1], CONFIG).ci_low == pytest.approx(0.1)


def test_one_subject_has_no_interval_and_says_so_but_a_constant_rate_has_an_exact_one():
    single = people([0.2, 0.4], per=2)
    assert "only one subject" in mean(single, CONFIG).reason
    never = mean(people(np.zeros(20)), CONFIG, rate=True)
    assert (never.ci_low, never.ci_high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert len(joined([single, people(np.ones(4))])) == 6


def test_the_gauge_is_the_audit(lab):
    context = lab.context()
    found = context.gauge()(lab.target)[PROBABILITY]
    items = [row.encoded for row in lab.encoder.encode_many(lab.splits.forget, where="forget")]
    scores = score(lab.target, items, pad_id=lab.encoder.pad_id, stats=False)
    assert found.values == pytest.approx([np.exp(s.logp.astype(float).mean()) for s in scores], rel=1e-5)
    assert set(found.clusters) == {"subject:p008", "subject:p009"}
    assert mean(found, context.audit).ci_low is not None


def test_every_attack_has_a_card_of_a_known_kind_and_every_kind_an_attack():
    cards = attack_cards()
    assert {card.kind for card in cards} == set(ATTACKS)
    assert len(cards) == 10
    assert all(card.control and card.source and "forget" in card.needs for card in cards)


def test_attacks_are_chosen_by_name_or_kind():
    assert [a.card.name for a in choose(["probing", "relearning", "linear_probe"])] == [
        "linear_probe", "logit_lens", "relearning",
    ]  # fmt: skip
    assert len(choose(["all"])) == len(attacks())
    with pytest.raises(RecipeError, match="'relearning'"):
        choose(["relerning"])
    with pytest.raises(RecipeError, match="budgets"):
        parse_attack("relearning", {"budget": [1]})
    with pytest.raises(RecipeError, match=r"relearning: budgets must rise"):
        parse_attack("relearning", {"budgets": [4, 1]})


def test_what_is_missing_is_said_before_any_work(lab):
    with pytest.raises(RecipeError, match="--reference"):
        prepare(["relearning"], lab.context(reference=None))
    with pytest.raises(RecipeError, match="--original"):
        prepare(["interpolation"], lab.context(original=None))
    with pytest.raises(RecipeError, match="--unrelated"):
        prepare(["relearning"], lab.context(unrelated=()), {"relearning": {"on": ["unrelated"]}})
    with pytest.raises(RecipeError, match="not run"):
        prepare(["quantisation"], lab.context(), {"pruning": {}})
    with pytest.raises(ExpungeError, match=r"data\.forget"):
        prepare(["quantisation"], lab.context(splits=Splits(())))
    assert REFERENCE == "reference"
