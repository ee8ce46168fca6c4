# SPDX-License-Identifier: Apache-2.0
"""Generation, greedy or sampled, batched by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from expunge.data.batching import length_buckets
from expunge.signals.head import unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Generation:
    """A continuation: its token ids without end-of-sequence, its text, and whether it ended by itself."""

    ids: tuple[int, ...]
    text: str
    finished: bool


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Continue every prompt greedily with at most `max_new_tokens` tokens.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; only decoding and the special ids are used.
        prompts: token ids of each prompt; none may be empty.
        max_new_tokens: the most tokens added to a prompt.
        batch_tokens: bounds rows * (prompt + new tokens) of one batch.
        progress: called with the number of prompts done after each batch.

    Returns:
        One `Generation` per prompt, in the order given.
    """
    return _continue(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens, progress=progress,
        decoding={"do_sample": False, "temperature": None, "top_p": None, "top_k": None},
    )  # fmt: skip


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Continue every prompt with at most `max_new_tokens` tokens drawn from the whole distribution.

    The same seed, prompts and batches give the same draws; torch's generators end as they were.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; only decoding and the special ids are used.
        prompts: token ids of each prompt; none may be empty.
        max_new_tokens: the most tokens added to a prompt.
        temperature: logits are divided by it; 1 is the model's own distribution.
        seed: of the draws.
        batch_tokens: bounds rows * (prompt + new tokens) of one batch.
        progress: called with the number of prompts done after each batch.

    Returns:
        One `Generation` per prompt, in the order given.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _continue(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens, progress=progress,
            decoding={"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0},
        )  # fmt: skip


def _continue(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_tokens: int,
    progress: Callable[[int], None] | None,
    decoding: dict[str, Any],
) -> list[Generation]:
    eos = cast(int, tokenizer.eos_token_id)
    pad_id = cast(int, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos)
    out: list[Generation | None] = [None] * len(prompts)
    base: Any = unwrap(model)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for bucket in length_buckets([len(p) + max_new_tokens for p in prompts], max_tokens=batch_tokens):
            ids_BT, mask_BT = _left_pad([prompts[i] for i in bucket], pad_id)
            with torch.inference_mode():
                produced = base.generate(
                    input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), **decoding,
                    max_new_tokens=max_new_tokens, pad_token_id=pad_id, eos_token_id=eos,
                )  # fmt: skip
            for i, row in zip(bucket, produced[:, ids_BT.shape[1] :].tolist(), strict=True):
                out[i] = _finish(row, eos, tokenizer)
            if progress is not None:
                progress(len(bucket))
    finally:
        model.train(was_training)
    return [entry for entry in out if entry is not None]


def _finish(row: list[int], eos: int, tokenizer: PreTrainedTokenizerBase) -> Generation:
    finished = eos in row
    ids = tuple(row[: row.index(eos)] if finished else row)
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    return Generation(ids, cast(str, text).strip(), finished)


def _left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for b, prompt in enumerate(prompts):
        ids[b, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[b, width - len(prompt) :] = 1
    return ids, mask
