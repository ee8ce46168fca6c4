# SPDX-License-Identifier: Apache-2.0
"""Rounding by hand, against naive oracles, and the weights put back afterwards."""

from __future__ import annotations

import pytest
import torch

from expunge.attacks.compare import block_weights, restored
from expunge.attacks.quantisation import QuantisationConfig, changed_codes
from expunge.attacks.registry import prepare, run_attacks
from expunge.attacks.rounding import nf4_levels, round_weight
from expunge.errors import MissingDependency, RecipeError
from expunge.models.digests import model_digest
from expunge.models.tiny import build_llama

#: As printed in the paper's appendix.
NF4 = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]  # fmt: skip


def test_int4_by_hand_group_by_group():
    weight = torch.tensor([[7.0, 3.4, -0.6, 0.2, 0.7, -0.35, 0.04, 0.0]])
    found = round_weight(weight, "int4", group=4)
    assert found.codes.tolist() == [[7, 3, -1, 0, 7, -4, 0, 0]]  # -0.35 / 0.1 = -3.5 rounds to even
    assert found.weight[0].tolist() == pytest.approx([7, 3, -1, 0, 0.7, -0.4, 0, 0])
    assert round_weight(torch.zeros(2, 5), "int8", group=4).weight.tolist() == torch.zeros(2, 5).tolist()


def test_nf4_levels_are_the_published_ones_and_the_nearest_is_taken():
    assert nf4_levels().tolist() == pytest.approx(NF4, abs=1e-6)
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    found = round_weight(weight, "nf4", group=4)
    levels = nf4_levels()
    for row in range(3):
        for start in (0, 4, 8):
            part = weight[row, start : start + 4]
            naive = [int((levels - x / part.abs().max()).abs().argmin()) for x in part]
            assert found.codes[row, start : start + 4].tolist() == naive


@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4"])
def test_rounding_is_within_half_a_step_and_rounding_twice_changes_nothing(scheme):
    weight = torch.randn(8, 70, generator=torch.Generator().manual_seed(1))
    once = round_weight(weight, scheme)
    twice = round_weight(once.weight, scheme)
    assert torch.equal(once.codes, twice.codes)
    assert torch.allclose(once.weight, twice.weight, atol=1e-6)
    step = {"int8": 1 / 254, "int4": 1 / 14, "nf4": 0.16}[scheme]
    assert (once.weight - weight).abs().max() <= step * weight.abs().max() + 1e-6


def test_a_change_below_half_a_step_leaves_the_codes_as_they_were(tiny):
    original, moved = tiny(0), tiny(0)
    config = QuantisationConfig(schemes=("int4",))
    with torch.no_grad():
        for weight in block_weights(moved).values():
            # On the grid a small change cannot cross a boundary, nor move a group's largest weight by much.
            weight.copy_(round_weight(weight, "int4").weight)
        for weight in block_weights(original).values():
            weight.copy_(round_weight(weight, "int4").weight)
        for weight in block_weights(moved).values():
            weight.mul_(1.001)
    found = changed_codes(original, moved, config)["int4"]
    assert found["changed_codes"] == 0.0
    assert found["changed_weights"] > 0.8
    with torch.no_grad():
        next(iter(block_weights(moved).values()))[0, :2] *= -1
    assert 0 < changed_codes(original, moved, config)["int4"]["changed_codes"] < 0.001
    other = build_llama(300, hidden_size=32, layers=1, heads=2)
    with pytest.raises(RecipeError, match="architecture"):
        changed_codes(original, other, config)


def test_weights_are_put_back_bit_for_bit_and_only_matrices_of_blocks_move(tiny):
    model = tiny(0)
    before = model_digest(model)
    with restored(model) as weights:
        assert all(".layers." in name and weight.ndim == 2 for name, weight in weights.items())
        assert len(weights) == 14
        with torch.no_grad():
            for weight in weights.values():
                weight.zero_()
        assert model_digest(model) != before
    assert model_digest(model) == before


def test_quantisation_reports_robustness_codes_and_both_controls(lab):
    (result,) = run_attacks(["quantisation"], lab.context(), {"quantisation": {"schemes": ["int4"]}})
    finding = next(f for f in result.findings if f.metric == "forget.probability")
    assert list(finding.controls) == ["reference", "before the attack"]
    low, high = finding.controls["before the attack"].value, finding.value.value
    assert finding.more["quantisation_robustness"].value == pytest.approx(min(1.0, low / high))
    codes = result.notes["codes"]
    assert codes["unlearned"]["int4"]["changed_codes"] < codes["reference"]["int4"]["changed_codes"]
    alone = run_attacks(["quantisation"], lab.context(reference=None, original=None), {"quantisation": {}})[0]
    assert list(alone.findings[0].controls) == ["before the attack"]
    assert "original" in alone.notes["codes"]["reason"]


def test_without_bitsandbytes_its_formats_are_refused_by_name_before_any_work(lab, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingDependency, match=r"bitsandbytes.*expunge\[quant\]") as refused:
        prepare(["quantisation"], lab.context(), {"quantisation": {"schemes": ["int8", "bnb_nf4"]}})
    assert refused.value.exit_code == 5


def test_bitsandbytes_rounds_as_the_simulation_does():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes comes with the extra quant")
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0)) * 0.02
    ours = round_weight(weight, "nf4")
    assert torch.allclose(round_weight(weight, "bnb_nf4").weight, ours.weight, atol=1e-6)
    step = weight.abs().amax(1, keepdim=True) / 127  # one scale per row
    assert ((round_weight(weight, "bnb_int8").weight - weight).abs() <= 0.51 * step + 2e-5).all()
    assert round_weight(weight[:, :100], "bnb_fp4").weight.shape == (32, 100)
