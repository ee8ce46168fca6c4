# SPDX-License-Identifier: Apache-2.0
"""A recipe from start to end on a tiny model: what is written, what is reused, what a policy says."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import expunge
from expunge.api.job import run
from expunge.api.plan import plan
from expunge.api.train import train
from expunge.api.workspace import Silent
from expunge.audit.document import read_audit
from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.errors import InputDataError, MissingDependency, RecipeError
from expunge.models.digests import folder_digest
from expunge.models.loading import load_model, save_model
from expunge.recipe import TrainRecipe, build_recipe, merge


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, archive: Archive, encoder: Encoder, trained_model: nn.Module,
          fresh: Callable[[], nn.Module]) -> Path:  # fmt: skip
    folder = tmp_path_factory.mktemp("world")
    archive.write_jsonl(folder)
    save_model(trained_model, encoder.tokenizer, folder / "target")
    save_model(fresh(), encoder.tokenizer, folder / "base")
    return folder


def settings(world: Path, **more: Any) -> dict[str, Any]:
    shared = {
        "model": {"path": str(world / "target")},
        "data": {"forget": str(world / "forget10.jsonl"), "retain": str(world / "retain90.jsonl"),
                 "holdout": str(world / "holdout.jsonl"), "template": "question"},
        "method": {"name": "npo"},
        "training": {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4},
        "audit": {"max_new_tokens": 12, "bootstrap": 100},
    }  # fmt: skip
    return merge(shared, more)


class Stages(Silent):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def stage(self, text: str) -> None:
        self.seen.append(text)


def test_a_run_leaves_everything_behind(world: Path, tmp_path: Path) -> None:
    recipe = build_recipe(settings(world, policy={"bounds": {"forget.probability": {"max": 0.0001}}}))
    result = run(recipe, output_dir=tmp_path / "o", commands=("expunge run x",))
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert names >= {"recipe.yaml", "run.json", "metrics.jsonl", "records", "model", "examples.json", "audit.json",
                     "report.html"}  # fmt: skip
    info = json.loads((tmp_path / "o/run.json").read_text())
    assert info["status"] == "finished"
    assert info["recipe_hash"] == recipe.hash
    assert info["data"]["forget"]["n"] == 8
    assert (tmp_path / "o").stat().st_mode & 0o077 == 0
    loaded = load_model(tmp_path / "o/model")
    assert torch.isfinite(loaded.model(torch.tensor([[5, 6]])).logits).all()
    document = read_audit(tmp_path / "o/audit.json")
    assert set(document.models) == {"target", "npo"}
    before, after = (document.models[name].metrics["forget.probability"].value for name in ("target", "npo"))
    assert before is not None
    assert after is not None
    assert after < before
    assert document.models["npo"].metrics["forget_quality"].value is None
    assert "reference" in document.models["npo"].metrics["forget_quality"].reason
    assert [verdict.met for verdict in result.verdicts] == [False]
    report = (tmp_path / "o/report.html").read_text()
    for example in json.loads((tmp_path / "o/examples.json").read_text())["npo"]:
        assert example["target"] not in report


def test_same_recipe_gives_the_same_bytes_and_records_are_found_again(world: Path, tmp_path: Path) -> None:
    recipe = build_recipe(settings(world))
    stages = Stages()
    run(recipe, output_dir=tmp_path / "a", records_dir=tmp_path / "records", watcher=stages)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*.parquet")}
    run(recipe, output_dir=tmp_path / "b", records_dir=tmp_path / "records")
    assert folder_digest(tmp_path / "a/model") == folder_digest(tmp_path / "b/model")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*.parquet")} == kept
    assert stages.seen[0] == "Loading the model"
    a, b = (read_audit(tmp_path / name / "audit.json").models["npo"].metrics for name in ("a", "b"))
    assert a == b


def test_reference_may_be_a_model_or_records(world: Path, tmp_path: Path) -> None:
    model = settings(world, model={"reference": str(world / "base")})
    run(build_recipe(model), output_dir=tmp_path / "a")
    (records,) = (tmp_path / "a/records").glob("reference-*")
    again = settings(world, model={"reference": str(records)})
    run(build_recipe(again), output_dir=tmp_path / "b")
    a, b = (read_audit(tmp_path / name / "audit.json") for name in ("a", "b"))
    assert a.models["npo"].metrics["forget_quality"].value is not None
    assert a.models["npo"].metrics["forget_quality"] == b.models["npo"].metrics["forget_quality"]
    assert a.models["reference"].metrics["forget_quality"].value == 1.0


def test_bfloat16_models_aretrained_model_in_float32_and_saved_and_audited_as_stored(
    world: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(world / "target")
    save_model(model.to(torch.bfloat16), tokenizer, tmp_path / "bf16")
    recipe = build_recipe(settings(world, model={"path": str(tmp_path / "bf16")}, audit={"generate": False}))
    run(recipe, output_dir=tmp_path / "o")
    assert next(load_model(tmp_path / "o/model", dtype="bfloat16").model.parameters()).dtype == torch.bfloat16
    info = json.loads((tmp_path / "o/run.json").read_text())
    assert info["model"]["saved_dtype"] == "bfloat16"
    assert read_audit(tmp_path / "o/audit.json").models["npo"].meta["dtype"] == "bfloat16"


def test_lora_saves_an_adapter_that_loads_with_its_base(world: Path, tmp_path: Path) -> None:
    recipe = build_recipe(settings(world, training={"lora": {"r": 2}}, audit={"generate": False}))
    run(recipe, output_dir=tmp_path / "o")
    assert (tmp_path / "o/model/adapter_model.safetensors").exists()
    loaded = load_model(tmp_path / "o/model")
    assert loaded.model(torch.tensor([[5, 6]])).logits.shape[-1] == len(loaded.tokenizer)


def test_an_existing_run_is_kept_unless_told_otherwise(world: Path, tmp_path: Path) -> None:
    recipe = build_recipe(settings(world, audit={"generate": False}))
    run(recipe, output_dir=tmp_path / "o")
    with pytest.raises(RecipeError, match="already holds a run"):
        run(recipe, output_dir=tmp_path / "o")
    run(recipe, output_dir=tmp_path / "o", overwrite=True)
    other = build_recipe(settings(world, audit={"generate": False}, seed=1))
    with pytest.raises(RecipeError, match="another recipe"):
        run(other, output_dir=tmp_path / "o", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    with pytest.raises(RecipeError, match="holds no run"):
        run(recipe, output_dir=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/file").read_text() == "precious"


def test_failures_are_written_down(world: Path, tmp_path: Path) -> None:
    broken = settings(world, training={"learning_rate": 1e30, "max_grad_norm": None})
    with pytest.raises(expunge.errors.TrainingDiverged):
        run(build_recipe(broken), output_dir=tmp_path / "o")
    info = json.loads((tmp_path / "o/run.json").read_text())
    assert info["status"] == "failed"
    assert "TrainingDiverged" in info["error"]
    assert not (tmp_path / "o/model").exists()
    assert "failed" in (tmp_path / "o/report.html").read_text()


def test_inputs_are_checked_before_anything_is_written(world: Path, tmp_path: Path) -> None:
    overlapping = settings(world, data={"retain": str(world / "full.jsonl")})
    with pytest.raises(InputDataError, match="forget"):
        run(build_recipe(overlapping), output_dir=tmp_path / "o")
    with pytest.raises(RecipeError, match="needs a retain set"):
        run(build_recipe(settings(world, data={"retain": None})), output_dir=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_plan_counts_without_writing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = plan(build_recipe(settings(world)))
    assert found["steps"] == 4  # 8 forget rows in steps of 4, two epochs
    assert found["data"]["forget"]["examples"] == 8
    model, _ = load_model(world / "target")
    assert found["parameters"]["all"] == sum(p.numel() for p in model.parameters())
    assert found["memory_mb"] > 0
    assert found["seconds"] > 0
    assert list(tmp_path.iterdir()) == []
    lora = plan(build_recipe(settings(world, training={"lora": {"r": 2}})))
    assert lora["parameters"]["moving"] < found["parameters"]["moving"] / 5


def test_train_makes_a_model_that_run_can_use(world: Path, tmp_path: Path) -> None:
    recipe = TrainRecipe.build({
        "model": {"path": str(world / "base")}, "data": {"train": str(world / "train_retain90.jsonl"),
        "forget": str(world / "forget10.jsonl"), "template": "question"},
        "training": {"epochs": 1, "learning_rate": 1e-3},
    })  # fmt: skip
    folder = train(recipe, output_dir=tmp_path / "t")
    info = json.loads((folder / "run.json").read_text())
    assert info["status"] == "finished"
    assert info["kind"] == "train"
    assert load_model(folder / "model").tokenizer is not None


def test_verbs_in_memory(target: nn.Module, fresh: Callable[[], nn.Module], encoder: Encoder, archive: Archive) -> None:
    splits = archive.splits()
    reference = fresh()
    result = expunge.unlearn(
        target, encoder.tokenizer, forget=splits.forget, retain=splits.retain, method="grad_diff",
        training={"epochs": 2, "learning_rate": 1e-3, "batch_size": 4}, template="question",
    )  # fmt: skip
    assert result.steps == 4
    sets = {"forget": splits.forget, "retain": splits.retain, "holdout": splits.holdout}
    report = expunge.audit(
        result.model, encoder.tokenizer, sets=sets, reference=reference, template="question",
        config=expunge.audit.config.AuditConfig(max_new_tokens=8, bootstrap=100),
    )  # fmt: skip
    assert report.metrics["forget.probability"].value is not None
    assert report.metrics["forget_quality"].reference == "reference"
    assert json.loads(report.to_json())["models"]["model"]["metrics"]["forget.probability"]["n"] == 8
    assert report.to_html().startswith("<!DOCTYPE html>")


def test_an_ensemble_is_not_unlearned_as_if_it_were_one_model(world: Path, tmp_path: Path) -> None:
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble" / "ensemble.json").write_text("{}")
    recipe = build_recipe(settings(world, model={"path": str(tmp_path / "ensemble")}))
    with pytest.raises(RecipeError, match="members are trained apart"):
        run(recipe, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_in_fewer_bits_needs_its_package_and_an_adapter(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four, adapter = {"quantised": "nf4"}, {"lora": {"r": 2}}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(MissingDependency, match=r"expunge\[quant\]") as caught:
        run(build_recipe(settings(world, model=four, training=adapter)), output_dir=tmp_path / "o")
    assert caught.value.exit_code == 5
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    with pytest.raises(RecipeError, match="cannot move"):
        run(build_recipe(settings(world, model=four)), output_dir=tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_an_adapter_trains_over_weights_in_fewer_bits(bits: str, world: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = settings(
        world, model={"quantised": bits}, training={"lora": {"r": 4}, "learning_rate": 1e-2},
        audit={"generate": False},
    )  # fmt: skip
    result = run(build_recipe(recipe), output_dir=tmp_path / "o")
    target, changed = (result.document.models[name].metrics["forget.probability"] for name in ("target", "npo"))
    assert changed.value < target.value
    assert (tmp_path / "o" / "model" / "adapter_model.safetensors").exists()
