# SPDX-License-Identifier: Apache-2.0
"""The study of what keeping tenants apart costs: its world and its measurements, on one seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.studies.reserved import TENANTS, build_world, measure, study


@pytest.mark.slow
def test_every_way_is_measured_on_the_same_examples(tmp_path: Path) -> None:
    world = build_world(tmp_path, people=10, seed=0)
    assert len({e.subject for e in world.tenants}) == TENANTS
    assert not {e.subject for e in world.tenants} & {e.subject for e in world.known}
    found = measure(world, 0)
    assert len(found) == 9
    untouched = found["no training"]
    for way, values in found.items():
        assert way == "no training" or values["tenants_nll"] < untouched["tenants_nll"]
        assert (values["bytes"] > 0) == (way != "no training")
    assert found["reserved adapters, routed by tenant"]["known_nll"] == untouched["known_nll"]
    joint, reserved = found["joint adapter"]["bytes"], found["reserved adapters, average"]["bytes"]
    assert reserved == pytest.approx(TENANTS * joint, rel=0.01)


def test_a_study_needs_a_seed() -> None:
    with pytest.raises(StopIteration):
        study(())
