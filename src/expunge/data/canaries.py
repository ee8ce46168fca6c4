# SPDX-License-Identifier: Apache-2.0
"""Canaries: secrets after texts like those of the training data, of which fair coins decide who is trained on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from expunge.data.encoding import IGNORE, Encoded, Encoder, Variant
from expunge.data.examples import Example
from expunge.errors import InputDataError, RecipeError

Design = Literal["random", "unigram", "bigram", "new-token"]
#: Scores (mean log-probability of the secret, nats per token) that bounds try; fixed before any model is scored.
THRESHOLDS = (-0.25, -0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -3.5, -4.0, -5.0, -6.0, -7.0, -8.0, -10.0, -12.0, -15.0)
_WORD = re.compile(r"\S+")


class CanaryPlan(BaseModel):
    """How canaries are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(ge=2, description="canaries, about half of which the coins insert")
    design: Design = Field(
        "new-token",
        description="secret: random tokens, the least frequent (unigram), the least likely after the text before it "
        "(bigram), or tokens added to the vocabulary (new-token)",
    )
    secret_tokens: int = Field(1, ge=1, description="tokens of a secret")
    repeats: int = Field(1, ge=1, description="copies of each inserted canary in the training data")
    seed: int = Field(ge=0, description="seed of the private generators of secrets, coins and places")


@dataclass(frozen=True, slots=True)
class Canary:
    """One canary.

    Attributes:
        example: what is trained on if it is inserted; its answer ends with the secret.
        secret_ids: token ids of the secret, [S]; the score is taken on them alone.
        inserted: what its coin said.
    """

    example: Example
    secret_ids: tuple[int, ...]
    inserted: bool


class _Prefix(NamedTuple):
    """An example cut after a few words of its answer."""

    example: Example
    text: str


def coins(n: int, seed: int) -> list[bool]:
    """Return `n` fair coin flips from a generator of their own."""
    return [bool(flip) for flip in np.random.default_rng([seed, 1]).integers(0, 2, n)]


def new_tokens(plan: CanaryPlan) -> list[str]:
    """Return the texts that the plan adds to the vocabulary: those of every secret, none unless it is `new-token`."""
    count = plan.n * plan.secret_tokens if plan.design == "new-token" else 0
    return [f"<|canary-{number}|>" for number in range(count)]


def draw_canaries(examples: Sequence[Example], encoder: Encoder, plan: CanaryPlan) -> list[Canary]:
    """Return the canaries of a plan; the same arguments give the same canaries.

    A canary is an example of the data, cut after some words of its answer, with the secret in place of the rest.

    Args:
        examples: the training data, all of one kind.
        encoder: as the training will use it; its tokenizer holds the new tokens already.
        plan: what to draw.

    Raises:
        InputDataError: if the data has too few texts to cut, or a text and a secret cannot be encoded side by side.
        RecipeError: if the vocabulary has too few tokens that stand by themselves.
    """
    rng = np.random.default_rng([plan.seed, 0])
    prefixes = _prefixes(examples, plan.n, rng)
    secrets = _secrets(examples, encoder, plan, prefixes, rng)
    found = []
    for number, (prefix, words, inserted) in enumerate(zip(prefixes, secrets, coins(plan.n, plan.seed), strict=True)):
        example = _with_secret(prefix, words, f"canary-{number}")
        ids = _ids_of(encoder, words)
        secret_labels(encoder.encode(example), ids, example.id)
        found.append(Canary(example, ids, inserted))
    return found


def secret_labels(encoded: Encoded, secret_ids: Sequence[int], name: str) -> Encoded:
    """Return the sequence with labels on its secret alone.

    Raises:
        InputDataError: if the sequence does not end with the secret, which another tokenizer or template causes.
    """
    end = len(encoded.ids) - int(encoded.ends_with_eos)
    start = end - len(secret_ids)
    if start < 1 or encoded.ids[start:end] != tuple(secret_ids):
        raise InputDataError(
            f"{name} does not end with the tokens of its secret", field="manifest",
            remedy="Use the tokenizer and the template that it was planted with",
        )  # fmt: skip
    labels = [IGNORE] * len(encoded.ids)
    labels[start:end] = secret_ids
    return Encoded(encoded.ids, tuple(labels), ends_with_eos=False)


def planted(examples: Sequence[Example], canaries: Sequence[Canary], plan: CanaryPlan) -> list[Example]:
    """Return the training data with the inserted canaries at places drawn by a generator of their own."""
    copies = [
        replace(canary.example, id=f"{canary.example.id}-{copy}") if plan.repeats > 1 else canary.example
        for canary in canaries if canary.inserted for copy in range(plan.repeats)
    ]  # fmt: skip
    rows = [*examples, *copies]
    order = np.random.default_rng([plan.seed, 2]).permutation(len(rows))
    return [rows[place] for place in order]


def _prefixes(examples: Sequence[Example], n: int, rng: np.random.Generator) -> list[_Prefix]:
    """Draw different cuts: after any word of an answer but the last one."""
    ends = [[match.end() for match in _WORD.finditer(example.answer)][:-1] for example in examples]
    cuts = [(index, end) for index, found in enumerate(ends) for end in found]
    texts = {(examples[i].prompt, examples[i].answer[:end]): (i, end) for i, end in cuts}
    if len(texts) < n:
        raise InputDataError(
            f"holds {len(texts)} different beginnings of answers, {n} canaries need one each", field="data",
            remedy=f"Use --n {len(texts)} or fewer, or more data",
        )  # fmt: skip
    known = list(texts.values())
    drawn = [known[at] for at in rng.permutation(len(known))[:n]]
    return [_Prefix(examples[i], examples[i].answer[:end]) for i, end in drawn]


def _with_secret(prefix: _Prefix, words: Sequence[str], name: str) -> Example:
    return replace(
        prefix.example, id=name, subject=name, answer=" ".join([prefix.text, *words]), paraphrased_prompt=None,
        paraphrased_answer=None, perturbed_answers=(),
    )  # fmt: skip


def _secrets(
    examples: Sequence[Example], encoder: Encoder, plan: CanaryPlan, prefixes: Sequence[_Prefix],
    rng: np.random.Generator,
) -> list[list[str]]:  # fmt: skip
    """Return the words of every secret, [n][secret_tokens]."""
    size = plan.n * plan.secret_tokens
    if plan.design == "new-token":
        return _dealt(new_tokens(plan), plan.secret_tokens)
    words = _single_token_words(encoder)
    if len(words) < 2:
        raise RecipeError("the vocabulary has too few words of one token", field="design", value=plan.design,
                          remedy="Use the design new-token")  # fmt: skip
    ids = list(words)
    if plan.design == "random":
        return _dealt([words[ids[at]] for at in rng.integers(0, len(ids), size)], plan.secret_tokens)
    single, pairs = _frequencies(examples, encoder)
    order = [ids[at] for at in rng.permutation(len(ids))]  # so that ties are broken at random
    order.sort(key=lambda token: single[token])
    if plan.design == "unigram":
        rare = [words[order[at % len(order)]] for at in range(size)]
        return _dealt([rare[at] for at in rng.permutation(size)], plan.secret_tokens)
    return [_unlikely(encoder, prefix, plan, words, order, pairs) for prefix in prefixes]


def _unlikely(
    encoder: Encoder, prefix: _Prefix, plan: CanaryPlan, words: dict[int, str], order: list[int],
    pairs: Counter[tuple[int, int]],
) -> list[str]:  # fmt: skip
    """Return the words that least often followed what stands before them, the rarer first.

    A token that is taken goes to the end of `order`, so that it comes again only when all others have been used.
    """
    previous = _unended(encoder.encode(prefix.example, answer=prefix.text))[-1]
    out = []
    for _ in range(plan.secret_tokens):
        never = (candidate for candidate in order if (previous, candidate) not in pairs)
        token = next(never, None) or min(order, key=lambda candidate: pairs[previous, candidate])
        order.remove(token)
        order.append(token)
        out.append(words[token])
        previous = token
    return out


def _dealt(words: Sequence[str], size: int) -> list[list[str]]:
    return [list(words[start : start + size]) for start in range(0, len(words), size)]


def _frequencies(examples: Sequence[Example], encoder: Encoder) -> tuple[Counter[int], Counter[tuple[int, int]]]:
    """Count tokens and pairs of neighbours in the data."""
    single: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for row in encoder.encode_many(examples, where="train"):
        single.update(row.encoded.ids)
        pairs.update(zip(row.encoded.ids, row.encoded.ids[1:], strict=False))
    return single, pairs


def _single_token_words(encoder: Encoder) -> dict[int, str]:
    """Return the tokens that are one word by themselves after a space, by id."""
    tokenizer = encoder.tokenizer
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    texts: dict[int, str] = {}
    for token in sorted(set(tokenizer.get_vocab().values()) - special):
        text = tokenizer.decode([token]).strip()
        if text and not re.search(r"\s|\ufffd", text):
            texts[token] = text
    probe = [Variant(Example(id="probe", prompt="", answer=f"a b {text}", kind="text")) for text in texts.values()]
    rows = encoder.encode_variants(probe, where="vocabulary") if probe else []
    head = len(encoder.encode(Example(id="probe", prompt="", answer="a b", kind="text")).ids)
    return {
        token: text for row, (token, text) in zip(rows, texts.items(), strict=True)
        if row.encoded.ids[head:] == (token,)
    }  # fmt: skip


def _ids_of(encoder: Encoder, words: Sequence[str]) -> tuple[int, ...]:
    """Return the token ids of words after a text."""
    alone, whole = (
        encoder.encode(Example(id="probe", prompt="", answer=text, kind="text")).ids
        for text in ("a b", " ".join(["a b", *words]))
    )
    return whole[len(alone) :]


def _unended(encoded: Encoded) -> tuple[int, ...]:
    return encoded.ids[:-1] if encoded.ends_with_eos else encoded.ids
