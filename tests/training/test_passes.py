# SPDX-License-Identifier: Apache-2.0
"""Recomputed activations and compiled blocks give the numbers of a plain run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encoding import Encoded, Encoder
from expunge.data.fictitious import Archive
from expunge.models.tiny import build_llama
from expunge.signals.head import body, decoder_blocks
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer
from expunge.training.passes import recompute_activations
from expunge.training.step import CPU_TOKENS, split_groups
from expunge.training.task import Row


@pytest.fixture
def items(archive: Archive, encoder: Encoder) -> list[Encoded]:
    return [row.encoded for row in encoder.encode_many(archive.splits().retain, where="train")[:12]]


def deep(encoder: Encoder) -> nn.Module:
    return build_llama(len(encoder.tokenizer), hidden_size=32, layers=3, heads=2, context=128, seed=0)


def trained(encoder: Encoder, items: list[Encoded], **settings: Any) -> dict[str, torch.Tensor]:
    model = deep(encoder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(settings.get("moving", "") in name)
    settings.pop("moving", None)
    values = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 6, "optimizer": {"eps": 1e-3}, **settings}
    Trainer(model, FineTuneTask(items, batch_size=6, seed=0), TrainingConfig(**values), pad_id=0).run()
    return {name: p.detach() for name, p in model.named_parameters()}


def test_recomputing_warns_of_nothing_and_leaves_lower_blocks_without_a_graph(
    encoder: Encoder, items: list[Encoded]
) -> None:
    model, graphs = deep(encoder).train(), []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.2" in name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recompute_activations(model)
    for block in decoder_blocks(model):
        block.register_forward_hook(lambda _m, _a, out: graphs.append(out.requires_grad))
    ids = torch.tensor([items[0].ids])
    body(model, ids, torch.ones_like(ids)).sum().backward()  # type: ignore[no-untyped-call]
    assert graphs[:3] == [False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("moving", ["", "layers.2"])
def test_compiled_blocks_give_the_same_weights(encoder: Encoder, items: list[Encoded], moving: str) -> None:
    plain, compiled = (trained(encoder, items, moving=moving, compile=flag) for flag in (False, True))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=2e-6)


def test_a_step_is_split_by_tokens_on_a_cpu(make_group: Callable[[int], list[Row]]) -> None:
    groups = [make_group(n) for n in (500, 250, 200, 568, 900, 20)]

    def sizes(device: str, **settings: Any) -> list[int]:
        pieces = split_groups(groups, TrainingConfig(batch_size=6, **settings), torch.device(device))
        assert [group for piece in pieces for group in piece] == groups
        return [len(piece) for piece in pieces]

    assert CPU_TOKENS == 768
    assert sizes("cpu") == [2, 2, 1, 1]  # 750, 768, one that is longer alone, 20
    assert sizes("meta") == [6]
    assert sizes("cpu", micro_batch_size=4) == [4, 2]


@pytest.fixture
def make_group() -> Callable[[int], list[Row]]:
    def make(tokens: int) -> list[Row]:
        return [Row(Encoded((1,) * tokens, (1,) * tokens, False), "forget", tokens)]

    return make
