# SPDX-License-Identifier: Apache-2.0
"""The one audit pass: every different (prompt, answer) pair scored once, every different prompt continued once."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from expunge.audit.config import AuditConfig
from expunge.audit.document import environment
from expunge.audit.extra import Measured, Text, measured, norms_of, scores_of_texts, starts
from expunge.audit.extraction import Prefix
from expunge.audit.neighbours import neighbour_texts, vocabulary
from expunge.audit.protocol import Continuation, Protocol, default_protocol
from expunge.audit.records import GeneratedItem, Records, ScoredItem
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoded, Encoder, Variant, ids_hash
from expunge.data.examples import Example
from expunge.signals.generation import Generation, generate
from expunge.signals.gradients import GradientNorm
from expunge.signals.likelihood import TokenScores, score

Progress = Callable[[str, int, int], None]
"""Called with the phase (`scoring`, `generation` or `gradients`), how many are done, and how many there are."""
_Key = tuple[tuple[int, ...], int]
"""Prompt ids and the most tokens added to them."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """One pair to score; `text` is what its compressed length is taken of."""

    set: str
    id: str
    subject: str
    variant: str
    variant_index: int
    encoded: Encoded
    text: str
    prompt: str


@dataclass(frozen=True, slots=True)
class _Start:
    """One prompt to continue after the first tokens of its answer."""

    pair: _Pair
    prefix: Prefix
    max_new_tokens: int

    @property
    def key(self) -> _Key:
        """What makes two generations the same."""
        return self.prefix.ids, self.max_new_tokens


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt to continue, with how long and until where."""

    set: str
    example: Example
    prompt_variant: str
    ids: tuple[int, ...]
    max_new_tokens: int
    rule: Continuation

    @property
    def key(self) -> _Key:
        """What makes two generations the same."""
        return self.ids, self.max_new_tokens


def collect(
    model: PreTrainedModel,
    encoder: Encoder,
    sets: Mapping[str, Sequence[Example]],
    *,
    config: AuditConfig,
    protocol: Protocol | None = None,
    progress: Progress | None = None,
) -> Records:
    """Measure a model once and return everything the metrics need.

    Args:
        model: the model to measure; left as it was.
        encoder: its tokenizer under one template and context length.
        sets: evaluated sets by name. Running texts are scored in chunks (`id#0`, `id#1`...) and not continued.
        config: limits, batch size, whether to generate, and what to look at beyond the two passes.
        protocol: tells the forget sets, whose paraphrased questions are continued too; the default reading of the
            set names if not given.
        progress: told after every forward.

    Raises:
        InputDataError: if an example does not fit the context (see `Encoder`).
    """
    sets = {name: list(examples)[: config.limit] for name, examples in sets.items()}
    protocol = protocol or default_protocol(sets)
    pairs = [pair for name, examples in sets.items() for pair in _pairs(name, examples, encoder)]
    kept = {(pair.set, pair.id, pair.variant) for pair in pairs}
    prompts = [p for name in sets for p in _prompts(name, sets[name], encoder, config, protocol, kept)]
    members = protocol.members or protocol.sets("forget")
    both = [name for name in (*members, *protocol.sets("holdout")) if name in sets]
    compared = [pair for pair in pairs if pair.variant == "answer" and pair.set in both]
    pairs += _reworded_pairs(sets, both, encoder, config, kept)
    begun = [_Start(pair, *start) for pair in compared for start in starts(pair.encoded, config, encoder.max_length)]
    started = time.perf_counter()
    scores = _score_once(model, encoder, [pair.encoded for pair in pairs], config, progress)
    scored_at = time.perf_counter()
    answers = _generate_once(model, encoder, [p.key for p in prompts] + [s.key for s in begun], config, progress)
    seconds = {"scoring": scored_at - started, "generation": time.perf_counter() - scored_at}
    counts = _counts(pairs, [*prompts, *begun], scores, answers)
    norms: dict[Encoded, GradientNorm] = {}
    if config.gradient_norm:
        began = time.perf_counter()
        norms = norms_of(model, [pair.encoded for pair in compared], partial(_counter, progress=progress))
        seconds["gradients"], counts["backwards"] = time.perf_counter() - began, len(norms)
    texts = scores_of_texts([_text(pair, pair.set in members) for pair in compared])
    more = {id(pair): measured(pair.encoded, text, norms) for pair, text in zip(compared, texts, strict=True)}
    return Records(
        scored=[_scored_item(pair, scores[pair.encoded], more.get(id(pair), Measured())) for pair in pairs],
        generated=[
            *(_generated_item(prompt, answers[prompt.key], encoder) for prompt in prompts),
            *(_continued_item(start, answers[start.key], encoder) for start in begun),
        ],
        meta=_meta(model, encoder, sets, config, protocol) | {"counts": counts, "seconds": seconds},
    )


def _pairs(name: str, examples: Sequence[Example], encoder: Encoder) -> list[_Pair]:
    """Return every pair to score in a set, in order."""
    return _encoded(name, [entry for example in examples for entry in _variants(example)], encoder)


def _reworded_pairs(
    sets: Mapping[str, Sequence[Example]],
    both: Sequence[str],
    encoder: Encoder,
    config: AuditConfig,
    kept: set[tuple[str, str, str]],
) -> list[_Pair]:
    """Return the lowercased copies of every kept answer, and the neighbours of those in the sets `both`."""
    known = vocabulary(example.answer for name in both if config.neighbours for example in sets[name])
    roomy = copy.copy(encoder)
    roomy.too_long = "truncate"  # copies may need more tokens; that must not stop an audit whose own texts all fit
    out = []
    for name, examples in sets.items():
        wanted = []
        for example in (e for e in examples if e.kind == "text" or (name, e.id, "answer") in kept):
            texts = [("lowercase", 0, example.answer.lower())] if config.lowercase else []
            if config.neighbours and name in both:
                found = neighbour_texts(example.answer, known, config.neighbours, seed=config.seed)
                texts += [("neighbour", number, text) for number, text in enumerate(found)]
            wanted += [(kind, number, Variant(example, answer=text)) for kind, number, text in texts]
        out += _encoded(name, wanted, roomy)
    return out


def _encoded(name: str, wanted: Sequence[tuple[str, int, Variant]], encoder: Encoder) -> list[_Pair]:
    """Return the pairs of (variant, index, what to encode), those of a running text chunk by chunk."""
    rows = encoder.encode_variants([variant for _, _, variant in wanted], where=name)
    out = []
    for row in rows:
        kind, number, variant = wanted[row.index]
        example = variant.example
        text = variant.answer if variant.answer is not None else example.answer
        own, subject = example.id, example.subject
        if example.kind == "text":
            # Chunks of one text are not independent: without a subject the text itself is the cluster.
            own, subject = f"{example.id}#{row.chunk}", example.subject or example.id
            text = _decoded(encoder, row.encoded.ids)
        out.append(_Pair(name, own, subject, kind, number, row.encoded, text, example.prompt))
    return out


def _variants(example: Example) -> list[tuple[str, int, Variant]]:
    """Return (variant, index, what to encode) for what the data give of one example."""
    out = [("answer", 0, Variant(example))]
    if example.kind == "text":
        return out
    if example.paraphrased_answer is not None:
        out.append(("paraphrase", 0, Variant(example, answer=example.paraphrased_answer)))
    out += [("perturbed", i, Variant(example, answer=wrong)) for i, wrong in enumerate(example.perturbed_answers)]
    if example.paraphrased_prompt is not None:
        out.append(("paraphrased_question", 0, Variant(example, prompt=example.paraphrased_prompt)))
    return out


def _prompts(
    name: str,
    examples: Sequence[Example],
    encoder: Encoder,
    config: AuditConfig,
    protocol: Protocol,
    kept: set[tuple[str, str, str]],
) -> list[_Prompt]:
    """Return every prompt to continue in a set; what the encoder left out (`kept` lacks it) is left out here too."""
    out: list[_Prompt] = []
    rule = protocol.continuation(name)
    most = config.max_new_tokens if rule.max_new_tokens is None else rule.max_new_tokens
    for example in examples:
        if example.kind == "text" or not config.generate:
            continue
        if (name, example.id, "answer") in kept:
            out.append(_Prompt(name, example, "question", encoder.prompt_ids(example), most, rule))
        if name in protocol.sets("forget") and (name, example.id, "paraphrased_question") in kept:
            ids = encoder.prompt_ids(example, prompt=example.paraphrased_prompt)
            out.append(_Prompt(name, example, "paraphrase", ids, most, rule))
    return out


def _score_once(
    model: PreTrainedModel, encoder: Encoder, items: Sequence[Encoded], config: AuditConfig, progress: Progress | None
) -> dict[Encoded, TokenScores]:
    unique = list(dict.fromkeys(items))
    if not unique:
        return {}
    done = _counter("scoring", len(unique), progress)
    found = score(model, unique, pad_id=encoder.pad_id, batch_tokens=config.batch_tokens, stats=True, progress=done)
    return dict(zip(unique, found, strict=True))


def _generate_once(
    model: PreTrainedModel,
    encoder: Encoder,
    prompts: Sequence[_Key],
    config: AuditConfig,
    progress: Progress | None,
) -> dict[_Key, Generation]:
    """Return the generation of every different (prompt, length); prompts of one length share their batches."""
    unique = list(dict.fromkeys(prompts))
    done = _counter("generation", len(unique), progress)
    out: dict[_Key, Generation] = {}
    for most in dict.fromkeys(length for _, length in unique):
        same = [ids for ids, length in unique if length == most]
        found = generate(
            model, encoder.tokenizer, same, max_new_tokens=most, batch_tokens=config.batch_tokens, progress=done
        )
        out |= {(ids, most): answer for ids, answer in zip(same, found, strict=True)}
    return out


def _counter(phase: str, total: int, progress: Progress | None) -> Callable[[int], None] | None:
    """Return a callback for batch sizes that reports running totals."""
    if progress is None:
        return None
    seen = 0

    def count(size: int) -> None:
        nonlocal seen
        seen += size
        progress(phase, seen, total)

    return count


def _scored_item(pair: _Pair, scores: TokenScores, more: Measured) -> ScoredItem:
    return ScoredItem(
        set=pair.set,
        id=pair.id,
        subject=pair.subject,
        variant=pair.variant,
        variant_index=pair.variant_index,
        ids_hash=ids_hash(pair.encoded),
        logp=scores.logp,
        correct=scores.correct,
        mu=scores.mu,
        sigma2=scores.sigma2,
        ends_with_eos=pair.encoded.ends_with_eos,
        zlib_bytes=len(zlib.compress(pair.text.encode("utf-8"))),
        gradient_norm=more.gradient_norm,
        gradient_norm_mean=more.gradient_norm_mean,
        text_score=more.text_score,
    )


def _text(pair: _Pair, forget: bool) -> Text:
    # Ids are unique within a set only; subjects may be in both sets, and then stay together.
    return Text(f"{pair.prompt}\n{pair.text}", forget, pair.subject or f"{pair.set}/{pair.id}")


def _continued_item(start: _Start, answer: Generation, encoder: Encoder) -> GeneratedItem:
    pair, target = start.pair, start.prefix.target
    ids = answer.ids[: len(target)]
    return GeneratedItem(
        set=pair.set,
        id=pair.id,
        subject=pair.subject,
        prompt_variant="prefix",
        prediction=_decoded(encoder, ids).strip(),
        target=_decoded(encoder, target).strip(),
        n_tokens=len(ids),
        finished=answer.finished and len(answer.ids) <= len(target),
        ids=ids,
        target_ids=target,
    )


def _generated_item(prompt: _Prompt, answer: Generation, encoder: Encoder) -> GeneratedItem:
    said, stopped = answer.text, False
    room = None if prompt.rule.max_total_tokens is None else max(0, prompt.rule.max_total_tokens - len(prompt.ids))
    if room is not None and room < len(answer.ids):
        # Greedy tokens do not depend on how many follow, so cutting is the same as having stopped there.
        answer = Generation(answer.ids[:room], _decoded(encoder, answer.ids[:room]), finished=False)
        said = answer.text
    if prompt.rule.stop:
        # From the ids: white space at the start of the text can be part of a stop string.
        said, stopped = cut_before(_decoded(encoder, answer.ids), prompt.rule.stop)
    return GeneratedItem(
        set=prompt.set,
        id=prompt.example.id,
        subject=prompt.example.subject,
        prompt_variant=prompt.prompt_variant,
        prediction=said.strip(),
        target=_cut_target(prompt.example.answer, prompt.rule.target_tokens, encoder),
        n_tokens=len(answer.ids),
        finished=answer.finished or stopped,
    )


def cut_before(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first of the stop strings, and whether there was one."""
    ends = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(ends, default=len(text))], bool(ends)


def _cut_target(answer: str, tokens: int | None, encoder: Encoder) -> str:
    """Return the answer as far as its first token ids reach, counting those the tokenizer adds itself."""
    return answer if tokens is None else _decoded(encoder, encoder.tokenizer(answer)["input_ids"][:tokens])


def _decoded(encoder: Encoder, ids: Sequence[int]) -> str:
    return str(encoder.tokenizer.decode(list(ids), skip_special_tokens=True))


def _counts(
    pairs: Sequence[_Pair],
    prompts: Sequence[_Prompt | _Start],
    scores: Mapping[Encoded, TokenScores],
    answers: Mapping[_Key, Generation],
) -> dict[str, int]:
    """Return the work done; `forwards` counts sequences passed through the model, a generation as one."""
    return {
        "pairs": len(pairs),
        "unique_pairs": len(scores),
        "prompts": len(prompts),
        "unique_prompts": len(answers),
        "scored_tokens": sum(len(found.logp) for found in scores.values()),
        "generated_tokens": sum(len(found.ids) for found in answers.values()),
        "forwards": len(scores) + len(answers),
    }


def _meta(
    model: PreTrainedModel,
    encoder: Encoder,
    sets: Mapping[str, Sequence[Example]],
    config: AuditConfig,
    protocol: Protocol,
) -> dict[str, Any]:
    return {
        "template": encoder.template_id,
        "max_length": encoder.max_length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "settings": config.model_dump(mode="json"),
        "protocol": protocol.to_dict(),
        "data": {name: {"n": len(examples), "digest": data_digest(examples)} for name, examples in sets.items()},
        "environment": environment(str(model.device)),
    }
