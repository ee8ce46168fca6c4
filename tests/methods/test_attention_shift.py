# SPDX-License-Identifier: Apache-2.0
"""Attention shifting: its targets in closed form, what moves, and the weight that follows the losses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.errors import RecipeError
from expunge.methods.attention_shift import AttentionTask
from expunge.methods.base import MethodContext, MethodOutcome
from expunge.methods.registry import methods, parse_method
from expunge.methods.weights import choose_parameters
from expunge.models.adapters import LoraSettings
from expunge.objectives.attention import attention_kl, dynamic_balance, reinforced, suppressed
from expunge.signals.attention import answer_queries, attention_maps, content_tokens, materialised_attention
from expunge.signals.likelihood import Scorer
from expunge.training.config import TrainingConfig
from expunge.training.task import Counts, MicroBatch

ROW = torch.tensor([[[0.5, 0.3, 0.2, 0.0]]])
NONE, FIRST = torch.tensor([[False] * 4]), torch.tensor([[True, False, False, False]])


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.5, 0.99, 1.0])
def test_suppressed_mass_in_closed_form(strength: float) -> None:
    target = suppressed(ROW, FIRST, strength=strength)
    assert float(target.sum()) == pytest.approx(1.0)
    assert float(target[0, 0, 0]) == pytest.approx((1 - strength) * 0.5 / (1 - strength * 0.5), abs=1e-7)
    assert float(target[0, 0, 1] / target[0, 0, 2]) == pytest.approx(1.5, rel=1e-5)  # the others keep their ratio
    assert torch.equal(suppressed(ROW, NONE, strength=strength), ROW)


def test_suppression_grows_with_its_strength_and_needs_somewhere_to_go() -> None:
    left = [float(suppressed(ROW, FIRST, strength=s)[0, 0, 0]) for s in (0.0, 0.1, 0.5, 0.9, 0.99)]
    assert left == sorted(left, reverse=True)
    alone = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    assert torch.equal(suppressed(alone, FIRST, strength=0.99), alone)
    with pytest.raises(ValueError, match="below 1"):
        suppressed(alone, FIRST, strength=1.0)


def test_reinforced_mass_by_hand() -> None:
    target = reinforced(ROW, FIRST, strength=0.1)  # 0.55 / 1.05
    assert target[0, 0].tolist() == pytest.approx([0.55 / 1.05, 0.3 / 1.05, 0.2 / 1.05, 0.0])


def test_divergence_by_hand_with_the_model_first_and_hidden_keys_left_out() -> None:
    model = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]], requires_grad=True)
    target = torch.tensor([[[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]])
    # KL = 0.5 ln 2 + 0.5 ln(2/3) = 0.143841 and ln 2 = 0.693147; mean over the two heads.
    loss = attention_kl(model, target)
    assert loss.tolist() == pytest.approx([(0.143841 + 0.693147) / 2], abs=1e-5)
    loss.sum().backward()
    assert model.grad is not None
    assert bool(torch.isfinite(model.grad).all())
    # log(a / target) + 1, over 2 heads.
    assert float(model.grad[0, 0, 0]) == pytest.approx((1 + torch.log(torch.tensor(2.0)).item()) / 2, rel=1e-5)
    assert attention_kl(target, target).tolist() == pytest.approx([0.0], abs=1e-7)


def test_the_balance_follows_the_larger_loss_within_bounds() -> None:
    assert dynamic_balance(3.0, 1.0) == 0.75
    assert dynamic_balance(100.0, 1.0) == 0.8
    assert dynamic_balance(0.1, 1.0) == 0.2
    assert dynamic_balance(0.0, 0.0) == 0.8


def context_of(archive: Archive, encoder: Encoder, model: nn.Module, training: dict[str, Any]) -> MethodContext:
    values = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, **training}
    return MethodContext(
        model=model, encoder=encoder, splits=archive.splits(), training=TrainingConfig(**values), seed=0,
        pad_id=encoder.pad_id,
    )  # fmt: skip


@pytest.fixture
def run(archive: Archive, encoder: Encoder) -> Callable[..., MethodOutcome]:
    def go(model: nn.Module, training: dict[str, Any] | None = None, **settings: Any) -> MethodOutcome:
        config = parse_method({"name": "attention_shift", **settings})
        return methods()["attention_shift"].run(config, context_of(archive, encoder, model, training or {}))

    return go


@pytest.fixture
def make_task(archive: Archive, encoder: Encoder) -> Callable[..., tuple[AttentionTask, nn.Module]]:
    def build(model: nn.Module, *, output_term: bool = False, **settings: Any) -> tuple[AttentionTask, nn.Module]:
        config: Any = parse_method({"name": "attention_shift", **settings})
        context = context_of(archive, encoder, model, {"trainable": (r"[qk]_proj",)})
        sets = [
            [row.encoded for row in encoder.encode_many(examples, where="test")]
            for examples in (context.splits.forget, context.splits.retain)
        ]
        task = AttentionTask(config, context, *sets, output_term=output_term)
        choose_parameters(model, context.training, 0)
        task.prepare(model)
        return task, model

    return build


def losses(task: AttentionTask, model: nn.Module, rows: slice = slice(None)) -> dict[str, Tensor]:
    groups = task.steps(0)[0][rows]
    micro = MicroBatch.of(groups, 0, torch.device("cpu"))
    with materialised_attention(model):
        return task.losses(Scorer(model), micro, Counts.of(groups))


def shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))


def test_without_suppression_and_reinforcement_the_start_is_at_rest(make_task: Any, target: nn.Module) -> None:
    task, model = make_task(target, suppression=0.0, reinforcement=0.0)
    found = losses(task, model)
    assert float(found["forget"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(found["retain"].detach()) == pytest.approx(0.0, abs=1e-6)
    (found["forget"] + found["retain"]).backward()  # type: ignore[no-untyped-call]
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) < 1e-6


def test_losses_equal_a_naive_sum_over_blocks_heads_and_answer_queries(
    make_task: Any, target: nn.Module, encoder: Encoder
) -> None:
    original = copy.deepcopy(target)
    task, model = make_task(target, balance=0.25)
    shake(model)
    found = losses(task, model)
    parts: dict[str, list[float]] = {"forget": [], "retain": []}
    for row in (row for group in task.steps(0)[0] for row in group):
        ids, labels = torch.tensor([row.encoded.ids]), torch.tensor([row.encoded.labels])
        queries = answer_queries(labels)
        with torch.no_grad(), materialised_attention(model), materialised_attention(original):
            now, before = (attention_maps(m, ids, torch.ones_like(ids), queries) for m in (model, original))
        important = torch.tensor(content_tokens(encoder.tokenizer, row.encoded))
        factor = 1 - 0.99 * important.double() if row.role == "forget" else 1 + 0.1 * important.double()
        total, terms = 0.0, 0
        for a, b in zip(now, before, strict=True):
            for n in range(a.shape[0]):
                for h in range(a.shape[1]):
                    p, q = a[n, h].double(), b[n, h].double() * factor
                    q = q / q.sum()
                    total += float(sum(x * torch.log(x / y) for x, y in zip(p, q, strict=True) if x > 0))
                    terms += 1
        parts[row.role].append(total / terms)
    means = {role: sum(values) / len(values) for role, values in parts.items()}
    assert float(found["forget"].detach()) == pytest.approx(0.25 * means["forget"], rel=1e-3)
    assert float(found["retain"].detach()) == pytest.approx(0.75 * means["retain"], rel=1e-3)
    assert float(found["suppression"]) == pytest.approx(means["forget"], rel=1e-3)
    alone = [losses(task, model, slice(i, i + 1)) for i in range(4)]
    for part in ("forget", "retain"):
        mean = sum(float(one[part].detach()) for one in alone) / 4
        assert float(found[part].detach()) == pytest.approx(mean, rel=1e-4)


def test_balance_is_set_by_whole_steps_and_survives_an_interruption(make_task: Any, target: nn.Module) -> None:
    task, _ = make_task(target)
    assert task.balance == 0.8
    assert task.finish_step({"suppression": 1.0, "reinforcement": 1.0}) == {"balance": 0.8}
    assert task.balance == 0.5
    again, _ = make_task(target)
    again.load_state_dict(task.state_dict())
    assert again.balance == 0.5
    fixed, _ = make_task(target, balance=0.3)
    fixed.finish_step({"suppression": 1.0, "reinforcement": 1.0})
    assert fixed.balance == 0.3


def test_only_queries_and_keys_move_and_the_adapter_is_merged(run: Any, target: nn.Module) -> None:
    start = {name: p.detach().clone() for name, p in target.named_parameters()}
    implementation = target.config._attn_implementation  # type: ignore[union-attr]
    outcome = run(target)
    end = dict(outcome.model.named_parameters())
    assert end.keys() == start.keys()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {name for name in start if "q_proj" in name or "k_proj" in name}
    assert outcome.model.config._attn_implementation == implementation
    assert outcome.notes["output_term"] is False
    assert 0.3 < outcome.notes["important_share"] < 0.9


def test_an_adapter_asked_for_is_kept_and_without_it_the_model_is_the_old_one(run: Any, target: nn.Module) -> None:
    start = copy.deepcopy(target)
    outcome = run(target, {"lora": LoraSettings(r=2, target_modules=("q_proj", "k_proj"))})
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), outcome.model.disable_adapter():
        assert torch.equal(outcome.model(ids).logits, start(ids).logits)
    assert outcome.notes["output_term"] is False


def test_attention_to_content_words_falls_on_forget_texts_and_less_on_retain_texts(
    run: Any, target: nn.Module, archive: Archive, encoder: Encoder
) -> None:
    def mass(model: nn.Module, examples: Any) -> float:
        values = []
        for row in encoder.encode_many(examples, where="test"):
            ids, labels = torch.tensor([row.encoded.ids]), torch.tensor([row.encoded.labels])
            marks = torch.tensor(content_tokens(encoder.tokenizer, row.encoded))
            with torch.no_grad(), materialised_attention(model):
                maps = attention_maps(model, ids, torch.ones_like(ids), answer_queries(labels))
            values.append(float(torch.stack([m[..., marks].sum(-1).mean() for m in maps]).mean()))
        return sum(values) / len(values)

    splits = archive.splits()
    sets = (splits.forget, splits.retain[:8])
    before = [mass(target, examples) for examples in sets]
    model = run(target, {"epochs": 10}).model
    drops = [b - mass(model, examples) for b, examples in zip(before, sets, strict=True)]
    assert drops[0] > 0.1
    assert drops[0] > drops[1] + 0.1


def test_an_output_term_holds_what_the_maps_do_not_see(run: Any, target: nn.Module, make_task: Any) -> None:
    assert run(copy.deepcopy(target), {"trainable": (r"layers\.1\.mlp",)}).notes["output_term"] is True
    assert run(copy.deepcopy(target), {"trainable": (r"[qk]_proj",)}).notes["output_term"] is False
    task, model = make_task(target, output_term=True)
    found = losses(task, model)
    rows = [row.encoded for group in task.steps(0)[0] for row in group if row.role == "retain"]
    total = 0.0
    for item in rows:
        ids = torch.tensor([item.ids])
        logp = torch.log_softmax(model(ids).logits[0], -1).detach()
        total -= sum(float(logp[t - 1, label]) for t, label in enumerate(item.labels) if t and label != -100)
    expected = total / sum(item.n_labels for item in rows)
    assert float(found["retain_output"].detach()) == pytest.approx(expected, rel=1e-4)


def test_joint_projections_of_other_families_work_and_bring_the_output_term(run: Any) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=2, n_positions=128))
    outcome = run(model, {"max_steps": 2})
    assert outcome.notes["modules"] == ["c_attn"]
    assert outcome.notes["output_term"] is True


def test_importance_by_entropy_runs_and_marks_its_share(run: Any, target: nn.Module) -> None:
    outcome = run(target, {"max_steps": 1}, importance="entropy", keep=0.3)
    assert 0.15 < outcome.notes["important_share"] <= 0.3
    with pytest.raises(RecipeError, match=r"method\.suppression"):
        parse_method({"name": "attention_shift", "suppression": 1.0})
