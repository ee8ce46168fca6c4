# SPDX-License-Identifier: Apache-2.0
"""Generation in batches that rows enter and leave gives what `model.generate` gives each prompt alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge.models.tiny import build_tokenizer
from expunge.signals import continuous
from expunge.signals.continuous import MIN_SHARED, Row, choose, in_order
from expunge.signals.fitness import obstacle
from expunge.signals.generation import generate, sample

V, EOS, PAD = 300, 1, 0
SIZE = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 96, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2,
}  # fmt: skip
GROUPED = SIZE | {"num_key_value_heads": 2}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, tie_word_embeddings=False)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=96)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GROUPED, head_dim=8)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=96, attn_implementation="eager")
    ),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=96)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZE)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=96, bos_token_id=2, eos_token_id=EOS)
    ),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZE)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**GROUPED)),
}


def restless(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A random model whose answers differ from prompt to prompt and end at different times."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
        model.get_output_embeddings().weight[EOS] *= 2  # the most likely token once in a while
    return model


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    torch.set_num_threads(1)
    return build_tokenizer(["the boat left the harbour at dawn"] * 3, vocab_size=V)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return restless(FAMILIES["llama"])


def some_prompts(n: int, longest: int = 50, seed: int = 0, shared: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    begin = [draw.randrange(3, V) for _ in range(shared)]
    return [begin + [draw.randrange(3, V) for _ in range(draw.randrange(1, longest))] for _ in range(n)]


def alone(model: PreTrainedModel, prompt: list[int], limit: int) -> tuple[tuple[int, ...], bool]:
    """The oracle: one prompt, no padding, through transformers."""
    out = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, max_new_tokens=limit, pad_token_id=PAD, eos_token_id=EOS,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return tuple(out[: out.index(EOS)] if EOS in out else out), EOS in out


class Forwards:
    """What each forward of a model's body was given: rows and tokens per row."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.seen: list[tuple[int, int]] = []
        self._hook = model.base_model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.seen.append(tuple(kwargs["input_ids"].shape))

    def __enter__(self) -> list[tuple[int, int]]:
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_same_tokens_as_generate_alone(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = restless(FAMILIES[family])
    prompts = [*some_prompts(9), *some_prompts(7, longest=20, seed=1, shared=24)]
    assert obstacle(model, 80) == ""
    found = generate(model, tokenizer, prompts, max_new_tokens=24, batch_tokens=400)
    expected = [alone(model, prompt, 24) for prompt in prompts]
    assert [(one.ids, one.finished) for one in found] == expected
    assert len({one.ids for one in found}) > 8


def test_same_tokens_with_adapters_and_back_in_train_mode(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = restless(FAMILIES["llama"])
    prompts = some_prompts(6)
    before = generate(bare, tokenizer, prompts, max_new_tokens=16)
    model = get_peft_model(bare, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.5))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    model.train()
    found = generate(model, tokenizer, prompts, max_new_tokens=16, batch_tokens=200)
    assert model.training
    model.eval()
    assert [one.ids for one in found] == [alone(model, prompt, 16)[0] for prompt in prompts]
    assert [one.ids for one in found] != [one.ids for one in before]


@pytest.mark.parametrize("batch_tokens", [1, 90, 350, 4000])
def test_batches_do_not_change_the_answers(
    batch_tokens: int, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = some_prompts(20, seed=4)
    limits = [1 + 7 * i % 23 for i in range(20)]
    told: list[int] = []
    found = generate(
        llama, tokenizer, [*prompts, prompts[0]], max_new_tokens=[*limits, limits[0]], batch_tokens=batch_tokens,
        progress=told.append,
    )  # fmt: skip
    assert [one.ids for one in found[:-1]] == [
        alone(llama, p, limit)[0] for p, limit in zip(prompts, limits, strict=True)
    ]
    assert found[-1] == found[0]
    assert sum(told) == 21
    assert min(told) > 0
    with pytest.raises(ValueError, match="holds no token"):
        generate(llama, tokenizer, [[]], max_new_tokens=4)
    with pytest.raises(ValueError, match="do not go together"):
        generate(llama, tokenizer, prompts, max_new_tokens=[4])
    assert generate(llama, tokenizer, [], max_new_tokens=4) == []


def test_rows_leave_and_enter_and_memory_is_bounded(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [[*p[:15], i] for i, p in enumerate(some_prompts(30, longest=40, seed=5), start=3)]
    with Forwards(llama) as seen:
        found = generate(llama, tokenizer, prompts, max_new_tokens=24, batch_tokens=320)
    fed = [len(p) - 1 for p in prompts]
    fed_after = [len(one.ids) + one.finished for one in found]
    assert len({len(one.ids) for one in found}) > 8
    assert max(rows for rows, _ in seen) * (max(fed) + 24) <= 320 + 24
    # Decoding feeds a row exactly as often as it gets a token; prompts are fed once, with little padding.
    steps = [rows for rows, tokens in seen if tokens == 1]
    assert sum(steps) == sum(fed_after)
    assert sum(fed) <= sum(rows * tokens for rows, tokens in seen if tokens > 1) <= 1.5 * sum(fed)


def test_a_shared_beginning_is_computed_once(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = some_prompts(12, longest=6, seed=6, shared=40)
    nested = [prompts[0][:n] for n in range(41, len(prompts[0]))]
    with Forwards(llama) as seen:
        found = generate(llama, tokenizer, [*prompts, *nested], max_new_tokens=4, batch_tokens=10**6)
    prefill = [shape for shape in seen if shape[1] > 1]
    assert prefill[0][0] == 1
    assert sum(rows * tokens for rows, tokens in prefill) < 46 + 5 * (len(prompts) + len(nested))
    for prompt, one in zip([*prompts, *nested], found, strict=True):
        assert one.ids == alone(llama, prompt, 4)[0]


def test_rows_that_begin_alike_stand_side_by_side_behind_longer_ones() -> None:
    plain = [tuple(p) for p in some_prompts(5, longest=30, seed=7)]
    alike = [tuple(p) for p in some_prompts(5, longest=12, seed=8, shared=2 * MIN_SHARED)]
    rows = [Row(p, 5) for p in (*plain, *alike)]
    random.Random(0).shuffle(rows)
    order = [row.prompt for row in in_order(rows)]
    assert sorted(order[:5]) == sorted(alike)
    assert [len(p) for p in order[5:]] == sorted((len(p) for p in plain), reverse=True)


class TestLeftToTransformers:
    """Models and texts that the loop would get wrong."""

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=8)), "window"),
            (lambda: hf.OPTForCausalLM(hf.OPTConfig(vocab_size=V, hidden_size=32, ffn_dim=48, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=96, word_embed_proj_dim=32, eos_token_id=EOS,
                bos_token_id=2)), ""),
            (lambda: hf.MambaForCausalLM(hf.MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1,
                eos_token_id=EOS, bos_token_id=2)), "takes no"),
            (lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4,
                eos_token_id=EOS, bos_token_id=2)), "takes no position_ids"),
        ],
        ids=["sliding", "opt", "mamba", "bloom"],
    )  # fmt: skip
    def test_same_tokens_all_the_same(
        self, make: Callable[[], PreTrainedModel], why: str, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        model = restless(make)
        prompts = some_prompts(5, longest=20, seed=9)
        assert why in obstacle(model, 40)
        assert bool(obstacle(model, 40)) == bool(why)
        found = generate(model, tokenizer, prompts, max_new_tokens=[3, 9, 12, 12, 20], batch_tokens=80)
        expected = [alone(model, p, limit) for p, limit in zip(prompts, [3, 9, 12, 12, 20], strict=True)]
        assert [(one.ids, one.finished) for one in found] == expected

    def test_settings_of_the_model_are_kept(self, tokenizer: PreTrainedTokenizerFast) -> None:
        model = restless(FAMILIES["qwen2"])
        prompts = some_prompts(4)
        model.generation_config.repetition_penalty = 1.6
        assert "repetition_penalty" in obstacle(model, 40)
        found = generate(model, tokenizer, prompts, max_new_tokens=20)
        assert [one.ids for one in found] == [alone(model, p, 20)[0] for p in prompts]

    def test_positions_that_depend_on_the_batch(self) -> None:
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, rope_parameters=rope))
        assert obstacle(model, 96) == ""
        assert "positions" in obstacle(model, 97)

    def test_encoders_and_other_attention(self) -> None:
        t5 = hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=V, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        )
        assert "encoder" in obstacle(t5, 4)
        model = FAMILIES["llama"]()
        model.set_attn_implementation("flex_attention")
        assert "flex_attention" in obstacle(model, 4)
        long = hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED, original_max_position_embeddings=48))
        assert obstacle(long, 48) == ""
        assert "own way" in obstacle(long, 49)


class TestSampling:
    """Draws belong to the prompt."""

    def test_neither_batches_nor_other_prompts_change_them(
        self, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        prompts = [*some_prompts(8, seed=10)] * 2

        def drawn(n: int, batch_tokens: int) -> list[tuple[int, ...]]:
            found = sample(
                llama, tokenizer, prompts[:n], max_new_tokens=12, temperature=2.0, seed=5, batch_tokens=batch_tokens
            )
            return [one.ids for one in found]

        whole = drawn(16, 4000)
        assert drawn(16, 130) == whole
        assert drawn(11, 4000) == whole[:11]
        assert whole[:8] != whole[8:]

    def test_a_token_comes_as_often_as_it_is_likely(self) -> None:
        p = np.array([0.5, 0.0, 0.3, 0.2])
        logits = torch.log(torch.tensor(p, dtype=torch.float32)).expand(4000, 4) * 0.5
        rows = [Row((1,), 1, draws=np.random.default_rng([0, i]).random(1)) for i in range(4000)]
        share = np.bincount(choose(logits, rows, 0.5), minlength=4) / 4000
        assert share[1] == 0
        # Three standard errors of the largest share: 3 sqrt(0.25 / 4000) = 0.024.
        np.testing.assert_allclose(share, p, atol=0.024)
        assert choose(torch.tensor([[1.0, 3.0, 2.0]]), rows[:1], None) == [1]

    def test_the_edges_of_a_draw(self) -> None:
        logits = torch.log(torch.tensor([[0.0, 0.25, 0.75, 0.0]]))
        for draw, token in ((0.0, 1), (0.2499, 1), (0.2501, 2), (1 - 2**-53, 2)):
            assert choose(logits, [Row((1,), 1, draws=np.array([draw]))], 1.0) == [token]


def test_the_reason_reaches_the_loop(
    monkeypatch: pytest.MonkeyPatch, llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The families above are decoded by the loop, not quietly by transformers."""
    monkeypatch.setattr(continuous.Slots, "step", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(llama, tokenizer, [[3, 4]], max_new_tokens=2)
