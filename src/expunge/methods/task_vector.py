# SPDX-License-Identifier: Apache-2.0
"""Task arithmetic: what training on the forget set adds to the weights is subtracted from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.errors import RecipeError
from expunge.methods.base import Method, MethodConfig, MethodContext, MethodOutcome
from expunge.methods.weights import choose_parameters
from expunge.models.adapters import is_lora
from expunge.models.arithmetic import AdapterVector, Difference, TaskVector, shifted, snapshot, write
from expunge.models.selection import freeze_except, select_parameters
from expunge.signals.likelihood import score
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer, TrainingResult

#: `reinforce`: target - s (target trained on forget - target). `ilharco`: base - s (base trained on forget - base).
#: `undo`: target - s (target - base). Only the last ever gives back the base model, at s = 1.
Convention = Literal["reinforce", "ilharco", "undo"]

_NOTHING = TrainingResult(0, 0.0, "", {})


class TaskVectorConfig(MethodConfig):
    """Task-vector negation."""

    name: Literal["task_vector"] = "task_vector"
    convention: Convention = Field(
        "reinforce",
        description="reinforce: target - s (target trained on forget - target); ilharco: base - s (base trained on "
        "forget - base); undo: target - s (target - base), for data learned in that one training only",
    )
    strength: float | Literal["auto"] = Field(
        "auto", description="how often the vector is subtracted, s; auto: chosen from grid on retain examples"
    )
    grid: tuple[float, ...] = Field(
        (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0), min_length=1, description="auto: strengths tried"
    )
    max_drop: float = Field(
        0.05, ge=0, lt=1, description="auto: largest relative fall of the mean retain probability that is accepted"
    )
    examples: int = Field(64, ge=1, description="auto: examples of each set that are scored, evenly spaced through it")
    vectors: tuple[str, ...] = Field(
        (), description="models or adapters that were trained on forget data, in place of training one"
    )
    weights: tuple[float, ...] = Field((), description="weight of each of them in the sum; empty: 1 each")

    @model_validator(mode="after")
    def _weights_fit(self) -> TaskVectorConfig:
        if self.weights and len(self.weights) != len(self.vectors):
            raise ValueError(f"weights needs one number for each of the {len(self.vectors)} vectors")
        if self.vectors and self.convention == "undo":
            raise ValueError("vectors has no use in convention undo, whose vector is target - base")
        return self


@dataclass(frozen=True, slots=True)
class Learned:
    """A task vector with the model at its far end, and that model's parameters by the vector's names."""

    vector: TaskVector
    model: nn.Module
    parameters: Mapping[str, nn.Parameter]


@dataclass(frozen=True, slots=True)
class Terms:
    """What is added up: the model that is written to, its state to start from, and weighted task vectors."""

    model: nn.Module
    start: Mapping[str, Tensor]
    vectors: Sequence[tuple[float, TaskVector]]

    def write(self, strength: float) -> None:
        """Set the model to start - strength times the sum of the vectors."""
        write(self.model, self.start)
        write(self.model, shifted(self.start, [(-strength * weight, vector) for weight, vector in self.vectors]))


class TaskVectorMethod(Method):
    """Subtract what training on the forget set adds."""

    Config = TaskVectorConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-5, "epochs": 10, "batch_size": 32, "schedule": "constant", "warmup_ratio": 0.0,
    }  # fmt: skip
    card = MethodCard(
        name="task_vector",
        title="Task-vector negation",
        paper="Editing Models with Task Arithmetic (arXiv:2212.04089); for unlearning in MUSE (arXiv:2407.06460)",
        authors="Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi",
        year=2023,
        venue="ICLR",
        family="arithmetic",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="3 F per forget sequence and epoch of one training on the forget set; then one pass over the weights, "
        "and over 128 examples for each strength tried",
        formula="theta = theta_0 - s (theta_forget - theta_0)",
        provenance="paper (ilharco, undo) and the released code of MUSE (reinforce)",
        differences=(
            "Vectors are taken and applied one precision above the weights and rounded once; released code works in "
            "the precision of the checkpoint.",
            "s is the strength of the grid with the lowest forget probability among those that keep at least 95 % of "
            "the retain probability; the paper keeps 95 % of control accuracy on a grid from 0 to 1, MUSE fixes s.",
            "Of an adapter only the second factor counts: a fresh one is subtracted by scaling it, one that was there "
            "before is trained in that factor alone, so that the arithmetic stays exact within its rank.",
        ),
        defaults_source="MUSE's released script: learning rate 1e-5, 10 epochs (there with s = 5)",
        notes="ilharco goes beyond the base model and never gives it back; undo gives it back at s = 1 and assumes the "
        "data was learned in that training alone. Forgets little before utility falls. Probes of the training show "
        "the model that learns the forget set, not the one that is returned.",
    )

    def needs(self, config: Any, training: TrainingConfig) -> frozenset[str]:
        """Return the card's needs, with the retain set for a chosen strength only, and the base model if it is used."""
        out = super().needs(config, training)
        if config.strength != "auto":
            out -= {"retain"}
        return out if config.convention == "reinforce" else out | {"base_model"}

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Obtain the vectors, choose the strength, subtract; see `Method.run`."""
        retain = context.need_retain(self.card.name) if config.strength == "auto" else ()
        if (config.vectors or config.convention == "undo") and context.training.lora is not None:
            raise RecipeError(
                "nothing trains when the task vector is given", field="training.lora", remedy="Leave it out"
            )
        encode = context.encoder.encode_many
        forget = [row.encoded for row in encode(context.splits.forget, where="forget")]
        source = _source(config, context, forget)
        vectors = [self.select(config, context, learned, forget) for learned in source.learned]
        weights = config.weights or (1.0,) * len(vectors)
        terms = Terms(source.model, source.start, list(zip(weights, vectors, strict=True)))
        notes: dict[str, Any] = {"convention": config.convention, "vectors": len(vectors)}
        strength = config.strength
        if strength == "auto":
            held = [row.encoded for row in encode(retain, where="retain")]
            strength, choice = choose_strength(config, terms, forget, held, pad_id=context.pad_id)
            notes |= choice
        terms.write(strength)
        return MethodOutcome(
            source.model, source.training, {**notes, "strength": strength, **self.notes(config, vectors)}
        )

    def select(self, config: Any, context: MethodContext, learned: Learned, forget: Sequence[Encoded]) -> TaskVector:
        """Return the part of a vector that is subtracted; here all of it."""
        del config, context, forget
        return learned.vector

    def notes(self, config: Any, vectors: Sequence[TaskVector]) -> dict[str, Any]:
        """Return what else the run's notes should say."""
        del config, vectors
        return {}


@dataclass(frozen=True, slots=True)
class _Source:
    model: nn.Module
    start: Mapping[str, Tensor]
    learned: Sequence[Learned]
    training: TrainingResult


def _source(config: TaskVectorConfig, context: MethodContext, forget: Sequence[Encoded]) -> _Source:
    """Return the model to write to, where it starts, and the vectors, by the convention and what is given."""
    if config.convention == "undo":
        return _undone(context)
    model = _base(context, config.convention) if config.convention == "ilharco" else context.model
    return _given(config, context, model) if config.vectors else _trained(context, model, forget)


def _undone(context: MethodContext) -> _Source:
    """Return the model itself and its difference from the base; that of a model with an adapter is the adapter."""
    model = context.model
    names = _selected(model, context.training)
    start = snapshot(model, names)
    if is_lora(model):
        before = {name: torch.zeros_like(value) for name, value in start.items()}
    else:
        base = dict(_base(context, "undo").named_parameters())
        before = {name: base[name].detach() for name in names if name in base}
    parameters = dict(model.named_parameters())
    learned = Learned(Difference(before, start), model, {name: parameters[name] for name in names})
    return _Source(model, start, [learned], _NOTHING)


def _given(config: TaskVectorConfig, context: MethodContext, model: nn.Module) -> _Source:
    """Return a model and the differences of the models in `vectors` from it."""
    if is_lora(model):
        raise RecipeError("the model has an adapter", field="method.vectors", remedy="Merge it into the model first")
    names = _selected(model, context.training)
    start = snapshot(model, names)
    return _Source(model, start, [_loaded(path, model, start) for path in config.vectors], _NOTHING)


def _loaded(path: str, model: nn.Module, start: Mapping[str, Tensor]) -> Learned:
    from expunge.models.loading import DTYPES, load_model  # slow to import, and rarely needed

    weight = next(model.parameters())
    dtype = next(key for key, value in DTYPES.items() if value == weight.dtype)
    other: nn.Module = load_model(path, dtype=dtype, device=str(weight.device)).model
    if is_lora(other):
        adapter = AdapterVector(other)
        return Learned(adapter, other, {name: adapter.parameter(name) for name in adapter.names})
    parameters = dict(other.named_parameters())
    after = {name: parameters[name].detach() for name in start if name in parameters}
    return Learned(Difference(start, after), other, parameters)


def _trained(context: MethodContext, model: nn.Module, forget: Sequence[Encoded]) -> _Source:
    """Train on the forget set and return the model, its state before, and what the training changed.

    Of an adapter only the second factor is counted. A fresh one is zero before, so that this loses nothing; in one
    that was there already the first factor is held still.
    """
    fresh = context.training.lora is not None
    adapted = is_lora(model)
    model = choose_parameters(model, context.training, context.seed)
    names = [name for name, p in model.named_parameters() if p.requires_grad and "lora_A" not in name]
    if adapted and not fresh:
        freeze_except(model, names)
    start = snapshot(model, names)
    trainer = Trainer(
        model, FineTuneTask(forget, batch_size=context.training.batch_size, seed=context.seed), context.training,
        pad_id=context.pad_id, folder=context.folder, probe=context.probe, callbacks=context.callbacks,
        seed=context.seed,
    )  # fmt: skip
    result = trainer.run(resume=context.resume)
    parameters = dict(model.named_parameters())
    learned = Learned(Difference(start, snapshot(model, names)), model, {name: parameters[name] for name in names})
    return _Source(model, start, [learned], result)


def _selected(model: nn.Module, training: TrainingConfig) -> list[str]:
    """Return the parameters that may change: those named by `trainable`, the adapter's second factors, or all."""
    if training.trainable:
        return select_parameters(model, training.trainable)
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if "lora_B" in name] if is_lora(model) else names


def _base(context: MethodContext, convention: str) -> nn.Module:
    if context.load_base is None:
        raise RecipeError(
            f"convention {convention} needs the model that never saw the data", field="model.base",
            remedy="Give --base DIR (or model.base in the recipe)",
        )  # fmt: skip
    return context.load_base()


def choose_strength(
    config: TaskVectorConfig, terms: Terms, forget: Sequence[Encoded], retain: Sequence[Encoded], *, pad_id: int
) -> tuple[float, dict[str, Any]]:
    """Return the strength of the grid with the lowest forget probability among those that keep the retain set's.

    Kept means a mean retain probability of at least 1 - max_drop times that of the state to start from. Where none
    keeps it, the smallest strength is taken, and the notes say so.

    Args:
        config: grid, limit and number of examples.
        terms: the model; it is left at some strength of the grid.
        forget: sequences.
        retain: sequences of the retain set; never those of a test set.
        pad_id: id used to pad.

    Returns:
        The strength, and what was measured, for the run's notes.
    """
    sets = [spread(items, config.examples) for items in (forget, retain)]

    def probabilities(strength: float) -> tuple[float, float]:
        terms.write(strength)
        scores = [score(terms.model, items, pad_id=pad_id, stats=False) for items in sets]
        forgotten, kept = (float(np.mean([np.exp(one.logp.mean()) for one in entries])) for entries in scores)
        return forgotten, kept

    limit = (1.0 - config.max_drop) * probabilities(0.0)[1]
    tried = {strength: probabilities(strength) for strength in sorted(set(config.grid))}
    kept = [strength for strength, (_, retained) in tried.items() if retained >= limit]
    chosen = min(kept, key=lambda strength: (tried[strength][0], strength)) if kept else min(tried)
    rule = f"lowest forget probability among strengths that keep {1.0 - config.max_drop:.0%} of the retain probability"
    rows = [{"strength": s, "forget": f, "retain": r} for s, (f, r) in tried.items()]
    return chosen, {"strength_chosen_by": rule if kept else f"smallest of the grid: none meets ({rule})",
                    "strengths_tried": rows}  # fmt: skip


def spread(items: Sequence[Encoded], limit: int) -> list[Encoded]:
    """Return at most `limit` items, evenly spaced through them."""
    if len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
