# SPDX-License-Identifier: Apache-2.0
"""Wrappers around real methods: the same under any split, after any interruption, and with other parts of a recipe."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Mapping
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.errors import Interrupted, RecipeError
from expunge.methods.base import MethodContext
from expunge.methods.gradient import GradientMethod, Parts, encode_forget
from expunge.methods.registry import get_method, methods, parse_method
from expunge.models.adapters import LoraSettings
from expunge.models.tiny import build_llama
from expunge.optim.config import CONSTANTS as OPTIMIZERS
from expunge.optim.wrapper_config import CONSTANTS, WrapperConfig
from expunge.signals.likelihood import Scorer
from expunge.signals.reference import ReferenceCache
from expunge.training.callbacks import StepInfo
from expunge.training.config import TrainingConfig
from expunge.training.task import Counts, MicroBatch
from expunge.training.wrapping import build_rule

#: Each wrapper with settings that let it matter in a run of a few steps.
WRAPPERS: dict[str, dict[str, Any]] = {
    "none": {},
    "sam": {"rho": 0.05},
    "randomised_smoothing": {"sigma": 0.01, "samples": 2},
    "gradient_penalty": {"rho": 0.5},
    "curvature": {"rho": 0.5},
    "weight_averaging": {"start": 1, "every": 1},
    "gru": {"average": 0.3},
    "blur": {},
    "lat": {"iterations": 3, "rate": 0.1},
}
PENALTIES = ("gradient_penalty", "curvature")


@pytest.fixture(scope="module")
def small(encoder: Encoder) -> nn.Module:
    return build_llama(len(encoder.tokenizer), hidden_size=32, layers=2, heads=2, context=128, seed=0)


@pytest.fixture
def context(archive: Archive, encoder: Encoder, small: nn.Module) -> Callable[..., MethodContext]:
    splits = archive.splits()

    def build(training: dict[str, Any], **changes: Any) -> MethodContext:
        settings = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, **training}
        values: dict[str, Any] = {
            "model": copy.deepcopy(small), "encoder": encoder, "training": TrainingConfig(**settings), "seed": 0,
            "splits": Splits(splits.forget, splits.retain[:8], splits.holdout[:2]), "pad_id": encoder.pad_id,
        }  # fmt: skip
        return MethodContext(**(values | changes))

    return build


def run(name: str, context: MethodContext, **settings: Any) -> nn.Module:
    return get_method(name).run(parse_method({"name": name, **settings}), context).model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def wrapper(name: str) -> dict[str, Any]:
    return {"name": name, **WRAPPERS[name]}


def test_every_wrapper_is_here() -> None:
    assert WRAPPERS.keys() == CONSTANTS.keys()


@pytest.mark.parametrize("name", WRAPPERS)
def test_four_rows_at_once_equal_four_accumulated(name: str, context: Callable[..., MethodContext]) -> None:
    # Plain gradient steps: Adam would turn rounding noise on zero gradients into full steps.
    training = {"max_steps": 2, "learning_rate": 1e-3, "optimizer": {"eps": 1.0}, "wrapper": wrapper(name)}
    whole = weights(run("grad_diff", context({**training, "micro_batch_size": 4})))
    split = weights(run("grad_diff", context({**training, "micro_batch_size": 1})))
    # Finite differences of float32 gradients carry their rounding, a hundredfold.
    tolerance = 5e-7 if name in PENALTIES else 2e-8
    for key in whole:
        torch.testing.assert_close(whole[key], split[key], atol=tolerance, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name not in ("none", "weight_averaging")])
def test_a_wrapper_changes_the_run(name: str, context: Callable[..., MethodContext]) -> None:
    wrapped = run("grad_diff", context({"max_steps": 2, "wrapper": wrapper(name)}))
    assert not same(weights(wrapped), weights(run("grad_diff", context({"max_steps": 2}))))


class StopAt:
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, info: StepInfo) -> None:
        if info.step == self._step:
            os.kill(os.getpid(), signal.SIGINT)

    def on_probe(self, step: int, values: Mapping[str, float]) -> None: ...


@pytest.mark.parametrize("name", WRAPPERS)
def test_interrupted_and_resumed_equals_never_interrupted(
    name: str, context: Callable[..., MethodContext], tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    training = {"wrapper": wrapper(name), "max_steps": 4}
    whole = run("npo", context(training, folder=tmp_path / "whole"))
    with pytest.raises(Interrupted):
        run("npo", context(training, folder=tmp_path / "cut", callbacks=[StopAt(3)]))
    resumed = run("npo", context(training, folder=tmp_path / "cut", resume=True))
    assert same(weights(whole), weights(resumed))
    assert torch.equal(state, torch.get_rng_state())


def test_averaging_ends_with_the_mean_of_the_weights_along_the_run(context: Callable[..., MethodContext]) -> None:
    constant = {"schedule": "constant", "warmup_ratio": 0.0}
    ends = [weights(run("npo", context({**constant, "max_steps": n}))) for n in (2, 3, 4)]
    settings = {"name": "weight_averaging", "start": 2, "every": 1}
    averaged = weights(run("npo", context({**constant, "max_steps": 4, "wrapper": settings})))
    for key, value in averaged.items():
        torch.testing.assert_close(value, torch.stack([end[key] for end in ends]).mean(0), atol=1e-7, rtol=1e-6)
    with pytest.raises(RecipeError, match=r"training\.wrapper\.start.*after the last of 4 steps"):
        run("npo", context({"wrapper": {"name": "weight_averaging"}}))


def test_the_latent_attack_raises_the_forget_loss_and_spares_the_retain_rows(
    context: Callable[..., MethodContext],
) -> None:
    given = context({})
    rule = build_rule(WrapperConfig(name="lat", iterations=4, rate=0.2, radius=0.5), given.model, steps=1)
    seen: list[dict[str, float]] = []
    config = parse_method({"name": "npo"})
    method = get_method("npo")
    assert isinstance(method, GradientMethod)
    forget = encode_forget(config, given)  # type: ignore[arg-type]
    retain = [row.encoded for row in given.encoder.encode_many(given.splits.retain, where="retain")]
    parts = Parts(method.term(config, given, forget), retain)
    task = method.task(config, given, parts, ReferenceCache("x"))
    task.prepare(given.model)
    groups = task.steps(0)[0]
    scorer, counts = Scorer(given.model), Counts.of(groups)

    def backward(wanted: Any) -> dict[str, float]:
        values: dict[str, float] = {}
        for chunk in (groups[:1], groups[1:]):
            found = task.losses(scorer, MicroBatch.of(chunk, given.pad_id, torch.device("cpu")), counts)
            torch.stack([value for key, value in found.items() if key in wanted]).sum().backward()
            for key, value in found.items():
                values[key] = values.get(key, 0.0) + float(value.detach())
        seen.append(values)
        return values

    start = weights(given.model)
    reported = rule.gradients(backward, list(given.model.parameters()), step=0)
    under_attack = [values["forget"] for values in seen[:-1]]
    assert len(under_attack) == 5
    assert all(later > earlier for earlier, later in pairwise(under_attack))
    assert reported["forget"] == under_attack[-1]
    assert {round(values["retain"], 6) for values in seen} == {round(seen[0]["retain"], 6)}
    assert same(start, weights(given.model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in given.model.modules())


def test_the_latent_attack_is_the_same_where_activations_are_recomputed(context: Callable[..., MethodContext]) -> None:
    training = {"wrapper": wrapper("lat"), "max_steps": 2, "optimizer": {"eps": 1.0}, "micro_batch_size": 2}
    plain = weights(run("npo", context(training)))
    again = weights(run("npo", context({**training, "gradient_checkpointing": True})))
    for key in plain:
        torch.testing.assert_close(plain[key], again[key], atol=2e-8, rtol=1e-6)
    with pytest.raises(RecipeError, match=r"training\.wrapper\.layer.*Use 0 to 1"):
        run("npo", context({"wrapper": {"name": "lat", "layer": 2}}))


@pytest.mark.parametrize("name", ["gru", "blur"])
def test_surgery_is_refused_where_a_step_lacks_a_term(name: str, context: Callable[..., MethodContext]) -> None:
    with pytest.raises(RecipeError, match=r"training\.wrapper\.name: .* no retain term"):
        run("ga", context({"wrapper": {"name": name}}))
    with pytest.raises(RecipeError, match=r"training\.wrapper\.name: .* no forget term"):
        run("scrub", context({"wrapper": {"name": name}}))
    assert "gru and blur" in get_method("scrub").card.notes


@pytest.mark.parametrize("name", ["sam", "randomised_smoothing", *PENALTIES])
def test_what_16_bit_arithmetic_would_round_away_is_refused(name: str, context: Callable[..., MethodContext]) -> None:
    with pytest.raises(RecipeError, match=r"training\.precision: .*fp32"):
        run("npo", context({"wrapper": wrapper(name), "precision": "bf16"}))


def test_sam_moves_no_masked_weight(context: Callable[..., MethodContext]) -> None:
    given = context({"wrapper": wrapper("sam"), "mask": {"kind": "random", "ratio": 0.3}})
    start = weights(given.model)
    end = weights(run("npo", given))
    moved = sum(int((end[key] != start[key]).sum()) for key in start) / sum(p.numel() for p in start.values())
    assert 0.1 < moved <= 0.3


OBJECTIVES = [name for name, method in methods().items() if isinstance(method, GradientMethod)]
#: Smaller than the defaults where these would only cost time.
QUICK: dict[str, dict[str, Any]] = {"altpo": {"alternatives": 1, "max_new_tokens": 8}, "yao": {"mismatches": 1}}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_goes_with_every_optimiser_under_sam_and_rewinding(
    name: str, context: Callable[..., MethodContext], archive: Archive, encoder: Encoder, tmp_path: Path
) -> None:
    splits = archive.splits()
    few = Splits(splits.forget[:2], splits.retain[:4], splits.holdout[:2])
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "lora": {"lora": LoraSettings(r=2)},
        "wagle": {"mask": {"kind": "wagle", "ratio": 0.4, "examples": 2}},
    }
    for number, (optimizer, kind) in enumerate(product(OPTIMIZERS, kinds)):
        training = {
            "epochs": 1, "max_steps": 1, "batch_size": 2, "optimizer": {"name": optimizer}, "wrapper": {"name": "sam"},
            "stop": {"rule": "rewind"}, **kinds[kind],
        }  # fmt: skip
        given = context(training, splits=few, folder=tmp_path / str(number))
        outcome = get_method(name).run(parse_method({"name": name, **QUICK.get(name, {})}), given)
        where = f"{name} + {optimizer} + {kind}"
        assert all(bool(torch.isfinite(p).all()) for p in outcome.model.parameters()), where
        assert outcome.training.notes["rewind"]["step"] == 1, where
        assert json.loads((given.folder / "metrics.jsonl").read_text().splitlines()[-1])["probe"]["rewind.step"] == 1
