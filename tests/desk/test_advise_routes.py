# SPDX-License-Identifier: Apache-2.0
"""A table: what is known of a request, and the routes that follow from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from expunge.claims import SENTENCES, ClaimKind, lint
from expunge.desk.advise.predict import Prediction, recipe_settings
from expunge.desk.advise.routes import Route, advise
from expunge.desk.advise.situation import situation_from
from expunge.errors import RecipeError
from expunge.runs import write_json

APPROXIMATE = ["negative-preference", "weighted-ascent", "simple-preference", "misdirect-states"]
CLEAN = {"below_saw": False, "subjects": 1}


def unknown(method: str, settings: Any) -> Prediction:
    return Prediction(why="not asked")


def routes(facts: dict[str, Any], predict: Any = unknown) -> list[Route]:
    return advise(situation_from(facts), predict=predict)


def possible(found: list[Route]) -> list[str]:
    return [route.name for route in found if route.possible]


def named(found: list[Route], name: str) -> Route:
    return next(route for route in found if route.name == name)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        # nothing known: only what needs nothing
        ({}, APPROXIMATE),
        # the adapter of a tenant is deleted, if what it stands on never saw the data
        ({"adapter": "t", **CLEAN}, ["delete-adapter", *APPROXIMATE]),
        ({"adapter": "t"}, APPROXIMATE),
        ({"adapter": "t", "below_saw": True}, APPROXIMATE),
        # shards are trained again, if the rest of the data is there
        ({"shards": "s", **CLEAN}, ["retrain-shards", *APPROXIMATE]),
        ({"shards": "s", **CLEAN, "data_kept": False}, ["self-distillation"]),
        # a bound holds already: before retraining, unless something weaker than wanted
        ({"private": "2,1e-6,subject", **CLEAN, "base": "b"}, ["quote-bound", "retrain", *APPROXIMATE]),
        ({"private": "2,1e-6,subject", **CLEAN, "base": "b", "wanted": "exact"},
         ["retrain", "quote-bound", *APPROXIMATE]),
        ({"private": "2,1e-6,subject", **CLEAN, "wanted": "statistical"}, ["quote-bound", *APPROXIMATE]),
        ({"private": "2,1e-6,subject", **CLEAN, "need": "capability"}, [*APPROXIMATE, "quote-bound"]),
        # all of them, in order
        ({"adapter": "t", "shards": "s", "private": "2,1e-6,subject", "base": "b", "served": True, **CLEAN},
         ["delete-adapter", "retrain-shards", "quote-bound", "retrain", *APPROXIMATE, "suppress"]),
        # which approximate method: by what has to go, and whether others can train the weights
        ({"need": "verbatim", "weights_leave": False},
         ["weighted-ascent", "negative-preference", "simple-preference", "misdirect-states"]),
        ({"need": "verbatim", "weights_leave": True}, APPROXIMATE),
        ({"need": "verbatim"}, APPROXIMATE),
        ({"need": "capability", "weights_leave": False},
         ["misdirect-states", "negative-preference", "weighted-ascent", "simple-preference"]),
        ({"need": "capability", "weights_leave": True}, APPROXIMATE),
        ({"need": "knowledge", "weights_leave": False}, APPROXIMATE),
        # nothing that stays is there
        ({"data_kept": False, "base": "b"}, ["self-distillation"]),
        ({"data_kept": False, "served": True}, ["self-distillation", "suppress"]),
        # no method changes several models at once
        ({"ensemble": True, "base": "b"}, ["retrain"]),
        ({"ensemble": True, "data_kept": False}, []),
        # a gate stops nothing in the hands of others
        ({"served": True, "weights_leave": True}, APPROXIMATE),
        ({"served": False}, APPROXIMATE),
        # an order leaves nothing but destruction
        ({"order": True}, ["destroy"]),
        ({"order": True, "adapter": "t", "shards": "s", "base": "b", "served": True, **CLEAN}, ["destroy"]),
    ],
)  # fmt: skip
def test_routes_in_order(facts: dict[str, Any], expected: list[str]) -> None:
    assert possible(routes(facts)) == expected


@pytest.mark.parametrize(
    ("name", "facts", "claim", "method"),
    [
        ("delete-adapter", {"adapter": "t", **CLEAN}, ClaimKind.EXACT, None),
        ("retrain-shards", {"shards": "s", **CLEAN}, ClaimKind.EXACT, None),
        ("quote-bound", {"private": "2,1e-6,subject", **CLEAN}, ClaimKind.STATISTICAL, None),
        ("retrain", {"base": "b"}, ClaimKind.EXACT, "retrain"),
        ("negative-preference", {}, ClaimKind.APPROXIMATE, "npo"),
        ("weighted-ascent", {}, ClaimKind.APPROXIMATE, "wga"),
        ("simple-preference", {}, ClaimKind.APPROXIMATE, "simnpo"),
        ("misdirect-states", {}, ClaimKind.APPROXIMATE, "rmu"),
        ("self-distillation", {"data_kept": False}, ClaimKind.APPROXIMATE, "undial"),
        ("suppress", {"served": True}, ClaimKind.SUPPRESSION, None),
    ],
)
def test_what_each_may_claim(name: str, facts: dict[str, Any], claim: ClaimKind, method: str | None) -> None:
    route = named(routes(facts), name)
    assert (route.claim, route.method, route.possible, route.why_not) == (claim, method, True, "")
    assert route.sentence.startswith(SENTENCES[claim])
    assert len(route.sentence) > len(SENTENCES[claim]) + 20
    assert lint(route.sentence) == []


@pytest.mark.parametrize(
    ("name", "facts", "why"),
    [
        ("retrain", {}, "no checkpoint is known that never saw the data"),
        ("retrain", {"base": "b", "data_kept": False}, "the rest of the training data is gone"),
        ("suppress", {}, "server of ours"),
        ("negative-preference", {"data_kept": False}, "data that stays"),
        ("delete-adapter", {"adapter": "t"}, "not so, or not known"),
        ("quote-bound", {"private": "2,1e-6,sequence", **CLEAN}, "how many records"),
        ("quote-bound", {"private": "2,1e-6,subject", "forget": 3, "below_saw": False}, "how many records or subjects"),
        ("quote-bound", {"private": "8,1e-6,sequence", "forget": 4, **CLEAN}, "delta of a group of 4 is 1 or more"),
        ("quote-bound", {"private": "2,1e-6,subject", **CLEAN, "subjects": 3, "epsilon": 5},
         "epsilon 6 for 3 subjects together is more than the 5 that is accepted"),
        ("quote-bound", {"private": "no/such/run", "forget": 4, **CLEAN}, "no finished run of private training"),
        ("npo", {"order": True}, "ordered the models destroyed"),
    ],
)  # fmt: skip
def test_why_not(name: str, facts: dict[str, Any], why: str) -> None:
    found = routes(facts)
    route = named(found, "negative-preference" if name == "npo" else name)
    assert why in route.why_not
    assert (route.possible, route.sentence, route.predicted_seconds) == (False, "", None)
    assert not any(later.possible for later in found[found.index(route) :])


def test_the_bound_of_a_group_is_worked_out() -> None:
    """k = 2 records of 2 sequences: a group of 4; 4 * 0.5 = 2 and 4 e^(3 * 0.5) 1e-6 = 1.793e-5."""
    bound = {"epsilon": 0.5, "delta": 1e-6, "per_record": 2}
    route = named(routes({"private": bound, "forget": 2, **CLEAN}), "quote-bound")
    assert 4e-6 * math.exp(1.5) == pytest.approx(1.793e-5, rel=1e-3)
    assert "epsilon 2 and delta 1.79e-05 hold for 4 sequences together" in route.sentence
    pure = named(routes({"private": {"epsilon": 0.5, "delta": 0}, "forget": 3, **CLEAN}), "quote-bound")
    assert "epsilon 1.5 and delta 0 hold for 3 sequences together" in pure.sentence


def test_a_bound_is_asked_of_its_run(tmp_path: Path) -> None:
    statement = {
        "epsilon": 1.5, "delta": 1e-7, "unit": "subject", "units": 9, "sequences_per_example": 1, "reason": "",
        "accountant": "pld", "sampler": "poisson", "steps": 3, "neighbours": "", "not_covered": [], "assumptions": [],
    }  # fmt: skip
    write_json(tmp_path / "run.json", {"status": "finished", "name": "p", "privacy": statement,
                                       "model": {"result_digest": "d"}})  # fmt: skip
    facts = {"private": str(tmp_path), **CLEAN, "subjects": 2}
    assert "epsilon 3 and delta 8.96e-07 hold for 2 subjects together" in named(routes(facts), "quote-bound").sentence
    many = named(routes(facts | {"subjects": 10}), "quote-bound")
    assert "1 to 9 records" in many.why_not


def test_weaker_than_wanted_is_said() -> None:
    found = routes({"wanted": "exact", "base": "b"})
    assert possible(found)[0] == "retrain"
    assert "It says less than what is wanted: approximate, where exact is." in found[1].reasons
    assert not any("says less" in reason for reason in found[0].reasons)


SAW = [
    {"name": "chat", "kind": "finetune"}, {"name": "chat4", "kind": "quantised"},
    {"name": "index", "kind": "rag_index"}, {"name": "gift", "kind": "merge", "reachable": False},
]  # fmt: skip


def test_an_order_lists_what_is_to_be_destroyed() -> None:
    route = routes({"order": True, "artefacts": SAW, "model": "chat", "base": "b"})[0]
    assert (route.name, route.claim, route.method) == ("destroy", None, None)
    text = " ".join(route.reasons)
    assert "unlearning is no answer" in text
    assert "To destroy: chat (finetune); chat4 (quantised); index (rag index); gift (merge)." in text
    assert "Out of our reach, to be told to those who hold them: gift (merge)." in text
    assert "chat (finetune); chat4 (quantised); index (rag index). Copies" in route.sentence
    empty = routes({"order": True})[0]
    assert any("has to be made first" in reason for reason in empty.reasons)


def test_what_a_route_leaves_undone_is_listed() -> None:
    route = routes({"artefacts": SAW, "model": "chat"})[0]
    assert route.besides == (
        "Leave the records out of the training data, or the next training brings them back.",
        "This route changes chat alone. The data also went into: chat4 (quantised: make it again from the new model); "
        "index (rag index: delete the records there and build it again).",
        "Out of our reach, to be told to those who hold them: gift (merge).",
    )
    assert len(routes({"artefacts": SAW[:1], "model": "chat"})[0].besides) == 1


def sized(seconds: float, size: int) -> Any:
    return lambda method, settings: Prediction(seconds, size)


def test_what_takes_too_long_is_not_possible() -> None:
    by_method = {"npo": 90.0, "wga": 50.0, "simnpo": 100.0, "rmu": 101.0}
    found = routes({"deadline_seconds": 100}, lambda method, settings: Prediction(by_method[method], 1))
    assert possible(found) == ["negative-preference", "weighted-ascent", "simple-preference"]
    assert "estimated to take 101 s, and 100 s are left" in named(found, "misdirect-states").why_not
    assert [route.predicted_seconds for route in found[:3]] == [90.0, 50.0, 100.0]
    late = routes({"deadline_seconds": -5.0}, sized(1, 1))
    assert possible(late) == []
    assert "0 s are left" in named(late, "negative-preference").why_not


def test_lighter_settings_are_taken_until_it_fits() -> None:
    def predict(method: str, settings: dict[str, Any]) -> Prediction:
        training = settings.get("training", {})
        if "lora" in training:
            return Prediction(3, 1 << 30)
        return Prediction(2, 3 << 30) if training.get("gradient_checkpointing") else Prediction(1, 8 << 30)

    def npo(memory: str) -> Route:
        return named(routes({"memory_bytes": memory}, predict), "negative-preference")

    assert npo("8GiB").settings == {}
    assert npo("4GiB").settings == {"training": {"gradient_checkpointing": True}}
    assert npo("1.5GiB").settings == {"training": {"gradient_checkpointing": True, "lora": {"r": 8}}}
    assert (npo("1.5GiB").predicted_seconds, npo("1.5GiB").predicted_bytes) == (3, 1 << 30)
    assert not npo("512MiB").possible
    assert "1,073,741,824 bytes of memory of 536,870,912" in npo("512MiB").why_not


def test_shards_take_their_share_of_retraining() -> None:
    asked: list[tuple[str, Any]] = []

    def predict(method: str, settings: Any) -> Prediction:
        asked.append((method, settings))
        return Prediction(200.0, 7)

    facts = {"shards": "s", "shard_share": 0.25, "base": "b", **CLEAN}
    route = named(routes(facts, predict), "retrain-shards")
    assert (route.predicted_seconds, route.predicted_bytes) == (50.0, 7)
    assert ("retrain", {"model": {"base": "b"}}) in asked
    assert any("25.0% of what retraining" in reason for reason in route.reasons)
    for missing, why in (("shard_share", "share of the rows"), ("base", "checkpoint they start from")):
        route = named(routes({**facts, missing: None}, predict), "retrain-shards")
        assert (route.predicted_seconds, route.possible) == (None, True)
        assert any(why in reason for reason in route.reasons)


def test_no_estimate_is_made_up() -> None:
    for route in advise(situation_from({"adapter": "t", "shards": "s", "base": "b", "served": True, **CLEAN})):
        assert (route.predicted_seconds, route.predicted_bytes) == (None, None)
        assert any("estimate" in reason for reason in route.reasons)


def test_what_would_stop_the_run_makes_a_route_impossible() -> None:
    stops = routes({}, lambda method, settings: Prediction(stops="data.retain: is missing"))
    assert possible(stops) == []
    assert named(stops, "negative-preference").why_not == "data.retain: is missing"


def test_retraining_starts_where_the_situation_says() -> None:
    assert named(routes({"base": "models/{odd}"}), "retrain").settings == {"model": {"base": "models/{odd}"}}


def test_no_folder_is_told_to_anybody() -> None:
    facts = {"base": "/home/somebody/runs/old/model", "shards": "/home/somebody/s", "adapter": "/home/somebody/t",
             "private": {"run": "/home/somebody/p"}, **CLEAN}  # fmt: skip
    found = routes(facts)
    assert not any("somebody" in route.sentence for route in found)
    assert "trained from old/model on the training data without the records." in named(found, "retrain").sentence


def test_the_settings_of_another_method_are_left_out() -> None:
    recipe = {"method": {"name": "npo", "beta": 0.5}, "training": {"epochs": 2}}
    assert recipe_settings(recipe, "rmu", {"training": {"lora": {}}}) == {
        "method": {"name": "rmu"}, "training": {"epochs": 2, "lora": {}},
    }  # fmt: skip
    assert recipe_settings(recipe, "npo", {})["method"] == {"name": "npo", "beta": 0.5}


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"nead": "all"}, "nead"), ({"need": "everything"}, "need"), ({"memory_bytes": "24 parsecs"}, "memory_bytes"),
        ({"deadline_seconds": "soon"}, "deadline_seconds"), ({"shard_share": 2}, "shard_share"),
        ({"private": {"epsilon": 1}}, "private"), ({"forget": 0}, "forget"),
    ],
)  # fmt: skip
def test_facts_that_cannot_be_meant(facts: dict[str, Any], field: str) -> None:
    with pytest.raises(RecipeError) as error:
        situation_from(facts)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("5m", 300), ("90", 90), ("1.5 h", 5_400)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert situation_from({"deadline_seconds": text}).deadline_seconds == seconds


def test_sizes_are_read() -> None:
    assert situation_from({"memory_bytes": "24GiB"}).memory_bytes == 24 << 30
    assert situation_from({"memory_bytes": 1000}).memory_bytes == 1000
