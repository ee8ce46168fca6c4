# SPDX-License-Identifier: Apache-2.0
"""Plain supervised training: makes targets and retain-only references with the loop the methods use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from expunge.data.encoding import Encoded
from expunge.data.sampling import PairedSampler
from expunge.objectives.likelihood import negative_log_likelihood
from expunge.objectives.reduction import reduce_tokens
from expunge.signals.likelihood import Scorer, TokenRequest, label_logp
from expunge.training.task import Counts, Group, MicroBatch, Row


class FineTuneTask:
    """Minimises the token mean of the negative log-likelihood over one set.

    Args:
        items: encoded sequences; None where one was taken out. Batches are cut as if it were still there, so that
            those it was not in stay as they are; one that it leaves empty is still a step, in which nothing moves.
        batch_size: sequences per optimiser step.
        seed: of the order.
    """

    def __init__(self, items: Sequence[Encoded | None], *, batch_size: int, seed: int) -> None:
        self._items = items
        self._sampler = PairedSampler(len(items), 0, batch_size=batch_size, seed=seed)

    def prepare(self, model: nn.Module) -> None:
        """Nothing is compared with the model at the start."""

    def steps(self, epoch: int) -> list[list[Group]]:
        """Return the epoch's steps, each sequence once."""
        return [
            [[Row(item, "train", i)] for i, _ in pairs if (item := self._items[i]) is not None]
            for pairs in self._sampler.steps(epoch)
        ]

    def losses(self, scorer: Scorer, micro: MicroBatch, counts: Counts) -> dict[str, Tensor]:
        """Return this micro-batch's share of the loss."""
        batch = micro.batch
        request = TokenRequest(label_logp, micro.rows_of("train"))
        answer = scorer(batch.input_ids, batch.attention_mask, batch.labels, [request])[0]
        loss = reduce_tokens(
            negative_log_likelihood(answer.values), answer.row, answer.lengths, "token_mean",
            sequences=counts.sequences["train"], tokens=counts.tokens["train"],
        )  # fmt: skip
        return {"train": loss}

    def finish_step(self, watched: Mapping[str, float]) -> Mapping[str, float]:
        """Nothing changes between steps."""
        del watched
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every step follows from seed and epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
