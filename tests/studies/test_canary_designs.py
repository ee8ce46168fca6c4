# SPDX-License-Identifier: Apache-2.0
"""The committed study of canary designs, and its driver at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.studies.canary_designs import canary_designs

RESULTS = Path(__file__).resolve().parents[2] / "results" / "canary-designs.json"


@pytest.mark.slow
def test_a_small_study() -> None:
    found = canary_designs(seeds=(0,), designs=("new-token",), canaries=20, training={"epochs": 1, "batch_size": 16})
    rows = found["designs"]["new-token"]
    assert set(rows) == {"target", "npo", "reference"}
    assert rows["target"]["by_seed"]["0"]["role"] == "target"
    assert sum(found["canaries"] >= rows[name]["tpr_at_1_fpr"]["n"] for name in rows) == 3


def test_the_findings_that_the_page_states() -> None:
    designs = json.loads(RESULTS.read_text("utf-8"))["designs"]
    found = {name: {model: row["tpr_at_1_fpr"] for model, row in rows.items()} for name, rows in designs.items()}
    for design in ("new-token", "bigram"):
        assert found[design]["target"]["ci_low"] > found["random"]["target"]["ci_high"]
    for design, rows in designs.items():
        for seed, reference in rows["reference"]["by_seed"].items():
            assert reference["epsilon"]["one_run"]["value"] == 0, (design, seed)
        assert found[design]["reference"]["value"] <= found[design]["npo"]["value"] < found[design]["target"]["value"]
