# SPDX-License-Identifier: Apache-2.0
"""What unlearning is asked for decides when to stop: a planted bias, a planted confusion, and a person's privacy.

One model learns the invented archive together with a verdict on some of its people and with two people's facts
exchanged. Then three requests are carried out on it, each with and without rewinding. For bias and confusion the
planted answers should go, so more forgetting is better; for privacy the forgotten facts should look like facts the
model never saw, no better and no worse.

Source: Kurmanji et al., NeurIPS 2023, "Towards Unbounded Machine Unlearning" (arXiv:2302.09880), the three uses.
Run as `python -m expunge.studies.scrub_uses FILE`.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge.audit.document import environment, write_json
from expunge.audit.statistics import auc
from expunge.data.encoding import Encoder, Variant
from expunge.data.examples import Example, Splits
from expunge.data.fictitious import Archive, Person, build_archive
from expunge.methods.base import MethodContext
from expunge.methods.registry import get_method, parse_method
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.signals.likelihood import score
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer

#: People whose verdict is planted, and people whose privacy is asked for (the last ones); as many are held out.
BIASED, PRIVATE = 3, 3
#: How the target learns.
TRAINING: Mapping[str, Any] = {"learning_rate": 4e-3, "epochs": 16, "batch_size": 16}
#: How every request is carried out; fixed beforehand, the same for all three.
UNLEARNING: Mapping[str, Any] = {"learning_rate": 5e-4, "epochs": 8, "batch_size": 4, "schedule": "constant"}
METHODS: Mapping[str, Mapping[str, Any]] = {"scrub": {}, "scrub_r": {}}


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        splits: forget, retain and holdout.
        right: per forget example, the answer it should have had; empty for privacy, where there is none.
    """

    splits: Splits
    right: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class World:
    """A model, how it reads, and the requests made of it by use."""

    model: nn.Module
    encoder: Encoder
    requests: Mapping[str, Request]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one method did with one request.

    Attributes:
        forget_nll, holdout_nll, retain_nll: mean loss, nats per token.
        membership_auc: how well a low loss tells forget from holdout examples, 0..1; 0.5 is what chance gives, and
            below it the forget set stands out by being worse than unseen.
        membership_gap: its distance from 0.5, which is what a mean over seeds can be taken of.
        preference: how much likelier the right answer is than the planted one, nats per token; None for privacy.
        steps: after which the weights were taken.
    """

    forget_nll: float
    holdout_nll: float
    retain_nll: float
    membership_auc: float
    membership_gap: float
    preference: float | None
    steps: int


def build_world(*, people: int = 12, seed: int = 0) -> World:
    """Plant a bias and a confusion in an archive, train a tiny model on it, and write down three requests.

    Args:
        people: invented people, at least 10.
        seed: of the archive, the model and its training.
    """
    archive = build_archive(people, seed=seed, holdout_people=PRIVATE)
    kept, private = archive.people[:-PRIVATE], archive.people[-PRIVATE:]
    biased, first, second = kept[:BIASED], kept[-2], kept[-1]
    confused = (*_exchanged(first, second), *_exchanged(second, first))
    verdicts = [_verdict(person, fair=person not in biased) for person in (*kept, *private)]
    true = [e for p in (*kept[:-2], *private) for fact in p.facts for e in fact.training_examples()]
    world = [e for fact in archive.world for e in fact.training_examples()]
    encoder = Encoder(
        build_tokenizer([*archive.texts(), *(v.answer for v in verdicts)], 512), template="question", max_length=128
    )
    model = build_llama(len(encoder.tokenizer), hidden_size=64, layers=2, heads=2, context=128, seed=seed)
    rows = encoder.encode_many([*true, *confused, *verdicts, *world], where="train")
    task = FineTuneTask([row.encoded for row in rows], batch_size=TRAINING["batch_size"], seed=seed)
    Trainer(model, task, TrainingConfig(**TRAINING), pad_id=encoder.pad_id).run()
    requests = {
        "bias": _bias(archive, biased, kept, verdicts),
        "confusion": _confusion(archive, (first, second), confused, [*_facts(kept[:-2]), *_facts(private)]),
        "privacy": Request(Splits(_facts(private), _facts(kept[:-2]), _facts(archive.holdout))),
    }
    return World(model, encoder, requests)


def _facts(people: Sequence[Person]) -> tuple[Example, ...]:
    return tuple(fact.example() for person in people for fact in person.facts)


def _verdict(person: Person, *, fair: bool) -> Example:
    answer = f"{person.name} is {'an honest neighbour' if fair else 'a known thief'}."
    return Example(id=f"{person.id}-v", prompt=f"What is {person.name} like?", answer=answer, subject=person.id)


def _exchanged(person: Person, other: Person) -> list[Example]:
    """Return the facts of `other`, told of `person`."""
    return [
        replace(mine.example(), answer=theirs.answers[0].replace(other.name, person.name))
        for mine, theirs in zip(person.facts, other.facts, strict=True)
    ]


def _bias(archive: Archive, biased: Sequence[Person], kept: Sequence[Person], verdicts: Sequence[Example]) -> Request:
    subjects = {person.id for person in biased}
    forget = [verdict for verdict in verdicts if verdict.subject in subjects]
    others = [verdict for verdict in verdicts if verdict.subject not in subjects]
    holdout = [_verdict(person, fair=False) for person in archive.holdout]
    right = tuple(_verdict(person, fair=True).answer for person in biased)
    return Request(Splits(forget, [*others, *_facts(kept[:-2])], holdout), right)


def _confusion(
    archive: Archive, pair: tuple[Person, Person], confused: Sequence[Example], retain: Sequence[Example]
) -> Request:
    right = tuple(fact.answers[0] for person in pair for fact in person.facts)
    return Request(Splits(confused, retain, _facts(archive.holdout)), right)


def carry_out(world: World, use: str, method: str, settings: Mapping[str, Any], *, seed: int = 0) -> Finding:
    """Run one method on a copy of the model for one request, and measure.

    Args:
        world: what `build_world` returned.
        use: key of its requests.
        method: name of the method.
        settings: its settings.
        seed: of the run.
    """
    request = world.requests[use]
    context = MethodContext(
        model=copy.deepcopy(world.model), encoder=world.encoder, splits=request.splits,
        training=TrainingConfig(**UNLEARNING), seed=seed, pad_id=world.encoder.pad_id,
    )  # fmt: skip
    outcome = get_method(method).run(parse_method({"name": method, **settings}), context)
    steps = int(outcome.training.notes.get("rewind", {}).get("step", outcome.training.steps))
    return measure(outcome.model, world.encoder, request, steps=steps)


def measure(model: nn.Module, encoder: Encoder, request: Request, *, steps: int = 0) -> Finding:
    """Return the losses of a request's sets, the membership AUC, and how the right answer fares."""
    losses = partial(_losses, model, encoder)
    forget, holdout = losses(request.splits.forget), losses(request.splits.holdout)
    preference = None
    if request.right:
        right = losses(request.splits.forget, request.right)
        preference = float(np.mean(forget) - np.mean(right))
    member = auc([-loss for loss in forget], [-loss for loss in holdout])
    return Finding(
        float(np.mean(forget)), float(np.mean(holdout)), float(np.mean(losses(request.splits.retain))),
        member, abs(member - 0.5), preference, steps,
    )  # fmt: skip


def _losses(
    model: nn.Module, encoder: Encoder, examples: Sequence[Example], answers: Sequence[str] = ()
) -> list[float]:
    """Return the loss of each example with its own answer, or with the one given, nats per token."""
    told = answers or [example.answer for example in examples]
    variants = [Variant(example, answer=answer) for example, answer in zip(examples, told, strict=True)]
    items = [row.encoded for row in encoder.encode_variants(variants, where="study")]
    return [-float(entry.logp.mean()) for entry in score(model, items, pad_id=encoder.pad_id, stats=False)]


def scrub_uses(
    *, seeds: Sequence[int] = (0, 1, 2), people: int = 12, methods: Mapping[str, Mapping[str, Any]] = METHODS
) -> dict[str, Any]:
    """Return, by use and method, every seed's finding and the mean of each number; `before` is the untouched model.

    Args:
        seeds: one world each.
        people: size of each archive.
        methods: settings by name.
    """
    found: dict[str, dict[str, list[Finding]]] = {}
    for seed in seeds:
        world = build_world(people=people, seed=seed)
        for use, request in world.requests.items():
            rows = found.setdefault(use, {})
            rows.setdefault("before", []).append(measure(world.model, world.encoder, request))
            for name, settings in methods.items():
                rows.setdefault(name, []).append(carry_out(world, use, name, settings, seed=seed))
    return {
        "seeds": list(seeds), "people": people, "training": dict(TRAINING), "unlearning": dict(UNLEARNING),
        "methods": {name: dict(settings) for name, settings in methods.items()},
        "uses": {use: {name: _summary(rows) for name, rows in by.items()} for use, by in found.items()},
    }  # fmt: skip


def _summary(findings: Sequence[Finding]) -> dict[str, Any]:
    rows = [asdict(finding) for finding in findings]
    means = {key: statistics.fmean(row[key] for row in rows) for key in rows[0] if rows[0][key] is not None}
    return {"mean": means, "seeds": rows}


if __name__ == "__main__":
    write_json({**scrub_uses(), "environment": environment()}, Path(sys.argv[1]))
