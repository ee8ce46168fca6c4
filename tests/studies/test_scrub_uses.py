# SPDX-License-Identifier: Apache-2.0
"""The three uses of SCRUB, on one small world: the direction of each finding, not its size."""

from __future__ import annotations

import json

import pytest

from expunge.studies.scrub_uses import Finding, World, _summary, build_world, carry_out, measure

#: One of the worlds on which plain SCRUB over-unlearns; on others it ends near the holdout by luck, which is why the
#: study itself takes the mean over several.
SEED = 3


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(seed=SEED)


def before(world: World, use: str) -> Finding:
    return measure(world.model, world.encoder, world.requests[use])


def after(world: World, use: str, method: str) -> Finding:
    return carry_out(world, use, method, {}, seed=SEED)


def test_the_model_learned_what_was_planted(world: World) -> None:
    for use in ("bias", "confusion"):
        found = before(world, use)
        assert found.preference is not None
        assert found.preference < 0
        assert found.forget_nll < 0.3 < found.holdout_nll
    assert before(world, "privacy").membership_auc > 0.99


@pytest.mark.parametrize("use", ["bias", "confusion"])
def test_planted_answers_lose_ground_to_the_right_ones(world: World, use: str) -> None:
    start, plain = before(world, use), after(world, use, "scrub")
    assert plain.preference is not None
    assert start.preference is not None
    assert plain.preference > start.preference + 0.1
    assert use == "confusion" or plain.preference > 0  # the right verdict is told of others, the right facts of nobody
    assert plain.forget_nll > start.forget_nll + 0.5
    assert plain.retain_nll < start.retain_nll + 0.2


def test_rewinding_keeps_a_persons_facts_from_standing_out(world: World) -> None:
    plain, rewound = after(world, "privacy", "scrub"), after(world, "privacy", "scrub_r")
    assert plain.membership_auc < 0.35  # worse than facts the model never saw
    assert rewound.membership_gap < plain.membership_gap - 0.1
    assert rewound.steps < plain.steps
    assert rewound.retain_nll < 0.5


def test_a_summary_is_the_mean_of_what_there_is() -> None:
    rows = [Finding(1.0, 2.0, 3.0, 0.4, 0.1, None, 5), Finding(3.0, 2.0, 3.0, 0.6, 0.1, None, 7)]
    found = _summary(rows)
    assert found["mean"]["forget_nll"] == 2.0
    assert found["mean"]["steps"] == 6
    assert "preference" not in found["mean"]
    assert len(json.loads(json.dumps(found))["seeds"]) == 2
