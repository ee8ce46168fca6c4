# SPDX-License-Identifier: Apache-2.0
"""Token log-probabilities at labelled positions: the one likelihood that losses and audits share.

Shape suffixes: B batch rows, T tokens, D hidden width, V vocabulary, N labelled positions, C one chunk, R some rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data.batching import length_buckets, pad
from expunge.data.encoding import IGNORE, Encoded
from expunge.signals.fused import LabelLogp
from expunge.signals.head import Head, TokenFunction, body, over_vocabulary


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One quantity per labelled token, wanted for some rows of a batch.

    Attributes:
        function: maps logits [C, V], labels [C] and the chunks of `extra` to values [C] or [C, K].
        rows: indices of the rows of the batch, [R] int64.
        extra: tensors with one entry per labelled token of those rows, in order, each [N, ...].
    """

    function: TokenFunction
    rows: Tensor
    extra: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenValues:
    """The answer to a request: values [N] or [N, K], the row each belongs to [N] (0..R-1), and tokens per row [R]."""

    values: Tensor
    row: Tensor
    lengths: Tensor

    def row_sums(self) -> Tensor:
        """Return the sum of the values of each row, [R]."""
        return torch.zeros_like(self.lengths, dtype=self.values.dtype).index_add(0, self.row, self.values)


#: log p(label) per position from logits [C, V] and labels [C]: [C], nats, float32.
label_logp = LabelLogp()


def label_statistics(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    """Return [C, 4]: log p(label), 1 if the arg max is the label, and mean and variance of log p_v under p.

    Source: Min-K%++ (Zhang et al., 2024, arXiv:2404.02936), section 3, for the mean and variance.
    """
    logp_CV = torch.log_softmax(logits_CV, dim=1)
    p_CV = logp_CV.exp()
    mean_C = (p_CV * logp_CV).sum(1)
    variance_C = (p_CV * (logp_CV - mean_C[:, None]) ** 2).sum(1)
    label_C = logp_CV.gather(1, labels_C[:, None]).squeeze(1)
    hit_C = (logp_CV.argmax(1) == labels_C).float()
    return torch.stack([label_C, hit_C, mean_C, variance_C], dim=1)


class Reading(ABC):
    """Anything else than likelihoods that a forward pass is made for, such as the states of one block."""

    @abstractmethod
    def read(self, model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> list[Tensor]:
        """Run as much of the model as is needed, with gradients if they are on, and return what was asked for."""


#: From a model, token ids, mask and the states that will be read (None: all) to last hidden states [B, T, D].
Body = Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]


class Scorer(nn.Module):
    """A causal language model seen through its likelihood.

    All requests are answered inside one `forward`, so that wrappers for distributed training see one ordinary module.

    Args:
        model: a causal language model.
        body: what gives its last hidden states, called as `signals.head.body` is.
        only_read: let a packed pass leave out what the last block makes of tokens whose state no request reads; not for
            activations that are recomputed.
    """

    def __init__(self, model: nn.Module, body: Body = body, *, only_read: bool = False) -> None:
        super().__init__()
        self.model = model
        self._body, self._only_read = body, only_read
        # The head shares its projection with the model; a plain list keeps it from being registered twice.
        self._head = [Head(model)]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, requests: Sequence[TokenRequest] | Reading
    ) -> list[TokenValues] | list[Tensor]:
        """Answer every request from one pass of the body, or make one reading.

        Args:
            input_ids: token ids, [B, T] int64.
            attention_mask: 1 for real tokens, [B, T].
            labels: ids at labelled positions, `IGNORE` elsewhere, [B, T], not shifted.
            requests: what is wanted, for which rows.
        """
        if isinstance(requests, Reading):
            return requests.read(self.model, input_ids, attention_mask)
        read_BT = nn.functional.pad(labels[:, 1:] != IGNORE, (0, 1)) if self._only_read else None
        hidden_BTD = self._body(self.model, input_ids, attention_mask, read_BT)
        return [self._answer(hidden_BTD, labels, request) for request in requests]

    def _answer(self, hidden_BTD: Tensor, labels_BT: Tensor, request: TokenRequest) -> TokenValues:
        targets_RT = labels_BT[request.rows, 1:]
        row_N, time_N = (targets_RT != IGNORE).nonzero(as_tuple=True)
        hidden_ND = hidden_BTD[request.rows[row_N], time_N]
        values = over_vocabulary(self._head[0], hidden_ND, targets_RT[row_N, time_N], request.function, request.extra)
        return TokenValues(values, row_N, (targets_RT != IGNORE).sum(1))


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of one sequence, one entry per labelled token (the first position of a sequence cannot be scored).

    Attributes:
        logp: log p(label), nats, float32 [n].
        correct: arg max equals the label, bool [n]; empty without statistics.
        mu, sigma2: mean and variance of log p_v under p, float32 [n]; empty without statistics.
    """

    logp: NDArray[np.float32]
    correct: NDArray[np.bool_]
    mu: NDArray[np.float32]
    sigma2: NDArray[np.float32]


def labelled_hidden(hidden_BTD: Tensor, labels_BT: Tensor) -> list[Tensor]:
    """Return, per row, the hidden states that predict its labelled tokens, each [n, D]."""
    mask_BT = labels_BT[:, 1:] != IGNORE
    return [hidden_BTD[b, :-1][mask_BT[b]] for b in range(labels_BT.shape[0])]


def score(
    model: nn.Module,
    items: Sequence[Encoded],
    *,
    pad_id: int,
    batch_tokens: int = 8192,
    stats: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[TokenScores]:
    """Score every sequence once, longest first, in batches of at most `batch_tokens` positions.

    Args:
        model: a causal language model, with or without adapters; put into eval mode for the pass.
        items: encoded sequences.
        pad_id: id used to pad.
        batch_tokens: positions per forward, padding included.
        stats: also take arg max hits and the moments of log p in the same sweep over the vocabulary.
        progress: called with the number of sequences done after each forward.

    Returns:
        One `TokenScores` per item, in the order given.
    """
    function = label_statistics if stats else label_logp
    out: list[TokenScores | None] = [None] * len(items)
    scorer = Scorer(model)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for bucket in length_buckets([len(item.ids) for item in items], max_tokens=batch_tokens):
                batch = pad([items[i] for i in bucket], pad_id).to(device)
                rows = torch.arange(len(bucket), device=device)
                request = TokenRequest(function, rows)
                answer = scorer(batch.input_ids, batch.attention_mask, batch.labels, [request])[0]
                for i, piece in zip(bucket, answer.values.cpu().split(answer.lengths.tolist()), strict=True):
                    out[i] = _scores(piece, stats)
                if progress is not None:
                    progress(len(bucket))
    finally:
        model.train(was_training)
    return [entry for entry in out if entry is not None]


def _scores(piece: Tensor, stats: bool) -> TokenScores:
    if not stats:
        empty = np.zeros(0, dtype=np.float32)
        return TokenScores(piece.numpy().astype(np.float32), empty.astype(np.bool_), empty, empty)
    columns = piece.numpy().astype(np.float32)
    return TokenScores(columns[:, 0], columns[:, 1] > 0.5, columns[:, 2], columns[:, 3])
