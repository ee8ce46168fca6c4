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

from expunge.audit.answers import Answers, Wanted, answers_to
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
from expunge.errors import RecipeError
from expunge.signals.gradients import GradientNorm
from expunge.signals.likelihood import TokenScores, score
from expunge.signals.stopping import cut_before, decoded, generation

Progress = Callable[[str, int, int], None]
"""Called with the phase (`scoring`, `generation` or `gradients`), how many are done, and how many there are."""


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

    @property
    def wanted(self) -> Wanted:
        """What is asked of the model."""
        return Wanted(self.prefix.ids, len(self.prefix.target))


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
    def room(self) -> int | None:
        """Tokens that the protocol leaves beside the prompt; None for no bound."""
        total = self.rule.max_total_tokens
        return None if total is None else max(0, total - len(self.ids))

    @property
    def wanted(self) -> Wanted:
        """What is asked of the model: one token past the room, which may be the one that ends the text there."""
        most = self.max_new_tokens if self.room is None else min(self.max_new_tokens, self.room + 1)
        return Wanted(self.ids, most, self.rule.stop)


def collect(
    model: PreTrainedModel,
    encoder: Encoder,
    sets: Mapping[str, Sequence[Example]],
    *,
    config: AuditConfig,
    protocol: Protocol | None = None,
    name: str = "model",
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
        name: what a server is asked for that writes the texts, where its settings name no model.
        progress: told after every forward.

    Raises:
        InputDataError: if an example does not fit the context (see `Encoder`).
        RecipeError: if a server that writes the texts cannot be used, or answers are wanted in a set that is not there.
    """
    if not isinstance(config.generate, bool) and (unknown := sorted(set(config.generate) - set(sets))):
        raise RecipeError("no such set", field="audit.generate", value=unknown[0], remedy=f"Sets: {', '.join(sets)}")
    sets = {name: list(examples)[: config.limit] for name, examples in sets.items()}
    protocol = protocol or default_protocol(sets)
    pairs = [pair for name, examples in sets.items() for pair in _pairs(name, examples, encoder)]
    kept = {(pair.set, pair.id, pair.variant) for pair in pairs}
    prompts = [p for name in sets for p in _prompts(name, sets[name], encoder, config, protocol, kept)]
    members = protocol.members or protocol.sets("forget")
    both = [name for name in (*members, *protocol.sets("holdout")) if name in sets]
    compared = [pair for pair in pairs if pair.variant == "answer" and pair.set in both]
    pairs += _reworded_pairs(sets, both, encoder, config, kept)
    begun = [_Start(pair, prefix) for pair in compared for prefix in starts(pair.encoded, config)]
    started = time.perf_counter()
    scores = _score_once(model, encoder, [pair.encoded for pair in pairs], config, progress)
    scored_at = time.perf_counter()
    asked: list[_Prompt | _Start] = [*prompts, *begun]
    counter = partial(_counter, "generation", progress=progress)
    answers = answers_to(model, encoder, [one.wanted for one in asked], config, name=name, counter=counter)
    seconds = {"scoring": scored_at - started, "generation": time.perf_counter() - scored_at}
    counts = _counts(pairs, asked, scores, answers)
    norms: dict[Encoded, GradientNorm] = {}
    if config.gradient_norm:
        began = time.perf_counter()
        norms = norms_of(model, [pair.encoded for pair in compared], partial(_counter, progress=progress))
        seconds["gradients"], counts["backwards"] = time.perf_counter() - began, len(norms)
    made = {"engine": dict(answers.engine)} if answers.engine else {}
    texts = scores_of_texts([_text(pair, pair.set in members) for pair in compared])
    more = {id(pair): measured(pair.encoded, text, norms) for pair, text in zip(compared, texts, strict=True)}
    return Records(
        scored=[_scored_item(pair, scores[pair.encoded], more.get(id(pair), Measured())) for pair in pairs],
        generated=[
            *(_generated_item(prompt, answers) for prompt in prompts),
            *(_continued_item(start, answers) for start in begun),
        ],
        meta=_meta(model, encoder, sets, config, protocol) | made | {"counts": counts, "seconds": seconds},
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
            text = decoded(encoder.tokenizer, row.encoded.ids)
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
        if example.kind == "text" or not config.generates(name):
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


def _continued_item(start: _Start, answers: Answers) -> GeneratedItem:
    pair, target = start.pair, start.prefix.target
    answer = answers.of(start.wanted)
    return GeneratedItem(
        set=pair.set,
        id=pair.id,
        subject=pair.subject,
        prompt_variant="prefix",
        prediction=answer.text,
        target=decoded(answers.encoder.tokenizer, target).strip(),
        n_tokens=len(answer.ids),
        finished=answer.finished,
        ids=answer.ids,
        target_ids=target,
    )


def _generated_item(prompt: _Prompt, answers: Answers) -> GeneratedItem:
    answer, stopped = answers.of(prompt.wanted), False
    if prompt.room is not None and prompt.room < len(answer.ids):
        answer = generation(answers.encoder.tokenizer, answer.ids[: prompt.room], finished=False)
    said = answer.text
    if prompt.rule.stop:
        # From the ids: white space at the start of the text can be part of a stop string.
        said, stopped = cut_before(decoded(answers.encoder.tokenizer, answer.ids), prompt.rule.stop)
    return GeneratedItem(
        set=prompt.set,
        id=prompt.example.id,
        subject=prompt.example.subject,
        prompt_variant=prompt.prompt_variant,
        prediction=said.strip(),
        target=_cut_target(prompt.example.answer, prompt.rule.target_tokens, answers.encoder),
        n_tokens=len(answer.ids),
        finished=answer.finished or stopped,
    )


def _cut_target(answer: str, tokens: int | None, encoder: Encoder) -> str:
    """Return the answer as far as its first token ids reach, counting those the tokenizer adds itself."""
    tokenizer = encoder.tokenizer
    return answer if tokens is None else decoded(tokenizer, tokenizer(answer)["input_ids"][:tokens])


def _counts(
    pairs: Sequence[_Pair],
    prompts: Sequence[_Prompt | _Start],
    scores: Mapping[Encoded, TokenScores],
    answers: Answers,
) -> dict[str, int]:
    """Return the work done; `forwards` counts sequences passed through the model, a generation as one."""
    return {
        "pairs": len(pairs),
        "unique_pairs": len(scores),
        "prompts": len(prompts),
        "unique_prompts": len(answers.found),
        "scored_tokens": sum(len(found.logp) for found in scores.values()),
        "generated_tokens": sum(len(found.ids) for found in answers.found.values()),
        "forwards": len(scores) + len(answers.found),
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
