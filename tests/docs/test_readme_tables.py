# SPDX-License-Identifier: Apache-2.0
"""Numbers in the README are those of the committed pages."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Way in the README, way on the page of costs.
WAYS = {
    "retraining": "retraining from the public model", "an adapter for each customer": "an adapter for each customer",
    "SISA, 4 shards": "SISA 4 × 1", "private training, ε = 8 a person": "private training (ε = 8 a person)",
    "`npo`": "`npo` on the target",
}  # fmt: skip


def rows(path: Path, head: str) -> dict[str, list[str]]:
    lines = path.read_text("utf-8").splitlines()
    start = lines.index(head) + 2
    end = next(place for place in range(start, len(lines)) if not lines[place].startswith("|"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]
    return {row[0]: row[1:] for row in cells}


def test_costs_of_guarantees() -> None:
    short = rows(ROOT / "README.md",
                 "| way | claim | the others' answers | time to serve, retraining 1 | models kept |")  # fmt: skip
    full = rows(ROOT / "docs" / "what-guarantees-cost.md",
                "| way | claim | others | the person | gap to retraining | ε ≥ before | ε ≥ after | serving | weights kept |")  # fmt: skip  # noqa: E501
    assert short.keys() == WAYS.keys()
    for way, (claim, others, serving, kept) in short.items():
        there = full[WAYS[way]]
        medians = [float(there[place].split()[0]) for place in (1, 6, 7)]
        assert (claim, [float(others), float(serving), float(kept)]) == (there[0], pytest.approx(medians))
    assert "ε ≥ 1.7." in (ROOT / "README.md").read_text("utf-8")
    assert full["`npo` on the target"][5].startswith("1.7")
