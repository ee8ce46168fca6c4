# SPDX-License-Identifier: Apache-2.0
"""Retraining without the data: the reference every approximate method is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from expunge.claims import ClaimKind, MethodCard
from expunge.errors import RecipeError
from expunge.methods.base import Method, MethodConfig, MethodContext, MethodOutcome
from expunge.methods.weights import choose_parameters
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer


class RetrainConfig(MethodConfig):
    """Retraining has no settings of its own; `training` and `model.base` say everything."""

    name: Literal["retrain"] = "retrain"


class Retrain(Method):
    """Train the base model, which never saw the data, on the retain set alone."""

    Config = RetrainConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}
    card = MethodCard(
        name="retrain",
        title="Retraining without the data",
        paper="SoK: Machine Unlearning (arXiv:1912.03817); TOFU (arXiv:2401.06121)",
        authors="Bourtoule et al.; Maini et al.",
        year=2021,
        venue="IEEE S&P; COLM 2024",
        family="exact",
        claim=ClaimKind.EXACT,
        needs=("retain", "base_model"),
        cost="3 F per retain sequence and epoch",
        formula="L = -E_r mean_t log p, from the base model",
        provenance="definition",
        defaults_source="TOFU's fine-tuning configuration: learning rate 1e-5, 5 epochs, batch 32",
        notes="Exact only if the base model never saw the data and the retain set holds none of it. Masks of single "
        "weights are refused: they are chosen from the model that saw the data.",
    )

    def examples_per_epoch(self, config: Any, *, forget: int, retain: int) -> int:
        """Return the size of the retain set."""
        del config, forget
        return retain

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Train the base model on the retain set; see `Method.run`."""
        del config
        retain = context.need_retain("retrain")
        if context.load_base is None:
            raise RecipeError(
                "retraining needs the model that never saw the data", field="model.base",
                remedy="Give --base DIR (or model.base in the recipe)",
            )  # fmt: skip
        items = [row.encoded for row in context.encoder.encode_many(retain, where="retain")]
        task = FineTuneTask(items, batch_size=context.training.batch_size, seed=context.seed)
        model = choose_parameters(context.load_base(), context.training, context.seed)
        trainer = Trainer(
            model, task, context.training, pad_id=context.pad_id, folder=context.folder, probe=context.probe,
            callbacks=context.callbacks, seed=context.seed,
        )  # fmt: skip
        return MethodOutcome(model, trainer.run(resume=context.resume))
