# SPDX-License-Identifier: Apache-2.0
"""Blocks that stand still run once: which they are, that nothing changes, and that a resumed run stores the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import expunge.training.loop as loop_module
from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.errors import Interrupted
from expunge.methods.base import MethodContext
from expunge.methods.registry import methods, parse_method
from expunge.models.tiny import build_llama
from expunge.signals.head import decoder_blocks
from expunge.training.config import TrainingConfig
from expunge.training.prefix import first_moving_block

UPPER = ("layers.2",)


@pytest.fixture
def deep(encoder: Encoder) -> Callable[[], nn.Module]:
    return lambda: build_llama(len(encoder.tokenizer), hidden_size=32, layers=3, heads=2, context=128, seed=0)


@pytest.fixture
def unlearn(archive: Archive, encoder: Encoder, deep: Callable[[], nn.Module]) -> Callable[..., Any]:
    """Runs a method on three blocks and returns its model and how often the first block ran."""

    def go(
        name: str = "npo", folder: Path | None = None, *, resume: bool = False, callbacks: Any = (), **settings: Any
    ) -> tuple[nn.Module, int]:
        training = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 4, "trainable": UPPER, **settings}
        splits, model, ran = archive.splits(), deep(), list[int]()
        decoder_blocks(model)[0].mlp.register_forward_hook(lambda *_: ran.append(1))  # type: ignore[union-attr, operator]
        context = MethodContext(
            model=model, encoder=encoder, splits=Splits(splits.forget[:6], splits.retain[:9]), seed=0,
            training=TrainingConfig(**training), pad_id=encoder.pad_id, folder=folder, resume=resume,
            callbacks=callbacks,
        )  # fmt: skip
        config = {"name": name, "retain": "kl"} if name == "grad_diff" else {"name": name}
        return methods()[name].run(parse_method(config), context).model, len(ran)

    return go


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def test_the_lowest_block_that_moves(deep: Callable[[], nn.Module]) -> None:
    def first(*moving: str, **settings: Any) -> int:
        model = deep()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in moving))
        return first_moving_block(model, TrainingConfig(**settings))

    assert first("layers.1.mlp", "layers.2") == 1
    assert first("layers.0", "layers.2") == 0
    assert first("model.norm") == 3
    assert first("embed_tokens", "layers.2") == 0
    assert first("layers.2", dropout=True) == 0
    assert first("layers.2", wrapper={"name": "lat"}) == 0


def test_unknown_architectures_run_every_block() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    model = Gemma2ForCausalLM(Gemma2Config(**size, num_attention_heads=2, num_key_value_heads=1))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    assert first_moving_block(model, TrainingConfig()) == 0


@pytest.mark.parametrize("trainable", [UPPER, ("model.norm",), ("layers.1.mlp.down_proj", "layers.2.self_attn")])
@pytest.mark.parametrize("name", ["npo", "grad_diff"])
def test_the_weights_are_those_of_a_run_through_every_block(
    name: str, trainable: tuple[str, ...], unlearn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, few = unlearn(name, trainable=trainable, optimizer={"eps": 1e-3})
    monkeypatch.setattr(loop_module, "first_moving_block", lambda *_: 0)
    plain, many = unlearn(name, trainable=trainable, optimizer={"eps": 1e-3})
    assert few <= 3 < many  # one batch for the reference answers of each kind, one for the stored states
    start = weights(plain)
    for key, value in weights(stored).items():
        torch.testing.assert_close(value, start[key], rtol=1e-4, atol=2e-6)


def test_nothing_below_gets_a_gradient(unlearn: Any) -> None:
    model, _ = unlearn()
    moved = [name for name, p in model.named_parameters() if p.grad is not None or p.requires_grad]
    assert moved
    assert all("layers.2" in name for name in moved)


class _StopAt:
    def on_step(self, info: Any) -> None:
        if info.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    def on_probe(self, step: int, values: Any) -> None: ...


@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_resumed_is_never_stopped_and_stores_nothing_twice(cache_mb: int, unlearn: Any, tmp_path: Path) -> None:
    whole, _ = unlearn(folder=tmp_path / "whole", cache_mb=cache_mb, save_every=1)
    with pytest.raises(Interrupted):
        unlearn(folder=tmp_path / "cut", cache_mb=cache_mb, save_every=1, callbacks=[_StopAt()])
    (file,) = (tmp_path / "cut" / "cache").glob("hidden-*")
    before = file.stat().st_mtime_ns
    rest, ran = unlearn(folder=tmp_path / "cut", cache_mb=cache_mb, save_every=1, resume=True)
    assert ran == 0  # neither reference answers nor states are computed again
    assert [path.name for path in (tmp_path / "cut" / "cache").glob("hidden-*")] == [file.name]
    assert file.stat().st_mtime_ns == before
    for key, value in weights(rest).items():
        assert torch.equal(value, weights(whole)[key])


def test_memory_or_mapped_file_changes_no_bit(unlearn: Any, tmp_path: Path) -> None:
    held, mapped, alone = (
        unlearn(folder=tmp_path / "a")[0], unlearn(folder=tmp_path / "b", cache_mb=0)[0], unlearn()[0],
    )  # fmt: skip
    for key, value in weights(held).items():
        assert torch.equal(value, weights(mapped)[key])
        assert torch.equal(value, weights(alone)[key])
