# SPDX-License-Identifier: Apache-2.0
"""One-shot procedures on the tiny model: against dense solves, finite differences and their own limits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.data.batching import pad
from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.errors import RecipeError
from expunge.methods.base import MethodContext
from expunge.methods.influence import _SOLVERS, InfluenceConfig
from expunge.methods.oneshot import OneShotRun
from expunge.methods.registry import get_method, parse_method
from expunge.signals.curvature import evaluating, gauss_newton_product, gradient, labelled_logits, sequence_nll
from expunge.signals.likelihood import Scorer
from expunge.training.config import TrainingConfig

#: A few hundred weights, so that a dense matrix is no matter.
FEW = {"trainable": ["norm"]}


@pytest.fixture
def context(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., MethodContext]:
    splits = archive.splits()

    def build(training: dict[str, Any] | None = None, retain: int = 12) -> MethodContext:
        return MethodContext(
            model=copy.deepcopy(target), encoder=encoder, training=TrainingConfig(batch_size=4, **(training or {})),
            splits=Splits(splits.forget, splits.retain[:retain]), seed=0, pad_id=encoder.pad_id,
        )  # fmt: skip

    return build


def run(name: str, context: MethodContext, **settings: Any) -> Any:
    return get_method(name).run(parse_method({"name": name, **settings}), context)


def solve(context: MethodContext, **settings: Any) -> tuple[Tensor, Tensor, Tensor, float]:
    """The direction a solver gives for v, v itself, the samples' gradients, and the damping."""
    config = InfluenceConfig(**settings)
    one = OneShotRun(config, context, "influence")
    solver = _SOLVERS[config.curvature](one, config)
    with one.running([1]):
        forget = one.mean_gradient(one.forget, "forget", mean=True)
        v = [f - r for f, r in zip(forget, solver.retain_gradient(), strict=True)]
        direction, notes = solver.solve(v)
        moving = list(one.parameters.values())
        rows = [gradient(one.loss(item, "retain", mean=True), moving) for item in one.retain]
    flat = [torch.cat([x.reshape(-1) for x in vector]).double() for vector in (direction, v)]
    stacked = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).double()
    return flat[0], flat[1], stacked, notes["damping"]


@pytest.mark.parametrize("block_elements", [1 << 28, 700])
def test_woodbury_is_the_dense_solve_in_one_block_or_in_many(context: Any, block_elements: int) -> None:
    direction, v, rows, damping = solve(context(FEW), block_elements=block_elements)
    fisher = rows.T @ rows / len(rows)
    assert damping == pytest.approx(float(v @ fisher @ v / (v @ v)), rel=1e-4)
    dense = torch.linalg.solve(fisher + damping * torch.eye(len(v), dtype=torch.float64), v)
    torch.testing.assert_close(direction, dense, atol=0, rtol=2e-3)


def test_the_diagonal_is_the_mean_square(context: Any) -> None:
    direction, v, rows, damping = solve(context(FEW), curvature="diagonal")
    torch.testing.assert_close(direction, v / (damping + rows.square().mean(0)), atol=0, rtol=1e-4)


def test_conjugate_gradient_solves_with_the_gauss_newton_matrix(context: Any) -> None:
    given = context({"trainable": [r"model\.norm\.weight"]}, 3)
    direction, v, _, damping = solve(given, curvature="gauss_newton", tolerance=1e-5, iterations=100)
    model = given.model
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    items = [row.encoded for row in given.encoder.encode_many(given.splits.retain, where="x")]
    matrix = damping * torch.eye(len(v), dtype=torch.float64)
    with evaluating(model):
        for item in items:  # J from one backward pass a logit of the most likely tokens would not do: all of them
            batch = pad([item], 0)
            (p,) = parameters.values()

            def logits(weight: Tensor, batch: Any = batch, p: Any = p) -> Tensor:
                name = next(iter(parameters))
                return torch.func.functional_call(
                    labelled_logits(model), {f"model.{name}": weight},
                    (batch.input_ids, batch.attention_mask, batch.labels),
                )  # fmt: skip

            jacobian = torch.func.jacfwd(logits)(p.detach()).double()  # [N, V, P]
            prob = torch.softmax(logits(p.detach()).double(), 1)
            centred = jacobian - (prob[:, :, None] * jacobian).sum(1, keepdim=True)
            matrix += torch.einsum("nvp,nv,nvq->pq", centred, prob, centred).detach() / len(prob) / len(items)
    torch.testing.assert_close(direction, torch.linalg.solve(matrix, v), atol=1e-4, rtol=1e-3)


def test_gauss_newton_products_are_symmetric_and_agree_with_finite_differences(
    archive: Archive, encoder: Encoder, target: nn.Module
) -> None:
    items = [row.encoded for row in encoder.encode_many(archive.splits().retain[:2], where="x")]
    parameters = dict(target.named_parameters())
    generator = torch.Generator().manual_seed(0)
    v, w = ([torch.randn(p.shape, generator=generator) for p in parameters.values()] for _ in range(2))
    with evaluating(target):
        gv, gw = (gauss_newton_product(target, parameters, x, items, mean=False) for x in (v, w))
        inner = [sum(float((a * b).sum()) for a, b in zip(*pair, strict=True)) for pair in ((gv, w), (gw, v), (gv, v))]
        assert inner[0] == pytest.approx(inner[1], rel=1e-3)
        assert inner[2] == pytest.approx(_differences(target, parameters, v, items), rel=0.02)


def _differences(model: nn.Module, parameters: dict[str, nn.Parameter], v: list[Tensor], items: list[Any]) -> float:
    """v^T G v from the change of the logits along v."""
    h, total = 1e-3, 0.0
    module = labelled_logits(model)
    for item in items:
        batch = pad([item], 0)
        found = []
        with torch.no_grad():
            for shift in (h, -2 * h, h):
                for p, d in zip(parameters.values(), v, strict=True):
                    p.add_(d, alpha=shift)
                found.append(module(batch.input_ids, batch.attention_mask, batch.labels))
        change, p_ = (found[0] - found[1]) / (2 * h), torch.softmax(found[2], 1)
        total += float((p_ * change**2).sum() - (p_ * change).sum(1).square().sum()) / len(items)
    return total


def test_a_step_of_zero_is_the_identity(context: Any, target: nn.Module) -> None:
    for name in ("influence", "fisher_forget"):
        model = run(name, context(), step=0.0).model
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("name", ["influence", "fisher_forget"])
def test_the_search_ends_within_its_limit_and_close_to_it(name: str, context: Any) -> None:
    notes = run(name, context(), retain_rise=0.05).notes
    rise = notes["retain_nll_after"] - notes["retain_nll_before"]
    assert 0.02 < rise <= 0.05
    assert notes["step_length"] > 0


def test_it_moves_away_from_the_forget_set_more_than_noise_does(context: Any) -> None:
    fell = {}
    for name in ("influence", "fisher_forget"):
        given = context(retain=72)
        items = [row.encoded for row in given.encoder.encode_many(given.splits.forget, where="x")]
        model = run(name, given, retain_rise=0.1).model
        fell[name] = sum(float(sequence_nll(Scorer(model), item, mean=True).detach()) for item in items)
    assert fell["influence"] > 1.5 * fell["fisher_forget"]


def test_what_only_a_loop_does_is_refused(context: Any) -> None:
    for training, field in (
        ({"mask": {"kind": "random"}}, "mask.kind"), ({"wrapper": {"name": "sam"}}, "wrapper.name"),
        ({"stop": {"rule": "utility_drop"}}, "stop.rule"), ({"proximal_l1": {"weight": 1e-5}}, "proximal_l1"),
    ):  # fmt: skip
        for name in ("influence", "fisher_forget"):
            with pytest.raises(RecipeError, match=rf"training\.{field}"):
                run(name, context(training))
            assert "refused" in get_method(name).card.notes
