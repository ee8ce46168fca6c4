# SPDX-License-Identifier: Apache-2.0
"""How much memory a run will take at its fullest moment, from its recipe, its data and the shape of its model.

Counted: what Python and its libraries hold; weights, gradients and moments; what one forward of a step keeps for its
backward; the head's derivative; stored states; and, where it is more, one batch of an audit before the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from expunge.api.workspace import device_of
from expunge.data.encoding import Encoded
from expunge.methods.reading import WIDE
from expunge.methods.representation import RepresentationConfig
from expunge.models.families import mlp_outputs, parameter_blocks
from expunge.models.selection import select_parameters
from expunge.models.shape import ModelShape, weightless_model
from expunge.recipe import Recipe
from expunge.signals.head import CHUNK_ELEMENTS
from expunge.signals.reference import READ_TOKENS
from expunge.training.step import CPU_TOKENS

#: Resident memory of Python with torch, transformers, accelerate and the rest loaded (MiB, measured on Linux).
PROCESS_MB = 560
#: Moments an optimiser keeps for each weight.
_MOMENTS: Mapping[str, int] = {"adamw": 2, "sophia": 2, "soul": 2, "signum": 1}


@dataclass(frozen=True, slots=True)
class Forward:
    """Sizes of passes, in positions.

    Attributes:
        tokens: of the first forward of a step, which is the largest.
        later: of the largest one after it; 0 if there is none.
        labels: the labelled ones of the first, of one of its roles.
        stored: of all sequences of forget and retain set.
        audit_tokens, audit_labels: of one forward of the audit, and the labelled ones of them.
    """

    tokens: int
    later: int
    labels: int
    stored: int
    audit_tokens: int
    audit_labels: int


def forward_of(recipe: Recipe, encoded: Mapping[str, Sequence[Encoded]]) -> Forward:
    """Return the sizes of one forward of a step."""
    training = recipe.training
    sets = [encoded.get(name, ()) for name in ("forget", "retain")]
    length = sum(_mean([len(item.ids) for item in items]) for items in sets)
    labels = max(_mean([item.n_labels for item in items]) for items in sets)
    step = min(training.batch_size, max(1, len(sets[0])))
    groups = min(training.micro_batch_size or step, step)
    if training.micro_batch_size is None and device_of(recipe.model) == "cpu" and length:
        groups = min(groups, max(1, int(CPU_TOKENS // length)))
    limit = recipe.audit.limit
    audited = [item for items in encoded.values() for item in items[:limit]]
    total = sum(len(item.ids) for item in audited)
    batch = min(recipe.audit.batch_tokens, total)
    return Forward(
        tokens=round(groups * length),
        later=round(min(groups, step - groups) * length),
        labels=round(groups * labels),
        stored=sum(len(item.ids) for items in sets for item in items),
        audit_tokens=batch,
        audit_labels=round(sum(item.n_labels for item in audited) * batch / total) if total else 0,
    )


def moving_parameters(recipe: Recipe) -> int:
    """Return how many weights may move."""
    training, method = recipe.training, recipe.method
    model = weightless_model(recipe.model)
    text = model.config.get_text_config()
    named = dict(model.named_parameters())
    if training.lora is not None:
        # Every linear map of a block gets r * (in + out) numbers.
        linear = [
            m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()
        ]
        return sum(training.lora.r * (m.in_features + m.out_features) for m in linear)
    if training.trainable:
        return sum(named[name].numel() for name in select_parameters(model, training.trainable))
    if not isinstance(method, RepresentationConfig):
        return sum(p.numel() for p in named.values())
    # Which blocks train is chosen from the model's states; all of them are alike.
    blocks = set(range(min(method.trained_blocks, int(text.num_hidden_layers))))
    narrow = method.tensors == "auto" and int(text.hidden_size) < WIDE
    if narrow or method.tensors == "block":
        places = parameter_blocks(model)
        return sum(p.numel() for name, p in named.items() if places[name] in blocks)
    return sum(named[name].numel() for name in mlp_outputs(model, blocks, width=int(text.hidden_size)))


def peak_memory_mb(recipe: Recipe, shape: ModelShape, forward: Forward, moving: int) -> float:
    """Return an estimate of peak resident memory in MiB.

    Args:
        recipe: resolved.
        shape: of the model.
        forward: see `Forward`.
        moving: weights that may move.
    """
    phases = (
        _training_bytes(recipe, shape, forward, moving),
        _reading_bytes(recipe, shape, forward, moving),
        _audit_bytes(shape, forward),
    )
    return PROCESS_MB + max(phases) / (1 << 20)


def _training_bytes(recipe: Recipe, shape: ModelShape, forward: Forward, moving: int) -> float:
    training, method = recipe.training, recipe.method
    each = 2 if training.precision == "pure_bf16" else 4
    states, gradients = each * (shape.parameters + _MOMENTS[training.optimizer.name] * moving), each * moving
    steers = isinstance(method, RepresentationConfig)
    blocks = min(method.trained_blocks, shape.layers) if isinstance(method, RepresentationConfig) else shape.layers
    # Kept per token: two norms' inputs, outputs and normed inputs, q, k, v, attention twice; four inner activations.
    block = 11 * shape.width + 4 * shape.inner
    kept = blocks * shape.width + block if training.gradient_checkpointing else blocks * block
    if steers:
        return states + 8 * forward.stored * shape.width + _fullest(forward, gradients, 4 * kept)
    # Derivative, its factors on the way, and the gradient of the head beside the one it is added to.
    chunk = min(forward.labels * shape.vocabulary, CHUNK_ELEMENTS)
    head = (5 if _taught(recipe) else 3) * chunk + shape.vocabulary * shape.width
    taught = shape.vocabulary * shape.width + forward.stored * shape.width if _taught(recipe) else 0
    return states + 4 * taught + _fullest(forward, gradients, 4 * kept, 4 * head)


def _fullest(forward: Forward, gradients: float, kept: float, head: float = 0.0) -> float:
    """Return what gradients and activations take at most in a step.

    The backward of the first forward gives back its activations while it makes the gradients; a later one finds them.

    Args:
        forward: of the step.
        gradients: of all weights that move, bytes.
        kept: for the backward by each token, bytes.
        head: for the head by the first forward, bytes; in proportion by a later one.
    """
    first, later = (
        tokens * kept + head * tokens / max(1, forward.tokens) for tokens in (forward.tokens, forward.later)
    )
    return max(first, gradients + later)


def _reading_bytes(recipe: Recipe, shape: ModelShape, forward: Forward, moving: int) -> float:
    """Return what a pass without gradients takes between two steps: a probe, answers or states of the original."""
    tokens = min(READ_TOKENS, forward.stored)
    labels = tokens * forward.labels / max(1, forward.tokens)
    states = 4 * (shape.parameters + _MOMENTS[recipe.training.optimizer.name] * moving)
    return states + _pass_bytes(shape, tokens, labels, copies=3)


def _audit_bytes(shape: ModelShape, forward: Forward) -> float:
    return 4 * shape.parameters + _pass_bytes(shape, forward.audit_tokens, forward.audit_labels, copies=5)


def _pass_bytes(shape: ModelShape, tokens: int, labels: float, *, copies: int) -> float:
    """Return what a forward without gradients takes: the tensors of one block, and copies of a chunk of logits."""
    chunk = min(labels * shape.vocabulary, CHUNK_ELEMENTS)
    return 4 * (tokens * (6 * shape.width + 3 * shape.inner) + copies * chunk)


def _taught(recipe: Recipe) -> bool:
    """Return whether the original's logits are made anew in every step."""
    return recipe.method.model_dump().get("retain") == "kl"


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
