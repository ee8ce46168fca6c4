# SPDX-License-Identifier: Apache-2.0
"""The texts of an audit: every different prompt continued once, by the model itself or by a server that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from expunge.audit.config import AuditConfig
from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.errors import RecipeError
from expunge.signals.engine import EngineConfig, generate_served
from expunge.signals.generation import generate
from expunge.signals.likelihood import score
from expunge.signals.stopping import Generation, StopStrings, generation

_CHECKED = 32
"""Served texts that are read with the local model."""


class Wanted(NamedTuple):
    """A prompt to continue: its ids, the most tokens that matter, and the strings before which its text ends."""

    ids: tuple[int, ...]
    limit: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """One continuation per prompt, long enough for all who want it.

    Attributes:
        encoder: decodes them.
        found: continuations by prompt.
        limits: the most tokens that each was asked to have.
        engine: which server wrote them and how far the local model agrees; empty where the model wrote them itself.
    """

    encoder: Encoder
    found: Mapping[tuple[int, ...], Generation]
    limits: Mapping[tuple[int, ...], int]
    engine: Mapping[str, Any] = field(default_factory=dict)

    def of(self, wanted: Wanted) -> Generation:
        """Return the continuation as if it had been made for this alone.

        Greedy tokens do not depend on how many follow, so cutting is the same as having stopped there.
        """
        answer, tokenizer = self.found[wanted.ids], self.encoder.tokenizer
        shorter = wanted.limit < self.limits[wanted.ids]
        kept = min(wanted.limit, len(answer.ids)) if shorter else len(answer.ids)
        if wanted.stop:
            kept = StopStrings(tokenizer, wanted.stop).first_end(answer.ids[:kept])
        if kept < len(answer.ids):
            return generation(tokenizer, answer.ids[:kept], finished=False)
        # An end right behind the last token that is wanted would not have been seen.
        return replace(answer, finished=answer.finished and not (shorter and kept == wanted.limit))


def answers_to(
    model: PreTrainedModel,
    encoder: Encoder,
    wanted: Sequence[Wanted],
    config: AuditConfig,
    *,
    name: str,
    counter: Callable[[int], Callable[[int], None] | None],
) -> Answers:
    """Continue every different prompt once.

    Args:
        model: the model.
        encoder: its tokenizer under one template and context length.
        wanted: prompts, with repeats.
        config: batch size, and the server if one writes the texts.
        name: what a server is asked for where its settings name no model.
        counter: gives what is told after each piece of work, from the number of different prompts.

    Raises:
        RecipeError: if a server cannot be used, or runs another model.
    """
    merged = _merged(wanted)
    prompts, limits, stops = [w.ids for w in merged], [w.limit for w in merged], [w.stop for w in merged]
    asked = dict(zip(prompts, limits, strict=True))
    done = counter(len(merged))
    engine = config.engine
    if not merged:
        return Answers(encoder, {}, {})
    if engine is None:
        found = generate(
            model, encoder.tokenizer, prompts, max_new_tokens=limits, stop=stops, batch_tokens=config.batch_tokens,
            progress=done,
        )  # fmt: skip
        return Answers(encoder, dict(zip(prompts, found, strict=True)), asked)
    served = engine.model or name
    found = generate_served(
        engine, encoder.tokenizer, prompts, model=served, max_new_tokens=limits, stop=stops, progress=done
    )
    answers = dict(zip(prompts, found, strict=True))
    facts = {"url": engine.url, "model": served, "token_ids": "the server's" if engine.token_ids else "of the text"}
    return Answers(encoder, answers, asked, facts | _agreement(model, encoder, answers, engine, config.batch_tokens))


def _merged(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Return every prompt once, as long as any needs it, stopped early only where all agree on the strings."""
    out: dict[tuple[int, ...], Wanted] = {}
    for one in wanted:
        other = out.setdefault(one.ids, one)
        out[one.ids] = Wanted(one.ids, max(one.limit, other.limit), one.stop if one.stop == other.stop else ())
    return list(out.values())


def _agreement(
    model: PreTrainedModel,
    encoder: Encoder,
    answers: Mapping[tuple[int, ...], Generation],
    engine: EngineConfig,
    batch_tokens: int,
) -> dict[str, Any]:
    """Return how many of the served tokens are the local model's most likely ones; a server with other weights shows.

    Raises:
        RecipeError: if too few are.
    """
    texts = [(prompt, answer.ids) for prompt, answer in answers.items() if answer.ids][:_CHECKED]
    items = [Encoded((*prompt, *ids), (*[IGNORE] * len(prompt), *ids), ends_with_eos=False) for prompt, ids in texts]
    scores = score(model, items, pad_id=encoder.pad_id, batch_tokens=batch_tokens, stats=True)
    tokens = sum(len(one.correct) for one in scores)
    if not tokens:
        return {"agreement": None, "tokens": 0}
    share = sum(int(one.correct.sum()) for one in scores) / tokens
    if share < engine.agreement:
        raise RecipeError(
            f"only {share:.1%} of {tokens} served tokens are the local model's most likely ones",
            field="audit.engine.agreement", value=engine.agreement,
            remedy="Serve the weights that are audited, under the name that audit.engine.model gives",
        )  # fmt: skip
    return {"agreement": round(share, 4), "tokens": tokens}
