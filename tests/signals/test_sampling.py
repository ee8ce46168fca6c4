# SPDX-License-Identifier: Apache-2.0
"""Sampled generation: private draws, the temperature, and greedy generation as its cold limit."""

from __future__ import annotations

import torch
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.signals.generation import generate, sample


def test_draws_are_private_and_repeat_with_the_seed(target: nn.Module, encoder: Encoder, archive: Archive) -> None:
    prompts = [encoder.prompt_ids(example) for example in archive.splits().forget[:4]] * 2
    torch.manual_seed(7)
    state = torch.get_rng_state()

    def drawn(seed: int) -> list[tuple[int, ...]]:
        found = sample(target, encoder.tokenizer, prompts, max_new_tokens=12, temperature=1.5, seed=seed)
        return [one.ids for one in found]

    first = drawn(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(8)
    assert drawn(0) == first
    assert drawn(1) != first
    # The same prompt twice in a batch gets draws of its own.
    assert first[:4] != first[4:]


def test_cold_samples_are_the_greedy_answers(target: nn.Module, encoder: Encoder, archive: Archive) -> None:
    prompts = [encoder.prompt_ids(example) for example in archive.splits().forget[:4]]
    cold = sample(target, encoder.tokenizer, prompts, max_new_tokens=12, temperature=1e-4, seed=0)
    greedy = generate(target, encoder.tokenizer, prompts, max_new_tokens=12)
    assert [one.ids for one in cold] == [one.ids for one in greedy]
