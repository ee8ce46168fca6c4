# SPDX-License-Identifier: Apache-2.0
"""Forget sets as they come in practice: masked, reworded, mislabelled, incomplete, repeated, at a chosen rate.

Every function draws from a private generator, and what is touched at one rate is touched at every higher rate under
the same seed. Kinds after Wang et al., "LLM Unlearning on Noisy Forget Sets", AISec 2025 (masking, rewriting); the
others are our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.data.examples import Example
from expunge.data.sampling import derangement
from expunge.errors import InputDataError, RecipeError

Kind = Literal["none", "mask", "rewrite", "mislabel", "swap", "drop", "duplicate"]
#: What stands for a masked word.
MASK = "____"


class NoiseConfig(BaseModel):
    """How a forget set is spoilt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field(
        "none",
        description="mask: words of answers; rewrite: answers in other words; mislabel: retain items among them; "
        "swap: answers that belong to other questions; drop: items missing; duplicate: items twice",
    )
    rate: float = Field(0.0, ge=0, le=1, description="share of the words (mask) or of the items (all others)")
    seed: int = Field(0, ge=0, description="seed of a private generator")

    @model_validator(mode="after")
    def _a_rate_of_something(self) -> NoiseConfig:
        if self.kind == "none" and self.rate > 0:
            raise ValueError(
                "rate says how much, but kind is none: choose mask, rewrite, mislabel, swap, drop, duplicate"
            )
        return self


def add_noise(
    examples: Sequence[Example],
    config: NoiseConfig,
    *,
    retain: Sequence[Example] = (),
    rewriter: Callable[[str], str] | None = None,
) -> list[Example]:
    """Return the forget set with the noise of a configuration.

    Args:
        examples: the clean forget set; never changed.
        config: kind, rate and seed.
        retain: where mislabelled items come from.
        rewriter: says an answer in other words; without one the paraphrases that the data give are used.

    Raises:
        RecipeError: if mislabelled items are wanted and there are too few retain items.
        InputDataError: if an answer is to be reworded and has no paraphrase, or nothing is left.
    """
    rate, seed = config.rate, config.seed
    if config.kind == "none" or rate == 0:
        return list(examples)
    if config.kind == "mask":
        return mask_words(examples, rate, seed=seed)
    if config.kind == "rewrite":
        return rewrite(examples, rate, seed=seed, rewriter=rewriter)
    if config.kind == "mislabel":
        return mislabel(examples, retain, rate, seed=seed)
    if config.kind == "swap":
        return swap_answers(examples, rate, seed=seed)
    return (drop if config.kind == "drop" else duplicate)(examples, rate, seed=seed)


def mask_words(examples: Sequence[Example], rate: float, *, seed: int) -> list[Example]:
    """Return the examples with exactly round(rate x words) of all words of the answers masked; prompts stay.

    The white space between words stays as it is.
    """
    pieces = [example.answer.split(" ") for example in examples]
    places = [(i, j) for i, words in enumerate(pieces) for j, word in enumerate(words) if word]
    for at in _first(len(places), rate, seed):
        i, j = places[at]
        pieces[i][j] = MASK
    return [replace(example, answer=" ".join(words)) for example, words in zip(examples, pieces, strict=True)]


def rewrite(
    examples: Sequence[Example], rate: float, *, seed: int, rewriter: Callable[[str], str] | None = None
) -> list[Example]:
    """Return the examples with the answers of a share of them in other words.

    Raises:
        InputDataError: naming the first example that is to be reworded and has no paraphrase.
    """
    out = list(examples)
    for at in _first(len(examples), rate, seed):
        example = examples[at]
        text = example.paraphrased_answer if rewriter is None else rewriter(example.answer)
        if text is None:
            raise InputDataError(
                "has no paraphrase", field="data.forget", value=example.id,
                remedy="Give the column paraphrased_answer, or another kind of noise",
            )  # fmt: skip
        out[at] = replace(example, answer=text)
    return out


def mislabel(examples: Sequence[Example], retain: Sequence[Example], rate: float, *, seed: int) -> list[Example]:
    """Return the examples with round(rate x n) retain items put among them, their ids marked `mislabelled/`.

    Raises:
        RecipeError: if there are too few retain items.
    """
    count = _count(len(examples), rate)
    if count > len(retain):
        raise RecipeError(
            "too few retain items to mislabel", field="data.retain", value=len(retain), remedy=f"{count} are needed"
        )
    chosen = np.random.default_rng([seed, 3]).permutation(len(retain))[:count].tolist()
    return [*examples, *(replace(retain[at], id=f"mislabelled/{retain[at].id}") for at in chosen)]


def swap_answers(examples: Sequence[Example], rate: float, *, seed: int) -> list[Example]:
    """Return the examples with the answers of a share of them exchanged, so that none of these keeps its own.

    Paraphrases and wrong answers of those that are exchanged are dropped: they belong to the right answer.
    """
    chosen = _first(len(examples), rate, seed)
    out = list(examples)
    if len(chosen) < 2:
        return out
    order = derangement(len(chosen), np.random.default_rng([seed, 5])).tolist()
    for at, other in zip(chosen, order, strict=True):
        answer = examples[chosen[other]].answer
        out[at] = replace(examples[at], answer=answer, paraphrased_answer=None, perturbed_answers=())
    return out


def drop(examples: Sequence[Example], rate: float, *, seed: int) -> list[Example]:
    """Return the examples without round(rate x n) of them, in order.

    Raises:
        InputDataError: if none is left.
    """
    gone = set(_first(len(examples), rate, seed))
    kept = [example for at, example in enumerate(examples) if at not in gone]
    if not kept:
        raise InputDataError("no item is left", field="data.noise.rate", value=rate, remedy="Lower it")
    return kept


def duplicate(examples: Sequence[Example], rate: float, *, seed: int) -> list[Example]:
    """Return the examples with round(rate x n) of them a second time at the end, their ids marked `again/`."""
    return [
        *examples,
        *(replace(examples[at], id=f"again/{examples[at].id}") for at in _first(len(examples), rate, seed)),
    ]


def _count(n: int, rate: float) -> int:
    if not 0 <= rate <= 1:
        raise RecipeError("a rate lies in 0..1", field="data.noise.rate", value=rate)
    return int(rate * n + 0.5)


def _first(n: int, rate: float, seed: int) -> list[int]:
    """Return the first round(rate x n) places of a fixed random order of n."""
    chosen: list[int] = np.random.default_rng([seed, 2]).permutation(n)[: _count(n, rate)].tolist()
    return chosen
