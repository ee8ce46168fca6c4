# SPDX-License-Identifier: Apache-2.0
"""From folders to `attacks.json`, `audit.json` and the report's section."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from expunge.api.attack import attack_folders
from expunge.attacks.registry import attacks
from expunge.audit.config import AuditConfig
from expunge.audit.document import AuditDocument, model_entry, read_audit, write_json
from expunge.data.config import DataConfig
from expunge.data.writing import write_examples
from expunge.errors import RecipeError
from expunge.models.loading import save_model

QUICK = {"relearning": {"on": ["related"], "how": ["full"], "learning_rates": [1e-3], "budgets": [1, 2]}}


@pytest.fixture(scope="module")
def folders(lab, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("attacked")
    for name, model in (("target", lab.target), ("reference", lab.reference), ("unlearned", lab.unlearned)):
        save_model(model, lab.encoder.tokenizer, root / name)
    for name in ("forget", "retain"):
        write_examples(getattr(lab.splits, name), root / f"{name}.jsonl")
    return root


def attack(root: Path, **changes):
    given = {
        "attacks": ("relearning", "quantisation"), "settings": QUICK, "reference": str(root / "reference"),
        "original": str(root / "target"), "audit": AuditConfig(bootstrap=200, max_new_tokens=8),
        "data": DataConfig(forget=str(root / "forget.jsonl"), retain=str(root / "retain.jsonl"), template="question"),
    }  # fmt: skip
    return attack_folders(str(root / "unlearned"), **(given | changes))


def test_attacks_are_written_into_an_audit_of_their_own_and_its_report(folders, tmp_path):
    done = attack(folders, output_dir=tmp_path / "out", commands=("expunge attack ...",))
    document = read_audit(tmp_path / "out" / "audit.json")
    assert document.attacks_run == ["relearning", "quantisation"]
    entry = document.attacks["relearning"]
    assert set(entry["models"]) == {"unlearned", "reference"}
    assert [point["budget"] for point in entry["models"]["unlearned"]] == [0, 1, 2]
    assert entry["metric"] == "forget.probability"
    assert {name: model.role for name, model in document.models.items()} == {
        "unlearned": "method", "reference": "reference", "target": "target",
    }  # fmt: skip
    assert document.models["target"].metrics["forget.probability"].value > 0.5
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    section = page.partition('id="back"')[2].partition('id="limits"')[0]
    for text in ("The curve of the reference is the control", "Regimes", "Quantisation: ", "each beside its control",
                 "unlearned, relearned on related, all weights", "Not tested"):  # fmt: skip
        assert text in section
    untested = section.partition("Not tested")[2]
    assert "probing:" in untested
    assert "quantisation:" not in untested
    kept = json.loads((tmp_path / "out" / "attacks.json").read_text("utf-8"))
    assert set(kept["attacks"]) == {"relearning", "quantisation"}
    assert kept["attacks"]["relearning"]["asked"]["data"]["forget"]["n"] == 16
    assert [result.card.name for result in done.results] == ["relearning", "quantisation"]


def test_a_second_attack_joins_the_first_and_the_same_attack_gives_the_same_numbers(folders, tmp_path):
    first = attack(folders, output_dir=tmp_path, attacks=("quantisation",), settings={}, overwrite=True)
    audit = tmp_path / "audit.json"
    before = audit.read_text("utf-8")
    (tmp_path / "run.json").write_text(json.dumps({"kind": "audit", "name": "audit", "status": "finished"}))
    second = attack(folders, output_dir=tmp_path, attacks=("pruning",), settings={"pruning": {"shares": [0.3]}})
    assert set(second.document.attacks) == {"quantisation", "pruning"}
    assert second.document.models == first.document.models
    attack(folders, output_dir=tmp_path, attacks=("quantisation",), settings={})
    assert json.loads(before)["attacks"]["quantisation"] == read_audit(audit).attacks["quantisation"]


def test_a_run_folder_knows_its_own_data_original_and_reference(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "unlearned", run / "model")
    data = {"forget": str(folders / "forget.jsonl"), "retain": str(folders / "retain.jsonl"), "template": "question"}
    recipe = {"model": {"path": str(folders / "target"), "reference": str(folders / "reference")}, "data": data}
    info = {"kind": "run", "name": "mine", "status": "finished", "method": {"name": "rmu", "title": "RMU"}}
    (run / "run.json").write_text(json.dumps(info | {"recipe": recipe}))
    entry = model_entry({}, role="method")
    write_json(AuditDocument(models={"rmu": entry}, attacks_run=["pruning"]), run / "audit.json")
    settings = {"interpolation": {"fractions": [0.5]}}
    done = attack_folders(str(run), attacks=["interpolation"], settings=settings, audit=AuditConfig(bootstrap=100))
    assert done.folder == run
    assert read_audit(run / "audit.json").attacks_run == ["pruning", "interpolation"]
    assert {found.model for found in done.results[0].findings} == {"rmu"}
    assert "Interpolation towards the original: 2 numbers" in (run / "report.html").read_text("utf-8")
    assert json.loads((run / "run.json").read_text("utf-8"))["kind"] == "run"


def test_what_is_wrong_is_said_before_anything_is_written(folders, tmp_path):
    with pytest.raises(RecipeError, match="--reference"):
        attack(folders, output_dir=tmp_path / "a", reference=None)
    with pytest.raises(RecipeError, match="no such attack"):
        attack(folders, output_dir=tmp_path / "a", attacks=("relerning",), settings={})
    assert not (tmp_path / "a").exists()
    assert "relearning" in attacks()
