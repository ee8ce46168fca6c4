# SPDX-License-Identifier: Apache-2.0
"""A diagnosis from folder to page, on the model that learned the archive: what must be exact, and what must show."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.api.diagnose import diagnose_folders
from expunge.audit.diagnostics.config import DiagnoseConfig
from expunge.audit.diagnostics.published import REASONS
from expunge.data.config import DataConfig
from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.data.writing import write_examples
from expunge.errors import InputDataError, RecipeError
from expunge.models.loading import save_model
from expunge.report.diagnostics import render_diagnostics

CONFIG = DiagnoseConfig(bootstrap=200, fisher_texts=6, texts=16)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, archive: Archive, trained_model: nn.Module, encoder: Encoder) -> Path:
    """Models before, after (noise in the last block's MLP) and relearned (a tenth of that noise), and the sets."""
    root = tmp_path_factory.mktemp("diagnose")
    generator = torch.Generator().manual_seed(0)
    noise: dict[str, torch.Tensor] = {}
    for name, share in (("before", 0.0), ("after", 1.0), ("relearned", 0.1)):
        model = copy.deepcopy(trained_model)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if key.startswith("model.layers.1.mlp"):
                    noise.setdefault(key, 0.25 * torch.randn(weight.shape, generator=generator))
                    weight.add_(share * noise[key])
        save_model(model, encoder.tokenizer, root / name)
    splits = archive.splits("forget10")
    people = archive.people
    sets = {
        "forget": [f.example() for p in people[-2:] for f in p.facts],
        "retain": [f.example() for p in people[:4] for f in p.facts],
        "unrelated": splits.extra["world_facts"],
    }
    for name, examples in sets.items():
        write_examples(examples, root / f"{name}.jsonl")
    return root


def data(lab: Path, *, unrelated: bool = True, **more: Any) -> DataConfig:
    extra = {"unrelated": str(lab / "unrelated.jsonl")} if unrelated else {}
    return DataConfig(
        forget=str(lab / "forget.jsonl"), retain=str(lab / "retain.jsonl"), extra=extra, template="question", **more
    )


@pytest.fixture(scope="module")
def found(lab: Path) -> dict[str, Any]:
    return diagnose_folders(
        str(lab / "before"), str(lab / "after"), relearned=str(lab / "relearned"), control=str(lab / "before"),
        data=data(lab), output_dir=lab / "out", config=CONFIG, commands=("expunge diagnose ...",),
    )  # fmt: skip


def test_what_is_written(lab: Path, found: dict[str, Any]) -> None:
    read = json.loads((lab / "out/diagnostics.json").read_text())
    assert read["verdict"] == json.loads(json.dumps(found["verdict"]))
    assert json.loads((lab / "out/run.json").read_text())["status"] == "finished"
    assert sorted(p.name for p in (lab / "out").iterdir()) == [
        "diagnostics.html", "diagnostics.json", "records", "run.json",
    ]  # fmt: skip
    page = (lab / "out/diagnostics.html").read_text()
    assert page.count("<figure") == 3 * 3 + 3 * 2 + 3 + 3 * 2 + 1  # curves, planes, Fisher curves, histograms, weights
    assert "expunge diagnose ..." in page
    assert render_diagnostics(read, commands=("expunge diagnose ...",)) == page  # the JSON is enough


def test_only_the_block_that_was_changed_shows_a_change(found: dict[str, Any]) -> None:
    change = found["changes"]["after"]
    by_layer = {entry["layer"]: entry for entry in change["updates"]}
    assert set(by_layer) == {-1, 0, 1, 2}
    assert [by_layer[layer]["norm"] > 0 for layer in (-1, 0, 1, 2)] == [False, False, True, False]
    assert found["changes"]["relearned"]["updates"][2]["norm"] == pytest.approx(0.1 * by_layer[1]["norm"], rel=1e-3)
    for name in ("forget", "retain", "unrelated"):
        first, last = change["states"][name]
        assert first["cka"]["value"] == pytest.approx(1.0, abs=1e-6)
        assert first["shift"]["value"] == pytest.approx(0.0, abs=1e-5)
        assert last["cka"]["value"] < 0.999
        near = found["changes"]["relearned"]["states"][name][1]
        assert near["cka"]["value"] > last["cka"]["value"]
        assert near["shift"]["value"] < last["shift"]["value"]
        assert first["cka"]["estimator"] == "debiased"  # 16 texts, 64 dimensions


def test_fisher_is_of_every_block_and_set(found: dict[str, Any]) -> None:
    for name in ("forget", "retain", "unrelated"):
        for entry in found["changes"]["after"]["fisher"][name]:
            assert entry["value"] == pytest.approx(entry["mass_after"] / entry["mass_before"])
            assert 0 <= entry["overlap"] <= 1
            total = sum(entry["before"]["counts"]) + entry["before"]["zeros"]
            assert total == sum(entry["after"]["counts"]) + entry["after"]["zeros"]


def test_the_verdict_has_its_numbers_and_its_control(found: dict[str, Any]) -> None:
    verdict = found["verdict"]
    means = verdict["means"]["forget"]
    assert means["before"] > 0.9 > means["after"]
    assert verdict["recovery"]["value"] == pytest.approx(
        (means["relearned"] - means["after"]) / (means["before"] - means["after"])
    )
    assert verdict["label"].startswith("reversible")
    assert verdict["control"]["value"] == pytest.approx(means["relearned"] - means["before"])
    assert verdict["caveats"] == []


def test_a_model_against_itself_changed_nothing(lab: Path) -> None:
    same = diagnose_folders(
        str(lab / "before"), str(lab / "before"), data=data(lab, unrelated=False), output_dir=lab / "same",
        config=CONFIG.model_copy(update={"fisher_texts": 3}),
    )  # fmt: skip
    change = same["changes"]["after"]
    for entry in change["states"]["forget"]:
        assert entry["cka"]["value"] == pytest.approx(1.0)
        assert entry["pc1"]["value"] == pytest.approx(1.0)
    assert all(entry["value"] == pytest.approx(1.0) for entry in change["fisher"]["retain"])
    assert all(entry["overlap"] == pytest.approx(1.0) for entry in change["fisher"]["retain"])
    assert "does not apply" in same["verdict"]["label"]
    assert list(same["sets"]) == ["forget", "retain"]


def test_published_numbers_are_degenerate_and_say_so(lab: Path) -> None:
    out = diagnose_folders(
        str(lab / "before"), str(lab / "before"), data=data(lab, unrelated=False), output_dir=lab / "published",
        config=CONFIG.model_copy(update={"compat": "published", "fisher_texts": 5}),
    )  # fmt: skip
    for entry in out["changes"]["after"]["states"]["forget"]:
        assert entry["cka"]["value"] == pytest.approx(0.0, abs=1e-3)  # one and the same model
        assert abs(entry["pc1"]["value"]) == pytest.approx(1.0)
    page = (lab / "published/diagnostics.html").read_text()
    assert all(reason.split(".")[0] in page for reason in REASONS.values())
    assert out["compat_reasons"] == REASONS


def test_what_cannot_be_diagnosed(lab: Path, encoder: Encoder, trained_model: nn.Module) -> None:
    models = (str(lab / "before"), str(lab / "after"))
    with pytest.raises(RecipeError, match="retain"):
        diagnose_folders(*models, data=DataConfig(forget=str(lab / "forget.jsonl")), output_dir=lab / "x")
    with pytest.raises(RecipeError, match="--control"):
        diagnose_folders(*models, data=data(lab), output_dir=lab / "x", control=models[0])
    with pytest.raises(InputDataError, match="no such folder"):
        diagnose_folders(models[0], str(lab / "nowhere"), data=data(lab), output_dir=lab / "x")
    with pytest.raises(RecipeError, match="already holds"):
        diagnose_folders(*models, data=data(lab), output_dir=lab / "out")
    assert not (lab / "x").exists()
