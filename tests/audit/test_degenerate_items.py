# SPDX-License-Identifier: Apache-2.0
"""Items that have almost nothing to measure: null with a reason, or an error that names them; never a fine number."""

from __future__ import annotations

import numpy as np
import pytest
from audit_records import generated, scored

from expunge.audit.config import AuditConfig
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import Protocol
from expunge.audit.records import Records

PROTOCOL = Protocol("t", "1", {"forget": "forget", "retain": "retain", "holdout": "holdout"})
TOKEN_METRICS = ("forget.extraction_strength", "forget.exact_memorization", "membership.min_k.auc")


def metrics(items, texts=(), **settings):
    config = AuditConfig(bootstrap=100, **settings)
    return compute_metrics(Records(items, texts), protocol=PROTOCOL, config=config)


def answers(set_name, *lengths, eos=True):
    return [scored(set_name, f"q{i}", -np.arange(1.0, n + 1), eos=eos) for i, n in enumerate(lengths)]


def test_an_answer_of_one_token_that_only_ends():
    found = metrics([*answers("forget", 1, 4), *answers("holdout", 4, 5)])
    for name in (*TOKEN_METRICS, "membership.loss.auc"):
        assert found[name].value is None
        assert "forget/q0" in found[name].reason
    assert found["forget.probability"].value == pytest.approx((np.exp(-1) + np.exp(-2.5)) / 2)


def test_an_answer_of_one_token_that_does_not_end():
    items = [*answers("forget", 1, 4, eos=False), *answers("holdout", 4, 5, eos=False)]
    assert all(metrics(items)[name].value is not None for name in TOKEN_METRICS)
    dropped = metrics(items, compat="openunlearning")  # that code drops the last label, whatever it is
    assert all(dropped[name].value is None and "forget/q0" in dropped[name].reason for name in TOKEN_METRICS)
    undefined = metrics(items, compat="muse")["membership.min_k.auc"]  # and this one takes int(0.2 x 1) tokens
    assert undefined.value is None
    assert "undefined" in undefined.reason


def test_no_items_at_all():
    found = metrics([])
    assert all(one.value is None and one.reason for one in found.values())


def test_equal_items_on_both_sides_are_a_coin_toss():
    found = metrics([*answers("forget", 4, 4), *answers("holdout", 4, 4)])
    assert found["membership.min_k.auc"].value == 0.5


@pytest.mark.parametrize("field", ["logp", "mu", "sigma2"])
def test_not_a_number_names_the_item(field):
    values = {"logp": np.full(3, -1.0), "mu": np.full(3, -2.0), "sigma2": np.ones(3)}
    values[field][1] = np.nan
    item = scored("forget", "q7", values.pop("logp"), **values)
    with pytest.raises(ValueError, match="forget/q7"):
        metrics([item])


def test_an_empty_generation_is_a_refusal_and_overlaps_nothing():
    said = [generated("forget", "q0", "", "Ann wrote it"), generated("forget", "q1", "Ann wrote it", "Ann wrote it")]
    found = metrics(answers("forget", 3, 3), said)
    assert [found[f"forget.{name}"].value for name in ("rouge_l", "refusal_rate", "leak_rate")] == [0.5, 0.5, 0.5]
    rates = [found[f"forget.{name}"].value for name in ("refusal_rate", "leak_rate", "hallucination_rate")]
    assert sum(rates) == pytest.approx(1.0)
