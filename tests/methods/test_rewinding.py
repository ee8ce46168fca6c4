# SPDX-License-Identifier: Apache-2.0
"""Rewinding: the choice, the snapshots, and that any method of gradient steps can do it."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Mapping
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
from expunge.methods.base import MethodContext
from expunge.methods.registry import get_method, parse_method
from expunge.training.callbacks import StepInfo
from expunge.training.config import TrainingConfig
from expunge.training.rewind import Rewinder, closest

REWIND = {"rule": "rewind"}


@pytest.fixture
def context(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., MethodContext]:
    splits = archive.splits()

    def build(training: dict[str, Any], **changes: Any) -> MethodContext:
        constant = {"schedule": "constant", "warmup_ratio": 0.0, "learning_rate": 2e-4, "epochs": 6, "batch_size": 4}
        values: dict[str, Any] = {
            "model": copy.deepcopy(target), "encoder": encoder, "training": TrainingConfig(**{**constant, **training}),
            "splits": Splits(splits.forget, splits.retain, splits.holdout), "seed": 0, "pad_id": encoder.pad_id,
            "load_base": lambda: copy.deepcopy(target),
        }  # fmt: skip
        return MethodContext(**(values | changes))

    return build


def run(name: str, context: MethodContext, **settings: Any) -> Any:
    return get_method(name).run(parse_method({"name": name, **settings}), context)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_closest_error_is_chosen() -> None:
    assert closest([0.0, 0.2, 0.5, 0.9], 0.45) == 2
    assert closest([0.4, 0.5], 0.45) == 0
    assert closest([float("nan"), 3.0, float("inf")], 0.0) == 1


class Errors:
    """Stands for a probe: gives errors in a fixed order."""

    def __init__(self, forget: list[float], holdout: list[float]) -> None:
        self._pairs = iter(zip(forget, holdout, strict=True))

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        forget, holdout = next(self._pairs)
        return {"forget.nll": forget, "holdout.nll": holdout}


@pytest.mark.parametrize("on_disk", [False, True])
def test_weights_come_back_as_they_were_after_the_chosen_step(on_disk: bool, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    rewinder = Rewinder(Errors([0.1, 0.3, 0.9], [0.7, 0.7, 0.35]), tmp_path if on_disk else None)  # type: ignore[arg-type]
    rewinder.begin(0)
    kept = []
    for step in (2, 4, 6):
        with torch.no_grad():
            model.weight.add_(torch.rand(2, 3, generator=torch.Generator().manual_seed(step)))
        kept.append(weights(model))
        rewinder.on_epoch(model, step)
    choice = rewinder.restore(model)
    assert (choice.step, choice.target_nll) == (4, 0.35)
    assert [point.forget_nll for point in choice.trajectory] == [0.1, 0.3, 0.9]
    assert same(weights(model), kept[1])
    if on_disk:  # a run resumed after step 4 knows the first two, and one that starts again none
        later = Rewinder(Errors([0.2], [0.2]), tmp_path)  # type: ignore[arg-type]
        later.begin(4)
        later.on_epoch(model, 6)
        assert later.restore(model).step == 6
        later.begin(0)
        with pytest.raises(ValueError, match="no epoch ended"):
            later.restore(model)


@pytest.mark.parametrize("name", ["grad_diff", "npo", "scrub", "bad_teacher"])
def test_a_rewound_run_ends_with_the_weights_of_the_run_that_stopped_there(
    name: str, context: Callable[..., MethodContext]
) -> None:
    if name == "scrub":
        settings: dict[str, Any] = {"max_epochs": 2}
    else:
        settings = {}
    rewound = run(name, context({"stop": REWIND, "learning_rate": 1e-3}), **settings)
    choice = rewound.training.notes["rewind"]
    points = choice["trajectory"]
    assert len(points) == 6
    expected = min(points, key=lambda point: abs(point["forget_nll"] - points[-1]["holdout_nll"]))
    assert choice["step"] == expected["step"]
    epoch = [point["step"] for point in points].index(choice["step"]) + 1
    assert name != "grad_diff" or epoch < 6
    short = run(name, context({"epochs": epoch, "learning_rate": 1e-3}), **settings)
    assert same(weights(rewound.model), weights(short.model))


def test_the_trajectory_and_the_choice_are_logged(context: Callable[..., MethodContext], tmp_path: Path) -> None:
    outcome = run("ga", context({"stop": REWIND, "learning_rate": 1e-3}, folder=tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    probes = [line["probe"] for line in lines if "probe" in line]
    assert [p["forget.nll"] for p in probes[:-1]] == [
        point["forget_nll"] for point in outcome.training.notes["rewind"]["trajectory"]
    ]
    assert probes[-1]["rewind.step"] == outcome.training.notes["rewind"]["step"] < 12
    json.dumps(outcome.training.notes)


class StopAt:
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, info: StepInfo) -> None:
        if info.step == self._step:
            os.kill(os.getpid(), signal.SIGINT)

    def on_probe(self, step: int, values: Mapping[str, float]) -> None: ...


@pytest.mark.parametrize("name", ["grad_diff", "scrub_r"])
def test_interrupted_and_resumed_rewinds_to_the_same_weights(
    name: str, context: Callable[..., MethodContext], tmp_path: Path
) -> None:
    training = {"stop": REWIND, "learning_rate": 1e-3}
    whole = run(name, context(training, folder=tmp_path / "whole"))
    with pytest.raises(Interrupted):
        run(name, context(training, folder=tmp_path / "cut", callbacks=[StopAt(9)]))
    resumed = run(name, context(training, folder=tmp_path / "cut", resume=True))
    assert resumed.training.notes == whole.training.notes
    assert same(weights(whole.model), weights(resumed.model))


def test_a_missing_holdout_is_named(context: Callable[..., MethodContext], archive: Archive) -> None:
    splits = archive.splits()
    for name, training in (("grad_diff", {"stop": REWIND}), ("scrub_r", {})):
        with pytest.raises(RecipeError, match=r"data\.holdout: rewinding needs a holdout"):
            run(name, context(training, splits=Splits(splits.forget, splits.retain)))
        settings = parse_method({"name": name})
        assert "holdout" in get_method(name).needs(settings, TrainingConfig(**training))  # type: ignore[arg-type]


def test_what_cannot_rewind_says_so(context: Callable[..., MethodContext]) -> None:
    with pytest.raises(RecipeError, match=r"training\.stop\.rule: this procedure has no forget set"):
        run("retrain", context({"stop": REWIND}))
    with pytest.raises(RecipeError, match=r"training\.stop\.rule: influence moves"):
        run("influence", context({"stop": REWIND}))
    with pytest.raises(RecipeError, match="scrub_r rewinds"):
        run("scrub_r", context({"stop": {"rule": "utility_drop"}}))
    with pytest.raises(ValidationError, match="exclude each other"):
        TrainingConfig(stop=REWIND, wrapper={"name": "weight_averaging"})  # type: ignore[arg-type]
