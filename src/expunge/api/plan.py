# SPDX-License-Identifier: Apache-2.0
"""What a recipe would do, and roughly what it would cost, without doing it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from expunge.api.footprint import forward_of, moving_parameters, peak_memory_mb
from expunge.api.lineage import retraining_route
from expunge.api.needs import check_needs
from expunge.api.workspace import Data, load_data
from expunge.data.encoding import Encoded, Encoder
from expunge.methods.registry import get_method
from expunge.models.shape import ModelShape, model_shape, tokenizer_of
from expunge.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Work:
    """Token counts of a run: positions per step, labelled positions per step, positions of one audit."""

    steps: int
    step_tokens: int
    step_labels: int
    audit_tokens: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Ground:
    """What plans of several methods on the same model and data share.

    Attributes:
        data: of the recipe.
        shape: sizes of the model.
        encoded: sequences by set.
        rate: multiplications per second of this machine.
    """

    data: Data
    shape: ModelShape
    encoded: Mapping[str, Sequence[Encoded]]
    rate: float


def survey(recipe: Recipe) -> Ground:
    """Return what the plan of a recipe stands on; the model's size comes from its configuration, no weight is read.

    Raises:
        ExpungeError: whatever would stop the run because of its data or model folder.
    """
    data, shape = load_data(recipe.data), model_shape(recipe.model)
    encoder = Encoder(
        tokenizer_of(recipe.model), template=recipe.data.template, max_length=recipe.data.max_length or shape.context,
        too_long=recipe.data.too_long, answer_eos=recipe.data.answer_eos,
    )  # fmt: skip
    encoded = {
        name: [row.encoded for row in encoder.encode_many(examples, where=name)]
        for name, examples in data.trained.named().items()
    }
    return Ground(data, shape, encoded, _flops_per_second())


def plan(recipe: Recipe, ground: Ground | None = None) -> dict[str, Any]:
    """Return the resolved recipe, counts, steps, and estimates of memory and time; writes nothing.

    Args:
        recipe: resolved.
        ground: that of a recipe with the same model and data; surveyed if not given.

    Raises:
        ExpungeError: whatever would stop the run because of its recipe, data or model folder.
    """
    check_needs(recipe)
    ground = ground or survey(recipe)
    data, shape, encoded, rate = ground.data, ground.shape, ground.encoded, ground.rate
    trained = data.trained.named()
    work = _work(recipe, data, encoded)
    moving = moving_parameters(recipe)
    card = get_method(recipe.method.name).card  # type: ignore[attr-defined]
    return {
        "recipe": recipe.to_dict(),
        "recipe_hash": recipe.hash,
        "method": {"name": card.name, "title": card.title, "claim": card.claim, "cost": card.cost},
        "data": {name: {"examples": len(trained[name]), "sequences": len(items),
                        "tokens": sum(len(item.ids) for item in items)} for name, items in encoded.items()},
        "prepared": None if data.prepared is None else data.prepared.to_dict(),
        "parameters": {"all": shape.parameters, "moving": moving},
        "steps": work.steps,
        "memory_mb": round(peak_memory_mb(recipe, shape, forward_of(recipe, encoded), moving)),
        "seconds": float(f"{seconds(recipe, shape, work, rate):.3g}"),
        "retraining": retraining(recipe, data, shape, encoded, rate),
        "writes": ["recipe.yaml", "run.json", "metrics.jsonl", "checkpoints/", "records/", "model/", "examples.json",
                   "audit.json", "report.html"],
    }  # fmt: skip


def _work(recipe: Recipe, data: Data, encoded: Mapping[str, Sequence[Encoded]]) -> Work:
    training = recipe.training
    forget, retain = encoded.get("forget", ()), encoded.get("retain", ())
    method = get_method(recipe.method.name)  # type: ignore[attr-defined]
    alone = "forget" not in method.card.needs
    seen = max(1, method.examples_per_epoch(recipe.method, forget=len(forget), retain=len(retain)))
    per_epoch, rows = -(-seen // training.batch_size), min(training.batch_size, seen)
    partners = [retain] if alone else [forget]
    if not alone and recipe.method.model_dump().get("retain") != "none":
        partners.append(retain)
    mean_tokens = sum(_mean(len(item.ids) for item in items) for items in partners)
    mean_labels = sum(_mean(item.n_labels for item in items) for items in partners)
    answers = 2 + max((len(example.perturbed_answers) for example in data.splits.forget), default=0)
    audit_tokens = sum(len(item.ids) * answers for items in encoded.values() for item in items)
    prompts = sum(len(items) for name, items in data.audited.items() if recipe.audit.generates(name))
    steps = min(training.max_steps or per_epoch * training.epochs, per_epoch * training.epochs)
    return Work(steps, round(rows * mean_tokens), round(rows * mean_labels), audit_tokens, prompts)


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def retraining(
    recipe: Recipe, data: Data, shape: ModelShape, encoded: Mapping[str, Sequence[Encoded]], rate: float
) -> dict[str, Any] | None:
    """Return what retraining without the forget set would take: its route, rows read and seconds of training.

    Args:
        recipe: names the model.
        data: its forget set.
        shape: sizes of the model.
        encoded: sequences whose mean length stands for those of earlier runs.
        rate: multiplications per second.

    Returns:
        None if no run folder tells how the model came about.
    """
    route = retraining_route(recipe.model.path, data.splits.forget)
    if route is None:
        return None
    items = [item for found in (encoded.get("retain"), encoded.get("forget")) for item in found or ()]
    tokens = route.rows * _mean(len(item.ids) for item in items)
    return {**route.to_dict(), "seconds": float(f"{6 * shape.parameters * tokens / rate:.3g}")}


def seconds(recipe: Recipe, shape: ModelShape, work: Work, rate: float) -> float:
    """Return a rough estimate of wall time from counted multiplications.

    Args:
        recipe: what is run.
        shape: sizes of the model.
        work: tokens of the run.
        rate: multiplications per second, of a quick measurement of this machine.
    """
    training = 6 * shape.parameters * work.step_tokens * work.steps
    audits = 2 if recipe.model.reference is None else 3
    scoring = 2 * shape.parameters * work.audit_tokens * audits
    generation = 2 * shape.parameters * work.prompts * recipe.audit.max_new_tokens * audits
    return (training + scoring + generation) / rate


def _flops_per_second(width: int = 512, repeats: int = 8) -> float:
    """Return what half of a quick matrix product reaches: small models never see the full rate."""
    matrix = torch.ones(width, width)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(repeats):
        matrix @ matrix
    return 0.5 * repeats * 2 * width**3 / (time.perf_counter() - started)
