# SPDX-License-Identifier: Apache-2.0
"""What a recipe would do, and roughly what it would cost, without doing it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from expunge.api.lineage import retraining_route
from expunge.api.workspace import Data, load_data
from expunge.data.encoding import Encoded, Encoder
from expunge.methods.registry import get_method
from expunge.models.shape import ModelShape, model_shape, tokenizer_of
from expunge.recipe import Recipe
from expunge.signals.head import CHUNK_ELEMENTS

#: Resident memory of Python with torch and transformers loaded, before any model (MiB, measured on Linux).
PROCESS_MB = 550


@dataclass(frozen=True, slots=True)
class Work:
    """Token counts of a run: positions per step, labelled positions per step, positions of one audit."""

    steps: int
    step_tokens: int
    step_labels: int
    audit_tokens: int
    prompts: int


def plan(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe, counts, steps, and estimates of memory and time; writes nothing.

    The model's weights are not read: its size comes from its configuration.

    Raises:
        ExpungeError: whatever would stop the run because of its recipe, data or model folder.
    """
    data = load_data(recipe.data)
    shape = model_shape(recipe.model)
    encoder = Encoder(
        tokenizer_of(recipe.model), template=recipe.data.template, max_length=recipe.data.max_length or shape.context,
        too_long=recipe.data.too_long, answer_eos=recipe.data.answer_eos,
    )  # fmt: skip
    encoded = {
        name: [row.encoded for row in encoder.encode_many(examples, where=name)]
        for name, examples in data.splits.named().items()
    }
    work = _work(recipe, data, encoded)
    moving, rate = _moving_parameters(recipe, shape), _flops_per_second()
    card = get_method(recipe.method.name).card  # type: ignore[attr-defined]
    return {
        "recipe": recipe.to_dict(),
        "recipe_hash": recipe.hash,
        "method": {"name": card.name, "title": card.title, "claim": card.claim, "cost": card.cost},
        "data": {name: {"examples": len(data.splits.named()[name]), "sequences": len(items),
                        "tokens": sum(len(item.ids) for item in items)} for name, items in encoded.items()},
        "parameters": {"all": shape.parameters, "moving": moving},
        "steps": work.steps,
        "memory_mb": round(memory_mb(recipe, shape, work, moving)),
        "seconds": round(seconds(recipe, shape, work, rate), 1),
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
    prompts = sum(len(items) for items in data.audited.values()) if recipe.audit.generate else 0
    steps = min(training.max_steps or per_epoch * training.epochs, per_epoch * training.epochs)
    return Work(steps, round(rows * mean_tokens), round(rows * mean_labels), audit_tokens, prompts)


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _moving_parameters(recipe: Recipe, shape: ModelShape) -> int:
    lora = recipe.training.lora
    if lora is None:
        return shape.parameters
    # Every linear map of a block gets r * (in + out) numbers: four of attention and three of the gated MLP.
    per_block = lora.r * (4 * 2 * shape.width + 3 * (shape.width + shape.inner))
    return shape.layers * per_block


def memory_mb(recipe: Recipe, shape: ModelShape, work: Work, moving: int) -> float:
    """Return an estimate of peak resident memory in MiB.

    Weights, gradients and two moments in float32; activations kept for the backward pass of one micro-batch; and one
    chunk of logits with its softmax and gradient.
    """
    training = recipe.training
    bytes_each = 2 if training.precision == "pure_bf16" else 4
    states = bytes_each * (shape.parameters + 3 * moving)
    share = min(1.0, (training.micro_batch_size or training.batch_size) / training.batch_size)
    tokens = work.step_tokens * share
    # Kept per token and block: norms, q, k, v, attention output (about 8 widths) and three inner activations.
    kept = tokens * (2 * shape.width if training.gradient_checkpointing else 8 * shape.width + 3 * shape.inner)
    logits = 3 * min(work.step_labels * share * shape.vocabulary, CHUNK_ELEMENTS)
    return PROCESS_MB + (states + 4 * (kept * shape.layers + logits)) / (1 << 20)


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
    return {**route.to_dict(), "seconds": round(6 * shape.parameters * tokens / rate, 1)}


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
