# SPDX-License-Identifier: Apache-2.0
"""Every objective on a two-token vocabulary, against values and gradients worked out by hand.

Logits are (a, 0) and the label is token 0, so p = sigma(a). The model has p = 0.6, the original p = 0.8, and a
sequence has T tokens that share the same a.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expunge.objectives.likelihood import gradient_ascent, kl_divergence, negative_log_likelihood
from expunge.objectives.preference import dpo, npo, simnpo
from expunge.objectives.reduction import per_sequence, reduce_sequences, reduce_tokens

A, A0 = math.log(1.5), math.log(4.0)


def logp(a: Tensor, tokens: int) -> Tensor:
    return torch.nn.functional.logsigmoid(a).expand(tokens)


def value_and_grad(loss: Callable[[Tensor], Tensor], a: float = A) -> tuple[float, float]:
    variable = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    out = loss(variable)
    (gradient,) = torch.autograd.grad(out, variable)
    return float(out.detach()), float(gradient)


def tokens_mean(values: Tensor) -> Tensor:
    n = len(values)
    return reduce_tokens(
        values, torch.zeros(n, dtype=torch.long), torch.tensor([n]), "token_mean", sequences=1, tokens=n
    )


def tokens_sum(values: Tensor) -> Tensor:
    n = len(values)
    return reduce_tokens(values, torch.zeros(n, dtype=torch.long), torch.tensor([n]), "sum", sequences=1, tokens=n)


REFERENCE = math.log(0.8)


@pytest.mark.parametrize(
    ("loss", "tokens", "value", "gradient"),
    [
        (lambda a, t: tokens_sum(gradient_ascent(logp(a, t))), 1, -0.510826, 0.4),
        (lambda a, t: tokens_sum(gradient_ascent(logp(a, t))), 3, -1.532477, 1.2),
        (lambda a, t: tokens_mean(gradient_ascent(logp(a, t))), 3, -0.510826, 0.4),
        (lambda a, t: npo(logp(a, t).sum(), torch.tensor(t * REFERENCE), beta=0.1), 1, 13.577330, 0.394247),
        (lambda a, t: npo(logp(a, t).sum(), torch.tensor(t * REFERENCE), beta=0.1), 3, 13.018513, 1.148249),
        (lambda a, t: npo(logp(a, t).sum(), torch.tensor(t * REFERENCE), beta=1.0), 1, 1.119232, 0.342857),
        (lambda a, t: npo(logp(a, t).sum(), torch.tensor(t * REFERENCE), beta=1.0), 3, 0.703953, 0.712088),
        (lambda a, t: npo(logp(a, t).sum(), torch.tensor(t * REFERENCE), beta=1e-3), 1, 1386.006700, 0.399943),
        (lambda a, t: npo(logp(a, t).sum(), torch.tensor(t * REFERENCE), beta=1e-3), 3, 1385.431502, 1.199482),
        (lambda a, t: simnpo(logp(a, t).mean(), beta=2.5), 1, 0.196772, 0.174440),
        (lambda a, t: simnpo(logp(a, t).mean(), beta=2.5), 3, 0.196772, 0.174440),
        (lambda a, t: simnpo(logp(a, t).mean(), beta=4.5), 3, 0.042517, 0.072984),
        (lambda a, t: simnpo(logp(a, t).mean(), beta=0.1), 3, 13.358641, 0.389786),
        (lambda a, t: simnpo(logp(a, t).mean(), beta=1e-4), 1, 13862.432792, 0.399989),
        (lambda a, t: simnpo(logp(a, t).mean(), beta=1.0, gamma=0.5), 3, 1.375498, 0.397835),
    ],
)
def test_toy(loss: Callable[[Tensor, int], Tensor], tokens: int, value: float, gradient: float) -> None:
    found = value_and_grad(lambda a: loss(a, tokens))
    # The losses work in float32, where a loss of 13862 is resolved to a thousandth.
    assert found[0] == pytest.approx(value, rel=2e-7, abs=1e-5)
    assert found[1] == pytest.approx(gradient, abs=2e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 5.0])
def test_npo_starts_as_gradient_ascent_for_every_beta(beta: float) -> None:
    value, gradient = value_and_grad(lambda a: npo(logp(a, 1).sum(), torch.tensor(REFERENCE), beta=beta), A0)
    assert value == pytest.approx(2 / beta * math.log(2), rel=1e-6)
    assert gradient == pytest.approx(0.2, abs=1e-6)  # 1 - p at p = 0.8


def test_npo_tends_to_gradient_ascent() -> None:
    beta = 1e-3
    value, _ = value_and_grad(lambda a: npo(logp(a, 1).sum(), torch.tensor(REFERENCE), beta=beta))
    assert value - 2 / beta * math.log(2) == pytest.approx(math.log(0.6) - math.log(0.8), abs=1e-3)


def test_dpo_values_and_its_relation_to_npo() -> None:
    win, lose, win0, lose0 = (torch.tensor(x) for x in (-2.0, -6.0, -3.0, -5.0))
    assert float(dpo(win, lose, win0, lose0, beta=0.1)) == pytest.approx(11.962777, abs=1e-5)
    assert float(dpo(win0, lose0, win0, lose0, beta=0.1)) == pytest.approx(13.862944, abs=1e-5)
    # Without the chosen part the preference loss is NPO's.
    assert float(dpo(win, lose, win, lose0, beta=0.1)) == pytest.approx(float(npo(lose, lose0, beta=0.1)), abs=1e-6)


def test_simnpo_is_npo_on_means_with_reference_zero() -> None:
    mean = torch.tensor([-0.3, -2.0, -7.0])
    assert torch.allclose(simnpo(mean, beta=0.7), npo(mean, torch.zeros(3), beta=0.7))


def kl_of(direction: str) -> Callable[[Tensor], Tensor]:
    original = torch.tensor([[A0, 0.0]], dtype=torch.float64)
    return lambda a: kl_divergence(torch.stack([a, torch.zeros_like(a)])[None], original, direction=direction).sum()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("direction", "value", "gradient"), [("forward", 0.0915162, -0.2), ("reverse", 0.1046496, -0.235399)]
)
def test_kl_toy(direction: str, value: float, gradient: float) -> None:
    found = value_and_grad(kl_of(direction))
    assert found == (pytest.approx(value, abs=1e-6), pytest.approx(gradient, abs=1e-6))
    at_start = value_and_grad(kl_of(direction), A0)
    assert at_start == (pytest.approx(0.0, abs=1e-7), pytest.approx(0.0, abs=1e-7))


def test_kl_ignores_constants_added_to_logits() -> None:
    now, before = torch.randn(5, 7), torch.randn(5, 7)
    for direction in ("forward", "reverse"):
        plain = kl_divergence(now, before, direction=direction)  # type: ignore[arg-type]
        assert torch.allclose(plain, kl_divergence(now + 3, before - 5, direction=direction), atol=1e-5)  # type: ignore[arg-type]
        assert bool((plain >= 0).all())


# Token losses [1, 1, 1, 1] and [3]: the three reductions differ, and NPO differs with them.
LOSS = torch.tensor([1.0, 1, 1, 1, 3])
ROW = torch.tensor([0, 0, 0, 0, 1])
LENGTH = torch.tensor([4, 1])


@pytest.mark.parametrize(("reduction", "expected"), [("token_mean", 1.4), ("sequence_mean", 2.0), ("sum", 3.5)])
def test_reductions(reduction: str, expected: float) -> None:
    found = reduce_tokens(LOSS, ROW, LENGTH, reduction, sequences=2, tokens=5)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "sum"])
def test_shares_of_micro_batches_add_up(reduction: str) -> None:
    whole = reduce_tokens(LOSS, ROW, LENGTH, reduction, sequences=2, tokens=5)  # type: ignore[arg-type]
    parts = [
        reduce_tokens(LOSS[:4], ROW[:4], LENGTH[:1], reduction, sequences=2, tokens=5),  # type: ignore[arg-type]
        reduce_tokens(LOSS[4:], ROW[4:] - 1, LENGTH[1:], reduction, sequences=2, tokens=5),  # type: ignore[arg-type]
    ]
    assert float(sum(parts)) == pytest.approx(float(whole))


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 11.740783), ("sequence_mean", 12.443991)])
def test_npo_under_both_reductions(reduction: str, expected: float) -> None:
    now = per_sequence(-LOSS, ROW, LENGTH, reduction)  # type: ignore[arg-type]
    before = per_sequence(torch.full((5,), -0.5), ROW, LENGTH, reduction)  # type: ignore[arg-type]
    found = reduce_sequences(npo(now, before, beta=0.1), sequences=2)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_token_mean_has_no_sequence_form() -> None:
    with pytest.raises(ValueError, match="sum or sequence_mean"):
        per_sequence(LOSS, ROW, LENGTH, "token_mean")


def test_gradient_difference_of_equal_sets_is_zero() -> None:
    values = torch.tensor([-0.3, -1.2, -2.0])
    assert float(tokens_mean(gradient_ascent(values)) + tokens_mean(negative_log_likelihood(values))) == 0.0
    forget, retain = torch.tensor([math.log(0.6)]), torch.tensor([math.log(0.8)])
    assert float(gradient_ascent(forget) + negative_log_likelihood(retain)) == pytest.approx(-0.287682, abs=1e-6)


def test_uniform_labels_average_to_the_cross_entropy_with_the_uniform_distribution() -> None:
    probability = torch.tensor([0.5, 0.3, 0.2])
    expected = -probability.log().mean()
    drawn = torch.randint(0, 3, (200_000,), generator=torch.Generator().manual_seed(0))
    assert float(negative_log_likelihood(probability.log()[drawn]).mean()) == pytest.approx(float(expected), abs=5e-3)
    uniform = torch.full((3,), 1 / 3)
    divergence = (uniform * (uniform / probability).log()).sum()
    assert float(expected) == pytest.approx(math.log(3) + float(divergence), abs=1e-6)
