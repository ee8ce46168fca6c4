# SPDX-License-Identifier: Apache-2.0
"""Pruning, ablation, interpolation and traces, by hand and at their end points."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from expunge.attacks.base import Subject
from expunge.attacks.registry import run_attacks
from expunge.attacks.traces import accuracy, profile
from expunge.attacks.weights import between, prune, spread_layers, without_direction
from expunge.errors import RecipeError
from expunge.models.digests import model_digest
from expunge.signals.hidden import block_outputs
from expunge.signals.likelihood import TokenScores


def test_pruning_takes_the_smallest_and_exactly_so_many():
    weight = torch.tensor([[0.5, -0.1, 3.0], [0.2, -2.0, 0.0]])
    prune(weight, 0.5)
    assert weight.tolist() == [[0.5, 0.0, 3.0], [0.0, -2.0, 0.0]]
    ties = torch.ones(3, 4)
    prune(ties, 0.26)
    assert int((ties == 0).sum()) == 3


def test_interpolation_is_exact_at_both_ends_and_linear_between():
    rng = torch.Generator().manual_seed(0)
    start, end = (torch.randn(50, generator=rng) for _ in range(2))
    assert torch.equal(between(start, end, 0.0).float(), start)
    assert torch.equal(between(start, end, 1.0).float(), end)
    assert between(torch.tensor([1.0]), torch.tensor([3.0]), 0.25).item() == 1.5


def test_the_ablated_direction_is_gone_after_every_block(lab):
    direction = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = block_outputs(lab.target, ids, torch.ones_like(ids), layers=[0, 1])
        with without_direction(lab.target, direction):
            found = block_outputs(lab.target, ids, torch.ones_like(ids), layers=[0, 1])
        with without_direction(lab.target, torch.zeros(64, dtype=torch.float64)):
            same = block_outputs(lab.target, ids, torch.ones_like(ids), layers=[0, 1])
    unit = (direction / direction.norm()).float()
    for layer in (0, 1):
        assert (found[layer] @ unit).abs().max() < 1e-5
        assert torch.equal(same[layer], plain[layer])
    assert torch.allclose(found[0], plain[0] - (plain[0] @ unit)[..., None] * unit, atol=1e-5)
    assert spread_layers(12, 4) == [2, 5, 8, 11]
    assert spread_layers(2, 4) == [0, 1]


def test_editing_attacks_end_where_they_should_and_leave_no_trace_between_settings(lab):
    settings = {"interpolation": {"fractions": [0.5, 1.0]}, "pruning": {"shares": [0.3, 0.01]}}
    moved, pruned = run_attacks(["interpolation", "pruning"], lab.context(), settings)
    target = float(lab.context().gauge()(lab.target)["probability"].values.mean())
    at = {f.setting: f for f in moved.findings if f.metric == "forget.probability"}
    assert at["t = 1"].value.value == pytest.approx(target, abs=1e-6)
    assert at["t = 1"].controls["reference"].value == pytest.approx(target, abs=1e-6)
    assert at["t = 0.5"].value.value > at["t = 0.5"].controls["before the attack"].value
    little = next(f for f in pruned.findings if f.setting.startswith("0.01") and f.metric == "forget.probability")
    assert little.value.value == pytest.approx(little.controls["before the attack"].value, abs=0.02)
    (ablated,) = run_attacks(["direction_ablation"], lab.context("target"))
    assert ablated.notes["lengths"]["target"] == {"0": 0.0, "1": 0.0}
    assert ablated.findings[0].differences["before the attack"].value == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(RecipeError, match="no such block"):
        run_attacks(["direction_ablation"], lab.context(), {"direction_ablation": {"layers": [7]}})


def test_the_models_given_are_never_changed(lab):
    before = [model_digest(m) for m in (lab.target, lab.reference, lab.unlearned)]
    run_attacks(["pruning", "quantisation"], lab.context(), {"pruning": {"shares": [0.2]}})
    assert before == [model_digest(m) for m in (lab.target, lab.reference, lab.unlearned)]


def test_a_classifier_of_equal_readings_is_at_chance_and_of_different_ones_is_right():
    rng = np.random.default_rng(0)
    rows, groups, none = rng.normal(size=(30, 4)), [f"s{i // 3}" for i in range(30)], np.zeros(30, dtype=np.int64)
    assert accuracy(rows, rows, groups, 5, none).tolist() == [0.5] * 30
    shifted = rows + np.array([9.0, 0, 0, 0])
    assert accuracy(rows, shifted, groups, 5, none).mean() > 0.95
    flips = np.tile([0, 1], 15)  # labels swapped on every other text
    assert accuracy(rows, shifted, groups, 5, flips).mean() == pytest.approx(0.5, abs=0.25)


def test_the_profile_of_outputs_by_hand():
    logp = np.array([-1.0, -2.0, -3.0], dtype=np.float32)
    scores = TokenScores(logp, np.array([True, False, True]), logp * 2, np.ones(3, dtype=np.float32))
    assert profile(scores).tolist() == pytest.approx([-3, -2.5, -2, -1.5, -1, -2, 2 / 3, -4, 1])


def test_traces_stand_beside_two_models_that_never_learned(lab):
    again = lab.reference
    context = lab.context("unlearned", second_reference=Subject("again", lambda: copy.deepcopy(again)))
    (result,) = run_attacks(["traces"], context, {"traces": {"limit": 24, "folds": 3}})
    by = {f.setting: f for f in result.findings}
    assert list(by["outputs"].controls) == [
        "two models that never learned", "the same on retain texts", "random labels",
    ]  # fmt: skip
    # The second reference is the first: nothing tells them apart, and so the whole accuracy is a trace.
    assert by["states"].controls["two models that never learned"].value == 0.5
    assert by["states"].value.value > 0.9
    assert result.notes["split_by"] == "subject"
    (first, second) = (run_attacks(["traces"], context, {"traces": {"limit": 12}})[0].to_dict() for _ in range(2))
    assert first == second
