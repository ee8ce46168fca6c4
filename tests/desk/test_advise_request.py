# SPDX-License-Identifier: Apache-2.0
"""What a desk knows of a request, the routes that follow, and plans made of them."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from expunge.claims import ClaimKind, lint
from expunge.desk.advise.of_request import lineage_facts, memory_of, situation_of
from expunge.desk.advise.routes import Route
from expunge.desk.lineage import Lineage
from expunge.desk.service import Desk
from expunge.errors import RecipeError
from expunge.ledger.states import State
from expunge.runs import write_json

sys.path.insert(0, str(Path(__file__).parent))

from desk_world import bring_in, open_desk

LINEAGE = {
    "artefacts": [
        {"name": "start", "kind": "base", "path": "start", "trained_on": ["web"]},
        {"name": "chat", "kind": "finetune", "path": "base", "parents": ["start"], "trained_on": ["archive"],
         "privacy": {"epsilon": 0.5, "delta": 1e-9, "unit": "subject"}},
        {"name": "chat4", "kind": "quantised", "parents": ["chat"]},
        {"name": "gift", "kind": "merge", "parents": ["chat"], "reachable": False},
    ]
}  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk whose model was trained privately from a start that is there, with two located requests."""
    folder = tmp_path_factory.mktemp("advice") / "desk"
    made = open_desk(folder, lineage="lineage.yaml")
    (folder / "lineage.yaml").write_text(yaml.safe_dump(LINEAGE))
    os.symlink(folder / "base", folder / "start")
    bring_in(made, "r1", 0, upto=State.LOCATED)
    bring_in(made, "r2", 1, upto=State.LOCATED)
    bring_in(made, "r3", 2, upto=State.RECEIVED)
    return made


def named(routes: list[Route], name: str) -> Route:
    return next(route for route in routes if route.name == name)


def test_what_the_desk_knows(desk: Desk, tmp_path: Path) -> None:
    facts = situation_of(desk, "r1", tmp_path)
    found = desk.path("r1", "forget.jsonl").read_text().splitlines()
    assert (facts["forget"], facts["dataset"]) == (len(found), len(desk.corpora()["archive"]))
    assert facts["subjects"] == 1
    assert (facts["need"], facts["model"], facts["reference"]) == ("all", "chat", False)
    assert facts["base"] == str(desk.folder / "start")
    assert facts["below_saw"] is False
    assert facts["private"]["epsilon"] == 0.5
    assert [one["name"] for one in facts["artefacts"]] == ["chat", "chat4", "gift"]
    left = (desk.ledger.request("r1").due - datetime.now(UTC)).total_seconds()
    assert facts["deadline_seconds"] == pytest.approx(left, abs=60)
    assert facts["memory_bytes"] == memory_of("cpu") > 1 << 28
    recipe = facts["recipe"]
    kept = len(Path(recipe["data"]["retain"]).read_text().splitlines())
    assert kept == facts["dataset"] - facts["forget"]
    assert recipe["training"] == desk.config.recipe["training"]


def test_the_scope_says_which_corpora_count(desk: Desk, tmp_path: Path) -> None:
    scope = desk.path("r2", "scope.json")
    before = scope.read_text()
    write_json(scope, {"corpora": [{"name": "archive", "found": 0}, {"name": "web", "found": 3}]})
    facts = situation_of(desk, "r2", tmp_path)
    scope.write_text(before)
    assert [one["name"] for one in facts["artefacts"]] == ["start", "chat", "chat4", "gift"]
    assert (facts["below_saw"], facts["base"]) == (True, None)


def test_routes_of_a_located_request_with_estimates(desk: Desk) -> None:
    routes = desk.advise("r1")
    assert [route.name for route in routes if route.possible][:3] == ["quote-bound", "retrain", "negative-preference"]
    for name in ("retrain", "negative-preference", "misdirect-states"):
        route = named(routes, name)
        assert route.predicted_seconds is not None
        assert route.predicted_seconds > 0
        assert route.predicted_bytes is not None
        assert route.predicted_bytes > 500 << 20  # Python and its libraries alone take more
    assert "In chat" in named(desk.advise("r1", {"adapter": "t"}), "delete-adapter").sentence
    desk.path("r1", "asked.json").unlink()
    assert not list(desk.folder.glob(".advice-*"))
    text = " ".join(line for route in routes for line in (route.sentence, *route.reasons, *route.besides))
    assert "gift (merge)" in text
    assert lint(text) == []


def test_before_it_is_located_nothing_is_estimated(desk: Desk) -> None:
    routes = desk.advise("r3")
    assert all(route.predicted_seconds is None for route in routes)
    assert next(route.name for route in routes if route.possible) == "retrain"
    assert "how many records" in named(routes, "quote-bound").why_not


def test_what_was_said_by_hand_is_kept(desk: Desk) -> None:
    served = desk.advise("r2", {"served": True, "need": "verbatim"})
    assert named(served, "suppress").possible
    assert named(desk.advise("r2"), "suppress").possible
    with pytest.raises(RecipeError, match="nead"):
        desk.advise("r2", {"nead": 1})
    assert json.loads(desk.path("r2", "asked.json").read_text()) == {"served": True, "need": "verbatim"}
    assert not named(desk.advise("r2", {}), "suppress").possible


def test_a_plan_as_advised(desk: Desk) -> None:
    route = named(desk.advise("r1"), "retrain")
    made = desk.plan_route("r1", "retrain", actor="op")
    assert (made.route, made.method, made.claim) == ("retrain", "retrain", ClaimKind.EXACT)
    assert made.settings["model"] == {"base": str(desk.folder / "start")}
    assert made.settings["training"]["max_steps"] == 4
    assert (made.reasons, made.sentence) == (route.reasons, route.sentence)
    assert desk.plan_file("r1") == made
    entry = desk.ledger.request("r1").last("plan")
    assert entry is not None
    assert entry.body["route"] == "retrain"
    assert entry.body["predicted_bytes"] == route.predicted_bytes
    assert entry.body["predicted_seconds"] > 0
    desk.plan_route("r1", "retrain", actor="op", settings={"training": {"max_steps": 2}})
    entry = desk.ledger.request("r1").last("plan")
    assert entry is not None
    assert (entry.body["predicted_seconds"], entry.body["predicted_bytes"]) == (None, None)
    assert desk.plan_file("r1").settings["training"]["max_steps"] == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("quote-bound", "carried out by hand.*expunge dp statement"),
        ("suppress", "is not possible: it is not said"),
        ("retrian", "no such route.*retrain"),
    ],
)
def test_what_cannot_be_planned(desk: Desk, name: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        desk.plan_route("r1", name, actor="op")


def test_a_deadline_that_is_over_leaves_nothing_that_takes_time(desk: Desk) -> None:
    late = Desk(desk.folder, clock=lambda: datetime.now(UTC) + timedelta(days=400))
    routes = late.advise("r1")
    assert "0 s are left" in named(routes, "retrain").why_not
    assert [route.name for route in routes if route.possible] == ["quote-bound"]


TREE = Lineage.model_validate({
    "artefacts": [
        {"name": "base", "kind": "base", "trained_on": ["web"]},
        {"name": "tuned", "kind": "finetune", "path": "hub/tuned", "parents": ["base"], "trained_on": ["letters"]},
        {"name": "tenants", "kind": "adapter", "parents": ["tuned"], "trained_on": ["forum"], "tenants": "t"},
        {"name": "shards", "kind": "finetune", "parents": ["base"], "trained_on": ["forum"], "sisa": "s"},
        {"name": "gift", "kind": "base"},
        {"name": "on-gift", "kind": "finetune", "parents": ["gift"], "trained_on": ["forum"], "sisa": "g"},
    ]
})  # fmt: skip


@pytest.mark.parametrize(
    ("name", "corpora", "expected"),
    [
        ("tenants", ["forum"], {"adapter": "t", "shards": None, "below_saw": False, "base": "hub/tuned"}),
        ("tenants", ["letters"], {"adapter": "t", "shards": None, "below_saw": True, "base": None}),
        ("tenants", ["forum", "letters"], {"adapter": "t", "shards": None, "below_saw": True, "base": None}),
        ("shards", ["forum"], {"adapter": None, "shards": "s", "below_saw": False, "base": None}),
        ("shards", ["letters"], {"below_saw": False, "base": None}),  # never saw it
        ("on-gift", ["forum"], {"adapter": None, "shards": "g", "below_saw": True, "base": None}),  # nobody knows
        (None, ["forum"], {}),
    ],
)
def test_what_a_lineage_says(name: str | None, corpora: list[str], expected: dict[str, object]) -> None:
    facts = lineage_facts(TREE, corpora, name, [])
    assert {key: value for key, value in facts.items() if key not in ("artefacts", "model")} == expected


def test_a_model_that_was_unlearned_since_is_no_longer_its_shards() -> None:
    facts = lineage_facts(TREE, ["forum"], "shards", [], changed=True)
    assert "shards" not in facts
    assert facts["below_saw"] is False
