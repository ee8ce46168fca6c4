# SPDX-License-Identifier: Apache-2.0
"""Derivatives written out against autograd, and what is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge.signals.head as head_module
from expunge.objectives.likelihood import kl_divergence
from expunge.signals.fused import Differentiated, LabelLogp, TeacherKL
from expunge.signals.head import Head, over_vocabulary

V, D, N = 23, 6, 11


class PlainHead(Head):
    """A head made without a model."""

    def __init__(self, *, bias: bool = False, scale: float = 1.0, cap: float = 0.0) -> None:
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(3)
        self.projection: Any = nn.Linear(D, V, bias=bias)
        for p in self.projection.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.scale, self.cap = scale, cap


@pytest.fixture
def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": torch.randn(N, D, generator=generator),
        "teacher": torch.randn(N, D, generator=generator),
        "labels": torch.randint(V, (N,), generator=generator),
        "upstream": torch.randn(N, generator=generator),
    }


FUNCTIONS: dict[str, Callable[[], Differentiated]] = {
    "logp": LabelLogp,
    "forward": lambda: TeacherKL(PlainHead(cap=4.0), "forward"),
    "reverse": lambda: TeacherKL(PlainHead(scale=0.5), "reverse"),
}


def run(head: PlainHead, function: Any, data: dict[str, Tensor], *, states: bool = True) -> list[Tensor]:
    hidden = data["hidden"].clone().requires_grad_(states)
    head.zero_grad()
    values = over_vocabulary(head, hidden, data["labels"], function, (data["teacher"],))
    (values * data["upstream"]).sum().backward()
    found = [hidden.grad, *(p.grad for p in head.parameters())]
    return [values.detach(), *(g.clone() for g in found if g is not None)]


@pytest.mark.parametrize("rows", [1000, 4])
@pytest.mark.parametrize("trains", ["head", "states", "both"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [{}, {"bias": True}, {"scale": 0.3, "cap": 2.0}])
def test_values_and_gradients_are_those_of_autograd(
    shape: dict[str, Any], name: str, trains: str, rows: int, data: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, function = PlainHead(**shape), FUNCTIONS[name]()
    head.requires_grad_(trains != "states")
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", rows * V)
    found = run(head, function, data, states=trains != "head")

    def plain(*arguments: Tensor) -> Tensor:  # no `Differentiated`: autograd does it
        return function(*arguments)

    expected = run(head, plain, data, states=trains != "head")
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_values_by_hand(data: dict[str, Tensor]) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    labels = torch.tensor([2, 0])
    value, derivative = LabelLogp().derivative(logits.clone(), labels)
    p = torch.softmax(logits, 1)
    torch.testing.assert_close(value, p[[0, 1], labels].log())
    torch.testing.assert_close(derivative, torch.eye(3)[labels] - p)
    torch.testing.assert_close(derivative[1], torch.tensor([2 / 3, -1 / 3, -1 / 3]))
    teacher = PlainHead()
    value, _ = TeacherKL(teacher, "forward").derivative(data["hidden"] @ torch.ones(D, V), labels, data["teacher"])
    expected = kl_divergence(data["hidden"] @ torch.ones(D, V), teacher(data["teacher"]))
    torch.testing.assert_close(value, expected)


def kept_elements(head: PlainHead, function: Any, data: dict[str, Tensor]) -> int:
    """Elements of tensors with a vocabulary side that the graph keeps, the head's own weight aside."""
    sizes = []

    def note(tensor: Tensor) -> Tensor:
        if V in tensor.shape and tensor.data_ptr() != head.projection.weight.data_ptr():
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        over_vocabulary(head, data["hidden"].clone().requires_grad_(), data["labels"], function, (data["teacher"],))
    return sum(sizes)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_at_most_one_tensor_of_the_logits_size_is_kept(
    name: str, data: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, function = PlainHead(), FUNCTIONS[name]()
    assert kept_elements(head, lambda *arguments: function(*arguments), data) >= 2 * N * V  # what autograd keeps
    assert kept_elements(head, function, data) == N * V
    head.requires_grad_(False)
    assert kept_elements(head, function, data) == 0
    head.requires_grad_(True)
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 4 * V)
    assert kept_elements(head, function, data) == 0


def test_a_head_that_is_more_than_its_weights_takes_the_general_way(data: dict[str, Tensor]) -> None:
    calls, head = [], PlainHead()
    plain = run(head, LabelLogp(), data)
    head.projection.register_forward_hook(lambda *_: calls.append(1))
    hooked = run(head, LabelLogp(), data)
    assert calls == [1]
    for one, other in zip(plain, hooked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_second_derivatives_are_refused_rather_than_wrong(data: dict[str, Tensor]) -> None:
    hidden = data["hidden"].clone().requires_grad_()
    values = over_vocabulary(PlainHead(), hidden, data["labels"], LabelLogp())
    (first,) = torch.autograd.grad(values.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()  # type: ignore[no-untyped-call]


def test_autocast_multiplies_in_half_precision(data: dict[str, Tensor]) -> None:
    exact = run(PlainHead(), LabelLogp(), data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = run(PlainHead(), LabelLogp(), data)
    assert [t.dtype for t in rough] == [torch.float32] * 3
    for one, other in zip(exact, rough, strict=True):
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)
