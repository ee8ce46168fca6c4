# SPDX-License-Identifier: Apache-2.0
"""Private steps: clipping, noise, sampling, the account, and that without noise they are plain steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from expunge.data.batching import pad
from expunge.data.encoding import Encoded, Encoder
from expunge.data.fictitious import Archive
from expunge.errors import InputDataError, Interrupted, RecipeError
from expunge.models.adapters import LoraSettings, add_lora
from expunge.models.selection import freeze_except
from expunge.signals.ghost import squared_norms
from expunge.signals.likelihood import Scorer, TokenRequest, label_logp
from expunge.training.accounting import Mechanism
from expunge.training.checkpoint import checkpoints
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer
from expunge.training.private import PrivateStepper
from expunge.training.private_noise import poisson_sample, secure_normal, secure_uniform, seeded_normal, seeded_uniform
from expunge.training.private_task import PoissonTask, PrivacyPlan, plan_privacy

CLIPPINGS = ("per_sample", "ghost")


@pytest.fixture(scope="module")
def items(archive: Archive, encoder: Encoder) -> list[Encoded]:
    """Of unequal lengths."""
    found = [row.encoded for row in encoder.encode_many(archive.splits().retain, where="train")[:16]]
    assert len({len(item.ids) for item in found}) > 2
    return found


def settings(**privacy: Any) -> TrainingConfig:
    training = {
        key: privacy.pop(key)
        for key in list(privacy)
        if key
        not in {
            "epsilon",
            "noise_multiplier",
            "delta",
            "max_grad_norm",
            "unit",
            "accountant",
            "clipping",
            "noise",
            "sampling",
        }
    }
    if "epsilon" not in privacy:
        privacy.setdefault("noise_multiplier", 0.0)
    given: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 4, "micro_batch_size": 3, **training}
    return TrainingConfig(**given, privacy={"delta": 1e-3, **privacy})


def task_of(config: TrainingConfig, units: Sequence[Sequence[Encoded]], seed: int = 5) -> PoissonTask:
    return PoissonTask(units, plan_privacy(config, units), seed=seed)


def singles(items: Sequence[Encoded]) -> list[list[Encoded]]:
    return [[item] for item in items]


def stepper(model: nn.Module, config: TrainingConfig, units: Sequence[Sequence[Encoded]]) -> PrivateStepper:
    trainer = Trainer(model, task_of(config, units), config, pad_id=0)
    from expunge.optim.factory import build_optimizer
    from expunge.optim.rules import GradientRule

    made = trainer._stepper(build_optimizer(model, config.optimizer, learning_rate=1e-3), GradientRule(), 1)
    assert isinstance(made, PrivateStepper)
    return made


def released(made: PrivateStepper, chosen: Sequence[int], step: int = 0) -> Tensor:
    """The gradient that a step on the chosen units would hand to the optimiser, times the expected number, [P]."""
    made._at = step
    for p in made.moving:
        p.grad = None
    made._backward([made._units._groups[i] for i in chosen], None)
    return torch.cat([p.grad.flatten() for p in made.moving]) * made._plan.expected


def gradient(model: nn.Module, unit: Sequence[Encoded]) -> Tensor:
    """One unit's gradient the naive way: every sequence alone, its mean loss, their mean, [P]."""
    moving, scorer = [p for p in model.parameters() if p.requires_grad], Scorer(model)
    loss = torch.zeros(())
    for item in unit:
        batch = pad([item], 0)
        request = TokenRequest(label_logp, torch.tensor([0]))
        loss = loss - scorer(batch.input_ids, batch.attention_mask, batch.labels, [request])[0].values.mean()
    found = torch.autograd.grad(loss / len(unit), moving, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(moving, found, strict=True)])


def lora(model: Any) -> nn.Module:
    torch.manual_seed(0)
    adapted = add_lora(model, LoraSettings(r=4))
    with torch.no_grad():  # at the start one factor is zero, and so is half of the gradient
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    return adapted


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_without_noise_and_bound_it_is_plain_training(
    fresh: Callable[[], nn.Module], items: list[Encoded], clipping: str
) -> None:
    units, plain, private = singles(items), fresh(), fresh()
    more: dict[str, Any] = {"optimizer": {"name": "adamw", "eps": 1e-2}}  # so that rounding is not blown up to a step
    config = settings(max_grad_norm=None, clipping=clipping, **more)
    without = TrainingConfig(**{**config.model_dump(), "privacy": None})
    first = Trainer(plain, task_of(config, units), without, pad_id=0).run()
    second = Trainer(private, task_of(config, units), config, pad_id=0).run()
    assert first.steps == second.steps == 12
    assert second.losses["train"] == pytest.approx(first.losses["train"], rel=1e-4)
    start = torch.nn.utils.parameters_to_vector(fresh().parameters()).detach()
    a, b = (torch.nn.utils.parameters_to_vector(model.parameters()).detach() for model in (plain, private))
    assert float((a - start).norm()) > 0.1
    assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_ghost_norms_are_those_of_single_gradients(target: nn.Module, items: list[Encoded], adapted: bool) -> None:
    model = lora(target) if adapted else target
    moving = [p for p in model.parameters() if p.requires_grad]
    found = squared_norms(model, pad(items, 0), only=moving)
    assert len(found) == len(moving)
    naive = torch.stack([gradient(model, [item]).norm() for item in items])
    assert torch.allclose(found.sum(0).sqrt(), naive, rtol=1e-4)


def test_ghost_norms_of_chosen_parameters_only(target: nn.Module, items: list[Encoded]) -> None:
    names = [name for name, _ in target.named_parameters() if "layers.1" in name or "embed" in name]
    freeze_except(target, names)
    moving = [p for p in target.parameters() if p.requires_grad]
    found = squared_norms(target, pad(items, 0), only=moving)
    assert len(found) == len(names)
    assert torch.allclose(found.sum(0).sqrt(), torch.stack([gradient(target, [i]).norm() for i in items]), rtol=1e-4)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_no_unit_adds_more_than_the_bound(
    target: nn.Module, items: list[Encoded], clipping: str, adapted: bool
) -> None:
    model = lora(target) if adapted else target
    raw = [gradient(model, [item]) for item in items]
    bound = float(np.median([float(g.norm()) for g in raw]))
    made = stepper(model, settings(clipping=clipping, max_grad_norm=bound), singles(items))
    for i, whole in enumerate(raw):
        part = released(made, [i])
        assert float(part.norm()) <= bound * (1 + 1e-4)
        wanted = whole * min(1.0, bound / (float(whole.norm()) + 1e-6))
        assert torch.allclose(part, wanted, atol=1e-4 * bound)
    together = sum(g * min(1.0, bound / (float(g.norm()) + 1e-6)) for g in raw)
    assert torch.allclose(released(made, range(len(items))), together, atol=1e-3 * bound)


def test_opacus_forms_the_same_gradient(target: nn.Module, items: list[Encoded]) -> None:
    opacus = pytest.importorskip("opacus")
    names = [name for name, _ in target.named_parameters() if "proj" in name or "lm_head" in name]
    freeze_except(target, names)
    bound = 0.5
    ours = released(stepper(target, settings(clipping="ghost", max_grad_norm=bound), singles(items)), range(4))
    watched = opacus.GradSampleModule(target.train(), loss_reduction="sum", strict=False)
    batch = pad(items[:4], 0)
    logits = watched(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    per_token = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    ).view(4, -1)
    (per_token.sum(1) / (batch.labels[:, 1:] != -100).sum(1)).sum().backward()
    each = torch.cat([p.grad_sample.flatten(1) for p in target.parameters() if p.requires_grad], dim=1)
    clipped = (each * (bound / (each.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)).sum(0)
    assert torch.allclose(ours, clipped, atol=1e-5)


def test_all_sequences_of_a_subject_are_clipped_as_one(target: nn.Module, items: list[Encoded]) -> None:
    units = [items[:3], items[3:4], items[4:9]]
    made = stepper(target, settings(max_grad_norm=0.2, unit="subject", delta=0.01), units)
    for i, unit in enumerate(units):
        whole = gradient(target, unit)
        assert float(whole.norm()) > 0.2
        part = released(made, [i])
        assert float(part.norm()) == pytest.approx(0.2, rel=1e-4)
        assert torch.allclose(part, whole * (0.2 / whole.norm()), atol=1e-5)


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_a_unit_adds_the_same_whatever_it_is_padded_with(
    target: nn.Module, items: list[Encoded], clipping: str
) -> None:
    short, long = min(items, key=lambda item: len(item.ids)), max(items, key=lambda item: len(item.ids))
    made = stepper(target, settings(clipping=clipping, max_grad_norm=0.3), singles([short, long, *items[:3]]))
    apart = released(made, [0]) + released(made, [1])
    assert torch.allclose(released(made, [0, 1]), apart, atol=1e-5)


@pytest.mark.parametrize("source", ["seeded", "secure"])
def test_the_noise_has_the_stated_size(fresh: Callable[[], nn.Module], items: list[Encoded], source: str) -> None:
    made = stepper(fresh(), settings(noise_multiplier=2.5, max_grad_norm=0.4, noise=source), singles(items))
    noise = torch.cat([released(made, [], step) for step in (0, 1)]).double()
    assert len(noise) > 100_000
    # sigma C = 1; five standard errors of mean, variance and fourth moment
    n = len(noise)
    assert abs(float(noise.mean())) < 5 / n**0.5
    assert abs(float(noise.square().mean()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float(noise.pow(4).mean()) - 3) < 5 * (96 / n) ** 0.5
    first, second = noise.view(2, -1)
    assert abs(float((first * second).mean())) < 5 / (n / 2) ** 0.5
    assert torch.equal(released(made, [], 0).double(), first) is (source == "seeded")


def test_noise_is_added_once_and_the_denominator_is_the_expected_number(
    target: nn.Module, items: list[Encoded]
) -> None:
    quiet = stepper(target, settings(max_grad_norm=0.3), singles(items))
    loud = stepper(target, settings(max_grad_norm=0.3, noise_multiplier=2.0), singles(items))
    noise = released(loud, range(7)) - released(quiet, range(7))
    assert float(noise.std()) == pytest.approx(0.6, rel=0.02)
    assert torch.allclose(noise, released(loud, []), atol=1e-5)
    grads = torch.cat([p.grad.flatten() for p in loud.moving])
    released(loud, range(7))
    assert loud._plan.expected == 4.0
    assert torch.allclose(grads * 4.0, released(loud, []), atol=1e-6)


def test_a_step_that_drew_nobody_moves_by_noise(fresh: Callable[[], nn.Module], items: list[Encoded]) -> None:
    class Nobody(PoissonTask):
        def steps(self, epoch: int) -> list[list[Any]]:
            return [[] for _ in super().steps(epoch)]

    config, model = settings(noise_multiplier=1.0, epochs=1), fresh()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    task = Nobody(singles(items), plan_privacy(config, singles(items)), seed=0)
    result = Trainer(model, task, config, pad_id=0).run()
    assert (result.steps, result.losses) == (4, {"train": 0.0})
    assert task.spent == Mechanism(0.25, 1.0, 4)
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    assert float((after - before).abs().min()) > 0


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(("n", "rate"), [(40, 0.05), (12, 0.5), (3, 0.9), (5, 1.0)])
def test_every_unit_is_drawn_by_a_coin_of_its_own(n: int, rate: float, secure: bool) -> None:
    draws = 4000
    drawn = np.zeros((draws, n))
    for step in range(draws):
        found = poisson_sample(n, rate, secure_uniform if secure else seeded_uniform(1, 0, step))
        assert found == sorted(set(found))
        drawn[step, found] = 1
    error = max((rate * (1 - rate) / draws) ** 0.5, 1e-12)
    assert np.abs(drawn.mean(0) - rate).max() < 5 * error
    pairs = np.cov(drawn.T)[np.triu_indices(n, 1)]
    assert np.abs(pairs).max() < 6 * rate * (1 - rate) / draws**0.5 + 1e-12
    sizes = drawn.sum(1)
    assert sizes.var() == pytest.approx(n * rate * (1 - rate), rel=0.15, abs=1e-9)


class _StopAt:
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, info: Any) -> None:
        if info.step == self._step:
            import signal

            signal.raise_signal(signal.SIGINT)

    def on_probe(self, step: int, values: Any) -> None: ...


def test_killed_and_resumed_spends_and_weighs_the_same(
    fresh: Callable[[], nn.Module], items: list[Encoded], tmp_path: Path
) -> None:
    config = settings(noise_multiplier=1.0, clipping="ghost")
    whole, cut, resumed = fresh(), fresh(), fresh()
    tasks = [task_of(config, singles(items)) for _ in range(3)]
    Trainer(whole, tasks[0], config, pad_id=0, folder=tmp_path / "whole").run()
    with pytest.raises(Interrupted):
        Trainer(cut, tasks[1], config, pad_id=0, folder=tmp_path / "cut", callbacks=[_StopAt(6)]).run()
    assert tasks[1].spent.steps == 6
    Trainer(resumed, tasks[2], config, pad_id=0, folder=tmp_path / "cut").run(resume=True)
    assert tasks[2].spent == tasks[0].spent == Mechanism(0.25, 1.0, 12)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda _: {}, "no accountant state"),
        (lambda state: {"accountant": state["accountant"] | {"noise_multiplier": 0.5}}, "counted other steps"),
        (lambda state: {"accountant": state["accountant"] | {"unit": "subject"}}, "counted other steps"),
    ],
)
def test_no_resume_without_the_account(
    fresh: Callable[[], nn.Module], items: list[Encoded], tmp_path: Path, change: Any, problem: str
) -> None:
    config = settings(noise_multiplier=1.0)
    with pytest.raises(Interrupted):
        Trainer(
            fresh(), task_of(config, singles(items)), config, pad_id=0, folder=tmp_path, callbacks=[_StopAt(2)]
        ).run()
    file = checkpoints(tmp_path / "checkpoints")[-1] / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {"task": change(state["task"])}))
    with pytest.raises(InputDataError, match=problem) as caught:
        Trainer(fresh(), task_of(config, singles(items)), config, pad_id=0, folder=tmp_path).run(resume=True)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"sampling": "shuffle"}, "of fixed size: use poisson"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "either epsilon or noise_multiplier"),
        ({"noise_multiplier": 1.0, "max_grad_norm": None}, "bounds no gradient"),
        ({"wrapper": {"name": "sam"}}, "wrapper sam and privacy"),
        ({"optimizer": {"name": "sophia"}}, "optimizer sophia and privacy"),
        ({"stop": {"rule": "utility_drop"}}, "stop.rule utility_drop and privacy"),
        ({"mask": {"kind": "random", "ratio": 0.5}}, "mask.kind random and privacy"),
        ({"precision": "pure_bf16"}, "precision pure_bf16 and privacy"),
        ({"clipping": "ghost", "dropout": True}, "privacy.clipping ghost and privacy"),
        ({"clipping": "ghost", "gradient_checkpointing": True}, "which dropout and gradient checkpointing"),
    ],
)
def test_what_the_account_does_not_cover_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        settings(**given)


def test_plans_that_prove_nothing_are_refused(items: list[Encoded]) -> None:
    with pytest.raises(RecipeError, match=r"training.privacy.delta: with 16 units .* Use less than 0.062"):
        plan_privacy(settings(delta=0.1), singles(items))
    with pytest.raises(RecipeError, match="some units have several"):
        plan_privacy(settings(clipping="ghost", unit="subject", delta=0.01), [items[:2], items[2:4]])


def test_a_plan_finds_the_noise_and_counts_the_steps(items: list[Encoded]) -> None:
    pytest.importorskip("opacus")
    plan = plan_privacy(settings(epsilon=3.0, accountant="rdp", max_steps=7), singles(items))
    assert isinstance(plan, PrivacyPlan)
    assert (plan.expected, plan.steps_per_epoch, plan.mechanism.rate, plan.mechanism.steps) == (4.0, 4, 0.25, 7)
    assert plan.mechanism.noise_multiplier > 0.5
    whole = plan_privacy(settings(batch_size=99), singles(items))
    assert (whole.expected, whole.mechanism.rate, whole.mechanism.steps) == (16.0, 1.0, 3)


def test_a_tied_head_that_trains_is_refused_with_ghost_clipping_only(
    fresh: Callable[[], nn.Module], items: list[Encoded]
) -> None:
    model: Any = fresh()
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(RecipeError, match=r"head and embedding are one tensor .* per_sample"):
        stepper(model, settings(clipping="ghost"), singles(items))
    whole = gradient(model, items[:1])
    assert torch.allclose(released(stepper(model, settings(max_grad_norm=1e6), singles(items)), [0]), whole, atol=1e-5)
    stepper(lora(model), settings(clipping="ghost"), singles(items))


def test_other_tasks_cannot_be_made_private(fresh: Callable[[], nn.Module], items: list[Encoded]) -> None:
    with pytest.raises(RecipeError, match="no gradient of single units"):
        Trainer(fresh(), FineTuneTask(items, batch_size=4, seed=0), settings(), pad_id=0).run()


def test_noise_of_a_step_does_not_depend_on_what_ran_before() -> None:
    torch.manual_seed(1)
    shape = torch.Size([3, 2])
    assert torch.equal(seeded_normal(4, 2)(shape), seeded_normal(4, 2)(shape))
    assert not torch.equal(seeded_normal(4, 2)(shape), seeded_normal(4, 3)(shape))
    assert secure_normal(shape).shape == shape
