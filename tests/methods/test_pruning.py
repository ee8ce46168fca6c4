# SPDX-License-Identifier: Apache-2.0
"""Sparse models: pruned weights stay zero, recovery can be interrupted, and thresholds make zeros."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.errors import Interrupted, RecipeError
from expunge.methods.base import MethodContext, MethodOutcome
from expunge.methods.pruning import PruneFirstConfig, sparsity_after
from expunge.methods.registry import get_method, parse_method
from expunge.methods.sparsity import zero_share
from expunge.methods.weights import prunable_weights
from expunge.models.digests import model_digest
from expunge.optim.scores import linear_weights
from expunge.signals.head import output_head
from expunge.training.callbacks import StepInfo
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer


@pytest.fixture
def context(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., MethodContext]:
    splits = archive.splits()

    def build(training: dict[str, Any] | None = None, **changes: Any) -> MethodContext:
        settings = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, **(training or {})}
        values: dict[str, Any] = {
            "model": copy.deepcopy(target), "encoder": encoder, "training": TrainingConfig(**settings), "seed": 0,
            "splits": Splits(splits.forget[:8], splits.retain[:16]), "pad_id": encoder.pad_id,
            "model_digest": model_digest(target),
        }  # fmt: skip
        return MethodContext(**(values | changes))

    return build


def run(name: str, context: MethodContext, **settings: Any) -> MethodOutcome:
    return get_method(name).run(parse_method({"name": name, **settings}), context)


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p == 0 for name, p in linear_weights(model, without=[output_head(model)]).items()}


@pytest.mark.parametrize("optimizer", ["adamw", "soul"])
@pytest.mark.parametrize("score", ["magnitude", "wanda"])
def test_pruned_weights_are_zero_after_unlearning_and_no_others(score: str, optimizer: str, context: Any) -> None:
    given = context({"optimizer": {"name": optimizer, "weight_decay": 0.3}})
    start = {name: p.detach().clone() for name, p in given.model.named_parameters()}
    outcome = run("prune_first", given, score=score, sparsity=0.4, then={"name": "npo"})
    found = zeros(outcome.model)
    if score == "wanda":
        assert all(bool((mask.sum(1) == int(0.4 * mask.shape[1] + 0.9999)).all()) for mask in found.values())
    total = sum(mask.numel() for mask in found.values())
    assert sum(int(mask.sum()) for mask in found.values()) == pytest.approx(0.4 * total, rel=0.02)
    assert outcome.notes["sparsity"] == pytest.approx(0.4, abs=0.01)
    if score == "magnitude":
        flat = torch.cat([start[name].abs().flatten() for name in found])
        gone = torch.cat([mask.flatten() for mask in found.values()])
        assert float(flat[gone].max()) <= float(flat[~gone].min())
    assert all(not torch.equal(p, start[name]) for name, p in outcome.model.named_parameters())


def test_rounds_take_the_same_share_of_what_is_left() -> None:
    shares = [sparsity_after(done, rounds=3, sparsity=0.488) for done in range(4)]
    assert shares == pytest.approx([0.0, 0.2, 0.36, 0.488])


def test_zeros_of_a_round_stay_zero_in_the_next(context: Any, tmp_path: Path) -> None:
    outcome = run("prune_first", context(folder=tmp_path), sparsity=0.5, rounds=2, then={"name": "ga"})
    from expunge.optim.masks import load_masks

    first, second = (load_masks(tmp_path / f"prune-{k}" / "masks.safetensors") for k in (1, 2))
    for name, mask in zeros(outcome.model).items():
        assert bool((~first[name] <= ~second[name]).all())
        assert torch.equal(mask, ~second[name])
    assert (tmp_path / "prune-1" / "metrics.jsonl").exists()


class _StopAt:
    """Interrupts at a step of the n-th training that reaches it."""

    def __init__(self, step: int, training: int) -> None:
        self._step, self._left = step, training

    def on_step(self, info: StepInfo) -> None:
        if info.step == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGINT)

    def on_probe(self, step: int, values: Any) -> None: ...


@pytest.mark.parametrize("training", [1, 2, 3])
def test_interrupted_in_any_stage_and_resumed_ends_in_the_same_bytes(
    training: int, context: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"sparsity": 0.4, "rounds": 2, "then": {"name": "npo", "retain": "kl"}}
    whole = run("prune_first", context(folder=tmp_path / "whole"), **settings)
    stop = _StopAt(2, training)
    with pytest.raises(Interrupted):
        run("prune_first", context(folder=tmp_path / "cut", callbacks=[stop]), **settings)
    resumed = run("prune_first", context(folder=tmp_path / "cut", resume=True), **settings)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_losses_compare_with_the_pruned_and_recovered_model(context: Any, tmp_path: Path) -> None:
    """At its first step npo is 2/beta log 2, which it is only against the model it starts from."""
    import json
    import math

    run("prune_first", context(folder=tmp_path), sparsity=0.5, then={"name": "npo", "beta": 0.5})
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["forget"] == pytest.approx(4 * math.log(2), rel=1e-4)


def test_a_mask_on_top_moves_a_share_of_what_is_left(context: Any, tmp_path: Path) -> None:
    given = context({"mask": {"kind": "wagle", "ratio": 0.5}}, folder=tmp_path)
    outcome = run("prune_first", given, sparsity=0.4, recovery_epochs=0)
    assert 0.2 < outcome.notes["moving_share"] < 0.5
    assert zero_share(outcome.model) == pytest.approx(0.4, abs=1e-3)


def test_an_adapter_is_pruned_in_its_first_factor(context: Any) -> None:
    outcome = run("prune_first", context({"lora": {"r": 4}}), sparsity=0.5)
    names = prunable_weights(outcome.model)
    assert names
    assert all("lora_A" in name for name in names)
    assert zero_share(outcome.model) == pytest.approx(0.5, abs=1e-3)


def test_settings_of_what_follows_are_checked_and_resolved() -> None:
    assert PruneFirstConfig().then["retain_weight"] == 1.0
    assert PruneFirstConfig(then={"name": "npo"}).then["beta"] == 0.1
    with pytest.raises(RecipeError, match=r"method\.then\.bta"):
        PruneFirstConfig(then={"name": "npo", "bta": 1})
    for name in ("retrain", "prune_first", "l1_sparse"):
        with pytest.raises(RecipeError, match=r"method\.then\.name: only a method of gradient steps can follow"):
            PruneFirstConfig(then={"name": name})
    with pytest.raises(ValidationError):
        PruneFirstConfig(sparsity=1.0)


def test_l1_sparse_without_penalty_is_plain_training_on_the_retain_set(context: Any) -> None:
    given = context()
    model = copy.deepcopy(given.model)
    outcome = run("l1_sparse", given, l1_weight=0)
    retain = [row.encoded for row in given.encoder.encode_many(given.splits.retain, where="retain")]
    Trainer(model, FineTuneTask(retain, batch_size=4, seed=0), given.training, pad_id=0).run()
    for a, b in zip(outcome.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert outcome.notes["zero_share"] == 0.0


def test_l1_sparse_makes_more_zeros_with_more_weight(context: Any) -> None:
    shares = [run("l1_sparse", context(), l1_weight=weight).notes["zero_share"] for weight in (0.5, 2.0)]
    assert 0 < shares[0] < shares[1]


def test_l1_sparse_brings_its_own_penalty_and_its_own_epochs(context: Any) -> None:
    with pytest.raises(RecipeError, match=r"training\.proximal_l1: l1_sparse brings its own"):
        run("l1_sparse", context({"proximal_l1": {"weight": 0.1}}))
    method = get_method("l1_sparse")
    assert method.examples_per_epoch(parse_method({"name": "l1_sparse"}), forget=3, retain=50) == 50
    with pytest.raises(RecipeError, match=r"method\.free_epochs"):
        run("l1_sparse", context(), free_epochs=5)
