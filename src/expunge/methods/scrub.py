# SPDX-License-Identifier: Apache-2.0
"""SCRUB: a student that leaves its teacher on the forget set and stays with it on the retain set, in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.data.labels import without_eos_label
from expunge.errors import RecipeError
from expunge.methods.base import Method, MethodConfig, MethodContext, MethodOutcome
from expunge.methods.teachers import ModelTeacher, divergence
from expunge.methods.weights import choose_parameters
from expunge.objectives.likelihood import negative_log_likelihood
from expunge.objectives.reduction import Reduction, reduce_tokens
from expunge.objectives.targets import bounded_ascent
from expunge.signals.likelihood import Scorer, label_logp
from expunge.signals.reference import ReferenceCache
from expunge.training.config import StopConfig, TrainingConfig
from expunge.training.loop import Trainer
from expunge.training.task import Counts, Group, MicroBatch, Row


class ScrubConfig(MethodConfig):
    """Settings of SCRUB."""

    name: Literal["scrub"] = "scrub"
    alpha: float = Field(0.5, ge=0, description="weight of the divergence from the original on the retain set")
    gamma: float = Field(1.0, ge=0, description="weight of the likelihood on the retain set")
    temperature: float = Field(2.0, gt=0, description="of the distributions compared")
    max_epochs: int = Field(3, ge=0, description="first epochs that begin by raising the forget divergence")
    first_min_steps: int = Field(
        1, ge=1, description="min steps before the first max step, which otherwise has a gradient of exactly zero"
    )
    retain_per_epoch: int | None = Field(
        None, ge=1, description="retain sequences of an epoch, drawn anew; default: as many as the forget set has"
    )
    cap: float | None = Field(
        None, gt=0, description="forget divergence, nats per token, above which it is not raised; default: log V"
    )
    reduction: Reduction = Field("token_mean", description="how token losses become one number")
    forget_eos: bool = Field(True, description="unlearn the end-of-sequence token after the forget answer too")


class ScrubRConfig(ScrubConfig):
    """SCRUB with rewinding."""

    name: Literal["scrub_r"] = "scrub_r"  # type: ignore[assignment]


class ScrubTask:
    """Epochs of max steps on the forget set followed by min steps on the retain set, then of min steps alone.

    Args:
        config: settings of the method.
        forget: forget sequences.
        retain: retain sequences.
        teacher: the original.
        training: settings of the loop.
        pad_id: id used to pad.
        seed: of the order.
    """

    def __init__(
        self,
        config: ScrubConfig,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
        teacher: ModelTeacher,
        *,
        training: TrainingConfig,
        pad_id: int,
        seed: int,
    ) -> None:
        self._config, self._sets, self._teacher = config, {"forget": forget, "retain": retain}, teacher
        self._training, self._pad_id, self._seed = training, pad_id, seed
        self._away = partial(_away, temperature=config.temperature, cap=config.cap)
        self._near = partial(_near, temperature=config.temperature, alpha=config.alpha, gamma=config.gamma)

    def prepare(self, model: nn.Module) -> None:
        """Let the original answer for every row it will be compared on."""
        epochs = range(self._training.epochs)
        rows = [row for epoch in epochs for step in self.steps(epoch) for group in step for row in group]
        self._teacher.prepare(model, [row.encoded for row in rows], pad_id=self._pad_id)

    def steps(self, epoch: int) -> list[list[Group]]:
        """Return the max steps, if the epoch has any, and the min steps; the run begins with min steps."""
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._sets["forget"]))
        lower = self._batches("retain", self._draw(rng))
        if epoch >= self._config.max_epochs:
            return lower
        first = self._config.first_min_steps if epoch == 0 else 0
        return [*lower[:first], *self._batches("forget", order.tolist()), *lower[first:]]

    def _draw(self, rng: np.random.Generator) -> list[int]:
        """Return positions of retain rows: all before any comes again."""
        count, known = self._config.retain_per_epoch or len(self._sets["forget"]), len(self._sets["retain"])
        rounds = [rng.permutation(known) for _ in range(-(-count // known))]
        drawn: list[int] = np.concatenate(rounds)[:count].tolist()
        return drawn

    def _batches(self, role: str, order: Sequence[int]) -> list[list[Group]]:
        rows = [Row(self._sets[role][i], role, i) for i in order]
        size = self._training.batch_size
        return [[[row] for row in rows[i : i + size]] for i in range(0, len(rows), size)]

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, Tensor]:
        """Return this micro-batch's share of the one term its step has."""
        batch, role = micro.batch, micro.rows[0].role
        function = self._away if role == "forget" else self._near
        request = self._teacher.request(function, micro, role)
        answer = scorer(batch.input_ids, batch.attention_mask, batch.labels, [request])[0]
        loss = reduce_tokens(
            answer.values, answer.row, answer.lengths, self._config.reduction,
            sequences=counts.sequences[role], tokens=counts.tokens[role],
        )  # fmt: skip
        return {role: loss}

    def finish_step(self, watched: Mapping[str, float]) -> Mapping[str, float]:
        """Nothing changes between steps."""
        del watched
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every step follows from seed and epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def _away(logits_NV: Tensor, labels_N: Tensor, teacher_NV: Tensor, *, temperature: float, cap: float | None) -> Tensor:
    """Return the forget term per token: minus the divergence, down to minus the cap."""
    loss_N = divergence(logits_NV, labels_N, teacher_NV, temperature=temperature)
    return bounded_ascent(loss_N, cap=math.log(logits_NV.shape[1]) if cap is None else cap)


def _near(
    logits_NV: Tensor, labels_N: Tensor, teacher_NV: Tensor, *, temperature: float, alpha: float, gamma: float
) -> Tensor:
    """Return the retain term per token."""
    loss_N = divergence(logits_NV, labels_N, teacher_NV, temperature=temperature)
    return alpha * loss_N + gamma * negative_log_likelihood(label_logp(logits_NV, labels_N))


class Scrub(Method):
    """Alternate between leaving the original on the forget set and staying with it on the retain set."""

    Config = ScrubConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 10, "batch_size": 32}
    card = MethodCard(
        name="scrub",
        title="SCRUB",
        paper="Towards Unbounded Machine Unlearning (arXiv:2302.09880)",
        authors="Kurmanji, Triantafillou, Hayes, Triantafillou",
        year=2023,
        venue="NeurIPS",
        family="distillation",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="3 F per forget sequence in the first `max_epochs` epochs and per retain sequence in all; the original "
        "answers in one pass beforehand",
        formula="max steps: -E_f mean_t min(T^2 KL(p_original || p), cap); "
        "min steps: E_r mean_t [alpha T^2 KL(p_original || p) - gamma log p]",
        provenance="paper, schedule as in its released code; per token of the answer instead of per image",
        differences=(
            "The run begins with `first_min_steps` min steps: at the original's own weights the divergence has no "
            "gradient, so a max step there does nothing.",
            "The divergence is capped per token; unbounded, it ends in noise.",
            "A min epoch draws as many retain sequences as there are forget sequences (`retain_per_epoch`); over the "
            "whole retain set it would cost many times the max epoch.",
            "The original's last hidden states are cached once instead of keeping a second model.",
        ),
        defaults_source="released small-scale configuration: alpha 0.5, gamma 1, T 2, 3 max epochs of 10; learning "
        "rate and batch of gradient difference",
        notes="Over-unlearns where privacy is the aim: use scrub_r, or training.stop.rule: rewind. Masks of single "
        "weights are refused, and so are gru and blur, which need both terms in every step.",
    )

    def examples_per_epoch(self, config: Any, *, forget: int, retain: int) -> int:
        """Return the sequences of an epoch with max steps, the longest kind."""
        del retain
        return forget + (config.retain_per_epoch or forget)

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Alternate; see `Method.run`."""
        encode, training = context.encoder.encode_many, context.training
        retain = [row.encoded for row in encode(context.need_retain(self.card.name), where="retain")]
        forget = [row.encoded for row in encode(context.splits.forget, where="forget")]
        if not config.forget_eos:
            forget = [without_eos_label(item) for item in forget]
        cache = ReferenceCache(context.model_digest, context.folder / "cache" if context.folder else None)
        task = ScrubTask(
            config, forget, retain, ModelTeacher(cache), training=training, pad_id=context.pad_id, seed=context.seed
        )
        model = choose_parameters(context.model, training, context.seed)
        trainer = Trainer(
            model, task, training, pad_id=context.pad_id, folder=context.folder, probe=context.probe,
            callbacks=context.callbacks, errors=context.error_probe(), seed=context.seed,
        )  # fmt: skip
        return MethodOutcome(model, trainer.run(resume=context.resume))


class ScrubR(Scrub):
    """SCRUB, then back to the epoch whose forget error looks like held-out error."""

    Config = ScrubRConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {**Scrub.training_defaults, "stop": {"rule": "rewind"}}
    card = replace(
        Scrub.card,
        name="scrub_r",
        title="SCRUB with rewinding",
        needs=("forget", "retain", "holdout"),
        formula=f"{Scrub.card.formula}; then the epoch whose E_f mean_t -log p is closest to the holdout's at the end",
        differences=(
            *Scrub.card.differences,
            "The error matched is the loss per token, and the weights of the start cannot be chosen.",
        ),
        notes="For privacy: the forget set should look like data the model never saw, not worse. Where the planted "
        "behaviour itself must go (a bias, a confusion), use scrub. Masks of single weights are refused, and so are "
        "gru and blur, which need both terms in every step.",
    )

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Alternate, then rewind; see `Method.run`.

        Raises:
            RecipeError: also if another stop rule is set, or there is no holdout.
        """
        stop = context.training.stop
        if stop.rule == "utility_drop":
            raise RecipeError(
                "scrub_r rewinds", field="training.stop.rule", value=stop.rule, remedy="Use rewind, or method scrub"
            )
        training = context.training.model_copy(update={"stop": StopConfig(rule="rewind")})
        return super().run(config, replace(context, training=training))
