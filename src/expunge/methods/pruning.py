# SPDX-License-Identifier: Apache-2.0
"""Prune, let the model recover on the retain set, then unlearn what is left of it: prune_first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from expunge.claims import ClaimKind, MethodCard
from expunge.data.encoding import Encoded
from expunge.errors import RecipeError
from expunge.methods.base import Method, MethodConfig, MethodContext, MethodOutcome
from expunge.methods.gradient import GradientMethod
from expunge.methods.weights import Masks, choose_parameters, kept, prunable_weights, wanda_masks
from expunge.models.digests import model_digest
from expunge.optim.config import MaskConfig
from expunge.optim.masks import WeightMasks, global_masks, kept_share
from expunge.optim.scores import magnitude
from expunge.optim.wrapper_config import WrapperConfig
from expunge.training.config import StopConfig, TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer

#: Sequences of the retain set whose inputs decide what wanda prunes.
CALIBRATION = 128


class PruneFirstConfig(MethodConfig):
    """Prune first, then unlearn."""

    name: Literal["prune_first"] = "prune_first"
    score: Literal["magnitude", "wanda"] = Field(
        "magnitude", description="magnitude: smallest weights over all layers; wanda: per row, times their input's norm"
    )
    sparsity: float = Field(0.3, gt=0, lt=1, description="share of the linear layers' weights that become zero")
    rounds: int = Field(1, ge=1, description="1: at once; more: a constant share of what is left each round")
    recovery_epochs: int = Field(1, ge=0, description="passes over the retain set after each round")
    recovery_learning_rate: float | None = Field(None, gt=0, description="default: that of training")
    then: dict[str, Any] = Field(
        default={"name": "grad_diff"}, validate_default=True, description="settings of the method that unlearns"
    )

    @field_validator("then")
    @classmethod
    def _method(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Resolve the settings, so that the recipe's hash covers them."""
        from expunge.methods.registry import get_method, parse_method

        try:
            config = parse_method(value)
            method = get_method(str(value["name"]))
        except RecipeError as error:
            where = error.field.replace("method", "method.then", 1)
            raise RecipeError(error.problem, field=where, value=error.value, remedy=error.remedy) from None
        if not isinstance(method, GradientMethod):
            raise RecipeError(
                "only a method of gradient steps can follow", field="method.then.name", value=value["name"],
                remedy="Use one such as grad_diff or npo",
            )  # fmt: skip
        return config.model_dump(mode="json")


def sparsity_after(done: int, *, rounds: int, sparsity: float) -> float:
    """Return the share of zeros after `done` rounds, each of which takes the same share of what is left."""
    kept_after: float = (1.0 - sparsity) ** (done / rounds)
    return round(1.0 - kept_after, 12)


class PruneFirst(Method):
    """Prune, recover, then run another method on the weights that are left."""

    Config = PruneFirstConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}
    card = MethodCard(
        name="prune_first",
        title="Prune first, then unlearn",
        paper="Model Sparsity Can Simplify Machine Unlearning (arXiv:2304.04934); Wanda (arXiv:2306.11695)",
        authors="Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu",
        year=2023,
        venue="NeurIPS",
        family="sparsity",
        claim=ClaimKind.APPROXIMATE,
        needs=("forget", "retain"),
        cost="3 F per retain sequence, recovery epoch and round, then the cost of the method that follows",
        formula="theta_s = mask * theta, recovered on the retain set; then the chosen method with theta_s as its "
        "original and zeros kept at zero",
        provenance="paper, for image classifiers; the form for language models is ours",
        differences=(
            "Linear layers only, at 30 % instead of 95 %: language models without long retraining break beyond "
            "about half.",
            "Recovery trains the pruned weights on; the released code rewinds them to an early epoch first.",
            "Pruned weights stay exactly zero through both trainings, whatever the optimiser's decay and momentum.",
            "What later losses compare with (npo, kl) is the pruned and recovered model.",
            "With an adapter only the adapter may change, so its first factor is what is pruned.",
        ),
        defaults_source="ours: sparsity 0.3, one round, one recovery epoch; loop settings of TOFU",
        notes="Only methods of gradient steps can follow. Hold the result against a retrained model of the same "
        "sparsity. training.mask applies on top, to the weights that are left.",
    )

    def check(self, config: Any, training: TrainingConfig) -> None:
        """Check the method that follows."""
        method, then = _following(config)
        method.check(then, training)

    def needs(self, config: Any, training: TrainingConfig) -> frozenset[str]:
        """Return the retain set and what the method that follows needs."""
        method, then = _following(config)
        return frozenset({"retain"}) | method.needs(then, training)

    def examples_per_epoch(self, config: Any, *, forget: int, retain: int) -> int:
        """Return the epoch of the method that follows; recovery is not counted."""
        method, then = _following(config)
        return method.examples_per_epoch(then, forget=forget, retain=retain)

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Prune and recover round by round, then unlearn; see `Method.run`."""
        examples = context.need_retain(self.card.name)
        retain = [row.encoded for row in context.encoder.encode_many(examples, where="retain")]
        method, then = _following(config)
        parts = method.parts(then, context)
        model = choose_parameters(context.model, context.training, context.seed)
        masks: Masks = {}
        for done in range(1, config.rounds + 1):
            masks = _round(config, context, model, retain, done)
        pruned = replace(context, model_digest=model_digest(model))
        outcome = method.train(then, pruned, parts, model, fixed=masks)
        return replace(outcome, notes={**outcome.notes, "sparsity": round(1.0 - kept_share(masks), 6)})


def _following(config: PruneFirstConfig) -> tuple[GradientMethod, MethodConfig]:
    from expunge.methods.registry import get_method, parse_method

    method = get_method(str(config.then["name"]))
    assert isinstance(method, GradientMethod), "checked by the configuration"
    return method, parse_method(config.then)


def _round(
    config: PruneFirstConfig, context: MethodContext, model: nn.Module, retain: list[Encoded], done: int
) -> Masks:
    """Prune once more and recover; a resumed run goes on with the masks and weights it had."""
    folder = context.folder / f"prune-{done}" if context.folder else None
    share = round(1.0 - sparsity_after(done, rounds=config.rounds, sparsity=config.sparsity), 12)
    path = folder / "masks.safetensors" if folder else None
    masks = kept(path, lambda: _masks(config, context, model, retain, share), resume=context.resume)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].masked_fill_(~mask.to(weights[name].device), 0.0)
    if config.recovery_epochs:
        _recover(config, context, model, retain, WeightMasks(model, masks), folder)
    return masks


def _masks(
    config: PruneFirstConfig, context: MethodContext, model: nn.Module, retain: list[Encoded], share: float
) -> Masks:
    weights = prunable_weights(model)
    if config.score == "wanda":
        return wanda_masks(model, weights, retain[:CALIBRATION], share, pad_id=context.pad_id)
    return global_masks(list(weights), lambda name: magnitude(weights[name]), share)


def _recover(
    config: PruneFirstConfig,
    context: MethodContext,
    model: nn.Module,
    retain: list[Encoded],
    masks: WeightMasks,
    folder: Path | None,
) -> None:
    changes = {
        "epochs": config.recovery_epochs, "max_steps": None, "mask": MaskConfig(), "proximal_l1": None,
        "stop": StopConfig(), "wrapper": WrapperConfig(),
        "learning_rate": config.recovery_learning_rate or context.training.learning_rate,
    }  # fmt: skip
    training = context.training.model_copy(update=changes)
    task = FineTuneTask(retain, batch_size=training.batch_size, seed=context.seed)
    Trainer(
        model, task, training, pad_id=context.pad_id, folder=folder, callbacks=context.callbacks, masks=masks,
        seed=context.seed, keep_last=True,
    ).run(resume=context.resume)  # fmt: skip
