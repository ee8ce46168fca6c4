# SPDX-License-Identifier: Apache-2.0
"""Teachers to distil from, read once and never kept as a second model, and the task of following them.

Shape suffixes: N labelled tokens of one role, D hidden width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.data.sampling import PairedSampler
from expunge.objectives.reduction import Reduction, reduce_tokens
from expunge.objectives.targets import distillation_kl
from expunge.signals.head import Head, TokenFunction, unwrap
from expunge.signals.likelihood import Scorer, TokenRequest
from expunge.signals.reference import ReferenceCache
from expunge.training.task import Counts, Group, MicroBatch, Row


class Teacher(ABC):
    """Gives logits to compare the model's with."""

    @abstractmethod
    def prepare(self, model: nn.Module, items: Sequence[Encoded], *, pad_id: int) -> None:
        """Get ready to teach on `items`; `model` is the model before it changes."""

    @abstractmethod
    def request(self, function: TokenFunction, micro: MicroBatch, role: str) -> TokenRequest:
        """Return a request whose function is called with the model's logits, the labels and the teacher's logits."""


class ModelTeacher(Teacher):
    """A model's own answers: its last hidden states are cached, and its head is kept.

    Args:
        cache: where the hidden states are kept; its digest must name this teacher.
        load: loads the teacher for the time of one pass; None takes the model as it is when `prepare` is first called.
    """

    def __init__(self, cache: ReferenceCache, load: Callable[[], nn.Module] | None = None) -> None:
        self._cache, self._load = cache, load
        self._head: nn.Module | None = None

    def prepare(self, model: nn.Module, items: Sequence[Encoded], *, pad_id: int) -> None:
        """Run the teacher over `items` once; a second call does nothing."""
        if self._head is not None:
            return
        source = model if self._load is None else self._load()
        self._cache.fill(source, list({id(item): item for item in items}.values()), kind="hidden", pad_id=pad_id)
        head = Head(source)
        # The head of the model itself is copied if it is going to move.
        moves = self._load is None and any(p.requires_grad for p in head.parameters())
        self._head = Head(source, frozen=True) if moves else head

    def request(self, function: TokenFunction, micro: MicroBatch, role: str) -> TokenRequest:
        """See `Teacher.request`; the teacher's logits are made anew from its hidden states, a chunk at a time."""
        head = self._head
        assert head is not None, "prepare() was not called"

        def taught(logits_NV: Tensor, labels_N: Tensor, hidden_ND: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_NV = head(hidden_ND)
            return function(logits_NV, labels_N, teacher_NV)

        rows = micro.rows_of(role)
        hidden_ND = torch.cat([self._cache.get("hidden", item) for item in micro.items_of(role)])
        return TokenRequest(taught, rows, (hidden_ND.to(rows.device),))


class UniformTeacher(Teacher):
    """Holds every token for equally likely."""

    def prepare(self, model: nn.Module, items: Sequence[Encoded], *, pad_id: int) -> None:
        """Nothing to read."""

    def request(self, function: TokenFunction, micro: MicroBatch, role: str) -> TokenRequest:
        """See `Teacher.request`."""

        def taught(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
            return function(logits_NV, labels_N, torch.zeros_like(logits_NV))

        return TokenRequest(taught, micro.rows_of(role))


def random_model(model: nn.Module, seed: int) -> nn.Module:
    """Return a model of the same shape with fresh weights; torch's global generator is left as it was."""
    from transformers import AutoModelForCausalLM

    base = unwrap(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: nn.Module = AutoModelForCausalLM.from_config(base.config)
    return fresh.to(next(base.parameters()).device)


def divergence(logits_NV: Tensor, _labels_N: Tensor, teacher_NV: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || model) per token, [N]; see `distillation_kl`."""
    return distillation_kl(logits_NV, teacher_NV, temperature=temperature)


@dataclass(frozen=True, slots=True)
class Pupil:
    """One set, whom it follows, and what its loss weighs."""

    items: Sequence[Encoded]
    teacher: Teacher
    weight: float


class DistillationTask:
    """Follows a teacher on the forget set and one on the retain set, or one on the retain set alone.

    Args:
        forget: None if only the retain set is trained on, which an epoch then passes through once.
        retain: paired with the forget set, if there is one.
        temperature: of the distributions compared.
        reduction: how token losses become one number.
        epochs: epochs that will be asked for.
        batch_size: pairs, or sequences, per step.
        pad_id: id used to pad.
        seed: of the order.
    """

    def __init__(
        self,
        forget: Pupil | None,
        retain: Pupil,
        *,
        temperature: float,
        reduction: Reduction,
        epochs: int,
        batch_size: int,
        pad_id: int,
        seed: int,
    ) -> None:
        self._pupils: Mapping[str, Pupil] = (
            {"retain": retain} if forget is None else {"forget": forget, "retain": retain}
        )
        self._function = partial(divergence, temperature=temperature)
        self._reduction, self._epochs, self._pad_id = reduction, epochs, pad_id
        first, second = (len(retain.items), 0) if forget is None else (len(forget.items), len(retain.items))
        self._sampler = PairedSampler(first, second, batch_size=batch_size, seed=seed)

    def prepare(self, model: nn.Module) -> None:
        """Let every teacher answer for the rows it will be asked about."""
        asked: dict[str, dict[int, Encoded]] = {role: {} for role in self._pupils}
        for epoch in range(self._epochs):
            for row in (row for step in self.steps(epoch) for group in step for row in group):
                asked[row.role][row.index] = row.encoded
        for teacher in {id(pupil.teacher): pupil.teacher for pupil in self._pupils.values()}.values():
            items = [i for role, p in self._pupils.items() if p.teacher is teacher for i in asked[role].values()]
            teacher.prepare(model, items, pad_id=self._pad_id)

    def steps(self, epoch: int) -> list[list[Group]]:
        """Return the optimiser steps of an epoch."""
        return [[self._group(pair) for pair in pairs] for pairs in self._sampler.steps(epoch)]

    def _group(self, pair: tuple[int, int | None]) -> Group:
        return [
            Row(pupil.items[index], role, index)
            for (role, pupil), index in zip(self._pupils.items(), pair, strict=False)
            if index is not None
        ]

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, Tensor]:
        """Return the weighted divergences of this micro-batch's share, by role."""
        batch, roles = micro.batch, list(self._pupils)
        requests = [self._pupils[role].teacher.request(self._function, micro, role) for role in roles]
        answers = scorer(batch.input_ids, batch.attention_mask, batch.labels, requests)
        return {
            role: self._pupils[role].weight * reduce_tokens(
                answer.values, answer.row, answer.lengths, self._reduction,
                sequences=counts.sequences[role], tokens=counts.tokens[role],
            )
            for role, answer in zip(roles, answers, strict=True)
        }  # fmt: skip

    def finish_step(self, watched: Mapping[str, float]) -> Mapping[str, float]:
        """Nothing changes between steps."""
        del watched
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every step follows from seed and epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
