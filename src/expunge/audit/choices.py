# SPDX-License-Identifier: Apache-2.0
"""Multiple-choice questions put to a model: one forward per question where choices differ in their last token only.

Shape suffixes: B batch rows, T tokens, D hidden width, V vocabulary, C rows of one chunk, K choices.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from expunge.audit.collect import Progress
from expunge.audit.records import ChoiceItem, Records
from expunge.data.batching import length_buckets, pad
from expunge.data.encoding import IGNORE, Encoded, Encoder, Variant, ids_hash
from expunge.data.examples import Example
from expunge.data.questions import Question, QuestionSet
from expunge.errors import InputDataError
from expunge.signals.head import Head, body, over_vocabulary
from expunge.signals.likelihood import label_logp, score

_UNCUT = 1 << 40  # the encoder leaves every length alone; a prompt is cut from the left here
logger = logging.getLogger(__name__)


class _Letters(NamedTuple):
    """What every choice has in common, labelled after the prompt, and the last token of each choice."""

    shared: Encoded
    last: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question as token ids: a sequence per choice, cut to the context."""

    set: str
    style: str
    question: Question
    sequences: tuple[Encoded, ...]
    cut: int

    @property
    def letters(self) -> _Letters | None:
        """The choices as one sequence and their last tokens; None if they differ before their last token.

        A choice of one token leaves nothing but the prompt; " A" as a space and a letter shares the space.
        """
        first = self.sequences[0]
        if any(s.ids[:-1] != first.ids[:-1] or s.label_start != first.label_start for s in self.sequences):
            return None
        shared = Encoded(first.ids[:-1], first.labels[:-1], ends_with_eos=False)
        return _Letters(shared, tuple(sequence.ids[-1] for sequence in self.sequences))


def score_choices(
    model: PreTrainedModel,
    encoder: Encoder,
    sets: Mapping[str, QuestionSet],
    *,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> list[ChoiceItem]:
    """Return the log-probability of every choice of every question.

    A question whose choices are one token each, or differ in their last token only, takes one forward, over what they
    share. Any other takes one sequence per choice, and the log-probabilities of its tokens are summed; those share
    their batches. Equal prompts and equal sequences are run once. The tokens of a choice are those of prompt and
    choice tokenised together.

    Args:
        model: a causal language model; put into eval mode for the pass.
        encoder: gives the tokenizer and the context length; its template is not used.
        sets: questions by the name of their set.
        batch_tokens: positions per forward, padding included.
        progress: told after every forward, with the phase `questions`.

    Raises:
        InputDataError: for a prompt beyond the context in a set that refuses it, or a choice without a token.
    """
    asked = [entry for name, questions in sets.items() for entry in _asked(name, questions, encoder)]
    single = {i: letters for i, entry in enumerate(asked) if (letters := entry.letters) is not None}
    several = [sequence for i, entry in enumerate(asked) if i not in single for sequence in entry.sequences]
    prompts, sequences = list(dict.fromkeys(single.values())), list(dict.fromkeys(several))
    done = _Counter(progress, len(prompts) + len(sequences))
    by_letter = _letter_scores(model, prompts, encoder.pad_id, batch_tokens, done)
    by_text = _text_scores(model, sequences, encoder.pad_id, batch_tokens, done)
    return [
        _item(entry, by_letter[single[i]] if i in single else np.array([by_text[s] for s in entry.sequences]))
        for i, entry in enumerate(asked)
    ]


def with_choices(
    records: Records,
    model: PreTrainedModel,
    encoder: Encoder,
    sets: Mapping[str, QuestionSet],
    *,
    limit: int | None = None,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> Records:
    """Return the records of a model with its answers to multiple-choice questions added.

    Args:
        records: what the audit pass saw of the same model.
        model: the model.
        encoder: gives the tokenizer and the context length.
        sets: questions by the name of their set.
        limit: take only the first so many questions of every subject.
        batch_tokens: positions per forward, padding included.
        progress: told after every forward.
    """
    sets = {name: questions.first(limit) for name, questions in sets.items()}
    started = time.perf_counter()
    items = score_choices(model, encoder, sets, batch_tokens=batch_tokens, progress=progress)
    data = {name: {"n": len(questions.questions), "digest": questions.digest()} for name, questions in sets.items()}
    meta = dict(records.meta)
    meta["data"] = {**meta.get("data", {}), **data}
    meta["seconds"] = {**meta.get("seconds", {}), "questions": time.perf_counter() - started}
    meta["counts"] = {**meta.get("counts", {}), **_counts(items)}
    return replace(records, choices=[*records.choices, *items], meta=meta)


def _counts(items: Sequence[ChoiceItem]) -> dict[str, Any]:
    one = sum(all(n == 1 for n in item.n_tokens) for item in items)
    return {"questions": len(items), "questions_of_single_tokens": one, "questions_cut": sum(i.cut > 0 for i in items)}


def _asked(name: str, questions: QuestionSet, encoder: Encoder) -> list[_Asked]:
    plain = Encoder(encoder.tokenizer, template="raw", max_length=_UNCUT, answer_eos=False)
    variants = [
        Variant(Example(id=question.id, prompt=questions.prompt(question), answer=text, kind="completion"))
        for question in questions.questions
        for text in questions.continuations(question)
    ]
    rows = iter(plain.encode_variants(variants, where=name))
    out = []
    for question in questions.questions:
        whole = [next(rows).encoded for _ in question.choices]
        out.append(_fitted(_Asked(name, questions.style, question, tuple(whole), 0), encoder.max_length, questions))
    if cut := sum(entry.cut > 0 for entry in out):
        logger.warning("%s: the start of %d of %d prompts was cut: over %d tokens", name, cut, len(out),
                       encoder.max_length)  # fmt: skip
    return out


def _fitted(entry: _Asked, most: int, questions: QuestionSet) -> _Asked:
    """Return the question with the start of its prompt cut to the context, where it does not fit."""
    # The last token is predicted, not read: a single token after a prompt of `most` still fits.
    room = most + 1 if entry.letters is not None else most
    over = max(len(sequence.ids) for sequence in entry.sequences) - room
    if over <= 0:
        return entry
    where = f"question {entry.question.id!r}"
    if questions.too_long == "error":
        remedy = "Use a model with a longer context, leave it out, or cut prompts from the left with too_long='cut'"
        raise InputDataError(f"{where} is {over} tokens too long", field=entry.set, value=room + over, remedy=remedy)
    if any(sequence.label_start <= over for sequence in entry.sequences):
        raise InputDataError(f"{where}: a choice alone fills the context of {most} tokens", field=entry.set)
    # The same start for every choice, so that all of them follow the same prompt.
    sequences = tuple(replace(s, ids=s.ids[over:], labels=s.labels[over:]) for s in entry.sequences)
    return replace(entry, sequences=sequences, cut=over)


def _letter_scores(
    model: PreTrainedModel, rows: Sequence[_Letters], pad_id: int, batch_tokens: int, done: _Counter
) -> dict[_Letters, NDArray[np.float32]]:
    """Return log p of each choice [K], one forward per row over what its choices share."""
    out: dict[_Letters, NDArray[np.float32]] = {}
    if not rows:
        return out
    head = Head(model)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for bucket in length_buckets([len(row.shared.ids) for row in rows], max_tokens=batch_tokens):
                found = _letter_batch(model, head, [rows[i] for i in bucket], pad_id)
                out |= {rows[i]: scores[: len(rows[i].last)] for i, scores in zip(bucket, found, strict=True)}
                done(len(bucket))
    finally:
        model.train(was_training)
    return out


def _letter_batch(model: PreTrainedModel, head: Head, rows: Sequence[_Letters], pad_id: int) -> NDArray[np.float32]:
    """Return log p of each choice, [B, K], K that of the row with most choices."""
    device, width = next(model.parameters()).device, max(len(row.last) for row in rows)
    batch = pad([row.shared for row in rows], pad_id).to(device)
    hidden_BTD = body(model, batch.input_ids, batch.attention_mask)
    hidden_BD = hidden_BTD[torch.arange(len(rows), device=device), batch.attention_mask.sum(1) - 1]
    ids_BK = torch.tensor([[*row.last] + [0] * (width - len(row.last)) for row in rows], device=device)
    scores_BK = over_vocabulary(head, hidden_BD, ids_BK, _choice_logp)
    targets_BT = batch.labels[:, 1:]
    row_N, time_N = (targets_BT != IGNORE).nonzero(as_tuple=True)
    if len(row_N):
        shared_N = over_vocabulary(head, hidden_BTD[row_N, time_N], targets_BT[row_N, time_N], label_logp)
        scores_BK = scores_BK.index_add(0, row_N, shared_N[:, None].expand(-1, width))
    found: NDArray[np.float32] = scores_BK.cpu().numpy()
    return found


def _choice_logp(logits_CV: Tensor, ids_CK: Tensor) -> Tensor:
    """Return log p of several tokens at one position, [C, K]."""
    return logits_CV.gather(1, ids_CK) - torch.logsumexp(logits_CV, dim=1, keepdim=True)


def _text_scores(
    model: PreTrainedModel, sequences: Sequence[Encoded], pad_id: int, batch_tokens: int, done: _Counter
) -> dict[Encoded, float]:
    """Return the summed log-probability of the labelled tokens of every sequence."""
    if not sequences:
        return {}
    found = score(model, sequences, pad_id=pad_id, batch_tokens=batch_tokens, stats=False, progress=done)
    return {key: float(np.sum(value.logp, dtype=np.float64)) for key, value in zip(sequences, found, strict=True)}


def _item(entry: _Asked, scores: NDArray[Any]) -> ChoiceItem:
    question, first = entry.question, entry.sequences[0]
    prompt = first.ids[: first.label_start]
    return ChoiceItem(
        set=entry.set, id=question.id, subject=question.subject, cluster=question.cluster, style=entry.style,
        ids_hash=ids_hash(Encoded(prompt, (IGNORE,) * len(prompt), False)), scores=scores,
        correct=question.correct, best=question.best,
        lengths=[1 if entry.style == "letters" else len(choice) for choice in question.choices],
        n_tokens=[sequence.n_labels for sequence in entry.sequences], cut=entry.cut,
    )  # fmt: skip


class _Counter:
    """Turns batch sizes into running totals for the progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._seen = progress, total, 0

    def __call__(self, size: int) -> None:
        self._seen += size
        if self._progress is not None:
            self._progress("questions", self._seen, self._total)
