# SPDX-License-Identifier: Apache-2.0
"""From examples to token ids with a label mask."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from expunge.data.examples import Example
from expunge.data.templates import resolve_template
from expunge.errors import InputDataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
TooLong = Literal["error", "truncate", "drop"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenised sequence.

    Attributes:
        ids: token ids of prompt and answer, [T].
        labels: the same ids where the loss and the scores are taken, `IGNORE` elsewhere, [T]. Not shifted: the model
            predicts labels[t] from ids[:t], so labels[0] can never be scored.
        ends_with_eos: the last label is the end-of-sequence token.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    ends_with_eos: bool

    @property
    def n_labels(self) -> int:
        """Number of positions that can be scored (labels after the first position)."""
        return sum(label != IGNORE for label in self.labels[1:])

    @property
    def label_start(self) -> int:
        """Position of the first label; the labels run from there to the end."""
        return next((t for t, label in enumerate(self.labels) if label != IGNORE), len(self.labels))


class Variant(NamedTuple):
    """An example with another prompt or another answer (paraphrase, perturbation, refusal); None keeps its own."""

    example: Example
    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One sequence, the position of its example in the list that was encoded, and its number within the example."""

    encoded: Encoded
    index: int
    chunk: int


class _Text(NamedTuple):
    """A text to tokenise, and whether the tokenizer adds its special tokens."""

    text: str
    special_tokens: bool


def ids_hash(encoded: Encoded) -> str:
    """Return a short digest of the token ids and of where the labels start."""
    text = f"{encoded.label_start}:{','.join(map(str, encoded.ids))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Encoder:
    """Turns examples into token ids and labels under one template and one context length.

    Args:
        tokenizer: a transformers tokenizer; it adds the beginning-of-sequence token it always adds.
        template: name of a prompt template (`expunge.data.templates.NAMES`).
        max_length: longest sequence, in tokens, at least 2.
        too_long: what happens to a question, completion or chat beyond it: `error`, `truncate` (the end of the answer
            is cut, and it has no end-of-sequence label then) or `drop`. Running texts are cut into chunks instead.
        answer_eos: append one end-of-sequence token, labelled, to every answer but running texts.

    Raises:
        RecipeError: if the options cannot work with this tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str = "auto",
        max_length: int,
        too_long: TooLong = "error",
        answer_eos: bool = True,
    ) -> None:
        if max_length < 2:
            raise RecipeError(
                "no token could be predicted", field="data.max_length", value=max_length, remedy="Use at least 2"
            )
        if answer_eos and tokenizer.eos_token_id is None:
            raise RecipeError(
                "the tokenizer has no end-of-sequence token",
                field="data.answer_eos",
                value=True,
                remedy="Use --set data.answer_eos=false, or give the tokenizer an eos_token",
            )
        self.tokenizer = tokenizer
        self.template = resolve_template(template, tokenizer)
        self.max_length = max_length
        self.too_long = too_long
        self.answer_eos = answer_eos
        self._adds_eos = tokenizer.eos_token_id is not None and tokenizer("a")["input_ids"][-1] == self.eos_id

    @property
    def template_id(self) -> str:
        """Name and short digest of the resolved template."""
        return self.template.template_id

    @property
    def eos_id(self) -> int | None:
        """The end-of-sequence token, None if the tokenizer has none."""
        eos: int | None = self.tokenizer.eos_token_id
        return eos

    @property
    def pad_id(self) -> int:
        """The padding token, or the end-of-sequence token where there is none; padding is masked by length."""
        pad: int | None = self.tokenizer.pad_token_id
        pad = self.eos_id if pad is None else pad
        if pad is None:
            raise InputDataError(
                "the tokenizer has neither a padding nor an end-of-sequence token", field="model", remedy="Give it one"
            )
        return pad

    def encode(self, example: Example, *, prompt: str | None = None, answer: str | None = None) -> Encoded:
        """Return one example as one sequence, with another prompt or answer if given.

        Labels start where the token ids of the prompt alone and of prompt and answer together first differ, which is
        the end of the prompt unless a token spans the two. Every token of a running text is labelled.

        Raises:
            InputDataError: if the sequence is longer than `max_length` and `too_long` is not `truncate`, if the
                prompt alone fills the context, or if nothing can be scored.
        """
        variant = Variant(example, prompt, answer)
        full, head = self._texts(variant)
        ids = self._tokenise((full, head))
        whole = self._join(example, ids[full], ids[head])
        fitted = self._fit(whole, example, "data")
        if fitted is None:
            raise self._too_long_error(whole, example, "data")
        return fitted

    def encode_many(self, examples: Sequence[Example], *, where: str) -> list[EncodedRow]:
        """Return the sequences of a set in order; see `encode_variants`."""
        return self.encode_variants([Variant(example) for example in examples], where=where)

    def encode_variants(self, variants: Sequence[Variant], *, where: str) -> list[EncodedRow]:
        """Return the sequences of many variants in order, tokenised together.

        A running text longer than `max_length` gives consecutive chunks of that length; a last chunk of one token is
        left out, since its only token has no context to be predicted from.

        Args:
            variants: examples, with overrides; `EncodedRow.index` counts in this list.
            where: name of the set, for errors and warnings.

        Raises:
            InputDataError: as `encode`, naming the set; also if every variant had to be dropped.
        """
        texts = [self._texts(variant) for variant in variants]
        ids = self._tokenise(text for pair in texts for text in pair)
        rows: list[EncodedRow] = []
        dropped = 0
        for index, (variant, (full, head)) in enumerate(zip(variants, texts, strict=True)):
            whole = self._join(variant.example, ids[full], ids[head])
            if variant.example.kind == "text":
                chunks = self._chunks(whole, variant.example, where)
                rows += [EncodedRow(chunk, index, number) for number, chunk in enumerate(chunks)]
            elif (fitted := self._fit(whole, variant.example, where)) is not None:
                rows.append(EncodedRow(fitted, index, 0))
            else:
                dropped += 1
        if dropped:
            logger.warning("%s: left out %d of %d, over %d tokens", where, dropped, len(variants), self.max_length)
        if dropped and not rows:
            raise InputDataError(
                f"all {dropped} examples are longer than {self.max_length} tokens",
                field=f"data.{where}",
                remedy="Raise data.max_length, or use --set data.too_long=truncate",
            )
        return rows

    def prompt_ids(self, example: Example, *, prompt: str | None = None) -> tuple[int, ...]:
        """Return the ids to generate an answer from: the prompt alone, [T]; for a running text what starts a sequence.

        Raises:
            InputDataError: if the prompt alone fills the context.
        """
        _, head = self._texts(Variant(example, prompt))
        ids = self._tokenise((head,))[head]
        if len(ids) >= self.max_length:
            raise self._full_error(len(ids), example, "data")
        return ids

    def _texts(self, variant: Variant) -> tuple[_Text, _Text]:
        """Return the text of prompt and answer together, and of the prompt alone."""
        prompt, separator, special = self.template.render(variant.example, self.tokenizer, prompt=variant.prompt)
        answer = variant.example.answer if variant.answer is None else variant.answer
        return _Text(prompt + separator + answer, special), _Text(prompt, special)

    def _tokenise(self, texts: Iterable[_Text]) -> dict[_Text, tuple[int, ...]]:
        """Return the ids of each different text, without the end-of-sequence token some tokenizers append."""
        unique = list(dict.fromkeys(texts))
        found: dict[_Text, tuple[int, ...]] = {}
        for special in (True, False):
            group = [item for item in unique if item.special_tokens is special]
            if not group:
                continue
            batch = self.tokenizer([item.text for item in group], add_special_tokens=special, verbose=False)
            end = -1 if special and self._adds_eos else None
            found.update((item, tuple(ids[:end])) for item, ids in zip(group, batch["input_ids"], strict=True))
        return found

    def _join(self, example: Example, full: tuple[int, ...], head: tuple[int, ...]) -> Encoded:
        """Return the whole sequence with its labels, whatever its length."""
        if example.kind == "text":
            return self._labelled(full, 0)
        start = 0
        while start < min(len(head), len(full)) and full[start] == head[start]:
            start += 1
        if self.answer_eos and self.eos_id is not None and full[start:][-1:] != (self.eos_id,):
            full = (*full, self.eos_id)
        return self._labelled(full, start)

    def _labelled(self, ids: tuple[int, ...], start: int) -> Encoded:
        labels = (IGNORE,) * min(start, len(ids)) + ids[start:]
        return Encoded(ids, labels, ends_with_eos=labels[-1:] == (self.eos_id,))

    def _fit(self, whole: Encoded, example: Example, where: str) -> Encoded | None:
        """Return the sequence cut to the context as `too_long` says; None if it is to be dropped."""
        if len(whole.ids) <= self.max_length:
            return self._scorable(whole, example, where)
        if self.too_long == "drop":
            return None
        if self.too_long == "error":
            raise self._too_long_error(whole, example, where)
        if whole.label_start >= self.max_length:
            raise self._full_error(whole.label_start, example, where)
        return self._scorable(self._labelled(whole.ids[: self.max_length], whole.label_start), example, where)

    def _chunks(self, whole: Encoded, example: Example, where: str) -> list[Encoded]:
        cuts = range(0, len(whole.ids), self.max_length)
        chunks = [self._labelled(whole.ids[cut : cut + self.max_length], 0) for cut in cuts]
        return [chunk for chunk in chunks if chunk.n_labels] or [self._scorable(whole, example, where)]

    def _scorable(self, encoded: Encoded, example: Example, where: str) -> Encoded:
        if encoded.n_labels == 0:
            raise InputDataError(
                f"{where}, example {example.id!r} has no token that can be scored",
                field=f"data.{where}",
                remedy="Give it a longer answer",
            )
        return encoded

    def _too_long_error(self, whole: Encoded, example: Example, where: str) -> InputDataError:
        return InputDataError(
            f"{where}, example {example.id!r} has {len(whole.ids)} tokens, max_length is {self.max_length}",
            field=f"data.{where}",
            remedy="Cut answers with --set data.too_long=truncate, or leave such examples out with =drop",
        )

    def _full_error(self, length: int, example: Example, where: str) -> InputDataError:
        return InputDataError(
            f"{where}, example {example.id!r}: its prompt of {length} tokens fills max_length {self.max_length}",
            field=f"data.{where}",
            remedy="Raise data.max_length, or leave it out with --set data.too_long=drop",
        )
