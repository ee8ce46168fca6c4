# SPDX-License-Identifier: Apache-2.0
"""The loop: schedules, clipping, stopping, divergence, logs, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.errors import TrainingDiverged
from expunge.signals.likelihood import Scorer
from expunge.training.checkpoint import checkpoints, load_checkpoint
from expunge.training.config import StopConfig, TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer
from expunge.training.precision import autocast_dtype, quiet_dropout
from expunge.training.schedule import learning_rate
from expunge.training.task import Counts, MicroBatch


@pytest.fixture
def task(archive: Archive, encoder: Encoder) -> FineTuneTask:
    rows = encoder.encode_many(archive.splits().retain, where="train")[:24]
    return FineTuneTask([row.encoded for row in rows], batch_size=8, seed=0)


def trainer(model: nn.Module, task: Any, folder: Path | None = None, **settings: Any) -> Trainer:
    probe = settings.pop("probe", None)
    config = TrainingConfig(**{"learning_rate": 1e-3, "epochs": 2, "batch_size": 8, **settings})
    return Trainer(model, task, config, pad_id=0, folder=folder, probe=probe)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    config = TrainingConfig(learning_rate=1.0, schedule=schedule, warmup_ratio=0.3)  # type: ignore[arg-type]
    assert [learning_rate(step, 6, config) for step in range(6)] == pytest.approx(expected)


def test_loss_falls_and_every_step_is_logged(
    fresh: Callable[[], nn.Module], task: FineTuneTask, tmp_path: Path
) -> None:
    result = trainer(fresh(), task, tmp_path, epochs=4, probe=lambda _: {"retain.probability": 0.5}).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13)) == list(range(1, result.steps + 1))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert {"lr", "grad_norm", "epoch", "seconds", "train"} <= set(steps[0])
    assert [line["step"] for line in lines if "probe" in line] == [0, 3, 6, 9, 12]
    assert len(checkpoints(tmp_path / "checkpoints")) == 1


def test_clipping_bounds_what_the_optimiser_sees(fresh: Callable[[], nn.Module], task: FineTuneTask) -> None:
    model = fresh()
    norms: list[float] = []

    class Log:
        def on_step(self, info: Any) -> None:
            clipped = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
            norms.append(float(clipped))
            assert info.grad_norm > 0.1  # before clipping

        def on_probe(self, step: int, values: Mapping[str, float]) -> None: ...

    config = TrainingConfig(learning_rate=1e-3, epochs=1, batch_size=8, max_grad_norm=0.1)
    Trainer(model, task, config, pad_id=0, callbacks=[Log()]).run()
    assert norms == pytest.approx([0.1] * 3, rel=1e-3)


class _Poisoned(FineTuneTask):
    """Turns the loss into NaN at one step."""

    def __init__(self, task: FineTuneTask, at: int) -> None:
        super().__init__(task._items, batch_size=8, seed=0)
        self._calls, self._at = 0, at

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, torch.Tensor]:
        self._calls += 1
        scale = float("nan") if self._calls == self._at else 1.0
        return {name: part * scale for name, part in super().losses(scorer, micro, counts).items()}


def test_nan_stops_the_run_at_the_last_good_checkpoint(
    fresh: Callable[[], nn.Module], task: FineTuneTask, tmp_path: Path
) -> None:
    model = fresh()
    with pytest.raises(TrainingDiverged, match=r"learning_rate: the loss became nan at step 6.*step-00000004"):
        trainer(model, _Poisoned(task, 6), tmp_path, save_every=2, epochs=4).run()
    good = fresh()
    trainer(good, task, tmp_path / "good", save_every=4, epochs=4, keep_checkpoints=9).run()
    load_checkpoint(tmp_path / "good/checkpoints/step-00000004", good, None)
    for a, b in zip(model.parameters(), good.parameters(), strict=True):
        assert torch.equal(a, b)
        assert bool(torch.isfinite(a).all())


def test_utility_drop_stops_early(fresh: Callable[[], nn.Module], task: FineTuneTask, tmp_path: Path) -> None:
    falling: Iterator[float] = iter([0.8, 0.79, 0.6, 0.5])
    stop = StopConfig(rule="utility_drop", max_drop=0.1)
    result = trainer(
        fresh(), task, tmp_path, epochs=9, stop=stop, probe=lambda _: {"retain.probability": next(falling)}
    ).run()
    assert result.steps == 6
    assert "fell from 0.8000 to 0.6000" in result.stopped


def test_max_steps_ends_within_an_epoch(fresh: Callable[[], nn.Module], task: FineTuneTask) -> None:
    assert trainer(fresh(), task, max_steps=2).run().steps == 2


def test_gradient_checkpointing_changes_nothing(fresh: Callable[[], nn.Module], task: FineTuneTask) -> None:
    plain, saved = fresh(), fresh()
    steady = {"max_steps": 2, "optimizer": {"eps": 1e-4}}  # a smaller one would make steps of rounding
    trainer(plain, task, **steady).run()
    trainer(saved, task, gradient_checkpointing=True, **steady).run()
    for a, b in zip(plain.parameters(), saved.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_bfloat16_autocast_keeps_float32_masters(fresh: Callable[[], nn.Module], task: FineTuneTask) -> None:
    model = fresh()
    result = trainer(model, task, precision="bf16", epochs=3).run()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert result.losses["train"] < 6.0
    assert autocast_dtype("auto", torch.device("cpu")) is None
    assert autocast_dtype("bf16", torch.device("cpu")) is torch.bfloat16
    assert autocast_dtype("pure_bf16", torch.device("cpu")) is None


def test_dropout_is_off_while_training_and_back_afterwards() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    ids = torch.tensor([[1, 2, 3, 4]])
    with quiet_dropout(model, keep=False):
        assert model.training
        assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    with quiet_dropout(model, keep=True):
        assert not torch.equal(model(ids).logits, model(ids).logits)
