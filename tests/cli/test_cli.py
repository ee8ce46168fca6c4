# SPDX-License-Identifier: Apache-2.0
"""The commands from outside: what they print where, what they write, and how they exit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from cli_lab import Lab, expunge, quick, tree
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.audit.document import read_audit
from expunge.cli.options import command_line, pairs
from expunge.cli.streams import limit_threads
from expunge.recipe import Recipe

ESTIMATE = {"value", "ci_low", "ci_high", "n", "direction", "reference", "compat"}
NOTES = {"reason", "caveat", "most"}
CARD = {"name", "family", "claim", "needs", "paper", "cost", "provenance"}


def test_a_run_without_a_recipe_leaves_a_complete_folder(finished: Path) -> None:
    info = json.loads((finished / "run.json").read_text("utf-8"))
    assert (info["status"], info["error"], info["steps"]) == ("finished", None, 4)
    for name in ("recipe.yaml", "metrics.jsonl", "audit.json", "report.html", "model/model.safetensors"):
        assert (finished / name).stat().st_size > 0, name
    assert "<html" in (finished / "report.html").read_text("utf-8")
    assert not [name for name in tree(finished) if ".part" in name]
    AutoModelForCausalLM.from_pretrained(finished / "model")
    AutoTokenizer.from_pretrained(finished / "model")


def test_the_command_is_recorded_as_it_was_given(finished: Path, lab: Lab) -> None:
    (line,) = json.loads((finished / "run.json").read_text("utf-8"))["commands"]
    assert line.startswith(f"expunge run --model {lab.base} --forget ")
    assert "--set audit.max_new_tokens=3" in line


def test_every_estimate_has_the_documented_keys(finished: Path) -> None:
    document = json.loads((finished / "audit.json").read_text("utf-8"))
    assert {"schema_version", "environment", "models"} <= set(document)
    assert list(document["models"]) == ["target", "reference", "grad_diff"]
    for model in document["models"].values():
        assert "seconds" in model
        for name, found in model["metrics"].items():
            assert set(found) - NOTES == ESTIMATE, name
            assert found["value"] is not None or found["reason"], name
            assert "reason" not in found or None in (found["value"], found["ci_low"]), name


def test_json_is_one_document_and_everything_else_is_on_stderr(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = expunge(*lab.run(out, "--json"))
    assert done.code == 0
    assert done.document == json.loads((out / "audit.json").read_text("utf-8"))
    assert "Unlearning with grad_diff" in done.stderr
    # A finished run is returned as it is: nothing is loaded, nothing is measured.
    again = expunge(*lab.run(out, "--json", "--resume"))
    assert (again.code, again.stderr) == (0, "")
    assert again.document == done.document


def test_no_example_is_printed(lab: Lab, tmp_path: Path) -> None:
    done = expunge(*lab.run(tmp_path / "run"))
    texts = [json.loads(line) for line in Path(lab.file("forget")).read_text("utf-8").splitlines()]
    for row in texts:
        assert row["question"] not in done.stdout + done.stderr
        assert row["answer"] not in done.stdout + done.stderr
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert not any(row["answer"] in report for row in texts)


def test_a_dry_run_writes_nothing(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = expunge(*lab.run(Path("runs/one"), "--dry-run"))
    assert done.code == 0
    assert "steps" in done.stdout
    assert yaml.safe_load(done.stdout.split("\n\n")[0])["method"]["name"] == "grad_diff"
    as_json = expunge(*lab.run(Path("runs/one"), "--dry-run", "--json"))
    assert as_json.document["steps"] == 4
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_file_and_options_on_top(lab: Lab, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    settings = {
        "model": {"path": lab.base}, "data": {"forget": lab.file("forget"), "retain": lab.file("retain")},
        "method": {"name": "npo", "beta": 0.5}, "seed": 3,
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump(settings), "utf-8")
    shown = expunge("validate", str(recipe), "--set", "method.beta=0.2", "--json")
    assert (shown.document["method"]["beta"], shown.document["seed"]) == (0.2, 3)
    assert set(shown.document) == set(Recipe.model_fields)
    planned = expunge("run", str(recipe), "--seed", "7", *quick(), "--dry-run", "--json")
    assert (planned.document["recipe"]["seed"], planned.document["recipe"]["method"]["beta"]) == (7, 0.5)


def test_train_makes_a_model_and_says_how(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    settings = [part for key in ("training.epochs=2", "training.batch_size=4") for part in ("--set", key)]
    done = expunge("train", "--model", lab.base, "--data", lab.file("retain"), "-o", str(out), *settings, "--json")
    assert done.code == 0, done.stderr
    assert (done.document["kind"], done.document["status"], done.document["steps"]) == ("train", "finished", 4)
    AutoModelForCausalLM.from_pretrained(out / "model")


def test_audit_measures_several_models_against_one_reference(lab: Lab, finished: Path, tmp_path: Path) -> None:
    out, copied = tmp_path / "audit", tmp_path / "copy" / "model"
    shutil.copytree(lab.base, copied)
    sets = ["--forget", lab.file("forget"), "--holdout", lab.file("holdout"), "--extra", f"more={lab.file('retain')}"]
    settings = ["--set", "audit.max_new_tokens=3", "--set", "audit.bootstrap=100"]
    # A run folder stands for the model in it.
    given = [str(finished), str(copied), "--reference", lab.base, *sets, *settings]
    done = expunge("audit", *given, "-o", str(out), "--json")
    assert done.code == 0, done.stderr
    assert done.document == json.loads((out / "audit.json").read_text("utf-8"))
    models = done.document["models"]
    assert list(models) == ["reference", "one", "copy"]
    assert [models[name]["role"] for name in models] == ["reference", "method", "other"]
    assert models["one"]["method"] == "grad_diff"
    assert models["copy"]["metrics"]["more.probability"]["n"] == 8
    assert len(list((out / "records").iterdir())) == 2  # the copy has the weights of the reference: measured once
    assert (out / "report.html").exists()
    kept = next(path for path in (out / "records").iterdir() if path.name.startswith("copy"))
    common = ["audit", str(finished), *sets, *settings, "--json"]
    by_model = expunge(*common, "--reference", lab.base, "-o", str(tmp_path / "b")).document
    by_records = expunge(*common, "--reference", str(kept), "-o", str(tmp_path / "c")).document
    for name in ("forget_quality", "privleak"):
        first, second = (found["models"]["one"]["metrics"][name]["value"] for found in (by_model, by_records))
        assert first == second


def test_a_policy_that_is_not_met_exits_with_3(lab: Lab, finished: Path, tmp_path: Path) -> None:
    sets = ["--forget", lab.file("forget"), "--set", "audit.bootstrap=100", "--set", "audit.generate=false"]
    policy = "policy={name: strict, bounds: {forget.probability: {max: -1}, forget.truth_ratio: {min: 0}}}"
    done = expunge("audit", str(finished), *sets, "--set", policy, "-o", str(tmp_path / "a"))
    assert done.code == 3
    assert "✗ forget.probability at most -1" in done.stdout
    assert "✓ forget.truth_ratio at least 0" in done.stdout
    assert "policy strict: 1 of 2 limits are not met" in done.said
    rules = json.loads((tmp_path / "a" / "audit.json").read_text("utf-8"))["policy"]["rules"]
    assert [rule["met"] for rule in rules] == [False, True]


def test_compare_joins_runs_on_the_same_data(lab: Lab, finished: Path, tmp_path: Path) -> None:
    other, page = tmp_path / "two", tmp_path / "page.html"
    more = ["--reference", lab.base, "--holdout", lab.file("holdout"), "--seed", "1"]
    assert expunge(*lab.run(other, *more)).code == 0
    done = expunge("compare", str(finished), str(other), "-o", str(page), "--json")
    assert done.code == 0, done.stderr
    # Equal targets and references are one; the two models called grad_diff are named after their runs.
    assert list(done.document["models"]) == ["target", "reference", "one", "two"]
    assert "Forgetting against utility" in page.read_text("utf-8")
    shown = expunge("compare", str(finished), str(other), "-o", str(page))
    assert "probability ↓" in shown.stdout
    assert len(shown.stdout.splitlines()) < 60


def test_compare_refuses_other_data(lab: Lab, finished: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "forget.jsonl"
    fewer.write_text("".join(Path(lab.file("forget")).read_text("utf-8").splitlines(keepends=True)[:4]), "utf-8")
    assert expunge(*lab.run(tmp_path / "two", forget=str(fewer))).code == 0
    done = expunge("compare", str(finished), str(tmp_path / "two"), "-o", str(tmp_path / "page.html"))
    assert done.code == 6
    assert "its forget set differs from that of" in done.said
    assert not (tmp_path / "page.html").exists()


def test_compare_warns_where_models_were_asked_differently(finished: Path, tmp_path: Path) -> None:
    other = shutil.copytree(finished, tmp_path / "two")
    document = (other / "audit.json").read_text("utf-8")
    (other / "audit.json").write_text(document.replace('"max_new_tokens": 3', '"max_new_tokens": 9'), "utf-8")
    done = expunge("compare", str(finished), str(other), "-o", str(tmp_path / "page.html"), "--json")
    assert done.code == 0
    assert "warning: the audits differ in max_new_tokens (3, 9)" in done.said


def test_compare_names_a_folder_without_an_audit(tmp_path: Path) -> None:
    done = expunge("compare", str(tmp_path))
    assert done.code == 6
    assert f"runs: holds no audit.json (got '{tmp_path}')" in done.said


def test_method_cards() -> None:
    cards = expunge("methods", "--json").document
    assert {"ga", "grad_diff", "npo", "retrain"} <= {card["name"] for card in cards}
    assert all(set(card) >= CARD and card["paper"] for card in cards)
    shown = expunge("methods", "show", "npo")
    assert "arXiv:2404.05868" in shown.stdout
    assert "beta" in shown.stdout
    assert expunge("methods", "show", "npo", "--json").document["settings"]["properties"]["beta"]["default"] == 0.1
    missing = expunge("methods", "show", "npoo")
    assert missing.code == 2
    assert "Did you mean 'npo'?" in missing.said


def test_metric_cards(finished: Path) -> None:
    cards = {card["name"]: card for card in expunge("metrics", "--json").document}
    assert {"forget.probability", "forget_quality", "model_utility", "membership.min_k.auc"} <= set(cards)
    for name, found in read_audit(finished / "audit.json").models["grad_diff"].metrics.items():
        generic = "{set}." + name.partition(".")[2]
        assert found.direction == cards.get(name, cards.get(generic))["direction"], name
    assert "Truth ratio" in expunge("metrics", "show", "forget.truth_ratio").stdout
    assert expunge("metrics", "show", "retain.rouge_l", "--json").document["name"] == "{set}.rouge_l"
    assert "Did you mean" in expunge("metrics", "show", "forget.probabilty").said


def test_schemas() -> None:
    found = expunge("schema").document
    assert set(found) == {"recipe", "train", "audit", "records", "methods", "metrics"}
    estimate = expunge("schema", "audit").document["$defs"]["EstimateEntry"]["properties"]
    assert set(estimate) == ESTIMATE | NOTES
    assert "logp" in found["records"]["properties"]["scored.parquet"]["properties"]
    assert expunge("schema", "recipes").code == 2


def test_env_and_version() -> None:
    assert expunge("env", "--json").document["packages"]["torch"]
    assert expunge("--version").stdout.startswith("expunge ")


def test_the_nearest_command_and_option_are_named() -> None:
    command = expunge("rum")
    assert command.code == 2
    assert "Did you mean 'run'?" in command.said
    option = expunge("run", "--methd", "npo")
    assert option.code == 2
    assert "--method" in option.said


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("what nobody thought of")

    monkeypatch.setattr("expunge.methods.registry.method_cards", broken)
    done = expunge("methods")
    assert done.code == 1
    assert "unexpected ValueError: what nobody thought of" in done.said
    assert "EXPUNGE_DEBUG=1" in done.said
    monkeypatch.setenv("EXPUNGE_DEBUG", "1")
    with pytest.raises(ValueError, match="nobody"):
        expunge("methods")


def test_names_of_sets_and_command_lines() -> None:
    assert pairs(["a=b=c"], "--extra") == {"a": "b=c"}

    context = SimpleNamespace(meta={"expunge.arguments": ["run", "a b"]})
    assert command_line(context) == "expunge run 'a b'"  # type: ignore[arg-type]


def test_small_models_get_one_thread(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    limit_threads(str(tmp_path))  # no weights to judge by
    assert chosen == []
    limit_threads(lab.base)
    assert chosen == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads(lab.base)
    assert chosen == [1]


def test_noise_from_the_command_line_is_counted_in_what_is_printed(lab: Lab, tmp_path: Path) -> None:
    noise = ("--set", "data.noise.kind=mislabel", "--set", "data.noise.rate=0.5", "--set", "data.robust.overlap=0.7")
    done = expunge(*lab.run(tmp_path / "out", *noise))
    assert done.code == 0, done.stderr
    said = "8 items given; mislabel noise at rate 0.5 (seed 0) touched 4 and left 12; 4 left out for overlap"
    assert said in done.said
    assert said in " ".join(done.stdout.split())
