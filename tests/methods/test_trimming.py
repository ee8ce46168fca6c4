# SPDX-License-Identifier: Apache-2.0
"""The trimmed forget loss of every method of the gradient family, against each example scored by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from expunge.data.encoding import Encoded, Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.data.noise import mislabel
from expunge.errors import RecipeError
from expunge.methods.ascent import AscentTerm
from expunge.methods.base import MethodContext
from expunge.methods.gradient import GradientMethod, UnlearningTask
from expunge.methods.registry import get_method, methods, parse_method
from expunge.methods.trimming import trimmed_loss
from expunge.models.digests import model_digest
from expunge.signals.likelihood import Scorer, TokenValues, score
from expunge.signals.reference import ReferenceCache
from expunge.training.config import TrainingConfig
from expunge.training.task import Counts, Group, MicroBatch

FAMILY = sorted(name for name, method in methods().items() if isinstance(method, GradientMethod))


def test_by_hand() -> None:
    # Four examples of 1, 2, 1 and 2 tokens; the mean log-probabilities are -1, -3, -2 and -7.
    values = torch.tensor([-1.0, -2.0, -4.0, -2.0, -6.0, -8.0], requires_grad=True)
    tokens = {"forget": TokenValues(values, torch.tensor([0, 1, 1, 2, 3, 3]), torch.tensor([1, 2, 1, 2]))}
    term = AscentTerm([Encoded((1, 2), (1, 2), False)], "token_mean")
    whole = Counts({"forget": 4}, {"forget": 6})
    loss = trimmed_loss(term, tokens, {}, whole, share=0.25, side="high")
    assert loss.item() == pytest.approx((-3 - 2 - 7) / 3)  # the first, the largest, is left out
    loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0, 1 / 6, 1 / 6, 1 / 3, 1 / 6, 1 / 6])
    low = trimmed_loss(term, tokens, {}, whole, share=0.25, side="low")
    assert low.item() == pytest.approx((-1 - 3 - 2) / 3)
    half = trimmed_loss(term, tokens, {}, Counts({"forget": 8}, {"forget": 12}), share=0.25, side="low")
    assert half.item() == pytest.approx(low.item() / 2)  # these four are half of a step of eight


def build(
    name: str, archive: Archive, encoder: Encoder, model: nn.Module, **settings: Any
) -> tuple[UnlearningTask, list[Group]]:
    """The prepared task of a method, and the four groups of its first step."""
    training, splits = TrainingConfig(batch_size=4, epochs=1), archive.splits()
    method, config = get_method(name), parse_method({"name": name, **settings})
    assert isinstance(method, GradientMethod)
    context = MethodContext(
        model=model, encoder=encoder, splits=splits, training=training, seed=3, pad_id=encoder.pad_id,
        model_digest=model_digest(model),
    )  # fmt: skip
    task = method.task(config, context, method.parts(config, context), ReferenceCache(context.model_digest))
    task.prepare(model)
    return task, list(task.steps(0)[0])


def forget_loss(
    task: UnlearningTask, model: nn.Module, groups: list[Group], counts: Counts, pad_id: int
) -> torch.Tensor:
    micro = MicroBatch.of(groups, pad_id, torch.device("cpu"))
    return task.losses(Scorer(model), micro, counts)["forget"]


def altered(model: nn.Module) -> nn.Module:
    """The model a little further on, so that no loss is that of the original."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in moved.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator)
    return moved


@pytest.mark.parametrize("name", FAMILY)
def test_it_is_the_mean_of_the_examples_that_are_kept(
    name: str, archive: Archive, encoder: Encoder, target: nn.Module
) -> None:
    plain, groups = build(name, archive, encoder, target)
    trimmed, _ = build(name, archive, encoder, target, trim=0.25)
    moved = altered(target)
    with torch.no_grad():
        alone = [forget_loss(plain, moved, [group], Counts.of([group]), encoder.pad_id).item() for group in groups]
        found = forget_loss(trimmed, moved, groups, Counts.of(groups), encoder.pad_id).item()
        split = [forget_loss(trimmed, moved, part, Counts.of(groups), encoder.pad_id).item()
                 for part in (groups[:2], groups[2:])]  # fmt: skip
    assert len(set(alone)) == 4
    assert found == pytest.approx(sum(sorted(alone)[:3]) / 3, rel=1e-4, abs=1e-5)
    # A quarter of two examples is none: halves of the step are its untrimmed shares.
    assert sum(split) == pytest.approx(sum(alone) / 4, rel=1e-4, abs=1e-5)


def test_a_trim_that_does_nothing_or_leaves_nothing_is_refused() -> None:
    method = get_method("npo")
    config = parse_method({"name": "npo", "trim": 0.1})
    with pytest.raises(RecipeError, match="leaves out none of 4 examples"):
        method.check(config, TrainingConfig(batch_size=4))
    with pytest.raises(RecipeError, match="leaves out none of 8 examples"):
        method.check(config, TrainingConfig(batch_size=32, micro_batch_size=8))
    method.check(config, TrainingConfig(batch_size=10))
    method.check(parse_method({"name": "npo"}), TrainingConfig(batch_size=1))
    with pytest.raises(RecipeError, match="leaves nothing"):
        parse_method({"name": "npo", "trim": 0.5, "trim_side": "both"})
    pruned = parse_method({"name": "prune_first", "then": {"name": "npo", "trim": 0.1}})
    with pytest.raises(RecipeError, match="leaves out none"):
        get_method("prune_first").check(pruned, TrainingConfig(batch_size=4))


def test_trimming_spares_retain_items_that_were_put_among_the_forget_set(
    archive: Archive, encoder: Encoder, trained_model: nn.Module, fresh: Callable[[], nn.Module]
) -> None:
    splits = archive.splits()
    noisy = Splits(mislabel(splits.forget, splits.retain, 1.0, seed=0), splits.retain)
    mixed = [row.encoded for row in encoder.encode_many(noisy.forget[len(splits.forget) :], where="mislabelled")]
    training = TrainingConfig(learning_rate=1e-3, epochs=6, batch_size=16)

    def kept(**settings: Any) -> float:
        model = copy.deepcopy(trained_model)
        context = MethodContext(
            model=model, encoder=encoder, splits=noisy, training=training, seed=0, pad_id=encoder.pad_id
        )
        outcome = get_method("npo").run(parse_method({"name": "npo", **settings}), context)
        scores = score(outcome.model, mixed, pad_id=encoder.pad_id, stats=False)
        return float(sum(entry.logp.mean() for entry in scores) / len(scores))

    assert kept(trim=0.5) > kept() + 0.1
