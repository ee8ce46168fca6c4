# SPDX-License-Identifier: Apache-2.0
"""Which weights a method may move: an adapter or chosen parameters, and single weights by a mask."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data.batching import length_buckets, pad
from expunge.data.encoding import Encoded
from expunge.errors import RecipeError
from expunge.models.adapters import add_lora, is_lora
from expunge.models.selection import freeze_except, select_parameters
from expunge.optim.config import MaskConfig
from expunge.optim.masks import global_masks, load_masks, row_masks, save_masks
from expunge.optim.scores import (
    GradientStatistics,
    InputNorms,
    gradient_statistics,
    linear_layers,
    linear_weights,
    magnitude,
    random_scores,
    wagle,
    wanda,
)
from expunge.signals.head import output_head
from expunge.signals.likelihood import Scorer, TokenRequest, label_logp
from expunge.training.config import TrainingConfig

Masks = Mapping[str, Tensor]


def choose_parameters(model: nn.Module, training: TrainingConfig, seed: int) -> nn.Module:
    """Return the model with exactly the parameters that may move requiring gradients.

    That is a fresh LoRA adapter if asked for, the adapter of a model that has one, or else what `trainable` selects.
    """
    if training.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted: nn.Module = add_lora(model, training.lora)
            return adapted
    names = [name for name, _ in model.named_parameters()]
    if training.trainable:
        names = select_parameters(model, training.trainable)
    elif is_lora(model):
        names = [name for name in names if "lora_" in name]
    freeze_except(model, names)
    return model


def kept(path: Path | None, build: Callable[[], Masks], *, resume: bool) -> Masks:
    """Return the masks a resumed run was begun with, or build and write them: the original model chooses them, once."""
    if path is not None and resume and path.exists():
        return load_masks(path)
    masks = build()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_masks(path, masks)
    return masks


def intersection(first: Masks, second: Masks) -> Masks:
    """Return masks of the weights that both let move; a parameter without a mask moves freely."""
    both = {name: first[name] & second[name] for name in first.keys() & second.keys()}
    return {**first, **second, **both}


def build_masks(
    model: nn.Module,
    config: MaskConfig,
    *,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    pad_id: int,
    seed: int,
) -> dict[str, Tensor]:
    """Choose single weights among the parameters that may move.

    Args:
        model: the model as it is before unlearning.
        config: kind and share; its kind is not `none`.
        forget: sequences that stand for what shall be unlearned.
        retain: sequences to keep, at least one for `wagle`, which alone reads them.
        pad_id: id used to pad.
        seed: of the subset that is read, and of `random`.

    Returns:
        By parameter name, True at the weights that may move.

    Raises:
        RecipeError: if `wanda` finds no linear layer that may move, or all retain gradients are zero.
    """
    assert config.ratio is not None, "filled by the configuration"
    moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if config.kind == "wanda":
        linear = linear_weights(model, without=[output_head(model)])
        names = [name for name in linear if name in moving]
        chosen = wanda_masks(model, names, _subset(forget, config.examples, seed), config.ratio, pad_id=pad_id)
        return {name: chosen.get(name, torch.zeros(p.shape, dtype=torch.bool)) for name, p in moving.items()}
    return global_masks(list(moving), _scores(model, moving, config, forget, retain, seed), config.ratio)


def _scores(
    model: nn.Module,
    moving: Mapping[str, nn.Parameter],
    config: MaskConfig,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    seed: int,
) -> Callable[[str], Tensor]:
    if config.kind == "magnitude":
        return lambda name: magnitude(moving[name])
    if config.kind == "random":
        return lambda name: random_scores(name, moving[name].shape, seed=seed)
    of_forget = _likelihood_gradients(model, moving, _subset(forget, config.examples, seed))
    of_retain = _likelihood_gradients(model, moving, _subset(retain, config.examples, seed))
    mu = of_retain.mean_square if config.mu == "fisher" or config.mu is None else config.mu
    if mu == 0.0:
        raise RecipeError(
            "the retain gradients are all zero", field="training.mask.mu", value=config.mu, remedy="Give a number"
        )
    return lambda name: wagle(
        moving[name].detach().cpu(), of_forget.mean[name], of_retain.mean[name], mu=mu, signed=bool(config.signed)
    )


def _subset(items: Sequence[Encoded], limit: int | None, seed: int) -> list[Encoded]:
    if limit is None or len(items) <= limit:
        return list(items)
    chosen = np.random.default_rng([seed, 32452843]).permutation(len(items))[:limit]
    return [items[i] for i in sorted(chosen.tolist())]


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _likelihood_gradients(
    model: nn.Module, moving: Mapping[str, nn.Parameter], items: Sequence[Encoded]
) -> GradientStatistics:
    """Return statistics of the gradients of each sequence's mean negative log-likelihood per token."""
    scorer, device = Scorer(model), next(model.parameters()).device

    def losses() -> Iterator[Tensor]:
        for item in items:
            batch = pad([item], 0).to(device)  # one row needs no padding
            request = TokenRequest(label_logp, torch.tensor([0], device=device))
            yield -scorer(batch.input_ids, batch.attention_mask, batch.labels, [request])[0].values.mean()

    with _still(model):
        return gradient_statistics(moving, losses())


def wanda_masks(
    model: nn.Module, names: Collection[str], items: Sequence[Encoded], ratio: float, *, pad_id: int
) -> dict[str, Tensor]:
    """Return, for weights of linear layers, True at the top `ratio` of each row by weight times input norm.

    Args:
        model: any.
        names: of the weights, at least one.
        items: sequences whose inputs are measured.
        ratio: share of each row.
        pad_id: id used to pad.

    Raises:
        RecipeError: if there is no such weight.
    """
    if not names:
        raise _no_linear_layer()
    layers = {name: layer for name, layer in linear_layers(model).items() if f"{name}.weight" in names}
    scorer, device = Scorer(model), next(model.parameters()).device
    with _still(model), torch.no_grad(), InputNorms(layers) as norms:
        for bucket in length_buckets([len(item.ids) for item in items], max_tokens=8192):
            batch = pad([items[i] for i in bucket], pad_id).to(device)
            norms.observe(batch.attention_mask)
            scorer(batch.input_ids, batch.attention_mask, batch.labels, [])
    found = norms.norms()
    return {
        f"{name}.weight": row_masks(wanda(layer.weight.cpu(), found[name]), ratio) for name, layer in layers.items()
    }


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of linear layers that may move, by name: no head, embedding, norm or bias.

    Of an adapter only the first factor counts: the second starts at zero, and pruned there it could never move.

    Raises:
        RecipeError: if there is none.
    """
    found = linear_weights(model, without=[output_head(model)])
    weights = {name: p for name, p in found.items() if p.requires_grad and "lora_B" not in name}
    if not weights:
        raise _no_linear_layer()
    return weights


def _no_linear_layer() -> RecipeError:
    return RecipeError(
        "no linear layer may move", field="training.trainable", remedy="Let one move, or choose another method or mask"
    )
