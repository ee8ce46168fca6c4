# SPDX-License-Identifier: Apache-2.0
"""UNDO: unlearn, damage the weights, and distil the unlearned behaviour back into them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from expunge.claims import ClaimKind, MethodCard
from expunge.errors import RecipeError
from expunge.methods.base import Method, MethodConfig, MethodContext, MethodOutcome
from expunge.methods.teachers import DistillationTask, ModelTeacher, Pupil
from expunge.methods.weights import choose_parameters
from expunge.objectives.reduction import Reduction
from expunge.optim.wrapper_config import WrapperConfig
from expunge.signals.reference import ReferenceCache
from expunge.training.config import StopConfig, TrainingConfig
from expunge.training.loop import Trainer, TrainingResult


class UndoConfig(MethodConfig):
    """Unlearn, noise, distil."""

    name: Literal["undo"] = "undo"
    unlearn: dict[str, Any] = Field(
        default_factory=lambda: {"name": "npo"}, description="the method that unlearns first, with its settings"
    )
    alpha: float = Field(0.25, ge=0, le=1, description="share by which the moving weights are shrunk towards the noise")
    beta: float = Field(0.0, ge=0, description="scale of the noise; 0 only shrinks")
    distil_learning_rate: float | None = Field(None, gt=0, description="of the distillation; default: training's")
    distil_epochs: int | None = Field(None, ge=1, description="passes over the retain set; default: training's epochs")
    distil_max_steps: int | None = Field(None, ge=1, description="most steps of the distillation; default: training's")
    temperature: float = Field(1.0, gt=0, description="of the distributions compared")
    reduction: Reduction = Field("token_mean", description="how token divergences become one number")

    @field_validator("unlearn")
    @classmethod
    def _known(cls, settings: dict[str, Any]) -> dict[str, Any]:
        inner, config = _inner(settings)
        if inner.card.claim != ClaimKind.APPROXIMATE or inner.card.name == "undo":
            raise ValueError(f"{inner.card.name} cannot come first: choose an approximate method other than undo")
        return {"name": inner.card.name, **config.model_dump(exclude={"name"}, exclude_unset=True)}


def _inner(settings: Mapping[str, Any]) -> tuple[Method, MethodConfig]:
    """Return the method that comes first and its typed settings."""
    from expunge.methods.registry import get_method, parse_method  # the registry reads this file

    try:
        return get_method(str(settings.get("name", ""))), parse_method(settings)
    except RecipeError as error:
        where = error.field.replace("method", "method.unlearn", 1)
        raise RecipeError(error.problem, field=where, value=error.value, remedy=error.remedy) from None


class Undo(Method):
    """Unlearn with another method, shrink and noise the weights, and distil the result back on the retain set."""

    Config = UndoConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 2e-5, "epochs": 5, "batch_size": 32}
    card = MethodCard(
        name="undo",
        title="UNDO: unlearn, noise, distil on outputs",
        paper="Distillation Robustifies Unlearning (arXiv:2506.06278)",
        authors="Lee, Foote, Infanger, Shor, Kamath, Goldman-Wetzler, Woodworth, Cloud, Turner",
        year=2025,
        venue="NeurIPS",
        family="distillation",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="the first method's, one pass over the retain set, then 3 F per retain sequence and epoch; published runs "
        "distil for thousands of steps",
        formula="theta_u = unlearn(theta); theta = (1 - alpha) theta_u + alpha beta noise; "
        "L = E_r mean_t KL(p_theta_u || p_theta)",
        provenance="paper and released code",
        differences=(
            "The unlearned model's last hidden states are cached once instead of keeping a second model.",
            "Noise is Xavier-scaled on matrices; norms and biases are shrunk only. With LoRA only the adapter is "
            "shrunk and noised.",
        ),
        defaults_source="released WMDP configuration: alpha 0.25, beta 0, learning rate 2e-5",
        notes="`training` rules both phases, except that rewinding, early stopping and wrappers belong to the first. "
        "Meant to make relearning slower; whether it does must be measured by a relearning attack. Masks of single "
        "weights are refused.",
    )

    def needs(self, config: Any, training: TrainingConfig) -> frozenset[str]:
        """Return the card's needs and those of the method that comes first."""
        method, settings = _inner(config.unlearn)
        return super().needs(config, training) | method.needs(settings, training)

    def examples_per_epoch(self, config: Any, *, forget: int, retain: int) -> int:
        """Return the first method's sequences and the retain set, which the distillation passes through."""
        method, settings = _inner(config.unlearn)
        return method.examples_per_epoch(settings, forget=forget, retain=retain) + retain

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Unlearn, damage, distil; see `Method.run`."""
        if context.training.mask.kind != "none":
            raise RecipeError(
                "undo shrinks every moving weight and takes no mask of single ones", field="training.mask.kind",
                value=context.training.mask.kind, remedy="Set it to none",
            )  # fmt: skip
        encode = context.encoder.encode_many
        items = [row.encoded for row in encode(context.need_retain(self.card.name), where="retain")]
        unlearned = self._unlearn(config, context)
        model, training = unlearned.model, _second_phase(config, context.training)
        cache = ReferenceCache(
            f"{context.model_digest}-unlearned", context.folder / "cache" if context.folder else None
        )
        teacher = ModelTeacher(cache)
        task = DistillationTask(
            None, Pupil(items, teacher, 1.0), temperature=config.temperature, reduction=config.reduction,
            epochs=training.epochs, batch_size=training.batch_size, pad_id=context.pad_id, seed=context.seed,
        )  # fmt: skip
        task.prepare(model)  # before the damage
        damage(model, alpha=config.alpha, beta=config.beta, seed=context.seed)
        trainer = Trainer(
            model, task, training, pad_id=context.pad_id, folder=context.folder, probe=context.probe,
            callbacks=context.callbacks, seed=context.seed,
        )  # fmt: skip
        result = trainer.run(resume=context.resume)
        notes = {"unlearn": {"method": config.unlearn, "steps": unlearned.training.steps, **unlearned.notes}}
        steps, seconds = result.steps + unlearned.training.steps, result.seconds + unlearned.training.seconds
        return MethodOutcome(model, replace(result, steps=steps, seconds=seconds), notes)

    def _unlearn(self, config: UndoConfig, context: MethodContext) -> MethodOutcome:
        """Run the first phase, or take its weights from the folder if it ended before an interruption."""
        done = context.folder / "unlearned" if context.folder else None
        if done is not None and context.resume and done.exists():
            return _load(done, context)
        method, settings = _inner(config.unlearn)
        folder = context.folder / "unlearn" if context.folder else None
        outcome = method.run(settings, replace(context, folder=folder))
        if done is not None:
            _store(done, outcome)
        return outcome


def _second_phase(config: UndoConfig, training: TrainingConfig) -> TrainingConfig:
    changes: dict[str, Any] = {"stop": StopConfig(), "wrapper": WrapperConfig(), "lora": None}
    given = {
        "learning_rate": config.distil_learning_rate, "epochs": config.distil_epochs,
        "max_steps": config.distil_max_steps,
    }  # fmt: skip
    return training.model_copy(update=changes | {key: value for key, value in given.items() if value is not None})


@torch.no_grad()
def damage(model: nn.Module, *, alpha: float, beta: float, seed: int) -> None:
    """Set every moving weight to (1 - alpha) theta + alpha beta noise.

    Args:
        model: changed in place.
        alpha: share of the noise, 0..1.
        beta: its scale, in units of Xavier's standard deviation sqrt(2 / (rows + columns)).
        seed: the noise is a function of it and of the parameter's name.
    """
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.mul_(1.0 - alpha)
            if beta > 0.0 and p.ndim >= 2:
                p.add_(_noise(name, p, seed), alpha=alpha * beta)


def _noise(name: str, p: Tensor, seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(p.shape, generator=generator).to(p) * math.sqrt(2.0 / (p.shape[0] + p[0].numel()))


def _store(folder: Path, outcome: MethodOutcome) -> None:
    """Keep the first phase's weights, written beside and renamed at the end."""
    from safetensors.torch import save_file

    partial = folder.with_name(".unlearned-partial")
    partial.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().cpu().clone() for name, p in outcome.model.named_parameters() if p.requires_grad}
    save_file(weights, partial / "weights.safetensors")
    result = outcome.training
    state = {"steps": result.steps, "seconds": result.seconds, "notes": {**result.notes, **outcome.notes}}
    (partial / "state.json").write_text(json.dumps(state), "utf-8")
    partial.rename(folder)


def _load(folder: Path, context: MethodContext) -> MethodOutcome:
    from safetensors.torch import load_file

    model = choose_parameters(context.model, context.training, context.seed)
    weights = load_file(folder / "weights.safetensors")
    moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(weights) != set(moving):
        raise RecipeError(
            "was written by a run in which other parameters moved", field=str(folder), remedy="Start again"
        )
    with torch.no_grad():
        for name, p in moving.items():
            p.copy_(weights[name])
    state = json.loads((folder / "state.json").read_text("utf-8"))
    return MethodOutcome(model, TrainingResult(state["steps"], state["seconds"], "", {}), state["notes"])
