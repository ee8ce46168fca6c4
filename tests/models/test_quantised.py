# SPDX-License-Identifier: Apache-2.0
"""An adapter over weights in 8 or 4 bits: its gradients are those over the same weights written out in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.data.batching import pad
from expunge.data.encoding import Encoded, Encoder
from expunge.data.fictitious import Archive
from expunge.models.adapters import LoraSettings, add_lora
from expunge.models.loading import load_model, save_model
from expunge.signals.head import unwrap
from expunge.signals.likelihood import Scorer, TokenRequest, label_logp
from expunge.signals.packing import packed

bitsandbytes = pytest.importorskip("bitsandbytes")


def written_out(layer: Any) -> Tensor:
    weight = layer.weight
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        found: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return found.float()
    scale_O = layer.state.SCB if weight.SCB is None else weight.SCB
    return weight.data.float() * scale_O[:, None] / 127


def gradient(model: Any, items: list[Encoded]) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = add_lora(model, LoraSettings(r=4)).train()
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.05)
    batch = pad(items, 0)
    with packed(unwrap(adapted)):
        request = TokenRequest(label_logp, torch.arange(len(items)))
        scorer = Scorer(adapted, only_read=True)
        scorer(batch.input_ids, batch.attention_mask, batch.labels, [request])[0].values.sum().backward()
    return torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None])


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_gradients_are_those_over_the_weights_written_out(
    bits: str, target: Any, encoder: Encoder, archive: Archive, tmp_path: Path
) -> None:
    save_model(target, encoder.tokenizer, tmp_path / "m")
    held, plain = load_model(tmp_path / "m", quantised=bits).model, load_model(tmp_path / "m").model
    layers = {name: m for name, m in held.named_modules() if type(m) is not nn.Linear and isinstance(m, nn.Linear)}
    assert len(layers) == 14  # seven in each of two blocks; the head stays as it is
    for name, layer in layers.items():
        plain.get_submodule(name).weight.data = written_out(layer)
    items = [row.encoded for row in encoder.encode_many(archive.splits().forget[:4], where="forget")]
    expected = gradient(plain, items)
    torch.testing.assert_close(gradient(held, items), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
