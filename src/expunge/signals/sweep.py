# SPDX-License-Identifier: Apache-2.0
"""Everything that scores need from the vocabulary head, taken from each chunk of logits while it is in the cache.

Shape suffixes: Q states, D hidden width, C states of one chunk, V vocabulary, N labels, M labels of one chunk.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.signals.head import CHUNK_ELEMENTS, Head

#: Elements of a chunk on the CPU (4 MiB): the passes over it then find it in the cache.
CPU_ELEMENTS = 1 << 20
_FEWEST = 64  # states of a chunk, however large the vocabulary: below this the product itself gets slow


def label_scores(
    head: Head, states_QD: Tensor, query_N: NDArray[np.int64], labels_N: NDArray[np.int64], *, stats: bool
) -> Tensor:
    """Return what the head says of every label, on the CPU: [N, 4] float32 (see `statistics`), or log p alone, [N, 1].

    Args:
        head: of the model whose states are given; no gradient may be wanted.
        states_QD: states that predict.
        query_N: which state predicts each label; one state can predict several.
        labels_N: token ids.
        stats: whether to take the statistics.
    """
    device = states_QD.device
    size = _chunk(head, device)
    order = np.argsort(query_N, kind="stable")
    cuts = np.searchsorted(query_N[order], np.arange(0, len(states_QD) + size, size))
    row_N = torch.from_numpy(query_N[order] % size).to(device)
    label_N = torch.from_numpy(labels_N[order]).to(device)
    function, found = statistics if stats else _logp, [states_QD.new_zeros((0, 4 if stats else 1), dtype=torch.float32)]
    for states_CD, (start, end) in zip(torch.split(states_QD, size), pairwise(cuts), strict=False):
        found.append(function(head(states_CD), row_N[start:end], label_N[start:end]))
    joined = torch.cat(found).cpu()
    return torch.empty_like(joined).index_copy_(0, torch.from_numpy(order), joined)


def statistics(logits_CV: Tensor, row_M: Tensor, label_M: Tensor) -> Tensor:
    """Return [M, 4]: log p(label), 1 if the arg max is the label, and mean and variance of log p_v under p.

    Overwrites the logits. Everything is relative to the largest logit, and the variance is taken about the mean, so
    that float32 is enough.

    Args:
        logits_CV: float32.
        row_M: chunk row of each label.
        label_M: token ids.

    Source: Min-K%++ (Zhang et al., 2024, arXiv:2404.02936), section 3, for the mean and variance.
    """
    top_C, place_C = logits_CV.max(dim=1)
    below_CV = logits_CV.sub_(top_C[:, None])
    label_logit_M = below_CV[row_M, label_M]
    weight_CV = below_CV.exp()
    total_C = weight_CV.sum(dim=1)
    mean_C = (weight_CV * below_CV).sum(dim=1) / total_C
    variance_C = weight_CV.mul_(below_CV.sub_(mean_C[:, None])).mul_(below_CV).sum(dim=1) / total_C
    shift_C = total_C.log()
    per_row_C3 = torch.stack([-shift_C, mean_C - shift_C, variance_C], dim=1)[row_M]
    hit_M = (place_C[row_M] == label_M).float()
    return torch.stack([label_logit_M + per_row_C3[:, 0], hit_M, per_row_C3[:, 1], per_row_C3[:, 2]], dim=1)


def _logp(logits_CV: Tensor, row_M: Tensor, label_M: Tensor) -> Tensor:
    return torch.log_softmax(logits_CV, dim=1)[row_M, label_M][:, None]


def _chunk(head: Head, device: torch.device) -> int:
    """Return how many states a chunk has."""
    vocabulary: int = head.projection.weight.shape[0]
    return max(_FEWEST, CPU_ELEMENTS // vocabulary) if device.type == "cpu" else max(1, CHUNK_ELEMENTS // vocabulary)
