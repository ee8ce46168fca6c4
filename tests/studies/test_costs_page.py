# SPDX-License-Identifier: Apache-2.0
"""The page of what guarantees cost is what the committed numbers give, and its cells are those of a hand count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.studies.costs_page import beside, cell, rows_of, short, title, write_page
from expunge.studies.costs_study import EPSILONS, METHODS, SHARDS, best, pairs, routes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results/guarantee-costs.json"


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads(RESULTS.read_text("utf-8"))


def test_the_page_is_what_the_committed_numbers_give(results: Any, tmp_path: Path) -> None:
    write_page(results, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text("utf-8") == (ROOT / "docs/what-guarantees-cost.md").read_text("utf-8")
    assert "/home" not in RESULTS.read_text("utf-8")
    assert "/tmp" not in RESULTS.read_text("utf-8")


def test_every_way_is_there_on_every_seed(results: Any) -> None:
    wanted = set(routes(results["chosen"], customers=results["customers"]))
    assert {f"dp {e:g}" for e in EPSILONS} | {f"sisa {s}x{r}" for s, r in SHARDS} | set(METHODS) < wanted
    assert len(results["runs"]) == len(results["seeds"]) == 3
    assert results["environment"]["packages"]["torch"]
    for found in results["runs"].values():
        assert set(found) == wanted
        assert len({digest for one in found.values() for digest in one["retraining"]["digests"]}) == 1


def test_what_the_page_says_holds_in_the_numbers(results: Any) -> None:
    """The sentences that no number stands in."""
    rows = rows_of(results)
    for name, found in rows.items():
        for one in found:
            bounds = one["after"]["canaries"]["epsilon"]["one_run"]
            assert bounds["value"] <= bounds["power"]
            if name == "retrain":
                assert bounds["value"] == 0
            if one["claim"] == "statistical":
                sequences, said = name.count(",") == 0, one["served"]["statement"]
                assert said["says_something"] is not sequences
                assert said["of_one"]["epsilon"] <= float(name.split()[1].rstrip(","))
                # The account of one unit stands above whatever the canaries show.
                assert bounds["value"] <= said["of_one"]["epsilon"]
            if name.startswith("sisa"):
                assert one["kept_bytes"] / one["model_bytes"] == pytest.approx(
                    1 + {"2x1": 2, "4x1": 4, "4x4": 16}[name.split()[1]], rel=0.01
                )
                assert one["served"]["examples"] == one["request"]


def entry(value: float, *, before: float = 4.0, after: float = 6.0, prepare: float | None = 10.0) -> dict[str, Any]:
    metrics = {"forget.probability": {"value": value}}
    return {"prepare_seconds": prepare, "serve_seconds": 2.5, "retraining": {"seconds": [before, after]},
            "after": {"metrics": metrics}}  # fmt: skip


def test_times_are_divided_by_the_retrainings_around_them() -> None:
    runs = {"0": {"target": entry(0.9), "retrain": entry(0.2, prepare=None, before=1.0, after=1.0), "npo": entry(0.1)}}
    rows = rows_of({"runs": runs})
    assert beside(rows["target"][0]) == 5.0
    assert (rows["target"][0]["prepare"], rows["target"][0]["serve"]) == (2.0, 0.5)
    assert (rows["retrain"][0]["prepare"], rows["retrain"][0]["serve"]) == (2.0, 2.5)
    assert [round(rows[name][0]["gap"], 9) for name in runs["0"]] == [0.7, 0.0, -0.1]


def test_cells_show_the_median_and_the_ends() -> None:
    found = [{"x": value} for value in (0.25, 0.125, 0.5)]
    assert cell(found, lambda one: one["x"]) == "0.250 [0.125–0.500]"
    assert cell(found[:1], lambda one: one["x"]) == "0.250"
    assert cell([{"x": None}], lambda one: one["x"]) == "–"
    below = [{"x": value} for value in (-0.25, -0.001, 0.5)]
    assert cell(below, lambda one: one["x"], short) == "0.00 [−0.25 to 0.50]"
    assert [title(name) for name in ("sisa 4x2", "dp 8", "dp 8, person", "npo")] == [
        "SISA 4 × 2", "private training (ε = 8 a sequence)", "private training (ε = 8 a person)",
        "`npo` on the target",
    ]  # fmt: skip


def trial(kept: float, forgotten: float) -> dict[str, float]:
    return {"retain.probability": kept, "forget.probability": forgotten}


def test_settings_are_chosen_by_the_rule() -> None:
    target, reference = trial(0.9, 0.9), trial(0.9, 0.1)
    low, near, far = trial(0.5, 0.1), trial(0.82, 0.13), trial(0.89, 0.3)
    assert best("npo", [low, near, far], target, reference) is near
    assert best("npo", [low, trial(0.6, 0.5)], target, reference) == trial(0.6, 0.5)
    assert best("adapters", [low, near, far], target, reference) is far
    assert pairs(["a", "b", "c"]) == [["a", "b"], ["c"]]
