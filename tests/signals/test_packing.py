# SPDX-License-Identifier: Apache-2.0
"""Passes without padding against padded ones: same states, same gradients, in every architecture that takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import expunge.signals.packing as packing_module
from expunge.signals.head import body, decoder_blocks
from expunge.signals.hidden import block_outputs
from expunge.signals.packing import NAME, PACKED_TYPES, Packing, packed, packing_of
from expunge.training.passes import recompute_activations

SIZE: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**SIZE, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 8}
TYPES: dict[str, Callable[[], Any]] = {
    "cohere": lambda: tf.CohereConfig(**GROUPED),
    "gemma": lambda: tf.GemmaConfig(**WIDE),
    "gemma3_text": lambda: tf.Gemma3TextConfig(**WIDE, sliding_window=32),
    "gpt2": lambda: tf.GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**SIZE),
    "granite": lambda: tf.GraniteConfig(**GROUPED),
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "mistral": lambda: tf.MistralConfig(**GROUPED, sliding_window=32),
    "mixtral": lambda: tf.MixtralConfig(**GROUPED, num_local_experts=4),
    "olmo": lambda: tf.OlmoConfig(**GROUPED),
    "olmo2": lambda: tf.Olmo2Config(**GROUPED),
    "phi": lambda: tf.PhiConfig(**SIZE),
    "phi3": lambda: tf.Phi3Config(**GROUPED),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**WIDE),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(**WIDE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "smollm3": lambda: tf.SmolLM3Config(**GROUPED),
    "starcoder2": lambda: tf.Starcoder2Config(**GROUPED, sliding_window=32),
}
LENGTHS = torch.tensor([9, 30, 17, 1])
MASK = (torch.arange(30) < LENGTHS[:, None]).long()


def make(config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config)
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.shape[0] != 128:
                module.weight.data.mul_(4.0)  # or attention would hardly matter
    return model.eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 128, (4, 30), generator=torch.Generator().manual_seed(1))


def states_and_gradient(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    real = body(model, ids, mask) * mask[..., None]
    weights = torch.linspace(-1.0, 1.0, real.shape[-1])
    (real.square() * weights).sum().backward()
    return real.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_every_architecture_that_is_packed_is_tested() -> None:
    assert set(TYPES) == PACKED_TYPES
    assert all(make_config().model_type == name for name, make_config in TYPES.items())


@pytest.mark.parametrize("attend", ["_one_by_one", "_together"])
@pytest.mark.parametrize("name", TYPES)
def test_states_and_gradients_are_those_of_a_padded_pass(
    name: str, attend: str, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(TYPES[name]())
    monkeypatch.setattr(packing_module, "_one_by_one", getattr(packing_module, attend))
    states, gradient = states_and_gradient(model, ids, MASK)
    with packed(model):
        assert model.config._attn_implementation == NAME
        found, found_gradient = states_and_gradient(model, ids, MASK)
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(found, states, rtol=1e-5, atol=1e-5 * float(states.abs().max()))
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_a_token_of_another_sequence_changes_nothing(ids: Tensor) -> None:
    model, other = make(TYPES["llama"]()), ids.clone()
    other[1] = 5
    with packed(model), torch.no_grad():
        before, after = body(model, ids, MASK), body(model, other, MASK)
    assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]])
    assert not torch.equal(before[1], after[1])


def test_only_real_tokens_pass_through_the_blocks(ids: Tensor) -> None:
    model, seen = make(TYPES["llama"]()), []
    decoder_blocks(model)[1].register_forward_pre_hook(lambda _m, args: seen.append(tuple(args[0].shape)))
    with packed(model), torch.no_grad():
        body(model, ids, MASK)
        body(model, ids, torch.ones_like(MASK))  # nothing to leave out
    assert seen == [(1, int(LENGTHS.sum()), 32), (4, 30, 32)]


def test_blocks_in_between_start_from_padded_states(ids: Tensor) -> None:
    model = make(TYPES["qwen3"]())
    with torch.no_grad():
        plain = block_outputs(model, ids, MASK, layers=[0, 1])
        with packed(model):
            found = block_outputs(model, ids, MASK, layers=[0])
            resumed = block_outputs(model, ids, MASK, layers=[1], first=1, start_BTD=found[0])
    real = MASK.bool()
    torch.testing.assert_close(found[0][real], plain[0][real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(resumed[1][real], plain[1][real], rtol=1e-5, atol=1e-5)


def test_activations_recomputed_after_the_pass_are_packed_too(ids: Tensor) -> None:
    model = make(TYPES["llama"]()).train()
    states, gradient = states_and_gradient(model, ids, MASK)
    recompute_activations(model)
    with packed(model):
        found, found_gradient = states_and_gradient(model, ids, MASK)
    torch.testing.assert_close(found, states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_what_stays_padded(ids: Tensor) -> None:
    with packed(make(tf.LlamaConfig(**GROUPED))) as _, packed(other := make(tf.OPTConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=1, ffn_dim=48, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32,
    ))):  # fmt: skip
        assert packing_of(other.config, MASK) is None  # positions are counted from the mask
    eager = make(TYPES["llama"]())
    eager.set_attn_implementation("eager")
    with packed(eager):
        assert packing_of(eager.config, MASK) is None
    windowed = make(tf.MistralConfig(**GROUPED, sliding_window=16))
    with packed(windowed):
        assert packing_of(windowed.config, MASK) is None  # a sequence of 30 tokens does not fit into the window
        assert packing_of(windowed.config, MASK[[0]]) is not None
        states = body(windowed, ids, MASK)
    torch.testing.assert_close(states, body(windowed, ids, MASK), rtol=0, atol=0)
    assert packing_of(windowed.config, MASK[[0]]) is None  # outside


def test_positions_and_places_by_hand() -> None:
    packing = Packing.of(torch.tensor([[1, 1, 0], [0, 1, 1]]))
    assert packing.index.tolist() == [0, 1, 4, 5]
    assert packing.positions.tolist() == [[0, 1, 1, 2]]
    values = torch.tensor([[10, 11, 12], [13, 14, 15]])
    assert packing.pack(values).tolist() == [[10, 11, 14, 15]]
    assert packing.unpack(packing.pack(values)).tolist() == [[10, 11, 0], [0, 14, 15]]
    assert packing.lengths == [2, 2]


def test_generation_inside_is_as_outside(ids: Tensor) -> None:
    model = make(TYPES["llama"]())
    plain = model.generate(ids, attention_mask=MASK.flip(1), max_new_tokens=4, do_sample=False)
    with packed(model):
        assert torch.equal(plain, model.generate(ids, attention_mask=MASK.flip(1), max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("name", TYPES)
def test_the_last_block_may_leave_out_what_nobody_reads(name: str, ids: Tensor) -> None:
    model = make(TYPES[name]())
    read = torch.rand(MASK.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    read &= MASK.bool()

    def run(chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        states = body(model, ids, MASK, chosen)[read]
        (states.square() * torch.linspace(-1.0, 1.0, states.shape[-1])).sum().backward()  # type: ignore[no-untyped-call]
        return states.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    seen: list[int] = []
    decoder_blocks(model)[-1].mlp.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr, operator]
    with packed(model):
        states, gradient = run(None)
        found, found_gradient = run(read)
    assert seen == [1, 1]
    torch.testing.assert_close(found, states, rtol=1e-5, atol=1e-5 * float(states.abs().max()))
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_the_mlp_of_the_last_block_sees_the_tokens_read_alone(ids: Tensor) -> None:
    model, seen = make(TYPES["llama"]()), []
    for block in decoder_blocks(model):
        block.mlp.gate_proj.register_forward_pre_hook(  # type: ignore[union-attr, operator]
            lambda _m, args: seen.append(args[0].shape[1])
        )
    read = torch.zeros_like(MASK, dtype=torch.bool)
    read[1, 4:9] = True
    with packed(model), torch.no_grad():
        body(model, ids, MASK, read)
        body(model, ids, MASK)
    assert seen == [57, 5, 57, 57]
