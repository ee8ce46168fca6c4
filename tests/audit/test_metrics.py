# SPDX-License-Identifier: Apache-2.0
"""From records to estimates: names, cards, reasons, roles and seeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from audit_records import full_records, generated, scored

from expunge.audit.config import AuditConfig
from expunge.audit.metrics import card_for, compute_metrics, item_values, metric_cards
from expunge.audit.protocol import Protocol, default_protocol
from expunge.audit.records import Records
from expunge.audit.statistics import Unavailable
from expunge.claims import lint
from expunge.data.examples import Example
from expunge.errors import RecipeError

ROLES = {"forget": "forget", "retain": "retain", "holdout": "holdout", "facts": "options"}
PROTOCOL = Protocol("test", "1", ROLES)
CONFIG = AuditConfig(bootstrap=200)
CORE = [
    "forget.probability", "forget.rouge_l", "forget.truth_ratio", "forget.extraction_strength",
    "forget.exact_memorization", "forget.paraphrase_probability", "forget.paraphrase_rouge_l", "forget.refusal_rate",
    "forget.leak_rate", "forget.hallucination_rate", "forget.fluency", "retain.probability", "retain.rouge_l",
    "retain.truth_ratio", "forget_quality", "forget_quality_ks", "model_utility", "privleak", "membership.loss.auc",
    "membership.zlib.auc", "membership.min_k.auc", "membership.min_k_plus_plus.auc", "membership.min_k.tpr_at_1pct_fpr",
]  # fmt: skip


@pytest.fixture(scope="module")
def everything():
    return compute_metrics(
        full_records(0, n=120),
        protocol=PROTOCOL,
        config=CONFIG,
        reference=full_records(1, n=120),
        reference_name="retrained",
    )


def test_every_metric_has_a_number_when_every_input_is_there(everything):
    assert [name for name, found in everything.items() if found.value is None] == []
    assert set(CORE) <= set(everything)
    assert "facts.probability" in everything


def test_values_lie_in_their_intervals_and_ranges(everything):
    for name, found in everything.items():
        if found.ci_low is not None:
            assert found.ci_low <= found.value <= found.ci_high, name
        if name not in ("privleak", "forget.fluency", "retain.fluency", "facts.fluency"):
            assert 0 <= found.value <= 1, name


def test_names_and_cards_agree_both_ways(everything):
    assert len(metric_cards()) == len({card.name for card in metric_cards()})
    names = [card.name for card in metric_cards(PROTOCOL)]
    assert {card_for(name, PROTOCOL).name for name in everything} == set(names)
    for name, found in everything.items():
        assert card_for(name, PROTOCOL).direction == found.direction, name
        assert found.compat in card_for(name, PROTOCOL).compat


def test_cards_are_complete_and_claim_nothing_forbidden():
    for card in metric_cards():
        assert card.title, card.name
        assert card.definition
        assert card.unit
        assert card.target
        text = " ".join([card.definition, card.target, *card.known_failures])
        assert lint(text) == [], card.name
        assert card.compat[0] == "fixed"


def test_cards_follow_the_role_of_a_set_with_another_name():
    protocol = Protocol("test", "1", {"authors": "forget", "fresh": "holdout"})
    assert card_for("authors.probability", protocol).name == "forget.probability"
    assert card_for("fresh.probability", protocol).name == "holdout.probability"
    assert card_for("world.probability").name == "{set}.probability"
    with pytest.raises(RecipeError, match="unknown metric"):
        card_for("forget.nonsense")


def test_reference_metrics_name_the_reference(everything):
    for name in ("forget_quality", "forget_quality_ks", "privleak", "membership.reference.auc"):
        assert everything[name].reference == "retrained"
    assert everything["forget.probability"].reference is None


def test_rates_sum_to_one(everything):
    total = sum(everything[f"forget.{name}_rate"].value for name in ("refusal", "leak", "hallucination"))
    assert total == pytest.approx(1.0)


def test_missing_inputs_give_reasons_never_numbers():
    records = Records([scored("forget", "a", [-1.0, -2.0]), scored("forget", "b", [-1.5])], [])
    found = compute_metrics(records, protocol=Protocol("test", "1", {"forget": "forget"}), config=CONFIG)
    assert set(CORE) <= set(found)
    reasons = {name: entry.reason for name, entry in found.items() if entry.value is None}
    assert "reference" in reasons["forget_quality"]
    assert "holdout" in reasons["membership.loss.auc"]
    assert "perturbed" in reasons["forget.truth_ratio"]
    assert "generated" in reasons["forget.rouge_l"]
    assert "'retain'" in reasons["retain.probability"]
    assert "retain" in reasons["model_utility"]
    assert found["forget.probability"].value == pytest.approx(np.mean([np.exp(-1.5)] * 2))


def test_a_set_of_the_protocol_that_was_not_evaluated_is_named():
    records = Records([scored("forget", "a", [-1.0])], [])
    found = compute_metrics(records, protocol=PROTOCOL, config=CONFIG)
    assert "'facts'" in found["facts.probability"].reason
    assert "retain.probability" in found["model_utility"].reason


def test_no_records_at_all():
    found = compute_metrics(Records([], []), protocol=Protocol("test", "1", {}), config=CONFIG)
    assert set(CORE) <= set(found)
    assert all(entry.value is None and entry.reason for entry in found.values())


def test_one_item_has_a_value_but_no_interval():
    records = Records([scored("forget", "a", [-1.0])], [generated("forget", "a", "", "an answer")])
    found = compute_metrics(records, protocol=Protocol("test", "1", {"forget": "forget"}), config=CONFIG)
    one = found["forget.probability"]
    assert (one.value, one.ci_low, one.n) == (pytest.approx(np.exp(-1)), None, 1)
    assert "subject" in one.reason


def test_zero_of_forty_is_not_never():
    texts = [generated("forget", str(i), "completely different", "Anna wrote the red book") for i in range(40)]
    found = compute_metrics(Records([], texts), protocol=Protocol("test", "1", {"forget": "forget"}), config=CONFIG)
    leak = found["forget.leak_rate"]
    assert (leak.value, leak.ci_low) == (0.0, 0.0)
    assert leak.ci_high == pytest.approx(1 - 0.025 ** (1 / 40))


def test_nan_fails_loudly_and_names_the_item():
    records = Records([scored("forget", "broken", [-1.0, np.nan])], [])
    with pytest.raises(ValueError, match="forget/broken"):
        compute_metrics(records, protocol=Protocol("test", "1", {"forget": "forget"}), config=CONFIG)


def test_patterns_select_and_unknown_ones_are_refused():
    records = full_records(0, n=8)
    config = CONFIG.model_copy(update={"metrics": ("forget.rouge*", "privleak")})
    found = compute_metrics(records, protocol=PROTOCOL, config=config)
    assert list(found) == ["forget.rouge_l", "forget.rouge_l_f1", "forget.rouge_1", "privleak"]
    with pytest.raises(RecipeError, match=r"forget\.rouge_l"):
        compute_metrics(records, protocol=PROTOCOL, config=CONFIG.model_copy(update={"metrics": ("forget.rogue_l",)}))


def test_a_number_does_not_depend_on_what_else_is_computed_nor_on_item_order(everything):
    records = full_records(0, n=120)
    turned = Records(records.scored[::-1], records.generated[::-1])
    config = CONFIG.model_copy(update={"metrics": ("model_utility", "membership.min_k.auc", "forget.rouge_l")})
    for name, found in compute_metrics(turned, protocol=PROTOCOL, config=config).items():
        whole = everything[name]
        assert (found.value, found.ci_low, found.ci_high) == pytest.approx((whole.value, whole.ci_low, whole.ci_high))


def test_compat_is_used_where_it_differs_and_said():
    records = full_records(0, n=20)
    found = {
        compat: compute_metrics(records, protocol=PROTOCOL, config=CONFIG.model_copy(update={"compat": compat}))
        for compat in ("fixed", "paper", "openunlearning", "muse")
    }
    ratio = {compat: entry["forget.truth_ratio"] for compat, entry in found.items()}
    assert ratio["paper"].compat == "paper"
    assert ratio["muse"].compat == "fixed"
    assert ratio["paper"].value != ratio["fixed"].value == ratio["muse"].value
    assert (
        found["openunlearning"]["forget.extraction_strength"].value > found["fixed"]["forget.extraction_strength"].value
    )
    assert found["muse"]["membership.loss.auc"].value != found["fixed"]["membership.loss.auc"].value


def test_forget_quality_sees_a_shift_and_not_a_copy():
    records = full_records(0, n=60)
    same = compute_metrics(records, protocol=PROTOCOL, config=CONFIG, reference=records)
    assert (same["forget_quality"].value, same["forget_quality_ks"].value, same["privleak"].value) == (1.0, 0.0, 0.0)
    assert same["forget_quality"].reference == "reference"
    items = [
        dataclasses.replace(item, logp=np.asarray(item.logp) - 4) if item.variant == "perturbed" else item
        for item in records.scored
    ]
    moved = compute_metrics(Records(items, records.generated), protocol=PROTOCOL, config=CONFIG, reference=records)
    assert moved["forget_quality"].value < 1e-6
    assert moved["forget_quality"].ci_high < 0.05


def test_privleak_of_the_same_items_shares_its_draws():
    records = full_records(0, n=30)
    same = compute_metrics(records, protocol=PROTOCOL, config=CONFIG, reference=records)["privleak"]
    assert (same.ci_low, same.ci_high) == (0.0, 0.0)


def test_sets_of_one_role_are_pooled():
    first, second = full_records(0, n=10), full_records(1, n=10)
    renamed = [dataclasses.replace(item, set="forget_b") for item in second.scored if item.set == "forget"]
    protocol = Protocol("test", "1", ROLES | {"forget_b": "forget"})
    found = compute_metrics(Records([*first.scored, *renamed], first.generated), protocol=protocol, config=CONFIG)
    assert found["membership.loss.auc"].n == 30
    assert found["forget_b.probability"].value is not None


def test_a_set_without_a_role_is_refused():
    with pytest.raises(RecipeError, match="no role"):
        compute_metrics(full_records(0, n=4), protocol=Protocol("test", "1", {"forget": "forget"}), config=CONFIG)
    with pytest.raises(RecipeError, match="unknown role"):
        Protocol("test", "1", {"forget": "target"})


def test_item_values_average_to_the_metric(everything):
    records = full_records(0, n=120)
    for name in ("forget.rouge_l", "facts.probability", "forget.truth_ratio"):
        column = item_values(records, name, protocol=PROTOCOL, config=CONFIG)
        assert column.values.mean() == pytest.approx(everything[name].value)
        assert len(column.ids) == everything[name].n
    with pytest.raises(RecipeError, match="forget_quality"):
        item_values(records, "forget_quality", protocol=PROTOCOL, config=CONFIG)
    with pytest.raises(Unavailable):
        item_values(Records([], []), "forget.rouge_l", protocol=Protocol("t", "1", {"forget": "forget"}), config=CONFIG)


def test_default_protocol_reads_names_and_options():
    plain = Example(id="1", prompt="q", answer="a")
    options = Example(id="1", prompt="q", answer="a", perturbed_answers=("b",))
    sets = {
        "forget": [options],
        "retain": [options],
        "holdout": [plain],
        "facts": [options],
        "mixed": [options, plain],
        "empty": [],
    }
    roles = default_protocol(sets).roles
    assert dict(roles) == {
        "forget": "forget", "retain": "retain", "holdout": "holdout", "facts": "options", "mixed": "retain",
        "empty": "retain",
    }  # fmt: skip


def test_config_refuses_unknown_fields_and_values():
    for bad in ({"bootstraps": 1}, {"compat": "other"}, {"min_k": 0.0}, {"limit": 0}):
        with pytest.raises(ValueError):
            AuditConfig(**bad)
    assert all(field.description for field in AuditConfig.model_fields.values())
