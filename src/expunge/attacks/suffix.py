# SPDX-License-Identifier: Apache-2.0
"""Suffix search: tokens after the question, chosen by gradient, that make the answer likely; within a small budget.

Shape suffixes: B batch rows, T tokens, D hidden width, V vocabulary, S suffix tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.attacks.base import (
    BEFORE,
    REFERENCE,
    Attack,
    AttackCard,
    AttackConfig,
    AttackContext,
    AttackResult,
    Finding,
)
from expunge.attacks.compare import finding
from expunge.attacks.gauge import column_of
from expunge.audit.columns import Column
from expunge.audit.statistics import Floats
from expunge.data.batching import pad
from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.data.examples import Example
from expunge.errors import InputDataError
from expunge.signals.head import unwrap
from expunge.signals.likelihood import Scorer, TokenRequest, label_logp, score


class SuffixConfig(AttackConfig):
    """The budget of the search."""

    length: int = Field(8, ge=1, description="tokens of the suffix")
    steps: int = Field(16, ge=1, description="replacements tried in a row")
    top_k: int = Field(64, ge=1, description="tokens per place that the gradient proposes")
    candidates: int = Field(32, ge=1, description="replacements scored per step")
    optimised: int = Field(4, ge=1, description="questions that the suffix is chosen for")
    tested: int = Field(32, ge=1, description="further questions that it is tried on")


class Suffix(Attack):
    """Search one suffix per model on a few questions, and try it on others."""

    card = AttackCard(
        name="suffix",
        kind="suffix search",
        title="Suffix search",
        definition="Greedy coordinate gradient on the mean -log p(true answer) over a few forget questions: per step, "
        "tokens proposed by the gradient are tried at random places and the best kept. Probability of the answer with "
        "the suffix on those questions, and on others that the search never saw.",
        needs=("forget",),
        control="the retain-only reference under a suffix searched for it with the same budget; without one the same "
        "model without a suffix",
        cost="per model: steps x (3 F + candidates F) x optimised questions",
        source="Zou et al., Universal and Transferable Adversarial Attacks on Aligned Language Models, 2023, "
        "algorithm 1",
        known_failures=(
            "A small budget: a failed search says little.",
            "The attacker knows the answers of the questions the suffix is chosen for: only the others show knowledge.",
            "Tokens are inserted as ids; the suffix as text may be split into others.",
        ),
    )
    Config = SuffixConfig

    def run(self, config: SuffixConfig, context: AttackContext) -> AttackResult:
        """Search a suffix for every model."""
        chosen, tested = _questions(config, context)
        found = {s.name: _attack(config, context, s.load(), chosen, tested) for s in context.attacked()}
        findings = [f for s in context.subjects for f in _findings(context, s.name, found)]
        losses = {name: {"first": out.losses[0], "last": out.losses[-1]} for name, out in found.items()}
        return self.result(config, findings, notes={"loss": losses})


class Slot(NamedTuple):
    """One question with the place where its suffix goes."""

    example: Example
    item: Encoded
    place: int


class _Outcome(NamedTuple):
    values: dict[str, tuple[Column, Column]]
    losses: list[float]


def _findings(context: AttackContext, name: str, found: dict[str, _Outcome]) -> list[Finding]:
    out = []
    for setting, (after, before) in found[name].values.items():
        controls = {BEFORE: before}
        if REFERENCE in found:
            controls = {REFERENCE: found[REFERENCE].values[setting][0], **controls}
        out.append(finding(name, setting, "forget.probability", after, controls, context.audit))
    return out


def _questions(config: SuffixConfig, context: AttackContext) -> tuple[list[Slot], list[Slot]]:
    """Return the questions to search on and those to test on; of different subjects as far as it goes.

    Raises:
        InputDataError: if there is no question that has room for a suffix.
    """
    slots = suffix_slots(context.encoder, context.splits.forget, config.length)
    if not slots:
        raise InputDataError(
            "no question has room for a suffix", field="data.forget", remedy="Lower suffix.length, or leave it out"
        )
    order = np.random.default_rng([context.seed, 15485867]).permutation(len(slots)).tolist()
    chosen = [slots[i] for i in order[: config.optimised]]
    return chosen, [slots[i] for i in order[config.optimised : config.optimised + config.tested]]


def suffix_slots(encoder: Encoder, examples: Sequence[Example], length: int) -> list[Slot]:
    """Return the questions that have room for `length` more tokens, each with the place just after the question.

    What all prompts end with belongs to the template (or is a common last word): the suffix goes before it.
    """
    questions = [example for example in examples if example.kind != "text"]
    rows = [(example, encoder.encode(example), encoder.prompt_ids(example)) for example in questions]
    tail = _common_end([ids for _, _, ids in rows])
    return [
        Slot(example, item, item.label_start - tail)
        for example, item, _ in rows
        if len(item.ids) + length <= encoder.max_length and item.label_start > tail
    ]


def _common_end(prompts: Sequence[tuple[int, ...]]) -> int:
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts))
    return next((n for n in range(shortest) if len({ids[-1 - n] for ids in prompts}) > 1), shortest - 1)


def with_suffix(slot: Slot, suffix: Sequence[int]) -> Encoded:
    """Return the sequence with the suffix in its place; the labels stay on the answer."""
    ids, labels, place = slot.item.ids, slot.item.labels, slot.place
    return Encoded(
        (*ids[:place], *suffix, *ids[place:]), (*labels[:place], *[IGNORE] * len(suffix), *labels[place:]),
        slot.item.ends_with_eos,
    )  # fmt: skip


def _attack(
    config: SuffixConfig, context: AttackContext, model: PreTrainedModel, chosen: list[Slot], tested: list[Slot]
) -> _Outcome:
    suffix, losses = search_suffix(model, chosen, context.encoder, config, seed=context.seed)
    values = {}
    for setting, slots in (("questions searched on", chosen), ("other questions", tested)):
        if slots:
            values[setting] = (_probability(context, model, slots, suffix), _probability(context, model, slots, ()))
    return _Outcome(values, losses)


def _probability(
    context: AttackContext, model: PreTrainedModel, slots: Sequence[Slot], suffix: Sequence[int]
) -> Column:
    losses = _losses(model, [with_suffix(slot, suffix) for slot in slots], context.encoder.pad_id)
    return column_of([slot.example for slot in slots], np.exp([-loss for loss in losses]), "probability")


def search_suffix(
    model: PreTrainedModel, slots: Sequence[Slot], encoder: Encoder, config: SuffixConfig, *, seed: int
) -> tuple[tuple[int, ...], list[float]]:
    """Return the best suffix found and the loss at the start and after each step, which never rises.

    Args:
        model: the model attacked.
        slots: questions that the suffix is chosen for.
        encoder: its tokenizer; special tokens are never proposed.
        config: the budget.
        seed: of a private generator.
    """
    rng = np.random.default_rng([seed, 32452843])
    special = set(encoder.tokenizer.all_special_ids)
    allowed = np.array([i for i in range(len(encoder.tokenizer)) if i not in special])
    suffix = tuple(rng.choice(allowed, config.length).tolist())
    loss = _mean_loss(model, slots, [suffix], encoder.pad_id)[0]
    losses = [loss]
    for _ in range(config.steps):
        slope_SV = suffix_gradient(model, slots, suffix, encoder.pad_id)[:, allowed]
        best_SK = allowed[np.argsort(slope_SV, axis=1, kind="stable")[:, : config.top_k]]
        tries = []
        for _ in range(config.candidates):
            place = int(rng.integers(config.length))
            token = int(rng.choice(best_SK[place]))
            tries.append((*suffix[:place], token, *suffix[place + 1 :]))
        found = _mean_loss(model, slots, tries, encoder.pad_id)
        best = int(np.argmin(found))
        if found[best] < loss:
            suffix, loss = tries[best], found[best]
        losses.append(loss)
    return suffix, losses


def suffix_gradient(model: PreTrainedModel, slots: Sequence[Slot], suffix: Sequence[int], pad_id: int) -> Floats:
    """Return the slope of the mean loss along every token at every place of the suffix, float64 [S, V].

    It is the gradient with respect to the one-hot coding of the suffix, through the input embedding.
    """
    batch = pad([with_suffix(slot, suffix) for slot in slots], pad_id).to(next(model.parameters()).device)
    embedding = unwrap(model).get_input_embeddings()
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_(True))
        return kept[0]

    model.eval()
    handle = embedding.register_forward_hook(keep)
    try:
        rows = torch.arange(len(slots), device=batch.input_ids.device)
        request = TokenRequest(label_logp, rows)
        with torch.enable_grad():
            answer = Scorer(model)(batch.input_ids, batch.attention_mask, batch.labels, [request])[0]
            loss = -(answer.row_sums() / answer.lengths).mean()
            (slope_BTD,) = torch.autograd.grad(loss, kept)
    finally:
        handle.remove()
    places = [slope_BTD[b, slot.place : slot.place + len(suffix)] for b, slot in enumerate(slots)]
    slope_SD = torch.stack(places).sum(0).float()
    weight_VD: Tensor = embedding.weight.detach().float()
    return np.asarray((slope_SD @ weight_VD.T).double().cpu().numpy(), dtype=np.float64)


def _mean_loss(
    model: PreTrainedModel, slots: Sequence[Slot], suffixes: Sequence[Sequence[int]], pad_id: int
) -> list[float]:
    """Return the mean loss over the questions under each suffix, nats per token."""
    losses = _losses(model, [with_suffix(slot, suffix) for suffix in suffixes for slot in slots], pad_id)
    return [float(row.mean()) for row in np.array(losses).reshape(len(suffixes), len(slots))]


def _losses(model: PreTrainedModel, items: Sequence[Encoded], pad_id: int) -> list[float]:
    scores = score(model, items, pad_id=pad_id, stats=False)
    return [-float(found.logp.astype(np.float64).mean()) for found in scores]
