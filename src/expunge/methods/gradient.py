# SPDX-License-Identifier: Apache-2.0
"""The family most of the literature belongs to: gradient steps on a forget term and a retain term.

A method of this family is a `ForgetTerm`: which rows it adds for a forget example and what it minimises on them.
Everything else (pairing, reference answers, retain term, loop) is here, once.

Shape suffixes: N labelled tokens of one role, R sequences, D hidden width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.data.labels import relabel_all, without_eos_label
from expunge.data.sampling import PairedSampler
from expunge.errors import RecipeError
from expunge.methods.base import Method, MethodConfig, MethodContext, MethodOutcome
from expunge.methods.trimming import trimmed_loss
from expunge.methods.weights import Masks, build_masks, choose_parameters, intersection, kept
from expunge.objectives.likelihood import negative_log_likelihood
from expunge.objectives.reduction import Reduction, reduce_tokens
from expunge.objectives.trimmed import Side, left_out
from expunge.optim.masks import WeightMasks, kept_share
from expunge.signals.fused import TeacherKL
from expunge.signals.head import Head, TokenFunction
from expunge.signals.likelihood import Scorer, TokenRequest, TokenValues, label_logp
from expunge.signals.reference import ReferenceCache
from expunge.training.config import TrainingConfig
from expunge.training.loop import Trainer
from expunge.training.task import Counts, Group, MicroBatch, Row


class GradientConfig(MethodConfig):
    """Settings shared by the family."""

    forget_weight: float = Field(1.0, ge=0, description="weight of the forget term")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain term")
    retain: Literal["none", "nll", "kl"] = Field(
        "nll", description="retain term: none; nll: answer likelihood; kl: divergence from the original model"
    )
    kl_direction: Literal["forward", "reverse"] = Field("forward", description="forward: KL(original || model)")
    kl_positions: Literal["answer", "all"] = Field("answer", description="positions of the retain sequence compared")
    reduction: Reduction = Field("token_mean", description="how token losses of the forget term become one number")
    retain_reduction: Reduction = Field("token_mean", description="the same for the retain term")
    forget_eos: bool = Field(True, description="unlearn the end-of-sequence token after the forget answer too")
    trim: float = Field(
        0.0, ge=0, lt=1,
        description="share of the forget examples of a forward whose losses are left out; the others weigh the same",
    )  # fmt: skip
    trim_side: Side = Field("high", description="which are: those with the largest loss, the smallest, or both")

    @model_validator(mode="after")
    def _trim_leaves_some(self) -> GradientConfig:
        if self.trim_side == "both" and self.trim >= 0.5:
            raise ValueError(f"trim {self.trim:g} on both sides leaves nothing: use less than 0.5")
        return self


class ForgetTerm(ABC):
    """What a method minimises on the forget set.

    Class attributes:
        roles: roles of the rows it adds for each forget example.
        reference_roles: those whose token log-probabilities under the original model it compares with.
        teacher_roles: those whose `function` is also given the original model's logits.
    """

    roles: ClassVar[tuple[str, ...]] = ("forget",)
    reference_roles: ClassVar[tuple[str, ...]] = ()
    teacher_roles: ClassVar[tuple[str, ...]] = ()

    def __init__(self, forget: Sequence[Encoded]) -> None:
        self.forget = forget

    def rows(self, index: int, epoch: int) -> list[Row]:
        """Return the rows for forget example `index` in `epoch`; the same arguments always give the same rows."""
        del epoch
        return [Row(self.forget[index], "forget", index)]

    def function(self, role: str) -> TokenFunction:
        """Return what is taken from the logits at each labelled token of a role.

        For a role in `teacher_roles` it is called with logits, labels and the original's logits, else with the first
        two.
        """
        del role
        return label_logp

    def attribution(self, index: int) -> Encoded:
        """Return the sequence whose likelihood says which weights carry forget example `index`, for masks."""
        return self.forget[index]

    @abstractmethod
    def loss(self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts) -> Tensor:
        """Return this batch's share of the forget loss, unweighted.

        Args:
            tokens: by role, what `function` gave at each labelled token.
            reference: by role in `reference_roles`, log p of those tokens under the original model, [N].
            counts: sequences and tokens of the whole optimiser step.
        """


class UnlearningTask:
    """Pairs forget and retain examples and sums the two weighted terms in one forward pass."""

    def __init__(
        self,
        term: ForgetTerm,
        config: GradientConfig,
        retain: Sequence[Encoded],
        *,
        training: TrainingConfig,
        pad_id: int,
        seed: int,
        cache: ReferenceCache,
    ) -> None:
        self._term, self._config, self._training = term, config, training
        self._pad_id, self._cache = pad_id, cache
        labelled = config.retain == "kl" and config.kl_positions == "all"
        self._retain = [relabel_all(item) for item in retain] if labelled else list(retain)
        n_retain = 0 if config.retain == "none" else len(self._retain)
        self._sampler = PairedSampler(len(term.forget), n_retain, batch_size=training.batch_size, seed=seed)
        self._frozen_head: nn.Module | None = None

    def prepare(self, model: nn.Module) -> None:
        """Cache the original model's answers for every row that will be compared with them."""
        scored: dict[int, Encoded] = {}
        taught: dict[int, Encoded] = {}
        teacher_roles = {*self._term.teacher_roles, *(["retain"] if self._config.retain == "kl" else [])}
        for epoch in range(self._training.epochs):
            for step in self.steps(epoch):
                for row in (row for group in step for row in group):
                    if row.role in self._term.reference_roles:
                        scored[id(row.encoded)] = row.encoded
                    if row.role in teacher_roles:
                        taught[id(row.encoded)] = row.encoded
        fill = partial(self._cache.fill, model, pad_id=self._pad_id)
        if scored:
            fill(list(scored.values()), kind="tokens")
        if taught:
            fill(list(taught.values()), kind="hidden")
            head = Head(model)
            moves = any(p.requires_grad for p in head.parameters())
            self._frozen_head = Head(model, frozen=True) if moves else head

    def steps(self, epoch: int) -> list[list[Group]]:
        """Return the optimiser steps of an epoch: forget rows with their retain partner."""
        return [
            [self._group(forget, retain, epoch) for forget, retain in pairs] for pairs in self._sampler.steps(epoch)
        ]

    def _group(self, forget: int, retain: int | None, epoch: int) -> Group:
        rows = self._term.rows(forget, epoch)
        return rows if retain is None else [*rows, Row(self._retain[retain], "retain", retain)]

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, Tensor]:
        """Return the weighted forget and retain parts of this micro-batch's share."""
        roles = list(self._term.roles)
        requests = [self._request(role, micro) for role in roles]
        if self._config.retain != "none":
            roles.append("retain")
            requests.append(self._retain_request(micro))
        batch = micro.batch
        answers = scorer(batch.input_ids, batch.attention_mask, batch.labels, requests)
        tokens: dict[str, TokenValues] = dict(zip(roles, answers, strict=True))
        device = batch.input_ids.device
        reference = {
            role: torch.cat([self._cache.get("tokens", item) for item in micro.items_of(role)]).to(device)
            for role in self._term.reference_roles
        }
        out = {"forget": self._config.forget_weight * self._forget_loss(tokens, reference, counts)}
        if "retain" in tokens:
            out["retain"] = self._config.retain_weight * self._retain_loss(tokens["retain"], counts)
        return out

    def _forget_loss(
        self, tokens: Mapping[str, TokenValues], reference: Mapping[str, Tensor], counts: Counts
    ) -> Tensor:  # fmt: skip
        config = self._config
        if config.trim == 0:
            return self._term.loss(tokens, reference, counts)
        return trimmed_loss(self._term, tokens, reference, counts, share=config.trim, side=config.trim_side)

    def _request(self, role: str, micro: MicroBatch) -> TokenRequest:
        if role in self._term.teacher_roles:
            return self._taught(self._term.function(role), role, micro)
        return TokenRequest(self._term.function(role), micro.rows_of(role))

    def _retain_request(self, micro: MicroBatch) -> TokenRequest:
        if self._config.retain == "nll":
            return TokenRequest(label_logp, micro.rows_of("retain"))
        head, hidden_ND = self._teacher(micro, "retain")
        return TokenRequest(TeacherKL(head, self._config.kl_direction), micro.rows_of("retain"), (hidden_ND,))

    def _taught(self, function: TokenFunction, role: str, micro: MicroBatch) -> TokenRequest:
        """Return a request whose function is also given the original's logits, made anew from its hidden states."""
        head, hidden_ND = self._teacher(micro, role)

        def with_teacher(logits_NV: Tensor, labels_N: Tensor, hidden_ND: Tensor) -> Tensor:
            with torch.no_grad():
                teacher_NV = head(hidden_ND)
            return function(logits_NV, labels_N, teacher_NV)

        return TokenRequest(with_teacher, micro.rows_of(role), (hidden_ND,))

    def _teacher(self, micro: MicroBatch, role: str) -> tuple[nn.Module, Tensor]:
        """Return the original's head and its last hidden states before each labelled token of a role, [N, D]."""
        assert self._frozen_head is not None, "prepare() was not called"
        hidden_ND = torch.cat([self._cache.get("hidden", item) for item in micro.items_of(role)])
        return self._frozen_head, hidden_ND.to(micro.batch.input_ids.device)

    def _retain_loss(self, answer: TokenValues, counts: Counts) -> Tensor:
        values = answer.values if self._config.retain == "kl" else negative_log_likelihood(answer.values)
        return reduce_tokens(
            values, answer.row, answer.lengths, self._config.retain_reduction,
            sequences=counts.sequences["retain"], tokens=counts.tokens["retain"],
        )  # fmt: skip

    def finish_step(self, watched: Mapping[str, float]) -> Mapping[str, float]:
        """Nothing changes between steps."""
        del watched
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every step follows from seed and epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a method of this family trains on: its forget term, and the retain set as token ids."""

    term: ForgetTerm
    retain: Sequence[Encoded]


class GradientMethod(Method):
    """A method that is this family's loop around its own forget term."""

    @abstractmethod
    def term(self, config: Any, context: MethodContext, forget: Sequence[Encoded]) -> ForgetTerm:
        """Return the forget term for the encoded forget set."""

    def needs(self, config: Any, training: TrainingConfig) -> frozenset[str]:
        """Return the card's needs, with the retain set only if a retain term or the mask reads it."""
        read = config.retain != "none" or training.mask.kind == "wagle"
        return (super().needs(config, training) - {"retain"}) | ({"retain"} if read else set())

    def check(self, config: Any, training: TrainingConfig) -> None:
        """Refuse a trim that leaves nothing out of a forward; see `Method.check`."""
        rows = _forward_rows(training)
        if config.trim and not left_out(rows, config.trim):
            raise RecipeError(
                f"leaves out none of {rows} examples", field="method.trim", value=config.trim,
                remedy=f"Use at least {1 / rows:.3g}, or a larger training.micro_batch_size or training.batch_size",
            )  # fmt: skip

    def task(self, config: Any, context: MethodContext, parts: Parts, cache: ReferenceCache) -> UnlearningTask:
        """Return what the loop minimises."""
        return UnlearningTask(
            parts.term, config, parts.retain, training=context.training, pad_id=context.pad_id, seed=context.seed,
            cache=cache,
        )  # fmt: skip

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Train on both terms; see `Method.run`."""
        parts = self.parts(config, context)
        return self.train(config, context, parts, choose_parameters(context.model, context.training, context.seed))

    def parts(self, config: Any, context: MethodContext) -> Parts:
        """Encode the sets and make the term, before anything of the model changes.

        Raises:
            RecipeError: if an input is missing.
        """
        retain: list[Encoded] = []
        if "retain" in self.needs(config, context.training):
            examples = context.need_retain(self.card.name)
            retain = [row.encoded for row in context.encoder.encode_many(examples, where="retain")]
        return Parts(self.term(config, context, encode_forget(config, context)), retain)

    def train(
        self, config: Any, context: MethodContext, parts: Parts, model: nn.Module, *, fixed: Masks | None = None
    ) -> MethodOutcome:
        """Choose single weights if the recipe says so, and run the loop.

        Args:
            config: settings of the method.
            context: its `model` is what the reference answers and the mask are taken from.
            parts: what `parts` returned.
            model: `context.model` with exactly the parameters that may move requiring gradients.
            fixed: masks that hold already, such as those of a pruned model.
        """
        cache = ReferenceCache(context.model_digest, context.folder / "cache" if context.folder else None)
        masks = _all_masks(context, parts, model, fixed or {})
        trainer = Trainer(
            model, self.task(config, context, parts, cache), context.training, pad_id=context.pad_id,
            folder=context.folder, probe=context.probe, callbacks=context.callbacks,
            masks=WeightMasks(model, masks) if masks else None, errors=context.error_probe(), seed=context.seed,
        )  # fmt: skip
        notes: dict[str, Any] = {"moving_share": kept_share(masks)} if masks else {}
        if config.trim:
            rows = _forward_rows(context.training)
            notes["trimmed"] = {"side": config.trim_side, "examples": left_out(rows, config.trim), "of": rows}
        return MethodOutcome(model, trainer.run(resume=context.resume), notes)


def _forward_rows(training: TrainingConfig) -> int:
    """Return the forget examples of a full forward."""
    return min(training.micro_batch_size or training.batch_size, training.batch_size)


def _all_masks(context: MethodContext, parts: Parts, model: nn.Module, fixed: Masks) -> Masks:
    """Return the masks of the recipe's kind on top of those that hold already."""
    config, term = context.training.mask, parts.term
    if config.kind == "none":
        return fixed

    def build() -> Masks:
        return build_masks(
            model, config, forget=[term.attribution(i) for i in range(len(term.forget))], retain=parts.retain,
            pad_id=context.pad_id, seed=context.seed,
        )  # fmt: skip

    path = context.folder / "masks.safetensors" if context.folder else None
    return intersection(fixed, kept(path, build, resume=context.resume))


def token_loss(
    values_N: Tensor, answer: TokenValues, reduction: Reduction, counts: Counts, *, role: str = "forget"
) -> Tensor:
    """Return token losses of one role as this batch's share of the step's loss; see `reduce_tokens`."""
    return reduce_tokens(
        values_N, answer.row, answer.lengths, reduction,
        sequences=counts.sequences[role], tokens=counts.tokens[role],
    )  # fmt: skip


def encode_forget(config: GradientConfig, context: MethodContext) -> list[Encoded]:
    """Return the forget set as token ids, with or without labels on the end-of-sequence tokens."""
    items = [row.encoded for row in context.encoder.encode_many(context.splits.forget, where="forget")]
    return items if config.forget_eos else [without_eos_label(item) for item in items]
