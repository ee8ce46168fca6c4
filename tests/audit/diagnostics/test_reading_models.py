# SPDX-License-Identifier: Apache-2.0
"""What is read from a model: real tokens only, one gradient a text, one block a file; and what padding does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig

from expunge.audit.diagnostics import published
from expunge.audit.diagnostics.cka import linear_cka
from expunge.audit.diagnostics.collect import DiagonalStore, fisher_diagonals, pool, pooled_states, whole
from expunge.audit.diagnostics.fisher import mean_square
from expunge.audit.diagnostics.updates import weight_updates
from expunge.audit.statistics import Unavailable
from expunge.data.encoding import Encoded, Encoder
from expunge.data.fictitious import Archive
from expunge.errors import InputDataError
from expunge.models.families import parameter_blocks
from expunge.signals.head import decoder_blocks


@pytest.fixture(scope="module")
def items(archive: Archive, encoder: Encoder) -> list[Encoded]:
    """Texts of several lengths, the same first token in all of them."""
    examples = [fact.example() for person in archive.people[:2] for fact in person.facts][:9]
    return [row.encoded for row in encoder.encode_many(examples, where="forget")]


def test_pools_by_hand() -> None:
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(states, mask, "mean").tolist() == [[1.0, 2.0], [8.0, 9.0]]
    assert pool(states, mask, "last").tolist() == [[2.0, 3.0], [10.0, 11.0]]
    assert pool(states, mask, "first").tolist() == [[0.0, 1.0], [6.0, 7.0]]


def test_states_are_those_of_each_text_alone(target: nn.Module, items: list[Encoded], encoder: Encoder) -> None:
    assert len({len(item.ids) for item in items}) > 1
    together = pooled_states(target, items, pad_id=encoder.pad_id)
    blocks = decoder_blocks(target)
    assert together.shape == (len(blocks), len(items), target.config.hidden_size)
    for number, item in enumerate(items):
        with torch.no_grad():
            out = target(torch.tensor([item.ids]), output_hidden_states=True).hidden_states
        assert torch.allclose(together[0, number], out[1][0].mean(0), atol=1e-5)
    small = pooled_states(target, items, pad_id=encoder.pad_id, batch_tokens=1)
    assert torch.allclose(together, small, atol=1e-5)
    twice = pooled_states(target, [items[0], items[1], items[0]], pad_id=encoder.pad_id)
    assert torch.equal(twice[:, 0], twice[:, 2])


def test_one_forward_a_batch_gives_every_block(target: nn.Module, items: list[Encoded], encoder: Encoder) -> None:
    seen: list[int] = []
    handle = decoder_blocks(target)[0].register_forward_hook(lambda *_: seen.append(1))
    done: list[int] = []
    pooled_states(target, items, pad_id=encoder.pad_id, progress=done.append)
    handle.remove()
    assert len(seen) == len(done) == 1
    assert sum(done) == len(items)


def test_padding_changes_the_released_mean_and_not_ours(
    target: nn.Module, items: list[Encoded], encoder: Encoder
) -> None:
    short = min(items, key=lambda item: len(item.ids))
    alone = published.padded_states(target, [short], pad_id=encoder.pad_id, first_token=False)[:, 0]
    among = published.padded_states(target, items, pad_id=encoder.pad_id, first_token=False)[:, items.index(short)]
    ours = pooled_states(target, items, pad_id=encoder.pad_id)[:, items.index(short)]
    assert torch.allclose(alone, ours, atol=1e-5)
    assert not torch.allclose(among, ours, atol=1e-2)


def test_the_first_token_tells_nothing(target: nn.Module, items: list[Encoded], encoder: Encoder) -> None:
    first = published.padded_states(target, items, pad_id=encoder.pad_id, first_token=True)
    assert published.cka(first[-1], first[-1]) < 1e-3  # the very same model, and the released number is 0
    with pytest.raises(Unavailable, match="same state"):
        linear_cka(first[-1], first[-1])
    ours = pooled_states(target, items, pad_id=encoder.pad_id)
    assert linear_cka(ours[-1], ours[-1]).value == pytest.approx(1.0)


def loop_diagonal(model: nn.Module, items: list[Encoded], layer: int) -> torch.Tensor:
    """One backward a text through the whole model, squares averaged."""
    named = [p for name, p in model.named_parameters() if name.startswith(f"model.layers.{layer}.")]
    gradients = []
    for item in items:
        ids = torch.tensor([item.ids])
        loss = functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
        gradients.append(torch.autograd.grad(loss, named))
    return torch.cat([part.flatten() for part in mean_square(gradients)])


@pytest.mark.parametrize("layers_per_pass", [0, 1])
def test_diagonals_are_those_of_the_loop(target: nn.Module, items: list[Encoded], layers_per_pass: int) -> None:
    for parameter in target.parameters():
        parameter.requires_grad_(False)
    done: list[int] = []
    found = list(fisher_diagonals(target, items, layers_per_pass=layers_per_pass, progress=done.append))
    assert [entry.layer for entry in found] == [0, 1]
    assert len(done) == len(items) * (2 if layers_per_pass else 1)
    assert not any(parameter.requires_grad for parameter in target.parameters())  # left as it was
    for parameter in target.parameters():
        parameter.requires_grad_(True)
    for layer, diagonal in found:
        assert torch.allclose(diagonal, loop_diagonal(target, items, layer), rtol=1e-3, atol=1e-9)


def test_the_released_diagonal_is_smaller_and_depends_on_padding(
    target: nn.Module, items: list[Encoded], encoder: Encoder
) -> None:
    ours = float(next(iter(fisher_diagonals(target, items))).diagonal_P.sum())
    theirs = float(published.batch_fisher(target, items, 0, pad_id=encoder.pad_id).sum())
    assert theirs < ours
    same = [items[0]] * 4  # a batch of one text, without padding: squaring early or late is the same then
    alone = float(next(iter(fisher_diagonals(target, same))).diagonal_P.sum())
    assert float(published.batch_fisher(target, same, 0, pad_id=encoder.pad_id).sum()) == pytest.approx(alone, rel=1e-3)


def test_block_one_takes_in_block_ten_under_the_released_rule() -> None:
    assert published.in_layer("model.layers.10.mlp.up_proj.weight", 1)
    assert not published.in_layer("model.layers.2.mlp.up_proj.weight", 1)
    assert published.in_layer("transformer.h.1.attn.c_attn.weight", 1)


FAMILIES = {
    "gpt2": GPT2Config(vocab_size=60, n_embd=16, n_layer=11, n_head=2, n_positions=32),
    "gemma2": Gemma2Config(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=2, head_dim=8, intermediate_size=32),
    "neox": GPTNeoXConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                          intermediate_size=32),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_read_too_also_in_half_precision(family: str) -> None:
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    texts = [Encoded(tuple(range(i, 2 * i + 5)), tuple(range(i, 2 * i + 5)), ends_with_eos=False) for i in range(1, 5)]
    layers = len(decoder_blocks(model))
    assert pooled_states(model, texts, pad_id=0).shape == (layers, 4, 16)
    full = {entry.layer: entry.diagonal_P for entry in fisher_diagonals(model, texts, layers_per_pass=4)}
    half = {entry.layer: entry.diagonal_P for entry in fisher_diagonals(model.to(torch.bfloat16), texts)}
    assert list(full) == list(half) == list(range(layers))
    assert half[1].dtype == torch.float32
    assert float(half[1].sum()) == pytest.approx(float(full[1].sum()), rel=0.1)
    taken = published.batch_fisher(model, texts, 1, pad_id=0)
    assert len(taken) == len(full[1]) * (2 if layers == 11 else 1)  # block 1, and block 10 where there is one
    still = weight_updates(dict(model.named_parameters()), dict(model.named_parameters()), parameter_blocks(model))
    assert {update.norm for update in still} == {0.0}


def test_diagonals_survive_the_disk(tmp_path: Path, target: nn.Module, items: list[Encoded]) -> None:
    store = DiagonalStore(tmp_path / "kept")
    found = list(fisher_diagonals(target, items[:2]))
    for entry in found:
        store.put("forget", entry)
    assert torch.equal(store.get("forget", 1), found[1].diagonal_P)


def test_a_text_of_one_token_is_refused() -> None:
    with pytest.raises(InputDataError, match="one token"):
        whole(Encoded((5,), (5,), ends_with_eos=False))
