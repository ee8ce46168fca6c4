# SPDX-License-Identifier: Apache-2.0
"""Traces: can a classifier tell that a model has unlearned something, from what it says and from its states?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
from pydantic import Field
from transformers import PreTrainedModel

from expunge.attacks.base import REFERENCE, Attack, AttackCard, AttackConfig, AttackContext, AttackResult
from expunge.attacks.compare import finding
from expunge.attacks.gauge import column_of
from expunge.attacks.states import answer_states
from expunge.attacks.weights import spread_layers
from expunge.audit.columns import Column
from expunge.audit.statistics import Floats, Ints
from expunge.audit.text_only import fit
from expunge.data.encoding import Encoded
from expunge.data.examples import Example
from expunge.errors import InputDataError
from expunge.signals.head import decoder_blocks
from expunge.signals.likelihood import TokenScores, score

ANEW, RETAIN, LABELS = "two models that never learned", "the same on retain texts", "random labels"


class TracesConfig(AttackConfig):
    """How the classifier is fitted."""

    folds: int = Field(5, ge=2, description="parts of the subjects; each is judged by a classifier that never saw it")
    layers: int = Field(4, ge=1, description="blocks whose states are looked at, spread over the depth")
    limit: int = Field(400, ge=4, description="texts of each set at most, evenly spaced through it")


class Traces(Attack):
    """Tell an unlearned model from one that never learned, text by text."""

    card = AttackCard(
        name="traces",
        kind="trace detection",
        title="Trace detection",
        definition="Both models read the same forget texts. A logistic regression on the likelihood profile of each "
        "text (`outputs`), or on its mean state at a block (`states`), tells which model read it; parts by subject, so "
        "that no subject is judged by a classifier that saw it. Accuracy (chance: 0.5); of several blocks the highest.",
        needs=("forget", "reference"),
        control="the same between two models that never learned, where a second reference is given: any two models "
        "differ; else the same between the same two models on retain texts; and with the labels of each text swapped "
        "at random",
        cost="two passes over the texts per model",
        source="Chen et al., Unlearning Isn't Invisible: Detecting Unlearning Traces in LLMs from Model Outputs, 2025 "
        "(arXiv:2506.14003)",
        known_failures=(
            "Any two models can be told apart by their states to some degree: only the gap to two that never learned "
            "is a trace. Retain texts are a weaker control, since unlearning can leave its trace there too.",
            "A trace says that something was unlearned, not what.",
        ),
    )
    Config = TracesConfig

    def check(self, config: TracesConfig, context: AttackContext) -> None:
        """Raise if the reference is missing or there are too few subjects."""
        super().check(config, context)
        if len(context.splits.forget) < 2:
            raise InputDataError("a classifier needs two texts", field="data.forget", value=1,
                                 remedy="Leave the attack traces out")  # fmt: skip

    def run(self, config: TracesConfig, context: AttackContext) -> AttackResult:
        """Compare every subject with the reference."""
        sets = {"forget": context.splits.forget}
        if len(context.splits.retain) > 1:
            sets[RETAIN] = context.splits.retain
        texts = {name: _texts(context, examples, config.limit) for name, examples in sets.items()}
        readers = [*context.attacked(), *([] if context.second_reference is None else [context.second_reference])]
        views = {s.name: {n: _look(context, s.load(), t, config) for n, t in texts.items()} for s in readers}
        findings, split = [], "subject" if len({e.subject for e in context.splits.forget}) > 1 else "text"
        for subject in context.subjects:
            for kind in ("outputs", "states"):
                value, controls = _compared(context, config, subject.name, kind, texts, views)
                findings.append(finding(subject.name, kind, "traces.accuracy", value, controls, context.audit))
        return self.result(config, findings, notes={"chance": 0.5, "split_by": split})


def _compared(
    context: AttackContext,
    config: TracesConfig,
    name: str,
    kind: str,
    texts: Mapping[str, _Texts],
    views: Mapping[str, Mapping[str, Mapping[str, list[Floats]]]],
) -> tuple[Column, dict[str, Column]]:
    """Return the accuracy on forget texts and the same of every control there is."""

    def told(one: str, other: str, which: str, *, swapped: bool = False) -> Column:
        mine, theirs = views[one][which][kind], views[other][which][kind]
        return _best(texts[which], mine, theirs, config, context, swapped)

    controls = {}
    if context.second_reference is not None:
        controls[ANEW] = told(context.second_reference.name, REFERENCE, "forget")
    if RETAIN in texts:
        controls[RETAIN] = told(name, REFERENCE, RETAIN)
    controls[LABELS] = told(name, REFERENCE, "forget", swapped=True)
    return told(name, REFERENCE, "forget"), controls


class _Texts(NamedTuple):
    examples: list[Example]
    items: list[Encoded]


def _texts(context: AttackContext, examples: Sequence[Example], limit: int) -> _Texts:
    count = min(limit, len(examples))
    chosen = [examples[i * len(examples) // count] for i in range(count)]
    rows = context.encoder.encode_many(chosen, where="traces")
    first = {row.index: row.encoded for row in reversed(rows)}  # of a running text, its first chunk
    return _Texts([chosen[i] for i in sorted(first)], [first[i] for i in sorted(first)])


def _look(
    context: AttackContext, model: PreTrainedModel, texts: _Texts, config: TracesConfig
) -> Mapping[str, list[Floats]]:
    """Return the features of every text: one view of the outputs, one of the states per block."""
    pad_id, batch = context.encoder.pad_id, context.audit.batch_tokens
    scores = score(model, texts.items, pad_id=pad_id, batch_tokens=batch)
    layers = spread_layers(len(decoder_blocks(model)), config.layers)
    states = answer_states(model, texts.items, layers=layers, pad_id=pad_id, batch_tokens=batch)
    return {
        "outputs": [np.stack([profile(s) for s in scores])],
        "states": [states[i].astype(np.float64) for i in layers],
    }


def profile(scores: TokenScores) -> Floats:
    """Return what the outputs on one text look like: quantiles of log p, hits, and moments of the distribution, [9]."""
    logp = scores.logp.astype(np.float64)
    quantiles = np.quantile(logp, [0.0, 0.25, 0.5, 0.75, 1.0])
    means = [logp.mean(), scores.correct.mean(), scores.mu.mean(), scores.sigma2.mean()]
    return np.array([*quantiles, *means], dtype=np.float64)


def _best(
    texts: _Texts, mine: Sequence[Floats], theirs: Sequence[Floats], config: TracesConfig, context: AttackContext,
    swapped: bool = False,
) -> Column:  # fmt: skip
    """Return the accuracy per text of the view that tells the models apart best."""
    flips = np.zeros(len(texts.items), dtype=np.int64)
    if swapped:
        flips = np.random.default_rng([context.seed, 49979687]).integers(2, size=len(texts.items))
    values = [accuracy(a, b, _groups(texts.examples), config.folds, flips) for a, b in zip(mine, theirs, strict=True)]
    best = max(values, key=lambda found: float(found.mean()))
    return column_of(texts.examples, best, "accuracy")


def accuracy(mine: Floats, theirs: Floats, groups: Sequence[str], folds: int, flips: Ints) -> Floats:
    """Return, per text, the share of its two readings that are put down to the right model, [N] out of {0, 0.5, 1}.

    Args:
        mine: features of every text in one model, [N, F].
        theirs: the same in the other.
        groups: what must not be split between fitting and judging, [N].
        folds: number of parts.
        flips: 1 where the two labels of a text are swapped, [N].
    """
    rows = np.concatenate([mine, theirs])
    labels = np.concatenate([np.ones(len(mine)), np.zeros(len(theirs))]).astype(bool)
    labels ^= np.tile(flips, 2).astype(bool)
    fold = np.tile(_folds(groups, folds), 2)
    hits = np.zeros(len(rows))
    for held in np.unique(fold):
        train = fold != held
        centre, spread = rows[train].mean(0), rows[train].std(0)
        scaled = (rows - centre) / np.where(spread > 0, spread, 1.0)
        weights, intercept = fit(scaled[train], labels[train])
        said = scaled[~train] @ weights + intercept > 0
        hits[~train] = said == labels[~train]
    return np.asarray((hits[: len(mine)] + hits[len(mine) :]) / 2, dtype=np.float64)


def _folds(groups: Sequence[str], folds: int) -> Ints:
    order = sorted(set(groups), key=lambda group: (crc32(group.encode()), group))
    fold = {group: number % min(folds, len(order)) for number, group in enumerate(order)}
    return np.array([fold[group] for group in groups])


def _groups(examples: Sequence[Example]) -> list[str]:
    """Return what stays together: the subject, or the text itself where there is but one subject or none is known."""
    if len({example.subject for example in examples}) == 1:
        return [f"item {example.id}" for example in examples]
    return [example.subject or f"item {example.id}" for example in examples]
