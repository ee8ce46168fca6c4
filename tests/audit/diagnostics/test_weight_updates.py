# SPDX-License-Identifier: Apache-2.0
"""How weights moved: norms and ranks of updates whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from expunge.audit.diagnostics import updates
from expunge.audit.diagnostics.updates import effective_rank, stable_rank, weight_updates
from expunge.errors import InputDataError


def test_ranks_of_known_spectra() -> None:
    assert stable_rank(torch.tensor([3.0, 0.0, 0.0])) == 1.0
    assert stable_rank(torch.ones(5)) == pytest.approx(5.0)
    assert stable_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(1.5)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert effective_rank(torch.ones(5)) == pytest.approx(5.0)
    # exp of the entropy of (1/2, 1/4, 1/4): 2^1.5.
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)


def test_updates_by_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    before = {"emb": torch.ones(4), "a.w": torch.randn(6, 5, generator=generator), "a.b": torch.zeros(5),
              "b.w": torch.randn(5, 5, generator=generator)}  # fmt: skip
    u, v = torch.randn(6, generator=generator), torch.randn(5, generator=generator)
    after = {**before, "a.w": before["a.w"] + torch.outer(u, v), "a.b": before["a.b"] + 2.0}
    blocks = {"emb": -1, "a.w": 0, "a.b": 0, "b.w": 1}
    first, moved, still = weight_updates(before, after, blocks)
    assert [entry.layer for entry in (first, moved, still)] == [-1, 0, 1]
    outer = float(torch.outer(u, v).norm())
    assert moved.norm == pytest.approx(math.sqrt(outer**2 + 5 * 4), rel=1e-6)
    assert moved.relative == pytest.approx(moved.norm / float(before["a.w"].norm()), rel=1e-6)
    assert moved.moved == 1.0
    assert moved.largest == pytest.approx(max(2.0, float(torch.outer(u, v).abs().max())))
    (matrix,) = moved.matrices
    assert matrix.stable_rank == pytest.approx(1.0, abs=1e-4)
    assert matrix.effective_rank == pytest.approx(1.0, abs=1e-3)
    assert matrix.full_rank == 5
    assert (first.norm, still.norm, still.moved) == (0.0, 0.0, 0.0)
    assert (still.matrices[0].stable_rank, still.matrices[0].reason) == (None, updates.UNMOVED)


def test_a_large_matrix_says_why_it_has_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "LARGEST_SIDE", 2)
    (layer,) = weight_updates({"w": torch.zeros(3, 3)}, {"w": torch.eye(3)}, {"w": 0})
    assert layer.matrices[0].stable_rank is None
    assert layer.matrices[0].norm == pytest.approx(math.sqrt(3))
    assert "above" in layer.matrices[0].reason


def test_models_that_do_not_pair_up() -> None:
    with pytest.raises(InputDataError, match="only one"):
        weight_updates({"w": torch.ones(1)}, {"v": torch.ones(1)}, {"w": 0, "v": 0})
    with pytest.raises(InputDataError, match="shapes"):
        weight_updates({"w": torch.ones(1)}, {"w": torch.ones(2)}, {"w": 0})
