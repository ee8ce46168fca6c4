# SPDX-License-Identifier: Apache-2.0
"""What an audit looks at beyond its two passes: texts alone, gradient norms, and prefixes to continue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from expunge.audit.config import AuditConfig
from expunge.audit.extraction import Prefix, prefixes
from expunge.audit.statistics import Unavailable
from expunge.audit.text_only import text_scores
from expunge.data.encoding import Encoded
from expunge.signals.gradients import GradientNorm, gradient_norms

Counter = Callable[[str, int], Callable[[int], None] | None]
"""From a phase and its total: what is told after each piece of work, if anything."""


class Text(NamedTuple):
    """A prompt with its answer: of the forget set or not, and what it must not be split from."""

    text: str
    forget: bool
    subject: str


class Measured(NamedTuple):
    """Fields of a record that only answers in membership attacks have; None where not measured."""

    text_score: float | None = None
    gradient_norm: float | None = None
    gradient_norm_mean: float | None = None


def scores_of_texts(texts: Sequence[Text]) -> list[float | None]:
    """Return the score of every text by a classifier that never sees the model; None where none can be fitted."""
    try:
        found = text_scores([t.text for t in texts], [t.forget for t in texts], [t.subject for t in texts])
    except Unavailable:
        return [None] * len(texts)
    return [float(score) for score in found]


def unended(item: Encoded) -> Encoded:
    """Return a sequence without its end-of-sequence token, if that is its last label."""
    return without_last(item) if item.ends_with_eos else item


def without_last(item: Encoded) -> Encoded:
    """Return a sequence without its last token."""
    return Encoded(item.ids[:-1], item.labels[:-1], ends_with_eos=False)


def norms_of(model: nn.Module, items: Sequence[Encoded], counter: Counter) -> dict[Encoded, GradientNorm]:
    """Return the gradient norm of every different `unended(item)` and `without_last(item)` that can be scored.

    Where the last label ends the sequence the two are the same, so that a backward serves both.
    """
    wanted = dict.fromkeys(part for item in items for part in (unended(item), without_last(item)))
    usable = [item for item in wanted if item.n_labels]
    return dict(zip(usable, gradient_norms(model, usable, progress=counter("gradients", len(usable))), strict=True))


def measured(item: Encoded, text_score: float | None, norms: Mapping[Encoded, GradientNorm]) -> Measured:
    """Return what a record of a compared answer has beyond its token scores."""
    whole, cut = norms.get(unended(item)), norms.get(without_last(item))
    return Measured(text_score, None if whole is None else whole.total, None if cut is None else cut.tensor_mean)


def starts(item: Encoded, config: AuditConfig) -> list[Prefix]:
    """Return the prefixes of an answer to continue, each as far as what truly follows it."""
    return prefixes(item, config.extraction_length, config.extraction_prefixes, longest=config.max_new_tokens)
