# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient of the methods against published formulas written out naively, and where published code differs.

The naive side takes whole logits of one sequence at a time and knows neither chunks nor caches: the original model is
a second model, as in the papers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.methods.base import MethodContext
from expunge.methods.gradient import GradientMethod, UnlearningTask
from expunge.methods.registry import get_method, parse_method
from expunge.models.digests import model_digest
from expunge.objectives.likelihood import kl_divergence
from expunge.objectives.preference import npo, simnpo
from expunge.objectives.targets import undial
from expunge.objectives.weighted import tnpo
from expunge.signals.likelihood import Scorer
from expunge.signals.reference import ReferenceCache
from expunge.training.config import TrainingConfig
from expunge.training.task import Counts, Group, MicroBatch


class Naive:
    """What the formulas of the papers are written in."""

    def __init__(self, model: nn.Module, original: nn.Module, groups: Sequence[Group]) -> None:
        self.model, self.original = model, original
        self._rows = [row for group in groups for row in group]

    def items(self, role: str) -> list[Encoded]:
        return [row.encoded for row in self._rows if row.role == role]

    def logits(self, item: Encoded, *, original: bool = False) -> tuple[Tensor, Tensor]:
        """Logits and labels of every labelled token of one sequence."""
        with torch.set_grad_enabled(not original):
            out = (self.original if original else self.model)(torch.tensor([item.ids])).logits[0]
        labels = torch.tensor(item.labels)[1:]
        return out[:-1][labels != IGNORE], labels[labels != IGNORE]

    def nll(self, item: Encoded, *, original: bool = False) -> Tensor:
        logits, labels = self.logits(item, original=original)
        return cross_entropy(logits, labels, reduction="none")

    def token_mean(self, role: str, function: Callable[[Encoded], Tensor]) -> Tensor:
        return torch.cat([function(item) for item in self.items(role)]).mean()

    def mean(self, role: str, function: Callable[[Encoded], Tensor]) -> Tensor:
        return torch.stack([function(item) for item in self.items(role)]).mean()

    def retain(self) -> Tensor:
        return self.token_mean("retain", self.nll)


def ga(n: Naive) -> Tensor:
    return -n.token_mean("forget", n.nll)


def grad_diff(n: Naive) -> Tensor:
    return ga(n) + n.retain()


def ga_kl(n: Naive) -> Tensor:
    def divergence(item: Encoded) -> Tensor:
        now, before = (torch.softmax(n.logits(item, original=o)[0], 1) for o in (False, True))
        return (before * (before / now).log()).sum(1)

    return ga(n) + n.token_mean("retain", divergence)


def npo_rt(n: Naive) -> Tensor:
    def one(item: Encoded) -> Tensor:
        ratio = torch.exp(n.nll(item, original=True).sum() - n.nll(item).sum())
        return (2 / 0.1) * torch.log(1 + ratio**0.1)

    return n.mean("forget", one) + n.retain()


def simnpo_rt(n: Naive) -> Tensor:
    def one(item: Encoded) -> Tensor:
        nll = n.nll(item)
        return -(2 / 2.5) * logsigmoid(2.5 / len(nll) * nll.sum() - 0.5)

    return 0.125 * n.mean("forget", one) + n.retain()


def dpo_rt(n: Naive) -> Tensor:
    def gain(item: Encoded) -> Tensor:
        return n.nll(item, original=True).sum() - n.nll(item).sum()

    pairs = zip(n.items("refusal"), n.items("forget"), strict=True)
    losses = [-(2 / 0.1) * logsigmoid(0.1 * (gain(win) - gain(lose))) for win, lose in pairs]
    return torch.stack(losses).mean() + n.retain()


def undial_alone(n: Naive) -> Tensor:
    def one(item: Encoded) -> Tensor:
        logits, labels = n.logits(item)
        target = n.logits(item, original=True)[0].clone()
        for t, label in enumerate(labels.tolist()):
            target[t, label] -= 3.0
        return cross_entropy(logits, torch.softmax(target, 1), reduction="none")

    return n.token_mean("forget", one)


def wga_rt(n: Naive) -> Tensor:
    def one(item: Encoded) -> Tensor:
        nll = n.nll(item)
        return -(torch.exp(-nll).detach() ** 2.0) * nll

    return n.token_mean("forget", one) + n.retain()


def satimp_rt(n: Naive) -> Tensor:
    def one(item: Encoded) -> Tensor:
        nll = n.nll(item)
        p = torch.exp(-nll).detach()
        return -(p**5.0) * (1 - p) ** 0.5 * nll

    return n.token_mean("forget", one) + 0.1 * n.retain()


def tnpo_rt(n: Naive) -> Tensor:
    """The published gradient, whose weight is held constant; the value is another (see below)."""

    def one(item: Encoded) -> Tensor:
        now, before = (torch.exp(-n.nll(item, original=o)).detach() ** 4 for o in (False, True))
        return -(2 * now / (now + before)) * n.nll(item)

    return n.token_mean("forget", one) + n.retain()


def ceu_alone(n: Naive) -> Tensor:
    def one(item: Encoded) -> Tensor:
        logits, labels = n.logits(item)
        target = logits.detach().clone()
        target[torch.arange(len(labels)), labels] = -math.inf
        return cross_entropy(logits, torch.softmax(target, 1), reduction="none")

    return n.token_mean("forget", one)  # the rows come without their first label already


def pdu_at_the_start(n: Naive) -> Tensor:
    def one(item: Encoded) -> Tensor:
        logits, _ = n.logits(item)
        return (logits.max(1).values - logits.mean(1)) ** 2

    return n.token_mean("forget", one) + 100.0 * n.retain()


def flat_tv(n: Naive) -> Tensor:
    def probability(item: Encoded) -> Tensor:
        return torch.exp(-n.nll(item)).mean()

    pairs = zip(n.items("refusal"), n.items("forget"), strict=True)
    return torch.stack([(torch.tanh(probability(f)) - torch.tanh(probability(g))) / 2 for g, f in pairs]).mean()


def yao_weights(n: Naive) -> Tensor:
    def divergence(item: Encoded) -> Tensor:
        now, before = (torch.log_softmax(n.logits(item, original=o)[0], 1) for o in (False, True))
        return (before.exp() * (before - now)).sum(1)

    down = -n.mean("forget", lambda item: n.nll(item).mean())
    up = n.mean("mismatch", lambda item: n.nll(item).mean())
    return 0.5 * down + 1.0 * up + n.token_mean("retain", divergence)


def kto_pairs(n: Naive) -> Tensor:
    def gain(item: Encoded) -> Tensor:
        return n.nll(item, original=True).sum() - n.nll(item).sum()

    pairs = zip(n.items("refusal"), n.items("forget"), strict=True)
    losses = [-(2 / 0.1) * logsigmoid(0.1 * (gain(z).detach() - gain(f))) for z, f in pairs]
    return torch.stack(losses).mean() + n.retain()


@pytest.fixture
def moved(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., tuple[UnlearningTask, Naive]]:
    """A method's task prepared on the target, then the model moved away from it; and the naive side of both."""

    def build(name: str, **settings: Any) -> tuple[UnlearningTask, Naive]:
        method, config = get_method(name), parse_method({"name": name, **settings})
        assert isinstance(method, GradientMethod)
        splits = archive.splits()
        training = TrainingConfig(batch_size=4, epochs=1)
        context = MethodContext(
            model=target, encoder=encoder, splits=Splits(splits.forget[:4], splits.retain[:12]), training=training,
            seed=3, pad_id=encoder.pad_id, model_digest=model_digest(target),
        )  # fmt: skip
        task = method.task(config, context, method.parts(config, context), ReferenceCache(model_digest(target)))
        task.prepare(target)
        original = copy.deepcopy(target)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in target.parameters():
                p.add_(0.01 * torch.randn(p.shape, generator=generator))
        return task, Naive(target, original, task.steps(0)[0])

    return build


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(found, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def ours(task: UnlearningTask, model: nn.Module) -> Tensor:
    groups = task.steps(0)[0]
    micro = MicroBatch.of(groups, 0, torch.device("cpu"))
    parts = task.losses(Scorer(model), micro, Counts.of(groups))
    return torch.stack([part for part in parts.values() if part.requires_grad]).sum()


@pytest.mark.parametrize(
    ("name", "settings", "formula"),
    [
        ("ga", {}, ga),
        ("grad_diff", {}, grad_diff),
        ("ga_kl", {}, ga_kl),
        ("npo", {}, npo_rt),
        ("simnpo", {"beta": 2.5, "gamma": 0.5}, simnpo_rt),
        ("dpo", {}, dpo_rt),
        ("kto", {}, kto_pairs),
        ("undial", {"beta": 3.0}, undial_alone),
        ("wga", {"beta": 2.0}, wga_rt),
        ("satimp", {"beta2": 0.5}, satimp_rt),
        ("ceu", {}, ceu_alone),
        ("pdu", {}, pdu_at_the_start),
        ("flat", {}, flat_tv),
        ("yao", {}, yao_weights),
    ],
)
def test_loss_and_gradient_are_the_published_ones(
    moved: Any, name: str, settings: dict[str, Any], formula: Callable[[Naive], Tensor]
) -> None:
    task, naive = moved(name, **settings)
    mine, theirs = ours(task, naive.model), formula(naive)
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5, abs=1e-5)
    left, right = gradient(mine, naive.model), gradient(theirs, naive.model)
    assert float(right.norm()) > 1e-3
    assert float((left - right).norm() / right.norm()) < 1e-5


def test_gradient_of_tnpo_is_the_published_one_and_its_loss_is_not(moved: Any) -> None:
    task, naive = moved("tnpo")
    mine, theirs = ours(task, naive.model), tnpo_rt(naive)
    left, right = gradient(mine, naive.model), gradient(theirs, naive.model)
    assert float((left - right).norm() / right.norm()) < 1e-5
    # Held constant, the published weight makes a loss that is negative and rises while the answer is unlearned.
    assert float(mine.detach()) > float(theirs.detach())


# Where published code differs. Each test states what it does, and what is done here.


def test_undial_of_openunlearning_lowers_an_arbitrary_token_at_unlabelled_positions(moved: Any) -> None:
    """Label -100 indexes vocabulary entry V - 100, and the mean runs over prompt and padding too."""
    task, naive = moved("undial", beta=3.0)
    item = naive.items("forget")[0]
    logits = naive.model(torch.tensor([item.ids])).logits[0, :-1]
    labels = torch.tensor(item.labels)[1:]
    with torch.no_grad():
        teacher = naive.original(torch.tensor([item.ids])).logits[0, :-1]
    vocabulary = logits.shape[1]
    lowered = teacher - 3.0 * torch.nn.functional.one_hot(labels % vocabulary, vocabulary)  # what -100 comes to
    theirs_T = cross_entropy(logits, torch.softmax(lowered, 1), reduction="none")
    prompt = labels == IGNORE
    assert bool((labels[prompt] % vocabulary == vocabulary - 100).all())
    right_T = undial(logits, labels.clamp(min=0), teacher, beta=3.0)
    torch.testing.assert_close(theirs_T[~prompt], right_T[~prompt])
    # The published loss pulls on prompt positions; here their number does not even enter the mean.
    (pull,) = torch.autograd.grad(theirs_T.mean(), logits)
    assert float(pull[prompt].abs().sum()) > 1e-4
    del task
    assert float(theirs_T.detach().mean()) != pytest.approx(float(right_T.detach()[~prompt].mean()), rel=1e-2)


def test_muse_losses_on_raw_logits_see_shifts_that_no_probability_sees() -> None:
    """Their NPO and SimNPO put logits where log-probabilities belong; the value moves with a constant."""
    logits, reference = torch.randn(5, 7), torch.randn(5, 7)
    labels = torch.arange(5)

    def official(z: Tensor) -> float:
        return float(-(2 / 0.1) * logsigmoid(-0.1 * (z - reference)).mean())

    def right(z: Tensor) -> tuple[float, float]:
        now, before = (torch.log_softmax(v, 1).gather(1, labels[:, None]).sum(0) for v in (z, reference))
        return float(npo(now, before, beta=0.1)), float(simnpo(now / 5, beta=2.5))

    assert abs(official(logits + 3) - official(logits)) > 1.0
    assert right(logits + 3) == pytest.approx(right(logits), rel=1e-5)
    # From the same model on both sides: 2/beta log 2, which a shift of 3 turns into 17.087105.
    at_rest = torch.zeros(2, 3)
    assert float(-(2 / 0.1) * logsigmoid(-0.1 * at_rest).mean()) == pytest.approx(13.862944, abs=1e-5)
    assert float(-(2 / 0.1) * logsigmoid(-0.1 * (at_rest + 3)).mean()) == pytest.approx(17.087105, abs=1e-5)


def test_kl_of_soul_is_not_at_rest_at_the_original_model() -> None:
    """It leaves out the model's own entropy, and so sharpens the model towards its own favourite."""
    logits = torch.tensor([[0.8, 0.2]]).log().requires_grad_()
    theirs = -(torch.softmax(logits, 1) * torch.tensor([[0.8, 0.2]]).log()).sum()
    theirs.backward()
    assert float(theirs.detach()) == pytest.approx(0.500402, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.221807, 0.221807], abs=1e-6)
    fresh = logits.detach().requires_grad_()
    (at_rest,) = torch.autograd.grad(kl_divergence(fresh, fresh.detach(), direction="reverse").sum(), fresh)
    assert at_rest[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-7)


def test_kl_of_tofu_falls_when_padding_is_added(moved: Any) -> None:
    """Its mean divides by rows times padded length; ours by labelled tokens, whatever the padding."""
    task, naive = moved("ga_kl", kl_positions="all", forget_weight=0.0)
    items = naive.items("retain")

    def official(width: int) -> float:
        total = 0.0
        for item in items:
            ids = torch.tensor([list(item.ids) + [0] * (width - len(item.ids))])
            mask = torch.tensor([[1] * len(item.ids) + [0] * (width - len(item.ids))])
            with torch.no_grad():
                now, before = (
                    torch.log_softmax(m(ids, attention_mask=mask).logits[0], 1) for m in (naive.model, naive.original)
                )
            total += float((before.exp() * (before - now)).sum(1)[: len(item.ids)].sum())
        return total / (len(items) * width)

    longest = max(len(item.ids) for item in items)
    assert official(longest + 20) < 0.9 * official(longest)
    groups = task.steps(0)[0]
    plain = float(ours(task, naive.model).detach())
    padded = MicroBatch.of(groups, 0, torch.device("cpu"))
    wider = type(padded.batch)(
        *(torch.nn.functional.pad(t, (0, 20), value=v) for t, v in (
            (padded.batch.input_ids, 0), (padded.batch.attention_mask, 0), (padded.batch.labels, IGNORE)))
    )  # fmt: skip
    parts = task.losses(Scorer(naive.model), MicroBatch(padded.rows, wider), Counts.of(groups))
    assert float(parts["retain"].detach()) == pytest.approx(plain, rel=1e-5)


def test_weight_of_tnpo_differs_from_the_released_one_by_its_1e5_only() -> None:
    p, p0, beta = 0.6, 0.8, 4.0
    released = 2 * p**beta / (p**beta + p0**beta + 1e-5)
    logp = torch.tensor([math.log(p)], dtype=torch.float64, requires_grad=True)
    (weight,) = torch.autograd.grad(tnpo(logp, torch.tensor([math.log(p0)], dtype=torch.float64), beta=beta), logp)
    assert float(weight) == pytest.approx(0.480712, abs=1e-6)
    assert 0 < float(weight) - released < 1e-5


def test_margin_of_simnpo_stands_outside_beta_as_in_the_paper() -> None:
    """gamma of the paper is beta times that of the released code."""
    mean_logp, beta, released_gamma = torch.tensor([-0.7]), 2.5, 0.2
    released = -(2 / beta) * logsigmoid(beta * (-mean_logp - released_gamma))
    assert torch.equal(simnpo(mean_logp, beta=beta, gamma=beta * released_gamma), released)
