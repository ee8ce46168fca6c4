# SPDX-License-Identifier: Apache-2.0
"""The one audit pass: every different (prompt, answer) pair scored once, every different prompt continued once."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from expunge.audit.config import AuditConfig
from expunge.audit.document import environment
from expunge.audit.protocol import Protocol, default_protocol
from expunge.audit.records import GeneratedItem, Records, ScoredItem
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoded, Encoder, Variant, ids_hash
from expunge.data.examples import Example
from expunge.signals.generation import Generation, generate
from expunge.signals.likelihood import TokenScores, score

Progress = Callable[[str, int, int], None]
"""Called with the phase (`scoring` or `generation`), how many are done, and how many there are."""


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


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt to continue."""

    set: str
    example: Example
    prompt_variant: str
    ids: tuple[int, ...]


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
        config: limits, batch size, and whether to generate.
        protocol: tells the forget sets, whose paraphrased questions are continued too; the default reading of the
            set names if not given.
        progress: told after every forward.

    Raises:
        InputDataError: if an example does not fit the context (see `Encoder`).
    """
    sets = {name: list(examples)[: config.limit] for name, examples in sets.items()}
    protocol = protocol or default_protocol(sets)
    pairs = [pair for name, examples in sets.items() for pair in _pairs(name, examples, encoder, config)]
    kept = {(pair.set, pair.id, pair.variant) for pair in pairs}
    prompts = [p for name in sets for p in _prompts(name, sets[name], encoder, protocol, kept) if config.generate]
    started = time.perf_counter()
    scores = _score_once(model, encoder, [pair.encoded for pair in pairs], config, progress)
    scored_at = time.perf_counter()
    answers = _generate_once(model, encoder, [prompt.ids for prompt in prompts], config, progress)
    seconds = {"scoring": scored_at - started, "generation": time.perf_counter() - scored_at}
    counts = _counts(pairs, prompts, scores, answers)
    return Records(
        scored=[_scored_item(pair, scores[pair.encoded]) for pair in pairs],
        generated=[_generated_item(prompt, answers[prompt.ids]) for prompt in prompts],
        meta=_meta(model, encoder, sets, config, protocol) | {"counts": counts, "seconds": seconds},
    )


def _pairs(name: str, examples: Sequence[Example], encoder: Encoder, config: AuditConfig) -> list[_Pair]:
    """Return every pair to score in a set, in order."""
    wanted = [entry for example in examples for entry in _variants(example, config)]
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
            text = str(encoder.tokenizer.decode(list(row.encoded.ids), skip_special_tokens=True))
        out.append(_Pair(name, own, subject, kind, number, row.encoded, text))
    return out


def _variants(example: Example, config: AuditConfig) -> list[tuple[str, int, Variant]]:
    """Return (variant, index, what to encode) for everything scored of one example."""
    out = [("answer", 0, Variant(example))]
    if config.lowercase:
        out.append(("lowercase", 0, Variant(example, answer=example.answer.lower())))
    if example.kind == "text":
        return out
    if example.paraphrased_answer is not None:
        out.append(("paraphrase", 0, Variant(example, answer=example.paraphrased_answer)))
    out += [("perturbed", i, Variant(example, answer=wrong)) for i, wrong in enumerate(example.perturbed_answers)]
    if example.paraphrased_prompt is not None:
        out.append(("paraphrased_question", 0, Variant(example, prompt=example.paraphrased_prompt)))
    return out


def _prompts(
    name: str, examples: Sequence[Example], encoder: Encoder, protocol: Protocol, kept: set[tuple[str, str, str]]
) -> list[_Prompt]:
    """Return every prompt to continue in a set; what the encoder left out (`kept` lacks it) is left out here too."""
    out = []
    for example in examples:
        if example.kind == "text":
            continue
        if (name, example.id, "answer") in kept:
            out.append(_Prompt(name, example, "question", encoder.prompt_ids(example)))
        if name in protocol.sets("forget") and (name, example.id, "paraphrased_question") in kept:
            ids = encoder.prompt_ids(example, prompt=example.paraphrased_prompt)
            out.append(_Prompt(name, example, "paraphrase", ids))
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
    prompts: Sequence[tuple[int, ...]],
    config: AuditConfig,
    progress: Progress | None,
) -> dict[tuple[int, ...], Generation]:
    unique = list(dict.fromkeys(prompts))
    if not unique:
        return {}
    done = _counter("generation", len(unique), progress)
    found = generate(
        model,
        encoder.tokenizer,
        unique,
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
        progress=done,
    )
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


def _scored_item(pair: _Pair, scores: TokenScores) -> ScoredItem:
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
    )


def _generated_item(prompt: _Prompt, answer: Generation) -> GeneratedItem:
    return GeneratedItem(
        set=prompt.set,
        id=prompt.example.id,
        subject=prompt.example.subject,
        prompt_variant=prompt.prompt_variant,
        prediction=answer.text,
        target=prompt.example.answer,
        n_tokens=len(answer.ids),
        finished=answer.finished,
    )


def _counts(
    pairs: Sequence[_Pair],
    prompts: Sequence[_Prompt],
    scores: Mapping[Encoded, TokenScores],
    answers: Mapping[tuple[int, ...], Generation],
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
        "protocol": {"name": protocol.name, "version": protocol.version, "roles": dict(protocol.roles)},
        "data": {name: {"n": len(examples), "digest": data_digest(examples)} for name, examples in sets.items()},
        "environment": environment(str(model.device)),
    }
