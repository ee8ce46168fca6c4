# SPDX-License-Identifier: Apache-2.0
"""Noise and guards from the recipe to the report: what is trained on, what is audited, what is written down."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from expunge.api.job import run
from expunge.api.plan import plan
from expunge.api.screen import mean_nll
from expunge.api.train import train
from expunge.api.workspace import Silent, load_data
from expunge.data.config import DataConfig
from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.data.writing import write_examples
from expunge.errors import InputDataError, RecipeError
from expunge.models.digests import folder_digest
from expunge.models.loading import save_model
from expunge.recipe import TrainRecipe, build_recipe, merge
from expunge.signals.likelihood import score


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, archive: Archive, encoder: Encoder, trained_model: nn.Module,
          fresh: Callable[[], nn.Module]) -> Path:  # fmt: skip
    folder = tmp_path_factory.mktemp("noisy")
    archive.write_jsonl(folder)
    save_model(trained_model, encoder.tokenizer, folder / "target")
    save_model(fresh(), encoder.tokenizer, folder / "base")
    return folder


def settings(place: Path, **more: Any) -> dict[str, Any]:
    shared = {
        "model": {"path": str(place / "target")},
        "data": {"forget": str(place / "forget10.jsonl"), "retain": str(place / "retain90.jsonl"),
                 "holdout": str(place / "holdout.jsonl"), "template": "question"},
        "method": {"name": "npo"},
        "training": {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4},
        "audit": {"generate": False, "bootstrap": 100},
    }  # fmt: skip
    return merge(shared, more)


def written(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


class Stages(Silent):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def stage(self, text: str) -> None:
        self.seen.append(text)


def test_a_run_says_what_it_trained_on_and_audits_what_was_given(place: Path, tmp_path: Path) -> None:
    data = {"noise": {"kind": "mislabel", "rate": 0.5}, "robust": {"overlap": 0.7, "memorised": "holdout"}}
    stages = Stages()
    recipe = build_recipe(settings(place, data=data, method={"trim": 0.25}))
    run(recipe, output_dir=tmp_path / "o", watcher=stages)
    found = written(tmp_path / "o")
    counts = [(step["what"], step["items"], step["left"]) for step in found["prepared"]["steps"]]
    assert counts == [("noise", 4, 12), ("overlap", 4, 8), ("memorised", 0, 8)]
    assert (found["prepared"]["given"], found["prepared"]["n"], found["data"]["forget"]["n"]) == (8, 8, 8)
    assert found["prepared"]["digest"] == found["data"]["forget"]["digest"]
    audited = json.loads((tmp_path / "o/audit.json").read_text())["models"]["npo"]["metrics"]["forget.probability"]
    assert audited["n"] == 8
    (header,) = [text for text in stages.seen if text.startswith("Unlearning")]
    assert "4 left out for overlap with the retain set (threshold 0.7)" in header
    report = (tmp_path / "o/report.html").read_text()
    assert "Forget set in training" in report
    assert found["notes"]["trimmed"] == {"side": "high", "examples": 1, "of": 4}
    assert "1 of the 4 forget examples of a full forward left out, those with the highest loss" in report
    assert "mislabel noise at rate 0.5 (seed 0) touched 4 and left 12" in report
    planned = plan(recipe)
    assert planned["prepared"]["steps"] == found["prepared"]["steps"][:2]
    assert planned["data"]["forget"]["examples"] == 8


def test_noise_changes_the_training_and_not_the_audit(place: Path, tmp_path: Path) -> None:
    for name, noise in (
        ("clean", {}),
        ("zero", {"kind": "mask", "rate": 0.0}),
        ("half", {"kind": "mask", "rate": 0.5}),
    ):
        run(build_recipe(settings(place, data={"noise": noise})), output_dir=tmp_path / name)
    models = {name: folder_digest(tmp_path / name / "model") for name in ("clean", "zero", "half")}
    assert models["clean"] == models["zero"] != models["half"]
    entries = [json.loads((tmp_path / n / "audit.json").read_text())["models"]["target"] for n in ("clean", "half")]
    assert entries[0]["metrics"] == entries[1]["metrics"]
    assert written(tmp_path / "clean")["prepared"] is None
    assert "Forget set in training" not in (tmp_path / "clean/report.html").read_text()


def test_what_was_never_learned_is_left_out(
    place: Path, tmp_path: Path, archive: Archive, encoder: Encoder, trained_model: nn.Module,
    fresh: Callable[[], nn.Module],
) -> None:  # fmt: skip
    splits = archive.splits()
    mixed = [*splits.forget, *splits.holdout[:3]]
    write_examples(mixed, tmp_path / "mixed.jsonl")
    own, base = (mean_nll(model, mixed, encoder, where="mixed") for model in (trained_model, fresh()))
    gain = base - own
    assert gain[:8].min() > gain[8:].max()  # it learned the first eight
    margin = float((gain[:8].min() + gain[8:].max()) / 2)
    data = {"forget": str(tmp_path / "mixed.jsonl"), "holdout": None, "robust": {"memorised": "base", "margin": margin}}
    run(build_recipe(settings(place, model={"base": str(place / "base")}, data=data)), output_dir=tmp_path / "o")
    found = written(tmp_path / "o")["prepared"]
    assert (found["given"], found["n"], found["steps"][0]["items"]) == (11, 8, 3)
    assert found["steps"][0]["settings"]["against"] == "base"


def test_likelihoods_are_those_of_every_answer(archive: Archive, encoder: Encoder, trained_model: nn.Module) -> None:
    examples = archive.splits().forget[:3]
    found = mean_nll(trained_model, examples, encoder, where="forget")
    for example, value in zip(examples, found, strict=True):
        (alone,) = score(trained_model, [encoder.encode(example)], pad_id=encoder.pad_id, stats=False)
        assert value == pytest.approx(-alone.logp.mean(), rel=1e-4)
    lengths = [len(encoder.encode(example).ids) for example in examples]
    short = Encoder(encoder.tokenizer, template="question", max_length=max(lengths) - 1, too_long="drop")
    kept = mean_nll(trained_model, examples, short, where="forget")
    assert [math.isnan(value) for value in kept] == [length == max(lengths) for length in lengths]


def test_shared_items_are_an_error_without_the_guard_and_left_out_with_it(place: Path, tmp_path: Path) -> None:
    rows = [(place / name).read_text().splitlines() for name in ("forget10.jsonl", "retain90.jsonl")]
    shared = tmp_path / "shared.jsonl"
    shared.write_text("\n".join([*rows[0], *rows[1][:2]]) + "\n")
    given = DataConfig(forget=str(shared), retain=str(place / "retain90.jsonl"))
    with pytest.raises(InputDataError, match="also in forget"):
        load_data(given)
    data = load_data(DataConfig(**given.model_dump() | {"robust": {"overlap": 0.7}}))
    assert (len(data.splits.forget), len(data.trained.forget), len(data.audited["forget"])) == (10, 8, 10)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"data": {"noise": {"kind": "mislabel", "rate": 0.1}, "retain": None}, "method": {"retain": "none"}},
         "data.noise.kind: needs a retain set"),
        ({"data": {"robust": {"overlap": 0.5}, "retain": None}, "method": {"retain": "none"}},
         "data.robust.overlap: needs a retain set"),
        ({"data": {"robust": {"memorised": "holdout"}, "holdout": None}}, "data.robust.memorised: needs a holdout set"),
        ({"data": {"robust": {"memorised": "base"}}}, "data.robust.memorised: needs the model that never saw"),
        ({"data": {"noise": {"kind": "drop", "rate": 1.0}}}, "data.noise.rate: no item is left"),
        ({"method": {"trim": 0.1}}, "method.trim: leaves out none of 4 examples"),
        ({"method": {"name": "retrain"}, "data": {"noise": {"kind": "drop", "rate": 0.1}}, "model": {"base": "base"}},
         "does not train on the forget set"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    place: Path, tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    recipe = build_recipe(settings(place, **more))
    for start in (lambda: run(recipe, output_dir=tmp_path / "o"), lambda: plan(recipe)):
        with pytest.raises((RecipeError, InputDataError)) as found:
            start()
        assert says in str(found.value)
    assert not (tmp_path / "o").exists()


def test_plain_training_has_no_noise(place: Path, tmp_path: Path) -> None:
    given = {"train": str(place / "train_full.jsonl"), "forget": str(place / "forget10.jsonl")}
    data = {**given, "noise": {"kind": "mask", "rate": 0.1}}
    recipe = TrainRecipe.build({"model": {"path": str(place / "base")}, "data": data, "training": {}})
    with pytest.raises(RecipeError, match="no forget term"):
        train(recipe, output_dir=tmp_path / "o")
