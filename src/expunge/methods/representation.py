# SPDX-License-Identifier: Apache-2.0
"""The family that misdirects hidden states: the states of forget texts at one block go elsewhere, those of retain
texts stay.

A method of this family is a `Steering`: where the states of a forget sequence are sent. Only the blocks between the
lowest that trains and the one that is read ever run; what enters them and what is held still is stored once.

Shape suffixes: B batch rows, R rows of one role, T tokens, N real tokens of one role, D hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.data.encoding import IGNORE, Encoded
from expunge.data.labels import relabel_all
from expunge.data.sampling import PairedSampler
from expunge.methods.base import Method, MethodConfig, MethodContext, MethodOutcome
from expunge.methods.reading import BlockStates, Plan, TensorChoice, measure, plan_reading, restrict
from expunge.methods.topics import Topics, resolve_topics
from expunge.objectives.reduction import reduce_tokens
from expunge.objectives.representation import Distance, rmu_retain, squared_distance
from expunge.signals.hidden import HiddenCache, HiddenReading
from expunge.signals.likelihood import Scorer
from expunge.training.config import TrainingConfig
from expunge.training.loop import Trainer
from expunge.training.task import Counts, Group, MicroBatch, Row

#: Settings of the loop in the released code for Zephyr-7B: Li et al., 2024.
WMDP_TRAINING: Mapping[str, Any] = {
    "learning_rate": 5e-5, "epochs": 5, "max_steps": 150, "batch_size": 4, "schedule": "constant",
    "warmup_ratio": 0.0, "max_grad_norm": None, "optimizer": {"name": "adamw", "weight_decay": 0.0},
}  # fmt: skip


class RepresentationConfig(MethodConfig):
    """Settings shared by the family."""

    layer: int | None = Field(
        None, ge=0, description="block whose output is steered, from 0; null: chosen from the model's own states"
    )
    trained_blocks: int = Field(
        3, ge=1, description="blocks that train, the last being the one read; training.trainable overrides"
    )
    tensors: TensorChoice = Field(
        "auto",
        description="what trains in those blocks: mlp_output: the output projections of their MLPs, as published; "
        "block: all of it; auto: mlp_output for a hidden width of 1024 or more, where it suffices, else block",
    )
    forget_weight: float = Field(1.0, ge=0, description="weight of the forget term")
    retain_weight: float = Field(10.0, ge=0, description="weight of the retain term")
    distance: Distance = Field("mean", description="sum: squared norm; mean: its mean over the width")
    reduction: Literal["sequence_mean", "token_mean"] = Field(
        "sequence_mean", description="how token losses become one number"
    )
    positions: Literal["all", "answer"] = Field("all", description="tokens whose states count; never padding")
    topics: Literal["single", "subject"] | dict[str, str] = Field(
        "single", description="single: one for all; subject: one per subject; or a mapping from subject to topic"
    )


class Steering(ABC):
    """Where the states of forget sequences are sent.

    Class attributes:
        reads_original: whether it needs the original model's states on the forget set.
    """

    reads_original: ClassVar[bool] = False

    def rows(self, item: Encoded, index: int, epoch: int) -> Row:
        """Return the row of forget sequence `index` in `epoch`; the same arguments always give the same row."""
        del epoch
        return Row(item, "forget", index)

    def prepare(self, forget: Sequence[Encoded], cache: HiddenCache, layer: int) -> None:
        """Measure what the targets depend on; `cache` holds the original states if `reads_original`."""
        del forget, cache, layer

    @abstractmethod
    def target(self, row: Row, original_ND: Tensor | None) -> Tensor:
        """Return where the states of a forget row are sent, [D] for all its tokens or [N, D].

        Args:
            row: a row made by `rows`.
            original_ND: the original states of the tokens that count, if `reads_original`.
        """

    def notes(self) -> Mapping[str, Any]:
        """Return the choices that were made, for the run's notes."""
        return {}


@dataclass(frozen=True, slots=True)
class Sets:
    """Forget and retain sequences, labelled at the positions that count, and the topic of each forget sequence."""

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    topics: Topics


class RepresentationTask:
    """Steers forget states and holds retain states, in one pass over the blocks that train."""

    def __init__(
        self,
        steering: Steering,
        config: RepresentationConfig,
        sets: Sets,
        plan: Plan,
        *,
        training: TrainingConfig,
        pad_id: int,
        seed: int,
        cache: HiddenCache,
    ) -> None:
        self._steering, self._config, self._sets, self._plan = steering, config, sets, plan
        self._training, self._pad_id, self._cache = training, pad_id, cache
        self._sampler = PairedSampler(
            len(sets.forget), len(sets.retain), batch_size=training.batch_size, seed=seed
        )  # fmt: skip

    def prepare(self, model: torch.nn.Module) -> None:
        """Store what the original model gives on every row that will be used."""
        below = [self._plan.first - 1] if self._plan.first else []
        forget = [*below, *([self._plan.layer] if self._steering.reads_original else [])]
        fill, pad_id = self._cache.fill, self._pad_id
        fill(model, self._sets.forget, layers=forget, pad_id=pad_id)
        fill(model, self._used_retain(), layers=[*below, self._plan.layer], pad_id=pad_id)
        self._steering.prepare(self._sets.forget, self._cache, self._plan.layer)

    def _used_retain(self) -> list[Encoded]:
        total, per_epoch = self._training.max_steps, self._sampler.steps_per_epoch
        epochs = self._training.epochs if total is None else min(self._training.epochs, -(-total // per_epoch))
        rows = (row for epoch in range(epochs) for step in self.steps(epoch) for group in step for row in group)
        return [row.encoded for row in rows if row.role == "retain"]

    def steps(self, epoch: int) -> list[list[Group]]:
        """Return the optimiser steps of an epoch: forget rows with their retain partner."""
        return [
            [self._group(forget, retain, epoch) for forget, retain in pairs] for pairs in self._sampler.steps(epoch)
        ]

    def _group(self, forget: int, retain: int | None, epoch: int) -> Group:
        assert retain is not None, "the family always has a retain set"
        row = self._steering.rows(self._sets.forget[forget], forget, epoch)
        return [row, Row(self._sets.retain[retain], "retain", retain)]

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, Tensor]:
        """Return the weighted forget and retain parts of this micro-batch's share."""
        batch, plan, device = micro.batch, self._plan, micro.batch.input_ids.device
        ids = [row.encoded.ids for row in micro.rows]
        start = self._cache.padded(plan.first - 1, ids).to(device) if plan.first else None
        reading = HiddenReading(plan.layer, plan.first, start)
        hidden_BTD = scorer(batch.input_ids, batch.attention_mask, batch.labels, reading)[0]
        config = self._config
        forget = self._part(hidden_BTD, micro, counts, "forget")
        retain = self._part(hidden_BTD, micro, counts, "retain")
        return {"forget": config.forget_weight * forget, "retain": config.retain_weight * retain}

    def _part(self, hidden_BTD: Tensor, micro: MicroBatch, counts: Counts, role: str) -> Tensor:
        rows = micro.rows_of(role)
        mask_RT = self._counted(micro, rows)
        row_N, time_N = mask_RT.nonzero(as_tuple=True)
        states_ND = hidden_BTD[rows[row_N], time_N]
        pieces = [self._target(micro.rows[int(b)], mask_RT[r]) for r, b in enumerate(rows)]
        target_ND = torch.cat(pieces).to(states_ND.device)
        loss = squared_distance if role == "forget" else rmu_retain
        # The label of a sequence's first token is not among its countable labels, but its state is among the states.
        extra = counts.sequences[role] if self._config.positions == "all" else 0
        return reduce_tokens(
            loss(states_ND, target_ND, distance=self._config.distance), row_N, mask_RT.sum(1),
            self._config.reduction, sequences=counts.sequences[role], tokens=counts.tokens[role] + extra,
        )  # fmt: skip

    def _counted(self, micro: MicroBatch, rows: Tensor) -> Tensor:
        """Return which states count, [R, T] bool."""
        if self._config.positions == "all":
            return micro.batch.attention_mask[rows].bool()
        mask_RT = micro.batch.labels[rows] != IGNORE
        mask_RT[:, 0] = False
        return mask_RT

    def _target(self, row: Row, mask_T: Tensor) -> Tensor:
        """Return the target of every state that counts, [N, D]."""
        kept = mask_T[: len(row.encoded.ids)].cpu()
        if row.role == "retain":
            return self._cache.get(self._plan.layer, row.encoded)[kept]
        original = self._cache.get(self._plan.layer, row.encoded)[kept] if self._steering.reads_original else None
        target = self._steering.target(row, original)
        return target.expand(int(kept.sum()), -1)

    def finish_step(self, watched: Mapping[str, float]) -> Mapping[str, float]:
        """Nothing changes between steps."""
        del watched
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every step follows from seed and epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class RepresentationMethod(Method):
    """A method that is this family's loop around its own steering."""

    training_defaults = WMDP_TRAINING

    @abstractmethod
    def steering(self, config: Any, context: MethodContext, sets: Sets, plan: Plan) -> Steering:
        """Return where forget states are sent; `context.model` is still the original."""

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Choose block and tensors, store the original's states, train; see `Method.run`."""
        sets = self.sets(config, context)
        states = partial(_measured, context, sets)
        plan = plan_reading(
            context.model, context.training, states, layer=config.layer, trained_blocks=config.trained_blocks
        )
        steering = self.steering(config, context, sets, plan)
        model, names = restrict(context.model, context.training, plan, tensors=config.tensors, seed=context.seed)
        task = RepresentationTask(
            steering, config, sets, plan, training=context.training, pad_id=context.pad_id, seed=context.seed,
            cache=HiddenCache(
                context.model_digest, context.folder / "cache" if context.folder else None,
                memory_mb=context.training.cache_mb,
            ),
        )  # fmt: skip
        trainer = Trainer(
            model, task, context.training, pad_id=context.pad_id, folder=context.folder, probe=context.probe,
            callbacks=context.callbacks, errors=context.error_probe(), seed=context.seed,
        )  # fmt: skip
        result = trainer.run(resume=context.resume)
        return MethodOutcome(model, result, {**plan.notes(), "tensors": names, **steering.notes()})

    def sets(self, config: Any, context: MethodContext) -> Sets:
        """Encode forget and retain set.

        Raises:
            RecipeError: if there is no retain set, or a subject has no topic.
        """
        relabel = relabel_all if config.positions == "all" else _unchanged
        retain = context.encoder.encode_many(context.need_retain(self.card.name), where="retain")
        forget = context.encoder.encode_many(context.splits.forget, where="forget")
        subjects = [context.splits.forget[row.index].subject for row in forget]
        return Sets(
            [relabel(row.encoded) for row in forget], [relabel(row.encoded) for row in retain],
            resolve_topics(subjects, config.topics),
        )  # fmt: skip


def _measured(context: MethodContext, sets: Sets, layers: Sequence[int]) -> Mapping[int, BlockStates]:
    return measure(context.model, sets.forget, sets.retain, layers=layers, pad_id=context.pad_id)


def _unchanged(item: Encoded) -> Encoded:
    return item
