# SPDX-License-Identifier: Apache-2.0
"""The ways that need a model: its states for rows in other words, its gradients for rows that moved it alike.

Shape suffixes: C chunks of texts, S chunks of samples, N random rows, D width, P weights of one block.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from expunge.audit.diagnostics.collect import pool, whole
from expunge.data.batching import pad
from expunge.data.encoding import Encoded
from expunge.data.examples import Example
from expunge.desk.locate.config import LocateConfig
from expunge.desk.locate.scope import Threshold
from expunge.errors import RecipeError
from expunge.models.loading import context_length, load_model
from expunge.signals.curvature import evaluating, gradient, sequence_nll
from expunge.signals.head import decoder_blocks
from expunge.signals.hidden import over_batches
from expunge.signals.likelihood import Scorer

Place = tuple[int, int]
Alike = Callable[[str, str], bool]
#: Random rows whose gradients the threshold of influence is taken from.
_GRADIENTS = 64
#: Share of the mean variance that is added in every direction.
_SHRINKAGE = 0.01


class Reader:
    """A model that reads texts; what is longer than its context is read in chunks.

    Args:
        model: folder or hub id.
        config: which block, on which device.

    Raises:
        RecipeError: if it has no such block.
    """

    def __init__(self, model: str, config: LocateConfig) -> None:
        self._model, self._tokenizer = load_model(model, device=config.device)
        blocks = len(decoder_blocks(self._model))
        self._layer = blocks // 2 if config.layer is None else config.layer
        if self._layer >= blocks:
            raise RecipeError(f"the model has the blocks 0 to {blocks - 1}", field="locate.layer", value=config.layer,
                              remedy="Choose one of them")  # fmt: skip
        self._longest = context_length(self._model)

    def chunks(self, text: str) -> list[Encoded]:
        """Return a text as token ids, every one of them a label."""
        ids = self._tokenizer(text, verbose=False)["input_ids"]
        parts = [tuple(ids[start : start + self._longest]) for start in range(0, len(ids), self._longest)]
        return [Encoded(part, part, False) for part in parts]

    def states(self, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the mean state of every chunk at the block, [C, D] float32, and which text each is of."""
        items = [(number, chunk) for number, text in enumerate(texts) for chunk in self.chunks(text)]
        place = {id(chunk): row for row, (_, chunk) in enumerate(items)}
        out_CD: Tensor | None = None
        for chosen, found in over_batches(
            self._model, [chunk for _, chunk in items], layers=[self._layer], pad_id=0, batch_tokens=8192
        ):
            mask_BT = pad(chosen, 0).attention_mask.to(found[self._layer].device)
            pooled_BD = pool(found[self._layer], mask_BT, "mean").cpu()
            if out_CD is None:
                out_CD = torch.empty(len(items), pooled_BD.shape[1])
            out_CD[[place[id(chunk)] for chunk in chosen]] = pooled_BD
        return (torch.empty(0, 0) if out_CD is None else out_CD), [number for number, _ in items]

    def gradient(self, text: str) -> Tensor | None:
        """Return the gradient of a text's loss, nats, with respect to the last block, [P] on the CPU.

        None if it has a single token, which nothing predicts.
        """
        weights = [p for p in decoder_blocks(self._model)[-1].parameters() if p.is_floating_point()]
        total: Tensor | None = None
        with evaluating(self._model), torch.enable_grad():
            scorer = Scorer(self._model)
            for chunk in self.chunks(text):
                if len(chunk.ids) > 1:
                    parts = gradient(sequence_nll(scorer, whole(chunk), mean=False), weights)
                    flat_P = torch.cat([part.flatten() for part in parts]).cpu()
                    total = flat_P if total is None else total + flat_P
        return total


class Paraphrases:
    """How near a text's states are to those of any sample, in a space in which random rows point everywhere alike.

    Rows of one wording about many people lie close together in a model's states, closer than two wordings of one fact;
    so the states are whitened with the covariance of half of the random rows, and the threshold is taken from the
    other half, which the whitening did not see.

    Args:
        reader: the model.
        samples: texts.
        random_rows: texts drawn from the corpora, at least four.
        false_rate: share of pairs of random rows and all samples that may exceed the threshold.
        alike: see `random_threshold`.

    Source: Su et al., Whitening sentence representations, 2021, with shrinkage for fewer rows than width.
    """

    def __init__(
        self, reader: Reader, samples: Sequence[str], random_rows: Sequence[str], *, false_rate: float, alike: Alike
    ) -> None:
        self._reader = reader
        fitted, held = random_rows[::2], random_rows[1::2]
        self._centre_D, self._map_DD = whitening(reader.states(fitted)[0])
        self._samples_SD = self._units(reader.states(samples)[0])
        states_CD, owners = reader.states(held)
        first = [owners.index(number) for number in dict.fromkeys(owners)]
        texts = [held[owners[place]] for place in first]
        rate = false_rate / len(self._samples_SD)
        self.threshold = random_threshold(self._units(states_CD[first]), texts, rate, alike)

    def _units(self, states_CD: Tensor) -> Tensor:
        return torch.nn.functional.normalize((states_CD - self._centre_D) @ self._map_DD, dim=1)

    def cosines(self, texts: Sequence[str]) -> list[float]:
        """Return for each text the highest cosine of one of its chunks with one of a sample, in -1..1."""
        states_CD, owners = self._reader.states(texts)
        best_C = (self._units(states_CD) @ self._samples_SD.T).amax(1)
        out = [-1.0] * len(texts)
        for owner, value in zip(owners, best_C.tolist(), strict=True):
            out[owner] = max(out[owner], value)
        return out


def whitening(states_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [D] of states and the map [D, D] after which their covariance is nearly the identity.

    A hundredth of the mean variance is added in every direction: directions in which hardly anything varies, or of
    which too few rows tell, are not blown up.
    """
    centre_D = states_ND.mean(0)
    centred_ND = (states_ND - centre_D).double()
    variances_D, axes_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / len(states_ND))
    ridge = _SHRINKAGE * variances_D.mean()
    scale_D = (variances_D.clamp(min=0) + ridge).rsqrt() if ridge > 0 else torch.ones_like(variances_D)
    return centre_D, (axes_DD * scale_D @ axes_DD.T).float()


def random_threshold(units_ND: Tensor, texts: Sequence[str], rate: float, alike: Alike) -> Threshold:
    """Return the cosine that at most a share `rate` of pairs of unrelated random rows exceeds.

    Args:
        units_ND: states of the rows, of length 1.
        texts: of the rows, N of them.
        rate: share, in 0..1.
        alike: whether two texts are alike already as texts; such a pair of a corpus with duplicates is not unrelated.
            Where all pairs are, they are what is random here, and all count.
    """
    cosines_NN = units_ND @ units_ND.T
    ones, others = torch.triu_indices(len(texts), len(texts), offset=1).unbind()
    cosines, order = torch.sort(cosines_NN[ones, others], descending=True)
    allowed = int(rate * len(cosines))
    for cosine, place in zip(cosines.tolist(), order.tolist(), strict=True):
        if not alike(texts[int(ones[place])], texts[int(others[place])]):
            allowed -= 1
        if allowed < 0:
            return Threshold(value=cosine, pairs=len(cosines), quantile=1 - rate, median=float(cosines.median()))
    return Threshold(value=float(cosines[int(rate * len(cosines))]), pairs=len(cosines), quantile=1 - rate,
                     median=float(cosines.median()))  # fmt: skip


class Influence:
    """How alike a row and the samples together would move the weights: the cosine of their gradients.

    Args:
        reader: the model.
        samples: texts.
        random_rows: the highest cosine among these is the threshold.

    Source: Pruthi et al., Estimating training data influence by tracing gradient descent, 2020, with one checkpoint,
    the last block, and gradients of length 1.
    """

    def __init__(self, reader: Reader, samples: Sequence[str], random_rows: Sequence[str]) -> None:
        self._reader = reader
        self._target_P = _direction(reader, samples)
        found = [value for text in random_rows[:_GRADIENTS] if (value := self.cosine(text)) is not None]
        if not found:
            raise _untaught()
        values = torch.tensor(found, dtype=torch.float64)
        self.threshold = Threshold(
            value=float(values.max()), pairs=len(values), quantile=1.0, median=float(values.median())
        )

    def cosine(self, text: str) -> float | None:
        """Return the cosine, in -1..1; None for a text of one token."""
        found_P = self._reader.gradient(text)
        return None if found_P is None else float(_unit(found_P) @ self._target_P)


def _direction(reader: Reader, texts: Sequence[str]) -> Tensor:
    """Return the mean direction of the gradients of texts, [P], of length 1; one gradient is held beside it."""
    total_P: Tensor | None = None
    for text in texts:
        found_P = reader.gradient(text)
        if found_P is not None:
            total_P = _unit(found_P) if total_P is None else total_P + _unit(found_P)
    if total_P is None:
        raise _untaught()
    return _unit(total_P)


def _untaught() -> RecipeError:
    return RecipeError("no text has two tokens", field="locate.ways", value="influence", remedy="Leave it out")


def _unit(values_P: Tensor) -> Tensor:
    return torch.nn.functional.normalize(values_P, dim=0)


class Nearest:
    """Keeps the rows of the highest similarity.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self._most, self._heap, self.offered = most, list[tuple[float, Place, Example]](), 0

    def offer(self, similarity: float, place: Place, example: Example) -> None:
        """Keep a row if it is among the nearest; of equal ones those that came first."""
        self.offered += 1
        entry = (similarity, (-place[0], -place[1]), example)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def rows(self) -> list[tuple[float, Place, Example]]:
        """Return them, the nearest first."""
        ranked = sorted(self._heap, key=lambda entry: entry[:2], reverse=True)
        return [(similarity, (-place[0], -place[1]), example) for similarity, place, example in ranked]
