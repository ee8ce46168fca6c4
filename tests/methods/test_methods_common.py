# SPDX-License-Identifier: Apache-2.0
"""The suite every registered method passes unchanged. A new method needs no test of its own to be held to it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge.claims import ClaimKind, lint
from expunge.data.encoding import Encoder
from expunge.data.examples import Example, Splits
from expunge.data.fictitious import Archive
from expunge.errors import Interrupted, RecipeError
from expunge.methods.base import Method, MethodContext
from expunge.methods.registry import method_cards, methods, parse_method
from expunge.models.adapters import LoraSettings, is_lora
from expunge.models.digests import model_digest
from expunge.models.loading import load_model, save_model
from expunge.signals.likelihood import score
from expunge.training.callbacks import StepInfo
from expunge.training.config import TrainingConfig

ALL = methods()
LEARNING_RATE = 1e-3


class Setting:
    """Everything a context needs, with the few things a test changes."""

    def __init__(self, archive: Archive, encoder: Encoder, fresh: Callable[[], nn.Module]) -> None:
        self.splits, self.encoder, self.fresh = archive.splits("forget10"), encoder, fresh
        self.retain_training = archive.training_examples("retain90")

    def context(self, model: nn.Module, training: dict[str, Any] | None = None, **changes: Any) -> MethodContext:
        settings = {"learning_rate": LEARNING_RATE, "epochs": 2, "batch_size": 4, **(training or {})}
        values: dict[str, Any] = {
            "model": model, "encoder": self.encoder, "splits": self.splits, "training": TrainingConfig(**settings),
            "seed": 0, "pad_id": self.encoder.pad_id, "model_digest": model_digest(model), "load_base": self.fresh,
        }  # fmt: skip
        return MethodContext(**(values | changes))

    def probability(self, model: nn.Module, examples: Sequence[Example]) -> float:
        rows = [row.encoded for row in self.encoder.encode_many(examples, where="test")]
        scores = score(model, rows, pad_id=self.encoder.pad_id, stats=False)
        return float(np.mean([np.exp(entry.logp.mean()) for entry in scores]))


@pytest.fixture(scope="module")
def setting(archive: Archive, encoder: Encoder, fresh: Callable[[], nn.Module]) -> Setting:
    return Setting(archive, encoder, fresh)


def run(method: Method, context: MethodContext, **settings: Any) -> nn.Module:
    config = parse_method({"name": method.card.name, **settings})
    return method.run(config, context).model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(params=sorted(ALL))
def method(request: pytest.FixtureRequest) -> Method:
    return ALL[request.param]


def test_card_is_complete_and_says_nothing_forbidden(method: Method) -> None:
    card = method.card
    assert method.Config.model_fields["name"].default == card.name
    assert card.paper
    assert card.formula
    assert card.provenance
    assert card.cost
    assert card.claim in set(ClaimKind)
    assert set(card.needs) <= {"forget", "retain", "holdout", "reference", "base_model"}
    assert not lint(" ".join(str(value) for value in card.to_dict().values()))
    TrainingConfig(**method.training_defaults)


def test_same_seed_gives_the_same_bytes_and_leaves_global_randomness_alone(
    method: Method, setting: Setting, target: nn.Module
) -> None:
    other = copy.deepcopy(target)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes())  # type: ignore[union-attr, index]
    first = run(method, setting.context(target))
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes())  # type: ignore[union-attr, index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(99)
    assert same(weights(first), weights(run(method, setting.context(other))))


def test_forget_likelihood_falls_and_retain_loss_stays_bounded(
    method: Method, setting: Setting, target: nn.Module
) -> None:
    before = setting.probability(target, setting.splits.forget)
    retained = setting.probability(target, setting.splits.retain)
    training: dict[str, Any] = {"epochs": 5}
    if method.card.claim == ClaimKind.EXACT:
        training = {"epochs": 14, "learning_rate": 4e-3, "batch_size": 16}
    splits = setting.splits
    if method.card.claim == ClaimKind.EXACT:
        splits = Splits(splits.forget, setting.retain_training)
    model = run(method, setting.context(target, training, splits=splits))
    assert setting.probability(model, setting.splits.forget) < 0.9 * before
    if method.Config.model_fields.get("retain") is not None and "retain" in method.card.needs:
        assert setting.probability(model, setting.splits.retain) > 0.4 * retained


def test_only_declared_parameters_change(method: Method, setting: Setting, target: nn.Module) -> None:
    start = weights(setting.fresh() if method.card.claim == ClaimKind.EXACT else target)
    training = {"trainable": [r"layers\.1\.mlp"]}
    end = weights(run(method, setting.context(target, training)))
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {name for name in start if "layers.1.mlp" in name}


def test_lora_changes_only_its_adapter_and_loads_again(
    method: Method, setting: Setting, target: nn.Module, tmp_path: Path
) -> None:
    start = weights(setting.fresh() if method.card.claim == ClaimKind.EXACT else target)
    model = run(method, setting.context(target, {"lora": LoraSettings(r=2)}))
    assert is_lora(model)
    base = {name: p for name, p in weights(model).items() if "lora_" not in name}
    assert len(base) == len(start)
    assert all(torch.equal(p, q) for p, q in zip(base.values(), start.values(), strict=True))
    assert any(bool(p.abs().sum() > 0) for name, p in weights(model).items() if "lora_B" in name)


def test_four_rows_at_once_equal_four_accumulated(method: Method, setting: Setting, target: nn.Module) -> None:
    other = copy.deepcopy(target)
    # Plain gradient steps: Adam would turn rounding noise on zero gradients into full steps.
    training = {"max_steps": 1, "learning_rate": 1e-4, "optimizer": {"eps": 1.0}}
    whole = weights(run(method, setting.context(target, {**training, "micro_batch_size": 4})))
    split = weights(run(method, setting.context(other, {**training, "micro_batch_size": 1})))
    for name in whole:
        torch.testing.assert_close(whole[name], split[name], atol=2e-8, rtol=1e-6)


def test_saved_and_loaded_gives_the_same_logits(
    method: Method, setting: Setting, target: nn.Module, tmp_path: Path
) -> None:
    model = run(method, setting.context(target))
    save_model(model, setting.encoder.tokenizer, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    ids = torch.tensor([setting.encoder.prompt_ids(setting.splits.forget[0])])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, loaded.model(ids).logits)
    assert loaded.tokenizer.get_vocab() == setting.encoder.tokenizer.get_vocab()


class _StopAt:
    """Interrupts a run from outside, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, info: StepInfo) -> None:
        import os
        import signal

        if info.step == self._step:
            os.kill(os.getpid(), signal.SIGINT)

    def on_probe(self, step: int, values: Any) -> None:
        pass


def test_interrupted_and_resumed_equals_never_interrupted(
    method: Method, setting: Setting, target: nn.Module, tmp_path: Path
) -> None:
    start, again = copy.deepcopy(target), copy.deepcopy(target)
    training = {"epochs": 3, "max_steps": 5}
    whole = weights(run(method, setting.context(target, training, folder=tmp_path / "whole")))
    with pytest.raises(Interrupted, match="after step 3"):
        run(method, setting.context(start, training, folder=tmp_path / "cut", callbacks=[_StopAt(3)]))
    resumed = run(method, setting.context(again, training, folder=tmp_path / "cut", resume=True))
    assert same(whole, weights(resumed))
    lines = [path.joinpath("metrics.jsonl").read_text().splitlines() for path in (tmp_path / "whole", tmp_path / "cut")]
    assert len(lines[0]) == len(lines[1])


def test_missing_inputs_are_named(method: Method, setting: Setting, target: nn.Module) -> None:
    if "retain" in method.card.needs:
        with pytest.raises(RecipeError, match=r"data\.retain"):
            run(method, setting.context(target, splits=Splits(setting.splits.forget)))
    if "base_model" in method.card.needs:
        with pytest.raises(RecipeError, match=r"model\.base"):
            run(method, setting.context(target, load_base=None))


def test_unknown_names_and_keys_name_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'simnpo'"):
        parse_method({"name": "simpo"})
    with pytest.raises(RecipeError, match=r"method\.bta: no such key.*'beta'"):
        parse_method({"name": "npo", "bta": 0.1})
    with pytest.raises(RecipeError, match=r"method\.beta"):
        parse_method({"name": "npo", "beta": -1})
    assert [card.name for card in method_cards()] == sorted(ALL)
