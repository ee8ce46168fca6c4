# SPDX-License-Identifier: Apache-2.0
"""Recipes: defaults of methods, overrides, inheritance, hashes, schema, and errors that name the nearest key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.errors import RecipeError
from expunge.recipe import TrainRecipe, apply_overrides, build_recipe, load_recipe, recipe_schema

MINIMAL: dict[str, Any] = {
    "model": {"path": "some/model"}, "data": {"forget": "f.jsonl", "retain": "r.jsonl"}, "method": {"name": "npo"}
}  # fmt: skip


def test_published_settings_of_the_method_stand_in_for_what_is_missing() -> None:
    recipe = build_recipe(MINIMAL)
    assert (recipe.training.epochs, recipe.training.learning_rate) == (10, 1e-5)
    changed = build_recipe(MINIMAL | {"training": {"epochs": 3}})
    assert (changed.training.epochs, changed.training.learning_rate) == (3, 1e-5)


def test_round_trip_through_yaml_keeps_the_hash_and_every_value_is_written(tmp_path: Path) -> None:
    recipe = build_recipe(MINIMAL)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert load_recipe(path).hash == recipe.hash
    written = yaml.safe_load(path.read_text())
    assert written["method"]["beta"] == 0.1
    assert written["training"]["max_grad_norm"] == 1.0


def test_hash_changes_with_any_value() -> None:
    hashes = {build_recipe(MINIMAL).hash}
    for override in ("seed=1", "method.beta=0.2", "audit.min_k=0.3", "data.template=raw"):
        hashes.add(build_recipe(apply_overrides(MINIMAL, [override])).hash)
    assert len(hashes) == 5


def test_overrides_read_yaml_values() -> None:
    settings = apply_overrides({"training": {"epochs": 2}}, [
        "training.learning_rate=1e-3", "training.trainable=[mlp, attn]", "model.base=null", "training.lora.r=4",
    ])  # fmt: skip
    recipe = build_recipe(MINIMAL | apply_overrides(settings, ["training.trainable=[]"]) | {"model": {"path": "m"}})
    assert settings["training"]["trainable"] == ["mlp", "attn"]
    assert settings["model"] == {"base": None}
    assert recipe.training.learning_rate == 1e-3
    assert recipe.training.lora is not None
    assert recipe.training.lora.r == 4


def test_extends_takes_the_other_file_first(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(MINIMAL | {"training": {"epochs": 2, "batch_size": 4}}))
    (tmp_path / "child.yaml").write_text("extends: base.yaml\ntraining: {epochs: 7}\n")
    recipe = load_recipe(tmp_path / "child.yaml")
    assert (recipe.training.epochs, recipe.training.batch_size) == (7, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", r"training\.epoch: no such key.*'epochs'"),
        ("training.epochs=0", r"training\.epochs: .*greater than or equal to 1.*got 0"),
        ("training.schedule=linaer", r"training\.schedule: .*got 'linaer'.*'linear'"),
        ("modle.path=x", r"modle: no such key.*'model'"),
        ("method.name=nop", r"method\.name: no such method.*'npo'"),
        ("method.reduction=token_mean", r"reduction must be sum or sequence_mean"),
        ("nonsense", r"--set: must have the form"),
    ],
)
def test_errors_name_field_value_and_nearest(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build_recipe(apply_overrides(MINIMAL, [override]))
    assert caught.value.exit_code == 2


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    for text, message in (("a: [", "not valid YAML"), ("- 1", "must be a mapping")):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")


def test_schema_holds_every_method_and_accepts_a_resolved_recipe() -> None:
    schema = recipe_schema()
    json.dumps(schema)
    names = set(schema["properties"]["method"]["discriminator"]["mapping"])
    assert {"ga", "npo", "simnpo", "retrain"} <= names
    assert {"model", "data", "method", "training", "audit", "policy"} <= set(schema["properties"])


def test_training_recipe() -> None:
    recipe = TrainRecipe.build({"model": {"path": "m"}, "data": {"train": "t.jsonl"}, "training": {"epochs": 2}})
    assert recipe.training.epochs == 2
    with pytest.raises(RecipeError, match=r"method: no such key"):
        TrainRecipe.build({"model": {"path": "m"}, "data": {"train": "t"}, "method": {"name": "npo"}})
