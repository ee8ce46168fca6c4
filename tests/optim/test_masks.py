# SPDX-License-Identifier: Apache-2.0
"""Masks: exact counts without a sort, and masked-out weights that no optimiser moves by a single bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from expunge.errors import RecipeError
from expunge.optim import masks as masks_module
from expunge.optim.masks import (
    WeightMasks,
    global_masks,
    kept_count,
    kept_share,
    load_masks,
    row_masks,
    save_masks,
)
from expunge.optim.proximal import ProximalL1
from expunge.optim.scores import random_scores
from expunge.optim.signum import Signum
from expunge.optim.sophia import Sophia
from expunge.optim.soul import Soul

RATIOS = [0.0, 0.01, 0.29, 0.4, 0.5, 0.95, 0.999, 1.0]


def by_sorting(scores: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """The naive way: sort everything, stably, and keep the first."""
    flat = torch.cat([value.reshape(-1) for value in scores.values()])
    order = torch.sort(flat, descending=True, stable=True).indices
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[: kept_count(ratio, len(flat))]] = True
    pieces = chosen.split([value.numel() for value in scores.values()])
    return {name: piece.reshape(scores[name].shape) for name, piece in zip(scores, pieces, strict=True)}


def cases() -> dict[str, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    inf = torch.inf
    return {
        "normal": {"a": torch.randn(7, 11, generator=g), "b": torch.randn(23, generator=g) * 1e-3},
        "positive": {"a": torch.rand(64, 5, generator=g).pow(9), "b": torch.rand(3, 3, 3, generator=g)},
        "ties": {"a": torch.randint(-2, 3, (9, 9), generator=g).float(), "b": torch.zeros(40), "c": torch.ones(1)},
        "all equal": {"a": torch.full((10,), 0.25), "b": torch.full((5, 2), 0.25)},
        "signed zeros": {"a": torch.tensor([0.0, -0.0, 1.0, -1.0, -0.0, 0.0])},
        "extremes": {"a": torch.tensor([inf, -inf, 3e38, -3e38, 1e-45, -1e-45, 0.0, 1.0, 1.0000001])},
        "near ties": {"a": 1.0 + torch.arange(50) * 1.2e-7, "b": 1.0 + torch.arange(50, 0, -1) * 1.2e-7},
    }


@pytest.mark.parametrize("case", cases().keys())
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("chunk", [1 << 24, 4])
def test_global_masks_are_those_of_a_full_sort(
    case: str, ratio: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks_module, "_CHUNK", chunk)
    scores = cases()[case]
    found = global_masks(list(scores), scores.__getitem__, ratio)
    expected = by_sorting(scores, ratio)
    assert sum(int(mask.sum()) for mask in found.values()) == kept_count(
        ratio, sum(value.numel() for value in scores.values())
    )
    for name in scores:
        assert torch.equal(found[name], expected[name])
        assert found[name].dtype == torch.bool


def test_counts_are_exact_for_the_decimal_that_was_written() -> None:
    assert kept_count(0.29, 100) == 29  # 0.29 * 100 is 28.999... in floating point
    assert kept_count(0.95, 7_000_000_020) == 6_650_000_019
    assert [kept_count(r, 10) for r in (0.0, 0.19, 1.0)] == [0, 1, 10]
    for ratio in (-0.1, 1.5):
        with pytest.raises(RecipeError, match="share of the weights"):
            kept_count(ratio, 10)


def test_scores_that_are_not_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="scores of w"):
        global_masks(["w"], lambda _: torch.tensor([1.0, torch.nan]), 0.5)


@pytest.mark.parametrize("ratio", RATIOS)
def test_row_masks_keep_the_top_of_each_row(ratio: float) -> None:
    score = torch.randint(0, 4, (6, 10), generator=torch.Generator().manual_seed(1)).float()
    found = row_masks(score, ratio)
    for row, mask in zip(score, found, strict=True):
        assert torch.equal(mask, by_sorting({"row": row}, ratio)["row"])


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3))


def chosen(module: nn.Module, ratio: float) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters())
    return global_masks(list(parameters), lambda name: random_scores(name, parameters[name].shape, seed=0), ratio)


Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMISERS: dict[str, Make] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.05, weight_decay=0.3),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1),
    "sophia": lambda m: Sophia(m.parameters(), 0.02, weight_decay=0.3),
    "soul": lambda m: Soul(m.parameters(), 0.02, weight_decay=0.3),
    "signum": lambda m: Signum(m.parameters(), 0.02, weight_decay=0.3),
}


def train(
    module: nn.Module, optimizer: torch.optim.Optimizer, masks: WeightMasks | None, steps: range = range(5)
) -> list[float]:
    """Steps as a training loop takes them: gradient, masks, clip, step. Returns the norms before clipping."""

    def backward(t: int) -> None:
        optimizer.zero_grad()
        ids = torch.randint(0, 12, (6,), generator=torch.Generator().manual_seed(t))
        module(ids).square().sum().backward()
        if masks is not None:
            masks.mask_gradients()

    norms = []
    for t in steps:
        if isinstance(optimizer, Sophia):
            backward(t)
            optimizer.update_hessian(tokens=6)
        backward(t)
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), 1.0)))
        optimizer.step()
    return norms


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int32)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.95])
def test_masked_out_weights_keep_every_bit(name: str, ratio: float) -> None:
    module = model()
    start = copy.deepcopy(module)
    masks = chosen(module, ratio)
    held = WeightMasks(module, masks)
    optimizer = OPTIMISERS[name](module)
    held.attach(optimizer)
    train(module, optimizer, held)
    before = dict(start.named_parameters())
    for key, p in module.named_parameters():
        assert torch.equal(bits(p)[~masks[key]], bits(before[key])[~masks[key]])
        for value in optimizer.state[p].values():
            # Only SGD adds its decay to the gradient, and so to its running average.
            if isinstance(value, Tensor) and value.shape == p.shape and name != "sgd":
                assert not value[~masks[key]].any()
    if ratio:
        moved = [p[masks[key]] != before[key][masks[key]] for key, p in module.named_parameters()]
        assert float(torch.cat(moved).float().mean()) > 0.9


def test_without_the_hooks_decay_moves_masked_out_weights() -> None:
    module = model()
    start, masks = copy.deepcopy(module), chosen(module, 0.5)
    train(module, OPTIMISERS["adamw"](module), WeightMasks(module, masks))
    before = dict(start.named_parameters())
    assert any(not torch.equal(p[~masks[key]], before[key][~masks[key]]) for key, p in module.named_parameters())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_keeping_all_is_dense_training_bit_for_bit(name: str) -> None:
    dense, masked = model(), model()
    norms = train(dense, OPTIMISERS[name](dense), None)
    held = WeightMasks(masked, chosen(masked, 1.0))
    optimizer = OPTIMISERS[name](masked)
    held.attach(optimizer)
    assert train(masked, optimizer, held) == norms
    for a, b in zip(dense.parameters(), masked.parameters(), strict=True):
        assert torch.equal(bits(a), bits(b))


def test_clipping_sees_only_what_may_move() -> None:
    module = model()
    masks = chosen(module, 0.2)
    held = WeightMasks(module, masks)
    module(torch.arange(6)).square().sum().backward()
    parameters = dict(module.named_parameters())
    kept = torch.cat([p.grad[masks[key]] for key, p in parameters.items() if p.grad is not None])
    whole = torch.cat([p.grad.reshape(-1) for p in parameters.values() if p.grad is not None])
    held.mask_gradients()
    norm = float(nn.utils.clip_grad_norm_(module.parameters(), 1e9))
    assert norm == pytest.approx(float(kept.norm()), rel=1e-6)
    assert norm < 0.9 * float(whole.norm())


def test_parameters_without_a_mask_move_freely_and_gradients_may_be_missing() -> None:
    module = model()
    start = copy.deepcopy(module)
    held = WeightMasks(module, {"1.weight": torch.zeros(16, 8, dtype=torch.bool)})
    held.mask_gradients()  # no gradients yet
    optimizer = OPTIMISERS["adamw"](module)
    held.attach(optimizer)
    train(module, optimizer, held)
    before = dict(start.named_parameters())
    moved = {key for key, p in module.named_parameters() if not torch.equal(p, before[key])}
    assert moved == set(before) - {"1.weight"}


def test_a_masked_run_can_be_cut_and_taken_up_again() -> None:
    def start(module: nn.Module) -> tuple[torch.optim.Optimizer, WeightMasks]:
        held = WeightMasks(module, chosen(module, 0.5))
        optimizer = OPTIMISERS["adamw"](module)
        held.attach(optimizer)
        return optimizer, held

    whole, first = model(), model()
    train(whole, *start(whole), steps=range(6))
    optimizer, held = start(first)
    train(first, optimizer, held, steps=range(3))
    second = copy.deepcopy(first)
    again, held = start(second)
    again.load_state_dict(optimizer.state_dict())
    train(second, again, held, steps=range(3, 6))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pruned_weights_stay_zero_and_the_penalty_adds_zeros() -> None:
    module = model()
    masks = {"1.weight": row_masks(dict(module.named_parameters())["1.weight"].detach().abs(), 0.5)}
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        parameters["1.weight"].mul_(masks["1.weight"])
    held = WeightMasks(module, masks)
    optimizer = OPTIMISERS["adamw"](module)
    ProximalL1([parameters["1.weight"], parameters["4.weight"]], 0.2).attach(optimizer)
    held.attach(optimizer)
    nonzero = []
    for t in range(6):
        train(module, optimizer, held, steps=range(t, t + 1))
        nonzero.append(int(parameters["1.weight"].count_nonzero()))
        assert not parameters["1.weight"][~masks["1.weight"]].any()
    assert nonzero[0] <= 64
    assert nonzero[-1] < nonzero[0]
    assert bool(parameters["1.bias"].all())


def test_masks_attached_last_undo_the_penalty_too() -> None:
    module = model()
    start = copy.deepcopy(dict(module.named_parameters())["4.weight"])
    parameter = dict(module.named_parameters())["4.weight"]
    held = WeightMasks(module, {"4.weight": torch.zeros(3, 16, dtype=torch.bool)})
    optimizer = OPTIMISERS["adamw"](module)
    ProximalL1([parameter], 5.0).attach(optimizer)
    held.attach(optimizer)
    train(module, optimizer, held)
    assert torch.equal(bits(parameter), bits(start))


def test_masks_that_do_not_fit_are_refused() -> None:
    module = model()
    with pytest.raises(RecipeError, match=r"not a parameter of this model.*'9\.weight'"):
        WeightMasks(module, {"9.weight": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(RecipeError, match=r"torch\.bool \(16, 8\)"):
        WeightMasks(module, {"1.weight": torch.ones(8, 16, dtype=torch.bool)})
    with pytest.raises(RecipeError, match=r"torch\.float32"):
        WeightMasks(module, {"1.weight": torch.ones(16, 8)})


def test_masks_in_a_file_take_a_bit_a_weight(tmp_path: Path) -> None:
    masks = chosen(model(), 0.37) | {"scalar": torch.tensor(True)}
    save_masks(tmp_path / "masks.safetensors", masks)
    found = load_masks(tmp_path / "masks.safetensors")
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    large = {"w": torch.rand(1000, 800) > 0.5}
    save_masks(tmp_path / "large.safetensors", large)
    assert (tmp_path / "large.safetensors").stat().st_size < 101_000
    assert kept_share({"a": torch.tensor([True, False]), "b": torch.tensor([[True, True]])}) == 0.75


def test_masks_half_written_by_a_killed_process_stand_under_no_name_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "masks.safetensors"

    def killed(tensors: object, where: Path, metadata: object = None) -> None:
        where.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_masks(path, {"w": torch.tensor([True])})
    assert not path.exists()
