# SPDX-License-Identifier: Apache-2.0
"""The page of collapse maps is what the committed numbers give, and holds no paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.errors import InputDataError
from expunge.studies.collapse_page import gather, write_page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results/collapse.json"


def test_the_page_is_what_the_committed_numbers_give(tmp_path: Path) -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    write_page(results, tmp_path / "collapse-map.md")
    written = list(tmp_path.iterdir())
    assert len(written) == 1 + 2 * len(results["maps"])
    for path in written:
        assert path.read_text("utf-8") == (ROOT / "docs" / path.name).read_text("utf-8")


def test_maps_are_gathered_without_the_paths_of_their_runs(tmp_path: Path) -> None:
    one = next(iter(json.loads(RESULTS.read_text("utf-8"))["maps"].values()))
    settings = {**one["settings"], "data": {"retain": "/somewhere/retain.jsonl"}, "model": {"path": "/somewhere"}}
    source = tmp_path / "collapse.json"
    source.write_text(json.dumps({**one, "settings": settings}))
    assert gather([source])["maps"] == {one["method"]["name"]: one}
    source.write_text(json.dumps({**one, "complete": False}))
    with pytest.raises(InputDataError, match="not complete"):
        gather([source])
