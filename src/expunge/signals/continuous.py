# SPDX-License-Identifier: Apache-2.0
"""Decoding with a preallocated key/value cache in which rows come and go.

Every row has a slot, and the key and value of the token at position p stand in column p of the slot. A row that ends
gives its slot to the last one, so that the rows at work are always the first ones, and a waiting prompt takes the place
that is free. A prompt that begins like one at work takes over the columns they share.

The last token of a prompt is fed with the next tokens of the other rows: logits are only ever computed for the position
after which a token is wanted, by the model's own forward.

Shape suffixes: B rows at work, T tokens fed to each, K columns seen, R slots, W columns of a slot, H key/value heads,
D width of a head, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from expunge.signals.stopping import Watch

MIN_SHARED = 16
"""Shared beginnings shorter than this are computed again; copying them would save less than it costs."""
_REFILL = 8
"""Waiting prompts come in when one slot in so many is free."""
_WORTH_A_FORWARD, _PADDING = 512, 0.05
"""Prompts of other lengths go into another forward once one holds so many tokens and would be so much padding."""


@dataclass(slots=True)
class Row:
    """One prompt and what was added to it.

    Attributes:
        prompt: its token ids.
        limit: the most tokens to add.
        watch: tells where it may end before that; None where only the end-of-sequence token ends it.
        draws: uniform numbers, one per token to add [limit]; None for the most likely tokens.
        ids: what was added, without the end-of-sequence token.
        finished: whether that token came.
    """

    prompt: tuple[int, ...]
    limit: int
    watch: Watch | None = None
    draws: NDArray[np.float64] | None = None
    ids: list[int] = field(default_factory=list)
    finished: bool = False

    @property
    def need(self) -> int:
        """Columns it takes at most; its last token is never fed."""
        return len(self.prompt) + self.limit - 1

    @property
    def place(self) -> int:
        """Position of the token to feed next."""
        return len(self.prompt) + len(self.ids) - 1

    @property
    def last(self) -> int:
        """The token to feed next."""
        return self.ids[-1] if self.ids else self.prompt[-1]

    def take(self, token: int, eos: int) -> bool:
        """Add a token and return whether the row ends with it."""
        if token == eos:
            self.finished = True
            return True
        self.ids.append(token)
        return len(self.ids) >= self.limit or (self.watch is not None and self.watch.ends(self.ids))


def decode(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    eos: int,
    batch_tokens: int,
    temperature: float | None = None,
    progress: Callable[[Sequence[Row]], None] | None = None,
) -> None:
    """Continue every row until it ends, in the order of `in_order`.

    Args:
        model: a model that `obstacle` finds nothing against, in eval mode.
        rows: what to continue; changed in place.
        eos: id of the end-of-sequence token.
        batch_tokens: bounds slots times columns.
        temperature: divides the logits of rows with draws; None takes the most likely token.
        progress: told the rows that ended, after every step in which some did.
    """
    waiting = deque(in_order(rows))
    slots = Slots(model)
    with torch.inference_mode():
        while waiting or slots.rows:
            new = _next(waiting, slots.rows, batch_tokens)
            slots.admit(new, batch_tokens=batch_tokens, more=len(waiting))
            tokens = choose(slots.step(), slots.rows, temperature)
            ended = [row.take(token, eos) for row, token in zip(slots.rows, tokens, strict=True)]
            if any(ended):
                left = [row for row, end in zip(slots.rows, ended, strict=True) if end]
                slots.release(ended)
                if progress is not None:
                    progress(left)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, those that need most columns first, those that share most of their prompt side by side."""
    runs: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.prompt):
        before = runs[-1][-1].prompt if runs else ()
        if 2 * _shared(before, row.prompt) >= max(2 * MIN_SHARED, min(len(before), len(row.prompt))):
            runs[-1].append(row)
        else:
            runs.append([row])
    inside = [sorted(run, key=lambda row: (-row.need, -len(row.prompt))) for run in runs]
    return [row for run in sorted(inside, key=lambda run: (-run[0].need, -len(run[0].prompt))) for row in run]


def choose(logits_BV: Tensor, rows: Sequence[Row], temperature: float | None) -> list[int]:
    """Return a token per row: the most likely one, or the one that the row's next uniform number picks.

    A draw inverts the cumulative distribution in float64, so that it depends on the row alone, not on its batch.
    """
    if temperature is None:
        return cast(list[int], logits_BV.argmax(1).tolist())
    exact = torch.float32 if logits_BV.device.type == "mps" else torch.float64
    sums_BV = torch.softmax(logits_BV.to(exact) / temperature, 1).cumsum(1)
    draws = [float(cast(Any, row.draws)[len(row.ids)]) for row in rows]
    wanted_B1 = torch.tensor(draws, dtype=exact, device=logits_BV.device)[:, None] * sums_BV[:, -1:]
    found_B1 = torch.searchsorted(sums_BV, wanted_B1, right=True)
    return cast(list[int], found_B1.squeeze(1).clamp(max=logits_BV.shape[1] - 1).tolist())


class Slots:
    """The rows at work and their keys and values."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.rows: list[Row] = []
        self.size = (0, 0)
        self.window = _Window()
        self._model = model
        self._device = next(model.parameters()).device
        self._eager = model.config._attn_implementation == "eager"
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self._layers = [_SlotLayer(self) for _ in range(layers)]
        self._cache = Cache(layers=list(self._layers))

    def admit(self, new: Sequence[Row], *, batch_tokens: int, more: int) -> None:
        """Give slots to rows and feed their prompts, the last token left out; `more` rows wait behind them."""
        if not new:
            return
        first = len(self.rows)
        need, rows = max(row.need for row in (*self.rows, *new)), first + len(new)
        self._fit(need, rows, max(rows, min(rows + more, batch_tokens // need)))
        sources = _sources(self.rows, new)
        # Those that begin on their own stand first: the others may begin with what these have computed.
        begun_by = [0 if source is None else source[1] for source in sources]
        order = sorted(range(len(new)), key=lambda i: (sources[i] is not None, begun_by[i] - len(new[i].prompt)))
        self.rows += [new[i] for i in order]
        alone = sum(source is None for source in sources)
        self._feed_prompts(first, [0] * alone)
        place = {id(row): slot for slot, row in enumerate(self.rows)}
        shared = [source for i in order if (source := sources[i]) is not None]
        if shared:
            begun = [columns for _, columns in shared]
            slots = range(first + alone, len(self.rows))
            self._copy(slots, [place[id(row)] for row, _ in shared], max(begun))
            self._feed_prompts(first + alone, begun)

    def step(self) -> Tensor:
        """Feed the next token of every row and return the logits after it, [B, V] float32."""
        rows = self.rows
        out = self._feed(self._model, 0, [[row.last] for row in rows], [row.place for row in rows])
        return cast(Tensor, out.logits[:, -1].float())

    def release(self, ended: Sequence[bool]) -> None:
        """Let rows go; the last ones move into the slots that become free."""
        kept = ended.count(False)
        holes = [slot for slot in range(kept) if ended[slot]]
        movers = [slot for slot in range(kept, len(ended)) if not ended[slot]]
        if movers:
            self._copy(holes, movers, max(self.rows[slot].place for slot in movers))
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[kept:]

    def _fit(self, need: int, rows: int, slots: int) -> None:
        """Make room for rows that take `need` columns; slots far wider than needed are made narrower and more."""
        if rows <= self.size[0] and need <= self.size[1] < 4 * need / 3:
            return
        self.size = (slots, need)
        kept = max((row.place for row in self.rows), default=0)
        for layer in self._layers:
            layer.resize(len(self.rows), kept)

    def _feed_prompts(self, first: int, begun: Sequence[int]) -> None:
        """Feed the prompts of the slots from `first` on, longest first, each from the position it has `begun` with."""
        rows = self.rows[first : first + len(begun)]
        texts = [row.prompt[start:-1] for row, start in zip(rows, begun, strict=True)]
        for start, end in _alike([len(text) for text in texts]):
            padded = [[*text] + [0] * (len(texts[start]) - len(text)) for text in texts[start:end]]
            self._feed(cast(Any, self._model.base_model), first + start, padded, begun[start:end])

    def _feed(self, net: Any, first: int, ids: Sequence[Sequence[int]], begun: Sequence[int]) -> Any:
        """Run tokens of some slots, [B, T], through a module, each row from a position of its own on.

        Padding stands behind a row's tokens, in columns that are written again before they are seen.
        """
        ids_BT = torch.tensor(ids, device=self._device)
        steps_T = torch.arange(ids_BT.shape[1], device=self._device)
        place_BT = (torch.tensor(begun, device=self._device)[:, None] + steps_T).clamp(max=self.size[1] - 1)
        seen = min(max(begun) + ids_BT.shape[1], self.size[1])
        fresh = ids_BT.shape[1] > 1 and not any(begun)
        self.window.set(first, place_BT, seen, self.size[1], fresh)
        mask = None if fresh else self._mask(place_BT, seen)
        return net(
            input_ids=ids_BT, position_ids=place_BT, attention_mask=mask, past_key_values=self._cache, use_cache=True
        )

    def _mask(self, place_BT: Tensor, seen: int) -> Tensor:
        """Return which columns each token may look at, [B, 1, T, K]."""
        mask = (torch.arange(seen, device=self._device) <= place_BT[:, :, None])[:, None]
        if not self._eager:
            return mask
        lowest = torch.finfo(self._model.dtype).min
        return torch.zeros(mask.shape, dtype=self._model.dtype, device=self._device).masked_fill(~mask, lowest)

    def _copy(self, to: Sequence[int], source: Sequence[int], columns: int) -> None:
        for layer in self._layers:
            layer.copy(list(to), list(source), columns)


@dataclass(slots=True)
class _Window:
    """Which slots and columns the forward under way writes and sees."""

    first: int = 0
    last: int = 0
    seen: int = 0
    fresh: bool = False
    flat: Tensor = field(default_factory=lambda: torch.empty(0))

    def set(self, first: int, place_BT: Tensor, seen: int, width: int, fresh: bool) -> None:
        """Write at the positions `place_BT` of the slots from `first` on; `fresh` sees only what it writes."""
        self.first, self.last, self.seen, self.fresh = first, first + len(place_BT), seen, fresh
        slots_B = torch.arange(self.first, self.last, device=place_BT.device)
        self.flat = (slots_B[:, None] * width + place_BT).reshape(-1)


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one decoder layer, each [R, W, H, D]."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (self._empty(states.transpose(1, 2)) for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values, [B, H, T, D], and return all that is seen, [B, H, K, D]."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self._slots.window
        for kept, states in ((self.keys, key_states), (self.values, value_states)):
            lines = kept.view(-1, kept.shape[2] * kept.shape[3])
            lines.index_copy_(0, window.flat, states.transpose(1, 2).reshape(-1, lines.shape[1]))
        if window.fresh:
            return key_states, value_states
        keys, values = (x[window.first : window.last, : window.seen].transpose(1, 2) for x in (self.keys, self.values))
        return keys, values

    def resize(self, rows: int, columns: int) -> None:
        """Take the size of the slots and keep the first rows and columns."""
        if self.is_initialized:
            for name in ("keys", "values"):
                old = getattr(self, name)
                setattr(self, name, self._empty(old))
                getattr(self, name)[:rows, :columns] = old[:rows, :columns]

    def copy(self, to: list[int], source: list[int], columns: int) -> None:
        """Copy the first columns of some slots to others."""
        if self.is_initialized:
            for kept in (self.keys, self.values):
                kept[to, :columns] = kept[source, :columns]

    def _empty(self, like: Tensor) -> Tensor:
        # Zeros: what was never written is masked, but a masked NaN would still spoil a sum.
        return like.new_zeros((*self._slots.size, *like.shape[2:]))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # asked only where no mask is given
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def _next(waiting: deque[Row], busy: Sequence[Row], batch_tokens: int) -> list[Row]:
    """Take the rows that come in now from those waiting: none while few slots are free, at least one if all are."""
    need = max((row.need for row in busy), default=0)
    count = 0
    for row in waiting:
        need = max(need, row.need)
        if (len(busy) + count + 1) * need > batch_tokens and len(busy) + count:
            break
        count += 1
    few = max(1, batch_tokens // max(1, need) // _REFILL)
    if busy and count < min(few, len(waiting)):
        return []
    return [waiting.popleft() for _ in range(count)]


def _alike(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return stretches of falling lengths, each big enough to be worth a forward or with little padding; no zeros."""
    out, start, real = [], 0, 0
    fed = sum(length > 0 for length in lengths)
    for i, length in enumerate(lengths[:fed]):
        padded = lengths[start] * (i - start + 1)
        if real >= _WORTH_A_FORWARD and real + length < (1 - _PADDING) * padded:
            out.append((start, i))
            start, real = i, 0
        real += length
    return [*out, (start, fed)] if fed else []


def _sources(busy: Sequence[Row], new: Sequence[Row]) -> list[tuple[Row, int] | None]:
    """Return, per new row, the row it can begin with and how many columns it takes over; None to begin alone."""
    known = list(busy)
    out: list[tuple[Row, int] | None] = []
    for row in new:
        found = max(((other, _shared(other.prompt, row.prompt)) for other in known), key=lambda f: f[1], default=None)
        columns = 0 if found is None else min(found[1], len(found[0].prompt) - 1, len(row.prompt) - 1)
        out.append((found[0], columns) if found is not None and columns >= MIN_SHARED else None)
        if out[-1] is None:
            known.append(row)
    return out


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many tokens two prompts begin with in common, 0 for fewer than `MIN_SHARED`."""
    if one[:MIN_SHARED] != other[:MIN_SHARED]:
        return 0
    both = min(len(one), len(other))
    differ = np.array(one[:both]) != np.array(other[:both])
    return int(differ.argmax()) if differ.any() else both
