# SPDX-License-Identifier: Apache-2.0
"""Digests see every bit and nothing else; patterns choose the parameters they name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from expunge.errors import InputDataError, RecipeError
from expunge.models.digests import folder_digest, model_digest
from expunge.models.selection import freeze_except, select_layers, select_parameters
from expunge.models.tiny import build_llama


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return build_llama(260, hidden_size=8, layers=12, heads=2, context=16)


def test_digest_by_hand() -> None:
    linear = nn.Linear(1, 2, bias=False)
    nn.init.constant_(linear.weight, 1.0)
    text = b"weight\0torch.float32\0(2, 1)\n" + b"\x00\x00\x80\x3f" * 2
    assert model_digest(linear) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_digest_sees_a_single_bit(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(dtype)  # a 0-dimensional buffer is in the state too
    before = model_digest(net)
    assert model_digest(net) == before
    with torch.no_grad():
        net[0].weight.view(torch.uint8)[2, 1] ^= 1
    assert model_digest(net) != before


def test_digest_sees_dtype_name_and_shape() -> None:
    zeros = [nn.ParameterDict({n: torch.zeros(s, dtype=d)}) for n, s, d in CASES]
    assert len({model_digest(module) for module in zeros}) == len(CASES)


CASES = [
    ("a", (2, 3), torch.float32),
    ("a", (3, 2), torch.float32),
    ("b", (2, 3), torch.float32),
    ("a", (2, 3), torch.float64),
    ("a", (0,), torch.float32),
]


def test_digest_does_not_depend_on_memory_layout() -> None:
    a, b = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
    b.weight = nn.Parameter(a.weight.detach().t().contiguous().t())
    assert not b.weight.is_contiguous()
    assert model_digest(a) == model_digest(b)


def test_folder_digest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"")
    (tmp_path / "a").write_bytes(b"abc")
    assert list(folder_digest(tmp_path).items()) == [
        ("a", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("sub/b", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ]
    with pytest.raises(InputDataError, match="no such folder"):
        folder_digest(tmp_path / "none")


def test_layer_one_is_not_layer_ten(model: LlamaForCausalLM) -> None:
    names = select_parameters(model, select_layers([1]))
    assert len(names) == 9
    assert all(name.startswith("model.layers.1.") for name in names)
    gpt2 = nn.ModuleDict({"h": nn.ModuleList(nn.Linear(1, 1) for _ in range(12))})
    assert select_parameters(gpt2, select_layers([1, 11])) == ["h.1.weight", "h.1.bias", "h.11.weight", "h.11.bias"]
    with pytest.raises(RecipeError, match="count from 0"):
        select_layers([-1])
    with pytest.raises(RecipeError, match="matches no parameter"):
        select_parameters(model, select_layers([12]))


def test_patterns_search_in_model_order_without_repeats(model: LlamaForCausalLM) -> None:
    names = select_parameters(model, [r"lm_head", r"layers\.3\.mlp\.down_proj", r"^lm_head\.weight$"])
    assert names == ["model.layers.3.mlp.down_proj.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([r"layers\.0\.mlp\.down_prj"], r"model.layers.0.mlp.down_proj.weight"),
        (["lm_head", "("], "not a regular expression"),
        ([], "no pattern"),
    ],
)
def test_patterns_that_choose_nothing(model: LlamaForCausalLM, patterns: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        select_parameters(model, patterns)
    assert message in str(caught.value)


def test_freeze_except(model: LlamaForCausalLM) -> None:
    assert freeze_except(model, ["lm_head.weight", "model.norm.weight"]) == 260 * 8 + 8
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["model.norm.weight", "lm_head.weight"]
    with pytest.raises(RecipeError, match="not a parameter"):
        freeze_except(model, ["lm_head"])
