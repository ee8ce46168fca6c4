# SPDX-License-Identifier: Apache-2.0
"""Unlearning by forgetting what is not repeated: training on the retain set under an l1 penalty: l1_sparse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from expunge.claims import ClaimKind, MethodCard
from expunge.errors import RecipeError
from expunge.methods.base import Method, MethodConfig, MethodContext, MethodOutcome
from expunge.methods.weights import choose_parameters, prunable_weights
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer


class L1SparseConfig(MethodConfig):
    """Sparsity-aware unlearning."""

    name: Literal["l1_sparse"] = "l1_sparse"
    l1_weight: float = Field(
        0.5, ge=0, description="a step moves every linear weight towards 0 by this share of the learning rate"
    )
    free_epochs: int = Field(0, ge=0, description="epochs at the end without penalty; until then it falls linearly")


class L1Sparse(Method):
    """Fine-tune on the retain set while small weights go to zero."""

    Config = L1SparseConfig
    training_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-5, "epochs": 5, "batch_size": 32}
    card = MethodCard(
        name="l1_sparse",
        title="Sparsity-aware unlearning (l1-sparse)",
        paper="Model Sparsity Can Simplify Machine Unlearning (arXiv:2304.04934)",
        authors="Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu",
        year=2023,
        venue="NeurIPS",
        family="sparsity",
        claim=ClaimKind.APPROXIMATE,
        needs=("retain",),
        cost="3 F per retain sequence and epoch",
        formula="min over theta of -E_r mean_t log p + l1_weight |theta|_1",
        provenance="paper, for image classifiers trained with SGD; the falling schedule from its released code",
        differences=(
            "The penalty is a proximal step (soft thresholding) after each Adam step; through Adam its subgradient "
            "would be a step of constant size that reaches zero in no weight.",
            "It acts on linear layers only; the released code takes norms and biases too.",
            "With an adapter it acts on the adapter's factors.",
        ),
        defaults_source="ours: the published weight (5e-4 beside SGD steps at rate 0.01) shrinks a weight by about "
        "0.004 in its ten epochs; at Adam's rate 1e-5 and 600 steps 0.5 comes to about 0.0015. Scan it from 0.1 to 2. "
        "Learning rate, epochs and batch are those of TOFU",
        notes="Takes no forget data: what the retain set neither repeats nor overwrites fades only through the "
        "penalty. Compare with a retrained model of the same sparsity. Masks of single weights are refused, and so is "
        "training.proximal_l1 beside it.",
    )

    def examples_per_epoch(self, config: Any, *, forget: int, retain: int) -> int:
        """Return the size of the retain set."""
        del config, forget
        return retain

    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Train on the retain set; see `Method.run`."""
        retain = context.need_retain(self.card.name)
        if context.training.proximal_l1 is not None:
            raise RecipeError(
                "l1_sparse brings its own penalty", field="training.proximal_l1", remedy="Set method.l1_weight instead"
            )
        if config.l1_weight and config.free_epochs > context.training.epochs:
            raise RecipeError(
                "there are not as many epochs", field="method.free_epochs", value=config.free_epochs,
                remedy=f"Use at most training.epochs, {context.training.epochs}",
            )  # fmt: skip
        penalty = {"weight": config.l1_weight, "free_epochs": config.free_epochs} if config.l1_weight else None
        training = type(context.training).model_validate({**context.training.model_dump(), "proximal_l1": penalty})
        items = [row.encoded for row in context.encoder.encode_many(retain, where="retain")]
        task = FineTuneTask(items, batch_size=training.batch_size, seed=context.seed)
        model = choose_parameters(context.model, training, context.seed)
        trainer = Trainer(
            model, task, training, pad_id=context.pad_id, folder=context.folder, probe=context.probe,
            callbacks=context.callbacks, errors=context.error_probe(), seed=context.seed,
        )  # fmt: skip
        result = trainer.run(resume=context.resume)
        return MethodOutcome(model, result, {"zero_share": zero_share(model)})


def zero_share(model: nn.Module) -> float:
    """Return the share of exact zeros among the weights of linear layers that may move, 0..1."""
    weights = prunable_weights(model).values()
    return sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
