# SPDX-License-Identifier: Apache-2.0
"""What a private run says, and what it answers to a request."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from expunge.claims import lint
from expunge.data.encoding import Encoded, EncodedRow
from expunge.data.examples import Example
from expunge.errors import InputDataError, RecipeError
from expunge.training.accounting import Mechanism, epsilon
from expunge.training.privacy_config import PrivacyConfig
from expunge.training.privacy_statement import CARD, answer_request, statement
from expunge.training.private_task import PoissonTask, PrivacyPlan, units_of

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

ITEM = Encoded((1, 2, 3), (-100, 2, 3), ends_with_eos=False)


def after(steps: int, sigma: float = 1.0, unit: Any = "sequence") -> dict[str, Any]:
    privacy = PrivacyConfig(noise_multiplier=sigma, delta=1e-5, unit=unit, accountant="rdp")
    plan = PrivacyPlan(privacy, Mechanism(0.01, sigma, 2000), 100, 1.0)
    task = PoissonTask([[ITEM]] * 100, plan, seed=0)
    for _ in range(steps):
        task.finish_step({})
    return statement(task, sequences_per_example=3)


def test_the_statement_counts_the_steps_taken_not_the_steps_planned() -> None:
    found = after(1000)
    assert found["epsilon_by_accountant"] == pytest.approx({"rdp": 2.1014, "prv": 1.8384, "pld": 1.8282}, abs=1e-3)
    assert found["epsilon"] == found["epsilon_by_accountant"]["rdp"]
    assert (found["steps"], found["rate"], found["delta"], found["sampler"]) == (1000, 0.01, 1e-5, "poisson")
    assert not lint(json.dumps(found))
    assert found["claim"] == CARD.claim == "statistical"
    assert any("seed" in line for line in found["assumptions"])


def test_a_request_is_answered_with_the_group() -> None:
    one = epsilon(Mechanism(0.01, 1.0, 300), 1e-5, "rdp")
    found = answer_request(after(300), 2)
    assert found["group_size"] == 6  # two examples of up to three sequences each
    assert found["epsilon"] == pytest.approx(6 * one)
    assert found["delta"] == pytest.approx(6 * math.exp(5 * one) * 1e-5)
    by_subject = answer_request(after(300, unit="subject"), 2)
    assert (by_subject["group_size"], by_subject["epsilon"]) == (2, pytest.approx(2 * one))
    assert not lint(json.dumps(found))
    json.dumps(found, allow_nan=False)


def test_a_group_too_large_is_said_to_say_nothing() -> None:
    found = answer_request(after(1000), 40)
    assert (found["says_something"], found["delta"]) == (False, None)
    assert "any model at all" in found["reason"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("records", [0, -1, 101])
def test_a_request_about_more_than_there_was_is_refused(records: int) -> None:
    with pytest.raises(RecipeError, match="1 to 100 records"):
        answer_request(after(10), records)


def test_without_noise_nothing_is_guaranteed() -> None:
    found = after(10, sigma=0.0)
    assert (found["epsilon"], found["reason"]) == (None, "without noise no epsilon holds")
    json.dumps(found, allow_nan=False)
    with pytest.raises(InputDataError, match="guarantees nothing"):
        answer_request(found, 1)


def test_units_are_sequences_or_subjects() -> None:
    examples = [Example(id=str(i), prompt="", answer="x", subject=name) for i, name in enumerate("aba")]
    items = [Encoded((n, n), (-100, n), ends_with_eos=False) for n in range(4)]
    rows = [EncodedRow(items[0], 0, 0), EncodedRow(items[1], 1, 0), EncodedRow(items[2], 1, 1),
            EncodedRow(items[3], 2, 0)]  # fmt: skip
    assert units_of(rows, examples, "sequence") == [[item] for item in items]
    assert units_of(rows, examples, "subject") == [[items[0], items[3]], [items[1], items[2]]]
    with pytest.raises(InputDataError, match=r"example '1' has no subject.*unit: sequence"):
        units_of(rows, [examples[0], Example(id="1", prompt="", answer="x"), examples[2]], "subject")
