# SPDX-License-Identifier: Apache-2.0
"""The noise study: its conditions, its recipes, and a page that says only what the numbers support."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from expunge.claims import lint
from expunge.studies.demo import DemoPaths
from expunge.studies.noise_page import apart, effects, findings, write_page
from expunge.studies.noise_study import ALONE, KINDS, METHODS, METRICS, Cell, Guards, cells, guards_named, recipe_of

SEEDS = ("3", "4", "5")


def entries(quality: float, strength: float, utility: float, trained_on: int = 32) -> dict[str, Any]:
    """Three archives around the values given, 0.01 apart."""
    values = dict(zip(METRICS, (quality, strength, utility), strict=True))
    return {
        seed: {"trained_on": trained_on,
               "metrics": {name: {"value": value + 0.01 * shift} for name, value in values.items()}}
        for shift, seed in zip((-1, 0, 1), SEEDS, strict=True)
    }  # fmt: skip


def document() -> dict[str, Any]:
    """Everything as on the clean set, but mislabelled items cost utility, which the guards give back."""
    rows = []
    for cell in cells():
        hurt = cell.kind == "mislabel" and cell.guards == "off"
        seeds = entries(0.5, 0.1, 0.3 if hurt else 0.6, 48 if hurt else 32)
        rows.append({"method": cell.method, "kind": cell.kind, "rate": cell.rate, "guards": cell.guards,
                     "seeds": seeds})  # fmt: skip
    return {
        "people": 40, "tuning_seed": 10, "rule": {"keep_share": 0.85}, "rows": rows,
        "learning_rates": {name: {"learning_rate": 3e-3} for name in METHODS},
        "guards": {"overlap": 0.7, "margin": 3.0, "trim": 0.25, "runs_tried": 1},
        "guard_trials": [{"margin": 3.0, "trim": 0.25, "score": 0.1, "kept_share": 0.9, "errors": ["x"]}],
        "anchors": {"target": entries(0.0, 0.9, 0.62), "reference": entries(0.98, 0.12, 0.62)},
    }  # fmt: skip


def test_conditions_are_complete_and_different() -> None:
    every = cells()
    assert len(set(every)) == len({cell.folder for cell in every}) == len(every)
    first = {(cell.kind, cell.rate, cell.guards) for cell in every if cell.method == METHODS[0]}
    assert {(kind, rate, guards) for kind in KINDS for rate in (0.2, 0.5) for guards in ("off", "on")} <= first
    assert all((kind, 0.5, "on") in {(c.kind, c.rate, c.guards) for c in every if c.method == METHODS[1]}
               for kind in KINDS)  # fmt: skip
    assert {cell.guards for cell in every} == {"off", "on", *ALONE}


def test_a_recipe_holds_its_noise_and_its_guards(tmp_path: Path) -> None:
    named = guards_named(Guards(0.7, 3.0, 0.25))
    paths = DemoPaths(tmp_path)
    on = recipe_of(Cell("npo", "swap", 0.5, "on"), named["on"], paths, seed=4, rate=1e-3)
    assert on.data.noise.model_dump() == {"kind": "swap", "rate": 0.5, "seed": 4}
    assert on.data.robust.model_dump() == {"overlap": 0.7, "memorised": "holdout", "margin": 3.0}
    assert on.method.trim == 0.25  # type: ignore[attr-defined]
    assert on.training.learning_rate == 1e-3
    off = recipe_of(Cell("npo", "swap", 0.5, "off"), named["off"], paths, seed=4, rate=1e-3)
    assert (off.data.robust.overlap, off.data.robust.memorised, off.method.trim) == (None, "none", 0)  # type: ignore[attr-defined]
    assert off.data.evaluate == on.data.evaluate
    assert named["memorised"] == Guards(margin=3.0)
    assert guards_named(Guards(0.7, None, 0.25))["memorised"] == Guards(margin=0.0)


def test_ranges_are_apart_only_where_no_archive_lies_among_the_others() -> None:
    low, high = entries(0.5, 0.1, 0.3), entries(0.5, 0.1, 0.33)
    assert [apart(low, high, name) for name in METRICS] == [0, 0, 1]
    assert apart(high, low, "model_utility") == -1
    assert apart(low, entries(0.5, 0.1, 0.32), "model_utility") == 0  # they touch at 0.31
    failed = high | {"4": {"error": "nothing left"}}
    assert apart(low, failed, "model_utility") == 0


def test_only_what_holds_for_every_method_is_stated() -> None:
    found = document()
    assert effects(found, "mislabel", 0.5, of="noise") == dict(zip(METRICS, (0, 0, -1), strict=True))
    assert effects(found, "mislabel", 0.5, of="guards") == dict(zip(METRICS, (0, 0, 1), strict=True))
    said = "\n".join(findings(found))
    assert "retain items among them (mislabel) 0.5: against the clean set utility is lower; " in said
    assert "with the guards utility is higher." in said
    assert said.count("no clear difference from the clean set; the guards make no clear difference") == 5
    one = copy.deepcopy(found)
    for row in one["rows"]:
        if row["method"] == METHODS[1] and row["kind"] == "mislabel":
            row["seeds"] = entries(0.5, 0.1, 0.6)
    assert "utility is lower" not in "\n".join(findings(one)).partition("At the lower rate")[0]


def test_what_the_lower_rate_and_the_single_guards_show() -> None:
    said = "\n".join(findings(document()))
    assert "which only npo saw, against the clean set without guards, retain items among them (mislabel) 0.2: " in said
    assert "Overlap detection alone gives back the clean run number for number" in said
    assert "Wang et al." not in said
    other = document()
    for row in other["rows"]:
        if row["guards"] == "overlap":
            row["seeds"] = entries(0.5, 0.1, 0.59)
        if row["kind"] == "mask":
            row["seeds"] = entries(0.1, 0.1, 0.6)
        if row["kind"] == "swap" and row["guards"] == "on":
            row["seeds"] = {seed: {"error": "no item is left"} for seed in SEEDS}
    said = "\n".join(findings(other))
    assert "Overlap detection alone" not in said
    assert "20% is not" in said
    assert "(swap) 0.5: no clear difference from the clean set; the guards leave nothing to train on." in said


def test_the_page_and_its_drawing(tmp_path: Path) -> None:
    found = document()
    swap = next(row for row in found["rows"] if (row["kind"], row["guards"], row["rate"]) == ("swap", "on", 0.5))
    swap["seeds"]["4"] = {"error": "no item is left"}
    write_page(found, tmp_path / "noisy.md")
    page = (tmp_path / "noisy.md").read_text()
    assert not lint(page)
    assert "| retain items among them (mislabel) 0.5 | off | 48 | 0.500 [0.490–0.510]" in page
    assert "answers exchanged (swap) 0.5, guards on, seeds 4: no item is left" in page
    assert "| answers exchanged (swap) 0.5 | on | 32 [0–32] | – | – | – |" in page
    tree = ElementTree.fromstring((tmp_path / "noisy.svg").read_text())
    marks = [tip.text or "" for tip in tree.iter("{http://www.w3.org/2000/svg}title")]
    # Two panels; the first method sees thirteen noises, the other seven, each with two marks; one has no number.
    assert len(marks) == 2 * 2 * (13 + 7) - 2
    assert "clean, with guards: utility 0.600, 0.590 to 0.610" in marks
