# SPDX-License-Identifier: Apache-2.0
"""What the methods on hidden states promise: their tensors in every family, their losses, and how little they run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from expunge.data.encoding import Encoded, Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.errors import RecipeError
from expunge.methods.base import MethodContext, MethodOutcome
from expunge.methods.reading import BlockStates, Plan, candidates, measure, plan_reading, restrict
from expunge.methods.registry import methods, parse_method
from expunge.methods.representation import RepresentationMethod, RepresentationTask, Sets
from expunge.methods.topics import control_vectors, resolve_topics
from expunge.models.adapters import LoraSettings, add_lora
from expunge.models.digests import model_digest
from expunge.models.families import mlp_outputs, query_key_modules
from expunge.models.tiny import build_llama
from expunge.objectives.representation import rmu_retain
from expunge.signals.head import decoder_blocks
from expunge.signals.hidden import HiddenCache, block_outputs
from expunge.signals.likelihood import Scorer
from expunge.training.config import TrainingConfig
from expunge.training.passes import recompute_activations
from expunge.training.task import Counts, MicroBatch

COMMON = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}  # fmt: skip
GQA = {**COMMON, "num_key_value_heads": 2}
#: Family: configuration, name of the MLP's output projection, modules that compute queries and keys.
FAMILIES: dict[str, tuple[Callable[[], Any], str, tuple[str, ...]]] = {
    "llama": (lambda: tf.LlamaConfig(**GQA), "mlp.down_proj.weight", ("q_proj", "k_proj")),
    "mistral": (lambda: tf.MistralConfig(**GQA, sliding_window=16), "mlp.down_proj.weight", ("q_proj", "k_proj")),
    "mixtral": (lambda: tf.MixtralConfig(**GQA, num_local_experts=2), "mlp.experts.down_proj", ("q_proj", "k_proj")),
    "qwen2": (lambda: tf.Qwen2Config(**GQA), "mlp.down_proj.weight", ("q_proj", "k_proj")),
    "qwen3": (lambda: tf.Qwen3Config(**GQA, head_dim=8), "mlp.down_proj.weight", ("q_proj", "k_proj")),
    "gemma": (lambda: tf.GemmaConfig(**GQA, head_dim=8), "mlp.down_proj.weight", ("q_proj", "k_proj")),
    "gemma2": (lambda: tf.Gemma2Config(**GQA, head_dim=8, sliding_window=16), "mlp.down_proj.weight",
               ("q_proj", "k_proj")),
    "olmo2": (lambda: tf.Olmo2Config(**GQA), "mlp.down_proj.weight", ("q_proj", "k_proj")),
    "gemma3": (lambda: tf.Gemma3TextConfig(**GQA, head_dim=8, sliding_window=16), "mlp.down_proj.weight",
               ("q_proj", "k_proj")),
    "opt": (lambda: tf.OPTConfig(vocab_size=512, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48,
                                 max_position_embeddings=128, word_embed_proj_dim=32, pad_token_id=0, bos_token_id=2,
                                 eos_token_id=1), "fc2.weight", ("q_proj", "k_proj")),
    "phi": (lambda: tf.PhiConfig(**COMMON), "mlp.fc2.weight", ("q_proj", "k_proj")),
    "phi3": (lambda: tf.Phi3Config(**GQA), "mlp.down_proj.weight", ("qkv_proj",)),
    "gpt2": (lambda: tf.GPT2Config(vocab_size=512, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=2,
                                   eos_token_id=1), "mlp.c_proj.weight", ("c_attn",)),
    "gpt_neox": (lambda: tf.GPTNeoXConfig(**COMMON), "mlp.dense_4h_to_h.weight", ("query_key_value",)),
}  # fmt: skip


def tiny(family: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tf.AutoModelForCausalLM.from_config(FAMILIES[family][0]()).eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def items(archive: Archive, encoder: Encoder) -> list[Encoded]:
    return [row.encoded for row in encoder.encode_many(archive.splits().retain[:5], where="retain")]


@pytest.fixture
def run(archive: Archive, encoder: Encoder) -> Callable[..., MethodOutcome]:
    def go(name: str, model: nn.Module, training: dict[str, Any] | None = None, **settings: Any) -> MethodOutcome:
        values = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "max_steps": 2, **(training or {})}
        context = MethodContext(
            model=model, encoder=encoder, splits=archive.splits(), training=TrainingConfig(**values), seed=0,
            pad_id=encoder.pad_id, model_digest=model_digest(model),
        )  # fmt: skip
        return methods()[name].run(parse_method({"name": name, **settings}), context)

    return go


@pytest.fixture
def make_task(archive: Archive, encoder: Encoder) -> Callable[..., tuple[RepresentationTask, nn.Module, Plan]]:
    """Builds the prepared task of a method on a model."""

    def build(
        name: str, model: nn.Module, *, training: dict[str, Any] | None = None, **settings: Any
    ) -> tuple[RepresentationTask, nn.Module, Plan]:
        config: Any = parse_method({"name": name, **settings})
        method = methods()[name]
        assert isinstance(method, RepresentationMethod)
        resolved = TrainingConfig(**{"batch_size": 4, **(training or {})})
        context = MethodContext(
            model=model, encoder=encoder, splits=archive.splits(), training=resolved, seed=0, pad_id=encoder.pad_id
        )
        sets = method.sets(config, context)

        def states(layers: Sequence[int]) -> dict[int, BlockStates]:
            return measure(model, sets.forget, sets.retain, layers=layers, pad_id=encoder.pad_id)

        plan = plan_reading(model, resolved, states, layer=config.layer, trained_blocks=config.trained_blocks)
        steering = method.steering(config, context, sets, plan)
        moving, _ = restrict(model, resolved, plan, tensors=config.tensors, seed=0)
        task = RepresentationTask(
            steering, config, sets, plan, training=resolved, pad_id=encoder.pad_id, seed=0, cache=HiddenCache("")
        )
        task.prepare(moving)
        return task, moving, plan

    return build


def losses(task: RepresentationTask, model: nn.Module, *, pad_id: int = 0, rows: slice = slice(None)) -> Any:
    groups = task.steps(0)[0][rows]
    micro = MicroBatch.of(groups, pad_id, torch.device("cpu"))
    return task.losses(Scorer(model), micro, Counts.of(groups))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_states_in_every_family(family: str, items: list[Encoded]) -> None:
    model, (_, output, query_key) = tiny(family), FAMILIES[family]
    blocks = {1, 2}
    names = mlp_outputs(model, blocks, width=32)
    assert len(names) == 2
    assert all(name.endswith(f".{block}.{output}") for name, block in zip(names, (1, 2), strict=True))
    assert query_key_modules(model) == query_key
    ids = torch.tensor([item.ids[:12] for item in items])
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    with torch.no_grad():
        full = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        found = block_outputs(model, ids, mask, layers=[0, 1])
        resumed = block_outputs(model, ids, mask, layers=[1], first=1, start_BTD=found[0])
        after = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        torch.testing.assert_close(found[layer][mask.bool()], full[layer + 1][mask.bool()], atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1], resumed[1])
    assert torch.equal(full[-1], after[-1])  # the model is as it was


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_named_tensors_move_in_every_family(family: str, run: Callable[..., MethodOutcome]) -> None:
    model = tiny(family)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    outcome = run("rmu", model, layer=1, trained_blocks=1, tensors="mlp_output")
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, start[name])]
    assert moved == outcome.notes["tensors"] == mlp_outputs(model, {1}, width=32)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_adapters_train_in_the_chosen_blocks_only(family: str, run: Callable[..., MethodOutcome]) -> None:
    outcome = run("rmu", tiny(family), {"lora": LoraSettings(r=2)}, layer=1, trained_blocks=1)
    moved = {n for n, p in outcome.model.named_parameters() if "lora_B" in n and bool(p.abs().sum() > 0)}
    assert moved
    assert all(".1." in name for name in moved)


def test_an_adapter_that_is_there_already_is_what_trains(run: Callable[..., MethodOutcome]) -> None:
    torch.manual_seed(0)
    model = add_lora(tiny("llama"), LoraSettings(r=2))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    outcome = run("adaptive_rmu", model, layer=1, trained_blocks=2)
    moved = {name for name, p in outcome.model.named_parameters() if not torch.equal(p, start[name])}
    assert moved
    assert all("lora_" in name and (".0." in name or ".1." in name) for name in moved)


def test_losses_at_the_start(target: nn.Module, make_task: Any) -> None:
    """Retain: nothing moved. Forget: mean over tokens of (||h||^2 - 2 c h.u + c^2) / D, by naive full passes."""
    task, model, plan = make_task("rmu", copy.deepcopy(target), layer=0, coefficient=3.0)
    found = losses(task, model)
    assert float(found["retain"].detach()) < 1e-10
    u = control_vectors(resolve_topics(["x"], "single"), 64, distribution="uniform", seed=0)["all"]
    expected = []
    for row in (row for group in task.steps(0)[0] for row in group if row.role == "forget"):
        with torch.no_grad():
            h = target(torch.tensor([row.encoded.ids]), output_hidden_states=True).hidden_states[plan.layer + 1][0]
        expected.append(float(((h * h).sum(-1) - 6.0 * (h @ u) + 9.0).mean()) / 64)
    assert float(found["forget"].detach()) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    total, _, _ = make_task("rmu", copy.deepcopy(target), layer=0, coefficient=3.0, distance="sum")
    assert float(losses(total, model)["forget"].detach()) == pytest.approx(
        64 * float(found["forget"].detach()), rel=1e-5
    )


def test_retain_states_that_did_not_move_lose_exactly_nothing(target: nn.Module, items: list[Encoded]) -> None:
    """Stored states and those of a step are the same bits where they come from the same batch."""
    same = [item for item in items if len(item.ids) == len(items[0].ids)]
    cache, ids = HiddenCache(""), torch.tensor([item.ids for item in same])
    cache.fill(target, same, layers=[0, 1], pad_id=0)
    with torch.no_grad():
        found = block_outputs(target, ids, torch.ones_like(ids), layers=[0, 1])
    for layer in (0, 1):
        stored = cache.padded(layer, [item.ids for item in same])
        assert rmu_retain(found[layer].flatten(0, 1), stored.flatten(0, 1), distance="sum").tolist() == [0.0] * len(
            stored.flatten(0, 1)
        )


@pytest.mark.parametrize("name", ["rmu", "adaptive_rmu", "cut"])
@pytest.mark.parametrize("positions", ["all", "answer"])
def test_neither_padding_nor_batching_changes_a_loss(
    target: nn.Module, make_task: Any, name: str, positions: str
) -> None:
    task, model, _ = make_task(name, copy.deepcopy(target), positions=positions)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    together = losses(task, model)
    alone = [losses(task, model, rows=slice(i, i + 1)) for i in range(4)]
    for part in ("forget", "retain"):
        mean = sum(float(one[part].detach()) for one in alone) / 4
        assert float(together[part].detach()) == pytest.approx(mean, rel=1e-4)
    other = losses(task, model, pad_id=7)
    assert float(other["forget"].detach()) == pytest.approx(float(together["forget"].detach()), rel=1e-6)


def test_token_mean_counts_every_state(target: nn.Module, make_task: Any) -> None:
    for positions in ("all", "answer"):
        settings = {"layer": 0, "coefficient": 3.0, "positions": positions, "reduction": "token_mean"}
        task, model, _ = make_task("rmu", copy.deepcopy(target), **settings)
        groups = task.steps(0)[0]
        alone, weights = [], []
        for i, group in enumerate(groups):
            alone.append(float(losses(task, model, rows=slice(i, i + 1))["forget"].detach()))
            weights.append(len(group[0].encoded.ids) if positions == "all" else group[0].encoded.n_labels)
        expected = sum(a * w for a, w in zip(alone, weights, strict=True)) / sum(weights)
        assert float(losses(task, model)["forget"].detach()) == pytest.approx(expected, rel=1e-5)


def test_adaptive_targets_follow_each_sequence_or_each_topic(target: nn.Module, make_task: Any) -> None:
    def coefficients(variant: str) -> tuple[list[float], list[Encoded]]:
        task, _, _ = make_task("adaptive_rmu", copy.deepcopy(target), layer=0, variant=variant, beta=2.0)
        rows = [row for step in task.steps(0) for group in step for row in group if row.role == "forget"]
        return [float(task._steering.target(row, None).norm()) for row in rows], [row.encoded for row in rows]

    paper, items = coefficients("paper")
    official, _ = coefficients("official")
    lengths = []
    for item, coefficient in zip(items, paper, strict=True):
        with torch.no_grad():
            h = target(torch.tensor([item.ids]), output_hidden_states=True).hidden_states[1][0]
        assert coefficient == pytest.approx(2.0 * float(h.mean(0).norm()), rel=1e-4)
        lengths.append(float(h.norm(dim=-1).mean()))
    assert len({round(value, 6) for value in paper}) > 1
    assert official == pytest.approx([2.0 * sum(lengths) / len(lengths)] * len(items), rel=1e-4)


def test_cut_targets_are_the_original_shifted_by_a_keyword_drawn_anew(target: nn.Module, make_task: Any) -> None:
    settings = {"layer": 0, "coefficient": 2.0, "keywords": {"all": ("chess", "rivers", "glass")}}
    task, model, _ = make_task("cut", copy.deepcopy(target), **settings)
    # ||h - (h + c v)||^2 = c^2 at the start, whatever v.
    assert float(losses(task, model)["forget"].detach()) == pytest.approx(4.0 / 64, rel=1e-5)
    drawn = [
        [row.keyword for step in task.steps(epoch) for group in step for row in group if row.role == "forget"]
        for epoch in (0, 1, 0)
    ]
    assert drawn[0] == drawn[2] != drawn[1]
    with pytest.raises(RecipeError, match=r"method\.keywords"):
        make_task("cut", copy.deepcopy(target), keywords={"other": ("chess",)})


def test_topics_have_their_own_directions_which_do_not_depend_on_each_other() -> None:
    subjects = ["ann", "bob", "ann", "cid"]
    by_subject = resolve_topics(subjects, "subject")
    mapped = resolve_topics(subjects, {"ann": "bio", "bob": "cyber", "cid": "bio"})
    assert by_subject.of == tuple(subjects)
    assert mapped.names() == ("bio", "cyber")
    assert mapped.members("bio") == [0, 2, 3]
    three = control_vectors(by_subject, 16, distribution="gaussian", seed=1)
    one = control_vectors(resolve_topics(["bob"], "subject"), 16, distribution="gaussian", seed=1)
    assert torch.equal(three["bob"], one["bob"])
    assert abs(float(three["bob"] @ three["ann"])) < 0.9
    with pytest.raises(RecipeError, match=r"Did you mean 'ann'"):
        resolve_topics(["anne"], {"ann": "bio"})
    with pytest.raises(RecipeError, match="no subject"):
        resolve_topics(["ann", ""], "subject")


def test_block_and_coefficient_are_chosen_from_the_models_own_states(
    archive: Archive, encoder: Encoder, run: Callable[..., MethodOutcome]
) -> None:
    assert candidates(32) == list(range(7, 16))
    assert candidates(12) == [2, 3, 4, 5]
    assert candidates(2) == [1]
    assert candidates(1) == [0]
    model = build_llama(512, hidden_size=32, layers=12, heads=2, context=128)
    notes = run("rmu", model, {"max_steps": 1}).notes
    states = notes["measured_states"]
    assert set(states) == {"2", "3", "4", "5"}
    assert notes["layer"] == int(max(states, key=lambda block: states[block]["separation"]))
    assert notes["coefficient"] == pytest.approx(2.5 * states[str(notes["layer"])]["forget_norm"])
    assert notes["blocks_that_run"] == [notes["layer"] - 2, notes["layer"]]


def test_a_block_that_cannot_be_steered_is_named(run: Callable[..., MethodOutcome]) -> None:
    with pytest.raises(RecipeError, match=r"method\.layer.*got 9"):
        run("rmu", tiny("llama"), layer=9)
    with pytest.raises(RecipeError, match=r"training\.trainable: nothing that may move"):
        run("rmu", tiny("llama"), {"trainable": [r"layers\.2\."]}, layer=1)


class Counter:
    """Counts the tokens every MLP works on; skipped blocks have none."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens = [0] * len(decoder_blocks(model))
        for number, block in enumerate(decoder_blocks(model)):
            block.mlp.register_forward_hook(self._hook(number))  # type: ignore[union-attr]

    def _hook(self, number: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            self.tokens[number] += inputs[0].shape[0] * inputs[0].shape[1]

        return hook


def full_forward_losses(model: nn.Module, task: RepresentationTask, micro: MicroBatch) -> Tensor:
    """The same loss read from a pass through the whole model, head included, with stored retain states."""
    batch, total = micro.batch, torch.zeros(())
    hidden = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True).hidden_states[4]
    for b, row in enumerate(micro.rows):
        mask = batch.attention_mask[b].bool()
        target = task._target(row, mask)
        weight = 10.0 if row.role == "retain" else 1.0
        total = total + weight * (hidden[b][mask] - target).square().mean() / (len(micro.rows) / 2)
    return total


def flops(step: Callable[[], Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        step()
    return counted.get_total_flops()


def test_a_step_runs_three_blocks_of_twelve_and_counts_accordingly(make_task: Any) -> None:
    """The work is counted, not timed: floating-point operations of one step against those of a full forward."""
    model = build_llama(512, hidden_size=128, layers=12, heads=4, context=128)
    task, model, plan = make_task("rmu", model, layer=3, tensors="mlp_output")
    assert (plan.first, plan.layer) == (1, 3)
    groups = task.steps(0)[0]
    micro, counts, scorer = MicroBatch.of(groups, 0, torch.device("cpu")), Counts.of(groups), Scorer(model)
    counter = Counter(model)
    ours = sum(task.losses(scorer, micro, counts).values())
    size = micro.batch.input_ids.numel()
    assert counter.tokens == [0, size, size, size] + [0] * 8
    naive = full_forward_losses(model, task, micro)
    assert counter.tokens == [size, 2 * size, 2 * size, 2 * size] + [size] * 8
    assert float(ours) == pytest.approx(float(naive), rel=1e-4)  # type: ignore[arg-type]
    counted = flops(lambda: task.losses(scorer, micro, counts))
    full = flops(lambda: full_forward_losses(model, task, micro))
    # Three of twelve blocks and no head: below a quarter, and so below the 45 % that are claimed.
    assert 0 < counted < full / 4
    sum(task.losses(scorer, micro, counts).values()).backward()  # type: ignore[union-attr]
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == mlp_outputs(model, {1, 2, 3}, width=128)


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def test_gradients_exist_for_trained_tensors_only_and_nothing_is_kept_for_the_others(make_task: Any) -> None:
    model = build_llama(512, hidden_size=32, layers=6, heads=2, context=128)
    task, model, _ = make_task("rmu", model, layer=3, trained_blocks=2, tensors="mlp_output")
    outside = [p for number in (0, 1, 4, 5) for p in decoder_blocks(model)[number].parameters()]
    with saved_tensors() as saved:
        sum(losses(task, model).values()).backward()
    held = {tensor.untyped_storage().data_ptr() for tensor in saved}
    assert held
    assert not held & {p.untyped_storage().data_ptr() for p in [*outside, model.model.embed_tokens.weight]}
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == mlp_outputs(model, {2, 3}, width=32)


def test_checkpointed_blocks_give_the_same_gradient(make_task: Any) -> None:
    found = []
    for checkpointing in (False, True):
        model = build_llama(512, hidden_size=32, layers=4, heads=2, context=128)
        task, model, _ = make_task("rmu", model, layer=2, trained_blocks=2, tensors="block")
        model.train()
        if checkpointing:
            recompute_activations(model)
        sum(losses(task, model).values()).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_stored_states_come_back_from_disk_and_only_for_the_same_model(
    target: nn.Module, items: list[Encoded], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    HiddenCache("abc", tmp_path).fill(target, items, layers=[0, 1], pad_id=0)
    again = HiddenCache("abc", tmp_path)

    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr("expunge.signals.hidden.over_batches", never)
        again.fill(target, items, layers=[0, 1], pad_id=0)
        with pytest.raises(AssertionError, match="computed again"):
            HiddenCache("other", tmp_path).fill(target, items, layers=[0, 1], pad_id=0)
    with torch.no_grad():
        h = target(torch.tensor([items[2].ids]), output_hidden_states=True).hidden_states[1][0]
    torch.testing.assert_close(again.get(0, items[2]), h, atol=1e-5, rtol=1e-4)
    assert again.padded(0, [item.ids for item in items]).shape[:2] == (len(items), max(len(item.ids) for item in items))


def test_states_half_written_by_a_killed_process_are_computed_again(
    target: nn.Module, items: list[Encoded], tmp_path: Path
) -> None:
    whole = HiddenCache("abc", tmp_path)
    whole.fill(target, items, layers=[0, 1], pad_id=0)
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.with_suffix(".partial").write_bytes(b"half of it")
    HiddenCache("abc", tmp_path).fill(target, items, layers=[0, 1], pad_id=0)
    again = HiddenCache("abc", tmp_path)
    again.fill(target, items, layers=[0, 1], pad_id=0)
    assert all(torch.equal(again.get(1, item), whole.get(1, item)) for item in items)


def test_states_move_where_they_are_sent_and_retain_states_stay(
    target: nn.Module, run: Callable[..., MethodOutcome], archive: Archive, encoder: Encoder
) -> None:
    original = copy.deepcopy(target)
    outcome = run("rmu", target, {"epochs": 8, "max_steps": None, "learning_rate": 2e-3}, layer=0)
    u = control_vectors(resolve_topics(["x"], "single"), 64, distribution="uniform", seed=0)["all"]

    def states(model: nn.Module, examples: Any) -> Tensor:
        sets = [row.encoded for row in encoder.encode_many(examples, where="test")]
        with torch.no_grad():
            outputs = [block_outputs(model, torch.tensor([s.ids]), torch.ones(1, len(s.ids)), layers=[0]) for s in sets]
        return torch.cat([found[0][0] for found in outputs])

    splits: Splits = archive.splits()
    before, after = (states(m, splits.forget) @ u for m in (original, outcome.model))
    assert float(after.mean()) > float(before.mean()) + 0.3 * outcome.notes["coefficient"]
    kept = torch.cosine_similarity(states(original, splits.retain), states(outcome.model, splits.retain)).mean()
    assert float(kept) > 0.9


def test_sets_hold_every_chunk_with_its_topic(archive: Archive, encoder: Encoder, target: nn.Module) -> None:
    short = Encoder(encoder.tokenizer, template="question", max_length=24)
    texts = archive.biographies("forget10")
    context = MethodContext(
        model=target, encoder=short, splits=Splits(texts, archive.biographies("retain90")),
        training=TrainingConfig(), seed=0, pad_id=0,
    )  # fmt: skip
    method = methods()["rmu"]
    assert isinstance(method, RepresentationMethod)
    sets: Sets = method.sets(parse_method({"name": "rmu", "topics": "subject"}), context)
    assert len(sets.forget) > len(texts)
    assert sets.topics.of == (texts[0].subject,) * len(sets.forget)
