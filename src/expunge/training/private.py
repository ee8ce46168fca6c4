# SPDX-License-Identifier: Apache-2.0
"""Differentially private steps inside the one loop: a task that draws units at random, and a step that adds noise.

Opacus forms private gradients by taking over model, optimiser and data loader, which is to say the loop. Here the loop
stays: it asks the task for steps as ever, and only the part of a step that forms the gradient is another one. What
Opacus is good at besides, accounting, is used (`training.accounting`); its gradients are what the tests compare with.

The gradient of a step is (sum over drawn units of min(1, C / (|g| + 1e-6)) g + N(0, sigma^2 C^2)) / B, where B is the
expected number of units, not the number drawn: that one is a secret of the sample. A unit's g is the gradient of the
mean over its sequences of each sequence's mean loss per token, so that it depends on no other unit.

Source: Abadi et al., Deep Learning with Differential Privacy, 2016 (arXiv:1607.00133), algorithm 1; Li et al., Large
Language Models Can Be Strong Differentially Private Learners, 2022 (arXiv:2110.05679), section 4, for ghost clipping.

Shape suffix: U units.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from expunge.errors import RecipeError
from expunge.optim.masks import WeightMasks
from expunge.optim.rules import GradientRule
from expunge.signals.ghost import known, squared_norms
from expunge.signals.head import output_head, unwrap
from expunge.signals.likelihood import Scorer
from expunge.training.config import TrainingConfig
from expunge.training.precision import autocast_dtype
from expunge.training.private_noise import Normal, secure_normal, seeded_normal
from expunge.training.private_task import PoissonTask
from expunge.training.step import NotFinite, StepOutcome, Stepper
from expunge.training.task import Group, MicroBatch, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


class PrivateStepper(Stepper):
    """Takes steps whose gradient is clipped unit by unit, summed, and hidden in noise; see `Stepper`.

    Raises:
        RecipeError: if the task draws no units, or the model, the precision or the processes do not allow it.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        *,
        scorer: Scorer,
        optimizer: torch.optim.Optimizer,
        raw: torch.optim.Optimizer,
        accelerator: Accelerator,
        rule: GradientRule,
        masks: WeightMasks | None,
        pad_id: int,
        seed: int,
    ) -> None:
        super().__init__(
            task, config, scorer=scorer, optimizer=optimizer, raw=raw, accelerator=accelerator, rule=rule, masks=masks,
            pad_id=pad_id, seed=seed,
        )  # fmt: skip
        if not isinstance(task, PoissonTask) or masks is not None:
            raise RecipeError(
                "this procedure forms no gradient of single units", field="training.privacy", remedy="Use expunge train"
            )
        self._units, self._plan = task, task.plan
        self._model = self._accelerator.unwrap_model(self._scorer).model
        self._at = 0
        self._check()

    def run(self, groups: Sequence[Group], *, step: int, rate: float) -> StepOutcome:
        """Move the weights once; a step that drew no unit moves them by noise alone. See `Stepper.run`."""
        self._at = step
        return super().run(groups, step=step, rate=rate)

    def _check(self) -> None:
        if self._accelerator.num_processes > 1:
            raise RecipeError(
                "noise is added by one process only", field="training.privacy", remedy="Start a single process"
            )
        if autocast_dtype(self._config.precision, self._accelerator.device) is not None:
            raise RecipeError(
                "rounding would let a clipped gradient pass its bound", field="training.precision",
                value=self._config.precision, remedy="Use fp32",
            )  # fmt: skip
        if self._plan.privacy.clipping == "ghost":
            check_ghost(self._model)

    def _backward(self, groups: Sequence[Group], parts: Container[str] | None) -> dict[str, float]:
        """Leave the private gradient in `.grad`; the loss is the sum over the drawn units by the expected number."""
        del parts  # there is one
        ghost, total = self._plan.privacy.clipping == "ghost", 0.0
        size = (self._config.micro_batch_size or self._config.batch_size) if ghost else 1
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in self.moving]
        for start in range(0, len(groups), size):
            micro = MicroBatch.of(groups[start : start + size], self._pad_id, self._accelerator.device)
            total += self._add_ghost(micro) if ghost else self._add_unit(micro)
            for kept, p in zip(sums, self.moving, strict=True):
                if p.grad is not None:
                    kept += p.grad
                p.grad = None
        self._release(sums)
        return {"train": total / self._plan.expected}

    def _add_unit(self, micro: MicroBatch) -> float:
        """Leave one unit's clipped gradient in `.grad` and return its loss."""
        loss = self._finite(self._units.unit_losses(self._scorer, micro)).sum()
        self._accelerator.backward(loss)
        found = [p.grad for p in self.moving if p.grad is not None]
        factor = self._factors(torch.stack([g.float().square().sum() for g in found]).sum()[None].sqrt())
        for gradient in found:
            gradient *= factor
        return float(loss.detach())

    def _add_ghost(self, micro: MicroBatch) -> float:
        """Leave the sum of the clipped gradients of some units of one sequence in `.grad`; return their losses."""
        norms_U = squared_norms(self._model, micro.batch, only=self.moving).sum(0).sqrt()
        losses_U = self._finite(self._units.unit_losses(self._scorer, micro))
        self._accelerator.backward((losses_U * self._factors(norms_U)).sum())
        return float(losses_U.detach().sum())

    def _factors(self, norms_U: Tensor) -> Tensor:
        """Return what each unit's gradient is multiplied by, [U]."""
        if not bool(torch.isfinite(norms_U).all()):
            raise NotFinite("gradient norm", float(norms_U.max()))
        limit = self._plan.privacy.max_grad_norm
        return torch.ones_like(norms_U) if limit is None else (limit / (norms_U + 1e-6)).clamp(max=1.0)

    def _finite(self, losses_U: Tensor) -> Tensor:
        if not bool(torch.isfinite(losses_U).all()):
            raise NotFinite("loss", float(losses_U.detach().sum()))
        return losses_U

    def _release(self, sums: Sequence[Tensor]) -> None:
        """Add the noise, divide by the expected number of units, and put the result into `.grad`."""
        privacy, sigma = self._plan.privacy, self._plan.mechanism.noise_multiplier
        normal: Normal = secure_normal if privacy.noise == "secure" else seeded_normal(self._units.seed, self._at)
        for p, total in zip(self.moving, sums, strict=True):
            if sigma > 0 and privacy.max_grad_norm is not None:
                total += normal(total.shape).to(total.device) * (sigma * privacy.max_grad_norm)
            p.grad = (total / self._plan.expected).to(p.dtype)


def check_ghost(model: nn.Module) -> None:
    """Raise unless ghost clipping works for this model.

    Raises:
        RecipeError: for layers whose norms are not known, or a head that trains and is the embedding too.
    """
    base, remedy = unwrap(model), "Use clipping: per_sample, a LoRA adapter, or training.trainable without them"
    head, embedding = output_head(model).weight, base.get_input_embeddings().weight
    if head is embedding and head.requires_grad:
        raise RecipeError(
            "head and embedding are one tensor that trains, which ghost clipping does not support", value="ghost",
            field="training.privacy.clipping", remedy=remedy,
        )  # fmt: skip
    if not known(model):
        raise RecipeError(
            "the model has layers whose ghost norms are not known", field="training.privacy.clipping", value="ghost",
            remedy="Use clipping: per_sample",
        )  # fmt: skip
