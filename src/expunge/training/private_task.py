# SPDX-License-Identifier: Apache-2.0
"""What a private run draws and counts: the plan, the units of each step, and the account of the steps taken.

Shape suffixes: U units, R sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.data.encoding import Encoded, EncodedRow
from expunge.data.examples import Example
from expunge.errors import InputDataError, RecipeError
from expunge.signals.likelihood import Scorer, TokenRequest, label_logp
from expunge.training.accounting import Mechanism, noise_for
from expunge.training.config import TrainingConfig
from expunge.training.privacy_config import PrivacyConfig
from expunge.training.private_noise import poisson_sample, secure_uniform, seeded_uniform
from expunge.training.task import Counts, Group, MicroBatch, Row


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """What a private run will do.

    Attributes:
        privacy: settings.
        mechanism: rate, noise, and the steps of the whole run.
        units: how many there are.
        expected: units per step, on average.
    """

    privacy: PrivacyConfig
    mechanism: Mechanism
    units: int
    expected: float

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which as many units are drawn as there are, on average."""
        return math.ceil(self.units / self.expected)


def plan_privacy(config: TrainingConfig, units: Sequence[Sequence[Encoded]]) -> PrivacyPlan:
    """Return the plan of a run, with the noise found that a wanted epsilon takes.

    Args:
        config: with `privacy`; `batch_size` is the expected number of units of a step.
        units: sequences of each unit.

    Raises:
        RecipeError: for a delta that permits to publish a unit, or ghost norms of units of several sequences.
    """
    privacy, n = config.privacy, len(units)
    assert privacy is not None, "the caller asked for privacy"
    if privacy.delta * n >= 1:
        raise RecipeError(
            f"with {n} units this would permit to publish one of them outright", field="training.privacy.delta",
            value=privacy.delta, remedy=f"Use less than {1 / n:.2g}",
        )  # fmt: skip
    if privacy.clipping == "ghost" and any(len(unit) > 1 for unit in units):
        raise RecipeError(
            "ghost norms are those of single sequences, and some units have several", value="ghost",
            field="training.privacy.clipping", remedy="Use per_sample, or unit: sequence",
        )  # fmt: skip
    expected = float(min(config.batch_size, n))
    steps = config.epochs * math.ceil(n / expected)
    mechanism = Mechanism(expected / n, privacy.noise_multiplier or 0.0, min(config.max_steps or steps, steps))
    if privacy.epsilon is not None:
        sigma = noise_for(
            privacy.epsilon, delta=privacy.delta, rate=mechanism.rate, steps=mechanism.steps,
            accountant=privacy.accountant,
        )  # fmt: skip
        mechanism = replace(mechanism, noise_multiplier=sigma)
    return PrivacyPlan(privacy, mechanism, n, expected)


def units_of(
    rows: Sequence[EncodedRow], examples: Sequence[Example], unit: Literal["sequence", "subject"]
) -> list[list[Encoded]]:
    """Return the sequences of every unit; subjects in the order in which they come first.

    Args:
        rows: sequences, each with the position of its example.
        examples: all of the training set.
        unit: what the statement shall be about.

    Raises:
        InputDataError: if the unit is a subject and an example has none.
    """
    if unit == "sequence":
        return [[row.encoded] for row in rows]
    by_subject: dict[str, list[Encoded]] = {}
    for row in rows:
        example = examples[row.index]
        if not example.subject:
            raise InputDataError(
                f"example {example.id!r} has no subject, and the unit of privacy is one", field="data.train",
                remedy="Give every row a subject, or use training.privacy.unit: sequence",
            )  # fmt: skip
        by_subject.setdefault(example.subject, []).append(row.encoded)
    return list(by_subject.values())


class PoissonTask:
    """The likelihood of units that each step draws by a coin each, and the account of the steps taken.

    Secure coins are thrown anew whenever an epoch is asked for; seeded ones fall the same.

    Args:
        units: sequences of each unit.
        plan: rate, noise and steps.
        seed: of the coins.
    """

    def __init__(self, units: Sequence[Sequence[Encoded]], plan: PrivacyPlan, *, seed: int) -> None:
        self._groups = [[Row(item, "train", i) for item in unit] for i, unit in enumerate(units)]
        self.plan, self.seed = plan, seed
        self._taken = 0

    @property
    def spent(self) -> Mechanism:
        """Rate, noise, and the steps taken so far."""
        return replace(self.plan.mechanism, steps=self._taken)

    def prepare(self, model: nn.Module) -> None:
        """Nothing is compared with the model at the start."""

    def steps(self, epoch: int) -> list[list[Group]]:
        """Return the epoch's steps; some may be empty, and a unit may come in several or in none."""
        secure, n, rate = self.plan.privacy.noise == "secure", len(self._groups), self.plan.mechanism.rate
        coins = [secure_uniform if secure else seeded_uniform(self.seed, epoch, step)
                 for step in range(self.plan.steps_per_epoch)]  # fmt: skip
        return [[self._groups[i] for i in poisson_sample(n, rate, uniform)] for uniform in coins]

    def unit_losses(self, scorer: Scorer, micro: MicroBatch) -> Tensor:
        """Return the loss of every unit of a batch, [U], nats per token."""
        batch = micro.batch
        request = TokenRequest(label_logp, micro.rows_of("train"))
        answer = scorer(batch.input_ids, batch.attention_mask, batch.labels, [request])[0]
        mean_R = -answer.row_sums() / answer.lengths
        index_R = torch.tensor([row.index for row in micro.rows], device=mean_R.device)
        _, unit_R, size_U = torch.unique_consecutive(index_R, return_inverse=True, return_counts=True)
        sum_U: Tensor = torch.zeros_like(size_U, dtype=mean_R.dtype).index_add(0, unit_R, mean_R)
        mean_U: Tensor = sum_U / size_U
        return mean_U

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, Tensor]:
        """Return this micro-batch's share of the sum over the drawn units, by the expected number of them."""
        del counts
        return {"train": self.unit_losses(scorer, micro).sum() / self.plan.expected}

    def finish_step(self, watched: Mapping[str, float]) -> Mapping[str, float]:
        """Put the step on the account."""
        del watched
        self._taken += 1
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the account."""
        return {"accountant": {**asdict(self.spent), "unit": self.plan.privacy.unit, "units": self.plan.units}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the account of a checkpoint.

        Raises:
            InputDataError: if it has none, or one of other rate, noise or units.
        """
        found = state.get("accountant")
        if not isinstance(found, dict):
            raise InputDataError(
                "the checkpoint has no accountant state, so the epsilon already spent is unknown", field="--resume",
                remedy="Start again with --overwrite",
            )  # fmt: skip
        here = self.state_dict()["accountant"] | {"steps": found.get("steps")}
        if found != here:
            raise InputDataError(
                "the accountant of the checkpoint counted other steps than these", field="--resume", value=found,
                remedy="Use the same data, recipe and options, or start again with --overwrite",
            )  # fmt: skip
        self._taken = int(found["steps"])
