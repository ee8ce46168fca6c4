# SPDX-License-Identifier: Apache-2.0
"""Advice from the command line: a table, a JSON document, and a plan made of it."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expunge.cli.advise import _duration, _size, advise
from expunge.cli.main import app
from expunge.desk.advise.situation import Situation
from expunge.ledger.states import State

sys.path.insert(0, str(Path(__file__).parents[1] / "desk"))

from desk_world import bring_in, open_desk


def call(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})
    return found.exit_code, " ".join(found.output.split())


def test_every_fact_has_an_option_but_those_of_a_lineage() -> None:
    spelled = {"deadline_seconds": "deadline", "memory_bytes": "memory"}
    options = set(inspect.signature(advise).parameters)
    missing = {name for name in Situation.model_fields if spelled.get(name, name) not in options}
    assert missing == {"artefacts", "model"}


def test_the_best_route_is_explained() -> None:
    code, said = call("advise", "--adapter", "runs/t", "--no-below-saw", "--base", "start", "--served")
    assert code == 0
    assert "1 delete-adapter Delete the adapter that alone saw the data exact – –" in said
    assert "7 suppress" in said
    assert "How expunge tenants remove runs/t TENANT" in said
    assert "May be said The result is the one that training without the data gives" in said
    assert "Misdirection" not in said
    code, said = call("advise", "--base", "start", "--all")
    assert "The method is Representation misdirection (RMU)" in said
    assert "Not possible suppress it is not said" in said


def test_one_document(tmp_path: Path) -> None:
    file = tmp_path / "situation.yaml"
    file.write_text("need: capability\nweights_leave: false\nbase: start\nprivate: {epsilon: 1, delta: 1.0e-6}\n")
    code, said = call("advise", "--situation", file, "--json", "--wanted", "approximate", "--need", "knowledge")
    assert code == 0
    routes = json.loads(said)
    assert [route["name"] for route in routes][:2] == ["retrain", "negative-preference"]
    assert routes[0]["claim"] == "exact"
    assert routes[0]["settings"] == {"model": {"base": "start"}}
    assert [route["name"] for route in routes if not route["possible"]] == ["quote-bound", "suppress"]


def test_an_order(tmp_path: Path) -> None:
    file = tmp_path / "situation.yaml"
    file.write_text("artefacts: [{name: chat, kind: finetune}]\n")
    code, said = call("advise", "--order", "--situation", file)
    assert code == 0
    assert "1 destroy Destroy the models and all that was made from them none" in said
    assert "unlearning is no answer" in said
    assert "To destroy: chat (finetune)." in said
    assert "negative-preference an authority ordered the models destroyed" in said


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--need", "everything"), 2, "need: no such value"),
        (("--memory", "lots"), 2, "memory_bytes"),
        (("--situation", "nowhere.yaml"), 2, "--situation: cannot be read"),
        (("--recipe", "nowhere.yaml", "--forget", "3"), 2, "recipe: no such file"),
    ],
)
def test_what_cannot_be_meant(words: tuple[str, ...], code: int, told: str) -> None:
    found, said = call("advise", *words)
    assert found == code
    assert told in said


def test_a_file_without_facts(tmp_path: Path) -> None:
    for text, told in (("- a", "holds no facts"), ("{", "is no YAML"), ("odd: 1", "odd: no such key")):
        (tmp_path / "s.yaml").write_text(text)
        code, said = call("advise", "--situation", tmp_path / "s.yaml")
        assert code == 2
        assert told in said


def test_advice_and_plan_of_a_request(tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    bring_in(open_desk(folder), "r1", 0, upto=State.LOCATED)
    code, said = call("request", "advise", "r1", "--desk", folder, "--set", "served=true")
    assert code == 0, said
    assert "1 negative-preference" in said
    assert "suppress Block outputs at serving" in said
    words = ("request", "plan", "r1", "--desk", folder, "--as", "op")
    code, said = call(*words, "--route", "suppress")
    assert code == 2
    assert "carried out by hand" in said
    code, said = call(*words)
    assert code == 2
    assert "one of the two is needed" in said
    code, said = call(*words, "--route", "weighted-ascent", "--method", "npo")
    assert code == 2
    code, said = call(*words, "--route", "weighted-ascent")
    assert code == 0, said
    assert "Route weighted-ascent Method wga Claim approximate" in said
    code, said = call("request", "show", "r1", "--desk", folder)
    assert "route weighted-ascent" in said
    code, said = call("request", "advise", "r1", "--desk", folder, "--json")
    assert any(route["predicted_seconds"] for route in json.loads(said))
    code, said = call("request", "advise", "r7", "--desk", folder)
    assert code == 2


def test_time_and_memory_from_a_recipe(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "desk")
    rows = (desk.folder / "data" / "train_full.jsonl").read_text().splitlines()
    for name, part in (("forget", rows[:5]), ("retain", rows[50:90])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
    recipe = {"model": {"path": str(desk.folder / "base")}, "training": {"max_steps": 4},
              "data": {"forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl")}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = ("advise", "--recipe", tmp_path / "recipe.yaml", "--json")
    routes = {route["name"]: route for route in json.loads(call(*words)[1])}
    found = routes["negative-preference"]
    assert found["predicted_seconds"] > 0
    assert found["predicted_bytes"] > 500 << 20
    tight = {route["name"]: route for route in json.loads(call(*words, "--memory", "100MiB")[1])}
    assert not tight["negative-preference"]["possible"]
    assert tight["negative-preference"]["settings"]["training"]["lora"] == {"r": 8}
    (tmp_path / "retain.jsonl").unlink()
    gone = {route["name"]: route for route in json.loads(call(*words)[1])}
    assert "data.retain: no such file" in gone["negative-preference"]["why_not"]


def test_numbers_are_written_short() -> None:
    assert [_duration(x) for x in (None, 2.04, 90, 5_400, 200_000)] == ["–", "2.0 s", "1.5 min", "1.5 h", "2.3 d"]
    assert [_size(x) for x in (None, 600 << 20, 3 << 29)] == ["–", "600 MiB", "1.5 GiB"]
