# SPDX-License-Identifier: Apache-2.0
"""The demo, small: it ends with one document and one page that hold every model."""

from __future__ import annotations

import json
from pathlib import Path

from expunge.studies.demo import run_demo


def test_small_demo(tmp_path: Path) -> None:
    document = run_demo(tmp_path / "demo", people=10, methods=["npo"])
    assert list(document.models) == ["target", "reference", "npo"]
    written = json.loads((tmp_path / "demo/audit.json").read_text())
    assert set(written["models"]) == {"target", "reference", "npo"}
    values = {name: entry["metrics"]["forget.probability"]["value"] for name, entry in written["models"].items()}
    assert values["target"] > 0.5 > values["reference"]
    assert values["npo"] < values["target"]
    assert "npo" in (tmp_path / "demo/report.html").read_text()
