# SPDX-License-Identifier: Apache-2.0
"""Generation, greedy or sampled: one text per prompt, as early as it ends, in batches that rows enter and leave.

Models that keep keys and values of every layer are decoded by `continuous`; others (recurrent, encoder-decoder, past
their attention window, with generation settings of their own: see `fitness.obstacle`) by transformers' `generate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.batching import length_buckets
from expunge.signals.continuous import Row, decode
from expunge.signals.fitness import obstacle
from expunge.signals.head import unwrap
from expunge.signals.stopping import Generation, StopStrings, Watch, generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int], None]
"""Told how many more prompts are done."""


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop: Sequence[Sequence[str]] = (),
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> list[Generation]:
    """Continue every prompt greedily with at most `max_new_tokens` tokens.

    A prompt given twice with the same limit and stop strings is continued once.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; only decoding and the special ids are used.
        prompts: token ids of each prompt; none may be empty.
        max_new_tokens: the most tokens added to a prompt, one number for all or one for each.
        stop: strings for each prompt, or none at all: a continuation ends with the token after which the text before
            the first of them is known. The text is not cut; see `stopping.cut_before`.
        batch_tokens: bounds rows * (prompt + new tokens) of one batch.
        progress: told how many more prompts are done, after every step in which some were.

    Returns:
        One `Generation` per prompt, in the order given.

    Raises:
        ValueError: if a prompt is empty, a limit is below 1, or there is not one limit or stop per prompt.
    """
    limits, stops = _per_prompt(prompts, max_new_tokens, stop)
    wanted = [(tuple(p), limit, tuple(words)) for p, limit, words in zip(prompts, limits, stops, strict=True)]
    times = Counter(wanted)
    strings = {words: StopStrings(tokenizer, words) for words in dict.fromkeys(stops) if words}
    rows = {key: Row(key[0], key[1], Watch(strings[key[2]]) if key[2] else None) for key in times}
    counts = {id(rows[key]): count for key, count in times.items()}

    def told(ended: Sequence[Row]) -> None:
        if progress is not None:
            progress(sum(counts[id(row)] for row in ended))

    _run(model, tokenizer, list(rows.values()), batch_tokens=batch_tokens, temperature=None, told=told)
    found = {key: generation(tokenizer, row.ids, finished=row.finished) for key, row in rows.items()}
    return [found[key] for key in wanted]


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    temperature: float,
    seed: int,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> list[Generation]:
    """Continue every prompt with at most `max_new_tokens` tokens drawn from the whole distribution.

    Every prompt has a generator of its own, made of the seed and its place in `prompts`: neither the other prompts nor
    `batch_tokens` change its draws, beyond what the rounding of logits does. Models left to transformers (see above)
    draw batch by batch instead. torch's generators end as they were.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; only decoding and the special ids are used.
        prompts: token ids of each prompt; none may be empty.
        max_new_tokens: the most tokens added to a prompt, one number for all or one for each.
        temperature: logits are divided by it; 1 is the model's own distribution.
        seed: of the draws, not negative.
        batch_tokens: bounds rows * (prompt + new tokens) of one batch.
        progress: told how many more prompts are done, after every step in which some were.

    Returns:
        One `Generation` per prompt, in the order given.

    Raises:
        ValueError: if a prompt is empty, a limit is below 1, or there is not one limit per prompt.
    """
    limits, _ = _per_prompt(prompts, max_new_tokens, ())
    draws = [np.random.default_rng([seed, i]).random(limit) for i, limit in enumerate(limits)]
    rows = [Row(tuple(p), limit, draws=u) for p, limit, u in zip(prompts, limits, draws, strict=True)]

    def told(ended: Sequence[Row]) -> None:
        if progress is not None:
            progress(len(ended))

    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        _run(model, tokenizer, rows, batch_tokens=batch_tokens, temperature=temperature, told=told)
    return [generation(tokenizer, row.ids, finished=row.finished) for row in rows]


def _per_prompt(
    prompts: Sequence[Sequence[int]], limit: int | Sequence[int], stop: Sequence[Sequence[str]]
) -> tuple[list[int], list[tuple[str, ...]]]:
    limits = [limit] * len(prompts) if isinstance(limit, int) else list(limit)
    stops: list[tuple[str, ...]] = [tuple(words) for words in stop] or [()] * len(prompts)
    if not len(prompts) == len(limits) == len(stops):
        raise ValueError(f"{len(prompts)} prompts, {len(limits)} limits and {len(stops)} stops do not go together")
    if not all(map(len, prompts)) or min(limits, default=1) < 1:
        raise ValueError("a prompt holds no token, or may get none")
    return limits, stops


def _run(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    batch_tokens: int,
    temperature: float | None,
    told: Callable[[Sequence[Row]], None],
) -> None:
    """Continue the rows, in eval mode."""
    if not rows:
        return
    base = unwrap(model)
    eos = cast(int, tokenizer.eos_token_id)
    pad_id = cast(int, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos)
    was_training = model.training
    model.eval()
    try:
        if obstacle(base, max(row.need for row in rows)):
            _by_transformers(base, rows, eos, pad_id, batch_tokens=batch_tokens, temperature=temperature, told=told)
        else:
            decode(base, rows, eos=eos, batch_tokens=batch_tokens, temperature=temperature, progress=told)
    finally:
        model.train(was_training)


def _by_transformers(
    base: Any,
    rows: Sequence[Row],
    eos: int,
    pad_id: int,
    *,
    batch_tokens: int,
    temperature: float | None,
    told: Callable[[Sequence[Row]], None],
) -> None:
    """Continue rows batch by batch, each batch until its last row ends."""
    greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    drawn = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    for bucket in length_buckets([row.need + 1 for row in rows], max_tokens=batch_tokens):
        batch = [rows[i] for i in bucket]
        ids_BT, mask_BT = _left_pad([row.prompt for row in batch], pad_id)
        with torch.inference_mode():
            produced = base.generate(
                input_ids=ids_BT.to(base.device), attention_mask=mask_BT.to(base.device),
                max_new_tokens=max(row.limit for row in batch), pad_token_id=pad_id, eos_token_id=eos,
                **(greedy if temperature is None else drawn),
            )  # fmt: skip
        for row, tokens in zip(batch, produced[:, ids_BT.shape[1] :].tolist(), strict=True):
            any(row.take(token, eos) for token in tokens)
        told(batch)


def _left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for b, prompt in enumerate(prompts):
        ids[b, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[b, width - len(prompt) :] = 1
    return ids, mask
