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

from expunge.api.lineage import write_seen
from expunge.api.plan import plan
from expunge.api.sisa import sisa_forget, sisa_train
from expunge.claims import ClaimKind, lint
from expunge.data.loaders import load_examples
from expunge.desk.advise.of_request import lineage_facts, memory_of, situation_of
from expunge.desk.advise.routes import Route
from expunge.desk.intake import RequestFile
from expunge.desk.lineage import Lineage
from expunge.desk.queue import work
from expunge.desk.service import Desk
from expunge.errors import RecipeError
from expunge.ledger.states import State
from expunge.recipe import SisaRecipe, build_recipe
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


def test_estimates_are_those_of_the_recipe(desk: Desk, tmp_path: Path) -> None:
    recipe = build_recipe(situation_of(desk, "r1", tmp_path)["recipe"] | {"method": {"name": "rmu"}})
    expected, route = plan(recipe), named(desk.advise("r1"), "misdirect-states")
    assert route.predicted_bytes == expected["memory_mb"] << 20
    assert route.predicted_seconds == pytest.approx(expected["seconds"], rel=3, abs=1)  # the machine's speed varies


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


def test_an_advised_plan_is_located_approved_and_worked_off(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "desk", lineage="lineage.yaml")
    (desk.folder / "lineage.yaml").write_text(yaml.safe_dump(LINEAGE))
    os.symlink(desk.folder / "base", desk.folder / "start")
    person = desk.corpora()["archive"][0].subject
    ids = tuple(example.id for example in desk.corpora()["archive"] if example.subject == person)
    desk.intake(RequestFile(id="r1", requester="case-1", record_ids=ids), actor="op")
    desk.move("r1", State.VERIFIED, actor="op")
    desk.locate("r1", actor="op")
    made = desk.plan_route("r1", "retrain", actor="op")
    desk.approve("r1", actor="boss")
    work(desk)
    view = desk.ledger.request("r1")
    assert view.state == State.CERTIFIED
    run = view.last("run")
    certificate = view.last("certificate")
    assert run is not None
    assert certificate is not None
    assert run.body["plan_digest"] == made.digest
    assert certificate.body["claim"] == "exact"
    routes = desk.advise("r1")
    assert not any(route.name == "quote-bound" for route in routes)  # the model in use is no longer the private one
    assert named(routes, "retrain").settings == {"model": {"base": str(desk.folder / "start")}}


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


def test_what_nothing_is_named_under_is_not_known_to_be_clean() -> None:
    alone = {"name": "a", "kind": "adapter", "trained_on": ["f"], "tenants": "t"}
    assert lineage_facts(Lineage.model_validate({"artefacts": [alone]}), ["f"], "a", [])["below_saw"] is None


def with_model(desk: Desk, model: str) -> Desk:
    """Return the desk with another model in its settings."""
    path = desk.folder / "desk.yaml"
    path.write_text(path.read_text().replace("model: base", f"model: {model}"))
    return Desk(desk.folder)


def test_shards_say_which_share_is_read_again(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "desk", lineage="lineage.yaml", facts={"served": True, "weights_leave": False})
    data = {"train": str(desk.folder / "data" / "train_full.jsonl"), "template": "question"}
    recipe = SisaRecipe.build({"model": {"path": str(desk.folder / "base")}, "data": data, "sisa": {"shards": 2},
                               "training": {"epochs": 1, "batch_size": 64, "lora": {"r": 1}}})  # fmt: skip
    sisa_train(recipe, output_dir=desk.folder / "shards", processes=1)
    (desk.folder / "lineage.yaml").write_text(yaml.safe_dump({"artefacts": [
        {"name": "start", "kind": "base", "trained_on": ["web"], "path": "base"},
        {"name": "model", "kind": "finetune", "path": "shards", "parents": ["start"], "trained_on": ["archive"],
         "sisa": "shards"},
    ]}))  # fmt: skip
    desk = with_model(desk, "shards/model")
    bring_in(desk, "r1", 0, upto=State.LOCATED)
    routes = desk.advise("r1")
    assert [route.name for route in routes if route.possible] == ["retrain-shards", "retrain", "suppress"]
    assert "several that answer together" in named(routes, "negative-preference").why_not
    shards, retrain = named(routes, "retrain-shards"), named(routes, "retrain")
    found = load_examples(str(desk.path("r1", "forget.jsonl")), name="forget")
    takes = sisa_forget(desk.folder / "shards", ids={example.id for example in found}, dry_run=True)
    share = takes.rows_read / takes.rows_plain
    assert 0.3 < share < 0.7
    assert f"Rows read: {share:.1%} of what training everything again would read." in shards.reasons
    assert shards.predicted_seconds is not None
    assert retrain.predicted_seconds is not None
    assert 0 < shards.predicted_seconds < retrain.predicted_seconds + 1


def test_without_a_lineage_run_folders_say_where_to_retrain_from(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "desk")
    run = desk.folder / "made"
    run.mkdir()
    (desk.folder / "base").rename(run / "model")
    write_seen(run, desk.corpora()["archive"])
    write_json(run / "run.json", {"kind": "train", "recipe": {"training": {"epochs": 3}},
                                  "model": {"path": "hub/start", "digest": "d", "result_digest": "r"}})  # fmt: skip
    desk = with_model(desk, "made/model")
    bring_in(desk, "r1", 0, upto=State.LOCATED)
    facts = situation_of(desk, "r1", tmp_path)
    assert (facts["base"], facts["model"]) == ("hub/start", "model in use")
    assert named(desk.advise("r1"), "retrain").settings == {"model": {"base": "hub/start"}}


def test_a_model_that_was_unlearned_since_is_no_longer_its_shards() -> None:
    facts = lineage_facts(TREE, ["forum"], "shards", [], changed=True)
    assert "shards" not in facts
    assert facts["below_saw"] is False
