# SPDX-License-Identifier: Apache-2.0
"""What single methods of the wider literature promise beyond their formula: rows, multipliers, samples, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from expunge.data.encoding import IGNORE, Encoded, Encoder
from expunge.data.examples import Example, Splits
from expunge.data.fictitious import Archive
from expunge.data.labels import without_first_labels
from expunge.errors import RecipeError
from expunge.methods.alternatives import Alternatives, AltPOConfig
from expunge.methods.base import MethodContext, MethodOutcome
from expunge.methods.gradient import GradientMethod, UnlearningTask
from expunge.methods.registry import get_method, parse_method
from expunge.models.digests import model_digest
from expunge.signals.likelihood import Scorer
from expunge.signals.reference import ReferenceCache
from expunge.training.config import TrainingConfig
from expunge.training.task import Counts, MicroBatch


@pytest.fixture
def context(archive: Archive, encoder: Encoder, target: nn.Module) -> Callable[..., MethodContext]:
    splits = archive.splits()

    def build(training: dict[str, Any] | None = None, **changes: Any) -> MethodContext:
        settings = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, **(training or {})}
        values: dict[str, Any] = {
            "model": target, "encoder": encoder, "training": TrainingConfig(**settings), "seed": 0,
            "splits": Splits(splits.forget[:8], splits.retain[:12]), "pad_id": encoder.pad_id,
            "model_digest": model_digest(target),
        }  # fmt: skip
        return MethodContext(**(values | changes))

    return build


def task_of(name: str, context: MethodContext, **settings: Any) -> UnlearningTask:
    method, config = get_method(name), parse_method({"name": name, **settings})
    assert isinstance(method, GradientMethod)
    task = method.task(config, context, method.parts(config, context), ReferenceCache(context.model_digest))
    task.prepare(context.model)
    return task


def losses(task: UnlearningTask, model: nn.Module, rows: slice = slice(None)) -> dict[str, torch.Tensor]:
    groups = task.steps(0)[0]
    micro = MicroBatch.of(groups[rows], 0, torch.device("cpu"))
    return task.losses(Scorer(model), micro, Counts.of(groups))


def run(name: str, context: MethodContext, **settings: Any) -> MethodOutcome:
    return get_method(name).run(parse_method({"name": name, **settings}), context)


def test_kto_starts_at_two_over_beta_log_two_and_trains_no_refusal(context: Any, target: nn.Module) -> None:
    task = task_of("kto", context(), beta=0.5, retain="none")
    loss = losses(task, target)["forget"]
    assert float(loss.detach()) == pytest.approx(4 * math.log(2), rel=1e-5)
    # Its first gradient is that of npo, in which refusals play no part.
    plain = losses(task_of("npo", context(), beta=0.5, retain="none"), target)["forget"]
    moving = list(target.parameters())
    pairs = zip(torch.autograd.grad(loss, moving), torch.autograd.grad(plain, moving), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_kto_pulls_less_once_the_refusal_gained(context: Any, target: nn.Module) -> None:
    task = task_of("kto", context(), retain="none")
    term: Any = task._term
    micro = MicroBatch.of(task.steps(0)[0], 0, torch.device("cpu"))
    counts = Counts.of(task.steps(0)[0])
    requests = [task._request(role, micro) for role in term.roles]
    answers = Scorer(target)(micro.batch.input_ids, micro.batch.attention_mask, micro.batch.labels, requests)
    tokens = dict(zip(term.roles, answers, strict=True))
    before = {role: tokens[role].values.detach() for role in term.roles}

    def pull(gain: float) -> float:
        shifted = {**before, "refusal": before["refusal"] - gain / 8}
        loss = term.loss(tokens, shifted, counts)
        return float(torch.autograd.grad(loss, tokens["forget"].values, retain_graph=True)[0].sum())

    assert 0 < pull(40.0) < pull(0.0) < pull(-40.0)


def test_undial_starts_at_its_teacher_and_rests_where_nothing_is_lowered(context: Any, target: nn.Module) -> None:
    loss = losses(task_of("undial", context(), beta=0.0), target)["forget"]
    gradients = torch.autograd.grad(loss, list(target.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in gradients if g is not None) < 1e-5


def test_ceu_takes_the_first_answer_label_off(encoder: Encoder, archive: Archive, context: Any) -> None:
    plain = encoder.encode(archive.splits().forget[0])
    first = plain.label_start
    cut = without_first_labels(plain, 1)
    assert cut.labels[first] == IGNORE
    assert cut.labels[first + 1 :] == plain.labels[first + 1 :]
    assert without_first_labels(plain, 0) == plain
    assert not without_first_labels(plain, 999).ends_with_eos
    assert without_first_labels(plain, 999).n_labels == 0
    # Of a running text the first label cannot be scored, so that one does not count.
    assert without_first_labels(Encoded((5, 6, 7), (5, 6, 7), False), 1).labels == (5, IGNORE, 7)
    term: Any = task_of("ceu", context())._term
    assert term.forget[0] == cut


def test_multiplier_of_pdu_moves_once_a_step_after_its_warmup(context: Any, tmp_path: Path) -> None:
    given = context({"epochs": 3, "micro_batch_size": 1}, folder=tmp_path)
    run("pdu", given, warmup_epochs=1, retain_weight=2.0, dual_rate=0.5, tolerance=0.2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    multiplier = 2.0
    assert len(lines) == 6
    for line in lines:
        assert line["retain"] == pytest.approx(multiplier * line["retain_loss"], rel=1e-5)
        assert line["loss"] == pytest.approx(line["forget"] + line["retain"], rel=1e-6)
        if line["epoch"] >= 1:
            multiplier = max(0.0, multiplier + 0.5 * (line["retain_loss"] - 0.2))
        assert line["multiplier"] == pytest.approx(multiplier, rel=1e-6)
    assert multiplier != 2.0


def test_multiplier_of_pdu_may_reach_zero_and_come_back(context: Any, target: nn.Module) -> None:
    task: Any = task_of("pdu", context(), warmup_epochs=0, retain_weight=1.0, dual_rate=1.0, tolerance=0.3)
    assert task.finish_step({"retain_loss": 0.5}) == {"multiplier": pytest.approx(1.2)}
    assert task.finish_step({"retain_loss": 0.1}) == {"multiplier": pytest.approx(1.0)}
    for _ in range(5):
        task.finish_step({"retain_loss": 0.0})
    assert task.multiplier == 0.0
    # With no weight on it the retain loss is still seen, so the multiplier can grow again.
    parts = losses(task, target)
    assert float(parts["retain"].detach()) == 0.0
    assert float(parts["retain_loss"]) > 0.0
    task.finish_step({"retain_loss": 1.0})
    assert task.multiplier == pytest.approx(0.7)
    with pytest.raises(ValidationError):
        get_method("pdu").Config(retain="none")


def test_flat_divergences_differ_and_padding_changes_none(context: Any, target: nn.Module) -> None:
    values = {}
    for divergence in ("total_variation", "kl", "jensen_shannon", "pearson"):
        task = task_of("flat", context(), divergence=divergence)
        together = float(losses(task, target)["forget"].detach())
        alone = sum(float(losses(task, target, slice(i, i + 1))["forget"].detach()) for i in range(4))
        assert together == pytest.approx(alone, rel=1e-5)
        values[divergence] = together
    assert len({round(value, 4) for value in values.values()}) == 4


def test_yao_exchanges_answers_for_those_of_retain_examples(context: Any, archive: Archive, encoder: Encoder) -> None:
    task = task_of("yao", context(), mismatches=3)
    answers = {example.answer for example in archive.splits().retain[:12]}
    seen: dict[int, list[tuple[int, ...]]] = {}
    for epoch in range(2):
        rows = [row for step in task.steps(epoch) for group in step for row in group if row.role == "mismatch"]
        assert len(rows) == 8 * 3
        for row in rows:
            labels = [label for label in row.encoded.labels if label != IGNORE]
            assert encoder.tokenizer.decode(labels, skip_special_tokens=True).strip() in answers
            seen.setdefault(row.index, []).append(row.encoded.ids)
    assert all(len(set(found[:3])) == 3 for found in seen.values())
    assert any(set(found[:3]) != set(found[3:]) for found in seen.values())
    assert get_method("yao").needs(parse_method({"name": "yao", "retain": "none"}), TrainingConfig()) == {
        "forget", "retain"
    }  # fmt: skip


def test_alternatives_are_not_the_true_answer_and_each_is_shown_once_an_epoch(context: Any) -> None:
    given = context()
    method = get_method("altpo")
    config = parse_method({"name": "altpo", "alternatives": 3, "max_new_tokens": 24})
    assert method.examples_per_epoch(config, forget=8, retain=12) == 24
    task = task_of("altpo", given, alternatives=3, max_new_tokens=24)
    rows = [row for step in task.steps(0) for group in step for row in group]
    chosen = [row for row in rows if row.role == "alternative"]
    true = {example.id: given.encoder.encode(example) for example in given.splits.forget}
    assert len(chosen) == 24
    assert len([row for row in rows if row.role == "forget"]) == 24
    for row, item in zip(chosen, (r for r in rows if r.role == "forget"), strict=True):
        assert item.encoded in true.values()
        assert row.encoded != item.encoded
        assert row.encoded.ids[: item.encoded.label_start] == item.encoded.ids[: item.encoded.label_start]


def test_alternatives_are_sampled_once_and_kept(context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AltPOConfig(alternatives=2, max_new_tokens=24)
    given = context(folder=tmp_path)
    first = Alternatives(config, given).texts()
    assert len(list((tmp_path / "cache").glob("alternatives-*.json"))) == 1
    monkeypatch.setattr("expunge.methods.alternatives.sample", lambda *_, **__: pytest.fail("sampled again"))
    assert Alternatives(config, given).texts() == first
    monkeypatch.undo()
    assert Alternatives(config, replace(given, seed=1)).texts() != first
    assert Alternatives(config, replace(given, folder=None)).texts() == first


def test_a_question_without_another_answer_is_named(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = context()
    truth = {
        given.encoder.prompt_ids(e, prompt=AltPOConfig().instruction.replace("{question}", e.prompt).replace(
            "{answer}", e.answer)): e.answer for e in given.splits.forget
    }  # fmt: skip
    temperatures = []

    def stubborn(_model: Any, _tokenizer: Any, prompts: Any, *, temperature: float, **_: Any) -> list[Any]:
        from expunge.signals.generation import Generation

        temperatures.append(temperature)
        return [Generation((), f" {truth[prompt].upper()} ", True) for prompt in prompts]

    monkeypatch.setattr("expunge.methods.alternatives.sample", stubborn)
    with pytest.raises(RecipeError, match=r"no usable other answer to example .* in 6 rounds.*temperature"):
        run("altpo", given)
    assert temperatures == pytest.approx([1.5**k for k in range(6)])
    with pytest.raises(ValidationError, match="question"):
        AltPOConfig(instruction="Say something else")


@pytest.mark.parametrize("name", ["kto", "flat", "altpo", "yao"])
def test_running_text_is_refused_by_methods_that_exchange_answers(name: str, context: Any) -> None:
    texts = [Example(id=f"t{i}", prompt="", answer=f"A text about nothing, number {i}.", kind="text") for i in range(3)]
    with pytest.raises(RecipeError, match="t0"):
        run(name, context(splits=Splits(texts, texts)))
