# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every family that computes prompts together, and sequences that start alike."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from expunge.data.encoding import IGNORE, Encoded

SIZES: dict[str, Any] = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.5},
    "gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mixtral": {"num_local_experts": 4},
    "smollm3": {"no_rope_layers": [1, 0]},
}


def tiny(family: str, **settings: Any) -> nn.Module:
    """A random model of two layers whose weights are large enough to tell a wrong mask from a right one."""
    own = OWN.get(family, {})
    sizes = SIZES if "n_embd" not in own else {k: SIZES[k] for k in SIZES if k.endswith(("vocab_size", "token_id"))}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**sizes, **own, **settings})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model  # type: ignore[no-any-return]


def answers(seed: int = 0) -> list[Encoded]:
    """Prompts with several answers each, some of which start alike; a lone text; an answer that starts another."""
    draw = random.Random(seed)
    items = []

    def text(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 97) for _ in range(length))

    for length, branches in ((9, 5), (4, 3), (14, 1), (6, 4)):
        prompt, start = text(length), text(3)
        for branch in range(branches):
            answer = (*(start if branch % 2 else ()), *text(2 + 3 * branch))
            items.append(Encoded(prompt + answer, (IGNORE,) * length + answer, False))
    longest = items[4].ids
    items.append(Encoded(longest[:-2], (IGNORE,) * 9 + longest[9:-2], False))
    items.append(Encoded(longest, (IGNORE,) * 12 + longest[12:], False))  # the same ids, other labels
    lone = text(17)
    items.append(Encoded(lone, lone, False))
    draw.shuffle(items)
    return items
