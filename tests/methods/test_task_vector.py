# SPDX-License-Identifier: Apache-2.0
"""Task arithmetic: exact to the last bit where it can be, the three conventions by hand, and the chosen strength."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.errors import InputDataError, RecipeError
from expunge.methods.base import MethodContext, MethodOutcome
from expunge.methods.registry import methods, parse_method
from expunge.methods.sta import importance, importance_masks
from expunge.models.adapters import LoraSettings, add_lora, merge_lora
from expunge.models.arithmetic import AdapterVector, Difference, Masked, shifted, snapshot, wider
from expunge.models.loading import save_model
from expunge.training.config import TrainingConfig

#: A GPT-2 of a few thousand weights.
SMALL: Any = {"vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}

Run = Callable[..., MethodOutcome]


@pytest.fixture
def run(archive: Archive, encoder: Encoder, fresh: Callable[[], nn.Module]) -> Run:
    def go(
        name: str, model: nn.Module, training: dict[str, Any] | None = None, *, retain: bool = True,
        base: Callable[[], nn.Module] | None = fresh, **settings: Any,
    ) -> MethodOutcome:  # fmt: skip
        values = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, **(training or {})}
        splits = archive.splits() if retain else Splits(archive.splits().forget)
        context = MethodContext(
            model=model, encoder=encoder, splits=splits, training=TrainingConfig(**values), seed=0,
            pad_id=encoder.pad_id, load_base=base,
        )  # fmt: skip
        return methods()[name].run(parse_method({"name": name, **settings}), context)

    return go


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return snapshot(model, [name for name, _ in model.named_parameters()])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_taking_a_training_back_is_exact_one_precision_up_and_not_in_the_weights_own(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    before = {"w": (0.05 * torch.randn(200_000, generator=generator)).to(dtype)}
    after = {"w": (before["w"].float() + 0.01 * torch.randn(200_000, generator=generator)).to(dtype)}
    vector = Difference(before, after)
    assert vector.delta("w").dtype == wider(dtype)
    assert torch.equal(shifted(after, [(-1.0, vector)])["w"], before["w"])
    assert torch.equal(shifted(before, [(1.0, vector)])["w"], after["w"])
    naive = after["w"] - (after["w"] - before["w"])
    assert int((naive != before["w"]).sum()) > 0


def test_nothing_subtracted_or_subtracted_twice_is_the_identity() -> None:
    before = {"w": torch.tensor([0.1, -2.0]), "v": torch.tensor([3.0])}
    vector = Difference(before, {"w": torch.tensor([0.3, 1.0]), "v": torch.tensor([3.0])})
    assert vector.names == ["w"]  # the other did not change
    assert torch.equal(shifted(before, [(0.0, vector)])["w"], before["w"])
    assert torch.equal(shifted(before, [(-0.7, vector), (0.7, vector)])["w"], before["w"])
    other = Difference(before, {"w": torch.tensor([0.1, 0.0]), "v": torch.tensor([5.0])})
    summed = shifted(before, [(-1.0, vector), (-2.0, other)])
    # w: (0.1 - 0.2, -2 - 3 - 2 * 2); v: 3 - 2 * 2.
    torch.testing.assert_close(summed["w"], torch.tensor([-0.1, -9.0]))
    assert summed["v"].tolist() == [-1.0]


def test_unlike_or_equal_models_are_refused() -> None:
    w = {"w": torch.zeros(2)}
    with pytest.raises(InputDataError, match="the same"):
        Difference(w, {"w": torch.zeros(2)})
    with pytest.raises(InputDataError, match="shapes"):
        Difference(w, {"w": torch.zeros(3)})
    with pytest.raises(InputDataError, match="only one"):
        Difference(w, {"u": torch.zeros(2)})
    with pytest.raises(InputDataError, match="lacks"):
        shifted({}, [(1.0, Difference(w, {"w": torch.ones(2)}))])


def shaken(model: nn.Module, scale: float = 0.05) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_the_vector_that_merging_it_adds(family: str, fresh: Callable[[], nn.Module]) -> None:
    """GPT-2 stores its weights the other way round, and ties embedding and head, which count once."""
    torch.manual_seed(0)
    plain: Any = fresh() if family == "llama" else GPT2LMHeadModel(GPT2Config(**SMALL))
    start = values_of(plain)
    model = shaken(add_lora(plain, LoraSettings(r=3, alpha=5.0)))  # moves the weights below the adapter too
    below = {name: model.get_parameter(f"base_model.model.{name[:-7]}.base_layer.weight").detach().clone()
             for name in AdapterVector(model).names}  # fmt: skip
    vector = AdapterVector(model)
    assert set(vector.names) < set(start)
    assert torch.equal(vector.parameter(vector.names[0]), below[vector.names[0]])
    added = shifted(below, [(1.0, vector)])
    back = shifted({name: value.double() for name, value in below.items()}, [(-1.0, vector), (1.0, vector)])
    merged = values_of(merge_lora(model))
    for name, value in added.items():
        torch.testing.assert_close(value, merged[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(back[name], below[name].double(), atol=1e-15, rtol=0)


def test_reinforce_goes_away_from_the_model_that_was_trained_on_the_forget_set(
    run: Run, target: nn.Module, encoder: Encoder, archive: Archive, tmp_path: Path
) -> None:
    start = values_of(target)
    trained = values_of(run("task_vector", copy.deepcopy(target), strength=-1.0).model)
    found = values_of(run("task_vector", target, strength=2.0).model)
    for name, value in found.items():
        before, after = start[name].double(), trained[name].double()
        # Going back from the trained model is exact up to its own rounding.
        torch.testing.assert_close(value, (before - 2.0 * (after - before)).float(), atol=1e-7, rtol=1e-6)
    still = copy.deepcopy(target)
    assert same(values_of(run("task_vector", target, strength=0.0).model), values_of(still))


def test_the_conventions_by_hand_with_given_models(
    run: Run, target: nn.Module, fresh: Callable[[], nn.Module], encoder: Encoder, tmp_path: Path
) -> None:
    paths = []
    for number, scale in enumerate((0.01, 0.02)):
        paths.append(tmp_path / f"trained{number}")
        save_model(shaken(copy.deepcopy(target), scale), encoder.tokenizer, paths[-1])  # type: ignore[arg-type]
    trained = [values_of(shaken(copy.deepcopy(target), scale)) for scale in (0.01, 0.02)]
    given = [str(path) for path in paths]
    for convention, model in (("reinforce", target), ("ilharco", fresh())):
        start = values_of(model)
        found = values_of(
            run(
                "task_vector", copy.deepcopy(target), convention=convention, strength=0.5, vectors=given,
                weights=(1.0, 3.0), retain=False,
            ).model
        )  # fmt: skip
        for name, before in start.items():
            w, (a, b) = before.double(), (one[name].double() for one in trained)
            assert torch.equal(found[name], (w - 0.5 * (a - w) - 1.5 * (b - w)).float())
    base, start = values_of(fresh()), values_of(target)
    undone = values_of(run("task_vector", copy.deepcopy(target), convention="undo", strength=1.0).model)
    assert same(undone, base)
    half = values_of(run("task_vector", copy.deepcopy(target), convention="undo", strength=0.5).model)
    for name, value in half.items():
        assert torch.equal(value, ((start[name].double() + base[name].double()) / 2).float())


def test_a_given_adapter_is_subtracted_from_the_full_weights(
    run: Run, target: nn.Module, encoder: Encoder, tmp_path: Path
) -> None:
    save_model(target, encoder.tokenizer, tmp_path / "plain")  # type: ignore[arg-type]
    torch.manual_seed(0)
    start = values_of(target)
    plain: Any = copy.deepcopy(target)
    plain.name_or_path = str(tmp_path / "plain")
    adapted = add_lora(plain, LoraSettings(r=2))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.add_(0.1 * torch.randn(p.shape))
    save_model(adapted, encoder.tokenizer, tmp_path / "adapter")
    vector = AdapterVector(adapted)
    for name in ("task_vector", "sta"):
        extra = {} if name == "task_vector" else {"keep": 1.0}
        model = copy.deepcopy(target)
        found = values_of(run(name, model, strength=1.0, vectors=[str(tmp_path / "adapter")], **extra).model)
        for parameter, value in found.items():
            expected = start[parameter].double()
            if parameter in vector.names:
                expected = expected - vector.delta(parameter)
            assert torch.equal(value, expected.float())


@pytest.mark.parametrize("there_already", [False, True])
def test_an_adapter_is_negated_in_its_second_factor(run: Run, target: nn.Module, there_already: bool) -> None:
    training = {} if there_already else {"lora": LoraSettings(r=2)}

    def model() -> nn.Module:
        if not there_already:
            return copy.deepcopy(target)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            adapted = add_lora(copy.deepcopy(target), LoraSettings(r=2))  # type: ignore[arg-type]
            for name, p in adapted.named_parameters():
                if "lora_B" in name:
                    p.data.normal_(0, 0.05)
            return adapted

    start = values_of(model()) if there_already else {}
    trained, negated = (
        values_of(run("task_vector", model(), training, strength=s, retain=False).model) for s in (-1.0, 2.0)
    )
    moved = 0
    for name, value in negated.items():
        if "lora_B" not in name:
            assert torch.equal(value, trained[name])  # the first factor and all below
            continue
        before = start[name].double() if there_already else torch.zeros_like(value).double()
        expected = before - 2.0 * (trained[name].double() - before)
        torch.testing.assert_close(value, expected.float(), atol=1e-7, rtol=1e-6)
        moved += int((value.double() != before).sum())
    assert moved
    if there_already:
        assert all(torch.equal(negated[name], value) for name, value in start.items() if "lora_B" not in name)
        undone = values_of(run("task_vector", model(), convention="undo", strength=1.0, retain=False).model)
        assert all(float(value.abs().sum()) == 0.0 for name, value in undone.items() if "lora_B" in name)


def test_the_strength_follows_the_rule_it_states(run: Run, target: nn.Module) -> None:
    start = copy.deepcopy(target)
    outcome = run("task_vector", target, {"epochs": 3}, grid=(4.0, 0.25, 1.0), max_drop=0.05)
    tried = {row["strength"]: row for row in outcome.notes["strengths_tried"]}
    assert list(tried) == [0.25, 1.0, 4.0]
    assert tried[4.0]["forget"] < tried[1.0]["forget"] < tried[0.25]["forget"]
    identity = run("task_vector", start, {"epochs": 3}, grid=(0.0,))
    limit = 0.95 * identity.notes["strengths_tried"][0]["retain"]
    kept = [s for s, row in tried.items() if row["retain"] >= limit]
    assert outcome.notes["strength"] == min(kept, key=lambda s: tried[s]["forget"])
    assert 4.0 not in kept
    assert "95%" in outcome.notes["strength_chosen_by"]


def test_where_no_strength_keeps_the_retain_set_the_smallest_is_taken_and_said(run: Run, target: nn.Module) -> None:
    outcome = run("task_vector", target, convention="undo", grid=(1.0, 0.9))
    assert outcome.notes["strength"] == 0.9
    assert outcome.notes["strength_chosen_by"].startswith("smallest of the grid: none meets")
    assert outcome.training.steps == 0


def test_settings_that_cannot_work_are_named(run: Run, target: nn.Module) -> None:
    with pytest.raises(RecipeError, match=r"model\.base"):
        run("task_vector", target, convention="undo", base=None)
    with pytest.raises(RecipeError, match=r"training\.lora"):
        run("task_vector", target, {"lora": LoraSettings(r=2)}, convention="undo")
    with pytest.raises(RecipeError, match="weights needs one number"):
        parse_method({"name": "task_vector", "vectors": ("a",), "weights": (1.0, 2.0)})
    with pytest.raises(RecipeError, match="no use in convention undo"):
        parse_method({"name": "task_vector", "vectors": ("a",), "convention": "undo"})
    config = parse_method({"name": "task_vector", "strength": 1.0, "convention": "undo"})
    assert methods()["task_vector"].needs(config, TrainingConfig()) == {"forget", "base_model"}


def test_all_entries_kept_is_plain_negation_and_none_kept_changes_nothing(run: Run, target: nn.Module) -> None:
    models = [copy.deepcopy(target) for _ in range(4)]
    plain = values_of(run("task_vector", models[0], strength=1.5).model)
    assert same(values_of(run("sta", models[1], strength=1.5, keep=1.0).model), plain)
    assert same(values_of(run("sta", models[2], strength=1.5, keep=0.0).model), values_of(target))
    for scope in ("global", "tensor"):
        found = values_of(run("sta", copy.deepcopy(target), strength=1.5, keep=0.25, scope=scope).model)
        start = values_of(target)
        total = sum(value.numel() for value in start.values())
        changed = {name: found[name] != start[name] for name in start}
        assert all(torch.equal(found[n][m], plain[n][m]) for n, m in changed.items())
        assert 0.2 * total < sum(int(mask.sum()) for mask in changed.values()) <= 0.25 * total


def test_importance_is_the_first_order_change_of_the_loss() -> None:
    """For a quadratic loss sum(g tau) is the directional derivative, which a central difference gives exactly."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    theta, tau = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss(x: Tensor) -> float:
        return float(x @ (a @ a.T) @ x)

    gradient = 2 * (a @ a.T) @ theta
    slope = (loss(theta + 0.5 * tau) - loss(theta - 0.5 * tau)) / 1.0
    assert float((gradient * tau).sum()) == pytest.approx(slope, rel=1e-10)
    torch.testing.assert_close(importance(gradient, tau), (gradient * tau).abs().float())


def test_masks_ignore_the_scale_of_the_loss_and_break_ties_by_position() -> None:
    before = {"a": torch.zeros(4), "b": torch.zeros(4)}
    vector = Difference(before, {"a": torch.ones(4), "b": torch.tensor([1.0, 1.0, 1.0, 3.0])})
    gradients = {"a": torch.ones(4), "b": torch.ones(4)}
    masks = importance_masks(vector, gradients, keep=0.5, scope="global")
    # 3 is the largest; of the seven ones the first three are taken.
    assert masks["a"].tolist() == [True, True, True, False]
    assert masks["b"].tolist() == [False, False, False, True]
    scaled = importance_masks(vector, {n: 8 * g for n, g in gradients.items()}, keep=0.5, scope="global")
    assert all(torch.equal(masks[name], scaled[name]) for name in masks)
    own = importance_masks(vector, gradients, keep=0.5, scope="tensor")
    assert own["b"].tolist() == [True, False, False, True]
    assert Masked(vector, masks).delta("b").tolist() == [0.0, 0.0, 0.0, 3.0]
