# SPDX-License-Identifier: Apache-2.0
"""Answers of the frozen original model, computed once and kept, so that no second model sits in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data.batching import length_buckets, pad
from expunge.data.encoding import Encoded
from expunge.signals.head import body
from expunge.signals.likelihood import labelled_hidden, score

#: Positions of one forward that reads what the original or the present model says, between the steps of a run: few,
#: for weights and moments are in memory beside it.
READ_TOKENS = 2048

#: `tokens`: log p of each labelled token, [n]; `hidden`: last hidden state before each labelled token, [n, D].
ReferenceKind = Literal["tokens", "hidden"]


def sequence_key(item: Encoded) -> str:
    """Return a digest of ids and labels: the key under which a sequence's reference answer is kept."""
    return hashlib.sha256(repr((item.ids, item.labels)).encode()).hexdigest()[:24]


class ReferenceCache:
    """Reference signals of one frozen model for a set of sequences, in memory and optionally on disk.

    Args:
        model_digest: digest of the frozen model; part of the file name, so that a changed model never reuses it.
        folder: where files are kept; None keeps them in memory only.
    """

    def __init__(self, model_digest: str, folder: Path | None = None) -> None:
        self._digest, self._folder = model_digest, folder
        self._values: dict[str, Tensor] = {}

    def fill(
        self,
        model: nn.Module,
        items: Sequence[Encoded],
        *,
        kind: ReferenceKind,
        pad_id: int,
        batch_tokens: int = READ_TOKENS,
    ) -> None:
        """Compute what is missing for `items` with `model`, which must still be the frozen original."""
        wanted = {f"{kind}:{sequence_key(item)}": item for item in items}
        path = self._path(kind, sorted(wanted))
        if path is not None and path.exists():
            from safetensors.torch import load_file

            self._values.update(load_file(path))
        missing = {key: item for key, item in wanted.items() if key not in self._values}
        if not missing:
            return
        compute = _token_logp if kind == "tokens" else _last_hidden
        values = compute(model, list(missing.values()), pad_id, batch_tokens)
        self._values.update(zip(missing, values, strict=True))
        if path is not None:
            from safetensors.torch import save_file

            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: self._values[key].contiguous() for key in wanted}, path)

    def get(self, kind: ReferenceKind, item: Encoded) -> Tensor:
        """Return the reference signal of one sequence, [n] or [n, D].

        Raises:
            KeyError: if `fill` was never called for it.
        """
        return self._values[f"{kind}:{sequence_key(item)}"]

    def _path(self, kind: str, keys: list[str]) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256("".join([self._digest, *keys]).encode()).hexdigest()[:16]
        return self._folder / f"reference-{kind}-{name}.safetensors"


def _token_logp(model: nn.Module, items: list[Encoded], pad_id: int, batch_tokens: int) -> list[Tensor]:
    scores = score(model, items, pad_id=pad_id, batch_tokens=batch_tokens, stats=False)
    return [torch.from_numpy(entry.logp) for entry in scores]


def _last_hidden(model: nn.Module, items: list[Encoded], pad_id: int, batch_tokens: int) -> list[Tensor]:
    out: dict[int, Tensor] = {}
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for bucket in length_buckets([len(item.ids) for item in items], max_tokens=batch_tokens):
            batch = pad([items[i] for i in bucket], pad_id).to(device)
            hidden = labelled_hidden(body(model, batch.input_ids, batch.attention_mask), batch.labels)
            out.update({i: rows.float().cpu() for i, rows in zip(bucket, hidden, strict=True)})
    model.train(was_training)
    return [out[i] for i in range(len(items))]
