# SPDX-License-Identifier: Apache-2.0
"""Probing: read the answer from hidden layers, through the model's own head or through a fitted linear reader.

Shape suffixes: B batch rows, D hidden width, V vocabulary, N pairs, K answers of one question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from pydantic import Field
from transformers import PreTrainedModel

from expunge.attacks.base import REFERENCE, Attack, AttackCard, AttackConfig, AttackContext, AttackResult, Finding
from expunge.attacks.choices import TokenChoice, answer_pairs, token_choices
from expunge.attacks.compare import finding
from expunge.attacks.gauge import column_of
from expunge.attacks.states import States, last_states
from expunge.audit.columns import Column
from expunge.audit.statistics import Floats, Ints
from expunge.audit.text_only import fit
from expunge.data.encoding import Encoded
from expunge.data.examples import Example
from expunge.errors import InputDataError
from expunge.signals.head import Head, decoder_blocks
from expunge.signals.hidden import final_states

LAST, RANDOM = "the last block of the same model", "random labels"
#: Questions whose logits are held at once.
_ROWS = 128
CHOICE, RIGHT = "choice_accuracy", "right_token_probability"


class LensConfig(AttackConfig):
    """The lens has no settings: every block is read."""


class LogitLens(Attack):
    """Read every block through the final norm and the head."""

    card = AttackCard(
        name="logit_lens",
        kind="probing",
        title="Logit lens",
        definition="softmax(head(norm(h))) after every block, at the first token where the right answer parts from the "
        "wrong ones: the share of questions whose right token beats the wrong ones, and its probability among them "
        "(over the whole vocabulary where there are no wrong answers). The block with the highest mean counts.",
        needs=("forget",),
        control="the retain-only reference read alike; without one the last block of the same model",
        cost="one pass over the questions per model",
        source="nostalgebraist, 2020; Patil et al., Can Sensitive Information Be Deleted From LLMs?, ICLR 2024",
        known_failures=("Choosing the best block on the tested items lifts every model's number.",),
    )
    Config = LensConfig

    def run(self, config: LensConfig, context: AttackContext) -> AttackResult:
        """Read every block of every model."""
        choices = token_choices(context.encoder, context.splits.forget)
        layers = {s.name: lens_columns(s.load(), choices, context.encoder.pad_id) for s in context.attacked()}
        findings = []
        for subject in context.subjects:
            for metric in (CHOICE, RIGHT):
                if metric in layers[subject.name][0]:
                    findings.append(_lens_finding(context, subject.name, metric, layers))
        chance = float(np.mean([1 / (1 + len(choice.wrong)) for choice in choices]))
        means = {
            name: {metric: [float(block[metric].values.mean()) for block in found] for metric in found[0]}
            for name, found in layers.items()
        }
        return self.result(config, findings, notes={"chance": chance, "by_block": means})


def _lens_finding(
    context: AttackContext, name: str, metric: str, layers: Mapping[str, Sequence[Mapping[str, Column]]]
) -> Finding:
    best = {who: _highest([block[metric] for block in found]) for who, found in layers.items()}
    layer, value = best[name]
    controls = {LAST: layers[name][-1][metric]}
    if REFERENCE in best:
        controls = {REFERENCE: best[REFERENCE][1], **controls}
    rate = metric == CHOICE
    return finding(name, f"block {layer}", f"lens.{metric}", value, controls, context.audit, rate=rate)


def _highest(columns: Sequence[Column]) -> tuple[int, Column]:
    """Return the column with the highest mean and its number; the last of equals."""
    best = max(range(len(columns)), key=lambda i: (float(columns[i].values.mean()), i))
    return best, columns[best]


def lens_columns(model: PreTrainedModel, choices: Sequence[TokenChoice], pad_id: int) -> list[dict[str, Column]]:
    """Return, for every block, the choice accuracy (where wrong answers are known) and the right token's probability.

    Args:
        model: the model to read.
        choices: from `token_choices`.
        pad_id: id used to pad.
    """
    examples = [choice.example for choice in choices]
    layers = list(range(len(decoder_blocks(model))))
    states = last_states(model, [choice.context for choice in choices], layers=layers, pad_id=pad_id)
    out = []
    for layer in layers:
        logp = _lens_logp(model, states[layer], choices)
        found = {RIGHT: column_of(examples, np.exp([row[0] for row in logp]), "probability")}
        if all(len(row) > 1 for row in logp):
            hits = [float(row[0] > row[1:].max()) for row in logp]
            found[CHOICE] = column_of(examples, hits, "choice")
        out.append(found)
    return out


@torch.no_grad()
def _lens_logp(model: PreTrainedModel, states: States, choices: Sequence[TokenChoice]) -> list[Floats]:
    """Return per question log p of the right and the wrong tokens among themselves, or log p(right) alone."""
    weight = next(model.parameters())
    head, out = Head(model), list[Floats]()
    was_training = model.training
    model.eval()
    for start in range(0, len(choices), _ROWS):
        some = torch.from_numpy(states[start : start + _ROWS]).to(weight)
        logits_BV = head(final_states(model, some[:, None])[:, 0]).double().cpu()
        for logits_V, choice in zip(logits_BV, choices[start : start + _ROWS], strict=True):
            if choice.wrong:
                out.append(torch.log_softmax(logits_V[[choice.right, *choice.wrong]], 0).numpy())
            else:
                out.append(torch.log_softmax(logits_V, 0)[[choice.right]].numpy())
    model.train(was_training)
    return out


class ProbeConfig(AttackConfig):
    """How the linear reader is fitted."""

    folds: int = Field(5, ge=2, description="parts of the subjects; each is read by a probe that never saw it")
    controls: int = Field(3, ge=1, description="draws of random labels behind the control")


class LinearProbe(Attack):
    """Fit a linear reader of truth on other subjects, and let it pick the right answer."""

    card = AttackCard(
        name="linear_probe",
        kind="probing",
        title="Linear probe",
        definition="Per block, a logistic regression on the state of the answer's last token that tells right from "
        "wrong answers, fitted on the retain set and on other subjects of the forget set; per question it picks the "
        "answer that looks most true. Accuracy; the block with the highest counts. Selectivity is accuracy minus that "
        "of the same procedure on random labels.",
        needs=("forget",),
        control="the control task: the same states with one answer of each question called right at random",
        cost="one pass over all answers per model, then small fits",
        source="Hewitt and Liang, Designing and Interpreting Probes with Control Tasks, 2019; Li et al., WMDP, 2024 "
        "(probes after unlearning)",
        known_failures=("Wrong answers that are less fluent than the right ones can be told by style; the reference "
                        "shows how far.",),
    )  # fmt: skip
    Config = ProbeConfig

    def run(self, config: ProbeConfig, context: AttackContext) -> AttackResult:
        """Probe every block of every model."""
        task = probe_task(context, config)
        found = {s.name: _probe_model(context, s.load(), task, config) for s in context.attacked()}
        findings = []
        for subject in context.subjects:
            layer, accuracy = _highest([block.accuracy for block in found[subject.name]])
            controls = {RANDOM: _highest([block.control for block in found[subject.name]])[1]}
            if REFERENCE in found:
                controls[REFERENCE] = _highest([block.accuracy for block in found[REFERENCE]])[1]
            name = "probe.choice_accuracy"
            findings.append(finding(subject.name, f"block {layer}", name, accuracy, controls, context.audit))
        means = {
            name: {"accuracy": [float(b.accuracy.values.mean()) for b in blocks],
                   "control": [float(b.control.values.mean()) for b in blocks]}
            for name, blocks in found.items()
        }  # fmt: skip
        chance = float(np.mean([1 / len(items) for _, items in task.forget]))
        return self.result(config, findings, notes={"chance": chance, "by_block": means, "fitted_on": len(task.retain)})


Answers = Sequence[tuple[Example, tuple[Encoded, ...]]]


@dataclass(frozen=True, slots=True)
class ProbeTask:
    """Questions of the forget set with answers and fold, and those of the retain set, which are only fitted on."""

    forget: Answers
    retain: Answers
    fold: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class ProbedBlock:
    """Per question, whether the probe picked the right answer, and the share of control draws that hit theirs."""

    accuracy: Column
    control: Column


def probe_task(context: AttackContext, config: ProbeConfig) -> ProbeTask:
    """Return what a probe is fitted on and tested on.

    Raises:
        InputDataError: if the forget set has fewer than two subjects with wrong answers and there is no retain set
            with them.
    """
    forget = answer_pairs(context.encoder, context.splits.forget)
    usable = [example for example in context.splits.retain if example.perturbed_answers and example.kind != "text"]
    retain = answer_pairs(context.encoder, usable) if usable else []
    groups = [example.subject or f"item {example.id}" for example, _ in forget]
    order = sorted(set(groups), key=lambda group: (crc32(group.encode()), group))
    if len(order) < 2 and not retain:
        raise InputDataError(
            "a probe needs other subjects to be fitted on", field="data.retain", value=None,
            remedy="Give a retain set with wrong answers",
        )  # fmt: skip
    fold = {group: number % config.folds for number, group in enumerate(order)}
    return ProbeTask(forget, retain, tuple(fold[group] for group in groups), context.seed)


def _probe_model(
    context: AttackContext, model: PreTrainedModel, task: ProbeTask, config: ProbeConfig
) -> list[ProbedBlock]:
    items = [item for _, answers in (*task.forget, *task.retain) for item in answers]
    layers = list(range(len(decoder_blocks(model))))
    states = last_states(
        model, items, layers=layers, pad_id=context.encoder.pad_id, batch_tokens=context.audit.batch_tokens
    )
    return [probe_block(states[layer].astype(np.float64), task, config) for layer in layers]


def probe_block(states_ND: Floats, task: ProbeTask, config: ProbeConfig) -> ProbedBlock:
    """Fit and test the probe of one block, on the truth and on random labels.

    Args:
        states_ND: states of every answer of the forget questions, then of the retain questions.
        task: the questions.
        config: folds and control draws.
    """
    counts = [len(answers) for _, answers in (*task.forget, *task.retain)]
    examples = [example for example, _ in task.forget]
    truth = np.zeros(len(counts), dtype=np.int64)
    hits = _cross_validated(states_ND, counts, truth, task.fold)
    rng = np.random.default_rng([task.seed, 611953])
    draws = [np.array([rng.integers(count) for count in counts]) for _ in range(config.controls)]
    control = np.mean([_cross_validated(states_ND, counts, labels, task.fold) for labels in draws], axis=0)
    return ProbedBlock(column_of(examples, hits, "accuracy"), column_of(examples, control, "control accuracy"))


def _cross_validated(states_ND: Floats, counts: Sequence[int], labels: Ints, fold: Sequence[int]) -> Floats:
    """Return per forget question 1 where the probe of the other folds picks the answer that `labels` calls right."""
    owner = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(count) for count in counts])
    positive = place == labels[owner]
    folds = np.array([*fold, *[-1] * (len(counts) - len(fold))])
    out = np.zeros(len(fold))
    for held in sorted(set(fold)):
        train = folds[owner] != held
        centre, spread = states_ND[train].mean(0), states_ND[train].std(0)
        rows = (states_ND - centre) / np.where(spread > 0, spread, 1.0)
        weights, _ = fit(rows[train], positive[train])
        scores = rows @ weights
        for question in np.flatnonzero(np.asarray(fold) == held):
            out[question] = float(np.argmax(scores[owner == question]) == labels[question])
    return out
