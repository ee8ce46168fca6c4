# SPDX-License-Identifier: Apache-2.0
"""Masks of single weights: how they are chosen, what they hold still, and that they survive an interruption."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from expunge.data.batching import pad
from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.errors import Interrupted, RecipeError
from expunge.methods.base import MethodContext, MethodOutcome
from expunge.methods.registry import get_method, parse_method
from expunge.methods.weights import build_masks, intersection
from expunge.models.digests import model_digest
from expunge.optim.config import MASK_SETTINGS, MaskConfig
from expunge.optim.masks import load_masks
from expunge.optim.scores import linear_weights
from expunge.recipe import build_recipe
from expunge.signals.head import output_head
from expunge.training.callbacks import StepInfo
from expunge.training.config import TrainingConfig

KINDS = [kind for kind in MASK_SETTINGS if kind != "none"]


@pytest.fixture
def context(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., MethodContext]:
    splits = archive.splits()

    def build(training: dict[str, Any], **changes: Any) -> MethodContext:
        settings = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, **training}
        values: dict[str, Any] = {
            "model": copy.deepcopy(target), "encoder": encoder, "training": TrainingConfig(**settings), "seed": 0,
            "splits": Splits(splits.forget[:8], splits.retain[:12]), "pad_id": encoder.pad_id,
        }  # fmt: skip
        values |= changes
        return MethodContext(model_digest=model_digest(values["model"]), **values)

    return build


def run(context: MethodContext, name: str = "grad_diff", **settings: Any) -> MethodOutcome:
    return get_method(name).run(parse_method({"name": name, **settings}), context)


def items(encoder: Encoder, archive: Archive) -> tuple[list[Encoded], list[Encoded]]:
    splits = archive.splits()
    return (
        [row.encoded for row in encoder.encode_many(splits.forget, where="forget")],
        [row.encoded for row in encoder.encode_many(splits.retain, where="retain")],
    )


def naive_gradients(model: nn.Module, chosen: list[Encoded]) -> list[dict[str, torch.Tensor]]:
    out = []
    for item in chosen:
        batch = pad([item], 0)
        logits = model(batch.input_ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, batch.labels[0, 1:], ignore_index=IGNORE)
        model.zero_grad()
        loss.backward()
        out.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    return out


def mean_of(gradients: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}


@pytest.mark.parametrize(("mu", "signed"), [("fisher", False), (1e-6, False), (0.5, True)])
def test_wagle_keeps_the_weights_that_its_formula_ranks_highest(
    mu: Any, signed: bool, target: nn.Module, encoder: Encoder, archive: Archive
) -> None:
    forget, retain = (some[:3] for some in items(encoder, archive))
    config = MaskConfig(kind="wagle", ratio=0.3, mu=mu, signed=signed)
    masks = build_masks(target, config, forget=forget, retain=retain, pad_id=0, seed=0)
    of_forget, of_retain = (naive_gradients(target, some) for some in (forget, retain))
    g_f, g_r = mean_of(of_forget), mean_of(of_retain)
    if mu == "fisher":
        squares = torch.cat([torch.stack([g[name] for g in of_retain]).square().flatten() for name in g_r])
        mu = float(squares.double().mean())
    scores = {name: (p.detach() - g_r[name] / mu) * g_f[name] for name, p in target.named_parameters()}
    flat = torch.cat([(s if signed else s.abs()).flatten() for s in scores.values()])
    kept = torch.cat([masks[name].flatten() for name in scores])
    assert int(kept.sum()) == int(0.3 * len(flat))
    threshold = flat.sort(descending=True).values[int(kept.sum()) - 1]
    # Rounding may swap weights at the threshold itself, nowhere else.
    certain = (flat - threshold).abs() > 1e-4 * threshold.abs()
    assert torch.equal(kept[certain], (flat > threshold)[certain])


def test_idk_attributes_to_the_refusal_and_the_others_to_the_answer(context: Any, encoder: Encoder) -> None:
    def attributed(name: str) -> Encoded:
        given = context({})
        method: Any = get_method(name)
        return method.parts(parse_method({"name": name}), given).term.attribution(0)

    answer = encoder.encode(context({}).splits.forget[0])
    assert attributed("npo") == attributed("rlabel") == attributed("dpo") == answer
    assert attributed("idk") != answer
    assert attributed("idk").ids[: answer.label_start] == answer.ids[: answer.label_start]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "sophia"])
def test_only_the_chosen_weights_move(kind: str, optimizer: str, context: Any, tmp_path: Path) -> None:
    given = context(
        {"mask": {"kind": kind, "ratio": 0.5}, "optimizer": {"name": optimizer, "weight_decay": 0.1}}, folder=tmp_path
    )
    start = {name: p.detach().clone() for name, p in given.model.named_parameters()}
    outcome = run(given)
    masks = load_masks(tmp_path / "masks.safetensors")
    total = sum(mask.numel() for mask in masks.values())
    share = outcome.notes["moving_share"]
    assert share == pytest.approx(sum(int(mask.sum()) for mask in masks.values()) / total)
    assert share == pytest.approx(0.5, abs=1e-4) if kind != "wanda" else 0.2 < share < 0.5
    for name, p in outcome.model.named_parameters():
        assert torch.equal(p[~masks[name]], start[name][~masks[name]])
        assert not bool(masks[name].any()) or not torch.equal(p, start[name])


def test_wanda_holds_everything_but_linear_layers_and_takes_the_same_share_of_each_row(context: Any) -> None:
    given = context({"mask": {"kind": "wanda", "ratio": 0.25}})
    model = given.model
    linear = linear_weights(model, without=[output_head(model)])
    forget = [given.encoder.encode(example) for example in given.splits.forget]
    masks = build_masks(model, given.training.mask, forget=forget, retain=[], pad_id=0, seed=0)
    assert masks.keys() == dict(model.named_parameters()).keys()
    for name, mask in masks.items():
        if name in linear:
            assert bool((mask.sum(1) == mask.shape[1] // 4).all())
        else:
            assert not bool(mask.any())


def test_all_weights_in_the_mask_is_training_without_one(context: Any) -> None:
    dense = run(context({}))
    masked = run(context({"mask": {"kind": "wagle", "ratio": 1.0}}))
    for a, b in zip(dense.model.parameters(), masked.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_no_weight_in_the_mask_changes_nothing(context: Any, target: nn.Module) -> None:
    outcome = run(context({"mask": {"kind": "random", "ratio": 0.0}, "optimizer": {"weight_decay": 0.5}}))
    for a, b in zip(target.parameters(), outcome.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_random_differs_by_seed_only(target: nn.Module) -> None:
    def masks(seed: int) -> torch.Tensor:
        config = MaskConfig(kind="random", ratio=0.5)
        found = build_masks(target, config, forget=[], retain=[], pad_id=0, seed=seed)
        return torch.cat([mask.flatten() for mask in found.values()])

    assert torch.equal(masks(0), masks(0))
    assert 0.4 < float((masks(0) == masks(1)).float().mean()) < 0.6


def test_a_mask_concerns_only_parameters_that_may_move(context: Any, tmp_path: Path) -> None:
    run(context({"trainable": ["layers.1.mlp"], "mask": {"kind": "magnitude", "ratio": 0.5}}, folder=tmp_path))
    masks = load_masks(tmp_path / "masks.safetensors")
    assert all("layers.1.mlp" in name for name in masks)
    assert sum(int(m.sum()) for m in masks.values()) == sum(m.numel() for m in masks.values()) // 2


class _StopAt:
    def on_step(self, info: StepInfo) -> None:
        import os
        import signal

        if info.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def on_probe(self, step: int, values: Any) -> None: ...


def test_a_resumed_run_keeps_the_mask_it_began_with(context: Any, tmp_path: Path, monkeypatch: Any) -> None:
    training = {"mask": {"kind": "wagle", "ratio": 0.5}, "optimizer": {"name": "sophia", "hessian_every": 2}}
    whole = run(context(training, folder=tmp_path / "whole"), "npo")
    with pytest.raises(Interrupted):
        run(context(training, folder=tmp_path / "cut", callbacks=[_StopAt()]), "npo")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the mask must come from the file")

    monkeypatch.setattr("expunge.methods.gradient.build_masks", never)
    resumed = run(context(training, folder=tmp_path / "cut", resume=True), "npo")
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_wagle_needs_a_retain_set_even_for_plain_ascent(context: Any) -> None:
    training = {"mask": {"kind": "wagle"}}
    lone = Splits(context({}).splits.forget)
    with pytest.raises(RecipeError, match=r"data\.retain"):
        run(context(training, splits=lone), "ga")
    assert "retain" in get_method("ga").needs(parse_method({"name": "ga"}), TrainingConfig(**training))
    assert "retain" not in get_method("ga").needs(parse_method({"name": "ga"}), TrainingConfig())


def test_intersection_of_masks() -> None:
    a, b = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    both = intersection({"x": a, "y": a}, {"x": b, "z": b})
    assert both["x"].tolist() == [True, False, False]
    assert torch.equal(both["y"], a)
    assert torch.equal(both["z"], b)


def test_settings_of_a_mask_are_those_of_its_kind() -> None:
    assert MaskConfig(kind="wagle").model_dump() == {
        "kind": "wagle", "ratio": 0.95, "mu": "fisher", "signed": False, "examples": 400,
    }  # fmt: skip
    assert MaskConfig().ratio is None
    with pytest.raises(ValidationError, match="mu is not a setting of random, which has ratio"):
        MaskConfig(kind="random", mu=1.0)
    with pytest.raises(ValidationError, match="ratio is not a setting of none"):
        MaskConfig(ratio=0.5)


@pytest.mark.parametrize("kind", MASK_SETTINGS)
def test_a_resolved_recipe_reads_itself_again(kind: str) -> None:
    settings = {"mask": {"kind": kind}, "proximal_l1": {"weight": 0.2}}
    recipe = build_recipe({
        "model": {"path": "m"}, "data": {"forget": "f"}, "method": {"name": "npo"}, "training": settings,
    })  # fmt: skip
    again = build_recipe(recipe.to_dict())
    assert again.hash == recipe.hash
