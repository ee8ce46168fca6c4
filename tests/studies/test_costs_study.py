# SPDX-License-Identifier: Apache-2.0
"""The study of what guarantees cost, on a world of four customers: every way from its training to its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.api.memory import audit
from expunge.models.loading import load_model
from expunge.studies.costs_study import AUDIT, study
from expunge.studies.costs_world import TEMPLATE, Size, build_world

SIZE = Size(public=6, customers=4, unseen=8, canaries=40, epochs=2)
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "private": {"learning_rate": (4e-3,), "epochs": (2,)},
    "adapters": {"learning_rate": (1e-2,), "batch_size": (16,)},
    "npo": {"learning_rate": (1e-3,), "epochs": (1,)},
    "rmu": {"learning_rate": (1e-3,), "epochs": (1,)},
}


def test_a_world_is_the_same_again_and_keeps_its_parts_apart(tmp_path: Path) -> None:
    world = build_world(tmp_path / "a", seed=3, size=SIZE)
    again = build_world(tmp_path / "b", seed=3, size=SIZE)
    assert world.manifest.seal == again.manifest.seal
    assert (world.leaver, world.customers) == (again.leaver, again.customers)
    assert world.leaver in world.customers
    request, retained = world.request, world.retained
    inserted = [entry for entry in world.manifest.canaries if entry.inserted]
    assert len(request) == 16 + len(inserted)
    assert {example.subject for example in request} == {world.leaver}
    assert {example.subject for example in retained} == set(world.customers) - {world.leaver}
    assert {len(examples) for examples in (world.sets["forget"], retained)} == {16, 3 * 16}
    assert {e.subject for e in world.sets["known"]}.isdisjoint(world.customers)
    held_out = {entry.row["answer"] for entry in world.manifest.canaries if not entry.inserted}
    assert held_out.isdisjoint(example.answer for example in (*request, *retained))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_way_from_training_to_numbers(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    pytest.importorskip("dp_accounting")
    found = study(tmp_path, seeds=(0,), size=SIZE, grids=GRIDS)
    runs = found["runs"]["0"]
    assert len({digest for one in runs.values() for digest in one["retraining"]["digests"]}) == 1
    assert {name for name, one in runs.items() if one["before"] == one["after"]} == {
        "target", "dp 2", "dp 8", "dp 32", "dp 8, person"
    }  # fmt: skip
    # Adapters leave the public model as it is: what it knew has the very same numbers.
    world = build_world(tmp_path / "seed-0", seed=0, size=SIZE)
    model, tokenizer = load_model(world.base)
    base = audit(model, tokenizer, sets=world.sets, config=AUDIT, template=TEMPLATE).metrics
    for when in ("before", "after"):
        assert runs["adapters"][when]["metrics"]["known.probability"]["value"] == pytest.approx(
            base["known.probability"].value, abs=1e-6
        )
    # Nobody's adapter answers for the one who left.
    assert runs["adapters"]["after"]["metrics"]["forget.probability"]["value"] == pytest.approx(
        base["forget.probability"].value, abs=1e-6
    )
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "seed-0/results").iterdir()}
    again = study(tmp_path, seeds=(0,), size=SIZE, grids=GRIDS)
    assert again["runs"] == found["runs"]
    assert files == {path: path.stat().st_mtime_ns for path in files}
