# SPDX-License-Identifier: Apache-2.0
"""A sweep chooses by its rule on one half of the subjects and reports on the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from expunge.audit.document import read_audit
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.fictitious import Archive
from expunge.data.parts import part_of
from expunge.errors import InputDataError, RecipeError
from expunge.models.loading import save_model
from expunge.studies.sweep import SelectionRule, Trial, expand, rank, sweep


def trial(score: float | None, kept: float | None, name: str = "") -> Trial:
    return Trial({"name": name}, name, "", score, kept)


def test_expand_gives_every_combination_in_order() -> None:
    assert expand({"a.b": [1, 2], "c": ["x"]}) == [{"a.b": 1, "c": "x"}, {"a.b": 2, "c": "x"}]
    for grid in ({}, {"a": []}):
        with pytest.raises(RecipeError, match="no values"):
            expand(grid)


def test_rank_prefers_what_keeps_enough_and_says_if_nothing_does() -> None:
    rule = SelectionRule(keep_share=0.8)
    ranked, kept = rank([trial(0.9, 0.5, "best"), trial(0.3, 0.9, "safe"), trial(None, 1.0, "failed")], rule)
    assert [t.folder for t in ranked] == ["safe", "best", "failed"]
    assert kept
    ranked, kept = rank([trial(0.9, 0.1, "a"), trial(0.2, 0.7, "b")], rule)
    assert ranked[0].folder == "b"  # none keeps enough: the one that keeps most
    assert not kept


def test_halves_share_no_subject_and_ignore_the_order_of_the_file() -> None:
    examples = [Example(id=f"{s}-{i}", prompt="q", answer="a", subject=s) for s in "abcde" for i in range(2)]
    first, second = (part_of(examples, part, name="forget") for part in ("validation", "test"))  # type: ignore[arg-type]
    assert {e.subject for e in first} | {e.subject for e in second} == set("abcde")
    assert not {e.subject for e in first} & {e.subject for e in second}
    assert {e.id for e in part_of(examples[::-1], "test", name="forget")} == {e.id for e in second}
    unknown = [Example(id=str(i), prompt="q", answer="a") for i in range(3)]
    assert len(part_of(unknown, "validation", name="x")) == 2
    with pytest.raises(InputDataError, match="cannot be divided"):
        part_of(unknown[:1], "test", name="x")


def test_sweep_resumes_chooses_and_counts(
    tmp_path: Path, archive: Archive, encoder: Encoder, trained_model: nn.Module
) -> None:
    archive.write_jsonl(tmp_path)
    save_model(trained_model, encoder.tokenizer, tmp_path / "target")
    settings: dict[str, Any] = {
        "model": {"path": str(tmp_path / "target")}, "method": {"name": "grad_diff"},
        "data": {"forget": str(tmp_path / "forget10.jsonl"), "retain": str(tmp_path / "retain90.jsonl"),
                 "template": "question"},
        "training": {"epochs": 1, "batch_size": 8}, "audit": {"generate": False, "bootstrap": 100},
    }  # fmt: skip
    rule = SelectionRule(maximise="-forget.probability", keep="retain.probability", keep_share=0.5)
    grid = {"training.learning_rate": [1e-4, 2e-3]}
    result = sweep(settings, grid, tmp_path / "sweep", rule=rule)
    assert result.chosen.overrides == {"training.learning_rate": 2e-3}
    assert result.kept_enough
    parts = [
        read_audit(folder / "audit.json").models["target"].meta["data"]["forget"]
        for folder in (tmp_path / "sweep" / result.chosen.folder, result.final)
    ]
    assert parts[0]["digest"] != parts[1]["digest"]
    assert parts[0]["n"] + parts[1]["n"] == 8
    written = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert written["status"] == "finished"
    assert written["runs_tried"] == 2
    assert json.loads((result.final / "run.json").read_text())["runs_tried"] == 2
    assert "2 runs" in (result.final / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/run.json")}
    again = sweep(settings, grid, tmp_path / "sweep", rule=rule)
    assert again.chosen == result.chosen
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/run.json")} == before


def test_two_processes_may_measure_the_same_model_into_one_folder(
    tmp_path: Path, archive: Archive, encoder: Encoder, trained_model: nn.Module
) -> None:
    archive.write_jsonl(tmp_path)
    save_model(trained_model, encoder.tokenizer, tmp_path / "target")
    settings: dict[str, Any] = {
        "model": {"path": str(tmp_path / "target")}, "method": {"name": "ga"},
        "data": {"forget": str(tmp_path / "forget10.jsonl"), "template": "question"},
        "training": {"epochs": 1}, "audit": {"generate": False, "bootstrap": 100},
    }  # fmt: skip
    rule = SelectionRule(maximise="-forget.probability", keep="forget.probability", keep_share=0.1)
    result = sweep(settings, {"seed": [0, 1]}, tmp_path / "sweep", rule=rule, workers=2)
    assert [trial.error for trial in result.trials] == ["", ""]
    assert not list((tmp_path / "sweep/records").glob(".partial*"))
