# SPDX-License-Identifier: Apache-2.0
"""Drawings by layer, histograms, planes and heat maps: right places, and no drawing where there is no number."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from expunge.report.heat import HeatCell, heat_map
from expunge.report.layers import by_layer, histograms, key, plane


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_a_line_runs_over_its_layers_and_leaves_out_what_has_no_number() -> None:
    svg = by_layer({"after": [(0.0, 0.5), (2.0, 1.0)], "relearned": []}, layers=3, level=1.0, include=[0.0])
    root = parsed(svg)
    assert "relearned" not in svg
    tips = [tip.text for tip in root.iter("title")]
    assert tips == ["after, block 0: 0.500", "after, block 2: 1.000"]
    curve = next(p for p in root.iter("path") if "curve" in p.get("class", ""))
    (x0, y0), (x1, y1) = [tuple(map(float, xy.split())) for xy in re.findall(r"[\d.]+ [\d.]+", curve.get("d", ""))]
    level = next(line for line in root.iter("line") if line.get("class") == "refline")
    assert y1 == float(level.get("y1", "nan")) < y0
    assert x1 == float(level.get("x2", "nan")) > x0
    assert by_layer({"after": []}, layers=3) == ""


@pytest.mark.parametrize("layers", [1, 8, 80])
def test_any_depth_can_be_drawn(layers: int) -> None:
    svg = by_layer({"after": [(float(i), 0.3) for i in range(layers)]}, layers=layers)
    labels = [text.text for text in parsed(svg).iter("text") if text.get("class") == "tick"]
    assert len(labels) < 16
    assert "0" in labels


def test_a_histogram_has_the_area_of_its_shares() -> None:
    bins = [(-5.0, 0.25), (-4.5, 0.5), (-4.0, 0.25)]
    root = parsed(histograms({"before": bins, "after": []}))
    (curve,) = [p for p in root.iter("path")]
    points = [tuple(map(float, xy.split())) for xy in re.findall(r"[\d.]+ [\d.]+", curve.get("d", ""))]
    base = points[0][1]
    heights = [base - y for _, y in points[1:-1:2]]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[0] == heights[2]
    assert points[-1][1] == base
    assert histograms({"after": []}) == ""


def test_arrows_lead_from_the_first_mean() -> None:
    points = {"before": [[0.0, 0.0], [1.0, 1.0]], "after": [[5.0, 5.0], [6.0, 6.0]]}
    svg = plane(points, {"before": [0.5, 0.5], "after": [5.5, 5.5]})
    root = parsed(svg)
    assert [group.find("title").text for group in root.iter("g")] == ["before", "after", "mean, before", "mean, after"]
    assert len([p for p in root.iter("path") if "curve m1" in p.get("class", "")]) == 2  # shaft and head
    still = plane(points, {"before": [0.5, 0.5], "after": [0.5, 0.5]})
    assert "curve m1" not in still  # too short for an arrow
    assert plane({}, {}) == ""
    assert "relearned" in key(["before", "relearned"])


def test_every_number_of_a_heat_map_is_written() -> None:
    cells = {
        (0, 0): HeatCell("0.98", 0.02, "fine"),
        (0, 1): HeatCell("0.10 ✗", 0.9, "gone"),
        (1, 0): HeatCell("–", None, ""),
    }
    svg = heat_map("kept", ["1e-5", "1e-3"], ["1", "2"], cells, axes=("learning rate", "requests"), style="lost")
    root = parsed(svg)
    assert [t.text for t in root.iter("text") if t.get("class") == "value"] == ["0.98", "0.10 ✗", "–"]
    shades = [rect.get("class") for rect in root.iter("rect")]
    assert shades.count("cell") == 3
    assert {"lost q0", "lost q4"} <= set(shades)
    assert "1e-5, 2: 0.10 ✗" in root.get("aria-label", "")
