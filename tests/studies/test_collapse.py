# SPDX-License-Identifier: Apache-2.0
"""The collapse map, tiny: both ways from the right model, shares by hand, a diverging rate as a cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.fictitious import Archive
from expunge.data.writing import write_examples
from expunge.errors import RecipeError, TrainingDiverged
from expunge.models.loading import save_model
from expunge.report.collapse import render_collapse
from expunge.studies import collapse as module
from expunge.studies.collapse import collapse


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory, archive: Archive, trained_model: nn.Module, encoder: Encoder
) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("collapse")
    save_model(trained_model, encoder.tokenizer, root / "target")
    kept = [fact.example() for person in archive.people[:2] for fact in person.facts]
    return {
        "model": {"path": str(root / "target")},
        "data": {"retain": str(write_examples(kept, root / "retain.jsonl")), "template": "question"},
        "method": {"name": "ga"}, "training": {"epochs": 2, "batch_size": 16},
        "audit": {"bootstrap": 100, "generate": False,
                  "metrics": ("forget.probability", "retain.probability")},
    }  # fmt: skip


def asked(archive: Archive) -> list[list[Example]]:
    return [[fact.example() for fact in archive.people[i].facts] for i in (8, 9)]


@pytest.fixture(scope="module")
def mapped(settings: dict[str, Any], archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("maps") / "map"
    return collapse(settings, requests=asked(archive), rates=(5e-3, 1e-5), folder=folder, notes=["Invented."])


def test_every_cell_of_both_maps_is_there(mapped: Any) -> None:
    document = json.loads((mapped.folder / "collapse.json").read_text())
    assert document["complete"]
    assert document["rates"] == [1e-5, 5e-3]
    assert document["requests"] == [8, 16]
    assert (document["utility"], document["forgetting"]) == ("retain.probability", "forget.probability")
    cells = {(c["way"], c["rate"], c["requests"]): c for c in document["cells"]}
    assert len(cells) == 8
    for way in ("single", "continual"):
        assert cells[way, 1e-5, 2]["kept"] == pytest.approx(1.0, abs=0.02)  # next to nothing happens
        assert cells[way, 5e-3, 2]["kept"] < 0.5  # everything is gone
        assert (cells[way, 1e-5, 2]["collapsed"], cells[way, 5e-3, 2]["collapsed"]) == (0, 1)
    for rate in document["rates"]:  # one request at once and one after the other are the same thing
        one, other = cells["single", rate, 1], cells["continual", rate, 1]
        assert one["kept"] == pytest.approx(other["kept"], rel=1e-4)


def test_a_share_is_of_the_original_and_not_of_the_step_before(mapped: Any) -> None:
    study = json.loads((mapped.folder / "continual-0.005/study.json").read_text())
    first, second = study["points"]
    expected = second["after"]["retain.probability"]["value"] / first["before"]["retain.probability"]["value"]
    cell = next(c for c in mapped.document["cells"] if (c["way"], c["rate"], c["requests"]) == ("continual", 5e-3, 2))
    assert cell["kept"] == pytest.approx(expected)
    assert second["before"]["retain.probability"]["value"] < first["before"]["retain.probability"]["value"]


def test_the_page_names_what_collapsed_and_shares_its_records(mapped: Any) -> None:
    page = mapped.report.read_text()
    assert page.count("<svg") == 4
    assert "✗" in page
    assert "cells collapsed" in page
    assert not (mapped.folder / "single-1e-05/records").exists()
    assert any((mapped.folder / "records").iterdir())


def test_a_rate_that_diverges_is_a_cell(
    settings: dict[str, Any], archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: Any, **__: Any) -> None:
        raise TrainingDiverged("the loss is not finite")

    real = module.scalability
    monkeypatch.setattr(module, "sustainability", diverges)
    monkeypatch.setattr(module, "scalability", lambda *a, **k: real(*a, **k))
    found = collapse(settings, requests=asked(archive)[:1], rates=(1e-5,), folder=tmp_path / "map")
    cells = {cell["way"]: cell for cell in found.document["cells"]}
    assert cells["continual"]["kept"] is None
    assert "diverged" in cells["continual"]["reason"]
    assert cells["single"]["kept"] is not None
    assert "One request after the other: 1 of 1 cells collapsed." in render_collapse(found.document)


@pytest.mark.parametrize("rates", [(), (1e-5, 1e-5), (0.0,)])
def test_rates_that_make_no_map(settings: dict[str, Any], tmp_path: Path, rates: tuple[float, ...]) -> None:
    with pytest.raises(RecipeError, match="rates"):
        collapse(settings, requests=[], rates=rates, folder=tmp_path / "map")
    assert not (tmp_path / "map").exists()


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.2, 0.5, True), (0.95, 1.0, False), (0.85, 0.95, None), (None, None, False)]
)
def test_which_side_of_the_line(low: float | None, high: float | None, expected: bool | None) -> None:
    point = {"original": {"u": {"value": 1.0}}, "after": {"u": {"value": 0.92, "ci_low": low, "ci_high": high}}}
    assert module._collapsed(point, "u", 0.1) is expected
