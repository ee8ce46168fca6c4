# SPDX-License-Identifier: Apache-2.0
"""The three-domains study: its files, how hard it relearns, and a page that is what the committed numbers give."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from expunge.data.fictitious import DOMAINS
from expunge.data.loaders import load_examples
from expunge.recipe import build_recipe
from expunge.studies.domains_inside import strongest
from expunge.studies.domains_page import figure, write_page
from expunge.studies.domains_study import METHODS, ROWS, SHARED
from expunge.studies.domains_world import World, asked

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results/domains-study.json"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("worlds") / "archive-4", 4)
    made.write()
    return made


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_request_is_a_tenth_and_its_reference_lacks_it(world: World, domain: str) -> None:
    sets = {name: load_examples(world.file(domain, name), name=name)
            for name in ("forget", "retain", "holdout", "train_full", "train_retain", "unrelated")}  # fmt: skip
    assert (len(sets["forget"]), len(sets["retain"])) == (16, 144)
    gone = {example.subject for example in sets["forget"]}
    assert {e.id for e in sets["train_full"]} - {e.id for e in sets["train_retain"]} == {
        e.id for e in sets["train_full"] if e.subject in gone
    }
    letter = {"text": "p", "math": "m", "code": "c"}[domain]
    assert {e.subject[0] for e in sets["forget"]} == {letter}
    assert letter not in {e.subject[0] for e in sets["unrelated"]}
    every = asked(4)
    assert all(e.id in every for name in ("forget", "retain", "holdout") for e in sets[name])


def test_every_row_is_a_recipe_whose_utility_counts_the_other_domains(world: World) -> None:
    for domain, method in ROWS:
        recipe = build_recipe(world.recipe(domain, method, SHARED))
        assert set(DOMAINS) - {domain} <= set(recipe.data.extra)
        assert recipe.data.evaluate["retain"] == world.file(domain, "retain")
    assert len(ROWS) == 3 * len(METHODS)


def entry(*values: float, target: float | None = None) -> dict[str, Any]:
    curves = {"forget": {"forget.probability": [{"budget": i, "value": v} for i, v in enumerate(values)]}}
    regime = {} if target is None else {"regime": {"forget": {"means": {"forget": {"before": target}}}}}
    return {"curves": curves, **regime}


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({1e-4: 0.25, 1e-3: 0.5, 3e-3: 0.9}, 1e-3),  # (0.5 - 0.2) is half of (0.8 - 0.2)
        ({1e-4: 0.25, 1e-3: 0.51, 3e-3: 0.9}, 1e-4),
        ({1e-4: 0.7, 1e-3: 0.8}, 1e-4),  # none is gentle enough: the smallest
    ],
)
def test_the_largest_rate_that_takes_the_reference_half_of_the_way(ends: dict[float, float], expected: float) -> None:
    tried = {rate: {"npo": entry(0.1, 0.3, target=0.8), "reference": entry(0.2, end)} for rate, end in ends.items()}
    found = strongest(tried)
    assert found["chosen"] == expected
    assert found["seen"][f"{expected:g}"] == {
        "target": 0.8, "reference_before": 0.2, "reference_after": ends[expected], "npo": 0.3,
    }  # fmt: skip


def test_the_page_is_what_the_committed_numbers_give(tmp_path: Path) -> None:
    write_page(json.loads(RESULTS.read_text("utf-8")), tmp_path / "three-domains.md")
    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert set(written) == {"three-domains.md", *(f"three-domains-{domain}.svg" for domain in DOMAINS)}
    for name, text in written.items():
        assert text == (ROOT / "docs" / name).read_text("utf-8")


def test_a_run_that_failed_is_named_and_left_out(tmp_path: Path) -> None:
    document = copy.deepcopy(json.loads(RESULTS.read_text("utf-8")))
    document["domains"]["math"]["rows"]["npo"]["seeds"]["1"] = {"error": "training: diverged"}
    write_page(document, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text("utf-8")
    assert "- Mathematics, `npo`, seed 1: training: diverged" in page
    assert "of 2 runs" in page
    assert "npo" in figure(document, "math")
