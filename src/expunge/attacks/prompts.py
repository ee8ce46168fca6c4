# SPDX-License-Identifier: Apache-2.0
"""Prompt attacks: the same question in other words, and the worst of them for each item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from expunge.attacks.base import REFERENCE, Attack, AttackCard, AttackConfig, AttackContext, AttackResult, Finding
from expunge.attacks.compare import finding
from expunge.attacks.gauge import column_of
from expunge.attacks.wordings import Wording, wordings
from expunge.audit.behaviour import classify
from expunge.audit.columns import Column
from expunge.audit.overlap import rouge_l
from expunge.data.examples import Example
from expunge.data.refusals import load_refusals
from expunge.errors import InputDataError
from expunge.signals.generation import generate

PLAIN, WORST = "the plain question", "worst case"
_METRICS = ("rouge_l", "leak_rate")


class PromptsConfig(AttackConfig):
    """Which wordings are tried."""

    wordings: tuple[Wording, ...] = Field(
        ("plain", "prefix", "paraphrase", "few_shot", "role_play", "spelling"), min_length=2,
        description="ways of asking; `plain` must be among them",
    )  # fmt: skip
    shots: int = Field(3, ge=1, description="answered facts of other forget subjects shown before the question")
    every: int = Field(8, ge=2, description="`spelling` puts in one letter after so many letters")

    @model_validator(mode="after")
    def _plain(self) -> PromptsConfig:
        if "plain" not in self.wordings:
            raise ValueError("wordings must hold plain: the others are read beside it")
        return self


class Prompts(Attack):
    """Ask in many ways and take the worst answer for each item."""

    card = AttackCard(
        name="prompts",
        kind="prompt attacks",
        title="Prompt attacks",
        definition="Greedy answers to the question as it is, with the answer begun for the model, paraphrased, after "
        "answered questions about other forget subjects, inside a role, and misspelt. ROUGE-L recall of the true "
        "answer, and the rate of leaks (recall of at least 0.25, no refusal); the worst case takes the maximum of "
        "both per item.",
        needs=("forget",),
        control="the retain-only reference asked alike; without one the plain question",
        cost="one generation per different prompt and model",
        source="Dorna et al., OpenUnlearning, 2025 (prefix, paraphrase); Lynch et al., Eight Methods to Evaluate "
        "Robust Unlearning in LLMs, 2024 (few-shot); the role and the misspelling are our own",
        known_failures=(
            "Words that the question itself holds count towards the recall: only the gap to the control speaks.",
            "The worst of several wordings is higher for every model, the reference among them.",
        ),
    )
    Config = PromptsConfig

    def run(self, config: PromptsConfig, context: AttackContext) -> AttackResult:
        """Ask every model everything, once."""
        most = min(context.audit.max_new_tokens, context.encoder.max_length // 2)
        asked = Asked.of(config, context, most)
        refusals = load_refusals(context.audit.refusals)
        scored = {
            s.name: _scored(asked, _answers(context, s.load(), asked, most), refusals) for s in context.attacked()
        }
        findings = [found for s in context.subjects for found in _findings(context, s.name, scored)]
        return self.result(config, findings, notes={"not_asked": asked.missing, "max_new_tokens": most})


class Asked(NamedTuple):
    """Every question by wording, with its prompt ids, and how many could not be asked in a wording."""

    rows: dict[str, list[tuple[Example, tuple[int, ...]]]]
    missing: dict[str, int]

    @classmethod
    def of(cls, config: PromptsConfig, context: AttackContext, room: int) -> Asked:
        """Word every question of the forget set.

        Raises:
            InputDataError: if the forget set holds no question that fits the context.
        """
        rows: dict[str, list[tuple[Example, tuple[int, ...]]]] = {kind: [] for kind in config.wordings}
        missing: dict[str, int] = dict.fromkeys(config.wordings, 0)
        for kind, example, ids in wordings(
            context.encoder, context.splits.forget, config.wordings, shots=config.shots, every=config.every, room=room,
            seed=context.seed,
        ):  # fmt: skip
            if ids is None:
                missing[kind] += 1
            else:
                rows[kind].append((example, ids))
        if not rows["plain"]:
            raise InputDataError(
                "holds no question that fits the context", field="data.forget",
                remedy="Raise data.max_length, or leave the attack prompts out",
            )  # fmt: skip
        return cls({kind: found for kind, found in rows.items() if found}, missing)


def _answers(context: AttackContext, model: PreTrainedModel, asked: Asked, most: int) -> Mapping[tuple[int, ...], str]:
    """Return the greedy answer to every different prompt, all from one pass."""
    unique = list(dict.fromkeys(ids for rows in asked.rows.values() for _, ids in rows))
    tokenizer, batch = context.encoder.tokenizer, context.audit.batch_tokens
    found = generate(model, tokenizer, unique, max_new_tokens=most, batch_tokens=batch)
    return {ids: answer.text for ids, answer in zip(unique, found, strict=True)}


def _scored(
    asked: Asked, answers: Mapping[tuple[int, ...], str], refusals: Sequence[str]
) -> dict[str, dict[str, Column]]:
    """Return ROUGE-L recall and leaks per item, by wording and for the worst of them."""
    out = {}
    for kind, rows in asked.rows.items():
        examples = [example for example, _ in rows]
        said = [(example.answer, answers[ids]) for example, ids in rows]
        recall = [rouge_l(target, text).recall for target, text in said]
        leaks = [float(classify(text, target, refusals) == "leak") for target, text in said]
        out[kind] = {"rouge_l": column_of(examples, recall, "recall"), "leak_rate": column_of(examples, leaks, "leak")}
    return out | {WORST: {metric: worst([found[metric] for found in out.values()]) for metric in _METRICS}}


def worst(columns: Sequence[Column]) -> Column:
    """Return the highest value of every item that any column has, in order of first appearance."""
    best: dict[str, float] = {}
    cluster: dict[str, str] = {}
    for column in columns:
        for name, group, value in zip(column.ids, column.clusters, column.values.tolist(), strict=True):
            best[name], cluster[name] = max(value, best.get(name, -np.inf)), group
    return Column(tuple(best), tuple(cluster[name] for name in best), np.array(list(best.values())))


def _findings(
    context: AttackContext, name: str, scored: Mapping[str, Mapping[str, Mapping[str, Column]]]
) -> list[Finding]:
    """Return a finding per wording and metric; the plain question needs the reference as its control."""
    out = []
    for kind, found in scored[name].items():
        for metric in _METRICS:
            controls = {} if kind == "plain" else {PLAIN: scored[name]["plain"][metric]}
            if REFERENCE in scored:
                controls = {REFERENCE: scored[REFERENCE][kind][metric], **controls}
            if controls:
                rate = metric == "leak_rate"
                out.append(finding(name, kind, f"forget.{metric}", found[metric], controls, context.audit, rate=rate))
    return out
