# SPDX-License-Identifier: Apache-2.0
"""Scores made of many: against their parts, by hand, and at the ends of their range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_records import full_records

from expunge.audit.aggregate_metrics import ATTACKS, closeness, fluent_share
from expunge.audit.config import AuditConfig
from expunge.audit.metrics import card_for, compute_metrics
from expunge.audit.protocol import Protocol
from expunge.audit.records import Records
from expunge.audit.statistics import harmonic_mean

PROTOCOL = Protocol("t", "1", {"forget": "forget", "retain": "retain", "holdout": "holdout", "facts": "options"})
CONFIG = AuditConfig(bootstrap=200)


def metrics(records, reference=None, **settings):
    config = CONFIG.model_copy(update=settings)
    return compute_metrics(records, protocol=PROTOCOL, config=config, reference=reference)


@pytest.fixture(scope="module")
def both():
    return full_records(1), full_records(2)


def test_harmonic_mean_of_the_printed_scores():  # O3
    assert harmonic_mean([0.8, 0.5, 0.7, 0.6]) == pytest.approx(0.6303940, abs=1e-6)
    assert harmonic_mean([0.32, 0.63, 1.0]) == pytest.approx(0.53, abs=5e-3)  # SimNPO's row


def test_closeness_to_the_reference():
    assert closeness(0.5, 0.5) == 1.0
    assert closeness(1.0, 0.5) == closeness(0.0, 0.5) == 0.0
    assert closeness(0.8, 0.6) == pytest.approx(1 - 0.2 / 0.6)
    assert closeness(1.0, 0.6) == pytest.approx(1 - 0.4 / 0.6)  # the farther end is 0, not 1
    np.testing.assert_allclose(closeness(np.array([0.3, 0.7]), np.array([0.3, 0.0])), [1.0, 0.3])


def test_fluent_share():
    assert fluent_share("Ann wrote a red book in Paris") == 1.0
    assert fluent_share(" .,") == fluent_share("") == 0.0
    assert fluent_share("a b c d " * 5) < 0.3


def test_memorization_is_the_mean_of_its_parts(both):
    found = metrics(both[0])
    names = ("extraction_strength", "exact_memorization", "paraphrased_answer_probability", "truth_preference")
    parts = [1 - found[f"forget.{name}"].value for name in names]
    one = found["aggregate.memorization"]
    assert one.value == pytest.approx(harmonic_mean(parts))
    assert one.ci_low < one.value < one.ci_high
    assert one.n == 40


def test_privacy_is_the_mean_over_attacks(both):
    found, reference = metrics(*both), metrics(both[1])
    parts = [closeness(*(m[f"membership.{attack}.auc"].value for m in (found, reference))) for attack in ATTACKS]
    one = found["aggregate.privacy"]
    assert one.value == pytest.approx(harmonic_mean(parts))
    assert one.ci_low < one.value < one.ci_high
    assert one.reference == "reference"
    assert metrics(both[1], both[1])["aggregate.privacy"].value == 1.0


def test_utility_and_overall(both):
    found = metrics(*both)
    forget = [item for item in both[0].generated if item.set == "forget" and item.prompt_variant == "question"]
    fluent = np.mean([fluent_share(item.prediction) for item in forget])
    utility = found["aggregate.utility"]
    assert utility.value == pytest.approx(harmonic_mean([found["model_utility"].value, fluent]))
    assert utility.ci_low < utility.value < utility.ci_high
    three = [found[f"aggregate.{name}"].value for name in ("memorization", "privacy", "utility")]
    overall = found["aggregate.overall"]
    assert overall.value == pytest.approx(harmonic_mean(three))
    assert overall.ci_low < overall.value < overall.ci_high


def test_what_is_missing_is_said(both):
    found = metrics(both[0])
    assert "reference" in found["aggregate.privacy"].reason
    assert "reference" in found["aggregate.overall"].reason
    texts = Records(both[0].scored, [replace(item, prediction="") for item in both[0].generated])
    silent = metrics(texts, both[1])
    assert silent["aggregate.utility"].value == 0.0
    assert silent["aggregate.overall"].value == 0.0
    assert metrics(Records(both[0].scored, []))["aggregate.utility"].value is None


def test_the_cards_say_what_is_ours():
    assert "ours" in card_for("aggregate.privacy").definition
    assert "Not comparable" in " ".join(card_for("aggregate.overall").known_failures)
    assert "our reading" in card_for("aggregate.memorization").definition
    assert "ours" in card_for("aggregate.utility").definition
