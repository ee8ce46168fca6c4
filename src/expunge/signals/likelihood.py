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

from expunge.data.encoding import IGNORE, Encoded
from expunge.data.prefix_trees import LARGEST_TREE, PrefixTree
from expunge.signals.fused import LabelLogp
from expunge.signals.head import Head, TokenFunction, body, over_vocabulary
from expunge.signals.prefix import tree_states, trees_of
from expunge.signals.sweep import label_scores


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
        wanted = [_Wanted.of(hidden_BTD, labels, request) for request in requests]
        values: dict[int, Tensor] = {}
        for function in dict.fromkeys(request.function for request in requests):
            same = [number for number, request in enumerate(requests) if request.function == function]
            values |= zip(same, self._values(function, [wanted[number] for number in same]), strict=True)
        return [TokenValues(values[number], one.row, one.lengths) for number, one in enumerate(wanted)]

    def _values(self, function: TokenFunction, wanted: Sequence[_Wanted]) -> Sequence[Tensor]:
        """Apply one function for several requests in one sweep over the vocabulary."""
        hidden_ND, labels_N = (torch.cat(parts) for parts in zip(*((w.hidden, w.labels) for w in wanted), strict=True))
        extra = tuple(torch.cat(parts) for parts in zip(*(w.extra for w in wanted), strict=True))
        values = over_vocabulary(self._head[0], hidden_ND, labels_N, function, extra)
        return torch.split(values, [len(one.labels) for one in wanted])


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request is about: hidden states [N, D] that predict labels [N] of rows [N], and tokens per row [R]."""

    hidden: Tensor
    labels: Tensor
    row: Tensor
    lengths: Tensor
    extra: tuple[Tensor, ...]

    @classmethod
    def of(cls, hidden_BTD: Tensor, labels_BT: Tensor, request: TokenRequest) -> _Wanted:
        targets_RT = labels_BT[request.rows, 1:]
        row_N, time_N = (targets_RT != IGNORE).nonzero(as_tuple=True)
        hidden_ND = hidden_BTD[request.rows[row_N], time_N]
        return cls(hidden_ND, targets_RT[row_N, time_N], row_N, (targets_RT != IGNORE).sum(1), request.extra)


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
    """Score every sequence once, longest rows first, in batches of at most `batch_tokens` positions.

    Sequences that start alike, such as several answers to one prompt, share the row and the work of what they have in
    common, where the model allows it (`signals.prefix.longest_shared`); the numbers are those of each alone.

    Args:
        model: a causal language model, with or without adapters; put into eval mode for the pass.
        items: encoded sequences.
        pad_id: id used to pad.
        batch_tokens: positions per forward, shared ones counted once, padding included.
        stats: also take arg max hits and the moments of log p in the same sweep over the vocabulary.
        progress: called with the number of sequences done after each forward.

    Returns:
        One `TokenScores` per item, in the order given.
    """
    out: list[TokenScores | None] = [None] * len(items)
    head = Head(model)
    # Small batches lose nothing on a CPU.
    enough = 1024 if next(model.parameters()).device.type == "cpu" else batch_tokens // 2
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            trees = trees_of(model, items, max_nodes=min(batch_tokens, LARGEST_TREE))
            for batch in _batches(trees, batch_tokens, enough):
                states_BTD = tree_states(model, batch, pad_id)
                members = [member for tree in batch for member in tree.members]
                found = _read(head, states_BTD, batch, [items[member] for member in members], stats)
                for member, scores in zip(members, found, strict=True):
                    out[member] = scores
                if progress is not None:
                    progress(len(members))
    finally:
        model.train(was_training)
    return [entry for entry in out if entry is not None]


def _batches(trees: Sequence[PrefixTree], batch_tokens: int, enough: int) -> list[list[PrefixTree]]:
    """Return trees of similar size together, longest first; those of one sequence apart, as they need no mask.

    A batch of `enough` positions takes no row that would be padded by more than a sixteenth.
    """
    out: list[list[PrefixTree]] = []
    for lone in (False, True):
        rows, longest = 0, 0
        for tree in sorted((t for t in trees if (len(t.members) == 1) is lone), key=len, reverse=True):
            much_shorter = rows * longest >= enough and 16 * len(tree) < 15 * longest
            if rows == 0 or (rows + 1) * longest > batch_tokens or much_shorter:
                out.append([])
                rows, longest = 0, len(tree)
            out[-1].append(tree)
            rows += 1
    return sorted(out, key=lambda batch: -len(batch[0]))


def _read(
    head: Head, states_BTD: Tensor, trees: Sequence[PrefixTree], items: Sequence[Encoded], stats: bool
) -> list[TokenScores]:
    """Return the scores of the members of a batch of trees, in order; each state is read once, however much follows."""
    width, device = states_BTD.shape[1], states_BTD.device
    paths = [row * width + path for row, tree in enumerate(trees) for path in tree.paths]
    labels = [np.array(item.labels[1:], dtype=np.int64) for item in items]
    wanted = [values != IGNORE for values in labels]
    before = np.concatenate([path[:-1][mask] for path, mask in zip(paths, wanted, strict=True)])
    labels_N = np.concatenate([values[mask] for values, mask in zip(labels, wanted, strict=True)])
    places, query_N = np.unique(before, return_inverse=True)
    states_QD = states_BTD.flatten(0, 1)[torch.from_numpy(places).to(device)]
    values = label_scores(head, states_QD, query_N, labels_N, stats=stats)
    return [_scores(piece, stats) for piece in torch.split(values, [int(mask.sum()) for mask in wanted])]


def _scores(piece: Tensor, stats: bool) -> TokenScores:
    columns = piece.numpy()
    if not stats:
        empty = np.zeros(0, dtype=np.float32)
        return TokenScores(columns[:, 0], empty.astype(np.bool_), empty, empty)
    return TokenScores(columns[:, 0], columns[:, 1] > 0.5, columns[:, 2], columns[:, 3])
