# SPDX-License-Identifier: Apache-2.0
"""What one audit pass saw, item by item: enough to compute every metric again without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

RECORDS_VERSION = 1

Floats: TypeAlias = Sequence[float] | NDArray[np.floating[Any]]
Flags: TypeAlias = Sequence[int] | NDArray[np.bool_] | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a published log kept of a scored answer instead of its tokens.

    Attributes:
        mean_logp: mean log-probability of the labelled tokens, in nats per token; None where the log lacks it.
        n_tokens: number of labelled tokens; None where the log lacks it.
        scores: membership scores that the log holds, high for members, by name, such as `min_k@0.4`.
    """

    mean_logp: float | None = None
    n_tokens: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredItem:
    """Teacher-forced scores of one (prompt, answer) pair.

    Attributes:
        set: evaluated set (`forget`, `retain`, `holdout`, `world_facts`...).
        id: id of the example within its set.
        subject: cluster for intervals; "" if unknown.
        variant: which answer was scored: `answer`, `paraphrase`, `perturbed`, `lowercase`, ...; `answer_again` is
            the answer scored a second time, together with the perturbed ones (published TOFU logs).
        variant_index: position among several of that variant (0 for single ones).
        ids_hash: digest of the scored token ids (prompt and answer).
        logp: log-probability of each labelled token, natural log, in order.
        correct: per token, 1 where the arg max of the model equals the label.
        mu, sigma2: per token, mean and variance of log p_v under p (for Min-K%++).
        ends_with_eos: the last labelled token is the end-of-sequence token.
        zlib_bytes: length of the zlib-compressed UTF-8 text of the answer; 0 where the text is not known.
        summary: where only a published log is known: what it kept. The per-token fields are empty then, and what
            needs tokens has no number.
        gradient_norm: L2 norm of the gradient of the mean loss over all parameters, end-of-sequence token left out;
            None where it was not measured.
        gradient_norm_mean: mean over parameter tensors of the L2 norm of each, the last label left out whatever it is.
        text_score: how much the text looks like the forget set to a classifier that never saw the model, in logits.
    """

    set: str
    id: str
    subject: str
    variant: str
    variant_index: int
    ids_hash: str
    logp: Floats
    correct: Flags
    mu: Floats
    sigma2: Floats
    ends_with_eos: bool
    zlib_bytes: int
    summary: Summary | None = None
    gradient_norm: float | None = None
    gradient_norm_mean: float | None = None
    text_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedItem:
    """One greedy generation; `prompt_variant` is `question` or `paraphrase`, `finished` means it ended by itself.

    `n_tokens` and `finished` are None where only a published log is known, which holds neither. A third variant,
    `prefix`, is a question with the start of its answer; it has the token ids of what was generated, `ids`, and of the
    true continuation, `target_ids`.
    """

    set: str
    id: str
    subject: str
    prompt_variant: str
    prediction: str
    target: str
    n_tokens: int | None
    finished: bool | None
    ids: tuple[int, ...] = ()
    target_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceItem:
    """Scores of the answers of one multiple-choice question; lists have one entry per choice, K of them.

    Attributes:
        set: evaluated set (`wmdp`, `mmlu`...).
        id: id of the question within its set.
        subject: its topic; numbers are given per subject.
        cluster: what the question shares with others, for intervals; "" if it stands alone.
        style: `letters` (the letters were scored) or `texts` (the answers' texts).
        ids_hash: digest of the prompt's token ids.
        scores: summed log-probability of each choice after the prompt, natural log, [K].
        correct: 1 for every right choice, [K].
        best: index of the choice that counts as the right one.
        lengths: characters of each choice, without the space before it, [K].
        n_tokens: tokens of each choice, [K].
        cut: prompt tokens left out because they did not fit the context.
    """

    set: str
    id: str
    subject: str
    cluster: str
    style: str
    ids_hash: str
    scores: Floats
    correct: Flags
    best: int
    lengths: Flags
    n_tokens: Flags
    cut: int


@dataclass(frozen=True, slots=True)
class Records:
    """Every item of one audit of one model.

    `meta` holds digests, template, dtype, settings, versions and seconds. Records of a published log hold there what
    was read (`source`), why something is missing (`absent`: `set/variant` to reason) and the numbers that the log
    states itself (`published`: metric to value and interval).
    """

    scored: Sequence[ScoredItem]
    generated: Sequence[GeneratedItem]
    meta: dict[str, Any] = field(default_factory=dict)
    choices: Sequence[ChoiceItem] = ()
